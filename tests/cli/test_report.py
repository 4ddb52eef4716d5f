"""The table at the end of a merge."""

from __future__ import annotations

from fuseo1_kernels.cli.report import describe_result
from fuseo1_kernels.engine.result import MergeResult


def result(**fields: object) -> MergeResult:
    made = {
        "out_dir": "out",
        "tensors": 51,
        "parameters": 31_000_000,
        "bytes_read": 400_000_000,
        "bytes_written": 100_000_000,
        "seconds": 0.25,
        "shards": ("a", "b"),
        "energy_share": {"first": 0.75, "second": 0.25},
        "exact_path": 0,
        "resumed": 0,
        "backend": "cpu: avx512 kernels",
        "notes": ("one", "two"),
    }
    return MergeResult(**{**made, **fields})  # type: ignore[arg-type]


def test_every_figure_has_a_row() -> None:
    assert describe_result(result()) == [
        "merged into  out",
        "tensors      51, 31 M parameters, 2 files",
        "read         400 MB",
        "written      100 MB",
        "time         0.25 s",
        "rate         2.00 GB/s read and written",
        "backend      cpu: avx512 kernels",
        "energy share  75.00%  first",
        "              25.00%  second",
        "note: one",
        "note: two",
    ]


def test_no_rate_where_nothing_was_moved() -> None:
    said = describe_result(result(bytes_read=0, bytes_written=0, energy_share={}, notes=()))
    assert said == ["merged into  out", "tensors      51, 31 M parameters, 2 files"]


def test_what_was_there_before() -> None:
    said = describe_result(result(resumed=1, exact_path=2, notes=()))
    assert "note: 1 tensor was there from an earlier run" in said
    assert "note: 2 tensors took the slower exact top-k path" in said
