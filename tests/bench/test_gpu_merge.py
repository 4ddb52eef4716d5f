"""bench/gpu_merge.py without a GPU: a simulated device, merges in this process on the CPU, and what the report says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import gpu_merge
import gpu_merge_report
import merges
import pytest
from gpu_copy import DeviceCopy
from gpu_merge_report import Turn, WholeMerges, goals, ratio, sections
from gpu_report import markdown
from plain_copy import Copy
from processes import MERGE, Run

from fuseo1_kernels.cli.merge import main
from support.fake_gpu import FakeDevice, FakeStream

MIB = 1 << 20


# --- the plain copies --------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [{}, {"eager": [0]}, {"chance": 0.5}])
def test_every_byte_gets_to_the_device_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: dict[str, Any]
) -> None:
    """Of files that are no multiple of a piece; what is read waits until the copy before is done."""
    contents = [bytes(range(256)) * 17 + b"tail", b"", b"x" * 512, b"one more"]
    files = [tmp_path / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    copy = DeviceCopy(FakeDevice(**schedule), 512)
    arrived = bytearray()
    plain = FakeStream.copy

    def spied(self: FakeStream, to: Any, at: int, of: Any, start: int, nbytes: int) -> Any:
        plain(self, to, at, of, start, nbytes)
        return self.enqueue(lambda: arrived.extend(to.tensor[:nbytes].numpy().tobytes()))

    monkeypatch.setattr(FakeStream, "copy", spied)
    assert copy.read(files) > 0
    assert bytes(arrived) == b"".join(contents)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1024, 5000])
def test_as_many_bytes_as_asked_for_are_written(size: int, tmp_path: Path) -> None:
    """They are the device's: of two buffers in turn, each filled when it was free."""
    copy = DeviceCopy(FakeDevice(), 512)
    for number, there in enumerate(copy._there):
        there.tensor.fill_(number + 1)
    for host in copy._host:
        host.tensor.zero_()
    assert min(copy.write(size, tmp_path / "out")) >= 0
    pieces = (bytes([1]) * 512 + bytes([2]) * 512) * 5
    assert (tmp_path / "out").read_bytes() == pieces[:size]


# --- all of it ---------------------------------------------------------------------------


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Merges run here, on the CPU whatever the device; returns their command lines."""
    commands: list[list[str]] = []

    def run(command: Sequence[str], *, told: list[str], **_: Any) -> Run:
        commands.append(list(command))
        arguments = list(command[len(MERGE) :])
        for option, value in (("--device", "cpu"), ("--backend", "auto")):
            arguments[arguments.index(option) + 1 : arguments.index(option) + 2] = [value]
        with redirect_stdout(StringIO()) as said:
            assert main(arguments) == 0
        told.append(f"a warning\n{said.getvalue()}")
        return Run(2.0, 0, 0)

    monkeypatch.setattr(merges, "run", run)
    return commands


def measured(work: Path, programs: list[str], turns: int, seconds: float = 1e9) -> WholeMerges:
    found, deadline = WholeMerges(), time.monotonic() + seconds
    bench = gpu_merge.make_bench(work, "tiny", FakeDevice(), found)
    gpu_merge.measure(bench, programs, turns, deadline, lambda: None)
    return found


@pytest.mark.slow
def test_the_bench_runs(tmp_path: Path, in_process: list[list[str]]) -> None:
    found = measured(tmp_path, ["cuda", "cpu", "triton"], 2)
    assert [t.program for t in found.turns] == ["cuda", "cpu", "triton"] * 2
    assert all(t.merges == {"1": 2.0, "0.5": 2.0, "0.1": 2.0} for t in found.turns)
    # Every turn a start and three merges, and what is not counted: one, one, and three.
    assert len(in_process) == 6 * 4 + 5
    backends = {(c[c.index("--device") + 1], c[c.index("--backend") + 1]) for c in in_process}
    assert backends == {("cuda", "cuda"), ("cpu", "cpu"), ("cuda", "triton")}
    assert found.input_bytes > 4 * 2 * found.parameters and found.models == 4
    met = {goal.what: goal.met for goal in goals(found)}
    assert met["whole merge, cuda: outputs with the CPU's bytes"] is True
    assert met["whole merge, triton: outputs with the CPU's bytes"] is True
    assert gpu_merge.summary(found).startswith(
        "of the slower plain copy (without the start, 2.0 s)"
    )
    assert set(found.ran) == {"cuda", "cpu", "triton"} and found.notes == []
    assert all(said.startswith("cpu") for said in found.ran.values())
    assert not list(tmp_path.rglob("out")) and not list(tmp_path.rglob("copy"))


def test_a_backend_that_fails_is_noted_and_cuda_must_not(
    tmp_path: Path, in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    works: Any = vars(merges)["run"]

    def run(command: Sequence[str], **options: Any) -> Run:
        if failing in command:
            Path(f"{command[len(MERGE) + 1]}.partial").mkdir()
            raise SystemExit("it said this\nand failed")
        ran: Run = works(command, **options)
        return ran

    monkeypatch.setattr(merges, "run", run)
    failing = "triton"
    found = measured(tmp_path / "1", ["cuda", "cpu", "triton"], 2)
    assert [t.program for t in found.turns] == ["cuda", "cpu"] * 2
    assert found.notes == ["triton: and failed"]
    assert not list(tmp_path.rglob("*.partial"))
    failing = "cuda"
    with pytest.raises(SystemExit, match="and failed"):
        measured(tmp_path / "2", ["cuda", "cpu"], 1)


def test_no_turn_is_begun_without_time(tmp_path: Path, in_process: list[list[str]]) -> None:
    found = measured(tmp_path, ["cuda", "cpu"], 5, seconds=-1.0)
    assert found.turns == [] and in_process == []
    assert [note.split(",")[0] for note in found.notes] == [
        "cuda: 0 of 5 turns",
        "cpu: 0 of 5 turns",
    ]
    with pytest.raises(SystemExit, match="not measured: select_topk 1"):
        gpu_merge.summary(found)


def test_with_little_time_what_must_be_known_comes_first(tmp_path: Path) -> None:
    found = WholeMerges()
    bench = gpu_merge.make_bench(tmp_path, "tiny", FakeDevice(), found)
    bench.took["cuda"] = 10.0
    assert bench.may_take("cpu") == 0.0
    assert bench.may_take("cuda") == bench.may_take("triton") == pytest.approx(12.0)


# --- the report --------------------------------------------------------------------------


def turn(
    program: str = "cuda", seconds: float = 2.6, read: float = 1.0, write: float = 1.5
) -> Turn:
    merged = dict.fromkeys(("1", "0.5", "0.1"), seconds)
    return Turn(program, Copy(read, write, 0.5), 1.0, merged)


def whole(**changes: Any) -> WholeMerges:
    same = {"1": "a", "0.5": "b", "0.1": "c"}
    known: dict[str, Any] = {
        **{"parameters": 630_000_000, "models": 4, "turns": [turn(), turn("cpu")]},
        "ran": {"cuda": "cuda: H200", "cpu": "cpu: avx2"},
        **{"input_bytes": 5 * 10**9, "output_bytes": 10**9, "digests": {"cuda": same, "cpu": same}},
        "tried": {"read": {str(MIB): 1.0, str(8 * MIB): 0.5}},
    }
    return WholeMerges(**(known | changes))


def test_the_ratio_is_to_the_slower_copy_turn_by_turn() -> None:
    found = whole(turns=[turn(), turn(read=4.0, seconds=4.0), turn(read=13.0), turn("cpu", 9.0)])
    assert ratio(found, "cuda", "1") == pytest.approx(1.0)
    assert ratio(found, "cuda", "1", start=False) == pytest.approx(0.75)
    assert ratio(found, "cpu", "1") == pytest.approx(4.5)
    assert ratio(found, "triton", "1") is None


@pytest.mark.parametrize(("seconds", "met"), [(2.6, True), (2.61, False), (3.6, False)])
def test_the_goal(seconds: float, met: bool) -> None:
    first, rest, *_ = goals(whole(turns=[turn(seconds=seconds)]))
    assert "0.63 B x 4, select_topk 1" in first.what
    assert first.goal == "<= 1.30x" and first.met is met
    assert rest.what.startswith("the same, its start taken off") and rest.met


def test_whose_bytes_are_whose() -> None:
    other = {"1": "a", "0.5": "X", "0.1": "c"}
    found = whole(digests={"cuda": other, "cpu": whole().digests["cpu"]})
    goal = goals(found)[-1]
    assert (goal.reached, goal.met) == ("2 of 3", False)
    with pytest.raises(SystemExit, match=r"cuda, select_topk 0\.5: not the bytes"):
        gpu_merge.summary(found)
    del found.digests["cpu"]
    goal = goals(found)[-1]
    assert (goal.reached, goal.met) == ("not measured", None)
    with pytest.raises(SystemExit, match="not measured"):
        gpu_merge.summary(found)


def test_what_is_written(tmp_path: Path) -> None:
    machine = {"gpu": "NVIDIA H200"}
    found = whole(notes=["triton: 0 of 5 turns"])
    gpu_merge_report.save(tmp_path / "new", machine, found)
    assert gpu_merge_report.saved(tmp_path / "new") == (machine, found)
    assert gpu_merge_report.saved(tmp_path) is None
    assert WholeMerges.load(asdict(found)) == found
    text = markdown(machine, [], None, found)
    for words in (
        "## Whole merges",
        "1.30x",
        "0.80x",
        "**0.50**",
        "- triton: 0 of 5",
        "3 of 3",
        "cuda: H200",
    ):
        assert words in text
    assert "None was measured." in sections(WholeMerges())
    assert {goal.met for goal in goals(WholeMerges())} == {None}
