"""Averages of many checkpoints: the command, `linear` of more models than fuse takes, and what every merge promises."""

from __future__ import annotations

import resource
import signal
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.cli import average
from fuseo1_kernels.cli.average import natural_order
from fuseo1_kernels.engine.cpu import average as averaging
from fuseo1_kernels.engine.verify import verify_model
from support.checkpoint_files import tree, write_json
from support.models import (
    State,
    assert_same_state,
    base_state,
    model_config,
    read_model,
    tokenizer_files,
    tuned,
    weights,
    write_model,
)
from support.processes import Run, done, one_error, run, spawn
from support.tensors import BF16, FP16, FP32
from support.tuning import tune

MANY = 130  # two groups of inputs, and one model
AVERAGE = ("-m", "fuseo1_kernels.average")
EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"


def small_state() -> State:
    return {name: t for name, t in base_state(layers=1, vocab=64).items() if "proj" not in name}


def make_run(home: Path, checkpoints: int, dtypes: Sequence[torch.dtype] = (BF16,)) -> list[State]:
    """Write the checkpoints of a run, with what a trainer leaves in them; return their states, the oldest first."""
    first = small_state()
    states = []
    for number in range(checkpoints):
        state = tuned(first, number % 7 + 1, dtypes[number % len(dtypes)])
        path = home / f"checkpoint-{(number + 1) * 50}"
        write_model(path, state, tokenizer={})
        for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
            (path / name).write_bytes(b"state")
        for name in ("trainer_state.json", "latest", "zero_to_fp32.py"):
            (path / name).write_text("{}")
        (path / "global_step50").mkdir()
        (path / "global_step50" / "mp_rank_00_model_states.pt").write_bytes(b"state")
        states.append(state)
    return states


def checkpoints(home: Path) -> list[str]:
    """As a shell lists them."""
    return sorted(map(str, home.glob("checkpoint-*")))


def averaged(*argv: object) -> Run:
    return run(*argv, main=average.main)


def mean(states: Sequence[Mapping[str, torch.Tensor]], dtype: torch.dtype = BF16) -> State:
    """The plain mean of bf16 states, in rational numbers: of up to 2^20 models fp64 holds it, or it is no tie."""
    found = {}
    for name in states[0]:
        columns = zip(*(s[name].double().flatten().tolist() for s in states), strict=True)
        values = [float(sum(map(Fraction, column)) / len(states)) for column in columns]
        exact = torch.tensor(values, dtype=torch.float64).view(states[0][name].shape)
        single = exact.float()  # rounded twice, but for bf16 sums by few more bits: checked here
        assert (
            not ((single.view(torch.int32) & 0xFFFF) == 0x8000).logical_and(single != exact).any()
        )
        found[name] = single.to(dtype)
    return found


# --- the command ---------------------------------------------------------------------------------


def test_a_run_with_all_that_trainers_leave(tmp_path: Path) -> None:
    states = make_run(tmp_path, 12)
    last = tmp_path / "checkpoint-600"
    for name, data in tokenizer_files().items():
        (last / name).write_bytes(data)
    write_json(last / "config.json", model_config(BF16, attention_dropout=0.5))
    out = tmp_path / "out"
    result = averaged(*checkpoints(tmp_path), out, "--threads", 2)
    assert result.code == 0, result.err
    assert_same_state(read_model(out), mean(states))
    assert sorted(p.name for p in out.iterdir()) == [
        *("README.md", "config.json", "fuseo1_checksums.json", "mergekit_config.yml"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    said = yaml.safe_load((out / "mergekit_config.yml").read_text())
    order = [str(tmp_path / f"checkpoint-{50 * (i + 1)}") for i in range(12)]
    assert [entry["model"] for entry in said["models"]] == order
    assert yaml.safe_load((out / "config.json").read_text())["attention_dropout"] == 0.5
    assert not verify_model(out, recompute=None).problems
    again = averaged(*checkpoints(tmp_path), out)
    assert again.code == 0 and "made by this very merge" in again.out


def test_natural_order() -> None:
    names = [
        "a/checkpoint-1000",
        "a/checkpoint-500",
        "a/best",
        "b/step_9",
        "a/checkpoint-007",
        "b/step_10",
        "c/" + "9" * 5000,
        "c/1",
    ]
    assert sorted(names, key=natural_order) == [
        *("a/best", "a/checkpoint-007", "a/checkpoint-500", "a/checkpoint-1000"),
        *("b/step_9", "b/step_10", "c/1", "c/" + "9" * 5000),
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--schedule", "ema"], ["the schedule ema needs a decay"]),
        (["--decay", "0.5"], ["decay is for the schedule ema, not for sma"]),
        (["--schedule", "ema", "--decay", "1.5"], ["parameters.decay: must be a number in [0, 1]"]),
    ],
)
def test_mistakes_in_schedules(argv: list[str], words: list[str], tmp_path: Path) -> None:
    make_run(tmp_path, 2)
    failed = averaged(*checkpoints(tmp_path), tmp_path / "out", *argv)
    one_error(failed.code, failed.err, *words)


def test_dry_run_and_help(tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    planned = averaged(*checkpoints(tmp_path), tmp_path / "out", "--dry-run")
    assert planned.code == 0 and "to read" in planned.out and not (tmp_path / "out").exists()
    helped = averaged("--help")
    assert helped.code == 0 and "checkpoint-500 before checkpoint-1000" in " ".join(
        helped.out.split()
    )


# --- many models ---------------------------------------------------------------------------------


def test_many_checkpoints_with_few_files_open(tmp_path: Path) -> None:
    """One group of inputs after the other; with a limit of 64 descriptors a group has few."""
    states = make_run(tmp_path, MANY)
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))
    out = tmp_path / "few"
    ran = spawn(
        *AVERAGE, *checkpoints(tmp_path), out, "-q", "--max-memory", "64MiB", preexec_fn=limit
    )
    assert ran.code == 0, ran.err
    assert_same_state(read_model(out), mean(states))
    assert averaged(*checkpoints(tmp_path), tmp_path / "many", "-q").code == 0
    assert weights(out) == weights(tmp_path / "many")


def test_linear_takes_the_same_path(tmp_path: Path) -> None:
    """Of more models than fuse takes; of fewer it has its own formula, which gives the same for models alike."""
    make_run(tmp_path, MANY)
    ordered = sorted(checkpoints(tmp_path), key=natural_order)
    for models in (MANY, 8):
        listed = [{"model": name} for name in ordered[:models]]
        config = tmp_path / "linear.yaml"
        linear = {"merge_method": "linear", "models": listed, "parameters": {"weight": 0.5}}
        config.write_text(yaml.safe_dump(linear))
        done(config, tmp_path / f"linear{models}", "-q")
        argv = [*ordered[:models], tmp_path / f"average{models}", "-q"]
        assert averaged(*argv).code == 0
        assert weights(tmp_path / f"linear{models}") == weights(tmp_path / f"average{models}")


def test_any_chunks_memory_threads_and_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, 70, (BF16, BF16, FP32, FP16))
    argv = [*checkpoints(tmp_path), "--schedule", "1-sqrt", "--dtype", "bfloat16", "-q"]
    assert averaged(*argv, tmp_path / "expected", "-j", 1).code == 0
    for number, (at_once, chunk, cache) in enumerate(
        ((4, 256, 0), (64, 1 << 9, None), (280, 512, 1 << 20))
    ):
        tune(monkeypatch, chunk=chunk, page_cache=cache)
        monkeypatch.setattr(averaging, "most_open", lambda most=at_once: most)
        out = tmp_path / str(number)
        assert averaged(*argv, out, "-j", number + 1, "--max-memory", "40MiB").code == 0
        assert weights(out) == weights(tmp_path / "expected")


def test_in_memory() -> None:
    tensors = [torch.full((3,), float(i)) for i in range(MANY)]
    for method, parameters in (("average", {}), ("linear", {"weight": 2.0})):
        merged = merge_tensors(tensors, method, parameters=parameters)
        assert merged.tolist() == [(MANY - 1) / 2] * 3


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({NORM: None}, [f"tensor {NORM}: missing in model", "checkpoint-350"]),
        (
            {"extra": torch.ones(2)},
            ["tensor extra: in model", "checkpoint-350, but missing in model"],
        ),
        (
            {NORM: torch.ones(33)},
            [f"tensor {NORM}: shapes differ (", "checkpoint-350: [33], 69 models: [32])"],
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_a_checkpoint_that_differs(
    change: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    states = make_run(tmp_path, 70)
    state = {name: t for name, t in (states[6] | change).items() if t is not None}
    write_model(tmp_path / "checkpoint-350", state, tokenizer={})
    failed = averaged(*checkpoints(tmp_path), tmp_path / "out")
    one_error(failed.code, failed.err, *words)
    planned = averaged(*checkpoints(tmp_path), tmp_path / "out", "--dry-run")
    problems = [line for line in planned.out.splitlines() if line.startswith("problem: ")]
    assert planned.code == 1 and len(problems) == 1 and words[0] in problems[0]


def test_what_is_not_finite(tmp_path: Path) -> None:
    states = make_run(tmp_path, 70)
    states[68][EMBED][3, 5] = torch.inf
    write_model(tmp_path / "checkpoint-3450", states[68], tokenizer={})
    failed = averaged(*checkpoints(tmp_path), tmp_path / "out")
    one_error(
        failed.code, failed.err, f"checkpoint-3450, tensor {EMBED}: 1 NaN or infinite elements"
    )
    assert averaged(*checkpoints(tmp_path), tmp_path / "out", "--nonfinite", "propagate").code == 0
    merged = read_model(tmp_path / "out")[EMBED]
    assert merged.isnan().nonzero().tolist() == [[3, 5]]


# --- cut short -----------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from fuseo1_kernels.checkpoint.sink import Sink
from fuseo1_kernels.cli import average
complete, done = Sink.complete, []
def count(self, records):
    complete(self, records)
    done.extend(records)
    if len(done) >= 2:
        os.kill(os.getpid(), signal.SIGKILL)
Sink.complete = count
from fuseo1_kernels.engine.tuning import DEFAULT_TUNING
from dataclasses import replace
average.main(sys.argv[1:], tuning=replace(DEFAULT_TUNING, batch=1))
"""


def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    make_run(tmp_path, 70)
    argv = [*checkpoints(tmp_path), tmp_path / "out", "--schedule", "wma"]
    killed = spawn("-c", _KILLED, *argv, "-q", "-j", 1)
    assert killed.code == -signal.SIGKILL, killed.err
    assert not (tmp_path / "out").exists()
    resumed = averaged(*argv, "-j", 2)
    assert resumed.code == 0 and "tensors were there from an earlier run" in resumed.out
    resumed_tree = tree(tmp_path / "out")
    assert averaged(*argv, "-q", "--overwrite", "--no-resume").code == 0
    assert tree(tmp_path / "out") == resumed_tree
