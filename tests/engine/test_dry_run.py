"""--dry-run: it says what the merge would do, finds every problem, and reads and writes nothing."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest

from fuseo1_kernels.checkpoint.source import Source
from support.checkpoint_files import raw_file, write_json
from support.models import SPECIAL, Family, model_config, snapshot, tokenizer_json, write_model
from support.models import shapes as qwen2_shapes
from support.processes import MERGE, done, merge_json, run, spawn
from support.recipes import PUBLISHED


def test_dry_run_reads_and_writes_nothing(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(family.home)

    def read(*_: object) -> int:
        raise AssertionError("tensor data is read")

    for way in ("preadv", "sendfile", "posix_fadvise"):
        monkeypatch.setattr(os, way, read)
    monkeypatch.setattr(Source, "place", read)  # where the kernels read
    for out in ([], [family.out]):
        result = done(family.config, *out, "--dry-run", "--shard-size", "30KB")
        assert snapshot(family.home) == before
        words = dict(line.split(maxsplit=1) for line in result.out.splitlines())
        assert words["tensors"].startswith("39 ") and "bfloat16" in words["tensors"]


def test_dry_run_says_what_the_merge_then_does(family: Family) -> None:
    argv = [family.config, family.out, "--shard-size", "30KB", "--json"]
    result = done(*argv, "--dry-run")
    assert result.out.count("\n") == 1 and result.err == ""
    planned = json.loads(result.out)
    said = merge_json(family.config, family.out, "--shard-size", "30KB")
    for key in ("tensors", "parameters", "shards", "notes"):
        assert planned[key] == said[key]
    assert planned["problems"] == []
    assert planned["dtype"] == "bfloat16"
    # From storage once; by survey and fuse, which every tensor needs, twice.
    assert 2 * planned["bytes_to_read"] == said["bytes_read"]
    written = sum(f.stat().st_size for f in family.out.glob("*.safetensors"))
    assert planned["bytes_to_write"] == written
    assert 0 < planned["peak_memory"] <= 512 << 20


def test_dry_run_finds_every_problem(family: Family) -> None:
    _, left, right = family.states
    del left["model.norm.weight"]
    right["lm_head.weight"] = right["lm_head.weight"][:-1].clone()
    right["model.layers.0.mlp.up_proj.weight"] = right["model.layers.0.mlp.up_proj.weight"].double()
    write_model(family.target(1), left)
    write_model(
        family.target(2),
        right,
        tokenizer={"tokenizer.json": tokenizer_json(special=(SPECIAL[1], SPECIAL[0], SPECIAL[2]))},
    )
    (family.out / "something").mkdir(parents=True)
    before = snapshot(family.home)
    argv = [family.config, family.out, "--dry-run", "--max-memory", "1MiB"]
    result = run(*argv)
    assert result.code == 1
    assert snapshot(family.home) == before
    found = [line for line in result.out.splitlines() if line.startswith("problem: ")]
    for words in (
        "model.norm.weight: missing in model",
        "lm_head.weight: vocabulary sizes differ",
        "model.layers.0.mlp.up_proj.weight: is F64",
        "--max-memory",
        "has id",
        f"{family.out}: exists and is not empty",
    ):
        assert len([line for line in found if words in line]) == 1, words
    assert len(found) == 6
    said = run(*argv, "--json")
    assert said.code == 1
    assert [f"problem: {p}" for p in json.loads(said.out)["problems"]] == found


def test_dry_run_of_a_merge_that_is_done(family: Family) -> None:
    done(family.config, family.out)
    before = snapshot(family.home)
    result = done(family.config, family.out, "--dry-run")
    assert f"note: {family.out}: is there already, made by this very merge\n" in result.out
    assert "problem: " not in result.out
    for options in (["--no-resume"], ["--nonfinite", "propagate"]):
        again = run(family.config, family.out, "--dry-run", *options)
        assert again.code == 1
        assert f"problem: {family.out}: exists and is not empty" in again.out
    assert "already" not in done(family.config, family.out, "--dry-run", "--overwrite").out
    assert snapshot(family.home) == before
    (family.out / "config.json").unlink()
    assert run(family.config, family.out, "--dry-run").code == 1


def test_dry_run_beside_an_unfinished_merge(family: Family) -> None:
    partial = family.out.with_name(f"{family.out.name}.partial")
    partial.mkdir(parents=True)
    result = done(family.config, family.out, "--dry-run")
    words = "an unfinished merge; only the command that began it continues it"
    assert f"note: {partial}: {words}\n" in result.out


def test_dry_run_of_models_that_are_not_cached(family: Family, tmp_path: Path) -> None:
    family.configure(models=[{"model": "org/some-model"}])
    env = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    ran = spawn(*MERGE, family.config, "--dry-run", env=env)
    assert ran.code == 1
    assert "org/some-model: no such directory" in ran.err and "go online" not in ran.err
    assert "download nothing: run the merge itself, or `hf download org/some-model" in ran.err


@pytest.mark.serial
def test_dry_run_of_a_32b_recipe(tmp_path: Path) -> None:
    """Qwen2.5-32B's real shapes in files of holes: planned from headers in about a second."""
    shapes = qwen2_shapes(layers=64, vocab=152064, hidden=5120, ffn=27648, kv=1024)
    assert len(shapes) == 771
    names, shards = list(shapes), 17
    base, targets = PUBLISHED["FuseO1-DeepSeekR1-QwQ-SkyT1-32B-Preview"]
    for model in (base, *targets):
        weight_map = {}
        for number in range(shards):
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            header, end = {}, 0
            for name in names[number * 771 // shards : (number + 1) * 771 // shards]:
                start, end = end, end + 2 * math.prod(shapes[name])
                offsets = {"data_offsets": [start, end]}
                header[name] = {"dtype": "BF16", "shape": shapes[name], **offsets}
                weight_map[name] = file
            path = raw_file(tmp_path / model / file, header)
            os.truncate(path, path.stat().st_size + end)
        write_json(tmp_path / model / "model.safetensors.index.json", {"weight_map": weight_map})
        write_json(tmp_path / model / "config.json", model_config(num_hidden_layers=64))
        write_json(tmp_path / model / "tokenizer_config.json", {"add_bos_token": True})
    began = time.monotonic()
    argv = [*MERGE, "FuseO1-DeepSeekR1-QwQ-SkyT1-32B-Preview", "--dry-run", "--json"]
    ran = spawn(*argv, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert time.monotonic() - began < 5  # 1 s is the aim; machines that test are busy
    planned = json.loads(ran.out)
    assert planned["tensors"] == 771
    assert planned["parameters"] == 32_763_876_352
    assert planned["bytes_to_read"] == 4 * 2 * 32_763_876_352
    assert planned["bytes_to_write"] - 2 * 32_763_876_352 < 1 << 20
    assert len(planned["shards"]) == 14
    assert planned["peak_memory"] <= 2 << 30
