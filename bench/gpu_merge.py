"""Whole merges on a GPU, page cache to page cache, beside plain copies to the device and back, and the CPU's merges.

    python bench/gpu_merge.py [--size 0.5B] [--turns 5] [--seconds 150] [--quick] [--results DIR]

In each turn of a backend (cuda, cpu, triton if it runs) the plain copies (gpu_copy.py), a merge of tiny models, for
the time of a start, and the merges follow each other. There are as many turns as fit into --seconds. The outputs'
bytes must be the CPU's. Models are drawn on the GPU, and need 8 GB of disk for a while. `bench/gpu.sh` builds and
tests first.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from checkpoints import SIZES, make_siblings, parameters
from gpu import backends, machine
from gpu_copy import DeviceCopies, try_copies
from gpu_merge_report import CPU, GPU, Turn, WholeMerges, goals, ratio, save, sections
from gpu_report import goals_table
from merges import TARGETS, Merges
from processes import MERGE
from report import SELECT_TOPK, WORK, median, parser

from fuseo1_kernels.engine.gpu.device import Device
from fuseo1_kernels.engine.gpu.pool import open_devices

#: A turn that may take as long as this one took, by this factor, is begun.
_SAFETY = 1.2


@dataclass
class Bench:
    """The state that all turns share."""

    merges: Merges
    tiny: Merges
    copies: DeviceCopies
    found: WholeMerges
    # The most seconds that a turn of a program took.
    took: dict[str, float] = field(default_factory=dict)

    def turn(self, program: str) -> None:
        """Take one turn; the first of a program begins with merges that are not counted, and looks at its outputs."""
        begun, first = time.monotonic(), program not in self.took
        if first:
            # Everything that is compiled once is compiled now: Python's modules, and Triton's kernels, which differ.
            for topk in SELECT_TOPK if program == "triton" else SELECT_TOPK[:1]:
                self._merge(self.tiny, program, topk)
        out = self.merges.work / "copy"
        copy = self.copies.take(self.merges.inputs, self.found.output_bytes, out)
        start = self._merge(self.tiny, program, SELECT_TOPK[1])
        digests: list[str] = []

        def look(made: Path) -> None:
            digests.append(digest(made))

        names = [f"{topk:g}" for topk in SELECT_TOPK]
        seconds = [
            self._merge(self.merges, program, topk, look if first else None) for topk in SELECT_TOPK
        ]
        merges = dict(zip(names, seconds, strict=True))
        self.found.turns.append(Turn(program, copy, start, merges))
        if first:
            self.found.digests[program] = dict(zip(names, digests, strict=True))
        self.took[program] = max(self.took.get(program, 0.0), time.monotonic() - begun)

    def _merge(
        self,
        merges: Merges,
        program: str,
        select_topk: float,
        look: Callable[[Path], object] | None = None,
    ) -> float:
        options = ("--device", "cpu" if program == CPU else "cuda", "--backend", program)
        command = merges.command(MERGE, select_topk, *options, "--quiet", "--json")
        told: list[str] = []
        seconds = merges.merge(command, look=look, told=told).seconds
        if look is not None:
            # Notes name the tensors that ran elsewhere than they should have.
            result = json.loads(told[0].splitlines()[-1])
            notes = [f"{program}, select_topk {select_topk:g}: {n}" for n in result["notes"]]
            self.found.notes += notes
            self.found.ran[program] = result["backend"]
        return seconds

    def may_take(self, program: str) -> float:
        """Return the seconds that a turn of a program may take: as long as it took, or any did."""
        if program in (GPU, CPU) and program not in self.took:
            return 0.0  # without these two nothing is known
        return _SAFETY * self.took.get(program, max(self.took.values(), default=0.0))


def digest(model: Path) -> str:
    """Return one digest of the weights in `model`, and of their index if there is one."""
    made = hashlib.sha256()
    for file in sorted(model.glob("model*")):
        made.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb", buffering=0) as stream:
            while piece := stream.read(8 << 20):
                made.update(piece)
    return made.hexdigest()


def make_bench(work: Path, size: str, device: Device, found: WholeMerges) -> Bench:
    """Make the models and find the best plain copies."""
    merges, tiny = (
        Merges(make_siblings(work / name / "models", of, TARGETS, device=drawn), work / name)
        for name, of, drawn in (("large", size, _drawn_on()), ("tiny", "tiny", "cpu"))
    )
    inputs = merges.inputs
    found.parameters, found.models = parameters(SIZES[size]), len(inputs)
    found.input_bytes = sum(file.stat().st_size for file in inputs)
    found.output_bytes = inputs[0].stat().st_size
    copies = try_copies(device, inputs, found.output_bytes, work / "copy")
    found.tried = {what: {str(s): t for s, t in of.items()} for what, of in copies.tried.items()}
    return Bench(merges, tiny, copies, found)


def _drawn_on() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def measure(
    bench: Bench, programs: list[str], turns: int, deadline: float, after_each: Callable[[], object]
) -> None:
    """Let the programs take turns, until the deadline; one that fails on the way is noted, unless it must not."""
    for number in range(turns):
        for program in list(programs):
            left = deadline - time.monotonic()
            if left < bench.may_take(program):
                why = f"{program}: {number} of {turns} turns, as {left:.0f} s were left"
                bench.found.notes.append(why)
                programs.remove(program)
                continue
            try:
                bench.turn(program)
            except SystemExit as error:
                if program in (GPU, CPU):
                    raise
                bench.merges.clear()
                bench.tiny.clear()
                bench.found.notes.append(f"{program}: {str(error).splitlines()[-1]}")
                programs.remove(program)
            after_each()


def summary(found: WholeMerges) -> str:
    """Return one line for the list of stages; SystemExit if what must be known is not, or is wrong."""
    told = []
    for topk in map("{:g}".format, SELECT_TOPK):
        whole, rest = (ratio(found, GPU, topk, start=start) for start in (True, False))
        for program in dict.fromkeys(turn.program for turn in found.turns):
            if found.same(program, topk) is False:
                raise SystemExit(f"{program}, select_topk {topk}: not the bytes of the CPU's merge")
        if whole is None or rest is None or found.same(GPU, topk) is None:
            raise SystemExit(f"not measured: select_topk {topk}; {'; '.join(found.notes)}")
        told.append(f"{topk}: {whole:.2f}x ({rest:.2f}x)")
    start = median(turn.start for turn in found.of(GPU))
    return f"of the slower plain copy (without the start, {start:.1f} s): {', '.join(told)}"


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add = arguments.add_argument
    add("--size", choices=SIZES, help="of the models (default 0.5B; tiny with --quick)")
    add("--turns", type=int, help="of each backend, at most (default 5; 1 with --quick)")
    seconds = float(os.environ.get("FUSEO1_SECONDS", "150"))
    add("--seconds", type=float, default=seconds, help="for all (default: %(default)g)")
    options = arguments.parse_args()
    deadline = time.monotonic() + options.seconds
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu_merge.py: torch finds no GPU here; nothing was measured")
    described, found = machine(), WholeMerges()
    programs = [gpu.name for gpu in backends(found.notes)]
    if GPU not in programs:
        raise SystemExit(f"bench/gpu_merge.py: {'; '.join(found.notes)}")
    programs.insert(programs.index(GPU) + 1, CPU)

    def publish() -> None:
        if options.results:
            save(options.results, described, found)

    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="gpu-merge-") as folder:
        [device] = open_devices((0,))
        size = options.size or ("tiny" if options.quick else "0.5B")
        bench = make_bench(Path(folder), size, device, found)
        torch.cuda.empty_cache()
        turns = options.turns or (1 if options.quick else 5)
        measure(bench, programs, turns, deadline, publish)
    publish()
    print("\n\n".join([goals_table(goals(found)), *sections(found)]))
    print(summary(found))


if __name__ == "__main__":
    main()
