"""OUT.partial: the directory beside OUT in which a merge is made, continued after a kill, and published from.

    OUT.partial/journal    the journal, which is also the lock, and the mark by which the directory is known
    OUT.partial/model/     becomes OUT by one rename
    OUT.partial/replaced/  the old OUT while it is replaced, if directories cannot be exchanged

The journal tells at which point a run was killed: before its `publishing` line nothing has touched OUT;
after it, OUT is the new model if it has the inode in that line.

Only a directory that this user's merges made is used; everything in it is opened relative to it (`owned`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError, first_names
from .contents import contents_of
from .files import close_quietly
from .folders import exists, remove_tree, sync_folders
from .identity import MergeIdentity
from .journal import Journal, read_mark
from .owned import check_own_files, open_own_directory, open_own_file
from .signals import held_signals

_JOURNAL, _MODEL, _REPLACED = "journal", "model", "replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def partial_path(out: Path) -> Path:
    """Return the work directory of a merge into `out`, a real path."""
    return out.parent / f"{out.name}.partial"


class Partial:
    """The work directory of a merge into `out`, locked until `leave`, `remove` or `publish`.

    `model` is the directory to fill, by its path for messages; `journal.tensors` has the tensors that an earlier run
    of the same merge left in it (after a `restart`, none).
    """

    def __init__(self, out: Path) -> None:
        """Make `out`'s work directory, or take over that of an earlier run. Raises OutputError.

        What is not such a directory is left as it is.
        """
        self._out = out
        self.path = partial_path(out)
        self.model = self.path / _MODEL
        self._parents: list[Path] = []
        self._made = False
        try:
            with self._output_errors("cannot be created"):
                self._handle, self.journal = self._open()
        except BaseException:
            self._remove_directories(*[self.path][: self._made], *reversed(self._parents))
            raise
        try:
            with self._output_errors("cannot be read"):
                self._put_back()
                self.published = self._is_published()
                if not self.published:
                    check_own_files(self.path, _MODEL, self._handle)
        except BaseException:
            self.close()
            raise

    def restart(self, identity: MergeIdentity) -> None:
        """Delete what is there, and begin the merge that `identity` describes."""
        with self._output_errors("cannot be cleared"):
            self.journal.restart(identity)
            remove_tree(_MODEL, self._handle)
            self.published = False

    def open_model(self) -> int:
        """Return a handle on the directory to fill, which is made if need be. Raises OSError."""
        with suppress(FileExistsError):
            os.mkdir(_MODEL, dir_fd=self._handle)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(_MODEL, flags, dir_fd=self._handle)

    def leave(self) -> None:
        """Keep completed tensors, what a bad journal stands for, and what no merge made; else remove everything."""
        if self.journal.tensors or self.journal.problem or self._holds_more():
            self.close()
        else:
            self.remove()

    def _holds_more(self) -> bool:
        """Whether something lies there that no merge made, or may lie there, as nobody can look."""
        try:
            return not {*os.listdir(self._handle)} <= {_JOURNAL, _MODEL, _REPLACED}
        except OSError:
            return True

    def remove(self) -> None:
        """Remove the directory and the parents that were made for it.

        What came to an old model after it was looked at is the user's: it is kept, and named in a warning.
        """
        kept: list[str] = []
        stuck: list[Path] = []
        for name in (_MODEL, _REPLACED):
            try:
                if name == _MODEL and not self.published:
                    remove_tree(name, self._handle)
                elif exists(name, self._handle):
                    own, foreign, _ = contents_of(self.path / name)
                    kept += [f"{name}/{entry}" for entry in foreign]
                    remove_tree(name, self._handle, own)
            except OSError:
                stuck.append(self.path / name)
        if kept:
            text = (
                f"{self.path} holds {first_names(kept)}, which is no part of a model; move it away"
            )
            warnings.warn(text, stacklevel=2)
        elif stuck:
            warnings.warn(f"{stuck[0]} could not be deleted; remove it", stacklevel=2)
        if kept or not stuck:  # without a journal no merge touches the directory again
            with suppress(FileNotFoundError):
                os.unlink(_JOURNAL, dir_fd=self._handle)
        self.close()
        self._remove_directories(self.path, *reversed(self._parents))

    def publish(self, overwrite: bool) -> None:
        """Move the model to its place in one step, and remove the rest. Raises OSError.

        SIGINT and SIGTERM are held back until the end: the model is then published.
        """
        sync_folders(_MODEL, self._handle)
        inode = os.stat(_MODEL, dir_fd=self._handle).st_ino
        with held_signals():
            self.journal.add_publishing(inode)
            os.fsync(self._handle)
            if overwrite and self._out.exists():
                self._exchange()
            else:
                # rename replaces an empty directory, and fails on any other: nothing is lost.
                os.rename(_MODEL, self._out, src_dir_fd=self._handle)
            self.published = True
            for directory in (self._out, *self._parents):
                sync_directory(directory.parent)
            self.remove()

    def _open(self) -> tuple[int, Journal]:
        while True:
            self._make_directories()
            try:
                handle = open_own_directory(self.path)
            except FileNotFoundError:
                continue  # the run that had the directory has just ended
            try:
                _check_names(self.path, handle)
                return handle, Journal(self.path / _JOURNAL, handle)
            except BaseException as error:
                close_quietly(handle)
                if not isinstance(error, FileNotFoundError):
                    raise

    def _make_directories(self) -> None:
        absent = [parent for parent in self.path.parents if not parent.exists()]
        for parent in reversed(absent):
            parent.mkdir(exist_ok=True)
            self._parents.append(parent)
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
            self._made = True

    def _remove_directories(self, *directories: Path) -> None:
        for directory in directories:
            try:
                directory.rmdir()
            except OSError:  # in use, if only by the published model
                break

    def _is_published(self) -> bool:
        """Whether a run was killed between the rename and its end: OUT is then its model."""
        inode = self.journal.publishing
        return inode is not None and self._out.exists() and self._out.stat().st_ino == inode

    def _put_back(self) -> None:
        """Undo half of a replacement: restore the old model if the new one is not in place."""
        if exists(_REPLACED, self._handle) and not self._out.exists():
            os.rename(_REPLACED, self._out, src_dir_fd=self._handle)

    def _exchange(self) -> None:
        try:
            _rename_exchange(_MODEL, self._out, src_dir_fd=self._handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            # No exchange on this file system: for a moment there is no OUT. After a kill the next run restores it.
            os.rename(self._out, _REPLACED, dst_dir_fd=self._handle)
            try:
                os.rename(_MODEL, self._out, src_dir_fd=self._handle)
            except BaseException:
                self._put_back()
                raise

    def close(self) -> None:
        """Leave everything as it is, for another run."""
        self.journal.close()
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            close_quietly(handle)

    @contextmanager
    def _output_errors(self, what: str) -> Iterator[None]:
        """Turns OSError into OutputError."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.path}: {what} ({error.strerror})") from error


def is_unfinished(out_dir: Path) -> bool:
    """Whether a merge into `out_dir` was begun. Nothing is changed.

    Raises OutputError if what is in the place of its work directory was not made by a merge.
    """
    path = partial_path(Path(os.path.realpath(out_dir)))
    if not os.path.lexists(path):
        return False
    with suppress(FileNotFoundError):  # it has just ended
        handle = open_own_directory(path)
        try:
            if _check_names(path, handle):
                fd = open_own_file(path / _JOURNAL, os.O_RDONLY, handle)
                try:
                    read_mark(fd, path / _JOURNAL, handle)
                finally:
                    close_quietly(fd)
            return True
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror})") from error
        finally:
            close_quietly(handle)
    return False


def _check_names(path: Path, handle: int) -> list[str]:
    """Return the names in a work directory. Raises OutputError if there are some, but no journal."""
    names = sorted(os.listdir(handle))
    if names and _JOURNAL not in names:
        raise OutputError(
            f"{path}: is where the merge would be made, but something else is there,"
            f" {first_names(names)}; move it away or choose another OUT"
        )
    return names


def finish_publishing(out_dir: Path) -> bool:
    """Clean up after a run that was killed once its model was at `out_dir`. Returns whether there was one."""
    out = Path(os.path.realpath(out_dir))
    if not partial_path(out).exists():
        return False
    with held_signals():
        partial = Partial(out)
        if partial.published:
            partial.remove()
        else:
            partial.leave()
    return partial.published


def sync_directory(path: Path, dir_fd: int | None = None) -> None:
    """Flush the names in the directory `path`, relative to `dir_fd` if given, to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        close_quietly(fd)


def _rename_exchange(name: str, path: Path, *, src_dir_fd: int) -> None:
    """Swap two directories in one step (renameat2, Linux 3.15, glibc 2.28)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    names = os.fsencode(name), os.fsencode(path)
    if renameat2(src_dir_fd, names[0], _AT_FDCWD, names[1], flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
