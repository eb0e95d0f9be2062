"""The client that `benchmarks.ingest` measures: this package, as an export uses it, without Dagster around it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd  # noqa: F401  pyarrow imports it with the first array, and imports count as start-up

from benchmarks.lakes import rows_and_size_mb
from benchmarks.measuring import Stopwatch, print_used
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource
from datalake_assets.sources.ksqldb.source import KsqlDB

__all__ = ["main"]

FEED = Feed(
    name="transaction_flattened",
    kind=FeedKind.STREAM,
    source=KsqlDBSource(object="TRANSACTION_FLATTENED", offset_columns=("SRC_PART", "SRC_OFF")),
)


def main(url: str, folder: Path) -> None:
    """Catches up with the stream, once, into a new lake."""
    watch = Stopwatch()
    table = open_table(open_store(str(folder)), FEED)
    source = KsqlDB(url)
    plan = table.plan()
    table.write(source.read(FEED, plan.request), partitions=plan.partitions, run_id="benchmark")
    source.close()
    used = watch.stop()
    rows, size_mb = rows_and_size_mb(folder / FEED.path)
    print_used(replace(used, rows=rows, size_mb=size_mb))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
