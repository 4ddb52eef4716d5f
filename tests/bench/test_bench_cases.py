"""The command makes cases; each counts the bytes that it must move, and its calls compute the merge."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.bench.calls import calls_of
from fuseo1_kernels.bench.cases import Case, make_cases
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.methods import METHODS

ONE = 16 * 16 * 2  # bytes of a bf16 tensor of that shape


def cases(*methods: str, **changes: Any) -> list[Case]:
    options: dict[str, Any] = {
        **{"shapes": [(16, 16)], "dtypes": ["bfloat16"], "targets": [], "backends": ["auto"]},
        **{"threads": [1], "data": ["gauss:0.001"]},
    }
    settings = changes.pop("settings", [])
    return make_cases(methods, settings, **(options | changes))


def only(*methods: str, **changes: Any) -> Case:
    (case,) = cases(*methods, **changes)
    return case


# --- bytes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "read", "reads"),
    [
        ("sce", {}, 4, 2),
        ("ties", {}, 4, 2),
        ("ties", {"density": "1"}, 4, 1),  # which needs no threshold
        ("dare_linear", {}, 4, 2),
        ("dare_linear", {"rescale": "false"}, 4, 1),
        ("task_arithmetic", {}, 4, 1),
        ("linear", {}, 3, 1),
        ("karcher", {}, 3, 2),
        ("slerp", {}, 2, 2),
        ("nuslerp", {"nuslerp_flatten": "false"}, 3, 2),
        ("arcee_fusion", {}, 2, 2),  # though it surveys twice
        ("nearswap", {}, 2, 1),
        ("passthrough", {}, 1, 1),
    ],
)
def test_bytes_of_a_merge(method: str, settings: dict[str, str], read: int, reads: int) -> None:
    case = only(method, settings=list(settings.items()))
    assert case.tensors == read
    assert case.read_bytes == read * ONE
    assert case.merge_bytes == reads * read * ONE + ONE


def test_bytes_by_targets_and_dtype() -> None:
    assert only("sce").merge_bytes == 18 * 16 * 16
    assert only("sce", targets=[7]).merge_bytes == (2 * 8 + 1) * ONE
    assert only("sce", dtypes=["float32"]).merge_bytes == 36 * 16 * 16


def test_bytes_of_passes() -> None:
    case = only("arcee_fusion")
    tensors = case.make_tensors()
    calls = calls_of(case, tensors, torch.empty_like(tensors[0]), passes=True)
    moved = {name: call.nbytes for name, call in calls.items()}
    assert moved == {
        "merge out=": 5 * ONE,
        "merge": 5 * ONE,
        "survey 1": 2 * ONE,
        "survey 2": 2 * ONE,
        "fuse out=": 3 * ONE,
    }


# --- calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("method", METHODS)
def test_all_calls_of_a_case_give_the_same_bits(
    method: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge to a given output, to a new one, and its surveys and fuse by themselves.

    Two reads are counted where a merge surveys.
    """
    engine, surveys = type(load_backend(backend)), list[object]()
    survey = engine.survey

    def counting(backend: Any, *rest: Any, **options: Any) -> Any:
        surveys.append(rest)
        return survey(backend, *rest, **options)

    monkeypatch.setattr(engine, "survey", counting)
    case = only(method, backends=[backend])
    tensors = case.make_tensors()
    untouched = [t.clone() for t in tensors]
    out = torch.zeros_like(tensors[0])
    calls = calls_of(case, tensors, out, passes=True)
    merged = calls["merge"].work()
    assert case.merge_bytes == (2 if surveys else 1) * case.read_bytes + case.tensor_bytes
    assert isinstance(merged, torch.Tensor)
    assert ("fuse out=" in calls) == (method != "average")
    for name in calls.keys() & {"merge out=", "fuse out="}:
        out.zero_()
        calls[name].work()
        assert torch.equal(out, merged), name
    assert all(torch.equal(a, b) for a, b in zip(tensors, untouched, strict=True))


def test_vectors_have_no_passes() -> None:
    case = only("model_stock", settings=[("filter_wise", "true")])
    tensors = case.make_tensors()
    calls = calls_of(case, tensors, tensors[0].clone(), outputs=["given"], passes=True)
    assert list(calls) == ["merge out="]


# --- combinations --------------------------------------------------------------------------


def test_every_combination_is_a_case() -> None:
    made = cases(
        *("sce", "ties"),
        settings=[("select_topk", "1"), ("select_topk", "0.1"), ("density", "0.5")],
        shapes=[(4, 4), (5,)],
        dtypes=["float16", "float32"],
        threads=[1, 2],
    )
    assert len(made) == 2 * 2 * 2 * (2 + 1)
    assert {c.parameters["select_topk"] for c in made if c.method == "sce"} == {1.0, 0.1}
    assert {c.parameters["density"] for c in made if c.method == "ties"} == {0.5}


def test_a_case_is_measured_once() -> None:
    settings = [("density", "0.2"), ("density", "0.20")]
    assert len(cases("ties", "ties", settings=settings, backends=["auto", "cpu"])) == 1


def test_targets_are_what_the_method_merges() -> None:
    assert [only(m).targets for m in ("sce", "slerp", "nuslerp", "passthrough")] == [3, 1, 2, 1]


def test_a_value_for_each_model() -> None:
    case = only("ties", settings=[("weight", "0.5,1,2"), ("density", "0.5,0.5,0.5")])
    assert case.parameters["weight"] == [0.5, 1.0, 2.0]
    assert case.parameters["density"] == 0.5
    assert case.backend == "cpu"


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("tise", {}, "'tise'"),
        ("sce", {"settings": [("density", "1")]}, "--set density: no such parameter"),
        ("sce", {"settings": [("select_topk", "2")]}, "select_topk: must be a number in [0, 1]"),
        ("sce", {"settings": [("select_topk", "0.1,0.2")]}, "select_topk: must be"),
        ("sce", {"settings": [("variant", "mine")]}, "one of fuseo1, mergekit"),
        ("ties", {"settings": [("weight", "1,2")]}, "weight: 2 values for 3 models"),
        ("ties", {"settings": [("rescale", "1")]}, "rescale: must be true or false"),
        ("della", {"settings": [("epsilon", "0.5")]}, "set an epsilon below 0.2"),
        ("slerp", {"targets": [3]}, "slerp merges exactly 1 model beside the base, not 3"),
        ("sce", {"targets": [65]}, "at most 64 targets"),
    ],
)
def test_what_cannot_be_measured(method: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MergeError, match=re.escape(words)):
        cases(method, **changes)
