"""Whole merges on a real GPU: the same bytes as on the CPU. Nowhere else does this file's device code run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeError, MergeResult
from fuseo1_kernels.backends.registry import load_gpu_backend
from fuseo1_kernels.engine.gpu.pool import open_devices
from fuseo1_kernels.errors import BackendError
from support.engine_runs import MIB, merge, oversized_family, spoil
from support.method_cases import CASES, Case
from support.models import Family, State, make_family, states_of, weights
from support.tensors import BF16, FP16, FP32
from support.tuning import tune


def _reason() -> str:
    """Why there is nothing to test here; "" if there is."""
    try:
        load_gpu_backend("auto")
    except BackendError as error:
        return str(error)
    return ""


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(_reason()), reason=_reason() or "there is a GPU"),
]


def states(dtypes: tuple[torch.dtype, ...] = (BF16, FP16, FP32, BF16)) -> list[State]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (5003, 1021),
        "scalar": (),
        "empty": (0, 3),
        **{f"model.layers.{i}.mlp.up_proj.weight": (1001, 777) for i in range(8)},
        **{f"model.layers.{i}.input_layernorm.weight": (897 + i,) for i in range(60)},
    }
    return states_of(shapes, *dtypes)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family(tmp_path_factory.mktemp("gpu"), states())


def same(
    family: Family, device: str = "cuda", nonfinite: str = "error", **options: Any
) -> MergeResult:
    merge(family, "cpu", overwrite=True, nonfinite=nonfinite)
    options |= {"device": device, "nonfinite": nonfinite, "overwrite": True, "resume": False}
    result = merge(family, "gpu", **options)
    assert weights(family.home / "gpu") == weights(family.home / "cpu")
    return result


@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
@pytest.mark.parametrize("select_topk", [1.0, 0.5, 0.1, 0.0])
def test_the_bytes_are_the_cpus(select_topk: float, variant: str, family: Family) -> None:
    family.configure(parameters={"select_topk": select_topk, "variant": variant})
    result = same(family)
    assert result.notes == () and result.backend.startswith("cuda: ")


@pytest.mark.parametrize("max_gpu_memory", [8 * MIB, 60 * MIB, 400 * MIB])
@pytest.mark.parametrize("slot", [64 << 10, 1 << 20])
def test_little_memory(
    slot: int, max_gpu_memory: int, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots and regions are used over and over."""
    tune(monkeypatch, slot=slot)
    family.configure(parameters={"select_topk": 0.2})
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for threads in (1, 4):
        result = same(family, max_gpu_memory=max_gpu_memory, threads=threads)
        assert ("merged on the CPU" in "".join(result.notes)) == (max_gpu_memory == 8 * MIB)
    assert torch.cuda.max_memory_allocated() <= max_gpu_memory


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_method(case: Case, mixed_dtypes: Family) -> None:
    """On the GPU, but for columns: a note would say what is merged on the CPU."""
    case.configure(mixed_dtypes)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    result = same(mixed_dtypes, max_gpu_memory=16 * MIB, threads=4)
    assert torch.cuda.max_memory_allocated() <= 16 * MIB
    assert [n for n in result.notes if "by columns" not in n] == []
    assert len(result.notes) == case.on_cpu


def test_many_ties(tmp_path: Path) -> None:
    """The exact path."""
    family = oversized_family(tmp_path)
    family.configure(parameters={"select_topk": 0.3, "variant": "mergekit"})
    same(family)


def test_surveys_are_kept(family: Family, tmp_path: Path) -> None:
    for topk in (0.1, 0.7):
        family.configure(parameters={"select_topk": topk, "variant": "mergekit"})
        same(family, survey_cache=tmp_path, survey_topk=(0.7,))


def test_nonfinite(tmp_path: Path) -> None:
    family = make_family(tmp_path, states((BF16, BF16, BF16)))
    spoil(family, 1, "scalar", {0: float("nan")})
    with pytest.raises(MergeError, match="tensor scalar: 1 NaN"):
        merge(family, "refused", device="cuda")
    assert not (tmp_path / "refused").exists()
    same(family, nonfinite="propagate")


def test_every_gpu(family: Family) -> None:
    names = ",".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    same(family, device=names)


def test_too_much_memory_is_refused(family: Family) -> None:
    """A merge's regions take no more memory than the plan needs; this test allocates by itself."""
    [device] = open_devices((0,))
    with pytest.raises(RuntimeError, match="out of memory"):
        device.allocate(1 << 50)


def test_a_gpu_that_is_not_there(family: Family) -> None:
    with pytest.raises(MergeError, match="there is no cuda:999 here"):
        merge(family, "refused", device="cuda:999")
    assert not (family.home / "refused").exists()
