"""Benchmarks against peers: `python -m benchmarks NAME… [--quick] [--json FILE]`.

Each benchmark prints a table. With `--json`, the rows of all tables are written to a file too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from benchmarks import (
    archives,
    catalog,
    chaos,
    cli,
    cluster,
    cluster_chaos,
    cluster_fill,
    fuzz,
    mount,
    soak,
    training,
    youtube,
)
from benchmarks.report import Row, machine, table


class Benchmark(Protocol):
    """Measure and return rows; with `quick`, on less data and in fewer rounds."""

    def __call__(self, *, quick: bool) -> Sequence[Row]: ...


BENCHMARKS: dict[str, Benchmark] = {
    "archives": archives.run,
    "catalog": catalog.run,
    "chaos": chaos.run,
    "cli": cli.run,
    "cluster": cluster.run,
    "cluster-chaos": cluster_chaos.run,
    "cluster-fill": cluster_fill.run,
    "fuzz": fuzz.run,
    "mount": mount.run,
    "soak": soak.run,
    "soak-no-passthrough": partial(soak.run, passthrough=False),
    "training": training.run,
    "youtube": youtube.run,
}


def main() -> None:
    """Run the benchmarks that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure kinetics-fs against peers. Print a table for each benchmark."
    )
    parser.add_argument("names", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="measure less data in fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of all benchmarks to FILE too")
    arguments = parser.parse_args()

    rows: list[Row] = []
    for name in arguments.names:
        found = BENCHMARKS[name](quick=arguments.quick)
        print(f"{name}\n{table(found)}\n", flush=True)
        rows += found
    if arguments.json:
        report = {"machine": machine(), "rows": [row.to_json() for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
