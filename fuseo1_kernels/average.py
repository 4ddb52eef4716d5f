"""`python -m fuseo1_kernels.average CHECKPOINT ... OUT`: average checkpoints from the command line."""

from __future__ import annotations

import sys

from .cli.interruption import Interruption


def main() -> int:
    """Run the command of this process; return its exit code."""
    interruption = Interruption("fuseo1-average")

    def command() -> int:
        from .cli import average  # where a signal is answered already

        return average.main(interruption=interruption)

    return interruption.run(command, is_process=True)


if __name__ == "__main__":
    sys.exit(main())
