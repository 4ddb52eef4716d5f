"""How much memory of torch's something has at once: every new tensor is counted until it is let go."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.fake_gpu import Enqueued, FakeDevice, waited

# As torch's allocator for GPUs rounds them.
_UNIT = 512


class Peak(TorchDispatchMode):
    """Within the context; `most` says it. What tensors share, and what was there before, is not counted anew."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in before | self._known:
                self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, -(-storage.nbytes() // _UNIT) * _UNIT
        self._known.add(key)
        self.now += nbytes
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Measured(Enqueued):
    """Asserts that no op has more memory of torch's than the engine set aside, but for `slack`.

    Where the device is the host a few small tensors of the host's are counted, too.
    """

    def __init__(self, kernels: Any, device: FakeDevice, slack: int = 0) -> None:
        super().__init__(kernels)
        self._device, self._slack = device, slack
        self.most = self.ops = 0

    def survey(self, *arguments: Any) -> Any:
        return waited(lambda: self._measure(self._cuda.survey, *arguments))

    def fuse(self, *arguments: Any) -> Any:
        return waited(lambda: self._measure(self._cuda.fuse, *arguments))

    def _measure(self, op: Any, *arguments: Any) -> Any:
        with Peak() as peak:
            found = op(*arguments)
        _, own = self._device.allocated
        assert peak.most <= own + self._slack
        self.most, self.ops = max(self.most, peak.most), self.ops + 1
        return found
