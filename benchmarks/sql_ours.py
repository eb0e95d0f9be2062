"""``python -m benchmarks.sql_ours ours URL FOLDER``: the product on a table of PostgreSQL."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import Stopwatch, print_used
from datalake_assets.feed import parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.systems import connect

__all__ = ["main"]


def main(url: str, folder: Path) -> None:
    """Exports the table once and prints what that used."""
    watch = Stopwatch()
    source = {"type": "sql", "object": "events", "cursor": "id"}
    feed = parse_feed(json.dumps({"name": "s", "kind": "stream", "time_column": "at", "source": source}))
    table = open_table(open_store(str(folder)), feed)
    plan = table.plan()
    with connect("sql", load_settings(sql_url=url)) as databases:
        rows = table.write(databases.read(feed, plan.request), partitions=plan.partitions, run_id="bench").rows_added
    size = sum(each.stat().st_size for each in folder.rglob("*.parquet"))
    print_used(replace(watch.stop(), rows=rows, size_mb=size / (1 << 20)))


if __name__ == "__main__":
    main(sys.argv[2], Path(sys.argv[3]))
