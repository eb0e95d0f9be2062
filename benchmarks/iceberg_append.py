"""CPU seconds of an append to an Iceberg feed, by the number of snapshots that its table has by then."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, SourceBatch
from datalake_assets.feed import parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.table import TableWriter
from datalake_assets.lake.tables import open_table

__all__ = ["main"]

START = datetime(2025, 1, 1, tzinfo=UTC)
SNAPSHOTS = (10, 100, 500, 1000)
#: Appends that a figure is the median of.
AROUND = 10
ROWS = 100
#: An append to a table with many snapshots may cost so many times one to a table with few.
TARGET = 2.0


def main(arguments: Sequence[str]) -> None:
    """Appends 100 rows of half an hour at a time, each time with a table opened anew, as runs of Dagster do."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks iceberg_append", description=__doc__)
    parser.add_argument("--most", type=int, default=SNAPSHOTS[-1], help="Snapshots at the end.  [default: %(default)s]")
    most = parser.parse_args(arguments).most
    source = {"type": "ksqldb", "object": "S"}
    document = {"name": "s", "kind": "stream", "source": source, "start": "2025-01-01", "format": "iceberg"}
    feed = parse_feed(json.dumps(document))
    with tempfile.TemporaryDirectory() as lake:
        store = open_store(lake)
        taken: list[float] = []
        first = 0.0
        print("snapshots  CPU ms an append (median of the last 10)")
        for number in range(1, most + 1):
            began = time.process_time()
            _append(number, open_table(store, feed))
            taken.append(time.process_time() - began)
            if number in SNAPSHOTS or number == most:
                median = statistics.median(taken[-AROUND:])
                first = first or median
                print(f"{number:9,}  {1000 * median:14.1f}")
        growth = statistics.median(taken[-AROUND:]) / first
        print(f"{growth:.2f} times the first figure (target: at most {TARGET:.1f})")


def _append(number: int, table: TableWriter) -> None:
    offsets = list(range((number - 1) * ROWS, number * ROWS))
    times = [START + timedelta(minutes=30 * number, seconds=second) for second in range(ROWS)]
    rows = pa.record_batch({"id": pa.array(offsets), "rowtime": pa.array(times, pa.timestamp("ms", "UTC"))})
    batch = SourceBatch(rows, pa.array([0] * ROWS, pa.int32()), pa.array(offsets, pa.int64()))
    batches = InMemoryBatches((batch,), "rowtime", ReadRequest())
    plan = table.plan()
    table.write(batches, partitions=plan.partitions, run_id="benchmark")
