"""The systemd units and their installation; `test_boot` boots a Debian with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
NAMES = sorted(str(path.relative_to(UNITS)) for path in UNITS.rglob("*@.*"))
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("name", NAMES)
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for path in (UNITS / name).parent.glob("*@.*"):
        # systemd resolves program names only in the directories of the system.
        text = re.sub(r"^(Exec\w+=-?)kinetics-fs ", rf"\1{BIN}/kinetics-fs ", path.read_text(), flags=re.MULTILINE)
        (tmp_path / path.name).write_text(text)
    unit = tmp_path / Path(name).name.replace("@.", "@mnt-kinetics.")
    run = ["systemd-analyze", *(["--user"] if "/" in name else []), "verify", "--man=no", str(unit)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_no_option_hides_the_mount() -> None:
    text = (UNITS / "kinetics-fs@.service").read_text()
    options = {line.split("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("#")}
    hiding = r"Private(Tmp|Devices|Mounts|IPC|Users)|Protect(System|Home|Kernel\w+|Proc|ControlGroups)|ProcSubset"
    hiding += r"|\w+Paths|TemporaryFileSystem|MountFlags|Root\w+|DynamicUser"
    assert not [name for name in options if re.fullmatch(hiding, name)]


def install(root: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DESTDIR": str(root)}
    run = [UNITS / "install", *arguments]
    return subprocess.run(run, env=environment, capture_output=True, text=True, check=False)


def installed(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file()}


def test_install_and_remove(tmp_path: Path) -> None:
    programs = tmp_path / "a folder/bin"
    programs.mkdir(parents=True)
    for name in ("kinetics-fs", "mount.kinetics-fs"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    root = tmp_path / "root"
    links = {"usr/local/bin/kinetics-fs", "usr/sbin/mount.kinetics-fs", "usr/sbin/mount.fuse.kinetics-fs"}
    units = {f"etc/systemd/{name if '/' in name else 'system/' + name}" for name in NAMES}
    for _ in range(2):
        done = install(root, programs)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert installed(root) == links | units
    assert (root / "usr/sbin/mount.fuse.kinetics-fs").readlink() == programs / "mount.kinetics-fs"

    (root / "usr/local/bin/kinetics-fs").unlink()
    (root / "usr/local/bin/kinetics-fs").write_text("a file of another package")
    assert "usr/local/bin/kinetics-fs: it is not a link of kinetics-fs" in install(root, programs).stderr
    assert install(root, "--remove", programs).returncode == 0
    assert installed(root) == {"usr/local/bin/kinetics-fs"}


def test_install_without_programs_is_refused(tmp_path: Path) -> None:
    done = install(tmp_path / "root", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert not (tmp_path / "root").exists()
