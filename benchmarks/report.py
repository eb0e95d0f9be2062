"""``datalake report`` on a lake of 10,000 partitions with some ten files each, in every format.

Counted is the CPU time of the whole process, from its start to its end: so much waits a person, or a core of a shared
machine. The lake consists of manifests alone, which is all that the report reads; see `benchmarks.report_lake`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Target, print_targets
from benchmarks.report_lake import write_lake

__all__ = ["main"]

FORMATS = ("console", "csv", "json", "html")
#: As issue #4 asks for.
WANTED_CPU_S = 5.0


def main(arguments: Sequence[str]) -> None:
    """Writes the lake, reports it in each format, and prints what that took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("--partitions", type=int, default=10_000, help="partitions of the lake (default: %(default)s)")
    parser.add_argument("--feeds", type=int, default=10, help="feeds that they are spread over (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each format; the best counts")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="datalake-bench-") as folder:
        lake = Path(folder) / "lake"
        began = time.monotonic()
        files = write_lake(lake, partitions=chosen.partitions, feeds=chosen.feeds)
        print(f"wrote {chosen.partitions:,} manifests of {files:,} files in {time.monotonic() - began:.1f} s")
        targets = [_measured(lake, each, rounds=chosen.rounds) for each in FORMATS]
    print_targets(targets)


def _measured(lake: Path, output: str, *, rounds: int) -> Target:
    file = lake.with_name(f"report.{output}")
    command = [sys.executable, "-m", "datalake_assets.cli", "report", "--lake", str(lake), "--format", output]
    cpu_s, wall_s, rss_mb = min(_run([*command, "--output", str(file)]) for _ in range(rounds))
    took = f"{cpu_s:.2f} s of CPU, {wall_s:.2f} s, {rss_mb:.0f} MiB; {file.stat().st_size:,} bytes"
    return Target(output, f"less than {WANTED_CPU_S:g} s of CPU", took, cpu_s < WANTED_CPU_S)


def _run(command: list[str]) -> tuple[float, float, float]:
    """CPU and wall seconds of a command, and its most memory in MiB."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    per_mib = 1024 if sys.platform != "darwin" else 1024 * 1024
    return used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / per_mib
