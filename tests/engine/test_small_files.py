"""A merge writes configs, the model card and the tokenizer beside the weights."""

from __future__ import annotations

import json

import pytest
import yaml

from fuseo1_kernels import MergeError, merge_checkpoints, verify_model
from fuseo1_kernels.config.chat_templates import CHAT_TEMPLATES
from fuseo1_kernels.version import __version__
from support.checkpoint_files import tree
from support.engine_runs import merge
from support.models import (
    TEMPLATE,
    VOCAB,
    Family,
    assert_same_state,
    base_state,
    model_config,
    read_model,
    tokenizer_files,
    tokenizer_json,
    tuned,
    write_model,
)


def test_files_beside_the_weights(family: Family) -> None:
    (family.base / "generation_config.json").write_text('{"do_sample": true}')
    (family.base / "notes.txt").write_text("goes along")
    pooling = family.base / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    pooling.write_text('{"word_embedding_dimension": 32}')
    dense = family.base / "2_Dense" / "model.safetensors"
    dense.parent.mkdir()
    dense.write_bytes((family.base / "model.safetensors").read_bytes())
    merge(family)
    assert sorted(p.name for p in family.out.iterdir()) == [
        "1_Pooling",
        "2_Dense",
        "README.md",
        "config.json",
        "fuseo1_checksums.json",
        "generation_config.json",
        "mergekit_config.yml",
        "model.safetensors",
        "notes.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name, content in tokenizer_files().items():
        assert (family.out / name).read_bytes() == content
    assert (family.out / "generation_config.json").read_text() == '{"do_sample": true}'
    copied = family.out / "1_Pooling" / "config.json"
    assert copied.read_bytes() == pooling.read_bytes()
    assert (family.out / "2_Dense" / dense.name).read_bytes() == dense.read_bytes()
    assert verify_model(family.out).problems == ()
    copied.write_text("{}")
    [problem] = verify_model(family.out).problems
    assert problem.startswith(str(copied))


def test_model_card(family: Family) -> None:
    merge(family)
    card = (family.out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert {"merge", "sce"} <= set(front["tags"])
    assert "# merged\n" in card
    assert "- base: `base`\n- merged: `target1`\n- merged: `target2`\n" in card
    recipe = card.split("```yaml\n")[1].split("```")[0]
    written = (family.out / "mergekit_config.yml").read_text()
    assert recipe == written.replace(f"{family.home}/", "")
    assert str(family.home) in written and str(family.home) not in card
    assert f"fuseo1-kernels {__version__}" in card and "bfloat16" in card


def test_the_config_that_went_along_makes_the_same_model(family: Family) -> None:
    """From its file or as a mapping; a model that is not merged lends its tokenizer."""
    lender, template = (
        family.home / "lender",
        "{% for m in messages %}[{{ m.content }}]{% endfor %}",
    )
    lender.mkdir()
    files = tokenizer_files("{{ lent }}", add_bos_token=True)
    for name, content in files.items():
        (lender / name).write_bytes(content)
    family.configure(
        parameters={"select_topk": [{"filter": "mlp", "value": [0.2, 0.7]}, {"value": 1.0}]},
        dtype="float32",
        tokenizer_files={"model": str(lender), "overrides": {"add_bos_token": False}},
        chat_template=template,
    )
    merge(family)
    assert (family.out / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    copied = json.loads((family.out / "tokenizer_config.json").read_text())
    changed = {"add_bos_token": False, "chat_template": template}
    assert copied == json.loads(files["tokenizer_config.json"]) | changed
    assert (family.out / "chat_template.jinja").read_text() == template
    went_along = family.out / "mergekit_config.yml"
    for number, config in enumerate((went_along, yaml.safe_load(went_along.read_text()))):
        again = family.home / str(number) / "merged"
        merge_checkpoints(config, again)
        assert tree(again) == tree(family.out)


@pytest.mark.parametrize("source", ["base", "target1"])
def test_tokenizer_source(source: str, family: Family) -> None:
    write_model(family.target(1), family.states[1], tokenizer=tokenizer_files("{{ other }}"))
    name = "base" if source == "base" else str(family.target(1))
    family.configure(tokenizer_source=name)
    merge(family)
    copied = json.loads((family.out / "tokenizer_config.json").read_text())
    assert copied["chat_template"] == (TEMPLATE if source == "base" else "{{ other }}")


@pytest.mark.parametrize(
    ("special", "message"),
    [
        (("<|im_end|>", "<|im_start|>", "<|endoftext|>"), r"token '<\|.*has id "),
        (
            ("<|endoftext|>", "<|im_start|>", "<tool>"),
            r"id 271 is token '<\|im_end\|>' in .*'<tool>'",
        ),
    ],
)
def test_tokens_of_other_ids(special: tuple[str, ...], message: str, family: Family) -> None:
    """Rows of embeddings are merged by id: two tokens at one id are not averaged unless the config says so."""
    files = tokenizer_files() | {"tokenizer.json": tokenizer_json(special=special)}
    write_model(family.target(1), family.states[1], tokenizer=files)
    with pytest.raises(MergeError, match=message + ".*tokenizer_source.*tokenizer_files"):
        merge(family)
    family.configure(tokenizer_files={"model": str(family.target(1))})
    result = merge(family)
    assert (family.out / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    [note] = [note for note in result.notes if "tokenizers differ" in note]
    assert note.endswith(", and 1 model more differ; rows are merged as they stand")
    assert_same_state(read_model(family.out), family.expected())


def test_tokens_that_the_lender_lacks(family: Family) -> None:
    """Two targets' own tokens at one id, for which the base has no token."""
    added = (), ("<think>",), ("<tool>",)
    for path, state, special in zip(family.models, family.states, added, strict=True):
        vocabulary = tokenizer_json(VOCAB - 1 + len(special), special)
        files = tokenizer_files() | {"tokenizer.json": vocabulary}
        write_model(path, state, tokenizer=files)
    with pytest.raises(MergeError, match=r"is token '<think>' in .*target1 and '<tool>' in"):
        merge(family)


def test_other_tokens_matter_only_where_rows_are_merged(family: Family) -> None:
    """And are said, no more, where no tokenizer goes along."""
    files = tokenizer_files() | {"tokenizer.json": tokenizer_json(special=("<a>", "<b>", "<c>"))}
    write_model(family.target(1), family.states[1], tokenizer=files)
    sources = [
        [{"model": str(path), "layer_range": [0, 1]}] for path in (family.base, family.target(1))
    ]
    slices = [{"sources": s} for s in [*sources, sources[0]]]
    family.configure(models=..., base_model=..., merge_method="passthrough", slices=slices)
    assert merge(family).notes == ()
    family.configure()
    [note] = merge(family, "other", copy_tokenizer=False).notes
    assert "id 269 is token" in note and note.endswith("rows are merged as they stand")
    (family.base / "tokenizer.json").write_text("{}")
    [note] = merge(family, "third", copy_tokenizer=False).notes
    assert note.startswith("vocabularies are not compared: ") and "tokenizer.json" in note


def test_a_tokenizer_with_more_ids_than_rows(family: Family) -> None:
    """Left over by a crop, or taken from a model with more rows: the result could not look them up."""
    files = tokenizer_files() | {"tokenizer.json": tokenizer_json(vocab=VOCAB + 16)}
    wide = base_state(vocab=VOCAB + 16)
    config = model_config(vocab_size=VOCAB + 16)
    write_model(family.target(1), tuned(wide, 1), tokenizer=files, config=config)
    fewer = files | {"tokenizer.json": tokenizer_json(special=())}
    for path in (family.base, family.target(2)):
        write_model(path, family.states[0], tokenizer=fewer)
    family.configure(tokenizer_files={"model": str(family.target(1))})
    with pytest.raises(
        MergeError, match=r"token .* with id 287, but .* have 272 rows.*tokenizer_f"
    ):
        merge(family, crop_embeddings=True)
    assert not family.out.exists()
    family.configure(tokenizer_files={"model": str(family.base)})
    merge(family, crop_embeddings=True)
    assert json.loads((family.out / "config.json").read_text())["vocab_size"] == VOCAB


def test_generation_settings_go_with_the_tokenizer(family: Family) -> None:
    """A base that ends with one token and a tokenizer that ends with another: the result must stop."""
    (family.base / "generation_config.json").write_text('{"eos_token_id": 269}')
    chat = tokenizer_files(eos_token="<|im_end|>")
    write_model(
        family.target(1), family.states[1], tokenizer=chat, config=model_config(eos_token_id=271)
    )
    family.configure(tokenizer_source=str(family.target(1)))
    # The lender has no generation settings of its own.
    [note] = merge(family).notes
    assert "stops at the ids [269]" in note and "'<|im_end|>', id 271" in note
    assert json.loads((family.out / "config.json").read_text())["eos_token_id"] == 271

    settings = '{"eos_token_id": [271, 269], "max_new_tokens": 5}'
    (family.target(1) / "generation_config.json").write_text(settings)
    assert merge(family, "second").notes == ()
    assert (family.home / "second" / "generation_config.json").read_text() == settings

    (family.target(1) / "generation_config.json").write_text("{}")
    [note] = merge(family, "third").notes
    assert "generation_config.json has no eos_token_id" in note


@pytest.mark.parametrize(
    ("template", "stops", "said"),
    [
        ("auto", 269, True),
        ("{{ chat }}", 269, True),
        ("auto", [271, 269], False),
        ("{{ mine }}", 269, False),
    ],
)
def test_a_template_of_another_model(
    template: str, stops: object, said: bool, family: Family
) -> None:
    """What ends its turns is a stop, or a note says that it is none."""
    for number in (1, 2):
        write_model(
            family.target(number),
            family.states[number],
            tokenizer=tokenizer_files("{{ chat }}"),
            config=model_config(eos_token_id=[269, 271]),
        )
    (family.base / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    family.configure(chat_template=template)
    notes = merge(family).notes
    assert len(notes) == said
    for note in notes:
        assert f"is that of {family.target(1)}, which stops at [271], too" in note
        assert "generation_config.json stops at [269]" in note
    # The lender's own needs no note.
    family.configure(chat_template="auto", tokenizer_source=str(family.target(2)))
    assert merge(family, "second").notes == ()


def test_a_license_that_all_sources_have(family: Family) -> None:
    paths = [family.base, family.target(1), family.target(2)]
    for path in paths:
        (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    merge(family)
    assert 'license: "apache-2.0"\n' in (family.out / "README.md").read_text()
    (paths[2] / "README.md").write_text("---\nlicense: mit\n---\n")
    merge(family, "second")
    assert "license" not in (family.home / "second" / "README.md").read_text()


def test_folders_of_one_name_are_told_apart(family: Family) -> None:
    for number in (1, 2):
        (family.home / str(number)).mkdir()
        family.target(number).rename(family.home / str(number) / "base")
    names = [str(family.home / str(number) / "base") for number in (1, 2)]
    family.configure(models=[{"model": name} for name in names])
    merge(family)
    card = (family.out / "README.md").read_text()
    assert "- base: `base`\n- merged: `base (2)`\n- merged: `base (3)`\n" in card
    assert str(family.home) not in card


def test_a_template_by_name(family: Family) -> None:
    family.configure(chat_template="chatml")
    [note] = merge(family).notes
    assert "the chat template ends a turn with '<|im_end|>', id " in note and "add the id" in note
    config = json.loads((family.out / "tokenizer_config.json").read_text())
    template = (family.out / "chat_template.jinja").read_text()
    assert template == config["chat_template"] == CHAT_TEMPLATES["chatml"]
    written = yaml.safe_load((family.out / "mergekit_config.yml").read_text())
    assert written["chat_template"] == "chatml"
    family.configure(chat_template="exaone")
    [note] = merge(family, "results/other").notes
    assert "ends a turn with '[|endofturn|]', which is not a token here" in note
