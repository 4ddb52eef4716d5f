"""A fresh process imports no more than it needs, and gets the expected backend and kernels."""

from __future__ import annotations

import os
import subprocess
import sys
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
    for option in (
        *("--backend", "--threads", "--max-memory", "--shard-size", "--dry-run", "--overwrite"),
        *("--device", "--max-gpu-memory"),
        *("--json", "--quiet", "--cuda", "--out-shard-size", "--copy-tokenizer"),
        *(
            "--no-copy-tokenizer",
            "--crop-embeddings",
            "--nonfinite",
            "--list-recipes",
            "--random-seed",
        ),
    ):
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


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_packages_public_names_import_lazily() -> None:
    code = (
        "import sys, fuseo1_kernels\n"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "from fuseo1_kernels import merge_checkpoints, MergeError, MergeResult\n"
        "assert 'torch' not in sys.modules\n"
        "from fuseo1_kernels import merge_tensors, survey, fuse\n"
        "assert 'torch' in sys.modules and 'transformers' not in sys.modules\n"
    )
    ran = spawn("-c", code)
    assert ran.code == 0, ran.err


def test_the_package_imports_no_framework() -> None:
    done = python(
        "import sys, fuseo1_kernels\n"
        "dir(fuseo1_kernels)\n"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'transformers', 'huggingface_hub')"
        " if m in sys.modules])"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_cpu_backend_imports_no_torch() -> None:
    done = python(
        "import sys\nfrom fuseo1_kernels.backends.registry import load_backend\nload_backend('cpu')\n"
        "print('torch' in sys.modules)"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    done = python("import fuseo1_kernels\nfuseo1_kernels.merge_everything")
    assert (
        "AttributeError: module 'fuseo1_kernels' has no attribute 'merge_everything'" in done.stderr
    )


# --- which kernels -----------------------------------------------------------------------

_LOAD = (
    "from fuseo1_kernels.backends.registry import load_backend\nfrom fuseo1_kernels.backends import _cpu\n"
    "b = load_backend('auto')\nprint(_cpu.isa(), '|', b.description)"
)


def test_fuseo1_isa_is_honoured() -> None:
    done = python(_LOAD, FUSEO1_ISA="baseline")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("baseline | baseline kernels")


def test_an_unknown_fuseo1_isa_is_a_backend_error() -> None:
    done = python(_LOAD, FUSEO1_ISA="nonsense")
    assert done.returncode == 1
    assert "BackendError: FUSEO1_ISA=nonsense: this machine or build has no kernels" in done.stderr
    assert "available: baseline" in done.stderr


def test_the_former_name_of_the_contract() -> None:
    """docs/integrations.md named it: every request and selection is the same object by either name."""
    from fuseo1_kernels.backends import contract, requests

    for name in ("Band", "Clamp", "Cut", "Divergences", "Draw", "FuseParams", "Gram", "Magnitudes"):
        assert getattr(requests, name) is getattr(contract, name)
