"""Makes a plan from a config and the models' headers, tensor by tensor. Reads no tensor data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..backends.arrays import BY_NAME, DType, promote
from ..backends.contract import MAX_TARGETS
from ..checkpoint.header import INTEGERS, MERGEABLE, TensorInfo
from ..checkpoint.shards import OutputTensor, Shard, plan_shards
from ..checkpoint.source import Source
from ..config.schema import MergeConfig
from ..errors import CheckpointError, counted, printable
from ..methods.average import AVERAGE
from ..methods.linear import PASSTHROUGH
from ..methods.rule import Average, Copied, TensorSpec
from .aliases import find_aliases
from .alignment import Alignment
from .decoded import Decoded
from .folded import Folded
from .inputs import STORED, Input, Stored
from .job import Job
from .layout import lay_out
from .notes import filter_notes, gradient_notes, model_notes, uneven_models
from .placements import Placement
from .stages import Merged, Stage
from .token_tensors import is_embedding

# The most problems that an error lists.
_PROBLEMS_SHOWN = 20
# The most models that a problem names one by one.
_MODELS_SHOWN = 8


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
        vocab_size: the number of rows of embeddings that are gathered or cropped; None if none is.
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
    alignment: Alignment | None = None,
) -> Plan:
    """Plan a merge, or a chain of merges. Everything that prevents it is listed in the plan's `problems`.

    Args:
        config: the merge.
        sources: the opened models, by the config's names.
        shard_size: the most bytes of tensor data in one output file.
        crop_embeddings: cut embeddings of different vocabulary sizes to the rows that all models have, as the FuseO1
            authors' code does.
        random_seed: seed of random masks.
        alignment: how rows of embeddings are gathered by token; None: they are merged by id.

    Raises:
        ConfigError: a parameter has no value for a tensor, or an invalid one.
    """
    models, stages = dict(sources), dict[str, Stage]()
    vocab_sizes: dict[str, int | None] = {}
    problems: list[str] = []
    notes: list[str] = []
    for name, earlier in config.earlier.items():
        plan = _plan(earlier, models, shard_size, crop_embeddings, None, random_seed)
        problems += [f"merge {name}: {problem}" for problem in plan.problems]
        notes += [f"merge {name}: {note}" for note in plan.notes]
        models[name] = stages[name] = Stage(
            name, plan.jobs, {**plan.config}, models[earlier.config_model]
        )
        vocab_sizes[name] = plan.vocab_size or vocab_sizes.get(earlier.config_model)
    last = _plan(config, models, shard_size, crop_embeddings, alignment, random_seed)
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
    alignment: Alignment | None,
    random_seed: int,
) -> Plan:
    problems: list[str] = []
    parts = config.resolve()
    layout = lay_out(config, parts, sources, problems)
    placements = layout.placements
    if config.merge_method == AVERAGE.name and config.slices is None:
        problems += uneven_models(parts[0].models, sources)
    dtype = None if config.output_dtype is None else BY_NAME[config.output_dtype]
    jobs = []
    cropped: dict[str, int] = {}
    aliases = find_aliases(placements, sources, is_embedding)
    for placement in placements:
        drawn_as = aliases.get(placement.name, placement.name)
        job = _job(
            placement, drawn_as, sources, dtype, crop_embeddings, alignment, random_seed, problems
        )
        if job is not None:
            jobs.append(job)
            if alignment is None and job.shape != job.inputs[0].shape:
                cropped[job.name] = job.shape[0]
    fused = [job for job in jobs if not isinstance(job.rule, Average | Copied)]
    targets = max((len(job.inputs) - 1 for job in fused), default=0)
    if targets > MAX_TARGETS:
        problems.append(f"{targets} targets; at most {MAX_TARGETS} are supported")
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
            *model_notes(config.base, parts, sources, placements, layout.cuts),
            *filter_notes(parts, placements),
            *gradient_notes(parts, placements),
        ),
        config=layout.config,
        decoder_layers=layout.decoder_layers,
        vocab_size=alignment.vocab_size if alignment else min(cropped.values(), default=None),
    )


def _job(
    placement: Placement,
    drawn_as: str,
    sources: Mapping[str, Source],
    dtype: DType | None,
    crop_embeddings: bool,
    alignment: Alignment | None,
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
    shape: tuple[int, ...] | None
    try:
        if (
            alignment is not None
            and not copied
            and alignment.covers(placement.tensors, inputs, part.base)
        ):
            inputs = alignment.gather(tuple(placement.tensors), inputs, part.base)
            shape = (alignment.rows, *inputs[0].shape[1:])
        else:
            shape = _common_shape(name, inputs, crop_embeddings, problems)
    except CheckpointError as error:  # the same for the head as for the embeddings
        problems += [str(error)] if str(error) not in problems else []
        return None
    if shape is None:
        return None
    if copied:
        return Job(name, shape, STORED[stored.pop()], tuple(inputs), Copied())
    spec = TensorSpec.of_shape(drawn_as, shape, part.targets, part.base is not None, random_seed)
    if part.base_alone:
        rule = PASSTHROUGH.rule({"scale": (None,)}, spec)
    else:
        rule = part.method.rule(part.values(name, placement.t, placement.tensors), spec)
    return Job(
        name=name,
        shape=shape,
        dtype=dtype or promote({x.kept_dtype for x in inputs}),
        inputs=tuple(inputs),
        rule=rule,
    )


def _input(source: Source, info: TensorInfo) -> Input:
    if isinstance(source, Stage):
        return Merged(source.name, source.jobs[info.name])
    stored = Stored(source, info)
    if scaled := source.scales.get(info.name):
        return Decoded(stored, scaled)
    fold = source.folds.by_tensor.get(info.name) if source.folds else None
    return stored if fold is None or info.numel == 0 else Folded.of(stored, fold)


def _common_shape(
    name: str, inputs: Sequence[Input], crop_embeddings: bool, problems: list[str]
) -> tuple[int, ...] | None:
    """Return the output's shape; None if the inputs' shapes do not fit, with the reason added to `problems`."""
    shapes = {x.shape for x in inputs}
    if len(shapes) == 1:
        return shapes.pop()
    listed = ", ".join(_shapes_by_model(inputs))
    only_rows_differ = len({s[1:] for s in shapes}) == 1
    if not (only_rows_differ and all(is_embedding(name, shape) for shape in shapes)):
        problems.append(f"tensor {printable(name)}: shapes differ ({listed})")
        return None
    if not crop_embeddings:
        problems.append(
            f"tensor {printable(name)}: vocabulary sizes differ ({listed}); `tokenizer_source: base` gathers rows by"
            " token; --crop-embeddings merges the rows that all models have and drops the others"
        )
        return None
    # Rows are contiguous: the common ones are a prefix of every model's tensor.
    return (min(s[0] for s in shapes), next(iter(shapes))[1])


def _shapes_by_model(inputs: Sequence[Input]) -> Iterator[str]:
    """Yield each model with its shape, or how many have a shape; the rarest shapes first."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for x in inputs:
        by_shape.setdefault(x.shape, []).append(x.model)
    if len(inputs) <= _MODELS_SHOWN:
        yield from (f"{x.model}: {list(x.shape)}" for x in inputs)
        return
    for shape, models in sorted(by_shape.items(), key=lambda item: len(item[1])):
        few = len(models) <= _MODELS_SHOWN
        yield f"{', '.join(models) if few else counted(len(models), 'model')}: {list(shape)}"


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
