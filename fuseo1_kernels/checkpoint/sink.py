"""The merged model on disk: planned from shapes, written in any order, published when whole."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..errors import OutputError
from .header import DTYPE_BYTES, write_header
from .json_file import dump_object
from .signals import held_signals


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """One file of the output, known to the byte before any merging; `offsets` are absolute."""

    file: str
    header: bytes
    tensors: tuple[OutputTensor, ...]
    offsets: Mapping[str, int]
    size: int


def plan_shards(tensors: Sequence[OutputTensor], shard_size: int) -> tuple[Shard, ...]:
    """Deal `tensors`, in their order, into shards of at most `shard_size` bytes of data each.

    A tensor that is larger has a shard of its own. One shard is called model.safetensors, several
    model-00001-of-0000N.safetensors.
    """
    if shard_size < 1:
        raise OutputError(f"the shard size must be at least one byte, not {shard_size}")
    groups: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("a tensor's name stands twice in the output")
    if len(groups) == 1:
        return (_plan_shard("model.safetensors", groups[0]),)
    return tuple(
        _plan_shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group)
        for i, group in enumerate(groups, start=1)
    )


def _plan_shard(file: str, tensors: Sequence[OutputTensor]) -> Shard:
    # transformers refuses a file that does not say which framework's layout it has.
    header = write_header([(t.name, t.dtype, t.shape) for t in tensors], {"format": "pt"})
    offsets = {}
    end = len(header)
    for tensor in tensors:
        offsets[tensor.name] = end
        end += tensor.nbytes
    return Shard(file, header, tuple(tensors), offsets, end)


def index_json(shards: Sequence[Shard]) -> bytes | None:
    """Return the content of model.safetensors.index.json; None for one shard, which needs none."""
    if len(shards) == 1:
        return None
    home = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    return dump_object(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(home.items()))}
    )


def check_out_dir(out_dir: Path, *, overwrite: bool, inputs: Sequence[Path]) -> Path:
    """Return the real path of `out_dir` if a model may be published there, else raise OutputError.

    Nothing is written. `inputs` are the directories of the models that are read.
    """
    out = Path(os.path.realpath(out_dir))
    for source in inputs:
        real = Path(os.path.realpath(source))
        if out == real or out.is_relative_to(real):
            raise OutputError(
                f"{out_dir}: lies inside the input model {source}; choose another OUT"
            )
        if real.is_relative_to(out):
            raise OutputError(f"{out_dir}: contains the input model {source}; choose another OUT")
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out_dir}: exists and is not a directory")
        if os.path.ismount(out):
            raise OutputError(
                f"{out_dir}: is a mount point, which cannot be replaced whole;"
                " choose a directory inside it"
            )
        names = os.listdir(out) if out.exists() else []
    except OSError as error:
        raise OutputError(f"{out_dir}: cannot be read ({error.strerror})") from error
    if names and not overwrite:
        raise OutputError(f"{out_dir}: exists and is not empty; choose another OUT or --overwrite")
    # --overwrite deletes the directory: a slip such as OUT=~ must not cost more than a model.
    if names and not any(name == "config.json" or name.endswith(".safetensors") for name in names):
        raise OutputError(
            f"{out_dir}: does not look like a model, so --overwrite will not delete it;"
            " choose another OUT or remove it yourself"
        )
    return out


class Sink:
    """The output being written, in a hidden directory beside its place; a context manager.

    Leaving the context without `publish` discards everything. `write` may be called from any
    thread.
    """

    def __init__(
        self, out_dir: Path, shards: Sequence[Shard], *, overwrite: bool, inputs: Sequence[Path]
    ) -> None:
        """Check `out_dir`, reserve all space, write the headers. Raises OutputError."""
        self._out = check_out_dir(out_dir, overwrite=overwrite, inputs=inputs)
        self._overwrite = overwrite
        self._shard_of = {t.name: (shard, t) for shard in shards for t in shard.tensors}
        self._missing = {name: t.nbytes for name, (_, t) in self._shard_of.items()}
        self._lock = threading.Lock()
        self._fds: dict[str, int] = {}
        self._made: list[Path] = []
        self._temp = self._out.with_name(f".{self._out.name}.partial-{os.getpid()}")
        self._temp_is_ours = False
        try:
            with held_signals(redeliver=True):
                self._make_temp()
            self._reserve(shards)
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, start: int, view: memoryview) -> None:
        """Write `view` (C-contiguous) to the bytes [start, start + view.nbytes) of tensor `name`.

        Every byte of every tensor is to be written exactly once. Raises OutputError when the disk
        refuses.
        """
        shard, tensor = self._shard_of[name]
        if not 0 <= start <= start + view.nbytes <= tensor.nbytes:
            raise ValueError(
                f"tensor {name!r} has {tensor.nbytes} bytes:"
                f" [{start}, {start + view.nbytes}) cannot be written"
            )
        if view.nbytes == 0:
            return
        with view.cast("B") as data:
            try:
                _write_all(self._fds[shard.file], data, shard.offsets[name] + start)
            except OSError as error:
                raise OutputError(
                    f"{self._out / shard.file}: writing tensor {name!r} failed ({error.strerror})"
                ) from error
        with self._lock:
            self._missing[name] -= view.nbytes

    def add_file(self, name: str, data: bytes) -> None:
        """Put a small file beside the shards."""
        if name in ("", ".", "..") or "/" in name:
            raise ValueError(f"{name!r} is not a plain file name")
        file = self._temp / name
        try:
            with open(file, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise OutputError(
                f"{self._out / name}: cannot be written ({error.strerror})"
            ) from error

    def publish(self) -> None:
        """Move the model to its place in one step, if every byte of it was written.

        A signal that comes during that step is answered by the model being there.
        """
        wrong = [name for name, missing in self._missing.items() if missing]
        if wrong:
            raise OutputError(
                f"{self._out}: not published: {len(wrong)} tensors are not whole,"
                f" first {wrong[0]!r} ({self._missing[wrong[0]]} bytes missing)"
            )
        try:
            for fd in self._fds.values():
                os.fsync(fd)
            self._close()
            _sync_directory(self._temp)
            with held_signals(redeliver=False):
                old = self._swap()
                _sync_directory(self._out.parent)
                if old is not None:
                    shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise OutputError(
                f"{self._out}: the merged model cannot be published ({error.strerror})"
            ) from error
        if old is not None and old.exists():
            warnings.warn(f"the replaced model could not be deleted: {old}", stacklevel=2)

    def discard(self) -> None:
        """Remove what was written and the parents made for it; harmless when repeated."""
        self._close()
        if self._temp_is_ours:
            shutil.rmtree(self._temp, ignore_errors=True)
        self._remove_made()

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def _make_temp(self) -> None:
        try:
            absent = [parent for parent in self._out.parents if not parent.exists()]
            for parent in reversed(absent):
                parent.mkdir(exist_ok=True)
                self._made.append(parent)
            self._temp.mkdir()
            self._temp_is_ours = True
        except FileExistsError:
            raise OutputError(
                f"{self._temp}: left by an earlier run, or in use by another;"
                " remove it if none is running"
            ) from None
        except OSError as error:
            raise OutputError(f"{self._out}: cannot be created ({error.strerror})") from error

    def _remove_made(self) -> None:
        while self._made:
            try:
                self._made.pop().rmdir()
            except OSError:  # in use by now, if only by the published model
                self._made.clear()

    def _reserve(self, shards: Sequence[Shard]) -> None:
        """Give every shard its full size: a full disk is found before anything is merged."""
        needed = sum(shard.size for shard in shards)
        free = shutil.disk_usage(self._temp).free
        if needed > free:
            raise self._no_space(needed, free)
        for shard in shards:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                fd = os.open(self._temp / shard.file, flags, 0o666)
                self._fds[shard.file] = fd
                os.posix_fallocate(fd, 0, shard.size)
                _write_all(fd, memoryview(shard.header), 0)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise self._no_space(needed, free) from error
                raise OutputError(
                    f"{self._out / shard.file}: cannot be created with {shard.size} bytes"
                    f" ({error.strerror})"
                ) from error

    def _no_space(self, needed: int, free: int) -> OutputError:
        return OutputError(
            f"{self._out}: no space left: the merged model needs {needed} bytes, {free} are free"
        )

    def _swap(self) -> Path | None:
        """Rename the new model into place; return where the replaced one went, if any."""
        # Renaming onto an empty directory replaces it, onto any other fails: nothing is lost.
        if not self._overwrite or not self._out.exists():
            os.rename(self._temp, self._out)
            return None
        old = self._out.with_name(f".{self._out.name}.replaced-{os.getpid()}")
        os.rename(self._out, old)
        try:
            os.rename(self._temp, self._out)
        except BaseException:
            os.rename(old, self._out)
            raise
        return old

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


def find_leftovers(out_dir: Path) -> list[Path]:
    """What runs that were killed left beside `out_dir`: partial outputs of processes that are no more."""
    out = Path(os.path.realpath(out_dir))
    prefix = f".{out.name}.partial-"
    try:
        names = os.listdir(out.parent)
    except OSError:
        return []
    pids = {n: n.removeprefix(prefix) for n in names if n.startswith(prefix)}
    return [out.parent / n for n, pid in sorted(pids.items()) if pid.isdecimal() and not _runs(pid)]


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's, or not a process number at all
    return True


def find_obstacles(out_dir: Path, nbytes: int) -> str | None:
    """Why a model of `nbytes` cannot be written beside `out_dir`, found by trying; None if it can."""
    out = Path(os.path.realpath(out_dir))
    parent = next(p for p in out.parents if p.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{out.name}.probe-", dir=parent))
        free = shutil.disk_usage(parent).free
    except OSError as error:
        return f"{out_dir}: cannot be created ({error.strerror})"
    if nbytes > free:
        return f"{out_dir}: no space left: the merged model needs {nbytes} bytes, {free} are free"
    return None


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    # One call moves at most 2,147,479,552 bytes, and may move fewer.
    while done < data.nbytes:
        done += os.pwrite(fd, data[done:], offset + done)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
