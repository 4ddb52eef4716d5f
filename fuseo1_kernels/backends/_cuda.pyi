from collections.abc import Sequence

from ._cpu import _Operands, _SurveyFields

MAX_TARGETS: int
SMALL: int
PARAMS_BYTES: int
RESULT_BYTES: int
SUMS_BYTES: int
SUMS_WORK_BYTES: int
CUT_BYTES: int
ARCHITECTURES: str
ELECT_SUM: int
ELECT_WEIGHTED: int
ELECT_COUNT: int
ELECT_NONE: int

_Cut = tuple[int, int]
# (address, bytes)
_Room = tuple[int, int]
# (elements of a row, address of the factors)
_Rows = tuple[int, int]

class Select:
    def __init__(self) -> None: ...
    @staticmethod
    def band(keep: _Cut, drop: _Cut, rows: _Rows) -> Select: ...
    @staticmethod
    def draw(key: int, limit: int) -> Select: ...
    @staticmethod
    def bits(address: int) -> Select: ...
    @staticmethod
    def clamp(most: float) -> Select: ...
    @staticmethod
    def ranked(key: int, row: int, low: float, span: float) -> Select: ...

def deciding_bytes(selects: Sequence[Select], numel: int) -> int: ...
def problem() -> str: ...
def workspace_bytes(targets: int, numel: int, select_topk: float) -> int: ...
def survey(
    operands: _Operands,
    numel: int,
    select_topk: float,
    mergekit: bool,
    workspace: int,
    bytes: int,
    result: int,
    params: int,
    stream: int,
) -> None: ...
def fuse(
    params: int,
    operands: _Operands,
    offset: int,
    count: int,
    out: int,
    out_dtype: int,
    result: int,
    stream: int,
) -> None: ...
def fuse_general(
    operands: _Operands,
    *,
    weights: Sequence[float],
    shares: Sequence[float],
    alone: Sequence[float],
    elect: int,
    divisor: float,
    floor_divisor: float,
    scale: float,
    base_scale: float,
    selects: Sequence[Select],
    masked: bool,
    threshold: int,
    tie_limit: int,
    offset: int,
    count: int,
    out: int,
    out_dtype: int,
    written: int,
    room: _Room,
    stream: int,
) -> None: ...
def survey_norms(
    operands: _Operands,
    numel: int,
    selects: Sequence[Select],
    work: int,
    room: _Room,
    result: int,
    stream: int,
) -> None: ...
def survey_overlaps(
    operands: _Operands,
    numel: int,
    selects: Sequence[Select],
    work: int,
    room: _Room,
    result: int,
    stream: int,
) -> None: ...
def survey_gram(
    operands: _Operands, numel: int, of_inputs: bool, work: int, result: int, stream: int
) -> None: ...
def unpack_sums(bytes: bytes, sums: int, targets: int) -> tuple[list[float], list[int], int]: ...
def magnitudes_bytes(numel: int) -> int: ...
def survey_magnitudes(
    operands: _Operands,
    numel: int,
    ranks: Sequence[Sequence[int]],
    rows: _Rows,
    workspace: _Room,
    cuts: int,
    result: int,
    stream: int,
) -> None: ...
def survey_divergences(
    operands: _Operands, numel: int, row: int, divergences: int, result: int, stream: int
) -> None: ...
def unpack_cuts(bytes: bytes) -> list[_Cut]: ...
def merge_small(
    tensors: int,
    count: int,
    targets: int,
    select_topk: float,
    mergekit: bool,
    results: int,
    stream: int,
) -> None: ...
def pack_params(
    weights: Sequence[float],
    floor_divisor: float,
    masked: bool,
    threshold: int,
    tie_limit: int,
) -> bytes: ...
def pack_tensor(operands: _Operands, numel: int, out: int, out_dtype: int) -> bytes: ...
def unpack_result(bytes: bytes, targets: int) -> tuple[_SurveyFields, int]: ...
