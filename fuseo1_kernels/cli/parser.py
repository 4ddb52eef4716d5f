"""Parses command lines: help in groups, with examples, and errors that are printed as all others are."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .report import print_error


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that guesses no option from its beginning. Under --json its errors are JSON too."""

    def __init__(
        self, prog: str, usage: str, description: str, epilog: str, *, intermixed: bool = False
    ) -> None:
        """`intermixed`: options may stand between positional arguments of any number."""
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self._json, self._intermixed = False, intermixed

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Return the values of the arguments. Raises SystemExit, with 2 for an error."""
        self._json = "--json" in (sys.argv[1:] if args is None else args)
        if self._intermixed:
            return super().parse_intermixed_args(args, namespace)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print_error(self.prog, message, as_json=self._json)
        self.exit(2)


def add_allow_links(group: Any) -> None:
    """Add --allow-links, which merge and verify share, to a parser or a group of its options."""
    group.add_argument(
        "--allow-links",
        action="append",
        type=os.path.expanduser,
        default=[],
        metavar="DIR",
        help="a directory outside of a model to which links in it may lead, such as another disk's; more than once"
        " for several",
    )


class _Formatter(argparse.HelpFormatter):
    """Keeps the lines of the text at the end, which has examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)
