"""The table at the end of a merge, and errors of the system that nothing has put into better words."""

from __future__ import annotations

import errno
import os

import pytest

from fuseo1_kernels.cli.report import describe_result, describe_system_error
from fuseo1_kernels.engine.result import MergeResult
from fuseo1_kernels.errors import MergeError, worded_os_errors


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


@pytest.mark.parametrize(
    ("name", "said"),
    [("a/b", "a/b: "), (b"a/\xff", "a/\udcff: "), (7, ""), (None, "")],
    ids=["text", "bytes", "a descriptor", "no file"],
)
def test_errors_of_the_system(name: object, said: str) -> None:
    """A call on a descriptor puts its number where the others put a file's name."""
    reason = os.strerror(errno.EIO)
    error = OSError(errno.EIO, reason, name)
    assert describe_system_error(error) == said + reason
    with pytest.raises(MergeError) as raised, worded_os_errors("the merge"):
        raise error
    assert str(raised.value) == (said or "the merge: ") + reason
