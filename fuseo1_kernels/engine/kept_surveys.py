"""Encodes surveys as lines of a file, and validates those that are read back."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace

from pydantic import BaseModel, ConfigDict

from ..backends.contract import (
    NOTHING,
    Cut,
    Divergences,
    Gram,
    Magnitudes,
    Norms,
    Overlaps,
    Request,
)
from ..backends.results import (
    DivergencesResult,
    GramResult,
    MagnitudesResult,
    NormsResult,
    OverlapsResult,
    SceResult,
    SurveyResult,
)
from ..checkpoint.records import Checksum, encode_record, intact_lines
from ..plan.job import Job

# No sum of squares of fp32 numbers comes near it, and what is computed from it stays finite.
_MOST = 2.0**192


class _Line(BaseModel):
    """A kept survey: its fields tell its type."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    key: Checksum
    survey: (
        SceResult | MagnitudesResult | NormsResult | OverlapsResult | GramResult | DivergencesResult
    )


def encode_survey(key: str, survey: SurveyResult) -> bytes:
    """Return the line that keeps `survey`, which has no references to memory."""
    fields = {name: value for name, value in asdict(survey).items() if name != "kept"}
    if isinstance(survey, DivergencesResult):
        fields["divergences"] = survey.divergences.hex()
    return encode_record({"key": key, "survey": fields})


def decode_surveys(data: bytes) -> tuple[dict[str, SurveyResult], int]:
    """Return the surveys in `data` by their keys, and the number of lines that hold none."""
    surveys: dict[str, SurveyResult] = {}
    good = 0
    for _, text in intact_lines(data):
        with suppress(ValueError):  # ValidationError is one
            line = _Line.model_validate_json(text)
            surveys[line.key] = _from_hex(line.survey)
            good += 1
    return surveys, sum(1 for line in data.split(b"\n") if line) - good


def _from_hex(survey: SurveyResult) -> SurveyResult:
    if isinstance(survey, DivergencesResult):
        return replace(survey, divergences=bytes.fromhex(survey.divergences.decode()))
    return survey


def fits(survey: SurveyResult, job: Job, request: Request) -> bool:
    """Whether `survey` can be the answer to `request` for `job`: in type, in numbers of values, and in their ranges."""
    targets, numel = len(job.inputs) - 1, job.numel
    if not 0 <= survey.passes < 2**31 or len(survey.nonfinite) != targets + 2:
        return False
    if not all(0 <= count <= numel for count in survey.nonfinite):
        return False
    if isinstance(request, Magnitudes):
        return isinstance(survey, MagnitudesResult) and (
            list(map(len, survey.cuts)) == list(map(len, request.ranks))
            and all(_is_cut(cut, numel) for cuts in survey.cuts for cut in cuts)
        )
    if isinstance(request, Norms):
        return isinstance(survey, NormsResult) and (
            len(survey.norms) == targets
            and not survey.kept
            and all(_are_amounts(norms) for norms in survey.norms)
        )
    if isinstance(request, Overlaps):
        return isinstance(survey, OverlapsResult) and (
            len(survey.overlaps) == targets
            and all(min(counts) >= 0 and sum(counts) <= numel for counts in survey.overlaps)
        )
    if isinstance(request, Gram):
        vectors = targets + request.of_inputs
        return isinstance(survey, GramResult) and _is_gram(survey.gram, vectors)
    if isinstance(request, Divergences):
        return isinstance(survey, DivergencesResult) and (
            len(survey.divergences) == 4 * (numel // max(request.row, 1))
            and _are_amounts(array("f", survey.divergences))
        )
    return isinstance(survey, SceResult) and (
        -1 <= survey.nonzero <= numel
        and 0 <= survey.selected <= numel
        and _is_cut(Cut(survey.threshold, survey.tie_limit), numel)
        and len(survey.energy) == targets
        and _are_amounts(survey.energy)
    )


def _is_cut(cut: Cut, numel: int) -> bool:
    return 0 <= cut.threshold <= NOTHING and -1 <= cut.tie_limit < max(numel, 1)


def _are_amounts(values: Iterable[float]) -> bool:
    return all(0 <= value <= _MOST for value in values)


def _is_gram(gram: tuple[tuple[float, ...], ...], vectors: int) -> bool:
    return (
        len(gram) == vectors
        and all(len(row) == vectors for row in gram)
        and _are_amounts(gram[i][i] for i in range(vectors))
        and all(abs(value) <= _MOST for row in gram for value in row)
        and all(gram[i][j] == gram[j][i] for i in range(vectors) for j in range(i))
    )
