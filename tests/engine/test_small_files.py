"""A merge writes configs, the model card and the tokenizer beside the weights."""

from __future__ import annotations

import json

import pytest
import yaml

from fuseo1_kernels import MergeError, merge_checkpoints
from support.engine_runs import merge
from support.models import (
    TEMPLATE,
    Family,
    tokenizer_files,
    tokenizer_json,
    weights,
    write_model,
)


def test_files_beside_the_weights(family: Family) -> None:
    (family.base / "generation_config.json").write_text('{"do_sample": true}')
    (family.base / "notes.txt").write_text("not copied")
    merge(family)
    assert sorted(p.name for p in family.out.iterdir()) == [
        "README.md",
        "config.json",
        "fuseo1_checksums.json",
        "generation_config.json",
        "mergekit_config.yml",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name, content in tokenizer_files().items():
        assert (family.out / name).read_bytes() == content
    assert (family.out / "generation_config.json").read_text() == '{"do_sample": true}'


def test_model_card(family: Family) -> None:
    family.configure(parameters={"select_topk": 0.5}, dtype="float32")
    merge(family)
    card = (family.out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert {"merge", "sce"} <= set(front["tags"])
    assert "# merged\n" in card
    for path in (family.base, family.target(1), family.target(2)):
        assert str(path) in card
    recipe = card.split("```yaml\n")[1].split("```")[0]
    assert recipe == (family.out / "mergekit_config.yml").read_text()
    from fuseo1_kernels.version import __version__

    assert f"fuseo1-kernels {__version__}" in card
    assert "float32" in card


def test_the_config_that_went_along_makes_the_same_model(family: Family) -> None:
    family.configure(
        parameters={"select_topk": [{"filter": "mlp", "value": [0.2, 0.7]}, {"value": 1.0}]},
        dtype="float32",
        tokenizer_files={"model": str(family.target(1)), "overrides": {"add_bos_token": False}},
        chat_template="{{ messages }}",
    )
    merge(family)
    again = family.home / "again" / "merged"
    merge_checkpoints(family.out / "mergekit_config.yml", again)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in family.out.iterdir()
    }


def test_the_config_as_a_mapping(family: Family) -> None:
    merge(family)
    merge_checkpoints(yaml.safe_load(family.config.read_text()), family.home / "other")
    assert weights(family.out) == weights(family.home / "other")


@pytest.mark.parametrize("source", ["base", "target1"])
def test_tokenizer_source(source: str, family: Family) -> None:
    write_model(family.target(1), family.states[1], tokenizer=tokenizer_files("{{ other }}"))
    name = "base" if source == "base" else str(family.target(1))
    family.configure(tokenizer_source=name)
    merge(family)
    copied = json.loads((family.out / "tokenizer_config.json").read_text())
    assert copied["chat_template"] == (TEMPLATE if source == "base" else "{{ other }}")


def test_tokenizer_source_of_other_ids(family: Family) -> None:
    files = tokenizer_files() | {"tokenizer.json": tokenizer_json(special=("<a>", "<b>", "<c>"))}
    write_model(family.target(1), family.states[1], tokenizer=files)
    family.configure(tokenizer_source="base")
    merge(family)  # other tokens under the same ids: no token has two ids
    swapped = tokenizer_json(special=("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    files["tokenizer.json"] = swapped
    write_model(family.target(1), family.states[1], tokenizer=files)
    with pytest.raises(MergeError, match=r"token '<\|.*has id .*tokenizer_files"):
        merge(family, "other")
    family.configure(tokenizer_files={"model": str(family.target(1))})
    merge(family, "other")
    assert (family.home / "other" / "tokenizer.json").read_bytes() == swapped
    assert weights(family.home / "other") == weights(family.out)  # no row is moved


def test_tokenizer_files_of_a_model_that_is_not_merged(family: Family) -> None:
    lender = family.home / "lender"
    lender.mkdir()
    files = tokenizer_files("{{ lent }}", add_bos_token=True)
    for name, content in files.items():
        (lender / name).write_bytes(content)
    family.configure(tokenizer_files={"model": str(lender), "overrides": {"add_bos_token": False}})
    merge(family)
    assert (family.out / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    copied = json.loads((family.out / "tokenizer_config.json").read_text())
    assert copied == json.loads(files["tokenizer_config.json"]) | {"add_bos_token": False}


def test_literal_chat_template(family: Family) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    family.configure(chat_template=template)
    merge(family)
    copied = json.loads((family.out / "tokenizer_config.json").read_text())
    assert copied["chat_template"] == template
    assert (family.out / "chat_template.jinja").read_text() == template


def test_no_tokenizer(family: Family) -> None:
    merge(family, copy_tokenizer=False)
    assert not list(family.out.glob("tokenizer*"))
