"""Speed and memory of patchword beside its peers on the same machine: `python -m bench quick|full`."""
