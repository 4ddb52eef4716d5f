"""Several documents: the chain of merges that they make, and mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuseo1_kernels.config.load import as_config, load_config
from fuseo1_kernels.errors import ConfigError


def document(*models: str, name: str | None = None, **keys: str) -> str:
    lines = [] if name is None else [f"name: {name}"]
    lines += ["merge_method: linear", "parameters: {weight: 1.0}", "models:"]
    lines += [f"  - model: {model}" for model in models]
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]) + "\n"


def chain(tmp_path: Path, *documents: str) -> Path:
    file = tmp_path / "chain.yaml"
    file.write_text("---\n".join(documents))
    return file


def test_earlier_merges_come_before_those_that_use_them(tmp_path: Path) -> None:
    config = load_config(
        chain(
            tmp_path,
            document("second", "org/c"),
            document("first", "org/b", name="second"),
            document("org/a", "org/b", name="first"),
        )
    )
    assert list(config.earlier) == ["first", "second"]
    assert config.target_names() == ["second", "org/c"]
    assert config.stored_names() == ["org/a", "org/b", "org/c"]


def test_a_chain_reads_back_as_it_was_written(tmp_path: Path) -> None:
    config = load_config(
        chain(
            tmp_path,
            document("org/a", "org/b", name="first", tokenizer_source="org/a"),
            document("first", "org/c", name="last"),
        )
    )
    text = tmp_path / "again.yaml"
    text.write_text(config.to_yaml())
    again = load_config(text)
    assert again == config and again.earlier == config.earlier
    assert again.to_yaml() == config.to_yaml()


@pytest.mark.parametrize("keys", [{}, {"chat_template": "auto"}, {"tokenizer_source": "org/b"}])
def test_what_lies_beside_the_first_model_is_lent(tmp_path: Path, keys: dict[str, str]) -> None:
    """As if the earlier result were a directory: its tokenizer and its template go along."""
    first = document("org/a", "org/b", name="first", base_model="org/a", tokenizer_source="base")
    config = load_config(chain(tmp_path, first, document("first", "org/c", **keys)))
    assert config.tokenizer_source == keys.get("tokenizer_source", None if keys else "org/a")


A, B, C = (f"org/{letter}" for letter in "abc")


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            [document(A, B, name="x"), document(A, C, name="x")],
            "another document is named 'x', too",
        ),
        ([document(A, B), document(A, C)], "a second one has no name"),
        (
            [document("y", A, name="x"), document("x", A, name="y"), document("x", B)],
            "merges use each other in a circle: x -> y -> x",
        ),
        ([document("x", A, name="x"), document("x", B)], "in a circle: x -> x"),
        ([document(A, B, name="x"), document(A, C)], "no other document uses 'x'"),
        ([document(A, B, name="x"), document(A, C, name="y")], "no other document uses 'y'"),
        ([document(A, B, name="[1]"), document(A, C)], "document 1: name: must be text, not [1]"),
        ([document(A, B, name="x"), "[]\n"], "document 2: must be a mapping"),
        (
            [document(A, B, name="x"), document("x", C, extra="1")],
            "document 2: unknown key 'extra'",
        ),
        (["a: 1\n"] * 101, "more than 100 documents"),
        *(
            ([document(A, B, name="x"), document(reference, C)], "'x' is the result of an earlier")
            for reference in ("x+org/adapter", "org/a+x", "x@main")
        ),
        (
            [document(A, B, name="x", tokenizer_source="x"), document("x", C)],
            "in a circle: x -> x",
        ),
        (
            [
                document(A, B, name="x0"),
                *(document(f"x{i}", A, name=f"x{i + 1}") for i in range(31)),
            ],
            "too large: 31 merges one behind the other (at most 30)",
        ),
        (
            [
                document(A, B, name="x0"),
                document("x0", A, name="x1"),
                *(document(f"x{i}", f"x{i + 1}", name=f"x{i + 2}") for i in range(20)),
            ],
            "(at most 1000)",
        ),
    ],
)
def test_mistakes(tmp_path: Path, documents: list[str], message: str) -> None:
    file = chain(tmp_path, *documents)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(str(file)) and message in str(caught.value)


def test_no_documents() -> None:
    with pytest.raises(ConfigError, match="has no merge"):
        as_config([])
