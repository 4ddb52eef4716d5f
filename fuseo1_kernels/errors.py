"""The exceptions of this package, and the wording that messages share. Messages say what to do."""

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class MergeError(Exception):
    """Base class of the errors for invalid input and for merges that fail.

    The arguments are the message's lines: the first, and further ones, such as one for each of several problems.
    """

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


class ConfigError(MergeError):
    """The configuration, a parameter or a recipe name is wrong."""


class CheckpointError(MergeError):
    """A model's files are missing or damaged, or do not fit the other models."""


class SourceTouchedError(CheckpointError):
    """A file of a model got another time of change while it was read: its content may be the same, or not."""


class BackendError(MergeError):
    """A backend cannot run here, or refuses its arguments."""


class OutputError(MergeError):
    """The merged model cannot be written."""


class TensorTypeError(MergeError, TypeError):
    """An argument is no tensor, or of a kind whose elements do not lie in memory as they are."""


@contextmanager
def worded_os_errors(what: str) -> Iterator[None]:
    """Turns an OSError that nothing else has put into words into a MergeError: the file, or `what`, and the reason."""
    try:
        yield
    except OSError as error:
        raise MergeError(f"{file_of(error) or what}: {error.strerror or error}") from error


def file_of(error: OSError) -> str | None:
    """Return the name of the file that an error of the system is about, None if it names none but a descriptor."""
    name = error.filename
    return os.fsdecode(name) if isinstance(name, (str, bytes)) else None


def did_you_mean(word: object, valid: Iterable[str]) -> str:
    """Return the end of an error message: the valid word most similar to `word`, or all valid words."""
    by_lower = {name.lower(): name for name in valid}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    if near:
        return f"; did you mean {by_lower[near[0]]!r}?"
    return f"; there are: {', '.join(by_lower.values())}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 file, 2 files."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def mib(nbytes: int) -> str:
    """Return a number of bytes in MiB, rounded up."""
    return f"{-(-nbytes // (1 << 20))} MiB"


def printable(name: str) -> str:
    """Return a tensor's name for a message: quoted and escaped if it has unprintable characters, such as newlines."""
    return name if name.isprintable() else repr(name)


def first_names(names: Sequence[str], most: int = 5) -> str:
    """Return the first of many names for a message, and how many there are besides."""
    text = ", ".join(
        printable(name if len(name) <= 80 else f"{name[:80]}...") for name in names[:most]
    )
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
