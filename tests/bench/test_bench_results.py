"""Results as JSON, and one run beside another."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
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
    assert content["figures"][0] == asdict(FIGURE)


def changed(**change: Any) -> bytes:
    return json.dumps(json.loads(results(FIGURE).dumps()) | change).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(schema="fuseo1-bench/0"), "its schema is 'fuseo1-bench/0'"),
        (changed(schema=None), "its schema is None"),
        (changed(machine=3), "machine or the figures"),
        (changed(figures={}), "machine or the figures"),
        (changed(figures=[3]), "no method that is str"),
        (changed(figures=[{"method": "sce"}]), "no parameters that is dict"),
        *((content, "is not JSON") for content in (b"", b"[1, 2", b"\xff\xfe", b"[" * 100_000)),
        (None, "cannot read"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_has_no_results(content: bytes | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MergeError, match=words) as raised:
        Results.read(file)
    assert str(file) in str(raised.value)


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
    """Another commit is none."""
    comparison = Comparison.of(
        results(FIGURE, commit="def", **{key: "other"}), results(FIGURE, commit="abc")
    )
    before, note = comparison.notes
    assert before == "before: 0.1.0, def, 2026-11-29"
    assert note == f"another machine: {key} was other, is {MACHINE[key]}"
    assert note in comparison.text()
