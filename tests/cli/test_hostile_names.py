"""Names that would act on a terminal, forge lines or never end: none of them reaches it as it is."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml

from fuseo1_kernels.cli.verify import main as verify
from support.checkpoint_files import sharded_model
from support.models import Family, write_model
from support.processes import run, spawn
from support.refusals import one_layer_family

#: Escape sequences, C0 and C1, delete, directions, separators; lines; and no end.
CONTROLS = "a\x1b[2J\x1b]0;b\x07\r\x08\x7f\x85\x9b2J\u202e\u2066\u200f\u2028\u2029\u00a0"
LINES = "a\nproblem: forged\n  forged"
ENDLESS = "\x1b" * 3000 + "e" * 3000
#: A file's name is short, and its bytes may be no text.
BYTES = os.fsdecode(b"a\xff\x9b")
TWO = {"a": ("BF16", (2, 3), bytes(12))}

Said = tuple[int, str]


def command(*argv: object) -> Iterator[Said]:
    """What `fuseo1-merge` says, dry or not, for people and for programs."""
    for options in ([], ["--dry-run"], ["--json"], ["--dry-run", "--json"]):
        result = run(*argv, *options)
        yield result.code, result.out + result.err


def tensor_is_missing(family: Family, name: str) -> Iterator[Said]:
    write_model(family.base, family.states[0] | {name: torch.ones(2)})
    return command(family.config, family.out)


def tensor_is_left_out(family: Family, name: str) -> Iterator[Said]:
    write_model(family.target(1), family.states[1] | {name: torch.ones(2)})
    return command(family.config, family.out, "--overwrite")


def tensor_is_not_finite(family: Family, name: str) -> Iterator[Said]:
    for number, state in enumerate(family.states):
        tensor = torch.full((2,), float("nan") if number else 1.0, dtype=torch.bfloat16)
        path = family.target(number) if number else family.base
        write_model(path, state | {name: tensor})
    return command(family.config, family.out)


def tensor_is_of_another_shape(family: Family, name: str) -> Iterator[Said]:
    for number, state in enumerate(family.states):
        path = family.target(number) if number else family.base
        write_model(path, state | {name: torch.ones(2 + number)})
    return command(family.config, family.out)


def all_tensors_have_a_prefix(family: Family, name: str) -> Iterator[Said]:
    write_model(family.target(1), {f"{name}.{n}": t for n, t in family.states[1].items()})
    return command(family.config, family.out)


def shard_is_missing(family: Family, name: str) -> Iterator[Said]:
    (family.target(1) / "model.safetensors").unlink()
    sharded_model(family.target(1), {"model-1.safetensors": TWO}, w=name)
    return command(family.config, family.out)


def shard_is_a_link(family: Family, name: str) -> Iterator[Said]:
    (family.target(1) / "model.safetensors").unlink()
    sharded_model(family.target(1), {"model-1.safetensors": TWO}, w=name)
    outside = family.home / f"outside{name}"
    outside.touch()
    (family.target(1) / name).symlink_to(outside)
    return command(family.config, family.out)


def key_in_the_config(family: Family, name: str) -> Iterator[Said]:
    family.configure(parameters={name: 1, "select_topk": {name: [name]}}, **{name: 5})
    return command(family.config, family.out)


def values_in_the_config(family: Family, name: str) -> Iterator[Said]:
    text = yaml.safe_dump(name)
    for key in ("merge_method", "dtype", "tokenizer_source", "chat_template", "base_model"):
        family.configure(**{key: name})
        yield from command(family.config, family.out)
    family.config.write_text(f"merge_method: sce\n? {text}\n: 1\n? {text}\n: 2\n")
    yield from command(family.config, family.out)


def config(family: Family, name: str) -> Iterator[Said]:
    return command(family.home / name, family.out)


def out(family: Family, name: str) -> Iterator[Said]:
    """The merge itself succeeds, and is told of in a table; then OUT is there."""
    return itertools.chain(
        command(family.config, family.home / name / "out"),
        command(family.config, family.home / name / "out", "--no-resume"),
        command(family.config, family.home / name),
    )


def values_on_the_command_line(family: Family, name: str) -> Iterator[Said]:
    for option in ("--threads", "--device", "--backend", "--max-memory", "--survey-topk"):
        yield from command(family.config, family.out, f"{option}={name}")
    yield from command(family.config, family.out, f"--{name}", name)


def model_to_verify(family: Family, name: str) -> Iterator[Said]:
    assert run(family.config, family.home / name).code in (0, 1)
    for file in (family.home / name).glob("*.json"):
        file.write_text("{}")
    for options in ([], ["--json"]):
        with redirect_stdout(StringIO()) as said, redirect_stderr(said):
            code = verify([str(family.home / name), *options])
        yield code, said.getvalue()


def tensor_to_verify(family: Family, name: str) -> Iterator[Said]:
    for number, state in enumerate(family.states):
        path = family.target(number) if number else family.base
        write_model(path, state | {name: torch.ones(4, dtype=torch.bfloat16)})
    assert run(family.config, family.out).code == 0
    weights = family.out / "model.safetensors"
    data = bytearray(weights.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    data[8 + length + header[name]["data_offsets"][0]] ^= 1
    weights.write_bytes(data)
    for options in ([], ["--json"]):
        with redirect_stdout(StringIO()) as said, redirect_stderr(said):
            code = verify([str(family.out), *options])
        assert code == 1
        yield code, said.getvalue()


PLACES: list[tuple[Callable[[Family, str], Iterator[Said]], tuple[str, ...]]] = [
    *((place, (CONTROLS, LINES, BYTES)) for place in (shard_is_a_link, out, model_to_verify)),
    *((place, (CONTROLS, LINES, ENDLESS, BYTES)) for place in (config, values_on_the_command_line)),
    *(
        (place, (CONTROLS, LINES, ENDLESS))
        for place in (
            *(tensor_is_missing, tensor_is_left_out, tensor_is_not_finite),
            *(tensor_is_of_another_shape, all_tensors_have_a_prefix, tensor_to_verify),
            *(shard_is_missing, key_in_the_config, values_in_the_config),
        )
    ),
]


@pytest.mark.parametrize(("place", "names"), PLACES, ids=lambda x: getattr(x, "__name__", ""))
def test_no_name_acts_on_the_terminal(
    place: Callable[[Family, str], Iterator[Said]], names: tuple[str, ...], tmp_path: Path
) -> None:
    for number, name in enumerate(names):
        family = one_layer_family(tmp_path / str(number))
        shown = 0
        for code, said in place(family, name):
            lines = said.splitlines()
            assert "Traceback" not in said
            assert said.replace("\n", "").isprintable()
            assert not any(line.startswith(("problem: forged", "  forged")) for line in lines)
            assert all(len(line) <= 2000 for line in lines if not line.startswith("{"))
            assert code in (0, 1, 2)
            assert code == 0 or "error" in said or "problem" in said
            shown += name[:5].encode("unicode_escape").decode()[:5] in said.replace("\\\\", "\\")
        assert shown or name == BYTES


def test_an_error_in_the_program_does_not_act_on_the_terminal(family: Family) -> None:
    code = (
        "import fuseo1_kernels.config.load as load\n"
        "def fail(config, **_): raise KeyError(config + '\\x1b[2J\\udcff')\n"
        "load.as_config = fail\n"
        "import sys\nfrom fuseo1_kernels.merge import main\nsys.exit(main())\n"
    )
    ran = spawn("-c", code, family.config, family.out, "--json")
    assert ran.code == 1 and ran.err.replace("\n", "").isprintable()
    assert r"\x1b[2J" in ran.err and "Traceback" in ran.err and "please report" in ran.err
    assert json.loads(ran.out).keys() == {"error"}
