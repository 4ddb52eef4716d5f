"""Models that are headers alone: names, shapes and dtypes, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.config.load import parse_config
from fuseo1_kernels.config.schema import MergeConfig
from fuseo1_kernels.plan.job import Job
from fuseo1_kernels.plan.plan import Plan, make_plan
from support.checkpoint_files import Tensors, raw_file, safetensors_file, write_json

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8, "F64": 8, "F8_E4M3": 1, "BOOL": 1}
#: The models of write_experts.
EXPERTS = ("base", "left", "right")


def tensors(shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> Tensors:
    made: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, shape in shapes.items():
        size = SIZES[dtype]
        for n in shape:
            size *= n
        made[name] = (dtype, shape, bytes(size))
    return made


def layered(layers: int, vocab: int = 10) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, 4)}
    for i in range(layers):
        found[f"model.layers.{i}.self_attn.q_proj.weight"] = (4, 4)
        found[f"model.layers.{i}.mlp.up_proj.weight"] = (8, 4)
    return found | {"model.norm.weight": (4,), "lm_head.weight": (vocab, 4)}


def write_experts(home: Path, count: int) -> Path:
    """Write three models of `count` small tensors with long names; return the config that merges them."""
    header = {
        f"model.layers.{i // 384}.mlp.experts.{i % 384}.gate_proj.weight": {
            "dtype": "BF16",
            "shape": [8, 4],
            "data_offsets": [64 * i, 64 * (i + 1)],
        }
        for i in range(count)
    }
    for number, name in enumerate(EXPERTS):
        raw_file(home / name / "model.safetensors", header, bytes([number]) * 64 * count)
    data = {
        "models": [{"model": str(home / name)} for name in EXPERTS[1:]],
        "base_model": str(home / "base"),
        "merge_method": "sce",
    }
    return write_json(home / "merge.yaml", data)  # which YAML contains


class Models:
    """Models in a directory, and plans of them."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def add(self, name: str, held: Tensors, **config: Any) -> None:
        safetensors_file(self.home / name / "model.safetensors", held)
        write_json(self.home / name / "config.json", config)

    def plan(self, names: str, **keys: Any) -> Plan:
        """The plan of merging the models `names`, the base first."""
        first, *rest = names.split()
        data = {"merge_method": "sce", "base_model": first} | keys
        if not {"slices", "models", "modules"} & keys.keys():
            data["models"] = [{"model": name} for name in rest]
        options = {k: data.pop(k) for k in ("crop_embeddings", "shard_size") if k in data}
        config = parse_config(data)
        return make_plan(config, self.open(config), **{"shard_size": 10**9, **options})

    def open(self, config: MergeConfig) -> dict[str, Source]:
        found = {}
        for name in config.model_names():
            source = open_source(str(self.home / name))
            source.name = name
            found[name] = source
        return found


def only(plan: Plan) -> Job:
    assert not plan.problems
    [job] = plan.jobs
    return job


def inputs(job: Job) -> list[tuple[str, str]]:
    return [(x.model, x.tensor) for x in job.inputs]
