"""The former, documented name of `contract`: `from fuseo1_kernels.backends.requests import Magnitudes` still works."""

from .contract import *  # noqa: F403
