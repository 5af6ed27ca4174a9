"""Atomic writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kinetics_fs.util.files import atomic_path, atomic_write, fsync


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("durable", [True, False])
def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with pytest.raises(ZeroDivisionError), atomic_write(path, durable=durable) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_block_that_creates_no_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass


@pytest.mark.parametrize("durable", [True, False])
def test_content_is_forced_to_the_disk_before_the_rename_if_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    path = tmp_path / "file"
    seen = []
    original = os.fsync

    def recorded(fd: int) -> None:
        seen.append((os.fstat(fd).st_size, path.exists()))
        original(fd)

    monkeypatch.setattr(os, "fsync", recorded)
    with atomic_write(path, durable=durable) as file:
        file.write(b"content")
    assert seen == ([(7, False)] if durable else [])


def test_fsync_takes_folders_and_follows_no_link_to_a_file(tmp_path: Path) -> None:
    fsync(tmp_path)
    (tmp_path / "file").touch()
    fsync(tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="link"):
        fsync(tmp_path / "link")
