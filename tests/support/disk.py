"""Models that are only names and sizes, on a disk that logs what is asked of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from fuseo1_kernels.backends.arrays import BY_CODE
from fuseo1_kernels.checkpoint.header import TensorInfo
from fuseo1_kernels.methods.sce import Sce
from fuseo1_kernels.plan.inputs import Stored
from fuseo1_kernels.plan.job import Job


class Disk:
    """A simulated disk logs what happens to models' tensors, and counts their bytes in the page cache."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []  # (what, MODEL/TENSOR)
        self.brought: Counter[str] = Counter()  # bytes, by MODEL/TENSOR
        self.most = 0
        self.before_read: Callable[[str], object] = lambda tensor: None
        self._lock = threading.Lock()

    def read(self, tensor: str, nbytes: int) -> None:
        self.before_read(tensor)
        with self._lock:
            self.log.append(("read", tensor))
            self.brought[tensor] += nbytes
            self.most = max(self.most, self.brought.total())

    def forget(self, tensor: str) -> None:
        with self._lock:
            self.log.append(("forget", tensor))
            self.brought.pop(tensor, 0)

    def told(self, what: str) -> list[str]:
        """Return the tensors that were "read", or were to be "forget", in order."""
        return [tensor for done, tensor in self.log if done == what]


class Model:
    """A source of which some tensors, by name, are in the page cache."""

    def __init__(self, disk: Disk, name: str, cached: Sequence[str] = ()) -> None:
        self.disk, self.name, self.cached = disk, name, cached

    def is_cached(self, info: TensorInfo) -> bool:
        return info.name in self.cached

    def read_ahead(self, info: TensorInfo, start: int, nbytes: int) -> None:
        self.disk.read(f"{self.name}/{info.name}", min(nbytes, info.nbytes - start))

    def forget(self, info: TensorInfo) -> None:
        self.disk.forget(f"{self.name}/{info.name}")


def job(name: str, models: Sequence[Model], nbytes: int, file: str = "f", offset: int = 0) -> Job:
    """A tensor of `nbytes` in every model."""
    info = TensorInfo(name, "BF16", (nbytes // 2,), Path(file), offset, nbytes)
    inputs = tuple(Stored(model, info) for model in models)  # type: ignore[arg-type]
    return Job(name, info.shape, BY_CODE["BF16"], inputs, Sce(1.0, "fuseo1", 1))
