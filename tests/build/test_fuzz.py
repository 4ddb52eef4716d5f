"""Damaged input by the thousand: it is read as what it says, or refused with one message.

A normal run tries a few hundred examples, the same ones each time. To look for new ones:

    FUSEO1_FUZZ_SECONDS=3600 python -m pytest -m "" tests/build/test_fuzz.py

takes that many seconds in all, those of test_fuzz_kept.py included, with fresh seeds. A failure
shows hypothesis' smallest example, and the seed that led to it: FUSEO1_FUZZ_SEED=THE_SEED
FUSEO1_FUZZ_SECONDS=1 with the same command, and -k THE_TEST, leads there again. Then make the
example a named test beside the code that is mended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import yaml
from huggingface_hub import constants
from hypothesis import strategies as st

from fuseo1_kernels.checkpoint.header import DTYPE_BYTES, read_header
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.config.load import load_config, parse_config
from fuseo1_kernels.config.schema import MergeConfig
from fuseo1_kernels.engine.dry_run import dry_run
from fuseo1_kernels.engine.options import MergeOptions
from fuseo1_kernels.errors import CheckpointError, ConfigError, MergeError
from fuseo1_kernels.methods.sce import VARIANTS, Sce
from fuseo1_kernels.plan.plan import make_plan
from support.checkpoint_files import safetensors_file, sharded_model, single_model, write_json
from support.fuzzing import check_text, fuzz
from support.mutations import (
    CONFIG,
    FIRST,
    HELD,
    INDEX,
    JSON_VALUES,
    LINEAR,
    OBJECTS,
    SECOND,
    SHARDS,
    SLICES,
    STACKED,
    TIES,
    WEIGHT_MAP,
    WHOLE,
    YAML_PIECES,
    YAML_VALUES,
    damaged_json,
    damaged_safetensors,
    document,
    edited,
    object_keys,
    spliced,
    yaml_keys,
)

# --- headers -----------------------------------------------------------------------------


def test_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A header that is taken covers the file, and says what the safetensors library reads."""
    file = tmp_path / "m.safetensors"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        try:
            header = read_header(file)
        except CheckpointError as error:
            assert str(error).startswith(f"{file}: ")
            check_text(str(error))
            return
        end = 8 + int.from_bytes(content[:8], "little")
        for info in header.tensors.values():
            assert (info.offset, info.nbytes) == (end, info.numel * DTYPE_BYTES[info.dtype])
            end += info.nbytes
        assert end == len(content)
        theirs = {name: (t["dtype"], t["shape"]) for name, t in safetensors.deserialize(content)}
        assert theirs == {n: (t.dtype, list(t.shape)) for n, t in header.tensors.items()}
        with safetensors.safe_open(file, "numpy") as opened:
            assert (opened.metadata() or {}) == header.metadata

    fuzz(damaged_safetensors(HELD), check, 80, capsys)


# --- models ------------------------------------------------------------------------------

NAMES = ("base", "left", "right")
WEIGHTS = "model.safetensors"


class Models:
    """Three models in `home`, and a fourth that no one asks for."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._heard: list[Any] | None = None
        shards: dict[str, dict[str, Any]] = {FIRST: {}, SECOND: {}}
        for name, shard in WEIGHT_MAP.items():
            shards[shard][name] = HELD[name]
        sharded_model(home / "outside", shards)
        for name in NAMES:
            path = home / name
            for shard, held in shards.items():
                safetensors_file(path / shard, held)
            (path / "link.bin").symlink_to(f"../outside/{FIRST}")
            (path / "directory").symlink_to("../outside")
            (path / "loop").symlink_to("loop")
            write_json(path / "tokenizer_config.json", {"chat_template": "{}"})
            write_json(path / "tokenizer.json", {"model": {"vocab": {"a": 0}}})
            single_model(path, HELD, **CONFIG)
            self._whole = {
                file.name: file.read_bytes() for file in path.iterdir() if file.is_file()
            }
        sys.addaudithook(self._hear)

    @contextmanager
    def damaged(self, names: Sequence[str], file: str, content: bytes) -> Iterator[None]:
        """Replace a file of the models; an index is read where there is no single file."""
        paths = [self.home / name for name in names]
        for path in paths:
            if file == INDEX:
                (path / WEIGHTS).rename(path / "aside")
            (path / file).write_bytes(content)
        try:
            yield
        finally:
            for path in paths:
                if file == INDEX:
                    (path / "aside").rename(path / WEIGHTS)
                    (path / file).unlink()
                else:
                    (path / file).write_bytes(self._whole[file])

    @contextmanager
    def nothing_else_opened(self) -> Iterator[None]:
        """Fail if a file or a directory is opened that is not of the three models."""
        self._heard = []
        try:
            yield
        finally:
            heard, self._heard = self._heard, None
            homes = [self.home / name for name in NAMES]
            for path in heard:
                real = Path(os.path.realpath(path))
                assert any(real.is_relative_to(home) for home in homes), f"{path} was opened"

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._heard is not None and event in ("open", "os.listdir", "os.scandir"):
            # A descriptor was opened by its path before.
            self._heard += [path for path in arguments[:1] if not isinstance(path, int)]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """The models, in the working directory; in the hub's cache there is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return Models(tmp_path)


def check_plan(config: MergeConfig, shard_size: int, crop: bool) -> None:
    """Plan the merge, by itself and as a dry run; the plan agrees with itself."""
    with ExitStack() as stack:
        sources = {
            name: stack.enter_context(open_source(name, download=False))
            for name in config.model_names()
        }
        plan = make_plan(config, sources, shard_size=shard_size, crop_embeddings=crop)
    names = [job.name for job in plan.jobs]
    assert len(set(names)) == len(names)
    assert [t.name for shard in plan.shards for t in shard.tensors] == names
    for job in plan.jobs:
        if isinstance(job.rule, Sce):
            assert 0 <= job.rule.select_topk <= 1 and job.rule.variant in VARIANTS
        job.rule.request(())
        assert all(x.info.nbytes >= job.numel * x.dtype.size for x in job.stored)
    for shard in plan.shards:
        assert shard.size == len(shard.header) + sum(t.nbytes for t in shard.tensors)
    result = dry_run(config, None, MergeOptions(shard_size=shard_size, crop_embeddings=crop))
    assert set(plan.problems) <= set(result.problems)
    for text in (*result.problems, *result.notes):
        check_text(text)
    json.dumps(result.as_dict(), allow_nan=False)


OPTIONS = st.tuples(st.sampled_from([1, 20, 10**9]), st.booleans())


def test_models(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that is taken can be planned with; no file of it leads to one that is not its own."""
    configs = [load_config("text", text) for text in TEXTS]
    for config in configs:  # what is imported late is imported before anyone listens
        check_plan(config, 10**9, False)

    def check(example: Any) -> None:
        which, (file, content), config, options = example
        with models.damaged(which, file, content):
            try:
                with models.nothing_else_opened():
                    check_plan(config, *options)
            except MergeError as error:
                assert any(name in str(error) for name in which)
                check_text(str(error))

    index = {"metadata": {"total_size": 36}, "weight_map": WEIGHT_MAP}
    damaged = st.one_of(
        st.tuples(st.just(WEIGHTS), damaged_safetensors(HELD)),
        st.tuples(st.just("config.json"), damaged_json(CONFIG, JSON_VALUES)),
        st.tuples(st.just(INDEX), damaged_json(index, st.sampled_from(SHARDS))),
    )
    which = st.sampled_from([NAMES, NAMES, ("base",), ("left",), ("left", "right")])
    fuzz(st.tuples(which, damaged, st.sampled_from(configs), OPTIONS), check, 80, capsys)


# --- recipes -----------------------------------------------------------------------------

TEXTS = (WHOLE, SLICES, TIES, LINEAR, STACKED)
TREES = st.sampled_from([yaml.safe_load(text) for text in TEXTS])
KEYS = (*yaml.safe_load(WHOLE), *yaml.safe_load(SLICES), "model", "layer_range", "value", "<<")


def check_config(read: Callable[[], MergeConfig], options: tuple[int, bool]) -> None:
    """The config is refused by name, or survives being written down and can be planned with."""
    try:
        config = read()
    except ConfigError as error:
        assert str(error).startswith("it.yaml: ")
        check_text(str(error))
        return
    text = config.to_yaml()
    assert load_config("again.yaml", text).to_yaml() == text
    try:
        check_plan(config, *options)
    except MergeError as error:
        check_text(str(error))


@pytest.mark.usefixtures("models")
def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    """The YAML, damaged as text and as a tree."""
    in_text = st.sampled_from(TEXTS).flatmap(lambda text: spliced(text, YAML_PIECES))
    in_tree = TREES.flatmap(lambda tree: edited(tree, YAML_VALUES, yaml_keys(KEYS))).map(document)

    def check(example: tuple[str, tuple[int, bool]]) -> None:
        text, options = example
        check_config(lambda: load_config("it.yaml", text), options)

    fuzz(st.tuples(st.one_of(in_text, in_tree), OPTIONS), check, 80, capsys)


@pytest.mark.usefixtures("models")
def test_mappings(capsys: pytest.CaptureFixture[str]) -> None:
    """A program may hand over objects instead of YAML."""
    data = TREES.flatmap(lambda tree: edited(tree, OBJECTS, object_keys(KEYS)))

    def check(example: tuple[Any, tuple[int, bool]]) -> None:
        tree, options = example
        check_config(lambda: parse_config(tree, "it.yaml"), options)

    fuzz(st.tuples(data, OPTIONS), check, 80, capsys)
