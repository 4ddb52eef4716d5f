"""The command line of `python -m fuseo1_kernels.mergekit`."""

from __future__ import annotations

from ..errors import MergeError
from .terminal import say


def main(argv: list[str] | None = None) -> int:
    """Run mergekit-yaml, then print to stderr how many tensors the kernels and mergekit merged.

    Return 1 if mergekit is missing or has another version; else end as mergekit-yaml does, by SystemExit.
    """
    from ..integrations import mergekit as kernels

    try:
        kernels.install()
    except MergeError as error:
        say(f"fuseo1-mergekit: error: {error.args[0]}", *error.args[1:])
        return 1
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    try:
        mergekit_yaml(argv, prog_name="fuseo1-mergekit")
    finally:
        counts = kernels.counts()
        if counts.merged or counts.left:
            say(f"fuseo1-mergekit: {counts}")
        kernels.uninstall()
    return 0
