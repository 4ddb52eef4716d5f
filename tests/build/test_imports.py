"""A fresh process imports no more than it needs, and gets the expected backend and kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.models import Family, assert_same_state, make_family, read_model
from support.processes import HEAVY, MERGE, imported, spawn

# --- the command line --------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    ran = spawn("-X", "importtime", *MERGE, "--help")
    assert ran.code == 0
    assert "fuseo1_kernels" in imported(ran.err)
    assert not imported(ran.err) & {*HEAVY, "huggingface_hub", "pydantic", "yaml"}
    options = "--backend --threads --max-memory --shard-size --dry-run --overwrite --device --max-gpu-memory --json"
    options += " --quiet --cuda --out-shard-size --copy-tokenizer --no-copy-tokenizer --crop-embeddings --nonfinite"
    for option in (*options.split(), "--list-recipes", "--random-seed"):
        assert option in ran.out


@pytest.mark.parametrize("torch_bin", [False, True])
def test_a_whole_merge_imports_no_torch(torch_bin: bool, tmp_path: Path) -> None:
    family = make_family(tmp_path, torch_bin=torch_bin)
    family.configure(
        parameters={"select_topk": 0.5}, tokenizer_files={"model": str(family.target(1))}
    )
    ran = spawn("-X", "importtime", *MERGE, family.config, family.out)
    assert ran.code == 0, ran.err
    assert not imported(ran.err) & HEAVY
    assert_same_state(read_model(family.out), family.expected(select_topk=0.5))


def test_a_dry_run_imports_no_torch(family: Family) -> None:
    ran = spawn("-X", "importtime", *MERGE, family.config, "--dry-run")
    assert ran.code == 0, ran.err
    assert not imported(ran.err) & HEAVY


# --- the package -------------------------------------------------------------------------


LAZY = """
import sys
import fuseo1_kernels
dir(fuseo1_kernels)
assert not {'torch', 'numpy', 'transformers', 'pydantic', 'huggingface_hub'} & set(sys.modules)
from fuseo1_kernels.backends.registry import load_backend
load_backend('cpu')
from fuseo1_kernels import merge_checkpoints, MergeError, MergeResult
assert 'torch' not in sys.modules
from fuseo1_kernels import merge_tensors, survey, fuse
assert 'torch' in sys.modules and 'transformers' not in sys.modules
fuseo1_kernels.merge_everything
"""


def test_the_packages_public_names_import_lazily() -> None:
    """So does the cpu backend; one that there is not is an attribute error, the last line's."""
    ran = spawn("-c", LAZY)
    assert ran.code == 1
    assert ran.err.endswith(
        "AttributeError: module 'fuseo1_kernels' has no attribute 'merge_everything'\n"
    )


# --- which kernels -----------------------------------------------------------------------

_LOAD = (
    "from fuseo1_kernels.backends.registry import load_backend\nfrom fuseo1_kernels.backends import _cpu\n"
    "b = load_backend('auto')\nprint(_cpu.isa(), '|', b.description)"
)


def test_fuseo1_isa_is_honoured() -> None:
    ran = spawn("-c", _LOAD, env={"FUSEO1_ISA": "baseline"})
    assert ran.code == 0, ran.err
    assert ran.out.startswith("baseline | baseline kernels")
    ran = spawn("-c", _LOAD, env={"FUSEO1_ISA": "nonsense"})
    assert ran.code == 1
    assert "BackendError: FUSEO1_ISA=nonsense: this machine or build has no kernels" in ran.err
    assert "available: baseline" in ran.err


def test_the_former_name_of_the_contract() -> None:
    """docs/integrations.md named it: every request and selection is the same object by either name."""
    from fuseo1_kernels.backends import contract, requests

    for name in ("Band", "Clamp", "Cut", "Divergences", "Draw", "FuseParams", "Gram", "Magnitudes"):
        assert getattr(requests, name) is getattr(contract, name)
