"""Print the requirements of an extra in pyproject.toml, one a line: `pip install -r` takes them.

    python .ci/extra.py NAME

pip itself installs an extra only together with the package, whose kernels it then builds again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
print(*project["optional-dependencies"][sys.argv[1]], sep="\n")
