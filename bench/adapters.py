"""A LoRA adapter added to its model: ours beside PEFT's merge_and_unload and save_pretrained.

    python bench/adapters.py [--size 0.5B] [--rank 16] [--models DIR] [--quick] [--no-peer] [--runs 5] [--results DIR]

Every run is a process of its own, with the inputs in the page cache. In each turn ours and PEFT's follow each other,
the one first in even turns, the other in odd ones, and the ratios are taken turn by turn. Beside PEFT's whole process
stands what it takes without imports, and without loading the model; ours is always the whole process. One more run of
ours, at --max-memory 256MiB, is watched every 2 ms.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from checkpoints import SIZES, Size, make_siblings, parameters, siblings_in
from goals import Goal, at_least, verdict
from machine import describe
from merges import prepare
from processes import MERGE, OFTEN, Run, run
from report import WORK, median, parser, publish, table

from fuseo1_kernels.checkpoint.header import write_header

PEFT = (sys.executable, str(Path(__file__).resolve().parent / "peft_merge.py"))
BUDGET = ("--max-memory", "256MiB")
MOST_HELD = 300_000_000
FASTER = 5.0


@dataclass(frozen=True)
class Turn:
    """One merge of ours, and one of PEFT's right before or after it with the seconds of its parts."""

    ours: Run
    peft: Run | None
    parts: dict[str, float]


def write_adapter(path: Path, base: Path, size: Size, rank: int) -> Path:
    """Write an adapter of random numbers for every matrix of the layers, in fp32, as PEFT saves it."""
    generator = torch.Generator().manual_seed(rank)
    tensors = {}
    for name, shape in size.shapes().items():
        if len(shape) == 2 and ".layers." in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            for part, dimensions in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                numbers = torch.randn(dimensions, generator=generator) * 0.01
                tensors[f"{module}.lora_{part}.weight"] = numbers
    path.mkdir()
    described = [(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    with open(path / "adapter_model.safetensors", "wb") as file:
        file.write(write_header(described, {"format": "pt"}))
        for tensor in tensors.values():
            file.write(tensor.numpy().data)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
    }
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def measure(base: Path, adapter: Path, work: Path, runs: int, peer: bool) -> tuple[list[Turn], Run]:
    """Return the turns, and the run of ours whose memory was watched."""
    recipe, out = work / "merge.yaml", work / "out"
    config = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}]}
    recipe.write_text(json.dumps({**config, "dtype": "bfloat16"}), encoding="utf-8")
    inputs = [base / "model.safetensors", adapter / "adapter_model.safetensors"]
    ours = [*MERGE, str(recipe), str(out), *BUDGET]
    peft = [*PEFT, str(base), str(adapter), str(out)]

    def one(command: list[str], told: list[str] | None = None, **options: float) -> Run:
        prepare(inputs, cold=False)
        done = run(command, told=told, environment={"HF_HUB_OFFLINE": "1"}, **options)
        shutil.rmtree(out)
        return done

    turns = []
    for number in range(runs):
        said: list[str] = []
        first = one(ours) if number % 2 == 0 else None
        theirs = one(peft, said) if peer else None
        mine = first or one(ours)
        parts = json.loads(said[0].splitlines()[-1]) if said else {}
        turns.append(Turn(mine, theirs, parts))
    return turns, one(ours, every=OFTEN)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add = arguments.add_argument
    add("--size", choices=SIZES, default="0.5B", help="of the model (default 0.5B)")
    add("--rank", type=int, default=16, help="of the adapter (default 16)")
    add(
        "--models",
        type=Path,
        metavar="DIR",
        help="made before by checkpoints.py; its base is taken",
    )
    add("--runs", type=int, default=5, help="of both (default 5)")
    options = arguments.parse_args()
    size = "tiny" if options.quick else options.size
    runs = 1 if options.quick else options.runs
    described = describe()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="adapters-") as made:
        work = Path(made)
        models = (
            siblings_in(options.models, 0)
            if options.models
            else make_siblings(work / "models", size, 0)
        )
        adapter = write_adapter(work / "adapter", models.base, SIZES[size], options.rank)
        turns, watched = measure(models.base, adapter, work, runs, not options.no_peer)
    rows = [_row("fuseo1_kernels.merge", [turn.ours for turn in turns])]
    goals = [_memory(watched.held)]
    if not options.no_peer:
        rows.append(_row("PEFT", [turn.peft for turn in turns if turn.peft]))
        for parts in (("load", "merge", "save"), ("merge", "save")):
            taken = [sum(turn.parts[part] for part in parts) for turn in turns]
            over = median(t / turn.ours.seconds for t, turn in zip(taken, turns, strict=True))
            rows.append([f"PEFT: {', '.join(parts)} ({over:.1f}x ours)", *_seconds(taken), ""])
        whole = median(turn.peft.seconds / turn.ours.seconds for turn in turns if turn.peft)
        goals.append(at_least("over PEFT, whole processes", FASTER, whole, "x"))
    sections = [
        table(["program", "seconds", "min", "peak MB"], rows),
        table(
            ["what", "goal", "reached", "met"],
            [[g.what, g.goal, g.reached, verdict(g.met)] for g in goals],
        ),
    ]
    title = f"A LoRA adapter of rank {options.rank}, {parameters(SIZES[size]):,} parameters"
    figures = {"turns": [asdict(turn) for turn in turns], "watched": asdict(watched)}
    publish(options, described, "adapters", title, sections, figures)


def _row(program: str, runs: list[Run]) -> list[str]:
    held = max(done.held for done in runs) / 1e6
    return [program, *_seconds([done.seconds for done in runs]), f"{held:.0f}"]


def _seconds(taken: list[float]) -> list[str]:
    return [f"{median(taken):.2f}", f"{min(taken):.2f}"]


def _memory(held: int) -> Goal:
    what = f"memory that no file backs, at {' '.join(BUDGET)}"
    return Goal(what, f"<= {MOST_HELD / 1e6:.0f} MB", f"{held / 1e6:.0f} MB", held <= MOST_HELD)


if __name__ == "__main__":
    main()
