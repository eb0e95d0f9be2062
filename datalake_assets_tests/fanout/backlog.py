"""Three feeds of many partitions with small files, and what must be in them, by a reader that is none of ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import duckdb
import pyarrow as pa

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, SourceBatch
from datalake_assets.defs.metadata import asset_key
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store

__all__ = ["BACKLOG", "Kept", "Small", "kept", "make"]

START = date(2018, 1, 1)
#: Files of each partition, and rows of each file.
FILES, ROWS = 4, 20
_DIGEST = 32  # characters of an MD5 digest, which snappy cannot make fewer
SCHEMA = pa.schema([("id", pa.int64()), ("rowtime", pa.timestamp("ms", "UTC")), ("load", pa.string())])


@dataclass(frozen=True, slots=True)
class Small:
    """A feed whose files are small.

    Attributes:
        name: Its name.
        digests: Of how many digests a row's load is made: how large its files are.
        share: Of all partitions.
    """

    name: str
    digests: int
    share: float

    @property
    def feed(self) -> Feed:
        """Its declaration."""
        source = {"type": "ksqldb", "object": self.name.upper(), "mode": "offsets"}
        given = {"name": self.name, "kind": "stream", "source": source, "start": f"{START}"}
        return parse_feed(json.dumps(given))

    def partitions(self, of_all: int) -> int:
        """How many it has."""
        return max(1, round(self.share * of_all))


BACKLOG = (Small("tiny_files", 1, 1 / 3), Small("small_files", 16, 1 / 3), Small("larger_files", 100, 1 / 3))


def make(store: Store, instance: dg.DagsterInstance, *, partitions: int) -> Iterator[str]:
    """Lands the files of all feeds, and tells Dagster; lines for a person."""
    for small in BACKLOG:
        feed, days = FeedRegistry(store).add(small.feed), small.partitions(partitions)
        for number in range(FILES):
            _append(store, feed, small, days, number)
        for day in range(days):
            key = f"{START + timedelta(days=day)}"
            instance.report_runless_asset_event(dg.AssetMaterialization(asset_key(feed), partition=key))
        folder = Path(store.uri) / feed.path
        sizes = [file.stat().st_size for file in folder.rglob("*.parquet")]
        yield f"{feed.path}: {days:,} partitions, {len(sizes):,} files, {sum(sizes) / 1e6:,.1f} MB"


def _append(store: Store, feed: Feed, small: Small, days: int, number: int) -> None:
    """One small file in every partition; a row's id says all else of it."""
    ids = range(number * days * ROWS, (number + 1) * days * ROWS)
    times = [_time(id_, days) for id_ in ids]
    loads = ["".join(_digest(f"{id_}-{part}") for part in range(small.digests)) for id_ in ids]
    columns = [pa.array(ids, pa.int64()), pa.array(times, SCHEMA.field("rowtime").type), pa.array(loads)]
    offsets, partitions = pa.array(ids, pa.int64()), pa.array([0] * len(ids), pa.int32())
    batch = SourceBatch(pa.record_batch(columns, schema=SCHEMA), partitions, offsets)
    table = HiveTable(store, feed)
    table.write(InMemoryBatches((batch,), "rowtime", ReadRequest()), partitions=[f"{START}"], run_id="backlog")


def _time(id_: int, days: int) -> datetime:
    file, rest = divmod(id_, days * ROWS)
    day, row = divmod(rest, ROWS)
    return datetime(START.year, START.month, START.day, tzinfo=UTC) + timedelta(days=day, minutes=file * ROWS + row)


def _digest(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a feed's folder holds.

    Attributes:
        files: Parquet files, temporary ones included.
        rows: Rows.
        ids: Different ids.
        wrong: Rows that are not what was landed, or not where they belong.
    """

    files: int
    rows: int
    ids: int
    wrong: int


def kept(lake: Path, small: Small, *, partitions: int) -> Kept:
    """Reads a feed's folder with DuckDB, which knows no manifest: every file counts, and every row is recalculated."""
    days = small.partitions(partitions)
    files = f"{lake}/streams/{small.name}/**/*.parquet"
    minute = f"id // {days * ROWS} * {ROWS} + id % {ROWS}"
    query = f"""
        SELECT count(DISTINCT filename), count(*), count(DISTINCT id), count(*) FILTER (
            load IS DISTINCT FROM array_to_string([md5(id || '-' || part) FOR part IN range({small.digests})], '')
            OR rowtime IS DISTINCT FROM
                TIMESTAMPTZ '{START} 00:00:00Z' + to_days(CAST(id % {days * ROWS} // {ROWS} AS INTEGER))
                + to_minutes(CAST({minute} AS BIGINT))
            OR make_date(year::BIGINT, month::BIGINT, day::BIGINT) <> CAST(rowtime AT TIME ZONE 'UTC' AS DATE)
            OR id NOT BETWEEN 0 AND {FILES * days * ROWS - 1})
        FROM read_parquet('{files}', hive_partitioning = true, filename = true)
    """  # noqa: S608  of our own parts
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1; SET TimeZone = 'UTC'")
        found = connection.execute(query).fetchone()
    assert found is not None
    return Kept(*found)
