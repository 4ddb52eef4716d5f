"""Print the requirements of an extra of the installed package, one a line: `pip install -r` takes them.

    python .ci/extra.py NAME

pip itself installs an extra only together with the package, whose kernels it then builds again.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires

name = sys.argv[1]
marker = re.compile(rf"""\s*(;|\band)\s*extra\s*==\s*["']{name}["']\s*$""")
for requirement in requires("fuseo1-kernels") or ():
    if marker.search(requirement):
        print(marker.sub("", requirement))
