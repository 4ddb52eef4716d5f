"""The CUDA backend: survey and fuse in CUDA C++, for NVIDIA GPUs, on the caller's stream."""

from __future__ import annotations

from .backend import load as load
