"""Rows gathered by token: which row of which model each is, by plain dictionaries, however reads are cut."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.config.load import parse_config
from fuseo1_kernels.engine.cpu.readers import open_reader
from fuseo1_kernels.engine.cpu.tools import Tools
from fuseo1_kernels.errors import CheckpointError
from fuseo1_kernels.plan.alignment import Alignment, align
from fuseo1_kernels.plan.inputs import Input
from fuseo1_kernels.plan.plan import Plan, make_plan
from support.checkpoint_files import safetensors_file, write_json

NAMES = "abc"
WIDTH = 13  # no vocabulary has as many rows
FORMATS = {"F16": "e", "F32": "f"}


def element(model: int, row: int, column: int) -> float:
    return 64.0 * model + 4.0 * row + column % 4


def encoded(values: list[float], dtype: str) -> bytes:
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{FORMATS[dtype]}", *values)


def decoded(data: bytes, dtype: str) -> list[float]:
    if dtype == "BF16":
        pairs = (data[i : i + 2] for i in range(0, len(data), 2))
        return [struct.unpack("<f", b"\0\0" + pair)[0] for pair in pairs]
    return list(
        struct.unpack(f"<{len(data) // struct.calcsize(FORMATS[dtype])}{FORMATS[dtype]}", data)
    )


def write_model(
    path: Path,
    number: int,
    vocab: Mapping[str, int],
    rows: int,
    dtype: str,
    *,
    head: int | None = None,
    width: int = WIDTH,
    element: Callable[[int, int, int], float] = element,
) -> None:
    shapes = {
        "model.embed_tokens.weight": (rows, width),
        "lm_head.weight": (head or rows, width),
        "lm_head.bias": (head or rows,),
    }
    tensors = {}
    for name, shape in shapes.items():
        columns = range(shape[1] if shape[1:] else 1)
        values = [element(number, row, column) for row in range(shape[0]) for column in columns]
        tensors[name] = dtype, shape, encoded(values, dtype)
    safetensors_file(path / "model.safetensors", tensors)
    write_json(path / "config.json", {"vocab_size": rows, "model_type": "llama"})
    write_json(path / "tokenizer.json", {"model": {"type": "WordLevel", "vocab": dict(vocab)}})


class Case:
    """Three models in a directory, and the plan of their merge."""

    def __init__(self, home: Path, stack: ExitStack, **keys: Any) -> None:
        self.keys = {
            "merge_method": "linear",
            "models": [{"model": name, "parameters": {"weight": 1.0}} for name in NAMES],
        } | keys
        config = parse_config(self.keys)
        self.sources: dict[str, Source] = {}
        for name in config.model_names():
            source = stack.enter_context(open_source(str(home / name)))
            source.name = name
            self.sources[name] = source
        lender = self.sources[config.tokenizer_model or ""]
        found = align(config, self.sources, lender, 1 << 30)
        assert found is not None
        self.alignment: Alignment = found
        self.plan: Plan = make_plan(config, self.sources, shard_size=1 << 30, alignment=found)


def read(x: Input, numel: int, cuts: list[int]) -> bytes:
    """Return the first `numel` elements, read in pieces."""
    tools = Tools(load_backend("cpu"), lambda: 1, lambda: None, open_merged=None)  # type: ignore[arg-type]
    with ExitStack() as stack:
        reader = open_reader(x, tools, stack)
        buffer = Buffer(numel * x.dtype.size)
        bounds = sorted({0, numel, *(cut % max(numel, 1) for cut in cuts)})
        whole = buffer.array(x.dtype, numel)
        for begin, end in pairwise(bounds):
            reader.read(begin, whole.part(begin, end - begin))
        return bytes(buffer.view[: numel * x.dtype.size])


vocabularies = st.dictionaries(st.sampled_from("tuvwxyz"), st.integers(0, 9), min_size=1)


@settings(
    max_examples=40,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    vocabs=st.tuples(vocabularies, vocabularies, vocabularies),
    rows=st.tuples(*[st.integers(1, 12)] * 3),
    dtypes=st.tuples(*[st.sampled_from(["BF16", "F16", "F32"])] * 3),
    source=st.sampled_from(["union", "base", "c"]),
    padding=st.sampled_from([None, 2, 5]),
    based=st.booleans(),
    cuts=st.lists(st.integers(0, 1000), max_size=4),
)
def test_every_row_is_its_tokens(
    vocabs: tuple[dict[str, int], ...],
    rows: tuple[int, ...],
    dtypes: tuple[str, ...],
    source: str,
    padding: int | None,
    based: bool,
    cuts: list[int],
    tmp_path: Path,
) -> None:
    if source == "base" and not based:
        source = "a"
    for number, name in enumerate(NAMES):
        write_model(tmp_path / name, number, vocabs[number], rows[number], dtypes[number])
    tokenizer = {"source": source} | ({"pad_to_multiple_of": padding} if padding else {})
    held = [
        {token: i for token, i in vocab.items() if i < rows[number]}
        for number, vocab in enumerate(vocabs)
    ]
    lent = vocabs[NAMES.index(source)] if source in NAMES else held[0]
    assume(lent)  # else the output has no tokens, which is refused
    with ExitStack() as stack:
        keys: dict[str, Any] = {"base_model": "b"} if based and source != "base" else {}
        keys |= {"base_model": "a"} if source == "base" else {}
        case = Case(tmp_path, stack, tokenizer=tokenizer, **keys)
        assert not case.plan.problems
        assert case.alignment.padding < (padding or 1)
        assert case.alignment.rows % (padding or 1) == 0
        groups = tokens_by_id(lent)
        if source == "union":
            new = {t for vocab in held for t in vocab} - lent.keys()
            groups |= {i: [t] for i, t in case.alignment.vocabulary.tokens.items() if t in new}
            assert len(groups) == len(set(lent.values())) + len(new)
        _check(case, held, groups, keys.get("base_model"), cuts)


def tokens_by_id(vocab: Mapping[str, int]) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for token, index in vocab.items():
        groups.setdefault(index, []).insert(0, token)  # the last one is the id's own
    return groups


def _check(
    case: Case,
    held: list[dict[str, int]],
    groups: Mapping[int, list[str]],
    base: str | None,
    cuts: list[int],
) -> None:
    """Compare each input of each tensor with what dictionaries say."""
    count = case.alignment.rows - case.alignment.padding
    assert count == max(max(groups) + 1, sum(map(len, groups.values())))
    has = [
        {i: next(held[m][t] for t in group if t in held[m])
         for i, group in groups.items() if any(t in held[m] for t in group)}
        for m in range(3)
    ]  # fmt: skip
    for job in case.plan.jobs:
        width = job.numel // job.shape[0]
        assert job.shape[0] == case.alignment.rows == case.plan.vocab_size
        for number, x in enumerate(job.inputs):
            model = NAMES.index(x.model)
            values = decoded(read(x, job.numel, cuts), x.dtype.code)
            found = [values[i : i + width] for i in range(0, len(values), width)]
            for row in range(count):
                donors = [m for m in range(3) if row in has[m]]
                if model in donors:
                    donors = [model]
                elif base is not None and NAMES.index(base) in donors:
                    donors = [NAMES.index(base)]
                if len(groups.get(row, ())) > 2:
                    continue  # which of the two others counts is not said
                columns = [[element(m, has[m][row], c) for m in donors] for c in range(width)]
                assert found[row] == [rounded(sum(c) / max(len(c), 1)) for c in columns], number
            means = [rounded(sum(row[c] for row in found[:count]) / count) for c in range(width)]
            assert all(row == means for row in found[count:])


def rounded(value: float) -> float:
    """Return `value` in fp32."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"new": {"source": "b"}}, "'new': model b has no such token"),
        ({"new": {}}, "'new': model a has no row for it; give its `source`"),
        ({"t": {"source": "d", "force": True}}, "'t': model d is not merged there"),
        (
            {"new": {"source": {"kind": "model_token", "model": "b", "token": "z"}}},
            "'new': model b has no token 'z'",
        ),
        (
            {"new": {"source": {"kind": "model_token", "model": "d", "token": "z"}}},
            "'new': model d is not merged, so it has no row",
        ),
        (
            {"new": {"source": {"kind": "model_token", "model": "b", "token_id": 4}}},
            "'new': model b has 4 rows, and none of id 4",
        ),
    ],
)
def test_tokens_that_are_nowhere(tokens: dict[str, Any], message: str, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        write_model(tmp_path / name, number, {"t": 0, "u": 1}, 4, "BF16")
    with ExitStack() as stack, pytest.raises(CheckpointError) as caught:
        case = Case(tmp_path, stack, tokenizer={"tokens": tokens})
        raise CheckpointError(*case.plan.problems)
    assert caught.value.args == (str(caught.value),)
    assert f"tokenizer.tokens: {message}" in str(caught.value)


def test_equal_vocabularies_are_read_as_they_stand(tmp_path: Path) -> None:
    """And rows behind the tokens are cut."""
    for number, name in enumerate(NAMES):
        write_model(tmp_path / name, number, {"t": 0, "u": 1}, 3 + number, "BF16")
    with ExitStack() as stack:
        plan = Case(tmp_path, stack, tokenizer_source="union").plan
        assert {job.shape[0] for job in plan.jobs} == {2}
        assert not any(job.computed for job in plan.jobs)


@pytest.mark.parametrize(
    ("heads", "other", "message"),
    [
        ((6, 4, 6), {"u": 0, "t": 1}, "lm_head.weight: has 4 rows in model b, where a token has one of 6"),
        ((6, 4, 6), {"t": 0, "u": 1}, "lm_head.weight: vocabulary sizes differ"),
        ((4, 4, 4), {"u": 0, "t": 1}, ""),
    ],
)  # fmt: skip
def test_heads_of_other_sizes(
    heads: tuple[int, ...], other: dict[str, int], message: str, tmp_path: Path
) -> None:
    """Where only some heads have a row per token, rows do not match; where none has, a note says so."""
    for number, name in enumerate(NAMES):
        vocab = other if number else {"t": 0, "u": 1}
        write_model(tmp_path / name, number, vocab, 6, "BF16", head=heads[number])
    with ExitStack() as stack:
        case = Case(tmp_path, stack, tokenizer_source="union")
    assert any(message in problem for problem in case.plan.problems) == bool(message)
    assert any("as they stand" in note for note in case.alignment.notes) == (not message)


def test_ids_that_no_tokenizer_has(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        vocab = {"t": 0, "u": 10**18 if name == "c" else 1}
        write_model(tmp_path / name, number, vocab, 6, "BF16")
    message = "model c: tokens cannot be aligned: ids up to 10{18} are no tokenizer's"
    with ExitStack() as stack, pytest.raises(CheckpointError, match=message):
        Case(tmp_path, stack, tokenizer_source="c")


def test_a_token_that_is_no_text(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        vocab = {"t": 0, "\ud800" if name == "c" else "u": 1}
        write_model(tmp_path / name, number, vocab, 6, "BF16")
    with ExitStack() as stack, pytest.raises(CheckpointError, match=r"token '\\ud800': half of a"):
        Case(tmp_path, stack, tokenizer_source="union")


@pytest.mark.parametrize("width", [0, WIDTH])
def test_padding_of_nothing_and_of_infinities(width: int, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        write_model(
            tmp_path / name,
            number,
            {"t": 0, "u": 1},
            2,
            "BF16",
            width=width,
            element=lambda model, row, column: -math.inf if row else math.inf,
        )
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = Case(tmp_path, stack, tokenizer={"pad_to_multiple_of": 4}).plan
        job = next(job for job in plan.jobs if job.name == "lm_head.weight")
        assert job.shape == (4, width)
        values = decoded(read(job.inputs[0], job.numel, [1] if width else []), "F32")
    assert all(map(math.isnan, values[2 * width :])) and len(values) == 4 * width
