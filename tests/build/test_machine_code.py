"""nvcc compiles main loops that use no local memory and move 16 bytes at a time, and contracts nothing.

No GPU is needed: the built module is read.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import ROOT
from support.sass import Instruction, functions, loops, shortest_way, waits_between

pytestmark = pytest.mark.toolchain

# Template arguments as they are mangled: the most targets, what the operands are, and perhaps one more.
INSTANCE = re.compile(
    r"^_ZN6fuseo1\d+(\w+?)ILi(\d+)ENS_\d+(AllBf16|Mixed)E((?:Lb[01]|Li\d|Lin\d)?)E*v"
)
HOT = ("energy_all", "scan", "fuse", "fuse_general Lin1", "add_norms")
FEW = ("add_gram Lb0", "add_gram Lb1")  # of at most four targets
ELECTIONS = {"weighted": 1, "counted": 2, "none": 3}
FEW_BF16 = tuple(f"fuse_general Li{e}" for e in (0, *ELECTIONS.values()))
INSTANCES = [
    (k, n, e)
    for kernels, targets, elements in (
        (HOT, (1, 2, 3, 4, 8, 16), ("AllBf16", "Mixed")),
        (FEW, (1, 2, 3, 4), ("AllBf16", "Mixed")),
        (FEW_BF16, (1, 2, 3, 4), ("AllBf16",)),
    )
    for k in kernels
    for n in targets
    for e in elements
]
# Kernels of the exact path, and of the sample before it, of at most 8 or 16 targets, and how many loops each has: for
# digits, ties by stretches, ties of one stretch, energies.
EXACT = {"find_bracket": 1, "find_exactly": 4}
EXACT_INSTANCE = re.compile(r"^_ZN6fuseo1\d+(\w+?)ILi(\d+)E(?:Lb1E)?NS_6InputsEEEv")
# On the way of every full, aligned block: neither spilled registers, nor subroutines, nor elements one by one.
NEVER = r"^(LDL|STL|CALL)|^LDG\S*\.U8"
LOAD, STORE = r"LDG\S*\.128", r"STG\S*\.128"
# Every bf16 block takes these: loads, divisions, sums in shared memory, rounding to bf16 (by adding 0x7fff).
MUST = rf"^{LOAD}|^MUFU|^ATOMS|\b0x7fff\b|^F2FP\.BF16"
GPU_DOCS = ROOT / "docs/gpu.md"
# Of so many targets Block.load has all loads on their way before it uses the first.
AT_ONCE = {"AllBf16": 8, "Mixed": 4}

Code = dict[tuple[str, int, str], list[Instruction]]


def _cuobjdump() -> str | None:
    nvcc, triton = shutil.which("nvcc"), importlib.util.find_spec("triton")
    places = [Path(nvcc).resolve().parent] if nvcc else []
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends/nvidia/bin")
    named = [str(p / "cuobjdump") for p in places if (p / "cuobjdump").exists()]
    return shutil.which("cuobjdump") or next(iter(named), None)


@pytest.fixture(scope="module")
def dumped() -> tuple[str, str]:
    """(machine code, resource usage), of the newest architecture in the module."""
    if importlib.util.find_spec("fuseo1_kernels.backends._cuda") is None:
        pytest.skip("the CUDA part is not built here")
    tool = _cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump here: it comes with CUDA, and with triton")
    from fuseo1_kernels.backends import _cuda

    def dump(*options: str) -> str:
        command = [tool, *options, str(_cuda.__file__)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    newest = max(map(int, re.findall(r"\.sm_(\d+)\.cubin", dump("--list-elf"))))
    only = ("-arch", f"sm_{newest}")
    return dump(*only, "-sass"), dump(*only, "--dump-resource-usage")


@pytest.fixture(scope="module")
def listed(dumped: tuple[str, str]) -> dict[str, list[Instruction]]:
    """Every kernel's instructions, by its mangled name."""
    return functions(dumped[0])


@pytest.fixture(scope="module")
def newest(dumped: tuple[str, str]) -> int:
    """The architecture, such as 90."""
    return int(re.findall(r"\bcode for sm_(\d+)", dumped[0])[0])


@pytest.fixture(scope="module")
def code(listed: dict[str, list[Instruction]]) -> Code:
    found = {}
    for name, instructions in listed.items():
        match = INSTANCE.match(name)
        if (
            match
            and (kernel := f"{match.group(1)} {match.group(4)}".rstrip()) in HOT + FEW + FEW_BF16
        ):
            found[kernel, int(match.group(2)), match.group(3)] = instructions
    return found


def main_loops(code: Code, kernel: str, targets: int, elements: str) -> list[list[Instruction]]:
    """Those that load 16 bytes at a time, and nothing that NEVER has; fuse has one with and one without a mask."""
    found = loops(code[kernel, targets, elements], NEVER)
    return [loop for loop in found if count(loop, LOAD)]


def count(loop: list[Instruction], operation: str) -> int:
    return sum(re.match(operation, i.operation) is not None for i in loop)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "targets", "elements"), INSTANCES)
def test_the_main_loops(kernel: str, targets: int, elements: str, code: Code) -> None:
    found = main_loops(code, kernel, targets, elements)
    assert len(found) == (2 if kernel == "fuse" else 1)
    for loop in found:
        # An operand of fp32 takes two.
        assert count(loop, LOAD) == (targets + 1) * (2 if elements == "Mixed" else 1)
        # bf16 and fp16; fp32 is computed out of line.
        assert count(loop, STORE) == (2 if kernel.startswith("fuse") else 0)
        if targets <= AT_ONCE[elements]:
            assert waits_between(loop, LOAD) == []


@pytest.mark.slow
@pytest.mark.parametrize("targets", [8, 16])
@pytest.mark.parametrize("kernel", EXACT)
def test_the_exact_paths_loops(
    kernel: str, targets: int, listed: dict[str, list[Instruction]]
) -> None:
    """They read whole tensors, too, of any dtype."""
    matches = {name: EXACT_INSTANCE.match(name) for name in listed}
    [name] = [n for n, m in matches.items() if m and m.groups() == (kernel, str(targets))]
    loads = [count(loop, LOAD) for loop in loops(listed[name], NEVER)]
    assert [n for n in loads if n] == [2 * (targets + 1)] * EXACT[kernel]


@pytest.mark.slow
@pytest.mark.parametrize("targets", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("elements", ["AllBf16", "Mixed"])
def test_nothing_is_contracted(targets: int, elements: str, code: Code) -> None:
    """No division here: what is fused is what quantum_of fuses, whose sum is the number that rounds (2^23)."""
    loop = code["energy_all", targets, elements]
    fused = [i.text for i in loop if i.operation.startswith("FFMA")]
    assert fused
    assert [text for text in fused if not text.endswith(", 8388608")] == []


@pytest.mark.slow
def test_no_register_is_spilled(dumped: tuple[str, str]) -> None:
    """A kernel's stack is the copies of a block on which its rare paths work, one or two, and not a word more."""
    usage = re.findall(r"Function (\S+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dumped[1])
    assert usage
    for name, stack, local in usage:
        targets = re.search(r"ILi(\d+)E", name)
        copy = 32 * (int(targets.group(1)) + 1) if targets else 0
        assert (int(local), int(stack)) in {(0, 0), (0, copy), (0, 2 * copy)}, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", ["energies", "fuse", "masked fuse", "scan", *(f"fuse, {e}" for e in ELECTIONS)]
)
def test_no_more_instructions_than_the_docs_say(kernel: str, code: Code, newest: int) -> None:
    """Of a block of three bf16 targets, on the way that it must take."""
    if newest != 90:
        pytest.skip("the docs count instructions of sm_90")
    [row] = re.findall(rf"^\| {kernel} \| (\d+) \|", GPU_DOCS.read_text(encoding="utf-8"), re.M)
    name = {"energies": "energy_all", "masked fuse": "fuse"}.get(kernel, kernel)
    if "," in kernel:
        name = f"fuse_general Li{ELECTIONS[kernel.split(', ')[1]]}"
    instructions = code[name, 3, "AllBf16"]
    ways = [shortest_way(instructions, loop, MUST) for loop in main_loops(code, name, 3, "AllBf16")]
    assert (min if kernel == "fuse" else max)(ways) <= int(row)


@pytest.mark.slow
def test_registers_for_five_ctas(dumped: tuple[str, str], code: Code) -> None:
    """Of up to three targets a multiprocessor holds five CTAs or more: of 65,536 registers, 8 by 8."""
    taken = dict(re.findall(r"Function (\S+):\s+REG:(\d+)", dumped[1]))
    few = {
        name: match
        for name in taken
        if (match := INSTANCE.match(name)) and int(match.group(2)) <= 3
        if match.group(1) in ("energy_all", "scan", "fuse", "fuse_general")
        if match.group(4) != "Lin1"
    }
    assert len(few) == 3 * (3 * 2 + len(FEW_BF16))
    assert {n: int(taken[n]) for n in few if int(taken[n]) > 65_536 // (5 * 128) // 8 * 8} == {}


LISTING = """
        Function : kernel
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   BSSY B0, 0x80 ;
        /*0020*/              @!P1 BRA 0x50 ;
        /*0030*/                   LDG.E.EF.128 R4, desc[UR6][R18.64] ;
        /*0040*/                   BRA 0x70 ;
        /*0050*/                   STL.128 [R1], R4 ;
        /*0060*/                   CALL.REL.NOINC 0x48b0 ;
        /*0070*/                   BSYNC B0 ;
        /*0080*/                   LDG.E.EF.128 R8, desc[UR6][R20.64] ;
        /*0090*/                   FADD R12, R4, R8 ;
        /*00a0*/               @P0 BRA 0x10 ;
        /*00b0*/                   EXIT ;
"""


def test_a_rare_path_does_not_spoil_a_loop() -> None:
    [loop] = loops(functions(LISTING)["kernel"], NEVER)
    assert [i.address for i in loop] == [0x10, 0x20, 0x30, 0x40, 0x70, 0x80, 0x90, 0xA0]
    assert waits_between(loop, LOAD) == []


WAYS = """
        Function : kernel
        /*0000*/               @!P0 BRA 0x40 ;
        /*0010*/                   FADD R1, R2, R3 ;
        /*0020*/                   FADD R1, R1, R4 ;
        /*0030*/                   BRA 0x60 ;
        /*0040*/                   MUFU.RCP R1, R2 ;
        /*0050*/                   NOP ;
        /*0060*/                   STG.E.128 [R8.64], R1 ;
        /*0070*/               @P1 BRA 0x0 ;
        /*0080*/                   EXIT ;
"""


@pytest.mark.parametrize(("must", "passed"), [("STG", 5), ("MUFU", 5), ("FADD", 6)])
def test_the_shortest_way_that_passes_what_it_must(must: str, passed: int) -> None:
    code = functions(WAYS)["kernel"]
    [loop] = loops(code, NEVER)
    assert shortest_way(code, loop, must) == passed
    with pytest.raises(ValueError, match="no way leads from 0x10 to 0x40"):
        shortest_way(code, loop, "FADD|MUFU")


def test_local_memory_on_the_way_does() -> None:
    spilling = LISTING.replace("FADD R12, R4, R8", "STL [R1+0x10], R12")
    assert loops(functions(spilling)["kernel"], NEVER) == []


def test_a_load_that_is_waited_for() -> None:
    early = LISTING.replace("BSSY B0, 0x80", "FADD R12, R5, R6").replace(
        "BSYNC B0", "FADD R13, R7, R7"
    )
    [loop] = loops(functions(early)["kernel"], NEVER)
    assert waits_between(loop, LOAD) == ["FADD R13, R7, R7"]
