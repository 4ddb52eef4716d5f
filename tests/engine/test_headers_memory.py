"""The memory of headers, plan and records is known before it is needed, and counts."""

from __future__ import annotations

import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuseo1_kernels import merge_checkpoints
from fuseo1_kernels.checkpoint.header import HeaderRoom
from fuseo1_kernels.config.load import as_config
from fuseo1_kernels.config.schema import MergeConfig
from fuseo1_kernels.engine.cpu.memory import memory_floor
from fuseo1_kernels.engine.dry_run import dry_run
from fuseo1_kernels.engine.headers_memory import headers_memory
from fuseo1_kernels.engine.options import MergeOptions
from fuseo1_kernels.errors import CheckpointError, MergeError
from fuseo1_kernels.plan.fingerprint import fingerprint
from fuseo1_kernels.plan.models import open_sources
from fuseo1_kernels.plan.plan import Plan, make_plan
from support.headers import write_experts
from support.models import make_family
from support.processes import spawn


def plan_of(merge: MergeConfig, stack: ExitStack) -> Plan:
    return make_plan(merge, open_sources(merge, stack, progress=False), shard_size=10**9)


def test_what_headers_and_plan_take(tmp_path: Path) -> None:
    config = as_config(write_experts(tmp_path, 800))
    with ExitStack() as stack:
        plan_of(config, stack)  # imports what it needs
    tracemalloc.start()
    with ExitStack() as stack:
        plan = plan_of(config, stack)
        fingerprint(plan, "error")
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.3 * headers_memory(plan) < peak < headers_memory(plan)


def test_models_whose_headers_do_not_fit(tmp_path: Path) -> None:
    config = write_experts(tmp_path, 800)
    with ExitStack() as stack:
        plan = plan_of(as_config(config), stack)
    least = headers_memory(plan) + memory_floor(plan.jobs)
    assert dry_run(as_config(config), None, MergeOptions(max_memory=least)).problems == ()
    [problem] = dry_run(as_config(config), None, MergeOptions(max_memory=least - 1)).problems
    with pytest.raises(MergeError) as caught:
        merge_checkpoints(config, tmp_path / "out", max_memory=least - 1)
    assert str(caught.value) == problem
    assert "too little for these models; the least is" in problem
    assert problem.endswith(" MiB of it for the headers of 800 tensors")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("torch_bin", [False, True])
def test_headers_are_refused_by_their_lengths(
    torch_bin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = make_family(tmp_path, torch_bin=torch_bin)
    lengths: dict[Path, int] = {}
    real = HeaderRoom.take

    def take(self: HeaderRoom, file: Path, length: int, *times: int) -> None:
        lengths[file] = length
        real(self, file, length, *times)

    def opened(most: int) -> None:
        with ExitStack() as stack:
            open_sources(as_config(family.config), stack, progress=False, max_memory=most)

    monkeypatch.setattr(HeaderRoom, "take", take)
    opened(1 << 30)
    *others, last = lengths
    least = sum(lengths[file] for file in others) + (16 if torch_bin else 7) * lengths[last]
    opened(least)
    with pytest.raises(CheckpointError, match=f"{last}: --max-memory 0 MiB is too little to read"):
        opened(least - 1)


def test_a_header_that_does_not_fit_is_not_read(tmp_path: Path) -> None:
    config = write_experts(tmp_path, 1)
    (tmp_path / "left" / "model.safetensors").write_bytes(
        (10 << 20).to_bytes(8, "little") + bytes(10 << 20)
    )
    for merged in (
        lambda: dry_run(as_config(config), None, MergeOptions(max_memory=64 << 20)),
        lambda: merge_checkpoints(config, tmp_path / "out", max_memory=64 << 20),
    ):
        with pytest.raises(
            CheckpointError, match="too little to read its header of 10485760 bytes"
        ):
            merged()


@pytest.mark.slow
@pytest.mark.serial
def test_what_a_whole_merge_takes(tmp_path: Path) -> None:
    """Besides the buffers, and what a merge of few tensors takes."""

    def peak(count: int) -> tuple[int, int]:
        config = write_experts(tmp_path / str(count), count)
        code = (
            "import re, sys\n"
            "from pathlib import Path\n"
            "from fuseo1_kernels import merge_checkpoints\n"
            f"merge_checkpoints(sys.argv[1], sys.argv[2], threads=1, max_memory={256 << 20})\n"
            "status = Path('/proc/self/status').read_text()\n"
            "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) << 10)\n"
        )
        ran = spawn("-c", code, config, tmp_path / "out" / str(count))
        assert ran.code == 0, ran.err
        with ExitStack() as stack:
            return int(ran.out), headers_memory(plan_of(as_config(config), stack))

    (small, few), (large, many) = peak(100), peak(30_000)
    assert 0.5 * (many - few) < large - small < many - few
