"""What a person reads: no character that acts on a terminal, no message without end."""

from __future__ import annotations

import re
import warnings
from contextlib import redirect_stderr
from io import StringIO

from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.cli.terminal import MOST, as_message, escaped, standard_streams

texts = st.text(st.characters(), max_size=60) | st.text(st.characters(), min_size=1).map(
    lambda text: text * 700
)


@given(st.lists(texts, min_size=1, max_size=80))
def test_messages_are_printable_short_and_have_no_line_of_somebody_elses(lines: list[str]) -> None:
    message = as_message(*lines)
    first, *others = message.split("\n")
    assert len(message) <= MOST
    assert message.replace("\n", "").isprintable()
    assert all(line.startswith("  ") for line in others)
    left = sum(int(n) for n in re.findall(r"^  \[(\d+) lines? left out\]$", message, re.MULTILINE))
    if all(len(line) <= 20 and line.isprintable() and "left out" not in line for line in lines):
        kept = [line[2:] for line in others if "left out" not in line]
        assert 1 + len(kept) + left == len(lines)
        assert first == lines[0] and (not left or kept[-1] == lines[-1])


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30))
def test_what_is_left_out_is_counted(text: str) -> None:
    text = text * (3 * MOST)
    said = re.fullmatch(r"(.*) \[([\d,]+) characters left out\] (.*)", escaped(text))
    assert said is not None
    head, left, tail = said[1], int(said[2].replace(",", "")), said[3]
    assert text.startswith(head) and text.endswith(tail)
    assert len(head) + left + len(tail) == len(text)
    assert MOST - 100 < len(said[0]) <= MOST


def test_escapes_are_pythons_and_a_byte_is_one() -> None:
    assert escaped("a\n\x1b[2J\x9b\u202e\x7f\udcffé") == r"a\n\x1b[2J\x9b\u202e\x7f\xffé"
    assert escaped("\n" * 3000).count(r"\n") > 900  # what is escaped counts as it is shown


def test_warnings_are_notes() -> None:
    with redirect_stderr(StringIO()) as err, standard_streams("fuseo1-merge"):
        warnings.warn("a\nb\x1b", stacklevel=1)
    assert err.getvalue() == "note: a\\nb\\x1b\n"
