"""A merge reports to its caller: its progress, its result, and mistakes in its options."""

from __future__ import annotations

import pytest
import torch

from fuseo1_kernels import MergeError
from support.engine_runs import MIB, merge, spoil
from support.models import Family, read_model, write_model
from support.processes import merge_json, spawn


class Recorder:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.closed = 0

    def start(self, title: str, total_bytes: int) -> None:
        self.total = total_bytes

    def advance(self, nbytes: int) -> None:
        assert nbytes >= 0
        self.done += nbytes

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("max_memory", [512, 8])
def test_progress_ends_where_it_said(max_memory: int, oversized: Family) -> None:
    oversized.configure(parameters={"select_topk": 0.1})
    progress = Recorder()
    merge(oversized, f"told{max_memory}", max_memory=max_memory * MIB, progress=progress, threads=1)
    elements = sum(t.numel() for t in oversized.states[0].values())
    assert progress.total == progress.done == elements * 2 * 5
    assert progress.closed == 1


def test_progress_is_closed_when_the_merge_fails(family: Family) -> None:
    spoil(family, 1, "model.norm.weight", {0: float("nan")})
    progress = Recorder()
    with pytest.raises(MergeError):
        merge(family, progress=progress)
    assert progress.closed == 1


def test_result(family: Family) -> None:
    extra = family.states[1] | {"left_over": torch.ones(3)}
    write_model(family.target(1), extra)
    result = merge(family, shard_size=30_000)
    assert result.out_dir == str(family.out)
    assert result.tensors == len(family.states[0])
    assert result.parameters == sum(t.numel() for t in family.states[0].values())
    assert result.bytes_written == 2 * result.parameters
    assert result.bytes_read == 2 * 3 * result.bytes_written  # by survey and fuse
    assert result.seconds > 0
    assert set(result.shards) == {p.name for p in family.out.glob("*.safetensors")}
    # Deltas of rms 1e-3 and 2e-3: a fifth and four fifths of the energy.
    assert list(result.energy_share.values()) == pytest.approx([0.2, 0.8], abs=0.02)
    assert len(result.notes) == 1 and "left_over" in result.notes[0]
    assert "left_over" not in read_model(family.out)
    assert merge_json(family.config, family.home / "other").keys() == result.as_dict().keys()


def test_bad_options(family: Family) -> None:
    for options, message in (
        ({"nonfinite": "ignore"}, "nonfinite: must be error or propagate"),
        ({"backend": "cuda"}, "cuda"),
        ({"backend": "nope"}, "nope"),
        ({"shard_size": 0}, "shard_size: 0: a size must be positive"),
        ({"max_memory": "2GiB"}, "max_memory: '2GiB' is not a number of bytes"),
        ({"max_memory": 1}, "--max-memory"),
    ):
        with pytest.raises(MergeError, match=message):
            merge(family, **options)
        assert not family.out.parent.exists()


def test_an_instruction_set_that_is_not_there(family: Family) -> None:
    ran = spawn(
        *("-m", "fuseo1_kernels.merge", family.config, family.out), env={"FUSEO1_ISA": "sse9"}
    )
    assert ran.code == 1
    assert "sse9" in ran.err and "baseline" in ran.err and "Traceback" not in ran.err
