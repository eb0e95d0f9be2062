"""Partitions of many small files, made as they come about: by many appends."""

from __future__ import annotations

import pyarrow as pa

from datalake_assets.core.batches import SourceBatch
from datalake_assets.feed import Feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.lake.feeds import rows, stream_of

#: The days that `append` writes to, of 24 rows each.
DAYS = ("2025-01-01", "2025-01-02", "2025-01-03")


def append(store: Store, feed: Feed, *, times: int, start: int = 0) -> None:
    """Exports a stream again and again, each time a row for each of three days; ids go on from ``start``."""
    for number in range(start, start + times):
        ids = range(3 * number, 3 * number + 3)
        hours = [24 * day + number % 24 for day in range(3)]
        batch = rows(hours).set_column(0, "id", pa.array(ids, pa.int64()))
        offsets = pa.array(ids, pa.int64())
        numbered = SourceBatch(batch, pa.array([0] * 3, pa.int32()), offsets)
        HiveTable(store, feed).write(stream_of(numbered), partitions=DAYS[:1], run_id="r")


def ids_in(store: Store, feed: Feed) -> list[int]:
    """The ids of all rows that the lake has, in order."""
    table = HiveTable(store, feed).scan(columns=["id"]).read_all()
    return sorted(table["id"].to_pylist())
