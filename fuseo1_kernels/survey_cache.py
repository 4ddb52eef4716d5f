"""Surveys kept on disk, so that a later merge of the same tensors need not survey them again."""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import __version__
from .backends import SurveyResult
from .checkpoint.records import decode_records, encode_record
from .errors import OutputError
from .fingerprint import digest
from .plan import Job

_FILE = "surveys"


class SurveyCache:
    """Surveys by what they depend on: the input files' identities, the tensors' places, select_topk.

    The file only grows; damaged or torn lines are as if they were not there. Two merges may use one cache
    at the same time. `find` and `keep` may be called from any thread.
    """

    def __init__(self, directory: Path) -> None:
        """Open or make the cache. Raises OutputError."""
        self._file = directory / _FILE
        self._lock = threading.Lock()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
            data = self._file.read_bytes()
            if data and not data.endswith(b"\n"):  # a line was cut short; the next starts afresh
                os.write(self._fd, b"\n")
        except OSError as error:
            raise OutputError(
                f"{directory}: cannot hold a survey cache ({error.strerror})"
            ) from error
        self._surveys = {
            record["key"]: _survey(record["survey"])
            for record in decode_records(data)
            if record.keys() == {"key", "survey"}
        }

    def find(self, job: Job) -> SurveyResult | None:
        """Return what a survey of `job` said, if one is kept; it took no pass now."""
        survey = self._surveys.get(_key(job))
        return None if survey is None else replace(survey, passes=0)

    def keep(self, job: Job, survey: SurveyResult) -> None:
        """Keep what the survey of `job` said. Raises OutputError."""
        key = _key(job)
        line = encode_record({"key": key, "survey": asdict(survey)})
        with self._lock:
            self._surveys[key] = survey
            try:
                # One write, so that lines of two merges do not mix.
                os.write(self._fd, line)
            except OSError as error:
                raise OutputError(f"{self._file}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> SurveyCache:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _key(job: Job) -> str:
    inputs = [
        [
            os.path.realpath(x.info.file),
            x.source.files[x.info.file],
            x.info.offset,
            x.info.dtype,
        ]
        for x in job.inputs
    ]
    return digest([__version__, job.select_topk, job.numel, inputs])


def _survey(fields: dict[str, Any]) -> SurveyResult:
    fields |= {name: tuple(fields[name]) for name in ("energy", "nonfinite")}
    return SurveyResult(**fields)
