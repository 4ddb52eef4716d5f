"""The Triton backend: survey and fuse in Triton, for GPUs of NVIDIA and AMD, on the caller's stream.

Read the modules in the order of a merge by SCE: backend, launch_sce, sampling, scan, threshold, energies, settle,
fuse_sce. arithmetic has the operations on a tile, state the layout of the numbers that kernels pass on. The other
methods: launch_surveys, sums, divergences; launch_fuse, select, philox, fuse_general.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import BackendError

if TYPE_CHECKING:
    from .backend import TritonBackend


def load() -> TritonBackend:
    """The backend. Raises ImportError without Triton, and BackendError without a GPU unless TRITON_INTERPRET=1."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Triton is not installed: `pip install fuseo1-kernels[triton]`"
        ) from error
    import torch

    from .backend import INTERPRETED, TritonBackend

    if not INTERPRETED and not torch.cuda.is_available():
        raise BackendError("backend triton cannot run here: torch finds no GPU")
    return TritonBackend()
