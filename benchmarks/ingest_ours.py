"""The client that `benchmarks.ingest` measures: this package, as an export uses it, without Dagster around it.

What an export loads with its first rows is imported before the clock runs, as what pandas needs is: a worker starts
once. It says on stderr what of ours was loaded later all the same.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
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

LOADED_WITH_FIRST_ROWS = (
    "datalake_assets.core.arrow_arrays",
    "datalake_assets.core.row_texts",
    "datalake_assets.lake.avro_twins",
    "datalake_assets.lake.export_kinds",
    "datalake_assets.lake.hive",
    "datalake_assets.lake.item_exports",
    "datalake_assets.lake.item_replacing",
    "datalake_assets.lake.landing",
    "datalake_assets.lake.watching",
    "datalake_assets.parquet.rolling",
    "httpcore",
    "pyarrow.csv",
    "stamina",
)
FEED = Feed(
    name="transaction_flattened",
    kind=FeedKind.STREAM,
    source=KsqlDBSource(object="TRANSACTION_FLATTENED", offset_columns=("SRC_PART", "SRC_OFF")),
)


def main(url: str, folder: Path) -> None:
    """Catches up with the stream, once, into a new lake."""
    for name in LOADED_WITH_FIRST_ROWS:
        import_module(name)
    loaded = set(sys.modules)
    watch = Stopwatch()
    table = open_table(open_store(str(folder)), FEED)
    source = KsqlDB(url)
    plan = table.plan()
    table.write(source.read(FEED, plan.request), partitions=plan.partitions, run_id="benchmark")
    source.close()
    used = watch.stop()
    if late := sorted(name for name in set(sys.modules) - loaded if name.startswith("datalake_assets.")):
        print(f"  imported while the clock ran: {', '.join(late)}", file=sys.stderr)
    rows, size_mb = rows_and_size_mb(folder / FEED.path)
    print_used(replace(used, rows=rows, size_mb=size_mb))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
