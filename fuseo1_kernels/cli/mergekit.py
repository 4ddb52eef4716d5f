"""The command line of `python -m fuseo1_kernels.mergekit`."""

from __future__ import annotations

import sys

from ..errors import MergeError


def main(argv: list[str] | None = None) -> int:
    """Run mergekit-yaml; then one line on stderr says who merged how many tensors.

    Returns 1 where mergekit is missing or of another version; else ends as mergekit-yaml does, by SystemExit.
    """
    from ..integrations import mergekit as kernels

    try:
        kernels.install()
    except MergeError as error:
        print(f"fuseo1-mergekit: error: {error}", file=sys.stderr)
        return 1
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    try:
        mergekit_yaml(argv, prog_name="fuseo1-mergekit")
    finally:
        found = kernels.counts()
        if found.merged or found.left:
            print(f"fuseo1-mergekit: {found}", file=sys.stderr)
        kernels.uninstall()
    return 0
