"""From a config and the models' headers to what is to be done, tensor by tensor. Pure: reads no tensor data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..backends.arrays import BY_NAME, DType, promote
from ..backends.contract import MAX_TARGETS
from ..checkpoint.header import MERGEABLE
from ..checkpoint.shards import OutputTensor, Shard, plan_shards
from ..checkpoint.source import Source
from ..config.resolve import count_layers
from ..config.schema import MergeConfig
from ..errors import CheckpointError, printable
from ..methods.rule import TensorSpec
from .job import Input, Job
from .notes import filter_notes, model_notes
from .placements import Placement, place_tensors

# Rows are tokens.
_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embed_tokens|word_embeddings|wte|embed_in|embed_out|lm_head)\.weight"
)


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
    parts = config.resolve()
    placements = list(place_tensors(parts, sources, problems))
    targets = max((len(placement.tensors) - 1 for placement in placements), default=0)
    if targets > MAX_TARGETS:
        problems.append(f"{targets} targets; at most {MAX_TARGETS} are supported")
    wanted = None if config.output_dtype is None else BY_NAME[config.output_dtype]
    jobs = []
    cropped: dict[str, int] = {}
    for placement in placements:
        job = _job(placement, sources, wanted, crop_embeddings, random_seed, problems)
        if job is not None:
            jobs.append(job)
            if job.shape != job.inputs[0].info.shape:
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
            *model_notes(config.base, parts, sources, placements),
            *filter_notes(parts, placements),
        ),
        num_layers=count_layers(parts),
        vocab_size=min(cropped.values(), default=None),
    )


def _job(
    placement: Placement,
    sources: Mapping[str, Source],
    wanted: DType | None,
    crop_embeddings: bool,
    random_seed: int,
    problems: list[str],
) -> Job | None:
    """The job of one output tensor; None if something in `problems` prevents it."""
    name, part = placement.name, placement.part
    inputs = []
    for model, tensor in placement.tensors.items():
        info = sources[model].tensors.get(tensor)
        if info is None:
            problems.append(f"tensor {printable(tensor)}: missing in model {model}")
        elif info.dtype not in MERGEABLE:
            supported = ", ".join(sorted(MERGEABLE))
            problems.append(
                f"tensor {printable(tensor)}: is {info.dtype} in model {model}; supported: {supported}"
            )
        else:
            inputs.append(Input(sources[model], info))
    if len(inputs) < len(placement.tensors):
        return None
    shape = _common_shape(name, inputs, crop_embeddings, problems)
    if shape is None:
        return None
    spec = TensorSpec.of_shape(name, shape, part.targets, part.base is not None, random_seed)
    return Job(
        name=name,
        shape=shape,
        dtype=wanted or promote({x.dtype for x in inputs}),
        inputs=tuple(inputs),
        rule=part.method.rule(part.values(name, placement.t, placement.tensors), spec),
    )


def _common_shape(
    name: str, inputs: list[Input], crop_embeddings: bool, problems: list[str]
) -> tuple[int, ...] | None:
    shapes = {x.info.shape for x in inputs}
    if len(shapes) == 1:
        return shapes.pop()
    listed = ", ".join(f"{x.source.name}: {list(x.info.shape)}" for x in inputs)
    rows_alone = len({s[1:] for s in shapes}) == 1 and all(len(s) == 2 for s in shapes)
    if not (rows_alone and _EMBEDDING.fullmatch(name)):
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


def _uneven_embeddings(jobs: list[Job], cropped: Mapping[str, int]) -> Iterator[str]:
    """Cropping must leave one vocabulary size: the input and the output embedding belong together."""
    rows = min(cropped.values())
    for job in jobs:
        if len(job.shape) == 2 and _EMBEDDING.fullmatch(job.name) and job.shape[0] != rows:
            yield (
                f"tensor {job.name}: has {job.shape[0]} rows, but {' and '.join(cropped)} would be "
                f"cropped to {rows}"
            )


_PROBLEMS_SHOWN = 20


def refuse_problems(plan: Plan) -> None:
    """Raise one error that lists what makes the merge impossible, if anything does."""
    if not plan.problems:
        return
    shown = list(plan.problems[:_PROBLEMS_SHOWN])
    if len(plan.problems) > len(shown):
        shown.append(f"... and {len(plan.problems) - len(shown)} more")
    raise CheckpointError("the models do not fit together:\n  " + "\n  ".join(shown))
