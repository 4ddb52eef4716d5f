"""Reads tensors of codes: decodes them piece by piece."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ...backends.arrays import BY_NAME, Array, Buffer
from ...backends.contract import DecodeParams
from ...checkpoint.source import read_all
from ...errors import CheckpointError, counted, printable
from ...plan.decoded import DECODED_AT_ONCE, Decoded
from ...plan.inputs import Stored
from .tools import Tools

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FP32 = BY_NAME["float32"]


class DecodingReader:
    """See Reader."""

    def __init__(self, x: Decoded, tools: Tools, stack: ExitStack) -> None:
        """Read the scales. Raises CheckpointError for one that is not a positive number."""
        self._x, self._tools = x, tools
        self._fd, self._begin = stack.enter_context(x.codes.source.place(x.codes.info))
        self._codes = Buffer(min(DECODED_AT_ONCE, x.codes.info.numel))
        columns = x.shape[-1] if x.shape else 1
        self._params = DecodeParams(
            x.codes.info.dtype, max(columns, 1), x.scaled.block, _read_scales(x.scales)
        )

    def read(self, start: int, out: Array) -> None:
        """See Reader."""
        for at in range(0, out.numel, DECODED_AT_ONCE):
            self._tools.check_stop()
            part = out.part(at, min(DECODED_AT_ONCE, out.numel - at))
            codes = self._codes.view[: part.numel]
            read_all(self._fd, self._begin + start + at, self._x.codes.info, codes)
            self._tools.backend.decode(
                self._params, self._codes, start + at, part, self._tools.threads()
            )


def _read_scales(scales: Stored | None) -> Array:
    """Return the scales in fp32. Raises CheckpointError."""
    import numpy as np

    count = 1 if scales is None else scales.info.numel
    wide = Buffer(FP32.size * count)
    values = np.frombuffer(wide.view, np.float32, count)
    values[:] = 1.0 if scales is None else _widened(scales)
    bad = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    if scales is not None and bad.size:
        raise CheckpointError(
            f"model {scales.model}, tensor {printable(scales.tensor)}: {counted(bad.size, 'scale')} not a positive"
            f" number, the first {values[bad[0]]} at {bad[0]}; the checkpoint is damaged"
        )
    return wide.array(FP32, count)


def _widened(scales: Stored) -> NDArray[np.float32]:
    import numpy as np

    raw = bytearray(scales.info.nbytes)
    scales.source.read_into(scales.info, 0, memoryview(raw))
    if scales.dtype.name == "bfloat16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, scales.dtype.name).astype(np.float32)
