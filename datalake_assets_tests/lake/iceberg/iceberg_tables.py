"""Iceberg tables for tests: made, appended to and read by pyiceberg itself, which shares no code with ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform
from pyiceberg.types import LongType, NestedField, StringType, TimestamptzType

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
    """A catalog in a folder; opened as often as wanted, by several processes too."""
    catalog = SqlCatalog("lake", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
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


def files_on_disk(table: Table) -> set[Path]:
    """All files below the table's location."""
    return {path for path in Path(urlsplit(table.location()).path).rglob("*") if path.is_file()}


def data_paths(table: Table) -> list[str]:
    """Paths of the data files that the current snapshot has."""
    return [task.file.file_path for task in table.scan().plan_files()]


def version_3(catalog: SqlCatalog) -> Table:
    """A table of the format's third version, which pyiceberg reads and does not create."""
    path = Path(urlsplit(create(catalog, "v2").metadata_location).path)
    metadata = json.loads(path.read_text()) | {"format-version": 3, "next-row-id": 0}
    newer = path.with_name("v3.metadata.json")
    newer.write_text(json.dumps(metadata))
    return catalog.register_table("n.v3", f"file://{newer}")
