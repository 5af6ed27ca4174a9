"""The catalog at full size: 650,000 rows, as many as the largest release has.

The peer does as tools that keep annotations in memory do: `csv.DictReader` into a dict of lists, per split and class.
Each measurement runs in a new interpreter with the same modules imported. Its memory is the peak of that process less
the peak of a process that did nothing. All numbers are medians of three runs.
"""

from __future__ import annotations

import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.report import Row, Target
from kinetics_fs.catalog import Catalog, compile_catalog, find_release, parse_clip_name

ROWS = 650_000
CLASSES = 700
RUNS = 3

_ID = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_PEER = "csv.DictReader into memory"


# Tasks, each run as `python -m benchmarks.catalog TASK FILE FOLDER` ------------------------------------------------


def write_annotations(annotations: Path, rows: int) -> None:
    """Write annotations like DeepMind's: sorted by id, five columns, starts spread as in Kinetics-600 (median 25 s)."""
    draw = random.Random(600)
    labels = [f"class of people doing thing {number}" for number in range(CLASSES)]
    ids = sorted("".join(draw.choices(_ID, k=11)) for _ in range(rows))
    with annotations.open("w") as file:
        file.write("label,youtube_id,time_start,time_end,split\n")
        for youtube_id in ids:
            start = min(int(draw.lognormvariate(3.2, 1.5)), 23_770)
            split = draw.choices(("train", "validate", "test"), (84, 5, 11))[0]
            file.write(f"{draw.choice(labels)},{youtube_id},{start},{start + 10},{split}\n")


def _write(annotations: Path, folder: Path) -> dict[str, float]:
    write_annotations(annotations, ROWS)
    compile_catalog([annotations], find_release("700-2020"), folder)
    return {}


def _compile(annotations: Path, folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        return {"compile": _seconds(lambda: compile_catalog([annotations], find_release("700-2020"), Path(fresh)))}


def _load(annotations: Path, folder: Path) -> dict[str, float]:
    def load() -> dict[tuple[str, str], list[dict[str, str]]]:
        loaded: dict[tuple[str, str], list[dict[str, str]]] = {}
        with annotations.open(newline="") as file:
            for row in csv.DictReader(file):
                loaded.setdefault((row["split"], row["label"]), []).append(row)
        return loaded

    return {"load": _seconds(load)}


def _open(annotations: Path, folder: Path) -> dict[str, float]:
    return {"open": _seconds(lambda: Catalog(_made(folder)))}


def _use(annotations: Path, folder: Path) -> dict[str, float]:
    catalog = Catalog(_made(folder))
    directories = catalog.classes(catalog.splits()[0])[:200]
    entries = [(directory, entry.clip.name) for directory in directories for entry in catalog.entries(directory)]
    looked_up = random.Random(1).sample(entries, 10_000)

    def list_all() -> None:
        for directory in directories:
            catalog.entries(directory)

    def look_up() -> None:
        for directory, name in looked_up:
            clip = parse_clip_name(name)
            assert clip and catalog.find(directory, clip)

    return {
        "list": _seconds(list_all) / len(entries),
        "lookup": _seconds(look_up) / len(looked_up),
    }


def _walk(annotations: Path, folder: Path) -> dict[str, float]:
    catalog = Catalog(_made(folder))
    return {"walk": _seconds(lambda: sum(1 for _ in catalog.clips())) / catalog.clip_count}


def _reuse(annotations: Path, folder: Path) -> dict[str, float]:
    return {"reuse": _seconds(lambda: compile_catalog([annotations], find_release("700-2020"), folder))}


def _nothing(annotations: Path, folder: Path) -> dict[str, float]:
    return {}


_TASKS: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "write": _write,
    "compile": _compile,
    "load": _load,
    "open": _open,
    "use": _use,
    "walk": _walk,
    "reuse": _reuse,
    "nothing": _nothing,
}


def _seconds(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    result = task()  # its memory must not be given back before the time is taken
    elapsed = time.perf_counter() - started
    del result
    return elapsed


def _made(folder: Path) -> Path:
    return next(folder.glob("*.sqlite"))


def _task(name: str, annotations: Path, folder: Path) -> None:
    measured = _TASKS[name](annotations, folder)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    measured["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps(measured))


# The table --------------------------------------------------------------------------------------------------------


def run(*, quick: bool = False) -> Sequence[Row]:
    """Measures everything; takes about a minute, with `quick` less, for it measures once only."""
    times = 1 if quick else RUNS
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        annotations = folder / "annotations.csv"
        # Even this in a process of its own: a child's peak of memory is never less than its parent's.
        _fresh("write", annotations, folder)
        tasks = [task for task in _TASKS if task != "write"]
        runs = {task: [_fresh(task, annotations, folder) for _ in range(times)] for task in tasks}

    def measured(task: str, what: str) -> float:
        return median(run[what] for run in runs[task])

    def megabytes(task: str) -> float:
        return (measured(task, "memory") - measured("nothing", "memory")) / 1e6

    load = measured("load", "load")
    return [
        Row(f"compile {ROWS:,} rows, s", measured("compile", "compile"), load, _PEER, Target("ours", "<=", 6)),
        Row("compile, peak memory, MB", megabytes("compile"), megabytes("load"), _PEER, Target("ratio", "<=", 0.25)),
        Row("later starts: check the input, ms", measured("reuse", "reuse") * 1e3, load * 1e3, _PEER),
        Row("open a compiled catalog, ms", measured("open", "open") * 1e3, load * 1e3, _PEER, Target("ours", "<=", 50)),
        Row("open, memory, MB", megabytes("open"), megabytes("load"), _PEER, Target("ratio", "<=", 0.05)),
        Row("walk all clips, memory, MB", megabytes("walk"), megabytes("load"), _PEER, Target("ratio", "<=", 0.05)),
        Row("walk all clips, µs per clip", measured("walk", "walk") * 1e6),
        Row("list a class, ms per 1,000 clips", measured("use", "list") * 1e6),
        Row("look up a name, µs", measured("use", "lookup") * 1e6),
    ]


def _fresh(task: str, annotations: Path, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.catalog", task, str(annotations), str(folder)]
    measured: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return measured


if __name__ == "__main__":
    _task(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
