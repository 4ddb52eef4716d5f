"""`python -m fuseo1_kernels.verify MODEL`: check a merged model from the command line."""

from __future__ import annotations

import sys

from .cli.verify import main

if __name__ == "__main__":
    sys.exit(main())
