"""How long a merge of four 32B models takes to plan: `--dry-run` of a published recipe, start-up included.

    python bench/dry_run.py [--quick] [--runs 10] [--results DIR]

The models are Qwen2.5-32B's in all but their data: a hub cache of 4 x 17 sparse files with the true
headers (771 tensors), indices, configurations, and tokenizers of the true sizes, one model's other than
the rest's. They take no more disk than a few megabytes. --quick takes two layers of each.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import page_cache
from checkpoints import Size, model_config
from machine import describe
from processes import MERGE, Run, run
from report import WORK, median, parser, publish, table

RECIPE = "FuseO1-DeepSeekR1-QwQ-SkyT1-32B-Preview"
BASE = "Qwen/Qwen2.5-32B"
#: The one whose tokenizer has special tokens of its own.
OTHER = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"
MODELS = (BASE, "Qwen/QwQ-32B-Preview", OTHER, "NovaSky-AI/Sky-T1-32B-Preview")
QWEN_32B = Size(5120, 27648, 64, 40, 8, 152064)
_SHARD_BYTES = 4_000_000_000
_REVISION = "0123456789abcdef0123456789abcdef01234567"
_WORDS = 151_643  # of Qwen2.5's tokenizer, before its special tokens
_SPECIAL = 22


@dataclass(frozen=True)
class Figure:
    """All runs of one command."""

    what: str
    runs: list[Run]


def write_hub(hub: Path, size: Size) -> list[Path]:
    """Write a hub cache with MODELS in it; return the files with weights."""
    files = []
    for model in MODELS:
        folder = hub / f"models--{model.replace('/', '--')}"
        snapshot = folder / "snapshots" / _REVISION
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(_REVISION, encoding="utf-8")
        files += write_weights(snapshot, size)
        _write_json(snapshot / "config.json", model_config(size, _WORDS))
        _write_json(snapshot / "generation_config.json", {"eos_token_id": _WORDS})
        write_tokenizer(snapshot, "other" if model == OTHER else "special")
    return files


def write_weights(folder: Path, size: Size) -> list[Path]:
    """Write sparse shards as Hugging Face lays them out, and their index; return the shards."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in size.shapes().items():
        if shards[-1] and filled + _bytes(shape) > _SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += _bytes(shape)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shapes in zip(names, shards, strict=True):
        _write_sparse(folder / name, shapes)
    index = {
        "metadata": {"total_size": sum(map(_bytes, size.shapes().values()))},
        "weight_map": {
            tensor: name for name, shapes in zip(names, shards, strict=True) for tensor in shapes
        },
    }
    _write_json(folder / "model.safetensors.index.json", index)
    return [folder / name for name in names]


def write_tokenizer(folder: Path, special: str) -> None:
    """Write a tokenizer as large as Qwen2.5's: 151,643 words, merges, `special` tokens."""
    words = [f"Ġ{i:015x}" for i in range(_WORDS)]
    tokens = [{"id": _WORDS + i, "content": f"<|{special}-{i}|>"} for i in range(_SPECIAL)]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = [token | flags | {"special": True} for token in tokens]
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": added,
            "model": {
                "type": "BPE",
                "vocab": {word: i for i, word in enumerate(words)},
                "merges": [f"{word[:3]} {word[3:]}" for word in words],
            },
        },
    )
    decoder = {str(token["id"]): token for token in added}
    _write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})


def _bytes(shape: Sequence[int]) -> int:
    count = 2
    for side in shape:
        count *= side
    return count


def _write_sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file whose data is a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _bytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with file.open("wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        stream.truncate(8 + len(content) + end)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def measure(hub: Path, files: Sequence[Path], runs: int) -> list[Figure]:
    """Take turns: Python alone, `--help`, and dry runs with the headers in the page cache and not."""
    offline = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    dry = [*MERGE, RECIPE, "--dry-run"]
    taken: dict[str, list[Run]] = {}
    for _ in range(runs):
        for what, command in (
            ("python -c pass", [sys.executable, "-c", "pass"]),
            ("--help", [*MERGE, "--help"]),
            ("--dry-run, warm page cache", dry),
            ("--dry-run, files not in the page cache", dry),
        ):
            if what.endswith("not in the page cache"):
                page_cache.drop(files)
            taken.setdefault(what, []).append(run(command, environment=offline))
    return [Figure(what, done) for what, done in taken.items()]


def figures_table(figures: Sequence[Figure]) -> str:
    rows = [
        [
            f.what,
            str(len(f.runs)),
            f"{median(run.seconds for run in f.runs):.3f}",
            f"{min(run.seconds for run in f.runs):.3f}",
            f"{max(run.seconds for run in f.runs):.3f}",
            f"{max(run.held for run in f.runs) / 1e6:.0f}",
        ]
        for f in figures
    ]
    return table(["command", "runs", "seconds", "min", "max", "peak MB"], rows)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, help="of each (default 10; 1 with --quick)")
    options = arguments.parse_args()
    size = replace(QWEN_32B, layers=2) if options.quick else QWEN_32B

    described = describe()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="dry-run-") as folder:
        hub = Path(folder) / "hub"
        files = write_hub(hub, size)
        figures = measure(hub, files, options.runs or (1 if options.quick else 10))
        on_disk = sum(file.stat().st_size for file in files)
    tensors, shards = len(size.shapes()), len(files) // len(MODELS)
    title = (
        f"Planning {RECIPE}: {len(MODELS)} models of {tensors} tensors in {shards} files,"
        f" {on_disk / 1e9:.0f} GB if they were not sparse"
    )
    data = [asdict(f) for f in figures]
    publish(options, described, "dry_run", title, [figures_table(figures)], data)


if __name__ == "__main__":
    main()
