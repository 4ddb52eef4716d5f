"""Keeps surveys on disk, so that later merges of the same tensors need not survey them again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..backends.contract import Request
from ..backends.results import SurveyResult
from ..checkpoint.files import close_quietly
from ..checkpoint.owned import open_own_directory, open_own_file
from ..errors import OutputError, counted
from ..plan.fingerprint import digest
from ..plan.job import Job
from ..version import __version__
from .kept_surveys import decode_surveys, encode_survey, fits

_FILE = "surveys"
# Surveys are kept in memory.
_MOST_BYTES = 1 << 30

#: The file begins with this line: a file without it is no survey cache.
MARK = b"fuseo1-kernels surveys\n"


class SurveyCache:
    """Surveys, keyed by everything they depend on: the inputs' files, offsets and dtypes, and the request.

    The file is append-only; what is damaged, torn, or no answer to the request is skipped. Two merges may use one cache
    at the same time. `look_up` and `keep` may be called from any thread.
    """

    def __init__(self, directory: Path, also: Sequence[float] = ()) -> None:
        """Open or create the cache. `also`: values of select_topk to survey besides a merge's own.

        Raises OutputError if the directory cannot be written, or is not this user's own.
        """
        self.also = tuple(map(float, also))
        self._file = directory / _FILE
        self._lock = threading.Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = _open(self._file)
        except OSError as error:
            raise OutputError(
                f"{directory}: cannot hold a survey cache ({error.strerror})"
            ) from error
        try:
            data = _read(self._fd, self._file)
        except BaseException:
            close_quietly(self._fd)
            raise
        self._surveys, self._bad = decode_surveys(data)
        self._write_error = ""

    @property
    def problems(self) -> list[str]:
        """Failed writes, and surveys that could not be used."""
        found = [self._write_error] if self._write_error else []
        if self._bad:
            kept = counted(self._bad, "kept survey")
            found.append(
                f"{self._file}: {kept} could not be used (damaged, or of another version), and"
                " what was needed was surveyed anew; delete the file when no merge uses it"
            )
        return found

    @property
    def at_once(self) -> int:
        """The most surveys of one tensor that a merge makes in the same read."""
        return 1 + len(self.also)

    def look_up(self, job: Job, request: Request) -> tuple[SurveyResult | None, list[Request]]:
        """Return the survey kept for `request`, with 0 passes, or None, and the requests to survey now.

        The missing requests are `request` itself, first, and those of `also`. Both answers come from one look-up per
        request, because another worker may keep a survey of the same tensors at any time.
        """
        surveys = {r: self._find(job, r) for r in (request, *self.also)}
        kept = surveys[request]
        missing = [r for r, survey in surveys.items() if survey is None]
        return None if kept is None else replace(kept, passes=0), missing

    def _find(self, job: Job, request: Request) -> SurveyResult | None:
        survey = self._surveys.get(_key(job, request))
        if survey is None or fits(survey, job, request):
            return survey
        self._bad += 1
        return None

    def keep(self, job: Job, surveys: Iterable[tuple[Request, SurveyResult]]) -> None:
        """Keep the surveys of `job`, with their requests. A failed write is noted and ends writing."""
        new = {_key(job, request): survey.lasting for request, survey in surveys}
        lines = [encode_survey(key, survey) for key, survey in new.items()]
        with self._lock:
            self._surveys.update(new)
            if self._write_error:
                return
            try:
                # One write, so that lines of two merges do not mix.
                os.write(self._fd, b"".join(lines))
            except OSError as error:
                reason = f"cannot be written ({error.strerror}); surveys were not kept"
                self._write_error = f"{self._file}: {reason}"

    def close(self) -> None:
        """Close the file."""
        close_quietly(self._fd)

    def __enter__(self) -> SurveyCache:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _open(file: Path) -> int:
    """Open or create the file, in a directory of this user's own. Raises OutputError and OSError."""
    directory = open_own_directory(file.parent)
    try:
        return open_own_file(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, directory)
    finally:
        close_quietly(directory)


def _read(fd: int, file: Path) -> bytes:
    """Return the records in the file, which ends with a whole line then. Raises OutputError."""
    try:
        if os.fstat(fd).st_size > _MOST_BYTES:
            raise OutputError(
                f"{file}: has more than {_MOST_BYTES} bytes; delete it or choose another directory"
            )
        with open(fd, "rb", closefd=False) as stream:
            data = stream.read()
        mark = data[: len(MARK)]
        if not MARK.startswith(mark):
            raise OutputError(
                f"{file}: is not a survey cache, or of an older version; choose another directory"
            )
        if mark != MARK:  # a new file, or a run was killed while it made it
            os.write(fd, MARK[len(mark) :])
        elif not data.endswith(b"\n"):  # the last line is torn: begin a new one
            os.write(fd, b"\n")
    except OSError as error:
        raise OutputError(f"{file}: cannot be read ({error.strerror})") from error
    return data[len(MARK) :]


def _key(job: Job, request: Request) -> str:
    stored = [
        [
            os.path.realpath(x.info.file),
            x.source.files[x.info.file],
            x.info.offset,
            x.info.dtype,
        ]
        for x in job.stored
    ]
    return digest([__version__, repr(request), job.numel, stored, [x.spec for x in job.inputs]])
