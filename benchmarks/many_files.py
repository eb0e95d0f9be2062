"""Many files in one place: what it costs to adopt them, to look again, to plan and to merge them, and how that grows.

Each step is a process of its own, on a folder of files of 1.3 kB, so that what is measured is what a file costs and not
its bytes. The flat folders show whether a step is linear: four times the files, four times the CPU. After each
compaction pyarrow reads every row that is there.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.compaction_rewrites import scratch
from benchmarks.many_files_steps import ROWS
from benchmarks.measuring import Target, Used, answer, print_targets

__all__ = ["main"]

STEPS = ("adopt", "look", "verify", "plan", "compact")
#: Of 200,000 files in 500 partitions, in CPU seconds; of fewer in proportion, unless they are too few to tell.
WANTED_CPU_S = {"adopt": 15.0, "look": 5.0, "verify": 10.0, "plan": 5.0, "compact": 120.0}
OF_FILES, LEAST_FILES = 200_000, 20_000
WANTED_RSS_MB = {"adopt": 200.0}
#: CPU may grow by so much more than the number of files does.
GROWTH = 1.3
#: CPU seconds below which growth says nothing.
LEAST_CPU_S = 0.3


def main(arguments: Sequence[str]) -> None:
    """Measures both kinds of folders, and prints figures and targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks many_files", description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="of the partitioned folder (default: %(default)s)")
    parser.add_argument("--partitions", type=int, default=50, help="that they lie in (default: %(default)s)")
    parser.add_argument(
        "--flat", type=int, nargs="*", default=[5_000, 20_000], help="sizes of flat folders (default: 5000 20000)"
    )
    chosen = parser.parse_args(arguments)
    judged: list[Target] = []
    if chosen.files:
        used = _measured(chosen.files, chosen.partitions, judged)
        judged += _within(chosen.files, used) if chosen.files >= LEAST_FILES else ()
    flat = {files: _measured(files, 1, judged) for files in sorted(chosen.flat)}
    for (fewer, before), (more, after) in pairwise(flat.items()):
        judged += _linear(fewer, before, more, after)
    print()
    print_targets(judged)


def _measured(files: int, partitions: int, judged: list[Target]) -> Mapping[str, Used]:
    where = f"{partitions:,} partitions" if partitions > 1 else "one flat folder"
    print(f"\n{files:,} files in {where}", flush=True)
    print(f"{'':10}{'CPU-s':>8}{'wall s':>8}{'peak MiB':>10}{'us a file':>11}")
    used = {}
    with scratch() as folder:
        root = folder / "many"
        root.mkdir()
        answer("benchmarks.many_files_steps", "make", str(root), str(files), str(partitions))
        for step in STEPS:
            told = answer("benchmarks.many_files_steps", step, str(root))
            used[step] = mine = Used(**told["used"])
            each = 1_000_000 * mine.work_cpu_s / files
            print(f"{step:10}{mine.work_cpu_s:8.2f}{mine.wall_s:8.1f}{mine.peak_rss_mb:10.0f}{each:11.0f}", flush=True)
            if wrong := _wrong(step, told["found"], files):
                judged.append(Target(f"{files:,} files, {where}: {step}", "all files", wrong, met=False))
        judged.append(_exact(root, files, where))
        shutil.rmtree(root)
    return used


def _wrong(step: str, found: Mapping[str, object], files: int) -> str:
    """What a step did not find that is there; empty if all is well."""
    every: Mapping[str, Mapping[str, object]] = {
        "adopt": {"files": files, "problems": 0},
        "look": {"changed": 0, "footers": 0},
        "verify": {"differences": 0},
        "plan": {},
        "compact": {"merged": files, "errors": []},
    }
    return ", ".join(f"{name}: {found[name]}" for name, value in every[step].items() if found[name] != value)


def _exact(root: Path, files: int, where: str) -> Target:
    read = answer("benchmarks.many_files_steps", "check", str(root))
    right = bool(read["exact"]) and read["rows"] == files * ROWS
    told = "every row once" if right else f"{read['rows']:,} rows, others than these"
    return Target(f"{files:,} files, {where}: read by pyarrow", "every row once", told, right)


def _within(files: int, used: Mapping[str, Used]) -> list[Target]:
    judged = []
    for step, wanted in WANTED_CPU_S.items():
        most, cpu_s = wanted * files / OF_FILES, used[step].work_cpu_s
        judged.append(Target(f"{files:,} files: CPU to {step}", f"{most:.1f} s", f"{cpu_s:.2f} s", cpu_s <= most))
    for step, most in WANTED_RSS_MB.items():
        peak = used[step].peak_rss_mb
        judged.append(Target(f"{files:,} files: peak of {step}", f"{most:.0f} MiB", f"{peak:.0f} MiB", peak <= most))
    return judged


def _linear(fewer: int, before: Mapping[str, Used], more: int, after: Mapping[str, Used]) -> list[Target]:
    judged = []
    for step in STEPS:
        if before[step].work_cpu_s < LEAST_CPU_S:
            continue
        grown, most = after[step].work_cpu_s / before[step].work_cpu_s, GROWTH * more / fewer
        what = f"{step} of {more:,} files by that of {fewer:,}, flat"
        judged.append(Target(what, f"{most:.1f} times the CPU", f"{grown:.1f}", grown <= most))
    return judged
