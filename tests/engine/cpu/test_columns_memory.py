"""Merges by columns within a memory budget."""

from __future__ import annotations

import pytest

from fuseo1_kernels import MergeError
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.config.load import as_config
from fuseo1_kernels.engine.cpu.memory import ColumnMemory, memory_floor, plan_memory
from fuseo1_kernels.engine.dry_run import dry_run
from fuseo1_kernels.engine.options import MergeOptions
from fuseo1_kernels.plan.plan import make_plan
from support.column_states import states
from support.engine_runs import MIB, merge
from support.method_cases import CASES
from support.models import Family, make_family, weights
from support.streamed import limited
from support.tensors import BF16

COLUMNS = CASES["nuslerp, by column"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """An output of 12 MB, whose inputs are three times as large, and one whose slabs are larger than it."""
    shapes = {"w": (2048, 3000), "tall": (400_001, 2)}
    family = make_family(tmp_path_factory.mktemp("large"), states(BF16, BF16, BF16, shapes=shapes))
    COLUMNS.configure(family)
    return family


def refused(family: Family) -> int:
    """The least memory of which the merge says that it suffices, in MiB."""
    with pytest.raises(MergeError, match=r"--max-memory 9 MiB is too little .* the least is") as e:
        merge(family, "refused", max_memory=9 * MIB)
    assert not list(family.home.glob("refused*"))
    said = str(e.value)
    assert dry_run(as_config(family.config), None, MergeOptions(max_memory=9 * MIB)).problems == (
        said,
    )
    return int(said.split()[-2])


def test_too_little_memory_is_refused(large: Family) -> None:
    least = refused(large)
    # The output, 256 columns of three inputs and one of them once more, a survey, and chunks.
    assert 12.3e6 + 4.2e6 + 4 * MIB < least * MIB < 12.3e6 + 6.4e6 + 10 * MIB
    assert (
        dry_run(as_config(large.config), None, MergeOptions(max_memory=least * MIB)).problems == ()
    )


def test_what_is_planned_stays_within_the_budget(large: Family) -> None:
    with open_source(str(large.base)) as one, open_source(str(large.target(1))) as other:
        sources = {str(large.base): one, str(large.target(1)): other, str(large.target(2)): other}
        jobs = make_plan(as_config(large.config), sources, shard_size=1 << 30).jobs
        needed, least = ColumnMemory.of(jobs), memory_floor(jobs)
        assert needed.output == 2048 * 3000 * 2
        assert needed.least == 2 * 400_001 * 8 + 192 > 256 * 2048 * 8
        for budget in (least, least + 1, 2 * least, 64 * MIB, 1 << 30):
            for threads in (1, 2, 64):
                planned = plan_memory(jobs, budget, threads)
                assert planned.total <= budget
                assert planned.output >= needed.output and planned.survey >= planned.floor
                assert planned.read >= needed.least
        # A slab takes what is left, but no more than gains anything.
        assert plan_memory(jobs, 1 << 30, 1).read == needed.most == 2048 * 2048 * 8 + 192
        assert ColumnMemory.of([]) == ColumnMemory(0, 0, 0, 0)


@pytest.mark.serial
def test_the_least_memory_suffices(large: Family) -> None:
    merge(large, "free", overwrite=True)
    least = refused(large) * MIB
    code, err = limited(large, "limited", least, "cached", least)
    assert code == 0, err
    assert weights(large.home / "limited") == weights(large.home / "free")
    code, err = limited(large, "more", 4 * least, "cached", least)
    assert code == 1 and "lower --max-memory" in err
