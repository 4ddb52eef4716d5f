"""docs/arithmetic.md is a program: what it says must come out."""

import doctest

from support.paths import ROOT

PAGE = ROOT / "docs" / "arithmetic.md"


def test_the_page_is_true() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 15
    assert result.failed == 0
