"""A user without privileges, who runs commands."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.command_line import ENVIRONMENT


class User:
    """A user who is not root.

    Args:
        home: an existing folder, which becomes the home of the user.
    """

    def __init__(self, home: Path) -> None:
        account = pwd.getpwnam("nobody")
        self.home = home
        self._become = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        os.chown(home, account.pw_uid, account.pw_gid)
        inherited = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("XDG_")}
        self._environment = {**inherited, "HOME": str(home), "USER": "nobody", "LOGNAME": "nobody"}
        if not self._can_run_us():
            # This installation is somewhere that only root may look into: so this user may look everywhere, but
            # still not write, open devices for writing, or mount.
            self._become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
            if not self._can_run_us():
                pytest.skip("another user cannot run this installation")

    def _can_run_us(self) -> bool:
        # Twice: the first exec may still look where this user may not.
        code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import kinetics_fs'], check=True)"
        return self.run(sys.executable, "-c", code).returncode == 0

    def run(self, *command: str | Path, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command as this user; `wrapper` is a command of root's that runs it."""
        return subprocess.run(
            [*wrapper, *self._become, *command],
            env=self._environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def kinetics_fs(self, *arguments: str | Path, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run kinetics-fs as this user."""
        return self.run(sys.executable, "-m", "kinetics_fs", "--config", os.devnull, *arguments, wrapper=wrapper)
