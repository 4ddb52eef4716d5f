"""Implements Device with torch: memory, streams and events of NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from .device import DeviceMemory, Event, HostMemory, Stream, explained


def device_count() -> int:
    return int(torch.cuda.device_count())


class _CudaMemory:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.address: int = tensor.data_ptr()


class _PinnedMemory(_CudaMemory):
    def __init__(self, tensor: Any) -> None:
        super().__init__(tensor)
        self.view = memoryview(tensor.numpy())


class _CudaEvent:
    def __init__(self, stream: Any) -> None:
        # A blocking event yields the core while it waits; other threads need it to move bytes.
        self.event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def synchronize(self) -> None:
        self.event.synchronize()


class _CudaStream:
    def __init__(self, number: int) -> None:
        self._stream: Any = torch.cuda.Stream(number)  # type: ignore[no-untyped-call]

    def copy(
        self, to: DeviceMemory, to_start: int, of: DeviceMemory, of_start: int, nbytes: int
    ) -> Event:
        with self.current():
            destination = to.tensor[to_start : to_start + nbytes]
            destination.copy_(of.tensor[of_start : of_start + nbytes], non_blocking=True)
            return _CudaEvent(self._stream)

    def record(self) -> Event:
        return _CudaEvent(self._stream)

    def wait(self, event: Event) -> None:
        assert isinstance(event, _CudaEvent)
        self._stream.wait_event(event.event)

    @contextmanager
    def current(self) -> Iterator[None]:
        # Of a stream of another GPU than the current one torch makes, when it leaves it, a context on that one.
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            yield


class CudaDevice:
    def __init__(self, number: int) -> None:
        self._device = torch.device("cuda", number)
        self.name = f"cuda:{number}"
        with explained(self):
            self.description = f"{torch.cuda.get_device_name(number)} ({self.name})"

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self._device)[0])

    def allocate(self, nbytes: int) -> DeviceMemory:
        return _CudaMemory(torch.empty(nbytes, dtype=torch.uint8, device=self._device))

    def allocate_pinned(self, nbytes: int) -> HostMemory:
        with torch.cuda.device(self._device):
            return _PinnedMemory(torch.empty(nbytes, dtype=torch.uint8, pin_memory=True))

    def stream(self) -> Stream:
        return _CudaStream(self._device.index)

    def close(self) -> None:
        with suppress(RuntimeError):  # a lost device has already raised an error
            torch.cuda.empty_cache()
