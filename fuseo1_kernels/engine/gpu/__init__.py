"""Merges of tensors in files on NVIDIA GPUs: copied there, merged and copied back, one while the other is computed."""
