"""The machine code of NVIDIA GPUs, as cuobjdump lists it: what is on a kernel's main loop, and what beside it."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
# These instructions end a basic block.
_LEAVES = re.compile(r"^(BRA|BRX|EXIT|RET|BSYNC|JMP)\b")


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str

    @property
    def plain(self) -> str:
        """Without the predicate."""
        return _PREDICATE.sub("", self.text)

    @property
    def operation(self) -> str:
        return self.plain.split()[0]

    @property
    def conditional(self) -> bool:
        return (
            self.plain != self.text
            or re.match(r"BRA(\.\w+)* !?U?[PR]\w+, ", self.plain) is not None
        )

    @property
    def label(self) -> int | None:
        """The address that it names."""
        found = re.search(r"\b0x([0-9a-f]+)$", self.text)
        return int(found.group(1), 16) if found else None


def functions(listing: str) -> dict[str, list[Instruction]]:
    """Every kernel's instructions, by its mangled name."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in listing.splitlines():
        if name := _FUNCTION.match(line):
            current = found.setdefault(name.group(1), [])
        elif instruction := _INSTRUCTION.match(line):
            current.append(Instruction(int(instruction.group(1), 16), instruction.group(2)))
    return found


def _blocks(code: Sequence[Instruction]) -> dict[int, list[Instruction]]:
    """Stretches that are run from the first instruction to the last, by their first address."""
    starts = {code[0].address}
    for before, after in itertools.pairwise(code):
        if _LEAVES.match(before.plain):
            starts.add(after.address)
        if before.label is not None and re.match(r"BRA|BSSY", before.plain):
            starts.add(before.label)
    blocks: dict[int, list[Instruction]] = {}
    current: list[Instruction] = []
    for instruction in code:
        if instruction.address in starts:
            current = blocks[instruction.address] = []
        current.append(instruction)
    return blocks


def _followers(code: Sequence[Instruction]) -> Iterator[tuple[int, int]]:
    """From which block control goes to which. Calls return, and divergent warps are left out."""
    blocks = _blocks(code)
    order = [*blocks, None]
    meet: dict[str, int] = {}  # where a barrier's threads meet, by the BSSY seen last
    for start, following in zip(blocks, order[1:], strict=True):
        for instruction in blocks[start]:
            if instruction.operation == "BSSY" and instruction.label is not None:
                meet[instruction.plain.split()[1].rstrip(",")] = instruction.label
        last = blocks[start][-1]
        goes_on = not _LEAVES.match(last.plain) or last.conditional
        if last.operation == "BSYNC":
            yield start, meet[last.plain.split()[1]]
        elif last.operation.startswith("BRA") and last.operation != "BRA.DIV":
            assert last.label is not None, last.text
            yield start, last.label
        if (goes_on or last.operation == "BRA.DIV") and following is not None:
            yield start, following


def loops(code: Sequence[Instruction], avoided: str) -> list[list[Instruction]]:
    """The loops that can go round without an instruction that `avoided` matches: of each, all that it can pass."""
    blocks = {
        start: block
        for start, block in _blocks(code).items()
        if not any(re.search(avoided, i.plain) for i in block)
    }
    edges: dict[int, set[int]] = {start: set() for start in blocks}
    for start, to in _followers(code):
        if start in blocks and to in blocks:
            edges[start].add(to)
    back: dict[int, set[int]] = {start: set() for start in blocks}
    for start, ends in edges.items():
        for to in ends:
            back[to].add(start)
    found, left = [], set(blocks)
    while left:
        start = min(left)
        loop = _reachable(start, edges) & _reachable(start, back)
        left -= {start, *loop}
        if loop:
            found.append([i for block in sorted(loop) for i in blocks[block]])
    return found


def shortest_way(code: Sequence[Instruction], loop: Sequence[Instruction], must: str) -> int:
    """Instructions of the shortest way once round a loop of `code` that passes all that `must` matches.

    Raises ValueError if no way passes all of that.
    """
    inside = {i.address for i in loop}
    blocks = {start: block for start, block in _blocks(code).items() if start in inside}
    head = min(blocks)
    edges: dict[int, set[int]] = {start: set() for start in blocks}
    for start, to in _followers(code):
        if start in blocks and to in blocks:
            edges[start].add(to)
    onward = {start: ends - {head} for start, ends in edges.items()}
    after = {start: _reachable(start, onward) for start in blocks}
    needed = {s for s, block in blocks.items() if any(re.search(must, i.plain) for i in block)}
    # Of two on one way the first reaches more of the others.
    stops = sorted({head} | needed, key=lambda s: len(after[s] & needed), reverse=True)
    return sum(
        _distance(start, to, onward if to != head else edges, blocks)
        for start, to in zip(stops, [*stops[1:], head], strict=True)
    )


def _distance(
    start: int, end: int, edges: dict[int, set[int]], blocks: dict[int, list[Instruction]]
) -> int:
    """The fewest instructions from the beginning of one block to that of another."""
    open_ends, done = [(0, start)], set[int]()
    while open_ends:
        so_far, at = heapq.heappop(open_ends)
        if at == end and so_far:
            return so_far
        if at in done:
            continue
        done.add(at)
        for to in edges[at]:
            heapq.heappush(open_ends, (so_far + len(blocks[at]), to))
    raise ValueError(f"no way leads from {start:#x} to {end:#x}")


def _reachable(start: int, edges: dict[int, set[int]]) -> set[int]:
    """Where control can go from a block; to itself only by a loop."""
    found: set[int] = set()
    open_ends = [start]
    while open_ends:
        for to in edges[open_ends.pop()] - found:
            found.add(to)
            open_ends.append(to)
    return found


def waits_between(loop: Sequence[Instruction], loads: str) -> list[str]:
    """Instructions that need what a load brought before the last load is on its way."""
    places = [k for k, i in enumerate(loop) if re.match(loads, i.operation)]
    pending: set[int] = set()
    waiting = []
    for k, instruction in enumerate(loop[: places[-1] + 1]):
        registers = [int(r) for r in re.findall(r"\bR(\d+)", instruction.plain)]
        if k in places:
            first, *sources = registers
            if pending & set(sources):
                waiting.append(instruction.text)
            pending |= set(range(first, first + 4))
        elif pending & set(registers):
            waiting.append(instruction.text)
    return waiting
