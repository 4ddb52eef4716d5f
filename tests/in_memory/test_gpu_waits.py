"""How often merges of tensors on a GPU wait for it, and what is left behind; the GPU here is the host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fuseo1_kernels import ResidentSurveys, merge_state_dicts, merge_tensors
from fuseo1_kernels.backends.cuda.backend import CudaBackend
from fuseo1_kernels.backends.interface import OnDevice
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SceResult
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.in_memory import tensor_merge
from support.emulated import load_emulated
from support.tensors import BF16, FP16, FP32, assert_same_bits, siblings

pytestmark = pytest.mark.toolchain

CUTS = {"select_topk": 0.3, "variant": "mergekit"}
NAN = float("nan")


class Waits(CudaBackend):
    """Counts waits, and surveys that are enqueued."""

    def __init__(self, cuda: CudaBackend) -> None:
        super().__init__(cuda._kernels)
        self.count = self.surveys = self.launches = 0

    def results(self, surveys: OnDevice) -> list[tuple[SceResult, int]]:
        self.count += 1  # the only place where the backend reads from the device
        return super().results(surveys)

    def enqueue_small(self, *arguments: object) -> OnDevice:
        self.launches += 1
        return super().enqueue_small(*arguments)  # type: ignore[arg-type]

    def enqueue_survey(self, *arguments: object) -> OnDevice:
        self.surveys += 1
        return super().enqueue_survey(*arguments)  # type: ignore[arg-type]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    counting = Waits(load_emulated())
    monkeypatch.setattr(tensor_merge, "backend_for", lambda inputs, backend: counting)
    yield counting


def merge(tensors: list[torch.Tensor], nonfinite: str, **options: object) -> torch.Tensor:
    arguments = {"base_index": 0, "parameters": CUTS, "nonfinite": nonfinite, **options}
    return merge_tensors(tensors, "sce", **arguments)  # type: ignore[arg-type]


def expected(tensors: list[torch.Tensor], **options: object) -> torch.Tensor:
    """The CPU's merge: `waits` replaces the backend where it is looked up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_merge, "backend_for", lambda inputs, backend: load_backend("cpu"))
        return merge(tensors, "propagate", **options)


@pytest.mark.parametrize(("nonfinite", "count"), [("error", 1), ("propagate", 0)])
def test_a_merge_waits_once_or_not_at_all(nonfinite: str, count: int, waits: Waits) -> None:
    tensors = siblings((40, 41), 3)
    assert_same_bits(merge(tensors, nonfinite), expected(tensors))
    assert waits.count == count
    out = torch.empty(41, 40, dtype=BF16).T
    assert merge(tensors, nonfinite, out=out) is out
    assert_same_bits(out, expected(tensors))
    assert waits.count == 2 * count


def test_what_does_not_wait_propagates_and_so_does_out_after_an_error(waits: Waits) -> None:
    tensors = siblings(300, 2, FP32)
    tensors[1][7] = NAN
    merged = merge(tensors, "propagate")
    assert merged.isnan().nonzero().flatten().tolist() == [7]
    assert_same_bits(merged, expected(tensors))
    out = torch.zeros(300)
    with pytest.raises(MergeError, match="tensor 1 has 1"):
        merge(tensors, "error", out=out)
    assert waits.count == 1
    assert_same_bits(out, merged)


def test_an_output_that_overflows(waits: Waits) -> None:
    tensors = [torch.zeros(9), torch.full((9,), 70_000.0)]
    with pytest.raises(MergeError, match="9 merged elements overflow float16"):
        merge(tensors, "error", out_dtype=FP16, parameters={})
    assert waits.count == 1
    assert merge(tensors, "propagate", out_dtype=FP16, parameters={}).isinf().all()


@pytest.mark.parametrize(("nonfinite", "later"), [("error", 1), ("propagate", 0)])
def test_kept_surveys(nonfinite: str, later: int, waits: Waits) -> None:
    """A new survey is waited for, whoever asks; a known one is not made again, in either variant."""
    tensors, surveys = siblings((40, 41), 3), ResidentSurveys()
    first = merge(tensors, nonfinite, surveys=surveys)
    assert (waits.surveys, waits.count, len(surveys)) == (1, 1, 1)
    assert_same_bits(first, expected(tensors))
    for variant in ("mergekit", "fuseo1"):
        before, parameters = waits.count, {"select_topk": 0.3, "variant": variant}
        again = merge(tensors, nonfinite, surveys=surveys, parameters=parameters)
        assert_same_bits(again, expected(tensors, parameters=parameters))
        assert waits.count == before + later
    assert (waits.surveys, len(surveys)) == (1, 1)


def test_a_kept_survey_refuses_before_anything_is_written(waits: Waits) -> None:
    tensors, surveys = siblings(300, 2, FP32), ResidentSurveys()
    tensors[0][7] = NAN
    with pytest.raises(MergeError, match="tensor 0 has 1"):
        merge(tensors, "error", surveys=surveys)
    assert len(surveys) == 1
    out = torch.full((300,), 3.0)
    with pytest.raises(MergeError, match="tensor 0 has 1"):
        merge(tensors, "error", surveys=surveys, out=out)
    assert (waits.surveys, waits.count) == (1, 1)
    assert (out == 3.0).all()


# --- state dictionaries: small tensors in one launch ---


def states() -> list[dict[str, torch.Tensor]]:
    """Base and two targets: small tensors, some strided, an empty one, a counter, and one that is not small."""
    shapes = {"norm": (97,), "bias": (5, 7), "strided": (64, 33), "empty": (0,), "large": (70_001,)}
    made: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for seed, (name, shape) in enumerate(shapes.items()):
        for state, tensor in zip(made, siblings(shape, 2, seed=seed), strict=True):
            state[name] = tensor.t().contiguous().t() if name == "strided" else tensor
    for state in made:
        state["steps"] = torch.tensor(3)
    return made


def merge_states(
    models: list[dict[str, torch.Tensor]], **options: object
) -> dict[str, torch.Tensor]:
    return merge_state_dicts(models, "sce", base=0, parameters=CUTS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("nonfinite", "count"), [("error", 3), ("propagate", 0)])
def test_state_dicts_merge_small_tensors_together(nonfinite: str, count: int, waits: Waits) -> None:
    models = states()
    models[1]["bias"][2, 3] = 0 if nonfinite == "error" else NAN
    merged = merge_states(models, nonfinite=nonfinite)
    assert (waits.launches, waits.surveys) == (1, 2)
    assert (
        waits.count == count
    )  # the launch, "empty" and "large": all of them when everything is enqueued
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_merge, "backend_for", lambda inputs, backend: load_backend("cpu"))
        on_cpu = merge_states(models, nonfinite=nonfinite)
    assert list(merged) == list(on_cpu)
    for name, tensor in merged.items():
        assert_same_bits(tensor.float(), on_cpu[name].float(), name)


@pytest.mark.parametrize("name", ["norm", "strided", "large"])
def test_an_error_names_the_tensor(name: str, waits: Waits) -> None:
    models = states()
    models[2][name][(0,) * models[2][name].dim()] = NAN
    with pytest.raises(MergeError, match=f"tensor {name}: NaN or infinite elements: model 2 has"):
        merge_states(models)


def test_kept_surveys_are_one_by_one(waits: Waits) -> None:
    models, surveys = states(), ResidentSurveys()
    first = merge_states(models, surveys=surveys)
    assert (waits.launches, waits.surveys, waits.count) == (0, 5, 5)
    again = merge_states(models, surveys=surveys, nonfinite="propagate")
    assert (waits.surveys, waits.count) == (5, 5)
    for name, tensor in again.items():
        assert_same_bits(tensor.float(), first[name].float(), name)
