"""--check and --like-mergekit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from support.config_files import FUSEO1
from support.models import Family
from support.processes import done, run
from support.refusals import one_layer_family

BROKEN = FUSEO1.replace("1.0", "2.0").replace("dtype:", "dtpye:")


def test_a_valid_config(tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(FUSEO1 + "name: one\n")
    result = done(file, "--check")
    note = "name: 'one' is a remark; it has no effect on the merge"
    assert result.out == f"{file}: is valid\nnote: {note}\n"
    assert json.loads(done(file, "--check", "--json").out) == {"problems": [], "notes": [note]}
    assert "is valid" in done("FuseO1-DeepSeekR1-QwQ-32B-Preview", "--check").out


@pytest.mark.parametrize("text", [BROKEN, "a: [", None])
def test_an_invalid_config(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    if text is not None:
        file.write_text(text)
    result = run(file, "--check")
    assert (result.code, result.err) == (1, "")
    lines = result.out.splitlines()
    assert all(line.startswith("problem: ") for line in lines) and str(file) not in lines[0][10:]
    if text == BROKEN:
        assert len(lines) == 2
        assert "unknown key 'dtpye'; did you mean 'dtype'? (--like-mergekit ignores it)" in lines[0]
        assert "parameters.select_topk: must be a number in [0, 1], not 2.0" in lines[1]
    as_json = run(file, "--check", "--json")
    assert as_json.code == 1
    assert json.loads(as_json.out)["problems"] == [line.removeprefix("problem: ") for line in lines]


def test_what_is_ignored_stands_in_the_result_and_in_the_card(tmp_path: Path) -> None:
    family: Family = one_layer_family(tmp_path)
    data = yaml.safe_load(family.config.read_text())
    data.setdefault("parameters", {})["weight"] = 0.5
    family.config.write_text(yaml.safe_dump(data) + "dtype: float16\ndtype: bfloat16\n")
    assert "again" in run(family.config, family.out).err
    dry = json.loads(done(family.config, "--dry-run", "--json", "--like-mergekit").out)
    result = json.loads(done(family.config, family.out, "--json", "--like-mergekit").out)
    card = (family.out / "README.md").read_text()
    for words in ("sce has no parameter 'weight'", "'dtype' stands here again"):
        for notes in (dry["notes"], result["notes"], card.splitlines()):
            assert [words in line for line in notes].count(True) == 1, (words, notes)
    # The config that was used has no such keys.
    assert "is valid" in done(family.out / "mergekit_config.yml", "--check").out
