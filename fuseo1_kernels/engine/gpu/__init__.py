"""Workers on NVIDIA GPUs: copies to and from the device overlap with kernels."""
