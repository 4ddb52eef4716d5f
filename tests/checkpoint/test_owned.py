"""OUT.partial and the survey cache's directory: what this user's merges did not make is refused, and left alone."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels.checkpoint.journal import MARK
from fuseo1_kernels.checkpoint.partial import Partial, finish_publishing, is_unfinished
from fuseo1_kernels.engine.survey_cache import MARK as CACHE_MARK
from fuseo1_kernels.engine.survey_cache import SurveyCache
from fuseo1_kernels.errors import MergeError
from support.kept_files import IDENTITY

OTHER_USER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def state(home: Path) -> dict[str, Any]:
    """Everything below `home`, with contents and permissions; links as such."""
    found: dict[str, Any] = {}
    for path in sorted(home.rglob("*")):
        status = path.lstat()
        content: Any = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(home))] = (
            status.st_mode,
            status.st_uid,
            status.st_nlink,
            content,
        )
    return found


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else where `path` is."""
    if path.is_dir():
        path.rename(path.with_name("aside"))
    else:
        path.unlink(missing_ok=True)
    make(path)


def _link(path: Path, target: Path) -> None:
    _instead(path, lambda path: path.symlink_to(target))


def _hard_link(path: Path, target: Path) -> None:
    _instead(path, lambda path: os.link(target, path))


#: What somebody made of OUT.partial, which has a journal and a model with one shard, and a word of the refusal. The
#: second argument is a file of the user's, in a directory of its own.
FORGERIES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a link": (lambda p, mine: _move_and_link(p), "is a symbolic link"),
    "a file": (lambda p, mine: _instead(p, Path.touch), "is a file, not a directory"),
    "a pipe": (lambda p, mine: _instead(p, os.mkfifo), "is a named pipe, not a directory"),
    "writable by others": (lambda p, mine: p.chmod(0o777), "other users can write"),
    "no journal": (lambda p, mine: (p / "journal").unlink(), "something else is there, model"),
    "a journal of plain text": (
        lambda p, mine: (p / "journal").write_text("1 January. Today I merged."),
        "was not made by a merge",
    ),
    "an empty journal": (lambda p, mine: (p / "journal").write_text(""), "was not made by a merge"),
    "a torn mark": (
        lambda p, mine: (p / "journal").write_bytes(MARK[:-1]),
        "was not made by a merge",
    ),
    "a journal that is a link": (lambda p, mine: _link(p / "journal", mine), "is a symbolic link"),
    "a journal that is a hard link": (
        lambda p, mine: _hard_link(p / "journal", mine),
        "is a hard link",
    ),
    "a journal that is a pipe": (
        lambda p, mine: _instead(p / "journal", os.mkfifo),
        "is a named pipe",
    ),
    "a journal that is a folder": (
        lambda p, mine: _instead(p / "journal", Path.mkdir),
        "is a directory",
    ),
    "a model that is a link": (lambda p, mine: _link(p / "model", mine.parent), "symbolic link"),
    "a shard that is a link": (lambda p, mine: _link(p / "model/s", mine), "is a symbolic link"),
    "a shard that is a hard link": (lambda p, mine: _hard_link(p / "model/s", mine), "hard link"),
    "a shard that is a pipe": (lambda p, mine: _instead(p / "model/s", os.mkfifo), "a named pipe"),
    "a shard that is a socket": (lambda p, mine: _instead(p / "model/s", _socket), "a socket"),
    "a link below": (lambda p, mine: _link(p / "model/1_Pooling/x", mine), "is a symbolic link"),
}

GIVEN_AWAY = ("", "journal", "model/s")


def _move_and_link(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """OUT.partial as a killed merge leaves it."""
    made = Partial(tmp_path / "out")
    made.restart(IDENTITY)
    os.close(made.open_model())
    (made.model / "s").write_bytes(b"shard")
    (made.model / "1_Pooling").mkdir()
    made.journal.close()
    return made.path


def check_refused(home: Path, word: str) -> None:
    before = state(home)
    with pytest.raises(MergeError, match=word) as caught:
        Partial(home / "out")
    assert str(home / "out.partial") in str(caught.value)
    assert state(home) == before


def test_an_unfinished_merge_is_seen(partial: Path, tmp_path: Path) -> None:
    out = partial.with_name("out")
    before = state(tmp_path)
    assert is_unfinished(out) and not is_unfinished(tmp_path / "other")
    assert state(tmp_path) == before
    (partial / "journal").write_text("Dear diary")
    with pytest.raises(MergeError, match="was not made by a merge"):
        is_unfinished(out)
    (partial / "journal").unlink()
    with pytest.raises(MergeError, match="something else is there"):
        is_unfinished(out)
    partial.rename(tmp_path / "aside")
    partial.symlink_to("gone")
    with pytest.raises(MergeError, match="is a symbolic link"):
        is_unfinished(out)


@pytest.mark.parametrize("kind", FORGERIES)
def test_forgeries(kind: str, partial: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    mine = tmp_path / "home" / "mine"
    mine.write_bytes(MARK)
    forge, word = FORGERIES[kind]
    forge(partial, mine)
    check_refused(tmp_path, word)


@as_root
@pytest.mark.parametrize("name", GIVEN_AWAY)
def test_what_belongs_to_another_user(name: str, partial: Path, tmp_path: Path) -> None:
    os.chown(partial / name, OTHER_USER, -1)
    check_refused(tmp_path, "belongs to another user")


def test_what_is_ours_is_taken(partial: Path, tmp_path: Path) -> None:
    """Also where a run was killed before it had written the mark."""
    assert partial.stat().st_mode & 0o777 == 0o700
    made = Partial(tmp_path / "out")
    assert made.journal.identity == IDENTITY
    made.remove()
    for torn in (None, b"", MARK[:5], MARK[:-1], MARK):
        partial.mkdir()
        if torn is not None:
            (partial / "journal").write_bytes(torn)
        made = Partial(tmp_path / "out")
        assert made.journal.identity is None
        assert (partial / "journal").read_bytes() == MARK
        made.leave()
        assert not any(tmp_path.iterdir())


def test_what_cannot_be_listed_is_left(partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Partial(partial.with_name("out"))
    made.journal.restart(IDENTITY)

    def fail(handle: int) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", fail)
        made.leave()
    assert partial.exists()
    Partial(partial.with_name("out")).leave()
    assert not partial.exists()


def test_a_file_system_without_owners(partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is made there belongs to one user and can be written by all: it is no sign of another's hand."""
    out = partial.with_name("out")
    monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER)
    Partial(out).journal.close()
    assert [entry.name for entry in partial.parent.iterdir()] == ["out.partial"]
    partial.chmod(0o755)
    check_refused(partial.parent, "belongs to another user")


# --- the survey cache --------------------------------------------------------------------

CACHES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a link": (lambda c, mine: _move_and_link(c), "is a symbolic link"),
    "a file": (lambda c, mine: _instead(c, Path.touch), "cannot hold a survey cache"),
    "writable by others": (lambda c, mine: c.chmod(0o777), "other users can write"),
    "another file": (lambda c, mine: (c / "surveys").write_text("what, people"), "not a survey"),
    "a file that is a link": (lambda c, mine: _link(c / "surveys", mine), "is a symbolic link"),
    "a file that is a hard link": (lambda c, mine: _hard_link(c / "surveys", mine), "hard link"),
    "a pipe": (lambda c, mine: _instead(c / "surveys", os.mkfifo), "is a named pipe"),
    "a folder": (lambda c, mine: _instead(c / "surveys", Path.mkdir), "is a directory"),
}


@pytest.mark.parametrize("kind", CACHES)
def test_forged_caches(kind: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(CACHE_MARK)
    SurveyCache(tmp_path / "cache").close()
    forge, word = CACHES[kind]
    forge(tmp_path / "cache", mine)
    before = state(tmp_path)
    with pytest.raises(MergeError, match=word) as caught:
        SurveyCache(tmp_path / "cache")
    assert str(tmp_path / "cache") in str(caught.value)
    assert state(tmp_path) == before


@as_root
@pytest.mark.parametrize("name", ["", "surveys"])
def test_a_cache_of_another_user(name: str, tmp_path: Path) -> None:
    SurveyCache(tmp_path / "cache").close()
    os.chown(tmp_path / "cache" / name, OTHER_USER, -1)
    before = state(tmp_path)
    with pytest.raises(MergeError, match="belongs to another user"):
        SurveyCache(tmp_path / "cache")
    assert state(tmp_path) == before


@pytest.mark.parametrize("torn", [b"", CACHE_MARK[:7]])
def test_a_cache_whose_making_was_cut_short(torn: bytes, tmp_path: Path) -> None:
    (tmp_path / "surveys").write_bytes(torn)
    SurveyCache(tmp_path).close()
    assert (tmp_path / "surveys").read_bytes() == CACHE_MARK


def test_what_lies_beside_an_unfinished_merge(partial: Path, tmp_path: Path) -> None:
    """It is the user's: nothing goes."""
    (partial / "notes.txt").write_bytes(b"mine")
    before = state(tmp_path)
    assert not finish_publishing(partial.with_name("out"))
    assert state(tmp_path) == before
