"""Reads tensors of codes: decodes them piece by piece."""

from __future__ import annotations

from contextlib import ExitStack
from math import inf

from ...backends.arrays import BY_NAME, Array, Buffer
from ...backends.contract import DecodeParams
from ...checkpoint.source import read_all
from ...errors import CheckpointError, counted, printable
from ...plan.decoded import DECODED_AT_ONCE, Decoded
from ...plan.inputs import Stored
from .tools import Tools

_FP32 = BY_NAME["float32"]


class DecodingReader:
    """See Reader."""

    def __init__(self, x: Decoded, tools: Tools, stack: ExitStack) -> None:
        """Read the scales; `stack` closes the file. Raises CheckpointError for a scale that is no positive number."""
        self._x, self._tools = x, tools
        self._fd, self._begin = stack.enter_context(x.codes.source.place(x.codes.info))
        self._codes = Buffer(min(DECODED_AT_ONCE, x.codes.info.numel))
        columns = x.shape[-1] if x.shape else 1
        scales = _read_scales(x.scales, tools)
        self._params = DecodeParams(x.codes.info.dtype, max(columns, 1), x.scaled.block, scales)

    def read(self, start: int, out: Array) -> None:
        """See Reader."""
        for at, part in out.pieces(DECODED_AT_ONCE):
            self._tools.check_stop()
            codes = self._codes.view[: part.numel]
            read_all(self._fd, self._begin + start + at, self._x.codes.info, codes)
            self._tools.backend.decode(
                self._params, self._codes, start + at, part, self._tools.threads()
            )


def _read_scales(scales: Stored | None, tools: Tools) -> Array:
    """Return the scales in fp32. Raises CheckpointError."""
    count = 1 if scales is None else scales.info.numel
    wide = Buffer(_FP32.size * count).array(_FP32, count)
    values = wide.view.cast("f")
    if scales is None:
        values[0] = 1.0
        return wide
    raw = Buffer(scales.info.nbytes).array(scales.dtype, count)
    scales.source.read_into(scales.info, 0, raw.view)
    tools.backend.folder.widen(raw, 1, count, wide, transposed=False)
    bad = [index for index, value in enumerate(values) if not 0 < value < inf]
    if bad:
        raise CheckpointError(
            f"model {scales.model}, tensor {printable(scales.tensor)}: {counted(len(bad), 'scale')} not a positive"
            f" number, the first {values[bad[0]]} at {bad[0]}; the checkpoint is damaged"
        )
    return wide
