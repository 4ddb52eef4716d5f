"""Merges of tensors in memory."""
