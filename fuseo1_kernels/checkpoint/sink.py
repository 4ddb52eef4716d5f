"""The merged model on disk: written in any order, continued after a kill, published when whole."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import stat
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

import xxhash

from ..errors import OutputError
from .files import close_quietly, is_inner_name
from .folders import remove_tree
from .identity import MergeIdentity
from .journal import Journal, TensorRecord
from .open_files import OpenFiles
from .out_dir import check_out_dir
from .owned import open_own_file
from .page_cache import WriteBehind, drop
from .partial import Partial, partial_path, sync_directory
from .shards import Shard
from .signals import held_signals, safe_point


class Sink:
    """The output being written, in OUT.partial beside its place; a context manager.

    Leaving the context without `publish` keeps completed tensors for the next run of the same merge,
    or removes everything if there are none. `recorded` are the tensors that an earlier run completed,
    by its journal; `holds` checks their bytes. All methods but `publish` may be called from any thread.
    """

    def __init__(
        self,
        out_dir: Path,
        shards: Sequence[Shard],
        identity: MergeIdentity,
        *,
        overwrite: bool,
        inputs: Sequence[Path],
        resume: bool = True,
        tensors_from: Callable[[Collection[str]], Collection[str]] | None = None,
    ) -> None:
        """Check `out_dir`, continue what an earlier run left, reserve all space, write the headers.

        `identity` has everything that the tensors' bytes depend on: only a partial output of the same
        identity is continued, but for tensors merged from files that were touched since, which `tensors_from`
        names (None: all of them). Without `resume` nothing is. Raises OutputError.
        """
        self._out = Path(os.path.realpath(out_dir))
        self._overwrite = overwrite
        self._shards = tuple(shards)
        self._shard_of = {t.name: (shard, t) for shard in shards for t in shard.tensors}
        self._missing = {name: t.nbytes for name, (_, t) in self._shard_of.items()}
        self._lock = threading.Lock()
        self._files = OpenFiles(WriteBehind.sync)
        self._model = -1
        self._inputs = tuple(inputs)
        self._tensors_from = tensors_from
        #: Files that were touched since an earlier run read them.
        self.touched: set[str] = set()
        if not partial_path(self._out).exists():
            # Create nothing where the output is not allowed.
            check_out_dir(out_dir, overwrite=overwrite, inputs=inputs)
        self._partial: Partial | None = None
        try:
            # Signals are held until `close` knows what was made.
            with held_signals():
                self._partial = Partial(self._out)
            check_out_dir(out_dir, overwrite=overwrite, inputs=inputs)
            self._resume_or_restart(identity, resume)
            self._reserve()
        except BaseException:
            self.close()
            raise

    @property
    def recorded(self) -> Mapping[str, TensorRecord]:
        """The journal's records of completed tensors, by name."""
        return self._journaled

    def holds(self, name: str, buffer: memoryview) -> bool:
        """Whether the recorded tensor `name` is on the disk, by its checksum; reads it through `buffer`."""
        shard, tensor = self._shard_of[name]
        offset, digest, done = shard.offsets[name], xxhash.xxh3_128(), 0
        try:
            with self._using(shard) as file:
                while done < tensor.nbytes:
                    room = buffer[: min(buffer.nbytes, tensor.nbytes - done)]
                    count = os.preadv(file.fd, [room], offset + done)
                    if count == 0:
                        return False
                    digest.update(room[:count])
                    done += count
                drop(file.fd, offset, tensor.nbytes)
        except OSError:  # once rewritten, it may be readable
            return False
        if digest.hexdigest() != self._journaled[name].checksum:
            return False
        with self._lock:
            self._missing[name] = 0
        return True

    def write(self, name: str, start: int, view: memoryview) -> None:
        """Write `view` (C-contiguous) to the bytes [start, start + view.nbytes) of tensor `name`.

        Every byte of every tensor must be written exactly once. Raises OutputError if the write fails.
        """
        shard, tensor = self._shard_of[name]
        if not 0 <= start <= start + view.nbytes <= tensor.nbytes:
            raise ValueError(
                f"tensor {name!r} has {tensor.nbytes} bytes:"
                f" [{start}, {start + view.nbytes}) cannot be written"
            )
        if view.nbytes == 0:
            return
        try:
            with view.cast("B") as data, self._using(shard) as file:
                file.write(data, shard.offsets[name] + start)
        except OSError as error:
            raise OutputError(
                f"{self._out / shard.file}: writing tensor {name!r} failed ({error.strerror})"
            ) from error
        with self._lock:
            self._missing[name] -= view.nbytes

    def complete(self, tensors: Mapping[str, TensorRecord]) -> None:
        """Record that these tensors are completely written, for a run that continues this one."""
        with self._lock:
            wrong = [name for name in tensors if self._missing[name]]
            if wrong:
                raise ValueError(f"tensor {wrong[0]!r} is not whole")
            try:
                self._open_partial.journal.add(tensors)
            except OSError as error:
                raise self._no_journal(error) from error

    def add_file(self, name: str, data: bytes) -> None:
        """Put a small file beside the shards, or into a folder there (`1_Pooling/config.json`)."""
        if not is_inner_name(name) or name in {shard.file for shard in self._shards}:
            raise ValueError(f"{name!r} is not the name of a small file")
        folders = list(Path(name).parents)[:-1]
        try:
            for folder in reversed(folders):
                with suppress(FileExistsError):
                    os.mkdir(folder, dir_fd=self._model)
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=self._model)
            with open(fd, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(fd)
            for folder in folders:  # publishing syncs the model's own directory alone
                sync_directory(folder, self._model)
        except OSError as error:
            raise OutputError(
                f"{self._out / name}: cannot be written ({error.strerror})"
            ) from error

    def publish(self) -> None:
        """Move the model to its place in one step. Raises OutputError unless every byte of it was written.

        SIGINT and SIGTERM are held back during that step: the model is then published.
        """
        wrong = [name for name, missing in self._missing.items() if missing]
        if wrong:
            raise OutputError(
                f"{self._out}: not published: {len(wrong)} tensors are not whole,"
                f" first {wrong[0]!r} ({self._missing[wrong[0]]} bytes missing)"
            )
        try:
            for shard in self._shards:
                with self._using(shard) as file:
                    file.sync()
            self._close_files()
            if self._overwrite:  # OUT may hold other things than when the merge began
                check_out_dir(self._out, overwrite=True, inputs=self._inputs)
            self._open_partial.publish(self._overwrite)
        except OSError as error:
            reason = f"the merged model cannot be published ({error.strerror})"
            if error.errno == errno.EXDEV:  # an overlay's lower layer, as a container's image is
                reason += "; this file system cannot move what is there: remove it"
            raise OutputError(f"{self._out}: {reason}") from error
        self._partial = None

    def close(self) -> None:
        """Keep completed tensors, or remove everything if there are none. Idempotent."""
        with suppress(OSError):  # what the next run goes on from is checked
            self._close_files()
        partial, self._partial = self._partial, None
        if partial is not None:
            partial.leave()

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _open_partial(self) -> Partial:
        if self._partial is None:
            raise ValueError("the sink is closed")
        return self._partial

    def _resume_or_restart(self, identity: MergeIdentity, resume: bool) -> None:
        """Use everything in the journal, or nothing."""
        partial = self._open_partial
        journal = partial.journal
        if journal.problem and resume:
            raise OutputError(
                f"{journal.problem}: no merge writes that; it was damaged, or forged. To drop the unfinished"
                " merge and start afresh, pass --no-resume"
            )
        if journal.identity is not None and journal.tensors and resume:
            difference = journal.identity.difference_to(identity)
            if difference is not None:
                raise OutputError(
                    f"{partial.path}: holds an unfinished merge, but {difference}; to drop it and"
                    " start afresh, pass --no-resume"
                )
            self._drop_touched(journal, identity)
        elif journal.identity != identity or not journal.tensors or not resume:
            partial.restart(identity)
        self._journaled = dict(journal.tensors)

    def _drop_touched(self, journal: Journal, identity: MergeIdentity) -> None:
        """Forget tensors that were merged from files that may have other bytes by now: they are merged anew."""
        assert journal.identity is not None
        self.touched = journal.identity.touched(identity)
        if self.touched:
            stale = self._tensors_from(self.touched) if self._tensors_from else journal.tensors
            kept = {name: r for name, r in journal.tensors.items() if name not in stale}
            try:
                journal.go_on(identity, kept)
            except OSError as error:
                raise self._no_journal(error) from error

    def _no_journal(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._out}: the journal of the merge cannot be written ({error.strerror})"
        )

    def _reserve(self) -> None:
        """Give every shard its full size, so that a full disk is found before anything is merged."""
        model = self._open_partial.model
        planned = {shard.file for shard in self._shards}
        try:
            self._model = self._open_partial.open_model()
            there = 0
            for name in os.listdir(self._model):
                status = os.stat(name, dir_fd=self._model, follow_symlinks=False)
                if name in planned:
                    there += status.st_size
                elif stat.S_ISDIR(status.st_mode):
                    remove_tree(name, self._model)
                else:  # a small file, written anew
                    os.unlink(name, dir_fd=self._model)
            free = shutil.disk_usage(self._model).free
        except OSError as error:
            raise OutputError(f"{model}: cannot be prepared ({error.strerror})") from error
        needed = sum(shard.size for shard in self._shards)
        if needed - there > free:
            raise self._no_space(needed - there, free)
        for shard in self._shards:
            safe_point()  # some file systems can only reserve space by writing it
            try:
                with self._using(shard) as file:
                    self._prepare(shard, file)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise self._no_space(needed - there, free) from error
                raise OutputError(
                    f"{self._out / shard.file}: cannot be created with {shard.size} bytes"
                    f" ({error.strerror})"
                ) from error

    def _using(self, shard: Shard) -> AbstractContextManager[WriteBehind]:
        """Hold the shard's file open. Raises OSError."""
        return self._files.using(shard.file, functools.partial(self._open, shard))

    def _open(self, shard: Shard) -> WriteBehind:
        path = self._open_partial.model / shard.file
        return WriteBehind(open_own_file(path, os.O_RDWR | os.O_CREAT, self._model, 0o666))

    def _prepare(self, shard: Shard, file: WriteBehind) -> None:
        fd = file.fd
        if os.fstat(fd).st_size != shard.size:
            for tensor in shard.tensors:
                self._journaled.pop(tensor.name, None)
            os.ftruncate(fd, 0)
            _reserve(fd, shard.size)
        else:
            # Drop the cache, so that `holds` reads the disk: after a failed sync the cache has more.
            drop(fd, 0, 0)
        if os.pread(fd, len(shard.header), 0) != shard.header:
            file.write(memoryview(shard.header), 0)

    def _no_space(self, needed: int, free: int) -> OutputError:
        return OutputError(
            f"{self._out}: no space left: the merged model needs {needed} bytes, {free} are free"
        )

    def _close_files(self) -> None:
        """Close all files. Raises OSError."""
        try:
            self._files.close()
        finally:
            if self._model >= 0:
                model, self._model = self._model, -1
                close_quietly(model)


def _reserve(fd: int, size: int) -> None:
    """Give an empty file its size, and its blocks if the file system can reserve them."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, size)
