"""Links in folders that other users can write to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_fs.util import beneath
from kinetics_fs.util.beneath import LinkRefused, find_beneath

ROOT, ALICE, BOB = 0, 61001, 61002

pytestmark = pytest.mark.skipif(os.geteuid() != ROOT, reason="only root can create files of other users")


def own(path: Path, owner: int, mode: int = 0o755) -> Path:
    """Give a path to a user; create it as a folder if it does not exist."""
    if not os.path.lexists(path):
        path.mkdir()
    os.chown(path, owner, owner, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(mode)
    return path


def file_of(path: Path, owner: int, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a clip")
    return own(path, owner, mode)


def link_of(path: Path, target: str | Path, owner: int) -> Path:
    path.symlink_to(target)
    return own(path, owner)


def found(folder: Path, name: str = "clip.mp4") -> Path:
    """Return the real path of a file that is found."""
    with find_beneath(folder, name) as file:
        assert os.path.samestat(file.status, file.path.stat())
        return file.path.readlink()


@pytest.mark.parametrize(
    ("folder_of", "link_by", "file_by", "follows"),
    [
        (ROOT, ALICE, ROOT, False),  # the planted link
        (ROOT, ALICE, BOB, False),
        (ALICE, ALICE, ROOT, False),
        (ALICE, ALICE, BOB, False),
        (ALICE, BOB, ALICE, False),
        (ALICE, ROOT, ROOT, False),  # root's link that Alice has moved into her folder
        (ALICE, ROOT, BOB, False),
        (ROOT, ROOT, ROOT, True),
        (ROOT, ROOT, ALICE, True),
        (ALICE, ALICE, ALICE, True),
        (ALICE, BOB, BOB, True),
        (ROOT, BOB, BOB, True),
        (ALICE, ROOT, ALICE, True),
    ],
)
@pytest.mark.parametrize("kind", ["file", "class folder"])
def test_a_link_gives_access_to_what_its_owner_has(
    tmp_path: Path, folder_of: int, link_by: int, file_by: int, follows: bool, kind: str
) -> None:
    folder = own(tmp_path / "folder", folder_of, 0o777)
    elsewhere = own(tmp_path / "elsewhere", file_by)
    target = file_of(elsewhere / "clip.mp4", file_by)
    name = "clip.mp4" if kind == "file" else "class/clip.mp4"
    link_of(folder / name.split("/")[0], target if kind == "file" else elsewhere, link_by)

    if follows:
        assert found(folder, name) == target
    else:
        with pytest.raises(LinkRefused, match="leads out of"):
            find_beneath(folder, name)


def test_any_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    folder = own(tmp_path / "folder", ALICE)
    target = file_of(folder / "a" / "b" / "clip.mp4", ROOT)
    texts = ["a/b/clip.mp4", "a/../a/./b//clip.mp4", "../folder/a/b/clip.mp4", str(target), "0"]
    for number, text in enumerate([*texts, f"/proc/self/root{target}"]):
        link_of(folder / str(number), text, BOB)
        assert found(folder, str(number)) == target
    link_of(folder / "class", "a/b", BOB)
    assert found(folder, "class/clip.mp4") == target
    link_of(folder / "again", tmp_path / "folder" / "class" / ".." / "b", BOB)
    assert found(folder, "again/clip.mp4") == target


@pytest.mark.parametrize(
    "text", ["a/../../secret", "a/b/../../../secret", "deep", "/proc/self/cwd/secret", "/proc/self/fd/{fd}"]
)
def test_no_way_out_by_a_detour(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own(tmp_path / "folder", ALICE)
    own(folder / "a", ALICE)
    own(folder / "a" / "b", ALICE)
    secret = file_of(tmp_path / "secret", ROOT)
    link_of(folder / "deep", "a/up/secret", BOB)
    link_of(folder / "a" / "up", "../..", BOB)
    monkeypatch.chdir(tmp_path)
    with secret.open("rb") as file:
        link_of(folder / "clip.mp4", text.format(fd=file.fileno()), BOB)
        with pytest.raises(LinkRefused):
            find_beneath(folder, "clip.mp4")


def test_a_trusted_link_does_not_vouch_for_the_next(tmp_path: Path) -> None:
    folder, elsewhere = own(tmp_path / "folder", ROOT), own(tmp_path / "elsewhere", BOB)
    file_of(elsewhere / "good.mp4", BOB)
    link_of(folder / "class", elsewhere, ROOT)
    link_of(elsewhere / "bad.mp4", file_of(tmp_path / "secret", ROOT), BOB)
    assert found(folder, "class/good.mp4") == elsewhere / "good.mp4"
    with pytest.raises(LinkRefused):
        find_beneath(folder, "class/bad.mp4")


def test_the_folder_itself_may_be_a_link_of_its_owner(tmp_path: Path) -> None:
    data = own(tmp_path / "data", ALICE)
    target = file_of(data / "clip.mp4", ALICE)
    assert found(link_of(tmp_path / "by_alice", "data", ALICE)) == target
    assert found(link_of(tmp_path / "by_root", "data", ROOT)) == target
    with pytest.raises(LinkRefused):
        find_beneath(link_of(tmp_path / "by_bob", "data", BOB), "clip.mp4")


def test_relative_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = file_of(tmp_path / "folder" / "clip.mp4", ALICE)
    monkeypatch.chdir(tmp_path / "folder")
    for folder in (".", "", "../folder", "../../" + tmp_path.name + "/folder"):
        assert found(Path(folder)) == target


def test_odd_files_are_found_but_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with find_beneath(path.parent, path.name) as file:
            assert not file.is_file
            with pytest.raises(OSError, match="not a regular file"):
                file.open()


def test_loops_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for name, error in (("loop", "Too many levels"), ("gone", "No such file"), ("file/x", "Not a directory")):
        with pytest.raises(OSError, match=error):
            find_beneath(tmp_path, name)


@pytest.fixture
def unprotected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose users can link to any file."""
    (tmp_path / "protected_hardlinks").write_text("0\n")
    monkeypatch.setattr(beneath, "_PROTECTED_HARDLINKS", tmp_path / "protected_hardlinks")


@pytest.mark.usefixtures("unprotected")
def test_a_hard_link_that_another_user_may_have_made_is_refused(tmp_path: Path) -> None:
    secret = file_of(tmp_path / "secret", ROOT)
    shared, mine, theirs = own(tmp_path / "shared", ROOT, 0o1777), own(tmp_path / "mine", ROOT), tmp_path / "theirs"
    own(theirs, BOB)
    for folder in (shared, mine, theirs):
        os.link(secret, folder / "clip.mp4")
    for folder in (shared, theirs):
        with pytest.raises(LinkRefused, match="several names"):
            find_beneath(folder, "clip.mp4")
    assert found(mine)
    secret.chmod(0o644)
    assert found(theirs), "everybody can read it"


@pytest.fixture
def swapping(tmp_path: Path) -> Iterator[Path]:
    """A folder whose class folder is a link to a folder of root's every other moment."""
    folder, secret = own(tmp_path / "folder", BOB), tmp_path / "root"
    file_of(secret / "clip.mp4", ROOT)
    file_of(folder / "good" / "clip.mp4", BOB)
    link_of(folder / "bad", secret, BOB)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for name in ("good", "bad"):
                (folder / name).rename(folder / "class").rename(folder / name)

    thread = threading.Thread(target=swap)
    thread.start()
    yield folder
    ended.set()
    thread.join()


def test_a_race_never_leads_out(swapping: Path) -> None:
    good = opened = 0
    while good < 50 and opened < 100_000:
        opened += 1
        try:
            with find_beneath(swapping, "class/clip.mp4") as file:
                assert file.status.st_uid == BOB
                good += 1
        except (LinkRefused, FileNotFoundError):
            pass
    assert good == 50
