"""Command lines that are refused: a clear message, exit code 1, and nothing on the disk has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from support.models import Family, base_state, make_family, snapshot, tuned, write_model
from support.processes import run

UP = "model.layers.0.mlp.up_proj.weight"


def one_layer_family(home: Path) -> Family:
    base = base_state(layers=1)
    return make_family(home, [base, tuned(base, 1), tuned(base, 2)])


def refused(family: Family, *options: object, words: Sequence[object]) -> str:
    """The merge fails, names `words`, and leaves OUT as it is: absent, and with an older model."""
    old = family.home / "old" / "model"
    if not old.exists():
        write_model(old, {"w": torch.ones(3)})
    before = snapshot(family.home)
    said = set()
    for out, *more in ([family.out], [old, "--overwrite"]):
        result = run(family.config, out, *more, *options)
        assert result.code == 1, result
        assert result.out == ""
        assert snapshot(family.home) == before
        lines = result.err.splitlines()
        while lines and not lines[0].startswith("fuseo1-merge: error: "):
            assert lines.pop(0).startswith("merging ")
        said.add("\n".join(lines).replace(str(out), "OUT"))
    assert len(said) == 1
    message = said.pop()
    assert message.count("error: ") == 1 and "Traceback" not in message
    for word in words:
        assert str(word) in message, (word, message)
    return message


def untouched(family: Family, out: Path, *options: object, words: Sequence[object]) -> None:
    """The merge to `out` fails, names `words`, and changes nothing."""
    before = snapshot(family.home)
    result = run(family.config, out, *options)
    assert result.code == 1
    assert result.out == "" and result.err.count("error: ") == 1
    for word in words:
        assert str(word) in result.err
    assert snapshot(family.home) == before
