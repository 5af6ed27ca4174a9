"""The life of a mount: what keeps it from beginning, how it begins, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kinetics_fs.demo.site import VideoSite
from kinetics_fs.doctor.fuse import mount as look_for_faults
from kinetics_fs.mount import find_mounts
from kinetics_fs.store import CacheLayout
from tests.conftest import Dataset, MountFactory
from tests.support.command_line import ENVIRONMENT, has_ended, kinetics_fs, run_command
from tests.support.mounts import wait_until
from tests.support.user import User

SURFING = "validation/surfing water/-demo_video_000010_000020.mp4"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(frontend: tuple[str, ...], dataset: Dataset, cache: Path, mountpoint: Path) -> Run:
    """Run `kinetics-fs mount` on `mountpoint` with further arguments; whatever it mounts is unmounted in the end."""

    def run(*arguments: str | Path, mountpoint: Path = mountpoint) -> subprocess.CompletedProcess[str]:
        everywhere = "--annotations", dataset.annotations, "--cache-dir", cache, "--min-free", "0"
        log = "--log-file", mountpoint.with_name("mount.log")
        return kinetics_fs("mount", *frontend, *everywhere, *log, *arguments, mountpoint)

    return run


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    """Assert that the command failed with one line that contains these words."""
    assert done.returncode == status
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    if status == 1:
        assert len(lines) == 1, lines
        assert lines[0].startswith("kinetics-fs: ")
    for word in words:
        assert word in lines[-1]


# What keeps it from beginning -------------------------------------------------------------------------------------


def test_mount_point_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_sentence(run(mountpoint=tmp_path / "file"), f"{tmp_path}/file", "is not a directory")


def test_mount_point_below_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_sentence(run(mountpoint=tmp_path / "file/mountpoint"), f"{tmp_path}/file/mountpoint")


def test_mount_point_that_is_not_empty(run: Run, mountpoint: Path) -> None:
    (mountpoint / ".mine").write_text("")
    assert_one_sentence(run(), str(mountpoint), "is not empty")
    assert [path.name for path in mountpoint.iterdir()] == [".mine"]


def test_mount_point_without_a_parent(run: Run, tmp_path: Path) -> None:
    assert_one_sentence(
        run(mountpoint=tmp_path / "no/such/mountpoint"),
        f"{tmp_path}/no/such/mountpoint",
        f"mkdir -p {tmp_path}/no/such",
    )
    assert not (tmp_path / "no").exists()


def test_mount_point_that_is_a_dangling_symlink(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert_one_sentence(run(mountpoint=tmp_path / "link"), f"{tmp_path}/link")


def test_mount_point_that_is_mounted_already(run: Run, mountpoint: Path) -> None:
    assert run().returncode == 0
    assert_one_sentence(run(), str(mountpoint), "is mounted already", "kinetics-fs umount")
    assert (mountpoint / ".kinetics/status.json").read_text()
    assert list(find_mounts()).count(mountpoint) == 1


@pytest.mark.parametrize(
    ("flag", "place"),
    [
        ("--cache-dir", "mount"),
        ("--cache-dir", "mount/deep/cache"),
        ("--cache-dir", "link"),
        ("--cache-dir", "link/../mount/cache"),
        ("--log-file", "mount/log"),
        ("--cookies", "mount/cookies"),
        ("--archive-url", "mount"),
    ],
)
def test_mount_that_would_hide_what_it_needs(run: Run, mountpoint: Path, flag: str, place: str) -> None:
    mountpoint.mkdir(exist_ok=True)
    (mountpoint.parent / "link").symlink_to(mountpoint)
    path = mountpoint.parent / place.replace("mount", mountpoint.name, 1)
    assert_one_sentence(run(flag, path), f"cannot mount on {mountpoint}", f"the mount would hide {path}", flag)
    assert list(mountpoint.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can bind directories")
def test_mount_that_would_hide_its_cache_by_a_bind_mount(run: Run, mountpoint: Path, tmp_path: Path) -> None:
    mountpoint.mkdir(exist_ok=True)
    (tmp_path / "bound").mkdir()
    subprocess.run(["mount", "--bind", mountpoint, tmp_path / "bound"], check=True)
    try:
        assert_one_sentence(run("--cache-dir", tmp_path / "bound/cache"), "the mount would hide", "--cache-dir")
    finally:
        subprocess.run(["umount", tmp_path / "bound"], check=True)


def test_mount_point_in_the_cache_directory(run: Run, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    inside = tmp_path / "some/inside"
    done = run("--cache-dir", tmp_path / "some", mountpoint=inside)
    assert_one_sentence(done, f"it is in the cache directory {tmp_path}/some", "--cache-dir")
    assert not inside.exists()


def test_cache_folder_that_is_a_file(run: Run, tmp_path: Path, mountpoint: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_sentence(run("--cache-dir", tmp_path / "file"), f"{tmp_path}/file", "cache directory")
    assert mountpoint not in find_mounts()


def test_cache_folder_that_holds_other_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "mine/thesis.txt").write_text("")
    assert_one_sentence(run("--cache-dir", tmp_path / "mine"), f"{tmp_path}/mine", "other files")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o755
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_cache_folder_that_cannot_be_made(run: Run) -> None:
    assert_one_sentence(run("--cache-dir", "/proc/kinetics-fs"), "/proc/kinetics-fs")


def test_cache_folder_that_is_damaged(run: Run, cache: Path, mountpoint: Path) -> None:
    assert run().returncode == 0
    assert run_command("umount", mountpoint).returncode == 0
    for path in (CacheLayout(cache).state_database, CacheLayout(cache).clip_table):
        for sidecar in path.parent.glob(f"{path.name}-*"):
            sidecar.unlink()
        path.write_bytes(b"not a database, " * 1000)
    done = run()
    if done.returncode:  # it may also create them again
        assert_one_sentence(done, str(cache))


def test_class_that_does_not_exist(run: Run) -> None:
    assert_one_sentence(run("--class", "surfing wate"), '"surfing wate"', 'did you mean "surfing water"')
    assert_one_sentence(run("--class", "massaging_persons_heads"), "massaging person's head")
    assert_one_sentence(run("--class", "zzz"), '"zzz"')


def test_split_that_does_not_exist(run: Run) -> None:
    assert_one_sentence(run("--split", "trian"), '"trian"', "train, validation, test")


def test_selection_of_nothing(run: Run) -> None:
    assert_one_sentence(run("--split", "test"), "no clip")


def test_release_that_does_not_exist(run: Run) -> None:
    assert_one_sentence(run("--release", "800"), '"800"', "700-2020")


@pytest.mark.parametrize("template", ["http://127.0.0.1/watch", "", "http://127.0.0.1/{ID}"])
def test_address_without_an_id_is_wrong_usage(run: Run, template: str) -> None:
    assert_one_sentence(run("--video-url", template), "--video-url", "{id}", status=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--workers", "0"),
        ("--workers", "many"),
        ("--timeout", "0"),
        ("--cache-size", "some"),
        ("--class-names", "x"),
        ("--frontend", "x"),
        ("--no-such-option",),
    ],
)
def test_bad_values_are_wrong_usage(run: Run, arguments: tuple[str, ...]) -> None:
    assert_one_sentence(run(*arguments), arguments[0], status=2)


CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "not TOML": ("workers = = 3", "not valid TOML"),
    "not text": (b"\xff\xfe\x00", "config.toml"),
    "unknown key": ("wokers = 3", "did you mean 'workers'"),
    "unknown table": ("[youtube]\nkey = 1", "[youtube.ytdlp]"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_configuration_file(dataset: Dataset, cache: Path, mountpoint: Path, tmp_path: Path, name: str) -> None:
    text, word = CONFIGS[name]
    config = tmp_path / "config.toml"
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = kinetics_fs(
        "--config", config, "mount", "--annotations", dataset.annotations, "--cache-dir", cache, mountpoint
    )
    assert_one_sentence(done, str(config), word)


def test_bad_value_in_the_configuration_file(dataset: Dataset, cache: Path, mountpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('workers = "many"')
    done = kinetics_fs(
        "--config", config, "mount", "--annotations", dataset.annotations, "--cache-dir", cache, mountpoint
    )
    assert_one_sentence(done, "many", status=2)


def test_configuration_file_that_is_not_there(cache: Path, mountpoint: Path, tmp_path: Path) -> None:
    done = kinetics_fs("--config", tmp_path / "none.toml", "mount", "--cache-dir", cache, mountpoint)
    assert_one_sentence(done, f"{tmp_path}/none.toml", "No such file")


ANNOTATIONS = {
    "empty": b"",
    "header alone": b"label,youtube_id,time_start,time_end,split\n",
    "other columns": b"a,b,c\n1,2,3\n",
    "no good row": b"label,youtube_id,time_start,time_end,split\nx,short,1,2,train\n",
    "binary": os.urandom(3000),
    "broken JSON": b'{"---QUuC4vJs": {',
    "cut gzip": b"\x1f\x8b\x08\x00\x00",
}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_bad_annotations(frontend: tuple[str, ...], cache: Path, mountpoint: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "annotations.csv"
    path.write_bytes(ANNOTATIONS[name])
    done = kinetics_fs("mount", *frontend, "--annotations", path, "--cache-dir", cache, mountpoint)
    assert_one_sentence(done, "annotations.csv")


def test_annotations_that_are_not_there(cache: Path, mountpoint: Path, tmp_path: Path) -> None:
    done = kinetics_fs("mount", "--annotations", tmp_path / "none.csv", "--cache-dir", cache, mountpoint)
    assert_one_sentence(done, "none.csv", "No such file")
    done = kinetics_fs("mount", "--annotations", tmp_path, "--cache-dir", cache, mountpoint)
    assert_one_sentence(done, str(tmp_path))


def test_log_file_that_cannot_be_written(run: Run, tmp_path: Path, mountpoint: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_sentence(run("--log-file", tmp_path / "file/log"), f"{tmp_path}/file")
    assert_one_sentence(run("--log-file", tmp_path), str(tmp_path))
    assert mountpoint not in find_mounts()


# How it begins ----------------------------------------------------------------------------------------------------


def test_only_the_folder_itself_is_made(run: Run, tmp_path: Path, mountpoint: Path) -> None:
    mountpoint.rmdir()
    assert run().returncode == 0
    assert (mountpoint / "validation").is_dir()


def test_mount_says_what_where_and_which_process(run: Run, mountpoint: Path) -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "Kinetics-600, 8 clips" in done.stdout
    assert str(mountpoint) in done.stdout
    [pid] = [word.removeprefix("process").strip(" ,)") for word in done.stdout.split("(")[-1].split(",")][:1]
    assert Path(f"/proc/{pid}").exists()
    assert str(mountpoint.with_name("mount.log")) in done.stdout


def test_several_mounts_at_a_time(mount: MountFactory) -> None:
    mounts = [mount(), mount(), mount("--class", "surfing water")]
    assert len({mounted.pid for mounted in mounts}) == 3
    assert all((mounted.root / SURFING).stat() for mounted in mounts)
    assert {path.name for path in (mounts[2].root / "validation").iterdir()} == {"surfing water"}


def test_paths_may_be_relative(run: Run, site: VideoSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the mount's process does not stay in the folder that they are relative to."""
    monkeypatch.chdir(tmp_path)
    arguments = "--cache-dir", "relative cache", "--log-file", "relative.log", "--video-url", site.url_template
    done = run(*arguments, mountpoint=Path("mountpoint"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "mountpoint" / SURFING).read_bytes()
    assert list((tmp_path / "relative cache/clips").glob("*/*.mp4"))
    assert "fetched" in (tmp_path / "relative.log").read_text()


def test_mount_point_may_have_any_name(run: Run, tmp_path: Path) -> None:
    names = ["-o exec", "a,b=c", "tab\tand space", "日本 é", "back\\slash", "line\nbreak", '"$(touch x)"', "%s"]
    for name in names:
        folder = tmp_path / name
        log = tmp_path / "log"
        try:
            done = run("--log-file", log, "--", mountpoint=folder)
            assert done.returncode == 0, (name, done.stderr)
            assert folder in find_mounts(), name
            assert (folder / SURFING).stat()
            done = run_command("umount", "--", folder)
            assert done.returncode == 0, (name, done.stderr)
            assert folder not in find_mounts(), name
        finally:
            subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def test_log_file_is_written_and_private(run: Run, mountpoint: Path, site: VideoSite) -> None:
    done = run("--video-url", site.url_template)
    assert done.returncode == 0, done.stderr
    log = mountpoint.with_name("mount.log")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    (mountpoint / SURFING).read_bytes()
    assert "-demo_video_000010_000020: fetched from youtube" in log.read_text()


def test_default_log_file_and_cache_are_the_users(
    frontend: tuple[str, ...], dataset: Dataset, mountpoint: Path, tmp_path: Path
) -> None:
    home = {name: str(tmp_path / name) for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "HOME")}
    done = kinetics_fs("mount", *frontend, "--annotations", dataset.annotations, mountpoint, timeout=60, **home)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "XDG_CACHE_HOME/kinetics-fs/state.sqlite").exists()
    assert [path for path in tmp_path.rglob("*.log") if "kinetics-fs" in path.parts]


def test_findmnt_shows_what_it_is(run: Run, mountpoint: Path) -> None:
    assert run().returncode == 0
    shown = subprocess.run(
        ["findmnt", "-n", "-r", "-o", "FSTYPE,OPTIONS", "-T", mountpoint], capture_output=True, text=True, check=True
    ).stdout.split()
    assert shown[0] == "fuse.kinetics-fs"
    assert {"ro", "nosuid", "nodev"} <= set(shown[1].split(","))
    assert subprocess.run(["findmnt", "-t", "fuse.kinetics-fs", mountpoint], capture_output=True, check=False).stdout
    assert subprocess.run(["mountpoint", "-q", mountpoint], check=False).returncode == 0


def test_daemon_keeps_no_descriptor_or_directory_of_its_parent(run: Run, mountpoint: Path, tmp_path: Path) -> None:
    done = run()  # returns although the daemon lives on: so it has no pipe of this process
    assert done.returncode == 0
    pid = int(done.stdout.rpartition("process ")[2].split(",")[0])
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{pid}/fd/1").readlink() == mountpoint.with_name("mount.log")


# How it ends ------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreground(
    frontend: tuple[str, ...], dataset: Dataset, site: VideoSite, cache: Path, mountpoint: Path
) -> Iterator[subprocess.Popen[str]]:
    """`kinetics-fs mount --foreground` on `mountpoint`, live."""
    arguments = "--annotations", dataset.annotations, "--cache-dir", cache, "--video-url", site.url_template
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "kinetics_fs", "--config", os.devnull, "mount", "--foreground"),
            *frontend,
            *arguments,
            *("--min-free", "0", mountpoint),
        ],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: process.poll() is not None or mountpoint in find_mounts())
            yield process
        finally:
            subprocess.run(["umount", "-l", mountpoint], capture_output=True, check=False)
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_foreground_ends_on_a_signal(
    foreground: subprocess.Popen[str], mountpoint: Path, number: signal.Signals
) -> None:
    assert (mountpoint / SURFING).read_bytes()
    foreground.send_signal(number)
    said, logged = foreground.communicate(timeout=60)
    assert foreground.returncode == 0, logged
    assert said == ""
    assert str(mountpoint) in logged
    assert "-demo_video_000010_000020: fetched from youtube" in logged
    assert "Traceback" not in logged
    assert mountpoint not in find_mounts()


def test_foreground_ends_when_unmounted(foreground: subprocess.Popen[str], mountpoint: Path) -> None:
    assert (mountpoint / SURFING).stat()
    done = run_command("umount", mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    foreground.communicate(timeout=60)
    assert foreground.returncode == 0


def test_signal_frees_the_mount_point_while_a_file_is_open(foreground: subprocess.Popen[str], mountpoint: Path) -> None:
    fd = os.open(mountpoint / SURFING, os.O_RDONLY)
    try:
        foreground.send_signal(signal.SIGTERM)
        wait_until(lambda: mountpoint not in find_mounts())
    finally:
        with suppress(OSError):  # the other end may be gone already
            os.close(fd)
    foreground.communicate(timeout=60)
    assert foreground.returncode == 0


def test_umount_waits_for_the_process(run: Run, mountpoint: Path) -> None:
    pid = int(run().stdout.rpartition("process ")[2].split(",")[0])
    done = run_command("umount", mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert has_ended(pid, within=0)
    assert mountpoint not in find_mounts()
    assert list(mountpoint.iterdir()) == []


def test_umount_by_the_system_ends_the_process(run: Run, mountpoint: Path) -> None:
    pid = int(run().stdout.rpartition("process ")[2].split(",")[0])
    subprocess.run(["umount", mountpoint], check=True)
    assert has_ended(pid, within=30)


def test_umount_fails_as_in_use_if_it_is_a_working_directory(run: Run, mountpoint: Path) -> None:
    assert run().returncode == 0
    with subprocess.Popen(["sleep", "600"], cwd=mountpoint / "validation") as inside:
        try:
            done = run_command("umount", mountpoint)
            assert_one_sentence(done, str(mountpoint), "is in use", "--lazy")
            assert mountpoint in find_mounts()
            assert (mountpoint / ".kinetics/classes.txt").read_text()
        finally:
            inside.kill()
    assert run_command("umount", mountpoint).returncode == 0


def test_umount_waits_for_a_momentary_visitor(run: Run, mountpoint: Path) -> None:
    """As `kinetics-fs status`, `df` and the monitoring of a machine visit all mounts."""
    assert run().returncode == 0
    with subprocess.Popen(["sleep", "0.7"], cwd=mountpoint / "validation"):
        assert run_command("umount", mountpoint).returncode == 0
    assert mountpoint not in find_mounts()


def test_umount_fails_as_in_use_with_an_open_file_unless_lazy(run: Run, mountpoint: Path, site: VideoSite) -> None:
    pid = int(run("--video-url", site.url_template).stdout.rpartition("process ")[2].split(",")[0])
    with (mountpoint / SURFING).open("rb") as file:
        assert_one_sentence(run_command("umount", mountpoint), "is in use")
        assert run_command("umount", "--lazy", mountpoint).returncode == 0
        assert mountpoint not in find_mounts()
        assert not has_ended(pid, within=0)
        assert len(file.read()) == os.fstat(file.fileno()).st_size
    assert has_ended(pid, within=30)


def test_umount_of_something_else_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/")):
        assert_one_sentence(run_command("umount", path), str(path), "is not a mount of kinetics-fs")


def test_umount_of_another_filesystem_is_refused(mountpoint: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting another filesystem needs root")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mountpoint], check=True)
    try:
        assert_one_sentence(run_command("umount", mountpoint), "is not a mount of kinetics-fs")
        assert_one_sentence(run_command("umount", "--lazy", mountpoint), "is not a mount of kinetics-fs")
        assert mountpoint.is_mount()
    finally:
        subprocess.run(["umount", mountpoint], check=True)


def test_umount_of_a_folder_inside_the_mount_is_refused(run: Run, mountpoint: Path) -> None:
    assert run().returncode == 0
    assert_one_sentence(run_command("umount", mountpoint / "validation"), "is not a mount of kinetics-fs")
    assert mountpoint in find_mounts()


def test_mount_after_umount(run: Run, mountpoint: Path) -> None:
    for _ in range(3):
        assert run().returncode == 0
        assert (mountpoint / SURFING).stat()
        assert run_command("umount", f"{mountpoint}/").returncode == 0


# Without privileges -----------------------------------------------------------------------------------------------


def mount_as_user(user: User, frontend: tuple[str, ...], dataset: Dataset, site: VideoSite) -> tuple[Path, int]:
    """Mount the dataset as another user; return the mountpoint and the pid."""
    annotations = user.home / "annotations.csv"
    shutil.copyfile(dataset.annotations, annotations)
    mountpoint = user.home / "kinetics"
    arguments = [*frontend, "--annotations", str(annotations), "--video-url", site.url_template, "--min-free", "0"]
    done = user.kinetics_fs("mount", *arguments, mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    pid = int(done.stdout.rpartition("process ")[2].split(",")[0])
    return mountpoint, pid


def test_unprivileged_user_mounts_reads_and_unmounts(
    user: User, frontend: tuple[str, ...], dataset: Dataset, site: VideoSite
) -> None:
    mountpoint, pid = mount_as_user(user, frontend, dataset, site)

    read = user.run("md5sum", mountpoint / SURFING)
    [log] = user.home.glob(".local/state/kinetics-fs/log/*.log")
    assert (read.returncode, read.stderr) == (0, ""), log.read_text()
    [cached] = (user.home / ".cache/kinetics-fs/clips").glob("*/-demo_video_000010_000020.*.mp4")
    assert read.stdout.split()[0] == user.run("md5sum", cached).stdout.split()[0]
    owner = user.run("stat", "-c", "%U %a", mountpoint / SURFING)
    assert owner.stdout.split() == ["nobody", "444"]
    assert user.run("touch", mountpoint / SURFING).returncode == 1
    with pytest.raises(PermissionError):  # nobody else may look into it, not even root
        mountpoint.stat()
    [finding] = look_for_faults(mountpoint, find_mounts())
    assert (finding.state, finding.fix) == ("ok", ""), finding
    assert "mounted by another user" in finding.found

    done = user.kinetics_fs("umount", mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert has_ended(pid, within=30)
    assert mountpoint not in find_mounts()


def test_unprivileged_user_ends_the_mount_by_a_signal(
    user: User, frontend: tuple[str, ...], dataset: Dataset, site: VideoSite
) -> None:
    mountpoint, pid = mount_as_user(user, frontend, dataset, site)
    os.kill(pid, signal.SIGTERM)
    assert has_ended(pid, within=30)
    assert mountpoint not in find_mounts()


def test_unprivileged_user_is_told_what_to_do(user: User, frontend: tuple[str, ...], dataset: Dataset) -> None:
    annotations = user.home / "annotations.csv"
    shutil.copyfile(dataset.annotations, annotations)
    everything = ["mount", *frontend, "--annotations", str(annotations)]
    Path("/dev/fuse").chmod(0o600)
    assert_one_sentence(user.kinetics_fs(*everything, user.home / "a"), "/dev/fuse", "chmod 666")
    Path("/dev/fuse").chmod(0o666)
    allowed = Path("/etc/fuse.conf").read_text().splitlines() if Path("/etc/fuse.conf").exists() else []
    if "user_allow_other" not in allowed:
        assert_one_sentence(user.kinetics_fs(*everything, "--allow-other", user.home / "b"), "user_allow_other")
    assert_one_sentence(user.kinetics_fs(*everything, "/proc/1"), "/proc/1")
    assert_one_sentence(user.kinetics_fs(*everything, "/mnt/none/b"), "/mnt/none/b")
    assert_one_sentence(user.kinetics_fs(*everything, "--cache-dir", "/root/cache", user.home / "c"), "/root/cache")


def test_mount_of_root_can_be_read_by_others(user: User, mount: MountFactory) -> None:
    # Bind-mounted, for the folder of the test is root's alone.
    mounted = mount()
    shown = user.home / "shown"
    shown.mkdir()
    subprocess.run(["mount", "--bind", mounted.root, shown], check=True)
    try:
        read = user.run("md5sum", shown / SURFING)
        assert (read.returncode, read.stderr) == (0, "")
        assert user.run("touch", shown / SURFING).returncode == 1
    finally:
        subprocess.run(["umount", "-l", shown], check=True)
