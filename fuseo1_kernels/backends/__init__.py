"""Backends: each implements the two ops, `survey` and `fuse`, to the same bits; those on the CPU a few more."""
