from collections.abc import Sequence
from typing import TypedDict

MAX_TARGETS: int
BLOCK: int
SURVEY_SAMPLE: int
SURVEY_DONE: int
ELECT_SUM: int
ELECT_WEIGHTED: int
ELECT_COUNT: int
ELECT_NONE: int
FACTORS_BY_ROW: int
FACTORS_BY_COLUMN: int

_Operands = Sequence[tuple[int, int]]
_Files = Sequence[tuple[int, int, int]]
_Cut = tuple[int, int]
_Average = tuple[Sequence[float], float, bool, bool, int]

class ReadError(Exception): ...

class _SurveyFields(TypedDict):
    nonzero: int
    selected: int
    threshold: int
    tie_limit: int
    passes: int
    energy: tuple[float, ...]
    nonfinite: tuple[int, ...]

class Survey:
    def __init__(self, targets: int, numel: int, select_topk: float, max_bytes: int) -> None: ...
    @staticmethod
    def magnitudes(
        numel: int,
        ranks: Sequence[Sequence[int]],
        max_bytes: int,
        row: int = ...,
        factors: bytes = ...,
    ) -> Survey: ...
    @staticmethod
    def norms(numel: int, selects: Sequence[Select]) -> Survey: ...
    @staticmethod
    def overlaps(numel: int, selects: Sequence[Select]) -> Survey: ...
    @staticmethod
    def gram(targets: int, numel: int, of_inputs: bool) -> Survey: ...
    @staticmethod
    def divergences(numel: int, row: int) -> Survey: ...
    @property
    def phase(self) -> int: ...
    def lend(self, memory: tuple[int, int]) -> None: ...
    def sample_runs(self) -> tuple[list[int], int]: ...
    def update(self, operands: _Operands, offset: int, count: int, threads: int) -> None: ...
    def sample_files(self, files: _Files, stride: int, scratch: tuple[int, int]) -> None: ...
    def update_files(
        self, files: _Files, offset: int, count: int, scratch: tuple[int, int], threads: int
    ) -> None: ...
    def end_pass(self) -> None: ...
    def run(self, operands: _Operands, threads: int) -> None: ...
    def result(self) -> _SurveyFields: ...
    def cuts(self) -> list[tuple[int, int]]: ...
    def sums(self) -> list[float]: ...
    def divergences_of(self) -> bytes: ...
    def kept(self) -> list[int]: ...

class Select:
    def __init__(self) -> None: ...
    @staticmethod
    def band(keep: _Cut, drop: _Cut, row: int = ..., factors: bytes = ...) -> Select: ...
    @staticmethod
    def draw(key: int, limit: int) -> Select: ...
    @staticmethod
    def bits(address: int) -> Select: ...
    @staticmethod
    def clamp(most: float) -> Select: ...
    @staticmethod
    def ranked(key: int, row: int, low: float, span: float) -> Select: ...

class FuseParams:
    def __init__(
        self,
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
    ) -> None: ...

def fuse(
    operands: _Operands,
    params: FuseParams,
    offset: int,
    count: int,
    out: int,
    out_dtype: int,
    threads: int,
) -> int: ...
def fuse_files(
    files: _Files,
    params: FuseParams,
    offset: int,
    count: int,
    scratch: tuple[int, int],
    out: int,
    out_dtype: int,
    threads: int,
) -> int: ...

class FoldParams:
    def __init__(
        self,
        *,
        columns: int,
        rank: int,
        scale: float,
        left: int,
        right: int,
        factors: int = ...,
        factors_by: int = ...,
    ) -> None: ...

def fold(
    params: FoldParams, weights: tuple[int, int], start: int, count: int, out: int, threads: int
) -> None: ...
def fold_squares(
    params: FoldParams, weights: tuple[int, int], rows: int, squares: int, threads: int
) -> None: ...
def fold_factors(magnitudes: tuple[int, int], squares: int, count: int) -> None: ...
def fold_widen(
    matrix: tuple[int, int], rows: int, columns: int, transposed: bool, out: int
) -> None: ...
def average(
    operands: _Operands, params: _Average, count: int, out: int, out_dtype: int, threads: int
) -> int: ...
def average_files(
    files: _Files,
    params: _Average,
    offset: int,
    count: int,
    scratch: tuple[int, int],
    out: int,
    out_dtype: int,
    threads: int,
) -> int: ...
def available_isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str) -> None: ...
def parallel_memcpy(to: int, source: int, bytes: int, threads: int) -> None: ...
