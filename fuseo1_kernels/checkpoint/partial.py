"""OUT.partial: the directory beside OUT in which a merge is made, continued after a kill, and published from.

    OUT.partial/journal    the journal, which is also the lock
    OUT.partial/model/     becomes OUT by one rename
    OUT.partial/replaced/  the old OUT while it is replaced, if directories cannot be exchanged

The journal tells at which point a run was killed: before its `publishing` line nothing has touched OUT;
after it, OUT is the new model if it has the inode in that line.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError
from .identity import MergeIdentity
from .journal import Journal
from .signals import held_signals

_JOURNAL, _MODEL, _REPLACED = "journal", "model", "replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def partial_path(out: Path) -> Path:
    """Return the work directory of a merge into `out`, a real path."""
    return out.with_name(out.name + ".partial")


class Partial:
    """The work directory of a merge into `out`, locked until `leave`, `remove` or `publish`.

    `model` is the directory to fill; `journal.tensors` has the tensors that an earlier run of the same
    merge left in it (after a `restart`, none).
    """

    def __init__(self, out: Path) -> None:
        """Make `out`'s work directory, or take over that of an earlier run. Raises OutputError."""
        self._out = out
        self.path = partial_path(out)
        self.model = self.path / _MODEL
        self._made: list[Path] = []
        try:
            with self._output_errors("cannot be created"):
                self.journal = self._open_journal()
        except BaseException:
            self._remove_directories()
            raise
        try:
            with self._output_errors("cannot be read"):
                self._put_back()
                self.published = self._is_published()
        except BaseException:
            self.journal.close()
            raise

    def restart(self, identity: MergeIdentity) -> None:
        """Delete what is there, and begin the merge that `identity` describes."""
        with self._output_errors("cannot be cleared"):
            self.journal.restart(identity)
            if self.model.exists():
                shutil.rmtree(self.model)
            self.model.mkdir()

    def leave(self) -> None:
        """Keep completed tensors, and what a bad journal stands for; remove everything if there are none."""
        if self.journal.tensors or self.journal.problem:
            self.journal.close()
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the directory and the parents that were made for it."""
        for name in (_MODEL, _REPLACED):
            shutil.rmtree(self.path / name, ignore_errors=True)
        left = [self.path / name for name in (_MODEL, _REPLACED) if (self.path / name).exists()]
        if left:
            warnings.warn(f"{left[0]} could not be deleted; remove it", stacklevel=2)
        else:
            (self.path / _JOURNAL).unlink(missing_ok=True)
        self.journal.close()
        self._remove_directories()

    def publish(self, overwrite: bool) -> None:
        """Move the model to its place in one step, and remove the rest. Raises OSError.

        SIGINT and SIGTERM are held back until the end: the model is then published.
        """
        sync_directory(self.model)
        with held_signals():
            self.journal.add_publishing(self.model.stat().st_ino)
            sync_directory(self.path)
            if overwrite and self._out.exists():
                self._exchange()
            else:
                # rename replaces an empty directory, and fails on any other: nothing is lost.
                os.rename(self.model, self._out)
            for directory in (self._out, *self._made):
                sync_directory(directory.parent)
            self.remove()

    def _open_journal(self) -> Journal:
        while True:
            self._make_directories()
            try:
                return Journal(self.path / _JOURNAL)
            except FileNotFoundError:
                continue  # the run that had the directory has just ended

    def _make_directories(self) -> None:
        absent = [parent for parent in self.path.parents if not parent.exists()]
        for parent in reversed(absent):
            parent.mkdir(exist_ok=True)
            self._made.append(parent)
        self.path.mkdir(exist_ok=True)
        names = os.listdir(self.path)
        if names and _JOURNAL not in names:
            raise OutputError(
                f"{self.path}: is where the merge would be made, but something else is there;"
                " move it away or choose another OUT"
            )

    def _remove_directories(self) -> None:
        for directory in (self.path, *reversed(self._made)):
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
        replaced = self.path / _REPLACED
        if replaced.exists() and not self._out.exists():
            os.rename(replaced, self._out)

    def _exchange(self) -> None:
        try:
            _rename_exchange(self.model, self._out)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            # No exchange on this file system: for a moment there is no OUT. After a kill the next run restores it.
            os.rename(self._out, self.path / _REPLACED)
            try:
                os.rename(self.model, self._out)
            except BaseException:
                self._put_back()
                raise

    @contextmanager
    def _output_errors(self, what: str) -> Iterator[None]:
        """Turns OSError into OutputError."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.path}: {what} ({error.strerror})") from error


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


def sync_directory(path: Path) -> None:
    """Flush the names in the directory `path` to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rename_exchange(a: Path, b: Path) -> None:
    """Swap two directories in one step (renameat2, Linux 3.15, glibc 2.28)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(b))
