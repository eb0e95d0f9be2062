"""``python -m benchmarks scale``: one compaction in threads, and by 1, 2 and 4 workers of a Ray cluster.

The same files are merged each time, in a clone of one lake: decoded, sorted by a text and encoded with zstd, so that a
group takes ten seconds or more and the cores are what it waits for. Threads and workers get the same cores: their
processes are bound to so many. A worker's first task loads what it works with, so a small compaction goes before; what
the cluster takes to start is told apart. What happens on more cores than there are is computed, by a model of what was
measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.compaction_lakes import KEY, feed_of, open_lake
from benchmarks.compaction_large import ROW_BYTES, SIZES, TEMPLATES
from benchmarks.compaction_rewrites import clone, scratch, size_mb
from benchmarks.measuring import Target, answer, print_targets
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake.hive import HiveTable
from datalake_assets.policies import CompactionPolicy, ParquetFormat

__all__ = ["main"]

#: Of an output, and so of a group's inputs, about.
GROUP_BYTES = 256 << 20
#: A group that the targets are about takes so long, at the least.
GROUP_S = 10.0
WORKERS = (1, 2, 4)
MOST_OVERHEAD, LEAST_SCALING = 0.10, 0.80
#: Workers that the model is asked about.
BEYOND = (4, 8, 16, 32)


def main(arguments: Sequence[str]) -> None:
    """Measures, or is what is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of input files; default: 4")
    parser.add_argument("--group-mb", type=int, default=GROUP_BYTES >> 20, help="of a group's files; default: 256")
    parser.add_argument("--measured", nargs=3, metavar=("LAKE", "ENGINE", "CORES"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    group_bytes = chosen.group_mb << 20
    if chosen.measured:
        _measured(*chosen.measured, group_bytes=group_bytes)
        return
    with scratch() as folder:
        lake, warm = folder / "lake", folder / "warm"
        for each, gigabytes in ((lake, chosen.gigabytes), (warm, 0.02)):
            each.mkdir()
            files = round(gigabytes * 1e9 / (SIZES["1 MB"] * ROW_BYTES["1 MB"]))
            answer("benchmarks.compaction_lakes", str(each), str(files), str(SIZES["1 MB"]), str(TEMPLATES))
        print(f"{size_mb(lake):,.0f} MiB in files of 1 MB, groups of {chosen.group_mb} MiB", flush=True)
        cores = os.cpu_count() or 1
        runs = {("local", count): _run(lake, "local", count, group_bytes) for count in sorted({1, min(2, cores)})}
        runs |= {("ray", count): _run(lake, "ray", count, group_bytes) for count in WORKERS}
    _print(runs)
    print_targets(_targets(runs, cores))
    _print_model(runs, cores, chosen.group_mb)


def _run(lake: Path, engine: str, count: int, group_bytes: int) -> Mapping[str, Any]:
    """A compaction of a clone, by so many workers on so many cores, if there are."""
    mine = lake.with_name("clone")
    clone(lake, mine)
    size = str(group_bytes >> 20)
    measured: Mapping[str, Any] = answer(
        "benchmarks", "scale", "--group-mb", size, "--measured", str(mine), engine, str(count)
    )
    found = answer("benchmarks.compaction_reading", str(mine), "values")
    shutil.rmtree(mine)
    print(f"{engine} {count}: {measured['wall_s']:.1f} s", flush=True)
    return {**measured, "found": found}


def _measured(lake: str, engine: str, count: str, *, group_bytes: int) -> None:
    """Compacts once; prints what it took."""
    cores = sorted(os.sched_getaffinity(0))[: int(count)]
    os.sched_setaffinity(0, cores)
    began = time.monotonic()
    if engine == "ray":
        os.environ["RAY_ADDRESS"] = "local"
        _start(int(count))
        _compact(str(Path(lake).with_name("warm")), engine, 1, group_bytes=4 << 20)
    start_s = time.monotonic() - began
    cpu, began = _Cpu(), time.monotonic()
    report = _compact(lake, engine, int(count), group_bytes=group_bytes)
    wall_s = time.monotonic() - began
    busy = [each.wall_s for each in report.tasks]
    print(
        json.dumps(
            {
                "wall_s": wall_s,
                "cpu_s": cpu.seconds(),
                "start_s": start_s,
                "files": [report.files_before, report.files_after],
                "task_wall_s": busy,
                "task_cpu_s": [each.cpu_s for each in report.tasks],
                "peak_mb": max((each.peak_memory_bytes or 0 for each in report.tasks), default=0) >> 20,
            }
        )
    )


def _start(workers: int) -> None:
    """A cluster of so many CPUs, whatever the machine has; its processes stay on this one's cores."""
    import ray  # noqa: PLC0415  an extra

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  as threads have it
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=80 << 20, **quiet)


def _compact(lake: str, engine: str, threads: int, *, group_bytes: int) -> Any:
    written = ParquetFormat(compression="zstd")
    table = HiveTable(open_lake(lake), feed_of(CompactionPolicy(sort_by=("session_id",)), written))
    memory_bytes = 3 * written.row_group_bytes * threads
    request = CompactionRequest(
        force=True, target_file_bytes=group_bytes, max_files=1_000_000, memory_bytes=memory_bytes, engine=engine
    )
    return table.compact(KEY, request, run_id="benchmark")


class _Cpu:
    """CPU of this process and all below it, daemons of a cluster too; looked at each second, since some end."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()
        self._look()
        self._before = sum(self._seen.values())
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def seconds(self) -> float:
        """Since the start."""
        self._ended.set()
        self._watching.join()
        self._look()
        return sum(self._seen.values()) - self._before

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._look()

    def _look(self) -> None:
        import psutil  # type: ignore[import-untyped]  # noqa: PLC0415  of the tests' extras

        me = psutil.Process()
        for each in (me, *me.children(recursive=True)):
            with suppress(psutil.Error):  # it ended just now
                self._seen[each.pid, each.create_time()] = sum(each.cpu_times()[:2])


Runs = Mapping[tuple[str, int], Mapping[str, Any]]


def _print(runs: Runs) -> None:
    print(
        f"\n{'':10} {'workers':>7} {'wall s':>8} {'CPU s':>8} {'groups':>6} {'s a group':>9} {'start s':>8} {'MiB':>6}"
    )
    for (engine, count), run in runs.items():
        groups = run["task_wall_s"]
        mean = f"{sum(groups) / len(groups):9.1f}" if groups else f"{'':9}"
        print(
            f"{engine:10} {count:7} {run['wall_s']:8.1f} {run['cpu_s']:8.1f} {len(groups) or '':>6} {mean}"
            f" {run['start_s']:8.1f} {run['peak_mb'] or '':>6}"
        )


def _targets(runs: Runs, cores: int) -> list[Target]:
    most = min(2, cores)
    local, ray, one = runs["local", most], runs["ray", most], runs["ray", 1]
    overhead = ray["wall_s"] / local["wall_s"] - 1
    scaling = one["wall_s"] / ray["wall_s"] / most
    group_s = median(ray["task_wall_s"])
    same = all(run["found"] == local["found"] for run in runs.values())
    return [
        Target("rows and values, whatever rewrote them", "the same", "the same" if same else "others", same),
        Target("a group, the median", f">= {GROUP_S:.0f} s", f"{group_s:.1f} s", group_s >= GROUP_S),
        Target(
            f"wall time of Ray over that of threads, on {most} cores",
            f"<= +{MOST_OVERHEAD:.0%}",
            f"{overhead:+.1%}",
            overhead <= MOST_OVERHEAD,
        ),
        Target(
            f"of linear, from 1 to {most} workers", f">= {LEAST_SCALING}", f"{scaling:.2f}", scaling >= LEAST_SCALING
        ),
    ]


def _print_model(runs: Runs, cores: int, group_mb: int) -> None:
    """T(n) = s + ceil(groups / n) * g: what the driver does alone, and rounds of groups, each on a core of its own."""
    one, most = runs["ray", 1], min(2, cores)
    groups, group_s = len(one["task_wall_s"]), sum(one["task_wall_s"]) / len(one["task_wall_s"])
    alone_s = max(0.0, one["wall_s"] - sum(one["task_wall_s"]))

    def modelled(workers: int, many: int) -> float:
        return float(alone_s + -(-many // workers) * group_s)

    print(
        f"\nmodel: T(n) = {alone_s:.1f} s + ceil(groups / n) * {group_s:.1f} s, fitted to one worker; with {most}:"
        f" {modelled(most, groups):.1f} s, measured {runs['ray', most]['wall_s']:.1f} s"
    )
    print("assumes a core for each worker, groups of one size, and a store that keeps up with all of them")
    mib_s = group_mb / group_s
    for workers in BEYOND:
        many = groups * 8
        speed = modelled(1, many) / modelled(workers, many)
        print(f"{workers:4} workers, {many} groups: {speed:5.1f} times one's speed, reads {workers * mib_s:,.0f} MiB/s")


if __name__ == "__main__":
    main(sys.argv[1:])
