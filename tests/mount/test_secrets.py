"""Passwords and signatures in settings appear in no output and in no file that kinetics-fs writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import Dataset
from tests.support.archive_site import ArchiveSite
from tests.support.command_line import Mounted, run_command

SECRETS = ("us3rname", "s3cret-pw", "t0ken-value", "pr0xy-pw")
LOGIN = "us3rname:s3cret-pw@"
CLIP = "validation/surfing water/-demo_video_000010_000020.mp4"


def files_with_secrets(folder: Path) -> list[Path]:
    """Return the files below a folder whose name or content has a secret."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS)]


@pytest.mark.server
def test_no_secret_of_a_setting_is_shown_or_written(dataset: Dataset, tmp_path: Path) -> None:
    cache, outputs = tmp_path / "cache", []
    with ArchiveSite({"list.csv?token=t0ken-value": dataset.annotations.read_bytes()}) as site:
        host = site.url.removeprefix("http://")
        settings = (
            *("--cache-dir", cache, "--annotations", f"http://{LOGIN}{host}/list.csv?token=t0ken-value"),
            *("--archive-url", f"http://{LOGIN}{host}/kinetics", "--proxy", "http://us3rname:pr0xy-pw@127.0.0.1:1"),
        )
        selection = settings[:4]

        def run(*arguments: str | Path) -> None:
            done = run_command(*arguments)
            outputs.append(f"{arguments[0]}: {done.stdout}{done.stderr}")

        with Mounted(tmp_path / "mount", *settings, "--max-archive-download", "1GB", options=("--debug",)) as mount:
            with pytest.raises(OSError):
                (mount.root / CLIP).read_bytes()
            outputs += [os.getxattr(mount.root / CLIP, name).decode() for name in os.listxattr(mount.root / CLIP)]
            outputs += [path.read_text() for path in (mount.root / ".kinetics").iterdir()]
            run("status", mount.root)
            run("status", "--json", mount.root)
            run("jobs", "list", mount.root)
            run("doctor", *settings[:2], "--archive-url", settings[5], "--proxy", settings[7], mount.root)
        outputs.append(mount.log.read_text())
        for command in ("prefetch", "fill", "index build"):
            run(*command.split(), *(settings if command == "prefetch" else settings[:6]))
        run("failures", "retry", "--all", *settings)
        run("failures", "export", "--cache-dir", cache, "-")
        for flag in ("--json", "--csv", "--summary"):
            run("failures", "list", "--cache-dir", cache, flag)
        run("failures", "list", "--cache-dir", cache)
        run("status", "--coverage", *selection)
        run("status", "--coverage", "--csv", *selection)
        run("report", *selection, "--output", tmp_path / "report.html")
        run("classes", "--cache-dir", cache, "--annotations", f"http://{LOGIN}{host}/none.csv?token=t0ken-value")
    run("classes", "--cache-dir", tmp_path / "other", *settings[2:4])  # the server has gone

    assert any("proxy" in output.lower() for output in outputs), "the proxy failed"
    assert any("none.csv" in output for output in outputs), "the address of a list is in an error"
    shown = [output for output in outputs if any(secret in output for secret in SECRETS)]
    assert shown == []
    assert files_with_secrets(tmp_path) == []
