"""The tests of what the GPU's kernels do beyond SCE, on the host as on a GPU (gpu_grid.py): the CPU's bits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from gpu_data import KINDS
from gpu_grid import SMALL, placed, surroundings
from tensors import BF16, DTYPES, FP16, FP32, assert_same_bits
from test_fuse_family import ELECTS, MODES, WEIGHTS, selections, tensors_of

from fuseo1_kernels.backends import FuseParams, GpuBackend, load_backend
from fuseo1_kernels.backends.requests import NONE, Band, Cut, Draw
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.ops import as_array as array

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


def weights_of(targets: int) -> tuple[float, ...]:
    return tuple(itertools.islice(itertools.cycle(WEIGHTS), targets))


class Merges:
    """Tests of the general fuse of a backend, the fixture `gpu`, on the fixture `device`."""

    @pytest.mark.parametrize("elect", ELECTS)
    @pytest.mark.parametrize("targets", [0, 1, 2, 3, 5, 9, 16])
    def test_every_selection_and_divisor(
        self, targets: int, elect: str, gpu: GpuBackend, device: torch.device
    ) -> None:
        draw = random.Random(f"{targets} {elect}")
        for selects, mode in itertools.product(selections(targets).values(), MODES):
            if SMALL and draw.random() < 0.9:
                continue
            dtypes = draw.choice([(BF16,), (FP16,), (FP32,), (BF16, FP32, FP16)])
            n = draw.choice([1, 8, 255, 257, 1300])
            tensors = tensors_of(n, targets, dtypes)
            there = [placed(t, draw.choice(PLACES), device) for t in tensors]
            plain = FuseParams(weights_of(targets), elect=elect, selects=selects)  # type: ignore[arg-type]
            if "shares" in mode:
                mode = {**mode, "shares": weights_of(targets)[::-1]}
            params = replace(plain, **mode)  # type: ignore[arg-type]
            out = placed(torch.full((n,), 7.0).to(draw.choice(DTYPES)), draw.choice(PLACES), device)
            compare_fuse(gpu, there, params, out)

    @pytest.mark.parametrize("elect", ELECTS)
    def test_all_kinds_of_data(self, elect: str, gpu: GpuBackend, device: torch.device) -> None:
        draw, g = random.Random(elect), torch.Generator().manual_seed(8)
        for kind in KINDS[:: 4 if SMALL else 1]:
            n, targets = draw.choice([4097, 65_537, 70_000]), draw.choice([1, 2, 3])
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

    def test_a_floor_below_zero_leaves_the_base(
        self, gpu: GpuBackend, device: torch.device
    ) -> None:
        """SCE's parameters otherwise: its kernels would divide nothing by nothing."""
        tensors = [torch.full((300,), -0.0, device=device)] * 2
        compare_fuse(
            gpu, tensors, FuseParams((1.0,), floor_divisor=-1.0), torch.zeros(300, device=device)
        )

    def test_an_empty_tensor(self, gpu: GpuBackend, device: torch.device) -> None:
        tensors = [torch.zeros(0, device=device)] * 3
        params = FuseParams((1.0, 1.0), elect="none", selects=(Band(NONE), None))
        compare_fuse(gpu, tensors, params, torch.zeros(0, device=device))


class MergesRefused:
    """What the general fuse of a backend, the fixture `gpu`, refuses on the host."""

    def test_more_than_it_takes(self, gpu: GpuBackend) -> None:
        one, params = array(torch.zeros(4)), FuseParams((1.0,) * 17, elect="none")
        with pytest.raises(BackendError, match="0 to 16 targets are supported on a GPU, not 17"):
            gpu.fuse([one] * 18, params, one, 0, 1)
        with pytest.raises(BackendError, match="as many elements as the inputs"):
            gpu.fuse([one] * 2, replace(params, weights=(1.0,)), array(torch.zeros(5)), 0, 1)
