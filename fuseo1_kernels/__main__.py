"""`python -m fuseo1_kernels`: prints versions and, for every backend, what it runs on or why it cannot run."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .backends.registry import backend_states
from .cli.terminal import standard_streams
from .version import __version__

_PACKAGES = ("torch", "numpy", "huggingface_hub", "pydantic")


def main() -> int:
    """Print the report; return the exit code 0."""
    with standard_streams("fuseo1-kernels"):
        _report()
    return 0


def _report() -> None:
    print(f"fuseo1-kernels {__version__}, Python {platform.python_version()}, {platform.machine()}")
    for package in _PACKAGES:
        try:
            print(f"  {package} {version(package)}")
        except PackageNotFoundError:
            print(f"  {package} not installed")
    built = [part for part in ("cpu", "cuda") if find_spec(f".backends._{part}", __package__)]
    print(f"kernels in this build: {', '.join(built) or 'none'}")
    print("backends (auto takes the first that runs):")
    for name, state in backend_states().items():
        print(f"  {name:<10} {state}")


if __name__ == "__main__":
    sys.exit(main())
