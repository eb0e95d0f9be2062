"""Small files of a day into few: ours beside DuckDB, Polars, Daft, delta-rs and pyarrow, locally and on S3.

Every contender is a process of its own. CPU seconds and wall time are those of the work alone; what the interpreter and
the imports take is shown apart. Peak memory is that of the whole process. Ratios are those within a round, then the
median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import compaction_large, compaction_s3
from benchmarks.compaction_peers import TARGET_FILE_BYTES, ZSTD_LEVEL
from benchmarks.compaction_rewrites import PEERS_PYTHON, WORKLOADS, Contender, Result, Workload, contenders, measure
from benchmarks.compaction_tables import print_table, targets, verification_cost
from benchmarks.measuring import Target, evict_libraries, print_targets

__all__ = ["main"]

PARTS = (*WORKLOADS, "s3", "large")
DISTRIBUTIONS = ("duckdb", "polars", "daft", "deltalake", "pyarrow")


def main(arguments: Sequence[str]) -> None:
    """Runs the parts that were asked for, and prints their figures and targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compaction", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts (default: all but large)")
    parser.add_argument("--files", type=int, help="input files of the parts that run here (default: their own number)")
    parser.add_argument("--large", action="store_true", help="10 GB too: needs 22 GB of disk and half an hour")
    parser.add_argument("--sizes", nargs="+", choices=compaction_large.SIZES, help="files of the large part")
    parser.add_argument("--gigabytes", type=float, default=10, help="input of the large part (default: %(default)s)")
    parser.add_argument("--latency-ms", type=int, nargs="+", default=[0, 30], help="of S3 (default: 0 30)")
    parser.add_argument("--no-queries", action="store_true", help="on S3, rewrite only")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON, help="the interpreter that has the peers")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="these alone, such as ours 'Polars sink'")
    chosen = parser.parse_args(arguments)
    parts = chosen.only or [part for part in PARTS if part != "large" or chosen.large]
    print_setting(chosen.peers_python)
    evict_libraries()
    evict_libraries(chosen.peers_python)
    judged: list[Target] = []
    for name in parts:
        if name in WORKLOADS:
            workload = replace(WORKLOADS[name], files=chosen.files or WORKLOADS[name].files)
            who = contenders(workload, python=chosen.peers_python)
            judged += rewrites(workload, _picked(who, chosen.contenders), rounds=chosen.rounds)
    if "s3" in parts:
        judged += compaction_s3.run(
            chosen.latency_ms, rounds=chosen.rounds, peers_python=chosen.peers_python, queries=not chosen.no_queries
        )
    if "large" in parts:
        judged += compaction_large.run(chosen.gigabytes, sizes=chosen.sizes or list(compaction_large.SIZES))
    print()
    print_targets(judged)


def _picked(who: Sequence[Contender], names: Sequence[str] | None) -> list[Contender]:
    return [contender for contender in who if names is None or contender.name in names]


def rewrites(workload: Workload, who: Sequence[Contender], *, rounds: int) -> list[Target]:
    """One workload, measured, shown and judged."""
    rows = workload.files * workload.rows
    print(f"\n{workload.name}: {workload.files:,} files, {rows:,} rows, Snappy to {workload.codec}")
    results: dict[str, Result] = measure(workload, who, rounds=rounds)
    print_table(results)
    if cost := verification_cost(results):
        print(cost)
    judged = targets(workload, results)
    print_targets(judged)
    return judged


def print_setting(peers_python: Path) -> None:
    """Whatever the figures depend on."""
    print(f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, ours: {_versions(sys.executable)}")
    if peers_python.exists():
        print(f"peers: {_versions(str(peers_python))}; pyarrow as a peer is ours")
    else:
        print(
            "the peers' environment is missing: `make bench` makes it; only those that can be imported here take part"
        )
    print(
        f"target size of a file {TARGET_FILE_BYTES >> 20} MiB, zstd of level {ZSTD_LEVEL} where a peer takes one; "
        "page cache warm; ours commits, syncs and removes its inputs besides"
    )


def _versions(python: str) -> str:
    """Versions of all that takes part, as one interpreter has them."""
    script = (
        "import json, sys; from importlib.metadata import distributions\n"
        "print(json.dumps({d.name: d.version for d in distributions() if d.name in sys.argv[1:]}))"
    )
    told = subprocess.run([python, "-c", script, *DISTRIBUTIONS], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(told.stdout)
    return ", ".join(f"{name} {found[name]}" for name in DISTRIBUTIONS if name in found)
