"""The tensors that are measured, the clock, and memcpy."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fuseo1_kernels.bench import timing
from fuseo1_kernels.bench.data import Data
from fuseo1_kernels.bench.timing import MEMCPY, Memcpy, Work, take_turn, timed
from fuseo1_kernels.errors import ConfigError

# --- tensors -------------------------------------------------------------------------------


def test_gaussian_task_vectors() -> None:
    base, *targets = Data.parse("gauss:0.01").make((200, 100), 4, torch.float32)
    assert len(targets) == 3
    for target in targets:
        assert (target - base).square().mean().sqrt().item() == pytest.approx(0.01, rel=0.05)
    assert not torch.equal(targets[0], targets[1])
    again = Data.parse("gauss:0.01").make((200, 100), 4, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip([base, *targets], again, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("share", [0.36, 0.78, 0.9, 0.99])
def test_coarse_task_vectors(dtype: torch.dtype, share: float) -> None:
    base, *targets = Data.parse(f"coarse:{share}").make((512, 512), 3, dtype)
    assert base.float().std().item() == pytest.approx(0.18, rel=0.01)
    for target in targets:
        assert target.dtype == dtype
        unchanged = torch.count_nonzero(target == base).item() / base.numel()
        assert unchanged == pytest.approx(share, abs=0.01)


def test_data_from_files(tmp_path: Path) -> None:
    """The tensors that all have alike, in the order of the base's bytes, one after the other."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    files, models = [], []
    for i in range(3):
        alike = {"z": drawn(5, 7), "a": drawn(40)}
        odd = {"wide": drawn(9, dtype=torch.float32), "longer": drawn(3 + i), f"of {i}": drawn(4)}
        files.append(tmp_path / f"{i}.safetensors")
        save_file(alike | odd, files[-1])
        models.append(alike)
    with files[0].open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    order = sorted(models[0], key=lambda name: int(header[name]["data_offsets"][0]))
    data = Data.parse(",".join(map(str, files)))
    made = data.make((6, 10), 2, torch.bfloat16)
    for tensor, model in zip(made, models[:2], strict=True):
        flat = torch.cat([model[name].flatten() for name in order])
        assert torch.equal(tensor, flat[:60].view(6, 10))
    with pytest.raises(ConfigError, match=r"elements.* there are 75; choose a smaller shape"):
        data.make((76,), 3, torch.bfloat16)
    with pytest.raises(ConfigError, match="the merge reads 4 tensors, but there are 3 files"):
        data.make((6, 10), 4, torch.bfloat16)


@pytest.mark.parametrize(
    "text", ["gauss", "gauss:0.0001", "coarse:0.5", "a.safetensors,b:c.safetensors"]
)
def test_data_is_named_as_it_is_parsed(text: str) -> None:
    assert Data.parse(str(Data.parse(text))) == Data.parse(text)


@pytest.mark.parametrize(
    "text", ["", "real", "gauss:", "gauss:0", "gauss:inf", "coarse", "coarse:1", "coarse:0"]
)
def test_data_that_there_is_not(text: str) -> None:
    with pytest.raises(ConfigError, match="must be gauss, gauss:RMS"):
        Data.parse(text)


# --- the clock and memcpy ------------------------------------------------------------------


def test_a_turn() -> None:
    """Copies before every call; what warms up is not counted."""
    order: list[str] = []

    class Copies(Memcpy):
        def seconds(self, repeats: int) -> list[float]:
            order.append("copies")
            return super().seconds(repeats)

    calls: dict[Hashable, Work] = {name: lambda name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    taken: dict[Hashable, list[float]] = {}
    copies = Copies([torch.ones(8)])
    for _ in range(2):
        take_turn(taken, calls, copies, repeats=3)
    assert order == 2 * ["copies", *"aaaa", "copies", *"bbbb"]
    assert {name: len(seconds) for name, seconds in taken.items()} == {MEMCPY: 8, "a": 6, "b": 6}
    assert all(second >= 0 for seconds in taken.values() for second in seconds)


@pytest.mark.parametrize("native", [True, False])
def test_memcpy_copies_every_byte(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(timing, "_is_native", lambda: False)
    tensors = [torch.arange(1000.0), torch.arange(77).to(torch.bfloat16)]
    memcpy = Memcpy(tensors, threads=2)
    assert memcpy.nbytes == 2 * (4000 + 154)
    assert len(memcpy.seconds(3)) == 3
    for target, source in memcpy._pairs:
        assert target.data_ptr() != source.data_ptr() and torch.equal(target, source)


def test_a_gpu_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: events stand around the work, and the last is waited for."""
    order: list[str] = []

    class Event:
        def __init__(self, **options: Any) -> None:
            assert options == {"enable_timing": True}

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("wait for it")

        def elapsed_time(self, end: Event) -> float:
            assert end is not self
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    assert timed(lambda: order.append("work"), "cuda") == 0.25
    assert order == ["wait", "record", "work", "record", "wait for it"]
