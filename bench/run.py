"""Rerun all figures: what `make bench` calls.

    python bench/run.py [--quick] [--no-peer] [--results DIR]

--quick runs everything at tiny sizes, in about a minute, and writes nothing but to --results.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from report import WORK, parser

_HERE = Path(__file__).resolve().parent


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    shared = [
        *(["--quick"] if options.quick else []),
        *(["--no-peer"] if options.no_peer else []),
        *(["--results", str(options.results.resolve())] if options.results else []),
    ]
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", "bench/test_bench_ops.py"]
    pytest += (
        ["--benchmark-disable"] if options.quick else ["--benchmark-columns=median,iqr,rounds"]
    )
    alone = ["ops.py", "methods.py", "accuracy.py", "dry_run.py", "metadata.py"]
    alone += ["storage.py", "average.py"]
    of_models = ["whole_merge.py", "growth.py", "drop_in.py", "adapters.py"]
    commands = [["bench/" + name, *shared] for name in [*alone, *of_models]]
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="models-") as models:
        if not options.quick:
            # These share the large models; what --quick needs they make in a moment.
            for command in commands[len(alone) :]:
                command += ["--models", models]
            commands.insert(len(alone), ["bench/checkpoints.py", models, "--size", "0.5B"])
        for command in [*commands, pytest]:
            # From the repository's root, where the package is if it is not installed.
            subprocess.run([sys.executable, *command], cwd=_HERE.parent, check=True)


if __name__ == "__main__":
    main()
