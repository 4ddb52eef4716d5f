"""Opens a LoRA adapter as PEFT saves it: adapter_config.json, and tensors named after the modules that they adapt.

Only what PEFT's merge_and_unload adds to weights is read; every other kind of adapter is refused by its name.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, first_names, printable
from .header import MERGEABLE, HeaderRoom, TensorInfo
from .hub import resolve
from .identity import FileIdentity
from .json_file import read_object
from .layout import ADAPTER, ADAPTER_FORMATS, check_links, find_weights, homes_of
from .loader import read_weights

_MERGE = "merge it into its model with PEFT (merge_and_unload, save_pretrained) and give that"
#: Keys of adapter_config.json that change the weights in a way that is not folded, and what they ask for.
_VARIANTS = {
    "layer_replication": "repeats layers",
    "trainable_token_indices": "trains single rows of embeddings",
    "target_parameters": "adapts parameters that are no module's weight (experts)",
    "alora_invocation_tokens": "is an activated LoRA, which cannot be merged",
    "use_qalora": "is a QA-LoRA of a quantised model",
    "use_bdlora": "is block-diagonal",
    "arrow_config": "routes between adapters",
    "kasa_config": "is KaSA",
    "monteclora_config": "is MonteCLoRA",
    "velora_config": "is VeLoRA",
    "megatron_config": "is for Megatron's parallel layers",
    "ensure_weight_tying": "adapts tied layers together",
}
#: Ways to initialize that leave the model's weights as they are. The others change them when PEFT loads the adapter.
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")
#: Keys that change nothing in the merged weights, or that say which tensors the file has.
_HARMLESS = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
        *("revision", "runtime_config", "task_type", "unsloth_fixed"),
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
        *("bias", "lora_bias", "lora_dropout", "fan_in_fan_out", "enable_lora", "merge_weights"),
        *("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform"),
        *("modules_to_save", "init_lora_weights", "loftq_config", "eva_config", "corda_config"),
        *("lora_ga_config", "megatron_core", "qalora_group_size"),
    }
)
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?"
    r"(?:\.(?P<leaf>weight|bias))?"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>[^.]+)")
#: A pattern that a regular expression's engine may take for ever to match: repeated groups, or many repetitions.
_SLOW = re.compile(r"\)[*+{?]|(?:[*+{].*){4}", re.DOTALL)
_MOST_PATTERNS = 10_000
#: The largest number of fp64; JSON's may be larger.
_MOST = sys.float_info.max


@dataclass(frozen=True)
class Adapted:
    """The tensors of one adapted module: B A, or (A^T B^T) for an embedding; DoRA's magnitudes; the bias of B."""

    a: TensorInfo
    b: TensorInfo
    scale: float
    embedding: bool
    magnitude: TensorInfo | None
    bias: TensorInfo | None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. `modules` are adapted, `saved` tensors take the place of the model's, by the model's names.

    `in_place`: the saved tensors that PEFT puts into the model's own modules; the others are of `modules_to_save`.
    """

    name: str
    path: Path
    files: Mapping[Path, FileIdentity]
    modules: Mapping[str, Adapted]
    saved: Mapping[str, TensorInfo]
    in_place: frozenset[str]
    fan_in_fan_out: bool


def open_adapter(
    adapter: str,
    *,
    download_progress: bool = True,
    download: bool = True,
    allow_links: Sequence[str | os.PathLike[str]] = (),
    room: HeaderRoom | None = None,
) -> Adapter:
    """Open a directory, else a hub id, as `open_source` does; no tensor data is read. Raises CheckpointError."""
    path = Path(adapter)
    try:
        path = resolve(adapter, download_progress, download=download, adapter=True)
        homes = homes_of(path, allow_links)
        if not (path / ADAPTER).exists():
            raise CheckpointError(f"{path}: is no adapter: there is no {ADAPTER}")
        check_links(path, [ADAPTER], homes)
        weights = find_weights(path, ADAPTER_FORMATS, homes)
        if weights is None:
            names = " or ".join(single for single, _ in ADAPTER_FORMATS)
            raise CheckpointError(f"{path}: holds no adapter's weights: looked for {names}")
        config = _Config(path / ADAPTER, read_object(path / ADAPTER, unique_keys=True))
        source = read_weights(adapter, path, weights, {}, homes, room)
        return _group(adapter, path, config, source.tensors, source.files)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


class _Config:
    """Decides the scales by adapter_config.json. Raises CheckpointError for what is not folded."""

    def __init__(self, file: Path, stated: Mapping[str, Any]) -> None:
        self._file, self._stated = file, stated
        kind = stated.get("peft_type")
        if kind != "LORA":
            what = (
                f"an adapter of the kind {kind!r:.80}" if kind else "an adapter without peft_type"
            )
            raise self._refused(f"is {what}; only LoRA is added to a model (with rsLoRA and DoRA)")
        for key, does in _VARIANTS.items():
            if stated.get(key):
                raise self._refused(f"{key}: this adapter {does}, which is not supported")
        if (initial := stated.get("init_lora_weights")) not in _INITIAL:
            raise self._refused(
                f"init_lora_weights is {initial!r:.80}, by which PEFT changes the model's weights before it adds this"
                " adapter; not supported"
            )
        if unknown := [k for k in stated if k not in _HARMLESS | _VARIANTS.keys() and stated[k]]:
            raise self._refused(
                f"{first_names(unknown)}: not known, so it may change the weights; if it does not, set it to null"
            )
        self.rank = self._number("r", stated.get("r", 8), int)
        self.alpha = self._number("lora_alpha", stated.get("lora_alpha", 8))
        self.rslora = self._flag("use_rslora")
        self.dora = self._flag("use_dora")
        self.fan_in_fan_out = self._flag("fan_in_fan_out")
        self.lora_bias = self._flag("lora_bias")
        self._ranks = self._pattern("rank_pattern", int)
        self._alphas = self._pattern("alpha_pattern")
        self.to_save = self._names("modules_to_save")

    def rank_of(self, module: str) -> int:
        return int(_first_match(self._ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank, alpha = self.rank_of(module), _first_match(self._alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _refused(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._file}: {problem}: {_MERGE}")

    def _flag(self, key: str) -> bool:
        value = self._stated.get(key)
        if value not in (None, True, False):
            raise CheckpointError(f"{self._file}: {key} must be true or false, not {value!r:.80}")
        return bool(value)

    def _number(self, key: str, value: Any, kind: type = float) -> float:
        numbers = int if kind is int else (int, float)
        good = isinstance(value, numbers) and not isinstance(value, bool) and abs(value) <= _MOST
        if not good or (kind is int and value < 1):
            what = "a whole number of at least 1" if kind is int else "a number"
            if isinstance(value, int) and abs(value) > _MOST:
                what = "a number that fp64 holds"
            raise CheckpointError(f"{self._file}: {key} must be {what}, not {value!r:.80}")
        return float(value)

    def _pattern(self, key: str, kind: type = float) -> dict[re.Pattern[str], float]:
        value = self._stated.get(key) or {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{self._file}: {key} must map modules to numbers")
        if len(value) > _MOST_PATTERNS:
            raise self._refused(f"{key}: has more than {_MOST_PATTERNS} patterns")
        patterns = {}
        for text, number in value.items():
            where = f"{key}.{text!r:.80}"
            if _SLOW.search(text):
                raise self._refused(f"{where}: is too intricate a regular expression")
            try:
                pattern = re.compile(rf"(.*\.)?({text})$")
            except (re.error, RecursionError, OverflowError) as error:
                raise CheckpointError(
                    f"{self._file}: {where}: no regular expression ({error})"
                ) from None
            patterns[pattern] = self._number(where, number, kind)
        return patterns

    def _names(self, key: str) -> tuple[str, ...]:
        value = self._stated.get(key) or ()
        if not isinstance(value, (list, tuple)) or not all(isinstance(x, str) for x in value):
            raise CheckpointError(f"{self._file}: {key} must be a list of names")
        return tuple(value)


def _first_match(patterns: Mapping[re.Pattern[str], float], module: str, otherwise: float) -> float:
    return next((number for p, number in patterns.items() if p.match(module)), otherwise)


def _group(
    name: str,
    path: Path,
    config: _Config,
    tensors: Mapping[str, TensorInfo],
    files: Mapping[Path, FileIdentity],
) -> Adapter:
    """Return the adapter's tensors by module. Raises CheckpointError for any that is not understood."""
    parts: dict[str, dict[str, TensorInfo]] = {}  # by module and by what they are
    saved: dict[str, TensorInfo] = {}
    in_place: set[str] = set()
    adapters: set[str] = set()

    def refused(info: TensorInfo, problem: str) -> CheckpointError:
        return CheckpointError(f"{info.file}: tensor {printable(info.name)}: {problem}")

    for full, info in tensors.items():
        if info.dtype not in MERGEABLE:
            supported = ", ".join(sorted(MERGEABLE))
            raise refused(info, f"is {info.dtype}; supported: {supported}")
        key = full.removeprefix(_PREFIX)
        if key == full:
            raise refused(info, f"PEFT's names begin with {_PREFIX!r}; {_MERGE}")
        if match := _PART.fullmatch(key):
            kind = match["part"] + (".bias" if match["leaf"] == "bias" else "")
            of = parts.setdefault(match["module"], {})
            if kind in of:
                raise refused(info, f"the file has another {kind} of this module")
            of[kind] = info
        elif re.search(r"(?:^|\.)(?:lora_\w+|token_adapter)(?:\.|$)", key):
            raise refused(info, f"is part of a kind of adapter that is not supported; {_MERGE}")
        else:
            match = _SAVED.fullmatch(key)
            key = (
                f"{match['module']}.{match['leaf']}" if match else key.replace(".base_layer.", ".")
            )
            if key in saved:
                raise refused(info, "the file has another tensor for this one of the model")
            saved[key] = info
            module = key.rpartition(".")[0]
            if not match and not any(module.endswith(x) for x in config.to_save):
                in_place.add(key)
        if match and match["adapter"]:
            adapters.add(match["adapter"])
    if len(adapters) > 1:
        raise CheckpointError(
            f"{path}: holds tensors of several adapters ({first_names(sorted(adapters))}); save one alone"
        )
    modules = {module: _adapted(module, of, config, refused) for module, of in parts.items()}
    if not modules and not saved:
        raise CheckpointError(f"{path}: holds no tensors")
    return Adapter(name, path, files, modules, saved, frozenset(in_place), config.fan_in_fan_out)


def _adapted(
    module: str,
    parts: dict[str, TensorInfo],
    config: _Config,
    refused: Callable[[TensorInfo, str], CheckpointError],
) -> Adapted:
    """Return the tensors of one module, taken out of `parts`. Raises CheckpointError unless they fit the config."""
    any_of = next(iter(parts.values()))
    embedding = "lora_embedding_A" in parts
    prefix = "lora_embedding_" if embedding else "lora_"
    a, b = parts.pop(f"{prefix}A", None), parts.pop(f"{prefix}B", None)
    magnitude = parts.pop("lora_magnitude_vector", None)
    bias = parts.pop("lora_B.bias", None)
    if a is None or b is None:
        raise refused(any_of, f"the file has no {prefix}A or no {prefix}B of module {module}")
    if parts:
        raise refused(next(iter(parts.values())), "belongs to no adapted weight")
    rank = config.rank_of(module)
    for info, dimension in ((a, 0), (b, 1)):
        if len(info.shape) < 2 or info.shape[dimension] != rank:
            raise refused(
                info,
                f"has the shape {list(info.shape)}, but {ADAPTER} gives its module the rank {rank}",
            )
    if (magnitude is not None) != config.dora:
        has = "has" if magnitude else "lacks"
        raise refused(magnitude or a, f"{has} DoRA's magnitudes, but use_dora is {config.dora}")
    if (bias is not None) != config.lora_bias and not embedding:
        has = "has" if bias else "lacks"
        raise refused(bias or b, f"{has} a bias, but lora_bias is {config.lora_bias}")
    return Adapted(a, b, config.scale_of(module), embedding, magnitude, bias)
