"""A million rows of a ksqlDB stream into day partitions of a local lake: ours beside the pandas way.

Each run is a process of its own that reads from the same embedded server, in turns, so that what else the machine does
falls on both. CPU seconds are those of the client process alone. Its start, that is the interpreter and all imports, is
shown apart: a worker starts once and ingests many times, and the ratio that we hold ourselves to is that of the work.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Target, Used, child, medians, print_targets, server

__all__ = ["main"]

VARIANTS = {"ours": "benchmarks.ingest_ours", "pandas": "benchmarks.ingest_pandas"}
#: Rows on each day; a million rows fall on seven days.
EVENTS_PER_DAY = 150_000
#: As issues #2 and #15 ask for.
WANTED_RATIO, WANTED_CPU_S, WANTED_RSS_MB = 5.0, 2.0, 300.0


def main(arguments: Sequence[str]) -> None:
    """Runs all variants in turns and prints the medians and the targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ingest", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the stream (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each variant (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    runs = measure(chosen.rows, repeats=chosen.repeats)
    report(chosen.rows, {name: medians(each) for name, each in runs.items()}, repeats=chosen.repeats)


def measure(rows: int, *, repeats: int) -> dict[str, list[Used]]:
    """Every variant `repeats` times, in turns, each time into a new lake."""
    runs: dict[str, list[Used]] = {name: [] for name in VARIANTS}
    with server("benchmarks.ksqldb_server", str(rows), str(EVENTS_PER_DAY)) as url:
        for number in range(1, repeats + 1):
            for name, module in VARIANTS.items():
                with tempfile.TemporaryDirectory(prefix="datalake-bench-") as folder:
                    used = child(module, url, str(Path(folder)))
                runs[name].append(used)
                print(f"run {number}/{repeats} {name}: {used.work_cpu_s:.2f} CPU-s, {used.rows:,} rows", flush=True)
    return runs


def report(rows: int, result: dict[str, Used], *, repeats: int) -> None:
    """Prints a table and the targets."""
    ours, pandas = result["ours"], result["pandas"]
    print(f"\n{rows:,} rows, medians of {repeats}\n")
    print(f"{'':8}{'CPU-s':>8}{'start-up':>10}{'wall s':>8}{'peak MiB':>10}{'rows':>12}{'lake MiB':>10}")
    for name, used in result.items():
        figures = f"{used.work_cpu_s:8.2f}{used.startup_cpu_s:10.2f}{used.wall_s:8.1f}{used.peak_rss_mb:10.0f}"
        print(f"{name:8}{figures}{used.rows:12,.0f}{used.size_mb:10.1f}")
    ratio = pandas.work_cpu_s / ours.work_cpu_s
    print(f"\nCPU of the pandas way by ours with the start-up of both: {pandas.cpu_s / ours.cpu_s:.1f}")
    print_targets(
        [
            Target(
                "CPU of the pandas way by ours", f"at least {WANTED_RATIO:g}", f"{ratio:.1f}", ratio >= WANTED_RATIO
            ),
            Target(
                "CPU of ours, of a million rows",
                f"at most {WANTED_CPU_S:g} s",
                f"{1e6 / rows * ours.work_cpu_s:.2f} s",
                1e6 / rows * ours.work_cpu_s <= WANTED_CPU_S,
            ),
            Target(
                "peak memory of ours",
                f"below {WANTED_RSS_MB:g} MiB",
                f"{ours.peak_rss_mb:.0f} MiB",
                ours.peak_rss_mb < WANTED_RSS_MB,
            ),
            Target(
                "rows in both lakes",
                f"{rows:,}",
                f"{ours.rows:,.0f} and {pandas.rows:,.0f}",
                ours.rows == pandas.rows == rows,
            ),
        ]
    )
