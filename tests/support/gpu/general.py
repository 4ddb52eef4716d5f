"""The tests of what the GPU's kernels do beyond SCE, on the host as on a GPU (support/gpu/grid.py): the CPU's bits."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.contract import (
    NONE,
    Band,
    Cut,
    Draw,
    Elect,
    FuseParams,
    Gram,
    Magnitudes,
    Norms,
    Overlaps,
    Request,
    Select,
)
from fuseo1_kernels.backends.interface import GpuBackend
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.in_memory import ops, tensor_merge
from fuseo1_kernels.in_memory.ops import as_array as array
from fuseo1_kernels.methods import task_arithmetic
from support.fuse_cases import ELECTS, MODES, selections, tensors_of, weights_of
from support.gpu.data import (
    KINDS,
    constant,
    halves,
    nonfinite,
    overflowing,
    tied,
    tuned,
    two_values,
)
from support.gpu.grid import INTERPRETED, MOST, SMALL, placed, sampled_by_cuda, surroundings
from support.method_cases import CASES
from support.tensors import BF16, DTYPES, FP16, FP32, assert_same_bits, learned, siblings

#: Elements beyond an aligned address at which tensors begin.
PLACES = (0, 0, 1, 3, 8)


def compare_fuse(
    gpu: GpuBackend,
    tensors: Sequence[torch.Tensor],
    params: FuseParams,
    out: torch.Tensor,
    offset: int = 0,
) -> None:
    """Assert that outputs, what lies around them and the count of non-finite ones are as on the CPU."""
    before = surroundings(out).clone()
    merged = torch.empty(out.numel(), dtype=out.dtype)
    on_host = [array(t.cpu()) for t in tensors]
    bad = load_backend("cpu").fuse(on_host, params, array(merged), offset, 1)
    assert gpu.fuse([array(t) for t in tensors], params, array(out), offset, 1) == bad, params
    before[out.storage_offset() :][: out.numel()] = merged
    assert_same_bits(surroundings(out), before, params)


class Merges:
    """Tests of the general fuse of a backend, the fixture `gpu`, on the fixture `device`."""

    @pytest.mark.parametrize("elect", ELECTS)
    @pytest.mark.parametrize("targets", [0, 1, 2, 3, 5, 9, 16])
    def test_every_selection_and_divisor(
        self, targets: int, elect: Elect, gpu: GpuBackend, device: torch.device
    ) -> None:
        draw = random.Random(f"{targets} {elect}")
        for selects, mode in itertools.product(selections(targets).values(), MODES):
            if (SMALL or INTERPRETED) and draw.random() < 0.9:
                continue
            dtypes = draw.choice([(BF16,), (FP16,), (FP32,), (BF16, FP32, FP16)])
            n = draw.choice([1, 8, 255, 257, 1300])
            tensors = tensors_of(n, targets, dtypes)
            there = [placed(t, draw.choice(PLACES), device) for t in tensors]
            plain = FuseParams(weights_of(targets), elect=elect, selects=selects)
            for key in mode.keys() & {"shares", "alone"}:
                mode = {**mode, key: weights_of(targets)[::-1]}
            params = replace(plain, **mode)  # type: ignore[arg-type]
            out = placed(torch.full((n,), 7.0).to(draw.choice(DTYPES)), draw.choice(PLACES), device)
            compare_fuse(gpu, there, params, out)

    @pytest.mark.parametrize("elect", ELECTS)
    def test_all_kinds_of_data(self, elect: Elect, gpu: GpuBackend, device: torch.device) -> None:
        draw, g = random.Random(elect), torch.Generator().manual_seed(8)
        for kind in KINDS[:: 4 if SMALL else 1]:
            n, targets = min(draw.choice([4097, 65_537, 70_000]), MOST), draw.choice([1, 2, 3])
            dtype = draw.choice(DTYPES)
            tensors = [t.to(device, dtype) for t in kind(n, targets, g)]
            selects = draw.choice([*selections(targets).values()])
            params = FuseParams(
                weights_of(targets),
                elect=elect,
                selects=selects,
                **draw.choice(MODES[:4]),  # type: ignore[arg-type]
            )
            out = torch.zeros(n, dtype=draw.choice(DTYPES), device=device)
            compare_fuse(gpu, tensors, params, out)

    @pytest.mark.parametrize("offset", [256, 65_536, 1 << 34, (1 << 40) - 256])
    def test_parts_select_as_the_whole(
        self, offset: int, gpu: GpuBackend, device: torch.device
    ) -> None:
        """Indices are those in the tensor: of ties, and of what is drawn."""
        tensors = [placed(t, 1, device) for t in tensors_of(1300, 3, (BF16, FP32))]
        tie = int(torch.tensor(0.001, dtype=BF16).float().view(torch.int32))
        band = Band(Cut(tie, offset + 700), Cut(tie, offset + 40))
        for selects in (
            (band, Draw(5, 1 << 31), None),
            (Draw((1 << 64) - 1, 0xFFFFFFFF), band, band),
        ):
            params = FuseParams(weights_of(3), elect="weighted", selects=selects)
            compare_fuse(gpu, tensors, params, torch.zeros(1300, dtype=BF16, device=device), offset)

    @pytest.mark.parametrize("key", [0, 1 << 32, 0xDEADBEEF01234567])
    def test_draws(self, key: int, gpu: GpuBackend, device: torch.device) -> None:
        tensors = [torch.zeros(2000, device=device), torch.ones(2000, device=device)]
        for limit in (0, 1, 0x5F6FB709, 0x5F6FB70A, 0x80000000, 0xFFFFFFFF):
            params = FuseParams((1.0,), elect="none", divisor=1.0, selects=(Draw(key, limit),))
            compare_fuse(gpu, tensors, params, torch.zeros(2000, device=device))

    def test_a_floor_below_zero(self, gpu: GpuBackend, device: torch.device) -> None:
        """SCE's parameters otherwise: its kernels would divide by 0, and nothing by nothing."""
        for made, weights in (
            ([torch.full((300,), -0.0)] * 2, (1.0,)),
            (tensors_of(300, 2, (BF16,)), (1.0, 1.0)),
            (tensors_of(300, 2, (BF16,)), (1.0, -1.0)),
        ):
            params = FuseParams(weights, floor_divisor=-1.0)
            there, out = [t.to(device) for t in made], torch.zeros(300, device=device)
            compare_fuse(gpu, there, params, out)

    def test_an_empty_tensor(self, gpu: GpuBackend, device: torch.device) -> None:
        tensors = [torch.zeros(0, device=device)] * 3
        params = FuseParams((1.0, 1.0), elect="none", selects=(Band(NONE), None))
        compare_fuse(gpu, tensors, params, torch.zeros(0, device=device))


def compare_survey(gpu: GpuBackend, tensors: Sequence[torch.Tensor], request: Request) -> int:
    """Assert that a survey learns what the CPU's does; returns how many reads the GPU says it took."""
    on_host = [array(t.cpu()) for t in tensors]
    expected = learned(load_backend("cpu").survey(on_host, request, 2))
    found = gpu.survey([array(t) for t in tensors], request, 1)
    assert learned(found) == expected, request
    return found.passes


def drawn_tensors(
    draw: random.Random,
    device: torch.device,
    numbers: Sequence[int],
    sizes: Sequence[int],
    rounds: int,
) -> Iterator[list[torch.Tensor]]:
    """Of all kinds of data: of any size, number of targets, dtype and alignment."""
    g = torch.Generator().manual_seed(9)
    for kind in KINDS if INTERPRETED else (KINDS * rounds)[:: 6 if SMALL else 1]:
        one, mixed = draw.choice(DTYPES), draw.random() < 0.4
        made = kind(min(draw.choice(sizes), MOST), draw.choice(numbers), g)
        yield [
            placed(t.to(draw.choice(DTYPES) if mixed else one), draw.choice(PLACES), device)
            for t in made
        ]


SIZES = (1, 8, 255, 257, 4097, 65_537)
#: Of all kinds of data.
ROUNDS = pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.slow)])


class Surveys:
    """Tests of the surveys beyond SCE's of a backend, the fixture `gpu`, on the fixture `device`."""

    @ROUNDS
    @pytest.mark.parametrize("numbers", [(1, 2, 3, 4), (5, 8), (9, 16)], ids=str)
    def test_norms(
        self, numbers: tuple[int, ...], rounds: int, gpu: GpuBackend, device: torch.device
    ) -> None:
        draw, sizes = random.Random(numbers[0]), SIZES if numbers[0] < 9 else SIZES[:5]
        for tensors in drawn_tensors(draw, device, numbers, sizes, rounds):
            targets = len(tensors) - 1
            everything: tuple[Select, ...] = (None,) * targets
            selects = draw.choice([everything, *selections(targets).values()]) or everything
            compare_survey(gpu, tensors, Norms(selects))
            compare_survey(gpu, tensors, Overlaps(selects))

    @ROUNDS
    @pytest.mark.parametrize("numbers", [(1, 2), (3, 4), (5, 6, 7, 16)], ids=str)
    def test_gram(
        self, numbers: tuple[int, ...], rounds: int, gpu: GpuBackend, device: torch.device
    ) -> None:
        draw, sizes = random.Random(numbers[0]), SIZES if numbers[0] < 5 else SIZES[:5]
        for tensors in drawn_tensors(draw, device, numbers, sizes, rounds):
            for of_inputs in (False, True):
                compare_survey(gpu, tensors, Gram(of_inputs))

    @pytest.mark.parametrize("factor", [1.0, -1.0, float.fromhex("0x1.fffffep63")])
    def test_the_largest_sums_of_a_block(
        self, factor: float, gpu: GpuBackend, device: torch.device
    ) -> None:
        """Every quantum is 2^23, of whichever sign: a block's sum is 2^31; and the largest square."""
        largest = torch.full((512,), 1.0 - 2.0**-24, device=device)
        tensors = [torch.zeros(512, device=device), largest, torch.full_like(largest, factor)]
        compare_survey(gpu, tensors, Gram())
        compare_survey(gpu, tensors, Norms((None, None)))

    @ROUNDS
    @pytest.mark.parametrize("per_target", [1, 2, 5])
    def test_magnitudes(
        self, per_target: int, rounds: int, gpu: GpuBackend, device: torch.device
    ) -> None:
        if INTERPRETED and per_target > 2:
            pytest.skip("Triton's kernels look for one cut after the other")
        draw = random.Random(per_target)
        for tensors in drawn_tensors(draw, device, (1, 2, 3), SIZES, rounds):
            n = tensors[0].numel()
            moved = int((tensors[1].float() - tensors[0].float()).count_nonzero())
            some = [0, 1, 2, n // 1000, n // 10, n // 2, n - n // 5, n - 1, n, 2 * n]
            some += [max(moved - 1, 0), moved, moved + 1]
            ranks = [tuple(draw.choice(some) for _ in range(per_target)) for _ in tensors[1:]]
            compare_survey(gpu, tensors, Magnitudes(tuple(ranks)))

    @pytest.mark.parametrize("targets", [5, 16])
    def test_magnitudes_of_many(self, targets: int, gpu: GpuBackend, device: torch.device) -> None:
        g = torch.Generator().manual_seed(3)
        for kind in (tuned, nonfinite, overflowing):
            tensors = [t.to(device, BF16) for t in kind(4097, targets, g)]
            compare_survey(gpu, tensors, Magnitudes(tuple((100 * i,) for i in range(targets))))

    @pytest.mark.parametrize("dtype", [BF16, pytest.param(FP32, marks=pytest.mark.slow)])
    def test_ties_in_masses(
        self, dtype: torch.dtype, gpu: GpuBackend, device: torch.device
    ) -> None:
        """More of one magnitude than candidates can be kept: the threshold and the cut come from histograms."""
        n, g = min(400_000, 10 * MOST), torch.Generator().manual_seed(4)
        passes = []
        for kind in (constant, halves, two_values, tied):
            tensors = [t.to(device, dtype) for t in kind(n, 1, g)]
            passes.append(compare_survey(gpu, tensors, Magnitudes(((n // 10, n // 2),))))
        if gpu.name == "cuda":
            assert min(passes[:2]) > 1

    @pytest.mark.parametrize("beside", [0.25, 4.0], ids=["below", "above"])
    def test_the_sample_misleads(
        self, beside: float, gpu: GpuBackend, device: torch.device
    ) -> None:
        """The elements that the CUDA kernels sample are larger, or smaller, than the rest."""
        n = 70_000
        larger = torch.rand(n, generator=torch.Generator().manual_seed(5)) + 1
        made = larger * torch.where(sampled_by_cuda(n), 1.0, beside)
        tensors = [torch.zeros(n, device=device), made.to(device)]
        passes = compare_survey(gpu, tensors, Magnitudes(((n // 2, n // 20),)))
        assert passes >= 4 or gpu.name != "cuda"

    def test_one_read_of_a_target_is_the_rule(self, gpu: GpuBackend, device: torch.device) -> None:
        n = min(300_000, 10 * MOST)
        made = tuned(n, 2, torch.Generator().manual_seed(1))
        ranks = Magnitudes(((n // 2, n // 100), (n // 10, n - n // 30)))
        # Triton's kernels count what is not 0 in a read before, and take one for each rank.
        reads = 1 if gpu.name == "cuda" else 3
        assert compare_survey(gpu, [t.to(device) for t in made], ranks) == reads

    def test_surveys_of_nothing(self, gpu: GpuBackend, device: torch.device) -> None:
        for targets in (2, 5):
            tensors = [torch.zeros(0, device=device)] * (1 + targets)
            selects = (None,) * targets, (Draw(1, 2),) * targets
            sums = (kind(some) for kind in (Norms, Overlaps) for some in selects)
            for request in (Magnitudes(((0, 3),) * targets), *sums, Gram(), Gram(True)):
                compare_survey(gpu, tensors, request)


ONE_OF_EACH = {case.method: name for name, case in CASES.items()}


class Methods:
    """Whole merges by a backend, the fixture `gpu`, of tensors on the fixture `device`."""

    @pytest.fixture(autouse=True)
    def keys(self) -> Iterator[None]:
        """Keys of random masks that are made without xxhash, which GPU machines need not have."""

        def key(*parts: object) -> int:
            return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task_arithmetic, "draw_key", key)
            yield

    @pytest.mark.parametrize("name", CASES)
    def test_every_method(
        self, name: str, gpu: GpuBackend, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if device.type == "cuda" and name not in ONE_OF_EACH.values():
            pytest.skip("one case of each method, where kernels are compiled for each")
        case = CASES[name]
        shape = (5, 13 if case.by_column else 1301)
        made, method = siblings(shape, case.models, (BF16, FP32))[not case.base :], case.method
        keywords: dict[str, Any] = {
            "base_index": 0 if case.base else None,
            "parameters": {**case.shared, **case.own},
            "out_dtype": BF16,
        }
        expected = merge_tensors(made, method, **keywords)
        if device.type == "cpu":  # the emulated kernels', which the CPU's tensors are not given to
            for module in (ops, tensor_merge):
                monkeypatch.setattr(module, "backend_for", lambda inputs, backend: gpu)
        else:
            keywords["backend"] = gpu.name
        there = [t.to(device) for t in made]
        merged = merge_tensors(there, method, **keywords)
        assert merged.device == there[0].device
        assert_same_bits(merged.cpu(), expected)
        there[0][2, 3] = float("nan")
        with pytest.raises(MergeError, match="tensor 0 has 1"):
            merge_tensors(there, method, **keywords)
        keywords["nonfinite"] = "propagate"
        on_host = [t.cpu() for t in there]
        found = merge_tensors(there, method, **keywords)
        monkeypatch.undo()
        keywords["backend"] = "cpu"
        assert_same_bits(found.cpu(), merge_tensors(on_host, method, **keywords))
