"""Our compaction of a lake's one partition, measured: a process of its own.

``python -m benchmarks.compaction_ours LAKE SETTINGS``; the settings are a JSON object with any of ``kernel``,
``verify``, ``compression``, ``profile``, ``max_files`` and ``adopted``: then the folder of the files is adopted first,
by a lake beside it that knows no digest of theirs. It prints what it used, and what the report says.

The process is prepared as that of ``datalake compact`` is. What a compaction loads with its first group is imported
before the clock runs, as peers' modules are; `startup_cpu_s` has it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from datalake_assets.short_process import prepare_short_process

prepare_short_process()  # before numpy is imported

from benchmarks.compaction_lakes import KEY, feed_of, open_lake
from benchmarks.measuring import Stopwatch, children_rss_mb
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table
from datalake_assets.policies import CompactionPolicy, ParquetFormat

__all__ = ["main"]

#: Of the feed's files, in its lake.
FOLDER = "streams/events"
LOADED_WITH_FIRST_GROUP = (
    "_strptime",
    "datalake_assets.engines.threads",
    "datalake_assets.lake.compaction",
    "datalake_assets.lake.compaction_inputs",
    "datalake_assets.lake.compaction_jobs",
    "datalake_assets.parquet.rewrite",
    "datalake_assets.parquet.rewrite_settings",
)
POLICY, FORMAT = ("kernel", "verify"), ("compression", "profile")


def main(lake: str, settings: Mapping[str, Any]) -> None:
    """Compacts the partition, once, whatever a plan would think of it."""
    policy = CompactionPolicy(**{name: settings[name] for name in POLICY if name in settings})
    written = ParquetFormat(**{name: settings[name] for name in FORMAT if name in settings})
    if settings.get("adopted"):
        _leave_files_alone(Path(lake))
        Path(lake, "adopting").mkdir()
    store = open_lake(f"{lake}/adopting" if settings.get("adopted") else lake)
    store.probe()
    table: LakeTable
    if settings.get("adopted"):
        from datalake_assets.lake.adopted.adoption import adopt  # noqa: PLC0415  most lakes are our own

        feed = adopt(store, f"{lake}/{FOLDER}", "files", time_column="event_time").feed
        table = open_table(store, feed.model_copy(update={"compaction": policy, "format": written}))
        (key,) = table.partitions()
    else:
        table, key = HiveTable(store, feed_of(policy, written)), KEY
    request = CompactionRequest(force=True, max_files=settings.get("max_files"))
    for name in LOADED_WITH_FIRST_GROUP:
        import_module(name)
    loaded, before = set(sys.modules), dict(store.requests)
    watch = Stopwatch()
    report = table.compact(key, request, run_id="benchmark")
    used = watch.stop()
    answer = {
        "used": asdict(used),
        "tree_rss_mb": used.peak_rss_mb + children_rss_mb(),
        "kernel": report.way,
        "rows": report.rows,
        "files_before": report.files_before,
        "files_after": report.files_after,
        "skipped": len(report.skipped),
        "requests": {kind: count - before[kind] for kind, count in store.requests.items()},
        "imported_late": sorted({name.partition(".")[0] for name in set(sys.modules) - loaded}),
    }
    print(json.dumps(answer))


def _leave_files_alone(lake: Path) -> None:
    """Takes away what makes the folder a lake: nobody adopts files that a lake knows."""
    for each in lake.iterdir():
        if each.name != FOLDER.partition("/")[0]:
            shutil.rmtree(each) if each.is_dir() else each.unlink()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
