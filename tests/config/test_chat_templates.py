"""Chat templates by name render as mergekit's do."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.config.chat_templates import CHAT_TEMPLATES

jinja2 = pytest.importorskip("jinja2")
pytest.importorskip("mergekit", reason="mergekit is not installed (the extra `test` has it)")

pytestmark = pytest.mark.peer


class _Refused(Exception):
    pass


@cache
def compiled(template: str) -> Any:
    """The template as transformers compiles it."""

    def refuse(reason: str) -> None:
        raise _Refused(reason)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)


def rendered(template: str, messages: list[dict[str, str]], reply: bool) -> str | None:
    """The text of the messages; None if the template refuses them."""
    values = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": reply}
    try:
        text: str = compiled(template).render(messages=messages, **values)
    except _Refused:
        return None
    return text


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "user_context"]),
            "content": st.text(" \nab{}"),
        }
    ),
    min_size=1,
    max_size=6,
)
TURNS = st.lists(st.text(" \na"), min_size=1, max_size=5).map(
    lambda texts: [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
@given(MESSAGES | TURNS, st.booleans())
def test_as_mergekit_renders(name: str, messages: list[dict[str, str]], reply: bool) -> None:
    theirs = files("mergekit._data.chat_templates").joinpath(f"{name}.jinja").read_text()
    expected = rendered(theirs, messages, reply)
    assert rendered(CHAT_TEMPLATES[name], messages, reply) == expected


def test_there_are_all_of_mergekits() -> None:
    there = files("mergekit._data.chat_templates").iterdir()
    assert {f.name for f in there if f.name.endswith(".jinja")} == {
        f"{name}.jinja" for name in CHAT_TEMPLATES
    }
