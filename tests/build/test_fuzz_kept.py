"""Fuzzes the files that a merge wrote and reads back; test_fuzz.py says how to look for more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from fuseo1_kernels import merge_checkpoints, verify_model
from fuseo1_kernels.checkpoint import checksums
from fuseo1_kernels.checkpoint.shards import OutputTensor, plan_shards
from fuseo1_kernels.checkpoint.sink import Sink
from fuseo1_kernels.errors import CheckpointError, MergeError, OutputError
from support.checkpoint_files import tree
from support.fuzzing import check_text, fuzz
from support.kept_files import IDENTITY, TENSOR, resealed, sealed
from support.models import Family, make_family, tuned
from support.mutations import JSON_KEYS, JSON_PIECES, JSON_VALUES, document, edited, spliced
from support.tensors import BF16


def damaged_lines(lines: bytes) -> st.SearchStrategy[bytes]:
    """The lines of a journal or a cache, damaged in their bytes, or in what they hold under right checksums."""
    mark, *others = lines.splitlines(keepends=True)
    trees = [json.loads(line.partition(b" ")[2]) for line in others]

    def written(trees: Any) -> bytes:
        if not isinstance(trees, list):
            trees = [trees]
        return mark + b"".join(sealed(document(tree).encode()) for tree in trees)

    in_trees = edited(trees, JSON_VALUES, JSON_KEYS).map(written)
    return st.one_of(spliced(lines, JSON_PIECES), in_trees, in_trees)


# --- journals ----------------------------------------------------------------------------

TENSORS = {"w": bytes(16), "v": bytes(range(8)), "x": bytes(range(4))}
SHARDS = plan_shards([OutputTensor(n, "U8", (len(b),)) for n, b in TENSORS.items()], 16)


def merge(out: Path) -> None:
    """Use the sink as the engine does."""
    with Sink(out, SHARDS, IDENTITY, overwrite=False, inputs=[]) as sink:
        for name, content in TENSORS.items():
            if name in sink.recorded and sink.holds(name, memoryview(bytearray(5))):
                continue
            sink.write(name, 0, memoryview(content))
            sink.complete({name: TENSOR})
        sink.publish()


def test_journals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A merge goes on and ends with the same bytes, or is refused and nothing is lost."""
    whole, out = tmp_path / "whole", tmp_path / "merged"
    partial, kept = tmp_path / "merged.partial", tmp_path / "kept"
    merge(whole)
    expected = tree(whole)
    with Sink(out, SHARDS, IDENTITY, overwrite=False, inputs=[]) as sink:
        for name in ("w", "v"):
            sink.write(name, 0, memoryview(TENSORS[name]))
            sink.complete({name: TENSOR})
    partial.rename(kept)

    def check(journal: bytes) -> None:
        shutil.copytree(kept, partial)
        (partial / "journal").write_bytes(journal)
        try:
            merge(out)
            assert tree(out) == expected and not partial.exists()
            shutil.rmtree(out)
        except OutputError as error:
            assert str(error).startswith(str(partial))
            check_text(str(error))
            assert tree(partial / "model") == tree(kept / "model") and not out.exists()
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    fuzz(damaged_lines((kept / "journal").read_bytes()), check, 30, capsys)


# --- surveys -----------------------------------------------------------------------------

#: Methods that ask for each kind of survey.
METHODS: dict[str, dict[str, Any]] = {
    "sce": {"parameters": {"select_topk": 0.5, "variant": "mergekit"}},
    "ties": {"parameters": {"density": 0.3, "weight": 1.0}},
    "dare_linear": {"parameters": {"density": 0.5, "weight": 1.0, "rescale": True}},
    "model_stock": {},
    "karcher": {"base_model": ...},
    "arcee_fusion": {"models": 1},
    "ramplus_tl": {"parameters": {"epsilon": 1e-3}},
}


def two_tensors(home: Path) -> Family:
    g = torch.Generator().manual_seed(3)
    shapes = {"model.embed.weight": (6, 8), "model.a.weight": (129,)}
    base = {name: torch.randn(shape, generator=g).to(BF16) for name, shape in shapes.items()}
    return make_family(home, [base, tuned(base, 1), tuned(base, 2)], tokenizer={})


def test_surveys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A merge ends, or is refused in one message: a survey that cannot be is surveyed anew, which a note says."""
    family, cache, out = two_tensors(tmp_path), tmp_path / "cache", tmp_path / "out"
    keep: dict[str, bytes] = {}

    def configure(method: str) -> None:
        changes = dict(METHODS[method])
        if changes.pop("models", None):
            changes["models"] = [{"model": str(family.target(1))}]
        family.configure(merge_method=method, **changes)

    def merge(method: str) -> Sequence[str]:
        configure(method)
        return merge_checkpoints(
            family.config, out, survey_cache=cache, overwrite=True, resume=False, threads=1
        ).notes

    for method in METHODS:
        assert not any("surveyed anew" in note for note in merge(method))
        keep[method] = (cache / "surveys").read_bytes()
        (cache / "surveys").unlink()
        assert keep[method].count(b"\n") >= 3

    def check(example: tuple[str, bytes]) -> None:
        method, lines = example
        (cache / "surveys").write_bytes(lines)
        try:
            for note in merge(method):
                check_text(note)
        except MergeError as error:
            check_text(str(error))

    damaged = st.sampled_from([*METHODS]).flatmap(
        lambda method: st.tuples(st.just(method), damaged_lines(keep[method]))
    )
    fuzz(damaged, check, 12, capsys)


# --- checksums ---------------------------------------------------------------------------


def test_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model is checked by what stands in its checksum file, which bears its own right checksum, or not at all."""
    family, out = two_tensors(tmp_path), tmp_path / "out"
    merge_checkpoints(family.config, out, shard_size=100)
    file = out / checksums.FILE
    whole = file.read_bytes()
    tree = json.loads(whole)

    def check(content: bytes) -> None:
        file.write_bytes(content)
        try:
            result = verify_model(out, threads=1)
        except CheckpointError as error:
            assert str(error).startswith(f"{file}: ")
            check_text(str(error))
        else:
            assert result.problems or content == whole or json.loads(content)["tensors"].keys()
            for problem in result.problems:
                check_text(problem)

    in_tree = edited(tree, JSON_VALUES, JSON_KEYS).map(document).map(str.encode).map(resealed)
    fuzz(st.one_of(spliced(whole, JSON_PIECES), in_tree, in_tree), check, 30, capsys)
