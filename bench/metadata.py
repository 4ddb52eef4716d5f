"""How much memory a merge takes for what is not tensor data: headers of many tensors, large vocabularies.

    python bench/metadata.py [--quick] [--results DIR]

Three models each, of tensors of 64 bytes. The peak is that of the whole process, VmHWM. The vocabularies are
a million words in each model's vocab.txt, and a tokenizer.json of 64 MiB that was made to do harm.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import describe
from processes import OFTEN, run
from report import WORK, parser, publish, table

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from support.headers import EXPERTS, write_experts

TENSORS = (1_000, 20_000, 100_000)
WORDS = 1 << 20

_MERGE = """
import sys
from pathlib import Path
from fuseo1_kernels import merge_checkpoints
from fuseo1_kernels.errors import MergeError
try:
    merge_checkpoints(sys.argv[1], sys.argv[2], threads=1, max_memory=int(sys.argv[3]))
    print("merged")
except MergeError as error:
    print(error)
"""


@dataclass(frozen=True)
class Figure:
    """A merge with `max_memory` bytes: the process's peak in bytes, and how the merge ended."""

    what: str
    max_memory: int
    peak: int
    ended: str


def write_words(home: Path, words: int) -> None:
    """Give each model a vocabulary of so many words, the same one."""
    text = "".join(f"word{i}\n" for i in range(words))
    for name in EXPERTS:
        (home / name / "vocab.txt").write_text(text)


def write_hostile(home: Path, nbytes: int) -> None:
    """Give the base a tokenizer.json of so many bytes that takes much memory as objects."""
    start, piece, end = '{"model":{"vocab":{}},"x":[', "[[]],", "0]}"
    text = start + piece * ((nbytes - len(start) - len(end)) // len(piece)) + end
    (home / "base" / "tokenizer.json").write_text(text)


def measure(
    what: str, home: Path, tensors: int, max_memory: int, change: Callable[[Path], None]
) -> Figure:
    """Merge three models of `tensors` tensors, and of what `change` makes of them."""
    config = write_experts(home, tensors)
    change(home)
    told: list[str] = []
    command = [sys.executable, "-c", _MERGE, str(config), str(home / "out"), str(max_memory)]
    ran = run(command, every=OFTEN, told=told)
    return Figure(what, max_memory, ran.resident, told[0].strip())


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    described = describe()
    shrink = 100 if options.quick else 1
    WORK.mkdir(exist_ok=True)
    figures = []
    with tempfile.TemporaryDirectory(dir=WORK, prefix="metadata-") as folder:
        home = Path(folder)
        for count in TENSORS:
            what = f"3 x {count // shrink:,} tensors"
            place = home / str(count)
            figures.append(measure(what, place, count // shrink, 512 << 20, lambda _: None))
        words, size = WORDS // shrink, (64 << 20) // shrink
        for what, change in (
            (f"3 vocabularies of {words:,} words", lambda at: write_words(at, words)),
            (f"a hostile tokenizer.json of {size:,} bytes", lambda at: write_hostile(at, size)),
        ):
            for most in (64 << 20, 2 << 30):
                figures.append(measure(what, home / f"{what}, {most}", 10, most, change))
    rows = [
        [f.what, f"{f.max_memory >> 20} MiB", f"{f.peak >> 20} MiB", f.ended.split(": ")[-1][:120]]
        for f in figures
    ]
    section = table(["models", "--max-memory", "peak", "ended"], rows)
    publish(
        options,
        described,
        "metadata",
        "What is not tensor data, in memory",
        [section],
        [asdict(figure) for figure in figures],
    )


if __name__ == "__main__":
    main()
