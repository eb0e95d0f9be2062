"""Iceberg tables for tests: made, appended to and read by pyiceberg itself, which shares no code with ours."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.update import AddSnapshotUpdate, SetSnapshotRefUpdate
from pyiceberg.transforms import DayTransform
from pyiceberg.typedef import Record
from pyiceberg.types import LongType, NestedField, StringType, TimestamptzType
from sqlalchemy import event
from sqlalchemy.engine import Engine

from datalake_assets.core.compaction.plan import CompactionRules
from datalake_assets.lake.iceberg.iceberg_compaction import IcebergCompaction, compact_table, rewrite_settings

SCHEMA = Schema(
    NestedField(1, "id", LongType(), required=True),
    NestedField(2, "ts", TimestamptzType(), required=True),
    NestedField(3, "name", StringType(), required=False),
)
ARROW = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("ts", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("name", pa.large_string()),
    ]
)
BY_DAY = PartitionSpec(PartitionField(2, 1000, DayTransform(), "ts_day"))
UNPARTITIONED = PartitionSpec()
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


@contextmanager
def sqlite_catalog(folder: Path) -> Iterator[SqlCatalog]:
    """A catalog in a folder; opened as often as wanted, by several processes too. Nobody waits for the disk."""
    catalog = SqlCatalog("lake", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
    catalog.engine.dispose()
    event.listen(catalog.engine, "connect", lambda connection, _: connection.execute("pragma synchronous = off"))
    try:
        catalog.create_namespace_if_not_exists("n")
        yield catalog
    finally:
        catalog.close()


def create(catalog: SqlCatalog, name: str = "t", *, spec: PartitionSpec = BY_DAY, **properties: str) -> Table:
    """An empty table."""
    properties = {key.replace("__", ".").replace("_", "-"): value for key, value in properties.items()}
    return catalog.create_table(f"n.{name}", SCHEMA, partition_spec=spec, properties=properties)


def rows(first: int, count: int, *, days: int = 2) -> pa.Table:
    """Rows with the ids from ``first`` on, spread over so many days."""
    ids = list(range(first, first + count))
    times = [FIRST + timedelta(days=number % days, seconds=number) for number in ids]
    return pa.table({"id": ids, "ts": times, "name": [f"name {number}" for number in ids]}, schema=ARROW)


def ids(table: Table, snapshot_id: int | None = None) -> list[int]:
    """What is in the table, sorted, as pyiceberg reads it."""
    found = table.scan(selected_fields=("id",), snapshot_id=snapshot_id).to_arrow()
    return sorted(found["id"].to_pylist())


def content(table: Table, snapshot_id: int | None = None) -> Counter[tuple[object, ...]]:
    """All rows with all their values, as pyiceberg reads them."""
    found = table.scan(snapshot_id=snapshot_id).to_arrow()
    return Counter(tuple(row.values()) for row in found.to_pylist())


def files_on_disk(table: Table) -> set[Path]:
    """All files below the table's location."""
    return {path for path in Path(urlsplit(table.location()).path).rglob("*") if path.is_file()}


def data_paths(table: Table) -> list[str]:
    """Paths of the data files that the current snapshot has."""
    return [task.file.file_path for task in table.scan().plan_files()]


def version_3(catalog: SqlCatalog) -> Table:
    """A table of the format's third version."""
    create(catalog, "v3")
    return upgraded(catalog, "n.v3")


def upgraded(catalog: SqlCatalog, name: str) -> Table:
    """The table once another engine has made it one of the format's third version, which pyiceberg only reads."""
    return _changed(catalog, name, lambda metadata: metadata | {"format-version": 3, "next-row-id": 0})


def without_old_schemas(catalog: SqlCatalog, name: str) -> Table:
    """The table once another engine has forgotten schemas of before: Spark's expiry with ``clean_expired_metadata``."""

    def forget(metadata: dict[str, Any]) -> dict[str, Any]:
        now = metadata["current-schema-id"]
        return metadata | {"schemas": [each for each in metadata["schemas"] if each["schema-id"] == now]}

    return _changed(catalog, name, forget)


def _changed(catalog: SqlCatalog, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Table:
    """What pyiceberg has no call for."""
    path = Path(urlsplit(catalog.load_table(name).metadata_location).path)
    newer = path.with_name(f"changed-{uuid.uuid4()}.metadata.json")
    newer.write_text(json.dumps(change(json.loads(path.read_text()))))
    catalog.drop_table(name)
    return catalog.register_table(name, f"file://{newer}")


def rules(**changed: object) -> CompactionRules:
    """Rules that merge whatever can be merged."""
    base = CompactionRules(
        target_file_bytes=128 << 20,
        small_file_bytes=64 << 20,
        min_files=2,
        max_files=100_000,
        max_bytes=1 << 40,
        fan_in=8,
        split_above_bytes=0,
        min_file_age=timedelta(0),
        min_partition_age=timedelta(0),
        force=True,
    )
    return replace(base, **changed)  # type: ignore[arg-type]


def compact(table: Table, *, row_group_bytes: int = 16 << 20, **changed: object) -> IcebergCompaction:
    """Compacts with `rules`."""
    chosen = rules(**changed)
    settings = rewrite_settings(table, chosen, row_group_bytes=row_group_bytes)
    return compact_table(table, chosen, settings, now=datetime.now(UTC))


def delete_rows(
    table: Table,
    *,
    positions: Sequence[tuple[str, int]] = (),
    equal: pa.Table | None = None,
    partition: DataFile | None = None,
) -> None:
    """Commits a delete file, as merge-on-read engines do.

    Args:
        table: The table.
        positions: Paths and positions of rows.
        equal: Rows that name others by their values; columns have field ids.
        partition: A file of the partition that the deletes are for; None for a table without partitions.
    """
    rows_of = equal if equal is not None else _position_rows(positions)
    path = f"{table.location()}/data/delete-{uuid.uuid4()}.parquet"
    sink = table.io.new_output(path).create()
    pq.write_table(rows_of, sink)
    sink.close()
    content = DataFileContent.EQUALITY_DELETES if equal is not None else DataFileContent.POSITION_DELETES
    equality_ids = [int(field.metadata[b"PARQUET:field_id"]) for field in rows_of.schema] if equal is not None else None
    bounds = {} if equal is not None else {PATH_ID: min(positions)[0].encode()}
    file = DataFile.from_args(
        content=content,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=partition.partition if partition is not None else Record(),
        record_count=rows_of.num_rows,
        file_size_in_bytes=len(table.io.new_input(path)),
        lower_bounds=bounds,
        upper_bounds={} if equal is not None else {PATH_ID: max(positions)[0].encode()},
        equality_ids=equality_ids,
    )
    file.spec_id = partition.spec_id if partition is not None else table.spec().spec_id
    _commit_delete_file(table, file)


def add_file(table: Table, columns: pa.Table, partition: Record, counts: dict[int, int]) -> None:
    """Appends a file as it is, as Spark's ``add_files`` does, which takes those of Hive folders.

    Args:
        table: The table.
        columns: The file's; they have field ids.
        partition: What its partition states.
        counts: Values by field id, as its entry in the manifest has them.
    """
    path = f"{table.location()}/data/added-{uuid.uuid4()}.parquet"
    with table.io.new_output(path).create() as sink:
        pq.write_table(columns, sink)
    file = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=partition,
        record_count=columns.num_rows,
        file_size_in_bytes=len(table.io.new_input(path)),
        value_counts=counts,
    )
    file.spec_id = table.spec().spec_id
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(file)


PATH_ID, POS_ID = 2147483546, 2147483545


def _position_rows(positions: Sequence[tuple[str, int]]) -> pa.Table:
    schema = pa.schema(
        [
            pa.field("file_path", pa.string(), nullable=False, metadata={"PARQUET:field_id": str(PATH_ID)}),
            pa.field("pos", pa.int64(), nullable=False, metadata={"PARQUET:field_id": str(POS_ID)}),
        ]
    )
    paths, numbers = zip(*sorted(positions), strict=True)
    return pa.table({"file_path": list(paths), "pos": list(numbers)}, schema=schema)


class _DeleteManifests(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def _commit_delete_file(table: Table, file: DataFile) -> None:
    """A snapshot with one more delete file, put together by hand."""
    table.refresh()
    metadata, base = table.metadata, table.current_snapshot()
    assert base is not None
    new_id, number, unique = metadata.new_snapshot_id(), metadata.next_sequence_number(), uuid.uuid4()
    output = table.io.new_output(f"{table.location()}/metadata/{unique}-m0.avro")
    with _DeleteManifests(metadata.specs()[file.spec_id], metadata.schema(), output, new_id, "gzip") as writer:
        writer.add(ManifestEntry.from_args(status=1, sequence_number=None, data_file=file))
    path = f"{table.location()}/metadata/snap-{new_id}-0-{unique}.avro"
    with write_manifest_list(2, table.io.new_output(path), new_id, base.snapshot_id, number, "gzip") as listing:
        listing.add_manifests([writer.to_manifest_file(), *base.manifests(table.io)])
    before = dict(base.summary.additional_properties) if base.summary else {}
    totals = {key: value for key, value in before.items() if key.startswith("total-")}
    totals["total-delete-files"] = str(int(totals.get("total-delete-files", 0)) + 1)
    snapshot = Snapshot(
        snapshot_id=new_id,
        parent_snapshot_id=base.snapshot_id,
        sequence_number=number,
        manifest_list=path,
        summary=Summary(Operation.DELETE, **totals),
        schema_id=metadata.current_schema_id,
    )
    head = SetSnapshotRefUpdate(ref_name="main", type="branch", snapshot_id=new_id, parent_snapshot_id=base.snapshot_id)
    response = table.catalog.commit_table(table, (), (AddSnapshotUpdate(snapshot=snapshot), head))
    table.metadata, table.metadata_location = response.metadata, response.metadata_location


@contextmanager
def recorded_syncs() -> Iterator[list[int]]:
    """Inodes in the order in which they were synced, with 0 for each transaction of a catalog."""
    done: list[int] = []
    sync = os.fsync

    def recorded(handle: int) -> None:
        sync(handle)
        done.append(os.fstat(handle).st_ino)

    def committed(_: object) -> None:
        done.append(0)

    event.listen(Engine, "commit", committed)
    try:
        with mock.patch.object(os, "fsync", recorded):
            yield done
    finally:
        event.remove(Engine, "commit", committed)


def check_synced_before_commit(table: Table, synced: Sequence[int]) -> None:
    """Checks that each file that the current snapshot names was synced, and then its folder, before the last commit.

    No kill of a process can show it.
    """
    snapshot = table.current_snapshot()
    assert snapshot is not None
    manifests = snapshot.manifests(table.io)
    named = [snapshot.manifest_list, *(each.manifest_path for each in manifests), table.metadata_location]
    named += [task.file.file_path for task in table.scan().plan_files()]
    before = synced[: len(synced) - list(reversed(synced)).index(0)]
    for path in (Path(urlsplit(each).path) for each in named):
        assert path.stat().st_ino in before, path
        assert path.parent.stat().st_ino in before[before.index(path.stat().st_ino) :], path


def url_of(folder: Path) -> str:
    """The catalog in a folder, by its database."""
    return f"sqlite:///{folder}/catalog.db"
