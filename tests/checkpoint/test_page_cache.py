"""Reading ahead brings bytes into the page cache, dropping takes them out, writes leave none; on a real disk."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.checkpoint import page_cache
from fuseo1_kernels.checkpoint.page_cache import WriteBehind, drop, is_cached, read_ahead

MIB = 1 << 20
PAGE = mmap.PAGESIZE
SIZE = 6 * MIB + 123


def cached_pages(fd: int) -> set[int]:
    """Numbers of the file's pages that are in the page cache, asked one by one."""
    pages = range(-(-os.fstat(fd).st_size // PAGE))
    return {page for page in pages if is_cached(fd, page * PAGE, 1)}


# --- reading -----------------------------------------------------------------------------


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file on the disk of which nothing is in the page cache."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, random.Random(1).randbytes(SIZE))
    os.fdatasync(fd)
    drop(fd, 0, 0)
    yield fd
    os.close(fd)


class OldSystem:
    """A C library on a kernel that does not know the call."""

    def syscall(self, *_: object) -> int:
        return -1


@pytest.fixture(params=["cachestat", "before Linux 6.5"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "cachestat":
        monkeypatch.setattr(page_cache, "_libc", OldSystem)


@pytest.mark.usefixtures("asked")
def test_what_is_read_ahead_is_cached_until_it_is_dropped(fd: int) -> None:
    assert not is_cached(fd, 0, SIZE)
    drop(fd, 0, 0)  # on old kernels the question itself may have started a read
    read_ahead(fd, 0, SIZE)
    assert is_cached(fd, 0, SIZE)
    assert is_cached(fd, 12_345, 3 * MIB)
    drop(fd, 0, SIZE)
    assert not is_cached(fd, 0, SIZE)


@pytest.mark.usefixtures("asked")
def test_a_part_is_not_the_whole(fd: int) -> None:
    begin, length = 3 * MIB + 4097, 2 * MIB + 1
    read_ahead(fd, begin, length)
    assert is_cached(fd, begin, length)
    assert not is_cached(fd, 0, SIZE)


@pytest.mark.usefixtures("asked")
def test_nothing_is_always_cached(fd: int) -> None:
    assert is_cached(fd, 4096, 0)


def test_one_page_that_is_missing_is_told(fd: int) -> None:
    read_ahead(fd, 0, SIZE)
    assert len(cached_pages(fd)) == -(-SIZE // PAGE)
    drop(fd, 4 * MIB, 2 * MIB)  # whole folios, however large they are
    gone = set(range(-(-SIZE // PAGE))) - cached_pages(fd)
    assert gone == set(range(4 * MIB // PAGE, 6 * MIB // PAGE))
    assert is_cached(fd, 0, 4 * MIB) and is_cached(fd, 6 * MIB, 123)
    assert not is_cached(fd, 0, 4 * MIB + 1) and not is_cached(fd, 6 * MIB - 1, 124)


def test_a_file_system_that_cannot_say(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    read_ahead(fd, 0, SIZE)
    monkeypatch.setattr(page_cache, "_libc", OldSystem)
    monkeypatch.setattr(os, "preadv", refuse)
    assert not is_cached(fd, 0, SIZE)


def test_short_reads_ahead_are_continued(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux moves at most 2,147,479,552 bytes a call; here, 100,000. At the end of the file it moves none."""
    real = os.sendfile
    offsets: list[int] = []

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        offsets.append(offset)
        return real(out, fd, offset, min(count, 100_000))

    monkeypatch.setattr(os, "sendfile", sendfile)
    read_ahead(fd, 1000, MIB)
    assert offsets == list(range(1000, 1000 + MIB, 100_000))
    assert is_cached(fd, 1000, MIB)
    offsets.clear()
    read_ahead(fd, SIZE - 10, MIB)
    assert offsets == [SIZE - 10, SIZE]


# --- writing -----------------------------------------------------------------------------

LENGTH = 5 * PAGE + 100
AROUND = 1000
CONTENT = random.Random(2).randbytes(LENGTH)
OTHER = random.Random(3).randbytes(LENGTH + 2 * AROUND)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


def shortened(most: int, has_flag: bool, patch: pytest.MonkeyPatch) -> None:
    """Writes that move at most so many bytes, on a system that has or lacks RWF_DONTCACHE."""
    pwrite, pwritev = os.pwrite, os.pwritev

    def vector(fd: int, views: list[memoryview], offset: int, flags: int) -> int:
        if not has_flag:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return pwritev(fd, [views[0][:most]], offset, flags)

    patch.setattr(os, "pwritev", vector)
    patch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:most], offset))


near_pages = st.builds(
    lambda page, by: min(max(page * PAGE - AROUND + by, 0), LENGTH),
    st.integers(0, 6),
    st.integers(-2, 2),
)


@given(
    cuts=st.lists(st.integers(0, LENGTH) | near_pages, max_size=8),
    most=st.sampled_from([PAGE * 9, PAGE + 1, PAGE, 1000, 333]),
    has_flag=st.booleans(),
    data=st.data(),
)
def test_adjacent_writes_in_any_order(
    cuts: list[int], most: int, has_flag: bool, data: st.DataObject, folder: Path
) -> None:
    """At offsets and of lengths that are no page's; what lies before and behind stays as it was."""
    bounds = [0, *sorted(cuts), LENGTH]
    parts = data.draw(st.permutations(list(pairwise(bounds))))
    expected = OTHER[:AROUND] + CONTENT + OTHER[AROUND + LENGTH :]
    with open(folder / "file", "w+b", buffering=0) as stream, pytest.MonkeyPatch.context() as patch:
        stream.write(OTHER)
        shortened(most, has_flag, patch)
        patch.setattr(page_cache, "_SYNC_EVERY", 2 * PAGE)
        file = WriteBehind(stream.fileno())
        for begin, end in parts:
            file.write(memoryview(CONTENT)[begin:end], AROUND + begin)
        assert os.pread(stream.fileno(), len(OTHER) + 1, 0) == expected
        file.sync()
        assert os.pread(stream.fileno(), len(OTHER) + 1, 0) == expected  # of the disk, now


@pytest.mark.parametrize("has_flag", [True, False])
def test_threads_write_parts_of_the_same_pages(
    has_flag: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = PAGE + 777
    content = random.Random(4).randbytes(300 * step)
    starts = list(range(0, len(content), step))
    random.Random(5).shuffle(starts)
    shortened(len(content), has_flag, monkeypatch)
    monkeypatch.setattr(page_cache, "_SYNC_EVERY", 50 * step)
    with open(tmp_path / "file", "w+b", buffering=0) as stream:
        os.posix_fallocate(stream.fileno(), 0, len(content))
        file, view = WriteBehind(stream.fileno()), memoryview(content)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda at: file.write(view[at : at + step], at), starts))
        file.sync()
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.usefixtures("synced")
@pytest.mark.parametrize("has_flag", [True, False])
def test_nothing_that_was_written_is_kept(
    has_flag: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = memoryview(random.Random(6).randbytes(SIZE))
    shortened(SIZE, has_flag, monkeypatch)
    with open(tmp_path / "file", "w+b", buffering=0) as stream:
        file = WriteBehind(stream.fileno())
        for begin in range(0, SIZE, 1_000_003):
            file.write(content[begin : begin + 1_000_003], begin)
        file.sync()
        assert not cached_pages(stream.fileno())


def test_only_whole_pages_go_past_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partial ones at both ends, which another write may share, stay there until the file is synced."""
    calls: list[tuple[str, int, int]] = []

    def noted(name: str, data: memoryview, offset: int) -> int:
        calls.append((name, offset, len(data)))
        return real(fd, data, offset)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda _, data, offset: noted("pwrite", data, offset))
    monkeypatch.setattr(
        os, "pwritev", lambda _, views, offset, __: noted("pwritev", views[0], offset)
    )
    with open(tmp_path / "file", "w+b", buffering=0) as stream:
        fd = stream.fileno()
        file = WriteBehind(fd)
        for offset, nbytes in ((100, 3 * PAGE), (PAGE, 2 * PAGE), (10, 20), (PAGE - 1, 2)):
            file.write(memoryview(bytes(nbytes)), offset)
    assert calls == [
        ("pwrite", 100, PAGE - 100),
        ("pwritev", PAGE, 2 * PAGE),
        ("pwrite", 3 * PAGE, 100),
        ("pwritev", PAGE, 2 * PAGE),
        ("pwrite", 10, 20),
        ("pwrite", PAGE - 1, 1),
        ("pwrite", PAGE, 1),
    ]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_system_without_the_flag_is_asked_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on the file is synced, and its pages are dropped, every so many bytes."""
    asked: list[int] = []
    synced: list[int] = []
    real = os.fdatasync

    def pwritev(fd: int, views: object, offset: int, flags: int) -> int:
        asked.append(offset)
        raise OSError(number, os.strerror(number))

    def fdatasync(fd: int) -> None:
        real(fd)
        synced.append(len(cached_pages(fd)))

    content = memoryview(random.Random(7).randbytes(40 * PAGE))
    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(page_cache, "_SYNC_EVERY", 8 * PAGE)
    with open(tmp_path / "file", "w+b", buffering=0) as stream:
        file = WriteBehind(stream.fileno())
        for begin in range(0, len(content), 2 * PAGE):
            file.write(content[begin : begin + 2 * PAGE], begin)
        assert not cached_pages(stream.fileno())
    assert asked == [0]
    assert synced == [8] * 5
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("name", ["pwrite", "pwritev"])
def test_a_write_that_fails_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, fail)
    with (
        open(tmp_path / "file", "w+b", buffering=0) as stream,
        pytest.raises(OSError, match="Input/output error"),
    ):
        WriteBehind(stream.fileno()).write(memoryview(bytes(3 * PAGE)), 100)


def test_a_kernel_whose_flag_is_not_to_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 6.14 and 6.15 know it, and could drop pages that were dirty again."""
    monkeypatch.setattr(page_cache, "_kernel", lambda: (6, 15))
    monkeypatch.setattr(os, "pwritev", lambda *_: pytest.fail("must not be used"))
    with open(tmp_path / "file", "w+b", buffering=0) as stream:
        WriteBehind(stream.fileno()).write(memoryview(bytes(3 * PAGE)), 100)
    assert (tmp_path / "file").stat().st_size == 3 * PAGE + 100


def test_a_python_without_the_calls(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built for a C library before preadv2 and pwritev2, on a kernel before cachestat."""

    def missing(*_: object) -> int:
        raise NotImplementedError("flags unavailable")

    monkeypatch.setattr(os, "preadv", missing)
    monkeypatch.setattr(os, "pwritev", missing)
    monkeypatch.setattr(page_cache, "_CACHESTAT", 1 << 20)
    assert is_cached(fd, 0, PAGE) is None
    with open(tmp_path / "file", "w+b", buffering=0) as stream:
        WriteBehind(stream.fileno()).write(memoryview(bytes(3 * PAGE)), 100)


def test_a_system_that_takes_no_advice(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    page_cache.drop(fd, 0, PAGE)
    page_cache.will_need(fd, 0, PAGE)
