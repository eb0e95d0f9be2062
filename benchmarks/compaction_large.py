"""Ten gigabytes compacted in little memory, with the native kernel and without, from files of 1 MB and of 100 KB.

Every input file has ids and times of its own. Input, clone and output share one disk: what is done with is deleted at
once, and all of it at the end. Memory is the peak of the process that compacts and of whatever it may have started.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.compaction_rewrites import clone, scratch, size_mb
from benchmarks.measuring import Target, Used, answer

__all__ = ["SIZES", "run"]

#: 512 MB, as the issues on compaction ask for; measured in MiB.
WANTED_RSS_MB = 512_000_000 / (1 << 20)
#: Rows of files of these sizes.
SIZES = {"1 MB": 11_000, "100 KB": 1_000}
#: Bytes of a row in them, measured; the sum of the files that are made is near enough to what was asked for.
ROW_BYTES = {"1 MB": 90.4, "100 KB": 97.9}
#: Files of which the others are made.
TEMPLATES = 64
#: The environment of each way.
WAYS = {"native kernel": {}, "Arrow": {"DATALAKE_NATIVE": "0"}}


def run(gigabytes: float, *, sizes: Sequence[str]) -> list[Target]:
    """Both ways on files of each size; returns the targets."""
    judged: list[Target] = []
    with scratch() as folder:
        free = shutil.disk_usage(folder).free
        needed = int(2.2 * gigabytes * 1_000_000_000)  # the clone shares the inputs' bytes
        if free < needed:
            raise SystemExit(f"{needed / 1e9:.0f} GB are needed in {folder.parent}, {free / 1e9:.0f} GB are free")
        for size in sizes:
            files = round(gigabytes * 1_000_000_000 / (SIZES[size] * ROW_BYTES[size]))
            judged += _compacted(size, files, folder / "lake")
    return judged


def _compacted(size: str, files: int, lake: Path) -> list[Target]:
    lake.mkdir()
    answer("benchmarks.compaction_lakes", str(lake), str(files), str(SIZES[size]), str(TEMPLATES))
    print(f"\n{files:,} files of {size}, {size_mb(lake):,.0f} MiB", flush=True)
    wanted = answer("benchmarks.compaction_reading", str(lake), "values")
    judged = [target for way in WAYS for target in _by(way, size, lake, files, wanted)]
    shutil.rmtree(lake)
    return judged


def _by(way: str, size: str, lake: Path, files: int, wanted: Mapping[str, object]) -> list[Target]:
    mine = lake.with_name("clone")
    clone(lake, mine)
    settings = json.dumps({"max_files": files})
    report = answer("benchmarks.compaction_ours", str(mine), settings, env=WAYS[way])
    found = answer("benchmarks.compaction_reading", str(mine), "values")
    used, peak = Used(**report["used"]), report["tree_rss_mb"]
    print(
        f"{way}: {report['files_before']:,} to {report['files_after']:,} files ({report['kernel']}), "
        f"{size_mb(mine):,.0f} MiB, {used.work_cpu_s:.1f} CPU-s, {used.wall_s:.1f} s, peak {peak:.0f} MiB",
        flush=True,
    )
    shutil.rmtree(mine)
    low, same = peak <= WANTED_RSS_MB, found == wanted
    merged = report["files_after"] < report["files_before"] / 2
    told = f"{report['files_after']:,}" if same else f"{report['files_after']:,}, others"
    return [
        Target(f"{way}, files of {size}: peak memory", f"{WANTED_RSS_MB:.0f} MiB", f"{peak:.0f} MiB", low),
        Target(f"{way}, files of {size}: files, with the inputs' rows and values", "few", told, same and merged),
    ]
