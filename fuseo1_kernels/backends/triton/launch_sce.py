"""Launches SCE's survey and fuse on the current stream. Nothing here waits for the device."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton

from ..interface import OnDevice, Room
from .arithmetic import BLOCK
from .energies import add_selected
from .fuse_sce import fuse_tiles
from .sampling import RUNS_AT_ONCE, end_bracket, measure_runs, refine_bracket, sample_scores
from .scan import scan_carefully, scan_tiles
from .settle import settle, take_params
from .state import PARAMS, PARAMS_BYTES, place
from .threshold import count_digit, count_ties, find_cut
from .tuning import Config
from .workspace import Layout, Workspace, needs_scores

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
# For every launch: no kernel may contract a product and a sum.
EXACT = {"enable_fp_fusion": False}
# Programs per multiprocessor, for kernels whose programs take every n-th tile.
_PROGRAMS = 4


@dataclass(frozen=True)
class Params:
    """The parameters of fuse.

    Attributes:
        numbers: [24] fp64 on the device; state.py has their places.
        tie_limit: [1] int64 on the device.
        masked: whether elements may be masked.
        floored: whether divisors may have a floor.
    """

    numbers: torch.Tensor
    tie_limit: torch.Tensor
    masked: bool
    floored: bool


def launch_survey(
    data: tuple[torch.Tensor, ...],
    numel: int,
    select_topk: float,
    variant: str,
    room: Room,
    config: Config,
) -> OnDevice:
    """Survey `data` (flat tensors of `numel` elements, base first; bf16 as int16), and derive SCE's parameters.

    `room`: memory on the same device of workspace_bytes, RESULT int64 and PARAMS_BYTES.
    """
    targets, scored = len(data) - 1, needs_scores(select_topk, numel)
    layout = Layout(targets, numel, scored)
    work = Workspace(layout, room.work)
    if scored:
        launch_threshold(data, numel, select_topk, layout, work, config)
    else:
        _scan(data, targets, numel, layout, work, config, scored=False, of=-1)
    shape = {"TARGETS": targets, "STRIPES": layout.stripes}
    if scored:
        add_selected[(_programs(room.work.device),)](
            *(data, work.stripes, work.state, work.bins, work.exponents, work.records),
            *(numel, layout.capacity),
            TILE=config.rows * place(BLOCK),
            **shape,
            **EXACT,
        )
    result = room.result.view(torch.int64).zero_()  # settle writes only what `targets` need
    mergekit = variant == "mergekit"
    params = params_in(room.params, mergekit and select_topk < 1.0, mergekit)
    settle[(1,)](
        *(work.state, work.bins, result, params.numbers, params.tie_limit, numel),
        SCORED=scored,
        ALL=select_topk == 1.0,
        MERGEKIT=mergekit,
        SLOTS=triton.next_power_of_2(targets),
        **shape,
        **EXACT,
    )
    return OnDevice(result, params, targets)


def launch_threshold(
    data: tuple[torch.Tensor, ...],
    numel: int,
    select_topk: float,
    layout: Layout,
    work: Workspace,
    config: Config,
    of: int = -1,
    rows: tuple[torch.Tensor, ...] = (),
) -> None:
    """Find the threshold of the select_topk largest scores.

    Scores are variances (`of` -1), or magnitudes of target `of`, times the factors of `rows` if given. Leaves
    THRESHOLD and TIE_LIMIT in work.state and, for variances, adds all energies but those of candidates.
    """
    targets, many = len(data) - 1, (_programs(work.state.device),)
    inputs = (*data, *rows)
    topk = struct.unpack("<q", struct.pack("<d", select_topk))[0]
    sampling = (max(1, -(-layout.runs // place(RUNS_AT_ONCE))),)
    histograms = work.histograms[:3]
    if layout.runs:
        sample_scores[sampling](
            inputs, work.sample, histograms, numel, layout.runs, targets, OF=of, **EXACT
        )
        measure_runs[sampling](work.sample, histograms, work.state, layout.runs, topk, **EXACT)
        refine_bracket[sampling](work.sample, histograms, work.state, layout.runs, topk, **EXACT)
    divided_by = targets if of < 0 else 1
    end_bracket[(1,)](histograms, work.state, layout.runs, divided_by, **EXACT)
    _scan(inputs, targets, numel, layout, work, config, scored=True, of=of)
    shape = {"TARGETS": targets, "STRIPES": layout.stripes, "OF": of}
    tile, digits = config.rows * place(BLOCK), work.histograms[3:]
    for digit in range(3):
        count_digit[many](
            *(inputs, work.stripes, work.state, digits, work.records),
            *(numel, layout.capacity, topk),
            DIGIT=digit,
            TILE=tile,
            **shape,
            **EXACT,
        )
    count_ties[many](
        *(inputs, work.stripes, work.state, digits, work.records, work.ties),
        *(numel, layout.capacity),
        TILE=tile,
        **shape,
        **EXACT,
    )
    find_cut[(1,)](inputs, work.state, work.ties, numel, layout.stretches, targets, OF=of, **EXACT)


def _scan(
    inputs: tuple[torch.Tensor, ...],
    targets: int,
    numel: int,
    layout: Layout,
    work: Workspace,
    config: Config,
    *,
    scored: bool,
    of: int,
) -> None:
    arguments = (
        *(inputs, work.state, work.stripes, work.bins, work.rare_tiles, work.exponents),
        *(work.records, numel, layout.capacity, scored, targets, layout.stripes),
    )
    whole = numel // (config.rows * place(BLOCK))
    for kernel, programs in (
        (scan_tiles, whole),
        (scan_carefully, _programs(work.state.device) if numel else 0),
    ):
        if programs:
            kernel[(programs,)](
                *arguments, ROWS=config.rows, OF=of, num_warps=config.warps, **EXACT
            )


def launch_fuse(
    data: tuple[torch.Tensor, ...],
    out: torch.Tensor,
    dtype: int,
    params: Params,
    result: torch.Tensor,
    offset: int,
    config: Config,
) -> None:
    """Fuse `data` by `params` into `out`, whose arrays.DType.abi is `dtype`; `result` counts infinities and NaN."""
    numel = out.numel()
    for first, tiles, whole in tiles_of(numel, config):
        fuse_tiles[(tiles,)](
            *(data, out.view(BITS[out.dtype]), params.numbers, params.tie_limit, result),
            *(first, offset, numel),
            WHOLE=whole,
            MASKED=params.masked,
            FLOORED=params.floored,
            OUT=dtype,
            TARGETS=len(data) - 1,
            ROWS=config.rows,
            num_warps=config.warps,
            **EXACT,
        )


def tiles_of(numel: int, config: Config) -> Iterator[tuple[int, int, bool]]:
    """(first, tiles, whole) of each launch over a tensor's tiles: the whole ones, then a partial last one."""
    whole, rest = divmod(numel, config.rows * place(BLOCK))
    if whole:
        yield 0, whole, True
    if rest:
        yield whole, 1, False


def launch_params(given: torch.Tensor, masked: bool, floored: bool) -> Params:
    """Params from `given`: [N + 4] fp64 on the device, in torch_ops' layout."""
    targets = given.numel() - 4
    memory = torch.empty(PARAMS_BYTES, dtype=torch.uint8, device=given.device)
    made = params_in(memory, masked, floored)
    take_params[(1,)](
        *(given, made.numbers, made.tie_limit, targets),
        SLOTS=triton.next_power_of_2(targets),
        **EXACT,
    )
    return made


def params_in(memory: torch.Tensor, masked: bool, floored: bool) -> Params:
    """Params as views of `memory`: [PARAMS_BYTES] uint8."""
    numbers = memory[: 8 * PARAMS].view(torch.float64)
    tie_limit = memory[8 * PARAMS : 8 * PARAMS + 8].view(torch.int64)
    return Params(numbers, tie_limit, masked, floored)


def workspace_bytes(targets: int, numel: int, select_topk: float) -> int:
    """Bytes of a survey's workspace: at most 3 % of bf16 inputs and 2.5 MiB."""
    return Layout(targets, numel, needs_scores(select_topk, numel)).nbytes


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 3
    return _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
