"""A model to read: the places of its tensors, and their bytes on demand from any thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from ..errors import CheckpointError, SourceTouchedError
from .companions import Companions, find_companions
from .files import close_quietly, open_regular
from .folds import Folds
from .header import TensorInfo
from .identity import FileIdentity
from .intervals import Intervals
from .open_files import OpenFiles
from .page_cache import advise, drop, is_cached, read_ahead, will_need
from .scales import Scaled

_AGAIN = "when nothing writes to it any more, begin again (a merge with --no-resume)"

# The page cache's largest folio.
_FOLIO = 2 << 20


class _OpenFile(NamedTuple):
    """A file's descriptor, and a second one for sequential reads: the kernel keeps a readahead state for each."""

    fd: int
    sequential: int
    forgotten: Intervals

    def close(self) -> None:
        # The kernel reads further ahead than asked, so some forgotten bytes came back.
        for begin, end in self.forgotten:
            drop(self.fd, begin, end - begin)
        close_quietly(self.fd)
        close_quietly(self.sequential)


#: Of all models: one with thousands of shards has few of them open at a time.
_OPEN: OpenFiles[_OpenFile] = OpenFiles()


class Source:
    """A model whose weights are safetensors files; a context manager.

    `name` is the model's name in the config, `path` its directory, `tensors` everything it holds,
    `config` its config.json ({} if it has none), `files` the identities of the weight files when
    their headers were read, `folds` an adapter that is added to the tensors, `scales` how tensors of codes are decoded.
    Tensors may be read from any thread until `close`.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        config: dict[str, Any],
        files: Mapping[Path, FileIdentity],
        folds: Folds | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.tensors = tensors
        self.config = config
        self.files = files
        self.folds = folds
        self.scales: Mapping[str, Scaled] = {}
        self._forgotten: dict[Path, Intervals] = {}
        self._lock = threading.Lock()

    @cached_property
    def companions(self) -> Companions:
        """The files that go along with the weights. Raises CheckpointError."""
        return find_companions(self.path)

    def read_into(self, info: TensorInfo, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes [start, start + view.nbytes) of the tensor `info`.

        `view` is writable and C-contiguous. Raises CheckpointError if the file changed since its header
        was read or cannot be read.
        """
        check_range(info, start, view)
        if view.nbytes == 0:
            return
        with view.cast("B") as data, self._using(info.file) as file:
            read_all(file.sequential, info.offset + start, info, data)

    @contextmanager
    def place(self, info: TensorInfo) -> Iterator[tuple[int, int]]:
        """Yield (file descriptor, byte offset) of the tensor, for reads by the caller within the context."""
        with self._using(info.file) as file:
            yield file.fd, info.offset

    def is_cached(self, info: TensorInfo) -> bool | None:
        """Whether the tensor is in the system's page cache; None: the system does not tell."""
        with self._using(info.file) as file:
            return is_cached(file.fd, info.offset, info.nbytes)

    def check_unchanged(self, file: Path) -> None:
        """Raise CheckpointError if `file` changed since its header was read.

        Called after a tensor was read, it guarantees that all of its bytes are of that version.
        """
        with self._using(file) as opened:
            self._check(file, opened.fd)

    def read_ahead(self, info: TensorInfo, start: int, nbytes: int) -> None:
        """Read these bytes, up to the tensor's end, into the page cache. Raises OSError."""
        nbytes = min(nbytes, info.nbytes - start)
        with self._using(info.file) as file:
            read_ahead(file.sequential, info.offset + start, nbytes)

    def will_need(self, info: TensorInfo, start: int, nbytes: int) -> None:
        """Have the system read these bytes, up to the tensor's end, in the background."""
        with self._using(info.file) as file:
            will_need(file.fd, info.offset + start, min(nbytes, info.nbytes - start))

    def drop(self, info: TensorInfo, start: int, nbytes: int) -> None:
        """Drop these bytes from the system's page cache, with a folio that they share with earlier bytes."""
        begin, end = max(0, start - _FOLIO), min(start + nbytes, info.nbytes)
        with self._using(info.file) as file:
            drop(file.fd, info.offset + begin, end - begin)

    def forget(self, info: TensorInfo) -> None:
        """Drop a tensor that is not needed again from the system's page cache.

        A folio that it shares with other tensors is dropped when all of these are forgotten.
        """
        begin, end = info.offset, info.offset + info.nbytes
        with self._using(info.file) as file:
            with self._lock:
                around = file.forgotten.add(begin, end)
            begin, end = max(around[0], begin - _FOLIO), min(around[1], end + _FOLIO)
            drop(file.fd, begin, end - begin)

    def close(self) -> None:
        """Close the files. Idempotent."""
        _OPEN.close(lambda key: isinstance(key, tuple) and key[0] is self)

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _using(self, file: Path) -> AbstractContextManager[_OpenFile]:
        """Hold `file` open. Raises CheckpointError if it changed since its header was read."""
        return _OPEN.using((self, file), partial(self._open, file))

    def _open(self, file: Path) -> _OpenFile:
        with ExitStack() as opened:
            fd, sequential = (_open_for_reading(file, opened) for _ in range(2))
            for found in (fd, sequential):
                self._check(file, found)
            advise(sequential, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            opened.pop_all()
            return _OpenFile(fd, sequential, self._forgotten.setdefault(file, Intervals()))

    def _check(self, file: Path, fd: int) -> None:
        before, now = self.files[file], FileIdentity.of(_status(fd, file))
        if before.is_touched(now):
            raise SourceTouchedError(
                f"{file}: its time of change is another since its header was read (a new name, other rights, or other"
                " bytes); give the same command again, which merges anew what came from this file"
            )
        if before != now:
            raise CheckpointError(f"{file}: the file changed since its header was read; {_AGAIN}")


def _open_for_reading(file: Path, opened: ExitStack) -> int:
    fd = open_regular(file)
    opened.callback(close_quietly, fd)
    return fd


def _status(fd: int, file: Path) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error


def read_all(fd: int, begin: int, info: TensorInfo, data: memoryview) -> None:
    """Fill `data` from byte `begin` of an open file, which holds the tensor `info`. Raises CheckpointError."""
    done = 0
    # One call moves at most 2,147,479,552 bytes, and may move fewer.
    while done < data.nbytes:
        try:
            count = os.preadv(fd, [data[done:]], begin + done)
        except OSError as error:
            raise unreadable(info, error.errno or 0) from error
        if count == 0:
            raise unreadable(info, 0)
        done += count


def unreadable(info: TensorInfo, number: int) -> CheckpointError:
    """Return the error for a read of the tensor that failed with errno `number`; 0: the file ended."""
    if number == 0:
        return CheckpointError(
            f"{info.file}: the file shrank while tensor {info.name!r} was read; {_AGAIN}"
        )
    reason = os.strerror(number)
    return CheckpointError(f"{info.file}: reading tensor {info.name!r} failed ({reason})")


def check_range(info: TensorInfo, start: int, view: memoryview) -> None:
    """Raises ValueError for a read outside of the tensor: a bug in this package, never in a model."""
    if not 0 <= start <= start + view.nbytes <= info.nbytes:
        raise ValueError(
            f"tensor {info.name!r} has {info.nbytes} bytes: [{start}, {start + view.nbytes}) asked"
        )


def collect_shards(
    files: Sequence[Path],
    tensors: Sequence[Mapping[str, TensorInfo]],
    weight_map: Mapping[str, str] | None,
    path: Path,
) -> dict[str, TensorInfo]:
    """Join the shards' tensors, in file order. Raises CheckpointError unless the index has the same."""
    found: dict[str, TensorInfo] = {}
    for file, held in zip(files, tensors, strict=True):
        for name, info in held.items():
            if name in found:
                raise CheckpointError(
                    f"{path}: tensor {name!r} stands in two shards, {found[name].file.name}"
                    f" and {file.name}"
                )
            if weight_map is not None and name not in weight_map:
                raise CheckpointError(
                    f"{path}: tensor {name!r} in {file.name} is not listed in the index"
                )
            found[name] = info
    for name, shard in (weight_map or {}).items():
        if name not in found or found[name].file != path / shard:
            raise CheckpointError(
                f"{path}: the index says that tensor {name!r} is in {shard}, but it is not"
            )
    return found
