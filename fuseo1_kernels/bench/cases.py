"""Cases: which merges are timed, and how many bytes each must move."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..backends.arrays import BY_NAME
from ..backends.contract import MAX_TARGETS
from ..backends.registry import GPU_BACKENDS, load_backend, load_gpu_backend
from ..errors import ConfigError, did_you_mean
from ..methods import METHODS
from ..methods.method import Method
from ..methods.parameters import resolve_method, resolve_parameters
from ..methods.rule import Rule, TensorSpec
from ..system import resolve_threads
from .data import Data

#: What parameters are measured with, unless they are set: where a method has to do all that it can. Others have their
#: method's default.
TYPICAL: dict[str, Any] = {"weight": 1.0, "density": 0.2, "t": 0.3}

_TYPICAL_TARGETS = 3


@dataclass(frozen=True)
class Case:
    """A merge of one tensor.

    Attributes:
        parameters: the method's, all that have a value.
        shape, dtype: each input's and the output's; the dtype by torch's name.
        targets: models that are merged beside the base, or in all where the method ignores the base.
        backend: its name, not "auto".
        data: what the tensors hold, as data.Data.parse has it.
    """

    method: str
    parameters: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str = "bfloat16"
    targets: int = 3
    backend: str = "cpu"
    threads: int = field(default_factory=lambda: resolve_threads(None))
    data: str = "gauss:0.001"

    @property
    def has_base(self) -> bool:
        return METHODS[self.method].base != "ignored"

    @property
    def tensors(self) -> int:
        """How many are read."""
        return self.targets + self.has_base

    @property
    def device(self) -> str:
        """The tensors' device: "cpu" or "cuda"."""
        interpreted = self.backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        return "cuda" if self.backend in GPU_BACKENDS and not interpreted else "cpu"

    @property
    def rule(self) -> Rule:
        """The method's, as merge_tensors applies it. Raises MergeError."""
        ids = range(self.has_base, self.tensors)
        values = resolve_parameters(self.method, self.parameters, ids)
        spec = TensorSpec.of_shape("", self.shape, [*map(str, ids)], self.has_base, 0)
        return METHODS[self.method].rule(values, spec)

    @property
    def tensor_bytes(self) -> int:
        return math.prod(self.shape) * BY_NAME[self.dtype].size

    @property
    def read_bytes(self) -> int:
        """Of all inputs, read once."""
        return self.tensors * self.tensor_bytes

    @property
    def merge_bytes(self) -> int:
        """The least bytes that a merge moves: inputs once, or twice where the method surveys; the output once."""
        surveys = self.rule.request([]) is not None
        return (1 + surveys) * self.read_bytes + self.tensor_bytes

    def make_tensors(self) -> list[torch.Tensor]:
        """Return the inputs, base first; the same numbers every time."""
        dtype = getattr(torch, self.dtype)
        return Data.parse(self.data).make(self.shape, self.tensors, dtype, self.device)


def make_cases(
    methods: Sequence[str],
    settings: Sequence[tuple[str, str]],
    *,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    targets: Sequence[int],
    backends: Sequence[str],
    threads: Sequence[int],
    data: Sequence[str],
) -> list[Case]:
    """Return every combination, which can be run here but for want of memory.

    Args:
        settings: parameters and their values as text; a comma separates those of the models. One that a method has
            not is for another of `methods`; of one that is given several times every value is measured.
        targets: none: 3, or the nearest number that the method merges.
        backends: names; "auto" is the fastest that runs on the CPU.

    Raises:
        MergeError: there is no such method, parameter or backend, or the method does not take it.
    """
    records = [resolve_method(name) for name in dict.fromkeys(methods)]
    known = {key for record in records for key in record.parameters}
    for key, _ in settings:
        if key not in known:
            raise ConfigError(f"--set {key}: no such parameter{did_you_mean(key, sorted(known))}")
    running = [_running(name) for name in backends]
    cases: list[Case] = []
    for record in records:
        usual = max(_TYPICAL_TARGETS, record.least)
        counts = targets or [usual if record.most is None else min(usual, record.most)]
        values = list(_values(record.name, settings))
        for given, count in itertools.product(values, counts):
            parameters = _parameters(record, given, count)
            for axes in itertools.product(shapes, dtypes, [count], running, threads, data):
                case = Case(record.name, parameters, *axes)
                _ = case.rule  # which refuses what does not go together
                if case not in cases:
                    cases.append(case)
    return cases


def _parameters(method: Method, given: Mapping[str, Any], targets: int) -> dict[str, Any]:
    """All parameters that have a value, for so many models. Raises ConfigError."""
    if not method.takes(targets):
        raise ConfigError(f"{method.name} merges {method.counts()}, not {targets}")
    if targets > MAX_TARGETS:
        raise ConfigError(f"at most {MAX_TARGETS} targets are supported, not {targets}")
    values = resolve_parameters(method.name, given, range(targets))
    return {key: _plain(value) for key, value in values.items() if _plain(value) is not None}


def _values(method: str, settings: Sequence[tuple[str, str]]) -> Iterator[Mapping[str, Any]]:
    """The parameters that a method is measured with: each combination of those that are set."""
    parameters = METHODS[method].parameters
    chosen: dict[str, list[Any]] = {
        key: [value]
        for key, value in TYPICAL.items()
        if key in parameters and not parameters[key].idle
    }
    for key in dict.fromkeys(key for key, _ in settings if key in parameters):
        chosen[key] = [_value(text) for name, text in settings if name == key]
    for values in itertools.product(*chosen.values()):
        yield dict(zip(chosen, values, strict=True))


def _value(text: str) -> Any:
    """The value in the form that the parameter checks: text, a bool, or a list of either."""
    if "," in text:
        return [_value(part) for part in text.split(",")]
    return {"true": True, "false": False}.get(text.lower(), text)


def _plain(value: Any) -> Any:
    """One value for all models where they have the same, else a list."""
    if isinstance(value, tuple):
        return value[0] if len(set(value)) == 1 else list(value)
    return value


def _running(backend: str) -> str:
    """The name of the backend, which runs here. Raises BackendError."""
    load = load_gpu_backend if backend in GPU_BACKENDS else load_backend
    return load(backend).name
