"""The cache directory: private, marked, and never a directory with other files."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kinetics_fs.errors import FetchError, StoreError
from kinetics_fs.store import Store, prepare_folder
from tests.support.store import clip, is_whole, keep, permissions

Unprivileged = Callable[[], AbstractContextManager[None]]


def assert_refused(folder: Path) -> str:
    """Check that no store can be opened in a folder, and that the message is one sentence."""
    with pytest.raises(StoreError) as caught:
        Store(folder).close()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(folder) in sentence
    return sentence


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_new_folder_is_private_whatever_the_umask(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        prepare_folder(folder)
    finally:
        os.umask(before)
    assert permissions(folder) == 0o700


def test_everything_in_it_is_private(store: Store) -> None:
    keep(store, clip(0))
    assert [path for path in store.folder.iterdir() if path.is_dir() and permissions(path) != 0o700] == []


def test_a_folder_that_other_users_can_read_becomes_private(folder: Path) -> None:
    Store(folder).close()
    folder.chmod(0o755)
    Store(folder).close()
    assert permissions(folder) == 0o700


def test_an_empty_folder_is_used(folder: Path) -> None:
    folder.mkdir(mode=0o777)
    Store(folder).close()
    assert permissions(folder) == 0o700


def test_missing_parents_are_made(folder: Path) -> None:
    deep = folder / "a" / "b"
    Store(deep).close()
    assert permissions(deep) == 0o700


def test_the_directory_is_tagged_for_backup_programs(folder: Path) -> None:
    Store(folder).close()
    tag = (folder / "CACHEDIR.TAG").read_bytes()
    assert tag.startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")


def test_a_folder_with_other_files_is_refused_and_left_as_it_was(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    (folder / "thesis.tex").write_text("x")
    before = permissions(folder)
    assert "other files" in assert_refused(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    assert permissions(folder) == before


def test_the_cache_of_another_program_is_refused_and_left_as_it_was(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    (folder / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# Created by another program.\n")
    (folder / "clips").write_text("other")
    before = permissions(folder)
    assert_refused(folder)
    assert (folder / "clips").read_text() == "other"
    assert permissions(folder) == before


def test_a_file_is_refused(folder: Path) -> None:
    folder.write_text("x")
    assert_refused(folder)


def test_a_path_through_a_file_is_refused(folder: Path) -> None:
    folder.write_text("x")
    assert_refused(folder / "cache")


def test_the_folder_of_another_user_is_refused_and_left_as_it_was(folder: Path) -> None:
    if os.geteuid() == 0:
        folder.mkdir(mode=0o755)
        os.chown(folder, 65534, 65534)
        theirs = folder
    else:
        theirs = Path("/usr")
    before = permissions(theirs)
    assert "another user" in assert_refused(theirs)
    assert permissions(theirs) == before


def test_a_store_of_another_user_is_refused(public_folder: Path, without_privileges: Unprivileged) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a folder that belongs to another user")
    folder = public_folder / "cache"
    with Store(folder) as store:
        keep(store, clip(0))
    with without_privileges():
        assert_refused(folder)


def test_a_folder_that_cannot_be_written_is_refused(public_folder: Path, without_privileges: Unprivileged) -> None:
    closed = public_folder / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    with without_privileges():
        assert_refused(closed / "cache")


@pytest.mark.parametrize("name", ["clips", "incoming", "locks"])
def test_a_subfolder_that_cannot_be_written_is_an_error(
    public_folder: Path, without_privileges: Unprivileged, name: str
) -> None:
    with without_privileges():
        folder = public_folder / "cache"
        with Store(folder) as store:
            keep(store, clip(0))
        (folder / name).chmod(0o555)
        try:
            try:
                Store(folder).close()
            except StoreError as error:
                assert "\n" not in str(error)
        finally:
            (folder / name).chmod(0o700)
        with Store(folder) as store:
            assert is_whole(store, clip(0))


@pytest.mark.parametrize("name", ["clips", "incoming", "locks"])
def test_a_file_in_place_of_a_subfolder_is_an_error(folder: Path, name: str) -> None:
    prepare_folder(folder)
    (folder / name).write_text("x")
    assert_refused(folder)


@pytest.mark.parametrize("name", ["clips/cache.db", "state.sqlite"])
def test_a_database_that_cannot_be_written_is_an_error(
    public_folder: Path, without_privileges: Unprivileged, name: str
) -> None:
    with without_privileges():
        folder = public_folder / "cache"
        with Store(folder) as store:
            keep(store, clip(0))
        (folder / name).chmod(0o400)
        with pytest.raises((StoreError, FetchError)) as caught, Store(folder) as store:
            keep(store, clip(1))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["a folder", "a symlink", "a file of another name"])
def test_unexpected_entries_among_the_lock_files_do_no_harm(folder: Path, what: str) -> None:
    Store(folder).close()
    strange = folder / "locks" / ("0" * 32)
    match what:
        case "a folder":
            strange.mkdir()
        case "a symlink":
            strange.symlink_to("/dev/zero")
        case _:
            (folder / "locks/README").write_text("x")
    with Store(folder) as store:
        keep(store, clip(0))
        assert is_whole(store, clip(0))
