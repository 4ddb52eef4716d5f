"""Launches fuse for parameters other than SCE's, and packs the parameters as kernels take them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch

from ..contract import (
    NOTHING,
    Band,
    Clamp,
    Cut,
    Draw,
    Elect,
    FuseParams,
    Ranked,
    RowFactors,
    Select,
    check_rows,
)
from ..gpu_base import allocated, upload
from ..reference.select import limits
from .arithmetic import BLOCK
from .fuse_general import (
    BY_FLOOR,
    BY_NUMBER,
    BY_ONE,
    BY_SHARES,
    COUNT,
    NONE,
    S_ALONE,
    S_BASE_SCALE,
    S_DIVISOR,
    S_SCALE,
    S_SHARES,
    S_WEIGHTS,
    SCALARS,
    SUM,
    WEIGHTED,
    fuse_general_tiles,
)
from .launch_sce import BITS, EXACT, tiles_of
from .select import (
    BAND,
    BAND_BY_ROWS,
    CLAMP,
    DRAW,
    EVERY,
    RANKED,
    SELECT_WORDS,
)
from .state import RESULT, place
from .tuning import Config

# Most elements whose rows are sorted at once, most bytes that torch takes for each, and elements of the largest tile.
_SORTED = 1 << 22
_SORT_BYTES = 80
_MOST_TILE = 16 * place(BLOCK)
_SELECT_BYTES = 8 * place(SELECT_WORDS)

_ELECT: dict[Elect, int] = {
    "sum": place(SUM),
    "weighted": place(WEIGHTED),
    "count": place(COUNT),
    "none": place(NONE),
}


def launch_fuse_general(
    data: tuple[torch.Tensor, ...],
    out: torch.Tensor,
    dtype: int,
    params: FuseParams,
    offset: int,
    config: Config,
) -> torch.Tensor:
    """Fuse `data` by `params` into `out`, whose arrays.DType.abi is `dtype`.

    Returns [64] int64 on the device, whose R_WRITTEN counts the elements that are infinite or NaN.
    """
    numel, targets, device = out.numel(), len(data) - 1, out.device
    result = torch.zeros(RESULT, dtype=torch.int64, device=device)
    selects = params.selects or (None,) * targets
    by_score = Band(Cut(params.threshold, params.tie_limit))
    divisor, packed = scalars_of(params)
    scalars = upload(packed, device).view(torch.float64)
    packed_selects, _memory = selects_on_device(data, [*selects, by_score], offset)
    for first, tiles, whole in tiles_of(numel, config):
        fuse_general_tiles[(tiles,)](
            *(data, out.view(BITS[out.dtype]), scalars, packed_selects, result),
            *(first, offset, numel),
            WHOLE=whole,
            ELECT=_ELECT[params.elect],
            KINDS=kinds_of(selects),
            DIVISOR=divisor,
            MASKED=params.masked,
            ALONE=params.alone is not None,
            OUT=dtype,
            TARGETS=targets,
            ROWS=config.rows,
            num_warps=config.warps,
            **EXACT,
        )
    return result


def fuse_bytes(numel: int, selects: Sequence[Select]) -> int:
    """The most bytes of device memory that launch_fuse_general holds at once."""
    by_score = Band()
    return allocated(8 * RESULT, 8 * SCALARS) + selects_bytes(numel, [*selects, by_score])


def scalars_of(params: FuseParams) -> tuple[int, bytes]:
    """(kind of divisor, packed scalars)."""
    divisor, floor = params.divisor or 0.0, params.floor_divisor
    kind = BY_ONE if divisor == 1 else BY_NUMBER if divisor else BY_FLOOR if floor else BY_SHARES
    scalars = [0.0] * SCALARS
    for start, values in (
        (S_WEIGHTS, params.weights),
        (S_SHARES, params.shares or params.weights),
        (S_DIVISOR, (divisor or floor,)),
        (S_SCALE, (params.scale,)),
        (S_BASE_SCALE, (params.base_scale,)),
        (S_ALONE, params.alone or ()),
    ):
        scalars[place(start) : place(start) + len(values)] = values
    return place(kind), struct.pack(f"{SCALARS}d", *scalars)


def kinds_of(selects: Sequence[Select]) -> int:
    """The selections' kinds as one number (select.py)."""
    kinds = 0
    for i, select in enumerate(selects):
        if isinstance(select, Band):
            kind = BAND if select.rows is None else BAND_BY_ROWS
        elif isinstance(select, Draw):
            kind = DRAW
        elif isinstance(select, Ranked):
            kind = RANKED
        else:
            kind = CLAMP if isinstance(select, Clamp) else EVERY
        kinds |= place(kind) << 3 * i
    return kinds


def selects_on_device(
    data: tuple[torch.Tensor, ...], selects: Sequence[Select], offset: int = 0
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """[selects, 6] int64 on the device, packed as select.py says, and the tensors that they point to.

    data: as kernels take it, from flat index `offset` on.
    """
    packed, referred = [], []
    check_rows(selects, offset + data[0].numel())
    for i, select in enumerate(selects):
        if isinstance(select, Ranked):
            referred.append(_limits(data[0], data[i + 1], select))
            address = referred[-1].data_ptr() - 4 * offset
            packed.append(struct.pack("Qq32x", select.key, address))
        elif isinstance(select, Band) and select.rows is not None:
            referred.append(factors_on(data[0].device, select.rows))
            rows = select.rows.row, referred[-1].data_ptr()
            packed.append(struct.pack("6q", *_cut(select.keep), *_cut(select.drop), *rows))
        else:
            packed.append(_packed(select))
    return upload(b"".join(packed), data[0].device).view(torch.int64), referred


def selects_bytes(numel: int, selects: Sequence[Select]) -> int:
    """The most bytes of device memory that selects_on_device holds at once."""
    sizes, sorting = [_SELECT_BYTES * len(selects)], 0
    for select in selects:
        if isinstance(select, Ranked):
            sizes.append(4 * (numel + _MOST_TILE))
            sorting = max(sorting, min(numel, _rows_at_once(select)) * _SORT_BYTES)
        elif isinstance(select, Band):
            sizes.append(factors_bytes(select.rows))
    return allocated(*sizes, sorting)


def _packed(select: Band | Draw | Clamp | None) -> bytes:
    if isinstance(select, Band):
        return struct.pack("4q16x", *_cut(select.keep), *_cut(select.drop))
    if isinstance(select, Draw):
        return struct.pack("QQ32x", select.key, select.limit)
    most = select.most if isinstance(select, Clamp) else 0.0
    return struct.pack("q40x", int(torch.tensor(most, dtype=torch.float32).view(torch.int32)))


def factors_on(device: torch.device, rows: RowFactors) -> torch.Tensor:
    """The factors as fp32 on the device, padded as arithmetic.by_rows requires."""
    return upload(rows.factors + bytes(4 * _MOST_TILE), device).view(torch.float32)


def factors_bytes(rows: RowFactors | None) -> int:
    """Bytes of the tensor of factors_on; 0 without factors."""
    return len(rows.factors) + 4 * _MOST_TILE if rows is not None else 0


def _limits(base: torch.Tensor, target: torch.Tensor, select: Ranked) -> torch.Tensor:
    """Each element's limit, padded to the last tile: int32 on the device. torch sorts the rows, some at a time."""
    numel = base.numel()
    found = torch.empty(numel + _MOST_TILE, dtype=torch.int32, device=base.device)
    step = _rows_at_once(select)
    for start in range(0, numel, step):
        d = _wide(target[start : start + step]) - _wide(base[start : start + step])
        found[start : start + d.numel()] = limits(select, d).to(torch.int32)
    return found


def _rows_at_once(select: Ranked) -> int:
    """How many elements are sorted at once: whole rows."""
    return max(1, _SORTED // select.row) * select.row


def _wide(x: torch.Tensor) -> torch.Tensor:
    return (x.view(torch.bfloat16) if x.dtype == torch.int16 else x).float()


def _cut(cut: Cut) -> tuple[int, int]:
    """The cut as int32 holds it: only NaN is above NOTHING, and takes part anyway."""
    return min(cut.threshold, NOTHING), cut.tie_limit
