"""`python -m fuseo1_kernels.merge CONFIG|RECIPE OUT`: merge checkpoints from the command line."""

from __future__ import annotations

import sys

from .cli.merge import main

if __name__ == "__main__":
    sys.exit(main())
