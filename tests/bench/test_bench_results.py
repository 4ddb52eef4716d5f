"""Results as JSON, and one run beside another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels.bench.compare import Comparison
from fuseo1_kernels.bench.figures import Figure
from fuseo1_kernels.bench.results import SCHEMA, Results
from fuseo1_kernels.errors import MergeError

FIGURE = Figure(
    method="ties",
    parameters={"weight": [0.5, 1.0, 2.0], "density": 0.2, "lambda": 1.0},
    shape=[16, 16],
    dtype="bfloat16",
    targets=3,
    backend="cpu",
    threads=2,
    data="gauss:0.001",
    call="merge out=",
    nbytes=4608,
    ms=2.0,
    min_ms=1.5,
    gb_per_s=0.0023,
    memcpy_gb_per_s=0.0046,
    of_memcpy=0.5,
    samples_ms=[2.0, 1.5, 2.5],
)
MACHINE = {
    **{"cpu": "A", "cores": 2, "isa": "avx2", "gpu": None, "torch": "2.13"},
    **{"version": "0.1.0", "commit": "abc", "date": "2026-11-29"},
}


def results(*figures: Figure, **machine: Any) -> Results:
    return Results(MACHINE | machine, list(figures))


def test_json_round_trip(tmp_path: Path) -> None:
    written = results(FIGURE, replace(FIGURE, call="merge"))
    file = tmp_path / "a.json"
    file.write_text(written.dumps())
    assert Results.read(file) == written
    content = json.loads(written.dumps())
    assert content["schema"] == SCHEMA == "fuseo1-bench/1"
    assert set(content) == {"schema", "machine", "figures"}
    assert set(content["figures"][0]) == {
        *("method", "parameters", "shape", "dtype", "targets", "backend", "threads", "data"),
        *("call", "nbytes", "ms", "min_ms", "gb_per_s", "memcpy_gb_per_s", "of_memcpy"),
        "samples_ms",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "fuseo1-bench/0"}, "its schema is 'fuseo1-bench/0'"),
        ({"schema": None}, "its schema is None"),
        ({"machine": 3}, "machine or the figures"),
        ({"figures": {}}, "machine or the figures"),
        ({"figures": [3]}, "no method that is str"),
        ({"figures": [{"method": "sce"}]}, "no parameters that is dict"),
    ],
)
def test_a_file_of_another_kind(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(json.loads(results(FIGURE).dumps()) | change))
    with pytest.raises(MergeError, match=words) as raised:
        Results.read(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"[1, 2", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_not_json(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(MergeError, match="is not JSON"):
        Results.read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(MergeError, match="cannot read"):
            Results.read(path)


# --- comparisons ---------------------------------------------------------------------------


def test_ratios() -> None:
    """The old time by the new one, of what is the same call of the same case."""
    before = results(FIGURE, replace(FIGURE, call="merge", ms=4.0))
    now = results(replace(FIGURE, ms=1.0, of_memcpy=1.0), replace(FIGURE, call="merge", ms=5.0))
    comparison = Comparison.of(before, now)
    assert [pair.ratio for pair in comparison.pairs] == [2.0, 0.8]
    assert [pair.now.call for pair in comparison.slower_than(1.0)] == ["merge"]
    assert comparison.slower_than(0.8) == []
    assert comparison.notes == ["before: 0.1.0, abc, 2026-11-29"]
    text = comparison.text()
    assert "2.00x" in text and "0.80x" in text and "50%" in text and "100%" in text


@pytest.mark.parametrize(
    "change",
    [
        {"method": "dare_ties"},
        {"parameters": {"weight": 1.0}},
        {"shape": [16, 17]},
        {"dtype": "float32"},
        {"targets": 4},
        {"backend": "reference"},
        {"threads": 1},
        {"data": "coarse:0.9"},
        {"call": "merge"},
    ],
)
def test_another_case_is_not_compared(change: dict[str, Any]) -> None:
    comparison = Comparison.of(
        results(FIGURE, replace(FIGURE, **change)), results(FIGURE, replace(FIGURE, targets=9))
    )
    assert [pair.now for pair in comparison.pairs] == [FIGURE]
    text = comparison.text()
    assert "1 figure only before: " in text and "1 figure only now" in text


def test_nothing_in_common() -> None:
    comparison = Comparison.of(results(FIGURE), results(replace(FIGURE, targets=9)))
    assert comparison.pairs == []
    assert comparison.text().startswith("no case was measured before and now")
    assert "ties weight=0.5,1,2 density=0.2 merge out=" in comparison.text()


@pytest.mark.parametrize("key", ["cpu", "cores", "isa", "gpu", "torch"])
def test_another_machine_is_said(key: str) -> None:
    comparison = Comparison.of(results(FIGURE, **{key: "other"}), results(FIGURE))
    assert f"another machine: {key} was other, is {MACHINE[key]}" in comparison.text()


def test_another_commit_is_no_other_machine() -> None:
    comparison = Comparison.of(results(FIGURE, commit="def"), results(FIGURE))
    assert comparison.notes == ["before: 0.1.0, def, 2026-11-29"]
