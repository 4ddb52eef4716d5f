"""The Triton backend: survey and fuse in Triton, for GPUs of NVIDIA and AMD, on the caller's stream.

Follow a survey through the modules in this order: backend, launches, sampling, scan, selection, energies, settle;
then fuse. arithmetic has what all of them do to a tile, state where they leave each other numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import BackendError

if TYPE_CHECKING:
    from .backend import TritonBackend


def load() -> TritonBackend:
    """The backend, if Triton is installed and there is a GPU, or its interpreter is asked for (TRITON_INTERPRET=1)."""
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
