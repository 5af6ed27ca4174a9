"""Child processes that end with their parent."""

from __future__ import annotations

import subprocess
import sys

from tests.support.command_line import ENVIRONMENT, has_ended

CHILD = """
import subprocess, sys, time
from kinetics_fs.util.processes import end_with_parent
end_with_parent(sys.stdin.fileno())
grandchild = subprocess.Popen(["sleep", "60"])
print(grandchild.pid, flush=True)
time.sleep(60)
"""


def child(*, leader: bool) -> tuple[subprocess.Popen[str], int]:
    """Start a child that has a child of its own; return it and the process id of the grandchild."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=leader,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def hang_up(process: subprocess.Popen[str], *unread: str) -> None:
    """Do what the kernel does when the parent dies."""
    assert process.stdin is not None
    process.stdin.writelines(unread)
    process.stdin.close()


def test_a_session_leader_ends_with_its_children() -> None:
    process, grandchild = child(leader=True)
    with process:
        hang_up(process)
        process.wait(10)
    assert has_ended(grandchild, within=10)


def test_a_process_that_leads_no_session_ends_alone() -> None:
    process, grandchild = child(leader=False)
    with process:
        hang_up(process)
        assert process.wait(10) == 1
        assert not has_ended(grandchild, within=0.2)
        subprocess.run(["kill", str(grandchild)], check=True)


def test_unread_input_does_not_delay_the_end() -> None:
    process, _ = child(leader=True)
    with process:
        hang_up(process, "a line that the child never reads\n")
        process.wait(10)
