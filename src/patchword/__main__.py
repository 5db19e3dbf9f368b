"""`python -m patchword`, which is how `torchrun -m patchword …` starts each of its processes."""

from patchword.cli import main

main()
