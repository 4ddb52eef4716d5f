"""Makes a plan from a config and the models' headers, tensor by tensor. Reads no tensor data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..backends.arrays import BY_NAME, DType, promote
from ..backends.contract import MAX_TARGETS
from ..checkpoint.header import INTEGERS, MERGEABLE, TensorInfo
from ..checkpoint.shards import OutputTensor, Shard, plan_shards
from ..checkpoint.source import Source
from ..config.resolve import Part
from ..config.schema import MergeConfig
from ..errors import CheckpointError, printable
from ..methods.rule import Copied, TensorSpec
from .aliases import find_aliases
from .inputs import STORED, Input, input_of
from .job import Job
from .layer_config import gather_config, mixed_layers
from .notes import filter_notes, gradient_notes, model_notes
from .placements import (
    Placement,
    find_sliced_stack,
    place_slices,
    place_whole_models,
    tensors_by_layer,
)
from .stages import Merged, Stage

# Tensors with one row per token.
_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embed_tokens|tok_embeddings|word_embeddings|wte|embed_in|embed_out|shared|predictions\.decoder"
    r"|lm_head)\.weight"
)
# The most problems that an error lists.
_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Plan:
    """Everything that is known about a merge before any tensor data is read.

    Attributes:
        jobs: the output tensors, in order.
        shards: the output files.
        problems: everything that makes the merge impossible.
        notes: remarks that do not stop it.
        config: the content of config.json, but for dtype and vocabulary; {} if there is none.
        decoder_layers: by layer of a decoder that `slices` cut, its index in the slice's first model; else None.
        vocab_size: the number of rows of cropped embeddings; None if none is cropped.
        stages: the earlier merges of a chain, by name.
    """

    jobs: tuple[Job, ...]
    shards: tuple[Shard, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    decoder_layers: Sequence[int] | None
    vocab_size: int | None
    stages: Mapping[str, Stage] = field(default_factory=dict)

    @property
    def input_bytes(self) -> int:
        return sum(job.input_bytes for job in self.jobs)

    @property
    def output_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    @property
    def dtype_name(self) -> str:
        """The dtype of most merged elements, by torch's name."""
        sizes: dict[str, int] = {}
        for job in self.jobs:
            if isinstance(job.rule, Copied):
                continue
            sizes[job.dtype.name] = sizes.get(job.dtype.name, 0) + job.numel
        return max(sizes, key=lambda name: sizes[name], default="bfloat16")


def make_plan(
    config: MergeConfig,
    sources: Mapping[str, Source],
    *,
    shard_size: int,
    crop_embeddings: bool = False,
    random_seed: int = 0,
) -> Plan:
    """Plan a merge, or a chain of merges. Everything that prevents it is listed in the plan's `problems`.

    Args:
        config: the merge.
        sources: the opened models, by the config's names.
        shard_size: the most bytes of tensor data in one output file.
        crop_embeddings: cut embeddings of different vocabulary sizes to the rows that all models have, as the FuseO1
            authors' code does.
        random_seed: seed of random masks.

    Raises:
        ConfigError: a parameter has no value for a tensor, or an invalid one.
    """
    models, stages = dict(sources), dict[str, Stage]()
    vocab_sizes: dict[str, int | None] = {}
    problems: list[str] = []
    notes: list[str] = []
    for name, earlier in config.earlier.items():
        plan = _plan(earlier, models, shard_size, crop_embeddings, random_seed)
        problems += [f"merge {name}: {problem}" for problem in plan.problems]
        notes += [f"merge {name}: {note}" for note in plan.notes]
        models[name] = stages[name] = Stage(
            name, plan.jobs, {**plan.config}, models[earlier.config_model]
        )
        vocab_sizes[name] = plan.vocab_size or vocab_sizes.get(earlier.config_model)
    last = _plan(config, models, shard_size, crop_embeddings, random_seed)
    return replace(
        last,
        problems=(*problems, *last.problems),
        notes=(*notes, *last.notes),
        vocab_size=last.vocab_size or vocab_sizes.get(config.config_model),
        stages=stages,
    )


def _plan(
    config: MergeConfig,
    sources: Mapping[str, Source],
    shard_size: int,
    crop_embeddings: bool,
    random_seed: int,
) -> Plan:
    problems: list[str] = []
    parts = config.resolve()
    layout = _lay_out(config, parts, sources, problems)
    placements = layout.placements
    targets = max((len(placement.tensors) - 1 for placement in placements), default=0)
    if targets > MAX_TARGETS:
        problems.append(f"{targets} targets; at most {MAX_TARGETS} are supported")
    dtype = None if config.output_dtype is None else BY_NAME[config.output_dtype]
    jobs = []
    cropped: dict[str, int] = {}
    aliases = find_aliases(placements, sources, is_embedding)
    for placement in placements:
        drawn_as = aliases.get(placement.name, placement.name)
        job = _job(placement, drawn_as, sources, dtype, crop_embeddings, random_seed, problems)
        if job is not None:
            jobs.append(job)
            if job.shape != job.inputs[0].shape:
                cropped[job.name] = job.shape[0]
    if not placements and not problems:
        problems.append(f"model {parts[0].models[0]}: holds no tensors")
    if cropped:
        problems += _uneven_embeddings(jobs, cropped)
    shards = plan_shards([OutputTensor(j.name, j.dtype.code, j.shape) for j in jobs], shard_size)
    return Plan(
        jobs=tuple(jobs),
        shards=shards,
        problems=tuple(problems),
        notes=(
            *layout.notes,
            *model_notes(config.base, parts, sources, placements, layout.cut),
            *filter_notes(parts, placements),
            *gradient_notes(parts, placements),
        ),
        config=layout.config,
        decoder_layers=layout.indices if "decoder" in (layout.cut or "").split(".") else None,
        vocab_size=min(cropped.values(), default=None),
    )


@dataclass(frozen=True)
class _Layout:
    """The placements of the output's tensors, and the config.json that follows from them.

    Attributes:
        placements: the output tensors, in order.
        config: see Plan.
        notes: remarks on layers that are merged with others of another kind.
        cut: the container of the layers that `slices` cut; None for whole models.
        indices: by output layer of the cut, its index in the slice's first model.
    """

    placements: list[Placement]
    config: Mapping[str, Any]
    notes: list[str]
    cut: str | None = None
    indices: Sequence[int] = ()


def _lay_out(
    config: MergeConfig, parts: Sequence[Part], sources: Mapping[str, Source], problems: list[str]
) -> _Layout:
    lender = sources[config.config_model]
    if config.slices is None:
        return _Layout(list(place_whole_models(parts[0], sources)), lender.config, [])
    cut = find_sliced_stack(parts, sources, config.slices_of, config.config_model, problems)
    if cut is None:
        return _Layout([], lender.config, [])
    problems += tensors_by_layer(parts, sources, cut)
    origins = [cut.origins(part) for part in parts]
    first = [origin for by_model in origins for origin in by_model[0]]
    return _Layout(
        list(place_slices(parts, sources, cut)),
        gather_config(lender, cut.stack(config.config_model), first, problems),
        [note for i, by_model in enumerate(origins) for note in mixed_layers(i, by_model)],
        cut.container,
        [origin.index for origin in first],
    )


def _job(
    placement: Placement,
    drawn_as: str,
    sources: Mapping[str, Source],
    dtype: DType | None,
    crop_embeddings: bool,
    random_seed: int,
    problems: list[str],
) -> Job | None:
    """Return the job of one output tensor; None if it is impossible, with the reason added to `problems`.

    `drawn_as`: the name that keys its random masks.
    """
    name, part = placement.name, placement.part
    inputs: list[Input] = []
    stored = {t.dtype for m, n in placement.tensors.items() if (t := sources[m].tensors.get(n))}
    copied = len(stored) == 1 and stored <= INTEGERS
    for model, tensor in placement.tensors.items():
        info = sources[model].tensors.get(tensor)
        if info is None:
            problems.append(f"tensor {printable(tensor)}: missing in model {model}")
        elif not (copied or info.dtype in MERGEABLE or tensor in sources[model].scales):
            supported = ", ".join(sorted(MERGEABLE))
            problems.append(
                f"tensor {printable(tensor)}: is {info.dtype} in model {model}; supported: {supported}"
            )
        else:
            inputs.append(_input(sources[model], info))
    if len(inputs) < len(placement.tensors):
        return None
    shape = _common_shape(name, inputs, crop_embeddings, problems)
    if shape is None:
        return None
    if copied:
        return Job(name, shape, STORED[stored.pop()], tuple(inputs), Copied())
    spec = TensorSpec.of_shape(drawn_as, shape, part.targets, part.base is not None, random_seed)
    return Job(
        name=name,
        shape=shape,
        dtype=dtype or promote({x.merged_dtype for x in inputs}),
        inputs=tuple(inputs),
        rule=part.method.rule(part.values(name, placement.t, placement.tensors), spec),
    )


def _input(source: Source, info: TensorInfo) -> Input:
    if isinstance(source, Stage):
        return Merged(source.name, source.jobs[info.name])
    return input_of(source, info)


def _common_shape(
    name: str, inputs: Sequence[Input], crop_embeddings: bool, problems: list[str]
) -> tuple[int, ...] | None:
    """Return the output's shape; None if the inputs' shapes do not fit, with the reason added to `problems`."""
    shapes = {x.shape for x in inputs}
    if len(shapes) == 1:
        return shapes.pop()
    listed = ", ".join(f"{x.model}: {list(x.shape)}" for x in inputs)
    only_rows_differ = len({s[1:] for s in shapes}) == 1
    if not (only_rows_differ and all(is_embedding(name, shape) for shape in shapes)):
        problems.append(f"tensor {printable(name)}: shapes differ ({listed})")
        return None
    if not crop_embeddings:
        problems.append(
            f"tensor {printable(name)}: vocabulary sizes differ ({listed}); --crop-embeddings merges the rows that "
            "all models have and drops the others"
        )
        return None
    # Rows are contiguous: the common ones are a prefix of every model's tensor.
    return (min(s[0] for s in shapes), next(iter(shapes))[1])


def is_embedding(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this name and shape has one row per token."""
    return len(shape) == 2 and _EMBEDDING.fullmatch(name) is not None


def _uneven_embeddings(jobs: list[Job], cropped: Mapping[str, int]) -> Iterator[str]:
    """Yield a problem for every embedding that would keep more rows than the cropped ones: all must have as many."""
    rows = min(cropped.values())
    for job in jobs:
        if is_embedding(job.name, job.shape) and job.shape[0] != rows:
            yield (
                f"tensor {job.name}: has {job.shape[0]} rows, but {' and '.join(cropped)} would be "
                f"cropped to {rows}"
            )


def refuse_problems(plan: Plan) -> None:
    """Raise one CheckpointError that lists the plan's problems, if there are any."""
    if not plan.problems:
        return
    shown = list(plan.problems[:_PROBLEMS_SHOWN])
    if len(plan.problems) > len(shown):
        shown.append(f"... and {len(plan.problems) - len(shown)} more")
    raise CheckpointError("the models do not fit together:", *shown)
