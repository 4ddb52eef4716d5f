"""Whole merges give the same bytes, whatever the threads, memory, instruction set and hash seed."""

from __future__ import annotations

import json

import pytest

from fuseo1_kernels.checkpoint.source import Source
from support.engine_runs import MIB, merge
from support.models import Family, assert_same_state, read_model, weights
from support.pairwise import pairwise
from support.processes import spawn
from support.streamed import limited
from support.tensors import ISAS, require_isa
from support.tuning import tune

WAYS = ("cached", "read ahead", "direct")


@pytest.mark.parametrize("select_topk", [1.0, 0.1])
def test_threads_and_runs(select_topk: float, family: Family) -> None:
    family.configure(parameters={"select_topk": select_topk})
    found = []
    for number, threads in enumerate((1, 2, 3, None, 3)):
        merge(family, f"out{number}", threads=threads, shard_size=30_000)
        found.append(weights(family.home / f"out{number}"))
    assert all(files == found[0] for files in found)
    everything = [
        {p.name: p.read_bytes() for p in (family.home / f"out{n}").iterdir()} for n in (0, 4)
    ]
    for files, name in zip(everything, ("out0", "out4"), strict=True):
        title = f"# {name}\n".encode()
        assert title in files["README.md"]
        files["README.md"] = files["README.md"].replace(title, b"")
        recorded = json.loads(files["fuseo1_checksums.json"])
        del recorded["files"]["README.md"], recorded["checksum"]
        files["fuseo1_checksums.json"] = json.dumps(recorded).encode()
    assert everything[0] == everything[1]


@pairwise("variant, select_topk, way", ("fuseo1", "mergekit"), (1.0, 0.5, 0.1), WAYS, together=1)
def test_any_memory(
    variant: str, select_topk: float, way: str, oversized: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "is_cached", lambda self, info: way == "cached")
    if way == "direct":
        tune(monkeypatch, page_cache=0)
    oversized.configure(parameters={"select_topk": select_topk, "variant": variant})
    expected = oversized.expected(select_topk=select_topk, variant=variant)
    first = None
    twice = 2 * 8 * sum(t.numel() for t in oversized.states[0].values())
    for max_memory, threads in ((512, 2), (8, 1), (8, 3), (9, 2), (13, 1), (60, 3)):
        out = f"{variant}-{select_topk}-{way}-{max_memory}-{threads}"
        result = merge(oversized, out, max_memory=max_memory * MIB, threads=threads)
        files = weights(oversized.home / out)
        if first is None:
            assert_same_state(read_model(oversized.home / out), expected)
            first = files
            assert result.exact_path == 0
        assert files == first, (max_memory, threads)
        # Once for the survey, once for the fuse; an exact path needs more.
        assert (result.bytes_read > twice) if result.exact_path else (result.bytes_read == twice)
        if max_memory == 8 and select_topk < 1:
            # Its candidates are all tied, more than the survey may keep.
            assert result.exact_path >= 1


@pytest.mark.serial
@pytest.mark.parametrize("way", ["cached", "read ahead"])
def test_memory_is_bounded(way: str, oversized: Family) -> None:
    """Of many tensors, one after the other; some take the exact path."""
    oversized.configure(parameters={"select_topk": 0.1})
    code, err = limited(oversized, f"bounded-{way}", 10 * MIB, way, budget=10 * MIB)
    assert code == 0, err


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets(isa: str, oversized: Family) -> None:
    require_isa(isa)
    oversized.configure(parameters={"select_topk": 0.3})
    merge(oversized, f"default-{isa}")
    out = oversized.home / f"forced-{isa}"
    ran = spawn(
        *("-m", "fuseo1_kernels.merge", oversized.config, out, "--json", "--quiet"),
        env={"FUSEO1_ISA": isa},
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["backend"].startswith(f"cpu: {isa} kernels")
    assert weights(out) == weights(oversized.home / f"default-{isa}")


def test_hash_seeds(family: Family) -> None:
    for seed in ("1", "2"):
        out = family.home / f"seed{seed}" / "merged"
        argv = ["-m", "fuseo1_kernels.merge", family.config, out, "--quiet", "--shard-size", "20KB"]
        assert spawn(*argv, env={"PYTHONHASHSEED": seed}).code == 0
    first, second = family.home / "seed1" / "merged", family.home / "seed2" / "merged"
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {
        p.name: p.read_bytes() for p in second.iterdir()
    }
