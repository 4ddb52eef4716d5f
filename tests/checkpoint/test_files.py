"""Only regular files are opened, and nothing is waited for."""

from __future__ import annotations

import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseo1_kernels.checkpoint.files import open_regular, read_bytes
from fuseo1_kernels.errors import CheckpointError


def _socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(file))


KINDS: dict[str, Callable[[Path], None]] = {
    "a directory": Path.mkdir,
    "a named pipe": os.mkfifo,
    "a socket": _socket,
    "a device": lambda file: file.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / "x")
    with pytest.raises(CheckpointError, match=f"/x: is {kind}, not a file"):
        read_bytes(tmp_path / "x")


def test_names_that_no_file_can_have() -> None:
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            open_regular(Path(name))


def test_links_are_followed_when_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    os.close(open_regular(tmp_path / "link"))
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        open_regular(tmp_path / "link", follow=False)


def test_a_file_that_became_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the opening."""
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"")
    status = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda *_, **__: status)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        open_regular(tmp_path / "link", follow=False)


def test_small_files_are_small(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(CheckpointError, match="more than 4 bytes"):
        read_bytes(tmp_path / "file", limit=4)


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 3 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="more than 268435456 bytes"):
            read_bytes(tmp_path / "file")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
