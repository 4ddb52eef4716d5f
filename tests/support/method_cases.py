"""Merges by every method, and what the ops make of each of their tensors in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SurveyResult
from fuseo1_kernels.in_memory.ops import as_array, as_arrays
from fuseo1_kernels.methods import METHODS
from fuseo1_kernels.methods.rule import Average, ByColumn, ByRow, TensorSpec
from support.tensors import BF16, FP16, FP32

if TYPE_CHECKING:
    from support.models import Family, State

EMBED = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Case:
    """A merge of the family: `own` parameters have a value for each model, `shared` ones one for all."""

    method: str
    models: int
    base: bool = True
    own: dict[str, tuple[float, ...]] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """All parameters of every tensor."""
        found: dict[str, Any] = {}
        for name, spec in METHODS[self.method].parameters.items():
            value = self.shared.get(name, spec.default)
            found[name] = self.own.get(name, (value,) * self.models) if spec.per_model else value
        return found

    def states(self, family: Family) -> list[State]:
        """Return those of the models that are merged; the base's first, if there is one."""
        return family.states[not self.base :][: self.base + self.models]

    @property
    def by_column(self) -> bool:
        """Whether its matrices are merged by columns."""
        return bool(self.shared.get("nuslerp_row_wise"))

    @property
    def on_cpu(self) -> bool:
        """Whether a merge on GPUs leaves it to the CPU."""
        return self.by_column or self.method == "average"

    def configure(self, family: Family) -> None:
        listed = []
        for i in range(self.models):
            own = {name: values[i] for name, values in self.own.items()}
            listed.append({"model": str(family.target(i + 1)), "parameters": own})
        base = str(family.base) if self.base else ...
        family.configure(
            merge_method=self.method, models=listed, base_model=base, parameters=self.shared
        )

    def expected(self, family: Family, seed: int = 0) -> State:
        """Every tensor by survey and fuse of the reference backend, whole; families must not change."""
        key = (family.home, repr(self), seed)
        if key not in _expected:
            _expected[key] = self._by_reference(family, seed)
        return _expected[key]

    def _by_reference(self, family: Family, seed: int) -> State:
        states = self.states(family)
        names = [str(family.target(i + 1)) for i in range(self.models)]
        found = {}
        for name in states[0]:
            tensors = [state[name].contiguous() for state in states]
            target = TensorSpec.of_shape(name, tensors[0].shape, names, self.base, seed)
            rule = METHODS[self.method].rule(self.values, target)
            found[name] = by_ops(rule, tensors)
        return found


_expected: dict[tuple[Path, str, int], State] = {}


def by_ops(rule: Any, tensors: list[torch.Tensor]) -> torch.Tensor:
    if isinstance(rule, ByColumn):
        columns = zip(*(t.reshape(rule.rows, -1).t().contiguous() for t in tensors), strict=True)
        merged = [by_ops(rule.rule, list(column)) for column in columns]
        return torch.stack(merged, dim=1).view(tensors[0].shape)
    if isinstance(rule, ByRow):
        rows = zip(*(t.reshape(-1, rule.row) for t in tensors), strict=True)
        merged = [by_ops(rule.rule, list(row)) for row in rows]
        if not merged:
            return by_ops(rule.rule, tensors)
        return torch.cat(merged).view(tensors[0].shape)

    reference, inputs = load_backend("reference"), as_arrays(tensors, least=1)
    learned: list[SurveyResult] = []
    while (request := rule.request(learned)) is not None:
        learned.append(reference.survey(inputs, request, 1))
    dtypes = {t.dtype for t in tensors}
    out = torch.empty(tensors[0].shape, dtype=dtypes.pop() if len(dtypes) == 1 else FP32)
    if isinstance(rule, Average):
        [(_, params)] = rule.steps()
        reference.average(inputs, params, Buffer(0), as_array(out), 1)
    else:
        reference.fuse(inputs, rule.params(learned), as_array(out), 0, 1)
    return out


#: Matrices by columns, vectors whole.
BY_COLUMN = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
TWO: dict[str, tuple[float, ...]] = {"weight": (0.3, 0.5)}
THREE: dict[str, tuple[float, ...]] = {"weight": (0.3, 0.5, 0.1)}
DENSITY = {"weight": 0.6, "density": 0.4}

CASES = {
    "sce": Case("sce", 3, shared={"select_topk": 0.3, "variant": "mergekit"}),
    "task_arithmetic": Case("task_arithmetic", 2, own={"weight": (0.7, -0.3)}),
    "task_arithmetic, normalized": Case(
        "task_arithmetic", 2, own={"weight": (0.7, 0.2)}, shared={"normalize": True, "lambda": 0.8}
    ),
    "ties": Case("ties", 3, own={"weight": (1, 0.5, 0.7), "density": (0.3, 0.5, 1.0)}),
    "ties, rescaled": Case("ties", 2, shared={"weight": 1, "density": 0.2, "rescale": True}),
    "dare_ties": Case("dare_ties", 3, own={"density": (0.3, 0.0, 1.0)}, shared={"weight": 0.6}),
    "dare_linear": Case("dare_linear", 2, shared=DENSITY),
    "dare_linear, as it is": Case("dare_linear", 2, shared=DENSITY | {"rescale": False}),
    "della": Case("della", 3, own={"density": (0.4, 0.0, 1.0)}, shared={"weight": 0.6}),
    "della_linear, as it is": Case(
        "della_linear", 2, own={"epsilon": (0.1, 0.25)}, shared=DENSITY | {"rescale": False}
    ),
    "breadcrumbs": Case("breadcrumbs", 2, shared={"weight": 0.5, "density": 0.9, "gamma": 0.02}),
    "breadcrumbs_ties": Case(
        "breadcrumbs_ties",
        2,
        own={"density": (0.6, 0.7), "gamma": (0.1, 0.0)},
        shared={"weight": 0.5, "rescale": True},
    ),
    "linear": Case("linear", 3, base=False, own={"weight": (0.2, 0.3, 1.0)}),
    "linear, of one": Case("linear", 1, base=False, shared={"weight": 2.0}),
    "average": Case("average", 3, base=False),
    "average, ema": Case("average", 3, base=False, shared={"schedule": "ema", "decay": 0.7}),
    "slerp": Case("slerp", 1, shared={"t": 0.3}),
    "nuslerp": Case("nuslerp", 2, own=TWO),
    "nuslerp, no base": Case("nuslerp", 2, base=False, own=TWO),
    "nuslerp, by row": Case("nuslerp", 2, own=TWO, shared={"nuslerp_flatten": False}),
    "nuslerp, by column": Case("nuslerp", 2, own=TWO, shared=BY_COLUMN),
    "nuslerp, by column, no base": Case("nuslerp", 2, base=False, own=TWO, shared=BY_COLUMN),
    "multislerp": Case("multislerp", 3, own=THREE),
    "multislerp, no base": Case("multislerp", 3, base=False, own=THREE),
    "model_stock": Case("model_stock", 3),
    "model_stock, by row": Case("model_stock", 3, shared={"filter_wise": True}),
    "karcher": Case("karcher", 3, base=False),
    "nearswap": Case("nearswap", 1, shared={"t": 1e-4}),
    "arcee_fusion": Case("arcee_fusion", 1),
    "ram": Case("ram", 3, shared={"epsilon": 1e-3}),
    "ramplus_tl": Case("ramplus_tl", 3, shared={"epsilon": 1e-3, "alpha": 3.0}),
    "passthrough": Case("passthrough", 1, base=False),
    "passthrough, scaled": Case("passthrough", 1, base=False, shared={"scale": 0.3}),
}


def mixed_family(home: Path) -> Family:
    """A model in bf16 with tunes in all dtypes: several chunks and segments, a tensor of one element, an empty one."""
    from support.models import base_state, make_family, tuned  # not there where kernels are tested

    g = torch.Generator().manual_seed(11)
    base = base_state(layers=1, vocab=64) | {
        EMBED: torch.randn((131, 127), generator=g).mul(0.02).to(BF16),
        "long": torch.randn(66_013, generator=g).mul(0.02).to(BF16),
        "scalar": torch.tensor(0.25, dtype=BF16),
        "empty": torch.zeros((0, 3), dtype=BF16),
    }
    states = [base, tuned(base, 1), tuned(base, 2, FP32), tuned(base, 3, FP16)]
    return make_family(home, states, tokenizer={})
