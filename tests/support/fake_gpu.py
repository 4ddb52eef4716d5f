"""GPUs without a GPU: streams that do nothing until someone waits, or at the worst moment, and kernels of the CPU.

Everything that is enqueued is kept, stream by stream, and done when a wait for an event needs it, in the order
that streams and waits prescribe and no other: what the engine forgets to wait for has not happened yet. Streams
that are `eager` do what they may at once instead, so that they are ahead of the lazy ones.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import pytest
import torch

from fuseo1_kernels.backends.arrays import Array
from fuseo1_kernels.backends.contract import NOTHING, FuseParams, Request, Select
from fuseo1_kernels.backends.interface import OnDevice, Room
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SceResult, SurveyResult, expect
from fuseo1_kernels.engine.gpu import pool
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.methods.sce import sce_params

#: The streams of a GPU, in the order in which its context makes them.
COPIES_IN, KERNELS, COPIES_OUT = range(3)

_POISON = 0xA5
_here = threading.local()


class FakeMemory:
    def __init__(self, nbytes: int) -> None:
        self.tensor = torch.full((nbytes,), _POISON, dtype=torch.uint8)
        self.address, self.nbytes = self.tensor.data_ptr(), nbytes
        self.view = memoryview(self.tensor.numpy())  # type: ignore[arg-type]


@dataclass
class FakeEvent:
    stream: FakeStream
    position: int
    behind_copy: bool = False

    def synchronize(self) -> None:
        self.stream.device.synchronized(self)

    @property
    def passed(self) -> bool:
        return self.stream.done >= self.position


@dataclass(eq=False)
class FakeStream:
    device: FakeDevice
    number: int
    operations: list[Callable[[], object] | FakeEvent] = field(default_factory=list)
    done: int = 0

    def copy(self, to: Any, to_start: int, of: Any, of_start: int, nbytes: int) -> FakeEvent:
        assert nbytes > 0 and to_start >= 0 and of_start >= 0
        assert to_start + nbytes <= to.nbytes and of_start + nbytes <= of.nbytes

        def move() -> None:
            to.tensor[to_start : to_start + nbytes] = of.tensor[of_start : of_start + nbytes]

        event = self.enqueue(move)
        event.behind_copy = True
        return event

    def record(self) -> FakeEvent:
        with self.device.lock:
            return FakeEvent(self, len(self.operations))

    def wait(self, event: FakeEvent) -> None:
        if (self.number, event.stream.number) not in self.device.deaf:
            self.enqueue(event)

    @contextmanager
    def current(self) -> Iterator[None]:
        before, _here.stream = getattr(_here, "stream", None), self
        yield
        _here.stream = before

    def enqueue(self, operation: Callable[[], object] | FakeEvent) -> FakeEvent:
        with self.device.lock:
            self.operations.append(operation)
            event = self.record()
            self.device.work_ahead()
            return event

    def step(self, force: bool) -> bool:
        """Do the next operation; whether it was possible: a wait is only over when it may be forced."""
        operation = self.operations[self.done]
        if isinstance(operation, FakeEvent):
            if force:
                operation.stream.run_to(operation.position)
            elif not operation.passed:
                return False
        else:
            operation()
        self.done += 1
        return True

    def run_to(self, position: int) -> None:
        while self.done < position:
            self.step(force=True)


class FakeDevice:
    """`eager` streams are ahead of the others, `chance` is how often any stream does something of its own will.

    `deaf` holds (stream, stream) where the first does not wait for the second, and (stream,) for whose events
    the host does not: what an engine would do that forgets it.
    """

    def __init__(
        self,
        number: int = 0,
        *,
        free: int = 1 << 30,
        eager: Sequence[int] = (),
        chance: float = 0.0,
        deaf: Sequence[tuple[int, ...]] = (),
    ) -> None:
        self.name = f"cuda:{number}"
        self.description = f"fake GPU ({self.name})"
        self.free, self.eager, self.chance, self.deaf = free, set(eager), chance, set(deaf)
        self.lock = threading.RLock()
        self.streams: list[FakeStream] = []
        self.default_stream = FakeStream(self, -1)
        self.allocated: list[int] = []
        self.pinned: list[int] = []
        self.closed = 0
        self.surveys = self.fuses = 0
        # Whether an op is under way for which someone waits.
        self.busy = False
        self.most_pinned = 1 << 30
        # The wait at which the device is lost, counted from 1; None: never.
        self.lost_at: int | None = None
        self.waits = 0
        self._random = random.Random(number)

    def free_bytes(self) -> int:
        return self.free

    def allocate(self, nbytes: int) -> FakeMemory:
        if nbytes > self.free:
            raise RuntimeError(f"CUDA out of memory. Tried to allocate {nbytes} bytes.")
        self.allocated.append(nbytes)
        memory = FakeMemory(nbytes)
        # What had it before is still at work, in the stream that it is allocated in.
        stream = getattr(_here, "stream", None) or self.default_stream
        stream.enqueue(lambda: memory.tensor.fill_(_POISON))
        return memory

    def allocate_pinned(self, nbytes: int) -> FakeMemory:
        with self.lock:
            if sum(self.pinned) + nbytes > self.most_pinned:
                raise RuntimeError("CUDA error: out of memory")
            self.pinned.append(nbytes)
        return FakeMemory(nbytes)

    def stream(self) -> Any:
        self.streams.append(FakeStream(self, len(self.streams) % 3))
        return self.streams[-1]

    def close(self) -> None:
        self.closed += 1
        if self.lost_at is None:
            assert all(stream.done == len(stream.operations) for stream in self.streams)

    def synchronized(self, event: FakeEvent) -> None:
        with self.lock:
            self.waits += 1
            if self.lost_at is not None and self.waits >= self.lost_at:
                raise RuntimeError("CUDA error: unspecified launch failure\nmore lines of it")
            # At its end a context waits for its streams, rather than for copies.
            if event.behind_copy and (event.stream.number,) in self.deaf:
                return
            event.stream.run_to(event.position)
            self.default_stream.run_to(len(self.default_stream.operations))
            self.work_ahead()

    def work_ahead(self) -> None:
        """Let streams do what they may without being waited for."""
        stepped = True
        while stepped:
            stepped = False
            for stream in self.streams:
                keen = stream.number in self.eager or self._random.random() < self.chance
                if keen and stream.done < len(stream.operations):
                    stepped |= stream.step(force=False)


def enqueue(work: Callable[[], None]) -> None:
    """Have the current stream do it."""
    _here.stream.enqueue(work)


T = TypeVar("T")


def waited(work: Callable[[], T]) -> T:
    """Have the current stream, which is that of the kernels, do it, and wait: an op in memory for one."""
    stream, found = _here.stream, []
    assert stream.number == KERNELS
    if stream.device.busy:
        raise RuntimeError("two ops work in the same memory")
    stream.device.busy = True
    try:
        enqueue(lambda: found.append(work()))
        time.sleep(0.0005)  # another thread has its chance
        stream.record().synchronize()
    finally:
        stream.device.busy = False
    return found[0]


def sce_result(targets: int = 1) -> SceResult:
    """A survey that found nothing."""
    return SceResult(
        nonzero=0,
        selected=0,
        threshold=NOTHING,
        tie_limit=-1,
        passes=0,
        energy=(0.0,) * targets,
        nonfinite=(0,) * (targets + 2),
    )


class FakeKernels:
    """The CPU's kernels, enqueued; what they leave in a device's memory is JSON. Of what they `lack` they have none."""

    name = "cuda"
    description = "fake kernels"
    max_targets = 4
    result_bytes = 1000
    params_bytes = 600

    def __init__(self, lack: tuple[type, ...] = ()) -> None:
        self._cpu = load_backend("cpu")
        self._lack = lack

    def survey_bytes(self, targets: int, numel: int, request: Request) -> int:
        assert 0 < targets <= self.max_targets
        self._check(request, *getattr(request, "selects", ()))
        return 5000 + targets * numel // 16

    def fuse_bytes(self, targets: int, numel: int, selects: Sequence[Select]) -> int:
        self._check(*selects)
        return 8

    def _check(self, *asked: object) -> None:
        for one in asked:
            if isinstance(one, self._lack):
                raise BackendError(f"the fake kernels have no {type(one).__name__}")

    def survey(
        self, inputs: Sequence[Array], request: Request, threads: int, max_bytes: int = 0
    ) -> SurveyResult:
        self.survey_bytes(len(inputs) - 1, inputs[0].numel, request)
        _here.stream.device.surveys += 1
        return waited(lambda: self._cpu.survey(inputs, request, 1))

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        self._check(*params.selects)
        _here.stream.device.fuses += 1
        return waited(lambda: self._cpu.fuse(inputs, params, out, offset, 1))

    def workspace_bytes(self, targets: int, numel: int, select_topk: float) -> int:
        return 5000 + targets * numel // 16 + (3000 if select_topk < 1 else 0)

    def enqueue_survey(
        self, inputs: Sequence[Array], select_topk: float, variant: str, room: Room | None = None
    ) -> OnDevice:
        assert room is not None
        numel, targets = inputs[0].numel, len(inputs) - 1
        assert targets <= self.max_targets
        assert room.work.nbytes >= self.workspace_bytes(targets, numel, select_topk)
        whole = inputs[0].owner.data_ptr()
        starts = [array.address for array in inputs]
        for start in (
            *starts,
            *(part.data_ptr() for part in (room.work, room.result, room.params)),
        ):
            assert (start - whole) % 256 == 0

        mark = random.getrandbits(7)

        def begin() -> None:
            room.work.fill_(mark)

        def end() -> None:
            if not bool((room.work == mark).all()):
                raise RuntimeError("two surveys work in the same memory")
            survey = expect(SceResult, self._cpu.survey(inputs, select_topk, 1))
            _put(room.result, {"survey": _fields(survey), "written": 0})
            _put(room.params, asdict(sce_params(survey, numel, select_topk, variant)))

        _here.stream.device.surveys += 1
        enqueue(begin)
        time.sleep(
            0.0005
        )  # a real one is many kernels, between which another thread has its chance
        enqueue(end)
        return OnDevice(room.result, room.params, targets)

    def enqueue_fuse(
        self, inputs: Sequence[Array], survey: OnDevice, out: Array, offset: int = 0
    ) -> None:
        def work() -> None:
            params = _get(survey.params)
            params["weights"] = tuple(params["weights"])
            result = _get(survey.result)
            bad = self._cpu.fuse(inputs, FuseParams(**params), out, offset, 1)
            _put(survey.result, result | {"written": result.get("written", 0) + bad})

        assert survey.params.nbytes == self.params_bytes
        _here.stream.device.fuses += 1
        enqueue(work)

    def pack_params(self, params: FuseParams) -> bytes:
        return json.dumps(asdict(params)).encode().ljust(self.params_bytes, b"\0")

    def unpack_result(self, raw: bytes, targets: int) -> tuple[SceResult, int]:
        found = _decode(raw)
        fields = found.get("survey", _fields(sce_result(targets)))
        fields |= {name: tuple(fields[name]) for name in ("energy", "nonfinite")}
        return SceResult(**fields), found.get("written", 0)


class Enqueued:
    """The CUDA backend, whose kernels here run at once: enqueued, they run when the stream comes to them."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cuda, name)

    def survey(self, inputs: Any, *arguments: Any) -> Any:
        return waited(lambda: self._cuda.survey(inputs, *arguments))

    def fuse(self, inputs: Any, *arguments: Any) -> Any:
        return waited(lambda: self._cuda.fuse(inputs, *arguments))

    def enqueue_survey(self, inputs: Any, select_topk: float, variant: str, room: Any) -> Any:
        enqueue(lambda: self._cuda.enqueue_survey(inputs, select_topk, variant, room))
        return OnDevice(room.result, room.params, len(inputs) - 1)

    def enqueue_fuse(self, inputs: Any, survey: Any, out: Any) -> None:
        enqueue(lambda: self._cuda.enqueue_fuse(inputs, survey, out))


def _fields(survey: SurveyResult) -> dict[str, Any]:
    """Return the fields that SCE needs; JSON can hold all of them."""
    return {name: value for name, value in asdict(survey).items() if name != "divergences"}


def _put(room: torch.Tensor, value: dict[str, Any]) -> None:
    encoded = json.dumps(value).encode()
    room.zero_()
    room[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)


def _get(room: torch.Tensor) -> dict[str, Any]:
    return _decode(room.numpy().tobytes())


def _decode(raw: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(raw.rstrip(b"\0") or b"{}")
    return found


def install(
    patch: pytest.MonkeyPatch, *devices: FakeDevice, kernels: Any = None
) -> tuple[FakeDevice, ...]:
    """Have the engine find these devices, with the fake kernels or others that are like them."""
    chosen = kernels or FakeKernels()
    patch.setattr(pool, "load_gpu_backend", lambda name: chosen)
    patch.setattr(pool, "open_devices", lambda numbers: tuple(devices[n] for n in numbers))
    return devices
