"""A Debian with systemd boots, and runs kinetics-fs as a service: `pytest -m boot`, as root.

It is one test, because each step needs the state that the steps before have left.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.conftest import Dataset
from tests.support.mounts import wait_until
from tests.system.container import PROJECT, Container, debian

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

MOUNTPOINT = "/mnt/kinetics"
UNIT = "kinetics-fs@mnt-kinetics.service"
SURFING = "validation/surfing water/-demo_video_000010_000020.mp4"
EXPOSURE = {"kinetics-fs@": 48, "kinetics-fs-prefetch@": 27, "kinetics-fs-fill@": 27}
"""Maximum exposure that `systemd-analyze security` may report, in tenths."""

BY_FSTAB = "/srv/by fstab"

ORIGIN = """
[Unit]
Before=kinetics-fs@mnt-kinetics.service remote-fs-pre.target
[Service]
Type=notify
ExecStart=/opt/kinetics-fs/bin/python /srv/origin.py /srv/videos /etc/kinetics-fs/config.toml
[Install]
WantedBy=multi-user.target
"""

READER = """
[Unit]
Requires=kinetics-fs@mnt-kinetics.service
After=kinetics-fs@mnt-kinetics.service
[Service]
Type=oneshot
DynamicUser=yes
ExecStart=sha256sum "/mnt/kinetics/validation/surfing water/-demo_video_000010_000020.mp4"
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of the working tree and of its dependencies."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "--constraint", PROJECT / "constraints.txt", PROJECT], check=True)
    return folder


@pytest.fixture
def machine(wheels: Path, dataset: Dataset, tmp_path: Path) -> Iterator[Container]:
    """A booted Debian with kinetics-fs, installed as the documentation describes."""
    if os.geteuid() != 0:
        pytest.skip("booting needs root")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", debian(), root], check=True)
    shutil.copytree(wheels, root / "srv/wheels")
    shutil.copytree(dataset.videos, root / "srv/videos")
    shutil.copy(dataset.annotations, root / "srv/annotations.csv")
    shutil.copy(Path(__file__).with_name("origin.py"), root / "srv/origin.py")
    with Container(root) as container:
        container.output("python3", "-m", "venv", "/opt/kinetics-fs")
        pip = ["/opt/kinetics-fs/bin/pip", "install", "--quiet", "--no-index", "--find-links", "/srv/wheels"]
        container.output(*pip, "kinetics-fs", timeout=300)
        container.output("/opt/kinetics-fs/share/kinetics-fs/systemd/install")
        container.write("/etc/kinetics-fs/config.toml", 'annotations = ["/srv/annotations.csv"]\nmin-free = "0"\n')
        container.write("/etc/systemd/system/origin.service", ORIGIN)
        container.write("/etc/systemd/system/reader.service", READER)
        container.output("systemctl", "daemon-reload")
        container.output("systemctl", "enable", "--now", "origin.service")
        yield container


def shown(machine: Container, property: str, unit: str = UNIT) -> str:
    return machine.output("systemctl", "show", "--value", f"--property={property}", unit).strip()


def is_mounted(machine: Container, mountpoint: str = MOUNTPOINT) -> bool:
    return machine.run("findmnt", "--types", "fuse.kinetics-fs", "--mountpoint", mountpoint).returncode == 0


def end_main_process(machine: Container, signal: str) -> None:
    machine.output("systemctl", "kill", f"--signal={signal}", "--kill-whom=main", UNIT)


def wait_for_restart(machine: Container, number: int) -> None:
    wait_until(lambda: shown(machine, "NRestarts") == str(number) and shown(machine, "ActiveState") == "active")
    assert machine.output("findmnt", "--noheadings", "--output=TARGET", "--types=fuse.kinetics-fs").split() == [
        MOUNTPOINT
    ]


def read_by_another_unit(machine: Container) -> str:
    """Return the digest of a clip that another service reads as another user."""
    machine.output("systemctl", "start", "reader.service")
    log = machine.output("journalctl", "--unit=reader.service", "--output=cat", "--no-pager")
    return str(re.findall(r"^[0-9a-f]{64}", log, re.MULTILINE)[-1])


def digest(machine: Container, path: str) -> str:
    return machine.output("sha256sum", "--", path).split()[0].lstrip("\\")


def test_service_through_crashes_a_full_disk_and_a_reboot(machine: Container) -> None:
    units_are_sound(machine)

    # The unit is started when the mount can be used, by all users.
    machine.output("systemctl", "enable", "--now", UNIT)
    assert is_mounted(machine)
    assert shown(machine, "ActiveState") == "active"
    clip = read_by_another_unit(machine)
    [cached] = (machine.root / "var/cache/kinetics-fs/clips").glob("*/-demo_video_000010_000020.*.mp4")
    assert clip == sha256(cached.read_bytes()).hexdigest()
    wait_until(lambda: shown(machine, "StatusText").startswith("1 clip in the cache"))
    log = machine.output("journalctl", f"--unit={UNIT}", "--output=json", "--no-pager")
    assert '"MESSAGE":"-demo_video_000010_000020: fetched from youtube' in log
    assert '"PRIORITY":"6"' in log
    fetches_are_confined(machine)

    killed_and_stuck(machine)
    assert read_by_another_unit(machine) == clip

    machine.output("systemctl", "start", "kinetics-fs-prefetch@mnt-kinetics.service")
    assert shown(machine, "Result", "kinetics-fs-prefetch@mnt-kinetics.service") == "success"
    assert len(list((machine.root / "var/cache/kinetics-fs/clips").glob("*/*.mp4"))) > 1

    by_fstab(machine, clip)
    full_disk(machine)

    machine.reboot()
    assert is_mounted(machine)
    assert read_by_another_unit(machine) == clip
    assert not is_mounted(machine, BY_FSTAB)  # no process has used the path yet
    assert digest(machine, f"{BY_FSTAB}/{SURFING}") == clip

    machine.output("systemctl", "stop", UNIT)
    assert not is_mounted(machine)
    assert shown(machine, "Result") == "success"
    assert machine.output("ls", "-A", MOUNTPOINT) == ""
    machine.output("/opt/kinetics-fs/share/kinetics-fs/systemd/install", "--remove")
    assert machine.run("systemctl", "cat", UNIT).returncode != 0


def units_are_sound(machine: Container) -> None:
    for path in (PROJECT / "systemd").glob("*.*"):
        unit = path.name.replace("@.", "@mnt-kinetics.")
        verified = machine.run("systemd-analyze", "verify", "--man=no", unit)
        assert (verified.returncode, verified.stdout + verified.stderr) == (0, ""), unit
        if path.suffix == ".service":
            machine.output("systemd-analyze", "security", f"--threshold={EXPOSURE[path.stem]}", unit)


def fetches_are_confined(machine: Container) -> None:
    [line] = [line for line in machine.output("kinetics-fs", "status", MOUNTPOINT).splitlines() if "sandbox" in line]
    assert re.search(r"uid \d+, no capabilities, Landlock \d, seccomp$", line), line


def killed_and_stuck(machine: Container) -> None:
    """Signals that end or stop the process, and the state of the mount afterwards."""
    end_main_process(machine, "HUP")
    assert is_mounted(machine)
    assert shown(machine, "NRestarts") == "0"

    end_main_process(machine, "KILL")
    wait_for_restart(machine, 1)

    drop_in = f"/etc/systemd/system/{UNIT}.d/test.conf"
    machine.write(drop_in, "[Service]\nWatchdogSec=4\n")
    machine.output("systemctl", "daemon-reload")
    machine.output("systemctl", "restart", UNIT)
    before = shown(machine, "NRestarts")
    end_main_process(machine, "STOP")
    wait_for_restart(machine, int(before) + 1)
    assert "Watchdog timeout" in machine.output("journalctl", f"--unit={UNIT}", "--output=cat", "--no-pager")

    # Without a restart, no dead mount remains.
    machine.write(drop_in, "[Service]\nRestart=no\n")
    machine.output("systemctl", "daemon-reload")
    end_main_process(machine, "KILL")
    wait_until(lambda: shown(machine, "ActiveState") == "failed")
    assert not is_mounted(machine)
    assert machine.output("ls", "-A", MOUNTPOINT) == ""

    machine.output("rm", drop_in)
    machine.output("systemctl", "daemon-reload")
    machine.output("systemctl", "start", UNIT)


def by_fstab(machine: Container, clip: str) -> None:
    options = "ro,_netdev,nofail,x-systemd.automount,split=validation"
    mountpoint = BY_FSTAB.replace(" ", r"\040")
    machine.write("/etc/fstab", f"kinetics-600 {mountpoint} kinetics-fs {options} 0 0\n")
    unit = machine.output("systemd-escape", "--path", "--suffix=automount", BY_FSTAB).strip()
    machine.output("systemctl", "daemon-reload")
    machine.output("systemctl", "start", unit)
    assert not is_mounted(machine, BY_FSTAB)
    assert digest(machine, f"{BY_FSTAB}/{SURFING}") == clip
    assert is_mounted(machine, BY_FSTAB)
    assert machine.output("ls", BY_FSTAB).split() == ["val", "validation"]
    machine.output("mount", "--all")  # succeeds with everything mounted
    assert machine.output(
        "findmnt", "--types=fuse.kinetics-fs", "--noheadings", "--output=SOURCE", BY_FSTAB
    ).split() == ["kinetics-600"]
    assert (machine.root / "var/log/kinetics-fs/srv-by fstab.log").exists()

    machine.output("systemctl", "stop", unit.replace(".automount", ".mount"))
    assert not is_mounted(machine, BY_FSTAB)
    machine.output("systemctl", "start", unit)
    assert digest(machine, f"{BY_FSTAB}/{SURFING}") == clip


def full_disk(machine: Container) -> None:
    mountpoint, unit = "/mnt/full", "kinetics-fs@mnt-full.service"
    machine.output("mkdir", "/srv/small")
    machine.output("mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", "/srv/small")
    machine.write("/etc/kinetics-fs/mnt-full.env", "KINETICS_FS_CACHE_DIR=/srv/small/cache\n")
    machine.output("systemctl", "start", unit)
    machine.run("dd", "if=/dev/zero", "of=/srv/small/filler", "bs=4096")  # until it is full
    failed = machine.run("cat", f"{mountpoint}/{SURFING}")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "No space left on device" in failed.stderr
    assert shown(machine, "ActiveState", unit) == "active"
    assert len(machine.output("ls", f"{mountpoint}/validation").splitlines()) > 1
    machine.output("rm", "/srv/small/filler")
    assert digest(machine, f"{mountpoint}/{SURFING}")
    assert shown(machine, "NRestarts", unit) == "0"
    machine.output("systemctl", "stop", unit)
