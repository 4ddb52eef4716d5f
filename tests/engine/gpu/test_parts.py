"""These tests cover the parts of merges on GPUs: regions, slots, layouts, names of devices, and their errors."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from fuseo1_kernels import MergeError
from fuseo1_kernels.backends.arrays import BY_NAME, DType
from fuseo1_kernels.engine.devices import parse_devices
from fuseo1_kernels.engine.gpu.cuda_device import _CudaStream
from fuseo1_kernels.engine.gpu.device import explained
from fuseo1_kernels.engine.gpu.layout import Layout, TensorRequest, footprint
from fuseo1_kernels.engine.gpu.pool import open_devices
from fuseo1_kernels.engine.gpu.regions import Regions
from fuseo1_kernels.engine.gpu.staging import StagingRing, Stopped
from fuseo1_kernels.errors import BackendError, ConfigError
from fuseo1_kernels.methods.linear import Linear
from fuseo1_kernels.methods.rule import Rule
from fuseo1_kernels.methods.sce import Sce
from support.fake_gpu import FakeDevice, sce_result

BF16, FP32 = BY_NAME["bfloat16"], BY_NAME["float32"]


# --- regions -----------------------------------------------------------------------------


def test_regions_do_not_overlap_and_are_all_used() -> None:
    regions, draw = Regions(1 << 16), random.Random(1)
    held: dict[int, int] = {}
    for _ in range(2000):
        nbytes = draw.choice([1, 255, 256, 257, 5000])
        if len(held) > 8 or (held and draw.random() < 0.4):
            start = draw.choice(list(held))
            del held[start]
            regions.give(start)
            continue
        start = regions.take(nbytes)
        assert start % 256 == 0 and start + nbytes <= 1 << 16
        assert all(start + nbytes <= s or s + n <= start for s, n in held.items())
        held[start] = nbytes
    for start in held:
        regions.give(start)
    assert regions.take(1 << 16) == 0


def test_a_large_region_is_not_passed_by() -> None:
    regions = Regions(1024)
    first, second = regions.take(512), regions.take(256)
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(regions.take, 1000)
        wait([large], 0.05)
        small = pool.submit(regions.take, 256)
        wait([small], 0.05)
        # 256 bytes are free, but it is not this one's turn.
        assert not large.done() and not small.done()
        regions.give(first)
        regions.give(second)
        assert large.result(5) == 0
        regions.give(0)
        assert small.result(5) == 0


def test_who_waits_gives_up_when_all_is_closed() -> None:
    regions, ring = Regions(256), StagingRing(FakeDevice(), 1, 256)
    regions.take(256)
    ring.take()
    with ThreadPoolExecutor(2) as pool:
        waiting: list[Future[Any]] = [pool.submit(regions.take, 1), pool.submit(ring.take)]
        regions.close()
        ring.close()
        for future in waiting:
            with pytest.raises(Stopped):
                future.result(5)
    with pytest.raises(Stopped):
        ring.take_if_free()


@pytest.mark.parametrize("nbytes", [0, 257])
def test_regions_that_cannot_be(nbytes: int) -> None:
    with pytest.raises(ValueError, match=f"{nbytes} bytes of 256"):
        Regions(256).take(nbytes)


# --- slots -------------------------------------------------------------------------------


def test_slots_are_made_when_they_are_needed_and_no_more() -> None:
    device = FakeDevice()
    ring = StagingRing(device, 2, 512)
    assert device.pinned == []
    first, second = ring.take(), ring.take()
    assert device.pinned == [512, 512]
    assert ring.take_if_free() is None
    ring.give(second)
    ring.give(first)
    assert [ring.take_if_free(), ring.take()] == [second, first]  # who came first goes first
    assert device.pinned == [512, 512]


def test_a_device_that_failed_before_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device = FakeDevice()
    for what in ("allocate_pinned", "free_bytes"):
        monkeypatch.setattr(device, what, lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        StagingRing(device, 2, 512).take()


def test_a_slot_is_taken_when_the_copy_from_it_has_ended() -> None:
    device = FakeDevice()
    ring, stream = StagingRing(device, 1, 256), device.stream()
    with stream.current():
        memory = device.allocate(256)
    slot = ring.take()
    slot.view[:] = bytes(256)
    slot.copied = stream.copy(memory, 0, slot.memory, 0, 256)
    ring.give(slot)
    assert memory.view[0] != 0
    again = ring.take()
    assert again is slot and bytes(memory.view) == bytes(256) and slot.copied is None


# --- layouts -----------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeInput:
    number: int
    dtype: DType


SCE, OTHER = Sce(0.5, "fuseo1", 0), Linear((1.0,), True)


def job(numel: int, *dtypes: DType, rule: Rule = SCE) -> Any:
    inputs = tuple(FakeInput(i, dtype) for i, dtype in enumerate(dtypes))
    return SimpleNamespace(
        numel=numel,
        dtype=BF16,
        inputs=inputs,
        stored=inputs,
        output_bytes=numel * 2,
        name=f"t{numel}",
        rule=rule,
    )


KEPT = sce_result()


@pytest.mark.parametrize("most", [256, 512, 4096, 1 << 20])
def test_chunks_hold_every_byte_once(most: int) -> None:
    requests = [
        TensorRequest(job(1000, BF16, FP32), (0.5,)),
        TensorRequest(job(0, BF16, BF16), (0.5, 0.1)),
        TensorRequest(job(129, FP32, FP32, BF16), (), KEPT, b"p" * 80),
        TensorRequest(job(1, BF16, BF16), (0.1,), KEPT, b"q" * 80),
        TensorRequest(job(300, BF16, BF16, rule=OTHER)),
        TensorRequest(job(0, BF16, rule=OTHER)),
    ]
    layout = Layout(requests, 300, 80)
    assert layout.nbytes <= sum(footprint(r.job, len(r.topks), 300, 80) for r in requests)
    sizes = {id(x): r.job.numel * x.dtype.size for r in requests for x in r.job.inputs}
    outputs = {id(task): task.job.output_bytes for task in layout.tasks}
    assert [task.job for task in layout.tasks] == [r.job for r in requests]
    chunks: list[Any]
    for chunks, end_of_all, expected in (
        (list(layout.chunks_in(most)), layout.results_start + layout.results_bytes, sizes),
        (list(layout.chunks_out(most)), layout.nbytes, outputs),
    ):
        end, copied = 0, Counter[int | None]()
        for chunk in chunks:
            assert chunk.nbytes <= most and chunk.start >= end and chunk.start % 256 == 0
            for part in chunk.parts:
                assert chunk.start + part.at >= end
                end = chunk.start + part.at + part.nbytes
                assert end <= chunk.start + chunk.nbytes
                key = None if part.item is None else id(part.item)
                assert part.start == copied[key]
                copied[key] += part.nbytes
        assert end <= end_of_all
        assert {key: copied[key] for key in expected} == expected


def test_a_layout_of_empty_tensors_has_a_region() -> None:
    empty = job(0, BF16, rule=OTHER)
    layout = Layout([TensorRequest(empty)], 300, 80)
    assert 0 < layout.nbytes <= footprint(empty, 1, 300, 80)
    assert not [*layout.chunks_in(256), *layout.chunks_out(256)]
    assert [task.job for task in layout.tasks] == [empty]


def test_nothing_in_a_layout_overlaps() -> None:
    requests = [
        TensorRequest(job(1000, BF16, FP32), (0.5, 0.1)),
        TensorRequest(job(129, FP32, FP32, BF16), (), KEPT, b"p" * 80),
    ]
    layout = Layout(requests, 300, 80)
    places = []
    for task in layout.tasks:
        places += [
            (at, task.job.numel * x.dtype.size)
            for at, x in zip(task.inputs, task.job.inputs, strict=True)
        ]
        places += [(at, 80) for at in task.params] + [(at, 300) for at in task.results]
        places += [(task.out, task.job.output_bytes)]
        assert len(task.params) == len(task.results)
    places.sort()
    for (start, nbytes), (following, _) in pairwise(places):
        assert start + nbytes <= following and following % 256 == 0
    assert [task.fuse for task in layout.tasks] == [0, 0]
    assert sum(places[-1]) <= layout.nbytes


# --- devices -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "numbers"),
    [("cpu", None), ("cuda", (0,)), ("cuda:3", (3,)), ("cuda:1, cuda:0", (1, 0))],
)
def test_names_of_devices(names: str, numbers: tuple[int, ...] | None) -> None:
    assert parse_devices(names) == numbers


@pytest.mark.parametrize(
    "names", ["", "cuda:", "cuda:01", "cuda:-1", "cuda:0;cuda:1", "CUDA", "cuda:0,"]
)
def test_names_that_are_none(names: str) -> None:
    with pytest.raises(ConfigError, match="write cpu, cuda"):
        parse_devices(names)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BackendError, match="there is no cuda:1 here: there is 1 GPU"):
        open_devices((1,))


def test_streams_of_one_gpu_make_no_context_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch makes the caller's GPU current when it leaves a stream, and so a context there, if it came from another."""
    import torch

    current, contexts = [0], set[int]()

    @contextmanager
    def at(device: torch.device, of_stream: bool) -> Iterator[None]:
        before, current[0] = current[0], int(device.index)
        contexts.add(current[0])
        yield
        current[0] = before
        if of_stream:
            contexts.add(before)

    monkeypatch.setattr(
        torch.cuda, "Stream", lambda n: SimpleNamespace(device=torch.device("cuda", n))
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: at(device, False))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: at(stream.device, True))
    with _CudaStream(1).current():
        assert current == [1]
    assert current == [0] and contexts == {1}


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            "CUDA error: an illegal memory access\nlong advice",
            "cuda:0: CUDA error: an illegal memory access",
        ),
        ("CUDA out of memory. Tried", "cuda:0: out of memory; lower --max-gpu-memory"),
        ("", "cuda:0: it failed"),
    ],
)
def test_errors_of_a_device(raised: str, said: str) -> None:
    with pytest.raises(MergeError) as caught, explained(FakeDevice()):
        raise RuntimeError(raised)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_an_error_of_the_models_stays_what_it_is() -> None:
    with pytest.raises(MergeError, match=r"^the file changed$"), explained(FakeDevice()):
        raise MergeError("the file changed")


def test_torch_is_imported_for_a_gpu_alone() -> None:
    from support.processes import spawn

    code = "import sys\nfrom fuseo1_kernels.engine import devices, merge\nfrom fuseo1_kernels.engine.gpu import pool\n"
    code += "devices.parse_devices('cuda:1')\nprint('torch' in sys.modules)"
    assert spawn("-c", code).out == "False\n"
    assert "torch" in sys.modules
