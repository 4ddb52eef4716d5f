"""`python -m fuseo1_kernels.mergekit CFG OUT [any mergekit-yaml option]`: mergekit-yaml with the kernels inside."""

from __future__ import annotations

import sys

from .cli.mergekit import main

if __name__ == "__main__":
    sys.exit(main())
