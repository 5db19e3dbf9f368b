"""One file a verb: its typed arguments and the function that puts the rooms together."""
