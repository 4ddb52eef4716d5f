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

from support.sass import Instruction, functions, loops, waits_between

pytestmark = pytest.mark.toolchain

# Template arguments as they are mangled: the most targets, what the operands are, and perhaps one more.
INSTANCE = re.compile(r"^_ZN6fuseo1\d+(\w+?)ILi(\d+)ENS_\d+(AllBf16|Mixed)E([fd]|Lb[01]|)E")
HOT = ("energy_all", "scan", "fuse", "fuse_general f", "fuse_general d", "add_norms")
FEW = ("add_gram Lb0", "add_gram Lb1")  # of at most four targets
INSTANCES = [
    (k, n, e)
    for kernels, targets in ((HOT, (1, 2, 3, 4, 8, 16)), (FEW, (1, 2, 3, 4)))
    for k in kernels
    for n in targets
    for e in ("AllBf16", "Mixed")
]
# On the way of every full, aligned block: neither spilled registers, nor subroutines, nor elements one by one.
NEVER = r"^(LDL|STL|CALL)|^LDG\S*\.U8"
LOAD, STORE = r"LDG\S*\.128", r"STG\S*\.128"
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
def code(dumped: tuple[str, str]) -> Code:
    return hot_kernels(dumped[0])


def hot_kernels(listing: str) -> Code:
    found = {}
    for name, instructions in functions(listing).items():
        match = INSTANCE.match(name)
        if match and (kernel := f"{match.group(1)} {match.group(4)}".rstrip()) in HOT + FEW:
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
        # bf16, fp16, and fp32 in two.
        assert count(loop, STORE) == (4 if kernel.startswith("fuse") else 0)
        if targets <= AT_ONCE[elements]:
            assert waits_between(loop, LOAD) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "targets", "elements"), INSTANCES)
def test_nothing_is_contracted(kernel: str, targets: int, elements: str, code: Code) -> None:
    if kernel == "energy_all":
        # No division here: what is fused is what quantum_of fuses, whose sum is the number that rounds (2^23).
        fused = [i.text for i in code[kernel, targets, elements] if i.operation.startswith("FFMA")]
        assert fused
        assert [text for text in fused if not text.endswith(", 8388608")] == []
    if kernel.startswith("fuse"):
        # Every weight's product is rounded before it is added.
        product = "DMUL" if kernel.endswith("d") else "FMUL"
        found = main_loops(code, kernel, targets, elements)
        assert found
        assert all(count(loop, product) >= 8 * targets for loop in found)


@pytest.mark.slow
def test_no_register_is_spilled(dumped: tuple[str, str]) -> None:
    """A kernel's stack is the copies of a block on which its rare paths work, one or two, and not a word more."""
    usage = re.findall(r"Function (\S+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dumped[1])
    assert usage
    for name, stack, local in usage:
        targets = re.search(r"ILi(\d+)E", name)
        copy = 32 * (int(targets.group(1)) + 1) if targets else 0
        assert (int(local), int(stack)) in {(0, 0), (0, copy), (0, 2 * copy)}, name


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


def test_local_memory_on_the_way_does() -> None:
    spilling = LISTING.replace("FADD R12, R4, R8", "STL [R1+0x10], R12")
    assert loops(functions(spilling)["kernel"], NEVER) == []


def test_a_load_that_is_waited_for() -> None:
    early = LISTING.replace("BSSY B0, 0x80", "FADD R12, R5, R6").replace(
        "BSYNC B0", "FADD R13, R7, R7"
    )
    [loop] = loops(functions(early)["kernel"], NEVER)
    assert waits_between(loop, LOAD) == ["FADD R13, R7, R7"]
