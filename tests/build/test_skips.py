"""CI fails on skips, but for those whose reasons are on a list and true of the machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2] / ".ci"
SPEC = importlib.util.spec_from_file_location("skips", HOME / "skips.py")
assert SPEC is not None and SPEC.loader is not None
skips = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(skips)

REPORT = """<testsuites><testsuite>
  <testcase name="a"/>
  <testcase name="b"><skipped type="pytest.skip" message="no GPU here">x.py:1: no GPU here</skipped></testcase>
  <testcase name="c"><skipped type="pytest.skip" message="root may write everywhere"/></testcase>
  <testcase name="d"><skipped type="pytest.skip" message="no GPU here"/></testcase>
  <testcase name="e"><skipped type="pytest.xfail" message="known"/></testcase>
</testsuite></testsuites>"""


def test_reasons_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert skips.skips(report) == {"no GPU here": 2, "root may write everywhere": 1}


def test_a_reason_must_be_on_the_list_and_true() -> None:
    allowed = skips.read_allowed("# text\n\nroot   root may .*\nno-gpu no GPU( here)?\n")
    reasons = ["root may write", "no GPU here", "no GPU here, or so", "too slow"]
    assert skips.refused(reasons, allowed, ["root", "no-gpu"]) == reasons[2:]
    assert skips.refused(reasons, allowed, ["root"]) == reasons[1:]
    assert skips.refused(reasons, allowed, []) == reasons


def test_the_list() -> None:
    allowed = skips.read_allowed(skips.ALLOWED.read_text())
    assert {condition for condition, _ in allowed} == {*skips.CONDITIONS}
    assert skips.refused(["root may write everywhere", "no GPU here"], allowed, ["root"]) == [
        "no GPU here"
    ]


@pytest.mark.parametrize("reason", ["the CUDA part is not built here", "because"])
def test_a_report_with_another_reason_fails(
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(skips, "CONDITIONS", {"root": lambda: True, "no-gpu": lambda: True})
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert skips.main([str(report)]) == 0
    report.write_text(REPORT.replace("root may write everywhere", reason))
    assert skips.main([str(report)]) == 1
    assert f"NOT ALLOWED      1  {reason}" in capsys.readouterr().out
