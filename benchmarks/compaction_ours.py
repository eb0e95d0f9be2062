"""Our compaction of a lake's one partition, measured: a process of its own.

``python -m benchmarks.compaction_ours LAKE SETTINGS``; the settings are a JSON object with any of ``kernel``,
``verify``, ``compression``, ``profile`` and ``max_files``. It prints what it used, and what the report says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.compaction_lakes import KEY, feed_of, open_lake
from benchmarks.measuring import Stopwatch
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake.hive import HiveTable
from datalake_assets.policies import CompactionPolicy, ParquetFormat

__all__ = ["main"]

POLICY, FORMAT = ("kernel", "verify"), ("compression", "profile")


def main(lake: str, settings: Mapping[str, Any]) -> None:
    """Compacts the partition, once, whatever a plan would think of it."""
    policy = CompactionPolicy(**{name: settings[name] for name in POLICY if name in settings})
    written = ParquetFormat(**{name: settings[name] for name in FORMAT if name in settings})
    store = open_lake(lake)
    store.probe()
    table = HiveTable(store, feed_of(policy, written))
    request = CompactionRequest(force=True, max_files=settings.get("max_files"))
    loaded, before = set(sys.modules), dict(store.requests)
    watch = Stopwatch()
    report = table.compact(KEY, request, run_id="benchmark")
    used = watch.stop()
    answer = {
        "used": asdict(used),
        "kernel": report.kernel,
        "rows": report.rows,
        "files_before": report.files_before,
        "files_after": report.files_after,
        "skipped": len(report.skipped),
        "requests": {kind: count - before[kind] for kind, count in store.requests.items()},
        "imported_late": sorted({name.partition(".")[0] for name in set(sys.modules) - loaded}),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
