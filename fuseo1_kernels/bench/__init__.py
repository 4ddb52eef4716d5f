"""`python -m fuseo1_kernels.bench`: how fast the kernels are, beside a memcpy of the same tensors in the same run."""
