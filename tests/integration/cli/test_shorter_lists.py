"""A list that loses clips and classes at its publisher keeps what is cached and pinned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.support.command_line import json_output, run_command
from tests.support.demo_clips import ROWS, as_csv


def test_clips_that_leave_a_list_stay_cached_and_pinned(tmp_path: Path, fetched: Path) -> None:
    annotations, cache = tmp_path / "rows.csv", tmp_path / "cache"
    shutil.copytree(fetched, cache)
    chosen = "--annotations", annotations, "--cache-dir", cache
    annotations.write_text(as_csv(ROWS))
    pinned = json_output(run_command("pin", "add", *chosen, "--split", "validation", "--json"))
    before = json_output(run_command("status", "--cache-dir", cache, "--json"))["cache"]

    annotations.write_text(as_csv(ROWS[:2]))
    classes = run_command("classes", *chosen, "--json")
    assert [one["label"] for one in json.loads(classes.stdout)["classes"]] == ["surfing water"]
    [warning] = [line for line in classes.stderr.splitlines() if "WARNING" in line]
    assert f'the class "{ROWS[2][0]}" was 0 and is missing now' in warning
    assert "WARNING" not in run_command("classes", *chosen).stderr, "once for each change"

    after = json_output(run_command("status", "--cache-dir", cache, "--json"))["cache"]
    assert (after["clips"], after["pinned_clips"], after["bytes"]) == (3, 4, before["bytes"])
    listed = json_output(run_command("pin", "list", *chosen, "--json"))
    assert listed["total"] == {name: pinned[name] for name in ("clips", "cached", "bytes")}
    assert [(row["label"], row["clips"]) for row in listed["classes"]] == [("surfing water", 2)]

    annotations.write_text(as_csv(ROWS))
    coverage = json_output(run_command("status", "--coverage", *chosen, "--json"))
    assert coverage["cached"] == 3
