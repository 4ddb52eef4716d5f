"""Surveys that are kept: on disk for later merges, in memory for programs that merge over and over."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeResult, ResidentSurveys, merge_checkpoints, merge_state_dicts
from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.records import encode_record
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.engine.survey_cache import MARK, SurveyCache
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.methods.sce import Sce
from fuseo1_kernels.plan.inputs import Stored
from fuseo1_kernels.plan.job import Job
from support.engine_runs import MIB
from support.engine_runs import merge as run_merge
from support.fake_gpu import sce_result
from support.models import Family, base_state, make_family, tuned, weights
from support.processes import done, merge_json, run
from support.sabotage import CHANGES
from support.tensors import BF16
from support.tuning import tune
from support.watching import watch


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """A large tensor, and small ones."""
    g = torch.Generator().manual_seed(8)
    base = base_state(layers=1) | {
        "model.embed_tokens.weight": torch.randn((2000, 700), generator=g).to(BF16)
    }
    states = [base, *(tuned(base, i) for i in (1, 2))]
    yield make_family(tmp_path_factory.mktemp("cached"), states)


def merge(
    family: Family, out: str, select_topk: float, variant: str, **options: Any
) -> MergeResult:
    family.configure(parameters={"select_topk": select_topk, "variant": variant})
    return run_merge(family, out, max_memory=64 * MIB, overwrite=True, **options)


@pytest.fixture
def surveyed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The values of select_topk for which something was surveyed."""
    seen: list[float] = []
    watch(monkeypatch, CpuBackend, "survey", lambda cpu, inputs, topk, *_: seen.append(topk))
    watch(monkeypatch, CpuBackend, "surveyor", lambda cpu, n, numel, topk, *_: seen.append(topk))
    return seen


@pytest.mark.parametrize("way", ["cached", "read ahead", "direct"])
@pytest.mark.parametrize("select_topk", [1.0, 0.3])
def test_another_variant_reads_less(
    select_topk: float,
    way: str,
    family: Family,
    tmp_path: Path,
    surveyed: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Source, "is_cached", lambda self, info: way == "cached")
    if way == "direct":
        tune(monkeypatch, page_cache=0)
    cache, size = tmp_path / "new" / "cache", 2 * sum(t.numel() for t in family.states[0].values())
    first = merge(family, "out", select_topk, "fuseo1", survey_cache=cache)
    # Three models, by survey and fuse; an exact path needs more.
    if first.exact_path:
        assert first.bytes_read > 2 * 3 * size
    else:
        assert first.bytes_read == 2 * 3 * size
    tensors = len(family.states[0])
    assert surveyed == [select_topk] * tensors
    again = merge(family, "out", select_topk, "mergekit", survey_cache=cache)
    assert again.bytes_read == 3 * size  # every byte once, by the fuse
    assert len(surveyed) == tensors
    merge(family, "expected", select_topk, "mergekit")
    assert weights(family.home / "out") == weights(family.home / "expected")
    assert again.energy_share == first.energy_share


def test_values_of_select_topk_surveyed_in_one_read(
    family: Family, tmp_path: Path, surveyed: list[float]
) -> None:
    cache = tmp_path / "cache"
    plain = merge(family, "out", 0.3, "fuseo1")
    options = {"survey_cache": cache, "survey_topk": (0.5, 1.0, 0.3)}
    first = merge(family, "out", 0.3, "fuseo1", **options)
    assert first.bytes_read <= plain.bytes_read + 3 * 2 * 1_400_000  # an exact path at most
    surveyed.clear()
    for select_topk in (0.5, 1.0, 0.3):
        for variant in ("fuseo1", "mergekit"):
            merge(family, "out", select_topk, variant, **options)
            assert surveyed == []
            merge(family, "expected", select_topk, variant)
            surveyed.clear()
            assert weights(family.home / "out") == weights(family.home / "expected")


def test_what_changed_is_surveyed_anew(tmp_path: Path, surveyed: list[float]) -> None:
    """Another file under the same name, other targets, another order."""
    family, cache = make_family(tmp_path), tmp_path / "cache"
    tensors = len(family.states[0])

    def surveys_of_a_merge(**config: object) -> int:
        surveyed.clear()
        family.configure(parameters={"select_topk": 0.3}, **config)
        merge_checkpoints(family.config, family.out, survey_cache=cache, overwrite=True)
        kept = weights(family.out)
        count = len(surveyed)
        merge_checkpoints(family.config, family.out, overwrite=True)
        assert weights(family.out) == kept
        return count

    assert surveys_of_a_merge() == tensors
    assert surveys_of_a_merge() == 0
    file = family.target(1) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-64] + bytes(64))
    assert surveys_of_a_merge() == tensors
    for how in ("is rewritten and dated back", "is linked"):
        CHANGES[how](file)
        assert surveys_of_a_merge() == tensors
    models = [{"model": str(m)} for m in (family.target(2), family.target(1))]
    assert surveys_of_a_merge(models=models) == tensors
    assert surveys_of_a_merge(models=models[:1]) == tensors
    assert surveys_of_a_merge(models=models) == 0


@pytest.mark.parametrize(
    ("damage", "bad", "lost"),
    [
        (lambda data: data[:-10], 1, 1),
        (lambda data: data.replace(b'"selected":8', b'"selected":9', 1), 1, 1),
        (lambda data: MARK + b"\xff" * 1000, 1, 39),
        (lambda data: data + b"0123456789abcdef {}\n[]", 2, 0),
    ],
)
def test_a_damaged_cache(
    damage: Callable[[bytes], bytes], bad: int, lost: int, tmp_path: Path, surveyed: list[float]
) -> None:
    family, cache = make_family(tmp_path), tmp_path / "cache"
    merge_checkpoints(family.config, family.out, survey_cache=cache)
    first = weights(family.out)
    file = cache / "surveys"
    file.write_bytes(damage(file.read_bytes()))
    surveyed.clear()
    for expected in (lost, 0):
        said = merge_checkpoints(family.config, family.out, survey_cache=cache, overwrite=True)
        [note] = [note for note in said.notes if "surveyed anew" in note]
        assert note.startswith(f"{file}: {bad} kept survey")
        assert len(surveyed) == expected
        assert weights(family.out) == first
        surveyed.clear()


def test_nonfinite_elements_are_still_found(tmp_path: Path) -> None:
    base = base_state()
    bad = tuned(base, 1)
    bad["model.norm.weight"][3] = torch.nan
    family, cache = make_family(tmp_path, [base, bad]), tmp_path / "cache"
    merge_checkpoints(family.config, family.out, survey_cache=cache, nonfinite="propagate")
    with pytest.raises(MergeError, match=r"model\.norm\.weight: 1 NaN"):
        merge_checkpoints(family.config, family.home / "other", survey_cache=cache)


def test_the_command_line(tmp_path: Path) -> None:
    family, cache = make_family(tmp_path), tmp_path / "cache"
    merge_json(family.config, family.out, "--survey-cache", cache, "--survey-topk", "0.1,0.5")
    lines = (cache / "surveys").read_text().splitlines()
    assert len(lines) == 1 + 3 * len(family.states[0])
    done(family.config, family.out, "--survey-cache", cache, "--overwrite", "--quiet")
    assert (cache / "surveys").read_text().splitlines() == lines
    for argv, words in (
        (("--survey-topk", "0.5"), "give survey_cache"),
        (("--survey-cache", family.config), "cannot hold a survey cache (File exists)"),
    ):
        ran = run(family.config, family.home / "other", *argv)
        assert ran.code == 1 and words in ran.err
    assert "are not numbers from 0 to 1" in run(family.config, "o", "--survey-topk", "0.1,2").err


# --- in memory ---------------------------------------------------------------------------


def test_resident_models_are_surveyed_once(family: Family, surveyed: list[float]) -> None:
    surveys, models = ResidentSurveys(), family.states
    for call in range(100):
        parameters = {
            "select_topk": (1.0, 0.5, 0.1)[call % 3],
            "variant": ("fuseo1", "mergekit")[call % 2],
        }
        found = merge_state_dicts(models, "sce", base=0, parameters=parameters, surveys=surveys)
        if call in (2, 5, 99):
            expected = family.expected(**parameters)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            surveyed[3 * len(models[0]) :] = []
    assert len(surveyed) == len(surveys) == 3 * len(models[0])


def test_changed_tensors_are_surveyed_anew(surveyed: list[float]) -> None:
    base = base_state()
    models, surveys = [base, tuned(base, 1)], ResidentSurveys()

    def surveys_of_a_call() -> int:
        surveyed.clear()
        found = merge_state_dicts(models, "sce", base=0, surveys=surveys)
        count = len(surveyed)
        expected = merge_state_dicts(models, "sce", base=0)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        return count

    assert surveys_of_a_call() == len(base)
    assert surveys_of_a_call() == 0
    models[1]["model.norm.weight"].mul_(1.5)
    assert surveys_of_a_call() == 1
    models[1]["model.norm.weight"] = models[1]["model.norm.weight"] * 2  # another tensor
    assert surveys_of_a_call() == 1
    models[1]["model.norm.weight"] = models[1]["model.norm.weight"].clone()
    assert surveys_of_a_call() == 1
    surveys.clear()
    assert surveys_of_a_call() == len(base)


def test_tensors_whose_changes_nobody_counts_are_not_kept() -> None:
    with torch.inference_mode():
        models = [{"w": torch.ones(8)}, {"w": torch.full((8,), 2.0)}]
        surveys = ResidentSurveys()
        merge_state_dicts(models, "sce", base=0, surveys=surveys)
        assert len(surveys) == 0


def test_surveys_are_json(family: Family, tmp_path: Path) -> None:
    """Every line of the cache but the first: its checksum and an object."""
    merge(family, "out", 0.5, "fuseo1", survey_cache=tmp_path)
    for line in (tmp_path / "surveys").read_text().splitlines()[1:]:
        assert json.loads(line.partition(" ")[2]).keys() == {"key", "survey"}


#: What a survey of SCE says that cannot be, by field.
IMPOSSIBLE: dict[str, list[Any]] = {
    "passes": [-1, 1.0, "1", True, 2**70],
    "nonfinite": [[], [0, 0, 0], [0, 0, 0, -1], [0, 0, 0, 10**9], 0],
    "nonzero": [-2, 10**9, None],
    "selected": [-1, 10**9],
    "threshold": [-1, 2**31, 2**32, 1.5],
    "tie_limit": [-2, 10**9, "0"],
    "energy": [[], [1.0], [1.0, -1.0], [1.0, float("nan")], [1.0, 1e300], [1.0, "x"], {}],
    "kept": [[]],
}


@pytest.mark.parametrize("field", IMPOSSIBLE)
def test_a_survey_that_cannot_be(field: str, tmp_path: Path, surveyed: list[float]) -> None:
    """Its line bears a right checksum. It is surveyed anew, and a note says so."""
    family, cache = make_family(tmp_path), tmp_path / "cache"

    def merge() -> tuple[str, ...]:
        return merge_checkpoints(
            family.config, family.out, survey_cache=cache, overwrite=True
        ).notes

    assert not merge()
    expected, file = weights(family.out), cache / "surveys"
    mark, first, *others = file.read_bytes().splitlines(keepends=True)
    record = json.loads(first.partition(b" ")[2])
    for value in IMPOSSIBLE[field]:
        survey = record["survey"] | {field: value}
        file.write_bytes(mark + encode_record(record | {"survey": survey}) + b"".join(others))
        surveyed.clear()
        assert any("1 kept survey could not be used" in note for note in merge()), value
        assert len(surveyed) == 1 and weights(family.out) == expected


def test_a_record_of_another_version_is_left_alone(family: Family, tmp_path: Path) -> None:
    """It is whole, but its survey has other fields."""
    lines: list[dict[str, Any]] = [
        {"key": "k", "survey": {"threshold": 1}},
        {"key": "l", "survey": 7},
    ]
    content = MARK + b"".join(map(encode_record, lines))
    (tmp_path / "surveys").write_bytes(content)
    [file] = tmp_path.iterdir()
    cache = SurveyCache(tmp_path)
    cache.close()
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written(family: Family, tmp_path: Path) -> None:
    """The merge goes on without it, and says so once."""
    cache = SurveyCache(tmp_path)
    os.close(cache._fd)
    cache._fd = os.open("/dev/full", os.O_WRONLY)
    with open_source(str(family.base)) as base:
        [name, *_] = base.tensors
        x = Stored(base, base.tensors[name])
        job = Job(name, x.info.shape, x.dtype, (x, x), Sce(1.0, "fuseo1", 1))
        for _ in range(2):
            cache.keep(job, [(1.0, sce_result())])
        assert cache.look_up(job, 1.0)[1] == []
    cache.close()
    [problem] = cache.problems
    assert "No space left on device" in problem and "were not kept" in problem
