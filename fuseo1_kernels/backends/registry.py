"""Loads backends by name, and picks the fastest that runs here."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BackendError
from .interface import Backend, GpuBackend

_PACKAGE = __name__.rpartition(".")[0]


_NO_CUDA = "its kernels are not part of this build (README.md: FUSEO1_CUDA=1)"


#: Backends for the CPU's memory, in the order in which `auto` prefers them.
BACKENDS = ("cpu", "reference")


#: Backends for a GPU's memory, in the order in which `auto` prefers them.
GPU_BACKENDS = ("cuda", "triton")


@cache
def load_backend(name: str) -> Backend:
    """The backend `name` ("auto", or one of BACKENDS). Raises BackendError saying why it cannot run."""
    if name == "auto":
        backend, reasons = first_that_runs()
        for reason in reasons:
            warnings.warn(f"{reason}; {backend.name} is used instead", stacklevel=2)
        return backend
    if name in GPU_BACKENDS:
        raise BackendError(
            f"backend {name} merges tensors that are in a GPU's memory; the CPU's are merged by: auto,"
            f" {', '.join(BACKENDS)}"
        )
    if name not in BACKENDS:
        raise BackendError(
            f"there is no backend {name!r} in this version; use one of: auto, {', '.join(BACKENDS)}"
        )
    loaded: Backend = _load(name)
    return loaded


@cache
def load_gpu_backend(name: str) -> GpuBackend:
    """The backend `name` ("auto", or one of GPU_BACKENDS) for tensors in a GPU's memory. Raises BackendError."""
    if name in BACKENDS:
        raise BackendError(f"backend {name} works in the CPU's memory; move the tensors there")
    if name != "auto" and name not in GPU_BACKENDS:
        raise BackendError(
            f"there is no backend {name!r} for GPUs in this version; use one of: auto,"
            f" {', '.join(GPU_BACKENDS)}"
        )
    if name == "auto":
        chosen, reasons = _first_that_runs(GPU_BACKENDS, load_gpu_backend)
        for reason in reasons:
            warnings.warn(f"{reason}; {chosen.name} is used instead", stacklevel=2)
        return chosen
    backend: GpuBackend = _load(name)
    return backend


def _load(name: str) -> Any:
    try:
        return importlib.import_module(f".{name}", __package__).load()
    except ImportError as error:
        # If the module exists and cannot be loaded, its own error says why.
        no_cuda = name == "cuda" and importlib.util.find_spec("._cuda", _PACKAGE) is None
        reason = _not_built() if name == "cpu" else _NO_CUDA if no_cuda else None
        raise BackendError(f"backend {name} cannot run here: {reason or error}") from error


def _not_built() -> str | None:
    """A remedy, if this package is a source tree without kernels that hides an installed package; else None."""
    package = Path(__file__).resolve().parents[1]
    built = importlib.util.find_spec("._cpu", _PACKAGE) is not None
    if built or not (package.parent / "setup.py").exists():
        return None
    return (
        f"the kernels are not built in {package}, which Python found instead of the installed package:"
        " run from another directory, or `pip install -e .`"
    )


def first_that_runs() -> tuple[Backend, tuple[str, ...]]:
    """The backend that `auto` picks, and why each preferred one cannot run. Raises BackendError."""
    return _first_that_runs(BACKENDS, load_backend)


_Loaded = TypeVar("_Loaded")


def _first_that_runs(
    names: Sequence[str], load: Callable[[str], _Loaded]
) -> tuple[_Loaded, tuple[str, ...]]:
    reasons: list[str] = []
    for name in names:
        try:
            backend = load(name)
        except BackendError as error:
            if name in BACKENDS and not isinstance(error.__cause__, ImportError):
                raise  # it is installed, but configured wrongly (FUSEO1_ISA)
            reasons.append(str(error))
            continue
        return backend, tuple(reasons)
    raise BackendError("; ".join(reasons))


def backend_states() -> dict[str, str]:
    """For each backend a description, or why it cannot run."""
    states = {}
    for names, load in ((BACKENDS, load_backend), (GPU_BACKENDS, load_gpu_backend)):
        for name in names:
            try:
                states[name] = load(name).description
            except BackendError as error:
                states[name] = f"absent: {error}"
    return states
