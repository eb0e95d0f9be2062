"""One partition that grows by small files while it is compacted: its feed, its rows, and what must be true of it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, SourceBatch
from datalake_assets.core.partitions import PartitionBy, key_of
from datalake_assets.core.position import OffsetsPosition
from datalake_assets.errors import SnapshotExpired
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.crash.checks import CrashError

__all__ = ["APPENDED", "Partition", "append", "feed", "require"]

#: Rows of one append, and so of one small file; a position is a multiple of it.
APPENDED = 5
LOAD_BYTES = 600
#: The first rows are large, so that they fill some row groups and can be split.
LARGE_ROWS, LARGE_BYTES = 2 * APPENDED, 300_000
SCHEMA = pa.schema(
    [("id", pa.int64()), ("note", pa.string()), ("rowtime", pa.timestamp("ms", "UTC")), ("load", pa.binary())]
)


def require(condition: object, what: str) -> None:
    if not condition:
        raise CrashError(what)


@cache
def feed(kernel: str = "auto", *, split_above: float = 0, by: str = "month") -> Feed:
    """Compacted as soon as a few files of a size have come together; its open partition lasts."""
    return parse_feed(
        json.dumps(
            {
                "name": "small_files",
                "kind": "stream",
                "source": {"type": "ksqldb", "object": "SMALL", "mode": "offsets"},
                "start": "2025-01-01",
                "partition_by": by,
                "format": {"row_group_bytes": 1 << 20},
                "compaction": {"kernel": kernel, "fan_in": 3, "min_files": 3, "split_above": split_above},
            }
        )
    )


@cache
def _load(number: int, size_bytes: int = LOAD_BYTES) -> bytes:
    return random.Random(number).randbytes(size_bytes)


def _columns(first: int, end: int, start: datetime) -> list[list[Any]]:
    """Ids are offsets; so what a row must hold follows from its id. Some times are those of files long compacted."""
    ids = list(range(first, end))
    times = [start + timedelta(milliseconds=at - (3_000 if at % 7 == 3 and at > 3_000 else 0)) for at in ids]
    loads = [_load(at, LARGE_BYTES) if at < LARGE_ROWS else _load(at % 50) for at in ids]
    return [ids, [f"n{at % 10}" if at % 4 else None for at in ids], times, loads]


def append(table: HiveTable, partition: Partition, appends: int, run_id: str) -> int:
    """Reads on from where the lake says it is, with some rows of before, and lands a small file; returns the end."""
    plan = table.plan([partition.key])
    first = (plan.request.start_offsets or {}).get(0, 0)
    read, end = max(0, first - 2), max(LARGE_ROWS, first + APPENDED * appends)
    columns = _columns(read, end, partition.start)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    offsets = pa.array(range(read, end), pa.int64())
    rows = SourceBatch(pa.record_batch(arrays, schema=SCHEMA), pa.array([0] * (end - read), pa.int32()), offsets)
    batches = InMemoryBatches((rows,), "rowtime", ReadRequest(start_offsets=plan.request.start_offsets))
    table.write(batches, partitions=plan.partitions, run_id=run_id)
    return end


class Partition:
    """One partition of one lake, looked at from outside.

    Args:
        store: The lake.
        now: In the partition.
        by: Its length.
    """

    def __init__(self, store: Store, now: datetime, *, by: str = "month") -> None:
        self.store, self.feed = store, feed(by=by)
        self.key = key_of(now, PartitionBy(by))
        self.start = datetime.combine(now.date(), datetime.min.time(), UTC)
        self.folder = FeedFolder(store, self.feed)
        self.table = HiveTable(store, self.feed)
        self.expired = 0

    def position(self) -> int:
        """Rows that are in the lake, as the manifest says."""
        position = self.folder.log(self.key).load().manifest.position
        return position.next_offsets[0][1] if isinstance(position, OffsetsPosition) else 0

    def check_exact(self, *, at_least: int = 0) -> int:
        """Who reads through the manifest sees each committed row once, at any moment; returns how many.

        Args:
            at_least: Rows whose append was acknowledged.
        """
        before = self.position()
        if not before:
            require(not at_least, f"{at_least} acknowledged rows are gone")
            return 0
        rows = self._scan()
        after = self.position()
        count = check_rows(rows, self.start)
        require(before <= count <= after, f"{count} rows, but the position went from {before} to {after}")
        require(count % APPENDED == 0, f"{count} rows are no whole number of appends")
        require(count >= at_least, f"{count} rows, but {at_least} were acknowledged")
        return count

    def _scan(self) -> pa.Table:
        while True:
            with suppress(SnapshotExpired):
                return self.table.scan(partitions=[self.key]).read_all()
            self.expired += 1

    def check_settled(self) -> None:
        """With nobody at work and all recovered, every reader sees the same, and nothing is left over."""
        count = self.check_exact()
        manifest = self.folder.log(self.key).load().manifest
        require(manifest.pending is None and not manifest.garbage, "something is left to do")
        require(check_rows(self._list(), self.start) == count, "a lister sees another number of rows")
        differences = list(self.table.verify(deep=True))
        require(not differences, f"verify: {differences}")

    def check_summary(self) -> None:
        """After a repair, ``_metadata.json`` counts what is there."""
        summary = json.loads(self.store.get(self.folder.summary.key)[0])
        files = len(self.folder.log(self.key).load().manifest.files)
        counted = (summary["total_records"], sum(each["files"] for each in summary["partitions"]))
        require(counted == (self.position(), files), f"_metadata.json counts {counted}, not {self.position(), files}")

    def _list(self) -> pa.Table:
        """What a reader sees that lists files and knows nothing of manifests."""
        import pyarrow.dataset as ds  # noqa: PLC0415  a killed process needs none of it

        folder = self.folder.data_folder(self.key)
        keys = [info.key for info in self.store.list(folder)]
        require(all(key.endswith(".parquet") for key in keys), f"the folder holds {keys}")
        self._check_disk(folder, len(keys))
        selector = self.store.path(folder)
        found = ds.dataset(selector, filesystem=self.store.filesystem(), format="parquet", schema=SCHEMA)
        require(len(found.files) == len(keys), "a lister of another library sees other files")
        return found.to_table()

    def _check_disk(self, folder: str, files: int) -> None:
        """Globs and listings see hidden files too; our own listing might not."""
        if not self.store.uri.startswith("s3:"):
            names = [file.name for file in Path(self.store.uri, folder).iterdir()]
            require(len(names) == files, f"{folder} holds {sorted(names)}")

    def check_no_leftovers(self) -> None:
        """Nothing is staged, and the lake's own folder holds but locks and what kills left of small writes."""
        require(not list(self.store.list_staged("")), "leftovers stay staged")
        if not self.store.uri.startswith("s3:"):
            files = [file for file in Path(self.store.uri, ".staging").rglob("*") if file.is_file()]
            strange = [str(file) for file in files if file.parent.name not in {"locks", "tmp"}]
            require(not strange, f"leftovers: {strange}")


def check_rows(table: pa.Table, start: datetime) -> int:
    """Ids are 0, 1, … each once, and each row holds what was landed; returns how many there are."""
    ids = table["id"].to_pylist()
    counted = Counter(ids)
    missing, doubled = _missing(counted), sorted(at for at, times in counted.items() if times > 1)
    require(not missing and not doubled, f"{len(ids)} rows: lost {missing[:20]}, doubled {doubled[:20]}")
    expected = _columns(0, len(ids), start)
    found = table.select(SCHEMA.names).sort_by("id")
    for name, values in zip(SCHEMA.names, expected, strict=True):
        require(found[name].to_pylist() == values, f"other values in {name}")
    return len(ids)


def _missing(ids: Iterable[int]) -> list[int]:
    there = set(ids)
    return sorted(set(range(max(there, default=-1) + 1)) - there)
