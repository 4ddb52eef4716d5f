"""From a config and the models' headers to what is to be done, tensor by tensor. Pure: reads no tensor data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from .arrays import BY_CODE, BY_NAME, DType, promote
from .backends import MAX_TARGETS
from .checkpoint.header import MERGEABLE, TensorInfo
from .checkpoint.shards import OutputTensor, Shard, plan_shards
from .checkpoint.source import Source
from .config import MergeConfig, OutputSlice
from .errors import ConfigError
from .methods import ByColumn, ByRow, Rule, Target
from .settings import Setting, idle_filters

# Numbered as Python writes numbers: layers.00 is not a second layers.0.
_LAYER = re.compile(
    r"(?P<before>(?:.*\.)?(?:layers|h|blocks)\.)(?P<index>0|[1-9][0-9]{0,8})(?P<after>\..+)"
)
# Rows are tokens.
_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embed_tokens|word_embeddings|wte|embed_in|embed_out|lm_head)\.weight"
)
# Outside the layers, these come before them; the others after. It matters for `slices` alone.
_BEFORE_LAYERS = re.compile(r"embed|wte|wpe")


@dataclass(frozen=True)
class Input:
    """A tensor of one model."""

    source: Source
    info: TensorInfo

    @property
    def dtype(self) -> DType:
        return BY_CODE[self.info.dtype]

    def part(self, start: int, numel: int) -> Input:
        """`numel` elements from flat index `start` on, as a tensor."""
        size = self.dtype.size
        place = self.info.offset + start * size
        return replace(
            self, info=replace(self.info, shape=(numel,), offset=place, nbytes=numel * size)
        )


@dataclass(frozen=True)
class Job:
    """One merged tensor: its inputs, the base (or what a method without one has in its place) first, and its rule."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    inputs: tuple[Input, ...]
    rule: Rule

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def parts(self) -> Iterator[tuple[int, Job]]:
        """What is merged by itself, and the flat index at which it begins: every row, or all of it. Not for columns."""
        assert not isinstance(self.rule, ByColumn)
        if not isinstance(self.rule, ByRow):
            yield 0, self
            return
        for start in range(0, self.numel, max(self.rule.row, 1)):
            inputs = tuple(x.part(start, self.rule.row) for x in self.inputs)
            yield start, replace(self, shape=(self.rule.row,), inputs=inputs, rule=self.rule.rule)

    @property
    def input_bytes(self) -> int:
        """Bytes of all inputs, as far as they are merged."""
        return self.numel * self.element_bytes

    @property
    def output_bytes(self) -> int:
        """Bytes of the merged tensor."""
        return self.numel * self.dtype.size

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of every input."""
        return sum(x.dtype.size for x in self.inputs)


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first byte is read.

    `problems` make the merge impossible, `notes` are worth knowing. `num_layers` is given for a merge of
    slices, `vocab_size` for one that crops embeddings.
    """

    jobs: tuple[Job, ...]
    shards: tuple[Shard, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    num_layers: int | None
    vocab_size: int | None

    @property
    def input_bytes(self) -> int:
        return sum(job.input_bytes for job in self.jobs)

    @property
    def output_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    @property
    def dtype_name(self) -> str:
        """The dtype of most of the output, by torch's name."""
        sizes: dict[str, int] = {}
        for job in self.jobs:
            sizes[job.dtype.name] = sizes.get(job.dtype.name, 0) + job.numel
        return max(sizes, key=lambda name: sizes[name], default="bfloat16")


@dataclass(frozen=True)
class _Placement:
    """An output tensor by name: which tensor of which model goes into it, as `merged_models` orders them."""

    name: str
    t: float
    out_slice: OutputSlice | None
    parts: tuple[tuple[str, str], ...]  # (model, its tensor's name)


def make_plan(
    config: MergeConfig,
    sources: Mapping[str, Source],
    *,
    shard_size: int,
    crop_embeddings: bool = False,
    random_seed: int = 0,
) -> Plan:
    """Plan the merge of `sources` (by the config's names), or say in `problems` all that prevents it.

    `crop_embeddings` cuts embeddings of different vocabulary sizes to the smallest one's rows, as the
    FuseO1 authors' code does. `random_seed` is what random masks are drawn from. ConfigError where
    parameters have no value for a tensor, or make no sense.
    """
    problems: list[str] = []
    if config.slices is None:
        placements = list(_whole_models(config, sources))
        num_layers = None
    else:
        placements = list(_slices(config, sources, problems))
        num_layers = sum(
            s.sources[0].layer_range[1] - s.sources[0].layer_range[0] for s in config.slices
        )
    targets = max((len(placement.parts) - 1 for placement in placements), default=0)
    if targets > MAX_TARGETS:
        problems.append(f"{targets} targets; at most {MAX_TARGETS} are supported")
    jobs = []
    cropped: dict[str, int] = {}
    for placement in placements:
        job = _job(config, sources, placement, crop_embeddings, random_seed, problems)
        if job is not None:
            jobs.append(job)
            if job.shape != job.inputs[0].info.shape:
                cropped[job.name] = job.shape[0]
    if not placements and not problems:
        problems.append(f"model {config.merged_models()[0]}: holds no tensors")
    if cropped:
        problems += _uneven_embeddings(jobs, cropped)
    shards = plan_shards([OutputTensor(j.name, j.dtype.code, j.shape) for j in jobs], shard_size)
    return Plan(
        jobs=tuple(jobs),
        shards=shards,
        problems=tuple(problems),
        notes=(*_notes(config, sources, placements), *_idle_filters(config, placements)),
        num_layers=num_layers,
        vocab_size=min(cropped.values(), default=None),
    )


def _whole_models(config: MergeConfig, sources: Mapping[str, Source]) -> Iterator[_Placement]:
    models = config.merged_models()
    first = sources[models[0]]
    layers = _count_layers(first)
    for name in first.tensors:
        match = _LAYER.fullmatch(name)
        t = _position(int(match["index"]), layers) if match else 0.0
        yield _Placement(name, t, None, tuple((model, name) for model in models))


def _slices(
    config: MergeConfig, sources: Mapping[str, Source], problems: list[str]
) -> Iterator[_Placement]:
    """Layers in the slices' order; what stands before them from the first slice, after from the last."""
    assert config.slices is not None
    first, last = config.slices[0], config.slices[-1]
    yield from _outside(config, sources, first, before=True)
    out_index = 0
    for part in config.slices:
        models = config.merged_models(part)
        ranges = {source.model: source.layer_range for source in part.sources}
        for model, (_, end) in ranges.items():
            if end > _count_layers(sources[model]):
                problems.append(
                    f"model {model}: layer_range ends at {end}, but it has "
                    f"{_count_layers(sources[model])} layers"
                )
        start, end = ranges[models[0]]
        layers = _by_layer(sources[models[0]])
        for offset in range(end - start):
            for before, after in layers.get(start + offset, ()):
                parts = tuple((m, f"{before}{ranges[m][0] + offset}{after}") for m in models)
                name = f"{before}{out_index}{after}"
                yield _Placement(name, _position(offset, end - start), part, parts)
            out_index += 1
    yield from _outside(config, sources, last, before=False)


def _outside(
    config: MergeConfig, sources: Mapping[str, Source], part: OutputSlice, before: bool
) -> Iterator[_Placement]:
    models = config.merged_models(part)
    for name in sources[models[0]].tensors:
        if not _LAYER.fullmatch(name) and bool(_BEFORE_LAYERS.search(name)) == before:
            yield _Placement(name, 0.0, part, tuple((model, name) for model in models))


def _by_layer(source: Source) -> dict[int, list[tuple[str, str]]]:
    layers: dict[int, list[tuple[str, str]]] = {}
    for name in source.tensors:
        if match := _LAYER.fullmatch(name):
            layers.setdefault(int(match["index"]), []).append((match["before"], match["after"]))
    return layers


def _count_layers(source: Source) -> int:
    return source.num_layers or max(_by_layer(source), default=-1) + 1


def _position(index: int, layers: int) -> float:
    """Where a layer stands in a gradient: 0 the first, 1 the last (mergekit's rule)."""
    return min(index / (layers - 1), 1.0) if layers > 1 else 1.0


def _job(
    config: MergeConfig,
    sources: Mapping[str, Source],
    placement: _Placement,
    crop_embeddings: bool,
    random_seed: int,
    problems: list[str],
) -> Job | None:
    inputs = []
    for model, name in placement.parts:
        info = sources[model].tensors.get(name)
        if info is None:
            problems.append(f"tensor {_shown(name)}: missing in model {model}")
        elif info.dtype not in MERGEABLE:
            problems.append(
                f"tensor {_shown(name)}: is {info.dtype} in model {model}; supported: {', '.join(sorted(MERGEABLE))}"
            )
        else:
            inputs.append(Input(sources[model], info))
    if len(inputs) < len(placement.parts):
        return None
    shape = _common_shape(placement.name, inputs, crop_embeddings, problems)
    if shape is None:
        return None
    wanted = config.output_dtype
    base = config.base_of(placement.out_slice)
    models = [model for model, _ in placement.parts if model != base]
    target = Target.of_shape(placement.name, shape, models, base is not None, random_seed)
    return Job(
        name=placement.name,
        shape=shape,
        dtype=BY_NAME[wanted] if wanted else promote({x.dtype for x in inputs}),
        inputs=tuple(inputs),
        rule=config.method.rule(_values(config, placement, base), target),
    )


def _values(config: MergeConfig, placement: _Placement, base: str | None) -> dict[str, Any]:
    """The method's parameters for a tensor. As in mergekit, a model's own filters look at its own tensor's name."""
    whole: list[tuple[str | None, str]] = [(None, placement.name)]
    models = [(model, name) for model, name in placement.parts if model != base]
    values: dict[str, Any] = {}
    for spec in config.method.parameters.values():
        found = []
        for model, tensor in models if spec.per_model else whole:
            value = config.parameter(
                spec.name,
                spec.default,
                tensor=tensor,
                t=placement.t,
                out_slice=placement.out_slice,
                model=model,
            )
            if value is None and spec.required:
                raise ConfigError(
                    f"tensor {_shown(tensor)}: no filter matches it, but {config.lacks(spec, model)}"
                )
            found.append(value)
        values[spec.name] = tuple(found) if spec.per_model else found[0]
    return values


def _common_shape(
    name: str, inputs: list[Input], crop_embeddings: bool, problems: list[str]
) -> tuple[int, ...] | None:
    shapes = {x.info.shape for x in inputs}
    if len(shapes) == 1:
        return shapes.pop()
    listed = ", ".join(f"{x.source.name}: {list(x.info.shape)}" for x in inputs)
    rows_alone = len({s[1:] for s in shapes}) == 1 and all(len(s) == 2 for s in shapes)
    if not (rows_alone and _EMBEDDING.fullmatch(name)):
        problems.append(f"tensor {_shown(name)}: shapes differ ({listed})")
        return None
    if not crop_embeddings:
        problems.append(
            f"tensor {_shown(name)}: vocabulary sizes differ ({listed}); --crop-embeddings merges the rows that "
            "all models have and drops the others"
        )
        return None
    # Rows are contiguous: the common ones are a prefix of every model's tensor.
    return (min(s[0] for s in shapes), next(iter(shapes))[1])


def _uneven_embeddings(jobs: list[Job], cropped: Mapping[str, int]) -> Iterator[str]:
    """Cropping must leave one vocabulary size: the input and the output embedding belong together."""
    rows = min(cropped.values())
    for job in jobs:
        if len(job.shape) == 2 and _EMBEDDING.fullmatch(job.name) and job.shape[0] != rows:
            yield (
                f"tensor {job.name}: has {job.shape[0]} rows, but {' and '.join(cropped)} would be "
                f"cropped to {rows}"
            )


def _notes(
    config: MergeConfig, sources: Mapping[str, Source], placements: list[_Placement]
) -> Iterator[str]:
    used = {part for placement in placements for part in placement.parts}
    first_name, *others = dict.fromkeys(
        name for part in config.parts for name in config.merged_models(part)
    )
    first = sources[first_name]
    whose = "the base" if first_name == config.base_of() else f"model {first_name}"
    for model in others:
        extra = sorted({*sources[model].tensors} - {*first.tensors})
        if (
            config.slices is not None
        ):  # they say which layers are taken, and the last one what follows
            extra = [n for n in extra if (model, n) not in used and not _LAYER.fullmatch(n)]
        if extra:
            shown = ", ".join(map(_shown, extra[:5])) + (", ..." if len(extra) > 5 else "")
            lacking = "1 tensor that" if len(extra) == 1 else f"{len(extra)} tensors that"
            yield f"model {model}: {lacking} {whose} lacks left out: {shown}"
        ours, theirs = (s.config.get("architectures") for s in (first, sources[model]))
        if ours and theirs and ours != theirs:
            yield f"model {model}: architecture {theirs!r}, {whose}'s is {ours!r}"


def _idle_filters(config: MergeConfig, placements: list[_Placement]) -> Iterator[str]:
    """A filter that matches nothing is most likely misspelt."""
    for where, parameters, among in _filtered(config, placements):
        for name, setting in parameters.items():
            for pattern in idle_filters(setting, among):
                yield f"{where}{name}: filter {pattern!r} matches no tensor"


def _filtered(
    config: MergeConfig, placements: list[_Placement]
) -> Iterator[tuple[str, dict[str, Setting], list[str]]]:
    """Yield parameters with what names them, and the tensors that their filters look at."""
    yield (
        "",
        config.parameters,
        [name for p in placements for name in (p.name, *dict(p.parts).values())],
    )
    for index, source in enumerate(config.models or ()):
        yield f"models[{index}].parameters.", source.parameters, [p.name for p in placements]
    for index, part in enumerate(config.slices or ()):
        among = [p for p in placements if p.out_slice is part]
        names = [name for p in among for name in (p.name, *dict(p.parts).values())]
        yield f"slices[{index}].parameters.", part.parameters, names
        for place, slice_source in enumerate(part.sources):
            own = [dict(p.parts)[slice_source.model] for p in among]
            where = f"slices[{index}].sources[{place}].parameters."
            yield where, slice_source.parameters, own


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _shown(name: str) -> str:
    """A tensor's name as a message shows it: as it is, unless it would break the line or worse."""
    return name if name.isprintable() else repr(name)
