"""`python -m fuseo1_kernels.verify MODEL`: check a merged model from the command line."""

from __future__ import annotations

import sys

from .cli.interruption import Interruption


def main() -> int:
    """Run the command of this process; return its exit code."""
    interruption = Interruption("fuseo1-verify")

    def command() -> int:
        from .cli import verify  # where a signal is answered already

        return verify.main(interruption=interruption)

    return interruption.run(command, is_process=True)


if __name__ == "__main__":
    sys.exit(main())
