"""Tables that the write API keeps: one catalog and one folder per tenant, below the lake and apart from its feeds.

A tenant's catalog is a file of its own, and so nothing that is asked of it can answer with another tenant's tables. Its
tables are ordinary Iceberg tables, which any engine reads that is given the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import unquote_plus

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import parse_transform
from pyiceberg.types import IcebergType, ListType, NestedField
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from datalake_assets.core.compaction.plan import CompactionRules
from datalake_assets.errors import ConfigError, LakeError, LakeUnavailable
from datalake_assets.lake.iceberg.durable_files import DURABLE_FILES
from datalake_assets.lake.iceberg.iceberg_compaction import IcebergCompaction, compact_table, rewrite_settings
from datalake_assets.lake.iceberg.iceberg_expiry import Expiry, expire_snapshots, remove_orphans
from datalake_assets.lake.iceberg.record_appends import (
    Appended,
    FileTotals,
    RecordAppend,
    SmallFilesProfile,
    WriteKey,
    data_files,
    file_totals,
    translated,
)
from datalake_assets.lake.store.posix import fsync_folder

__all__ = [
    "NoSuchPartitionField",
    "Reading",
    "RecordColumn",
    "RecordPartition",
    "RecordSnapshot",
    "RecordTable",
    "SnapshotNotFound",
    "TableExists",
    "TableNotFound",
    "TenantTables",
    "UnreadableTable",
    "tenants_of",
]

TENANTS = "tenants"
_CATALOG = "catalog.sqlite"
#: Number of a spec's first field (Iceberg specification, "Partition Evolution").
FIRST_FIELD = 1000
#: Of files that one compaction merges.
MAX_BYTES = 64 << 30
_PROPERTIES = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
}


class TableNotFound(LakeError):
    """The tenant has no such table."""

    default_cure = "create it first"


class TableExists(LakeError):
    """The tenant has such a table already."""

    default_cure = "choose another name, or ask for it with if_not_exists"


class SnapshotNotFound(LakeError):
    """The table has no such snapshot, or none at that time."""

    default_cure = "DESCRIBE names the newest ones; older ones expire"


class NoSuchPartitionField(ConfigError):
    """A table is not partitioned by a field of that name."""

    def __init__(self, table: str, reason: str) -> None:
        self.table, self.reason = table, reason
        super().__init__(f"{table}: {reason}; DESCRIBE names the fields")


class UnreadableTable(LakeError):
    """The table is in a form that is not read here."""

    default_cure = "read it with that engine, or have it rewrite the table's files"


@dataclass(frozen=True, slots=True)
class RecordColumn:
    """A column: its name, its type as Iceberg spells it, whether it has a value in every row, and what it means."""

    name: str
    type: str
    required: bool
    doc: str | None = None


@dataclass(frozen=True, slots=True)
class RecordPartition:
    """A partition field: the column that it is made of, and Iceberg's transform, such as ``day`` or ``bucket[16]``.

    Its name is that of a folder, and differs from those of all other fields and columns, but for its own column's.
    """

    column: str
    transform: str
    name: str


@dataclass(frozen=True, slots=True)
class RecordSnapshot:
    """A snapshot: its number, when it was made (aware UTC), by which operation, and how many rows there were then."""

    snapshot_id: int
    at: datetime
    operation: str
    rows: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader of a snapshot needs.

    Attributes:
        snapshot_id: The snapshot; None of a table that nothing was written to.
        schema: The columns.
        files: Parquet files, by absolute path, that are its rows, each with all columns.
    """

    snapshot_id: int | None
    schema: pa.Schema
    files: tuple[str, ...]


def tenants_of(lake: str) -> list[str]:
    """The tenants that have a catalog, sorted."""
    return sorted(each.parent.name for each in Path(lake, TENANTS).glob(f"*/{_CATALOG}"))


class TenantTables:
    """A tenant's catalog; to be used as a context.

    Args:
        lake: The lake: an absolute folder.
        tenant: Its name, which matches ``[a-z][a-z0-9_]*``.
        may_create: Whether the catalog is made if there is none; otherwise the tenant has no tables then.

    Raises:
        LakeUnavailable: The catalog cannot be opened.
    """

    def __init__(self, lake: str, tenant: str, *, may_create: bool = False) -> None:
        self._root = Path(lake, TENANTS, tenant)
        self._may_create = may_create
        self._catalog: SqlCatalog | None = None

    def __enter__(self) -> Self:
        file = self._root / _CATALOG
        try:
            if self._may_create:
                self._root.mkdir(parents=True, exist_ok=True)
                fsync_folder(self._root.parent)
                fsync_folder(self._root.parent.parent)
            if self._may_create or file.exists():
                address = URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)
                properties = {"uri": address, "warehouse": str(self._root), **DURABLE_FILES}
                self._catalog = SqlCatalog("datalake", **properties)
        except (OSError, SQLAlchemyError) as error:
            raise LakeUnavailable(TENANTS, f"the tenant's catalog cannot be opened ({type(error).__name__})") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._catalog is not None:
            self._catalog.close()

    def create(
        self, namespace: str, name: str, *, columns: Sequence[RecordColumn], partitions: Sequence[RecordPartition]
    ) -> RecordTable:
        """Creates a table, and its namespace if need be.

        Raises:
            TableExists: There is one of that name.
        """
        assert self._catalog is not None  # noqa: S101  for mypy: whoever creates may create
        schema = _schema(columns)
        if any(each == (namespace, name) for each in self.names(namespace)):  # before anything is written
            raise TableExists(f"{namespace}.{name}", "there is such a table")
        with translated():
            with suppress(NamespaceAlreadyExistsError):
                self._catalog.create_namespace((namespace,))
            try:
                table = self._catalog.create_table(
                    (namespace, name),
                    schema,
                    location=str(self._root / "tables" / namespace / name),
                    partition_spec=_spec(schema, partitions),
                    properties=_PROPERTIES,
                )
            except TableAlreadyExistsError as error:
                raise TableExists(f"{namespace}.{name}", "there is such a table") from error
        return RecordTable(table)

    def load(self, namespace: str, name: str) -> RecordTable:
        """The table as it is now.

        Raises:
            TableNotFound: There is none.
        """
        with suppress(NoSuchTableError), translated():
            if self._catalog is not None:
                return RecordTable(self._catalog.load_table((namespace, name)))
        raise TableNotFound(f"{namespace}.{name}", "there is no such table")

    def names(self, namespace: str | None = None) -> list[tuple[str, str]]:
        """Namespaces and names of all tables, or of those of a namespace, sorted."""
        if self._catalog is None:
            return []
        with translated():
            every = [each for (each, *_) in self._catalog.list_namespaces()] if namespace is None else [namespace]
            known = [each for each in every if self._catalog.namespace_exists((each,))]
            return sorted((each, name) for each in known for (*_, name) in self._catalog.list_tables((each,)))


class RecordTable:
    """One table, as it was when it was loaded; an append loads it again.

    Args:
        table: pyiceberg's.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    @property
    def name(self) -> str:
        """Namespace and name."""
        return ".".join(self._table.name())

    @property
    def columns(self) -> list[RecordColumn]:
        """The columns, in their order."""
        return [
            RecordColumn(each.name, _type_text(each.field_type), each.required, each.doc)
            for each in self._table.schema().fields
        ]

    @property
    def partitions(self) -> list[RecordPartition]:
        """What the table is partitioned by."""
        schema = self._table.schema()
        return [
            RecordPartition(schema.find_field(each.source_id).name, str(each.transform), each.name)
            for each in self._table.spec().fields
        ]

    @property
    def arrow_schema(self) -> pa.Schema:
        """The columns as Arrow has them."""
        return self._table.schema().as_arrow()

    @property
    def snapshot_id(self) -> int | None:
        """The current snapshot; None if nothing was written yet."""
        current = self._table.current_snapshot()
        return None if current is None else current.snapshot_id

    def snapshots(self, most: int) -> list[RecordSnapshot]:
        """The newest snapshots, newest first."""
        newest = sorted(self._table.snapshots(), key=lambda each: each.sequence_number or 0, reverse=True)
        return [
            RecordSnapshot(
                each.snapshot_id,
                datetime.fromtimestamp(each.timestamp_ms / 1000, UTC),
                each.summary.operation.value if each.summary else "",
                int(each.summary["total-records"] or 0) if each.summary else 0,
            )
            for each in newest[:most]
        ]

    def totals(self, small_below_bytes: int) -> FileTotals:
        """Amounts of the current snapshot."""
        with translated():
            return file_totals(data_files(self._table), small_below_bytes)

    def reading(self, *, snapshot_id: int | None = None, as_of: datetime | None = None) -> Reading:
        """What a reader of a snapshot needs: the current one, one by its number, or that of a moment.

        Raises:
            SnapshotNotFound: There is none.
            UnreadableTable: Other engines have changed the table in ways that are not read here.
        """
        found = self._table.current_snapshot()
        if snapshot_id is not None:
            found = self._table.snapshot_by_id(snapshot_id)
        elif as_of is not None:
            found = self._table.snapshot_as_of_timestamp(int(as_of.timestamp() * 1000))
        if found is None:
            if snapshot_id is None and as_of is None:
                return Reading(None, self.arrow_schema, ())
            raise SnapshotNotFound(self.name, "there is no such snapshot")
        with translated():
            tasks = list(self._table.scan(snapshot_id=found.snapshot_id).plan_files())
        if any(task.delete_files for task in tasks) or len(self._table.schemas()) > 1:
            raise UnreadableTable(self.name, "another engine has deleted rows or changed columns")
        return Reading(found.snapshot_id, self.arrow_schema, tuple(_local(task.file.file_path) for task in tasks))

    def append(self, rows: pa.Table, *, key: WriteKey | None = None, profile: SmallFilesProfile) -> Appended:
        """Appends rows in one commit; once per key.

        Args:
            rows: In the table's Arrow schema.
            key: Makes repeating it safe; the answer is then that of the first time.
            profile: When to look at small files.

        Raises:
            KeyReused: The key was used for other rows.
            TooManyPartitions: The rows are spread too widely.
            CommitConflict: Other writers came first every time; nothing was written.
            AmbiguousWrite: It may have been written: only a repetition with the same key is safe.
        """
        return RecordAppend(self._table, rows, key, profile).run()

    def compact(
        self, *, now: datetime, target_bytes: int, small_below_bytes: int, max_files: int, only: Mapping[str, str]
    ) -> IcebergCompaction:
        """Merges all that can be merged, a partition at a time; writers and readers go on meanwhile.

        Args:
            now: The time.
            target_bytes: Size of a file that is aimed at.
            small_below_bytes: Files below it are small.
            max_files: Files to merge at the most.
            only: Values of partition fields, of partitions to look at; empty for all.

        Raises:
            NoSuchPartitionField: The table has no such field.
            CommitConflict: Others committed without pause.
            AmbiguousWrite: The catalog's answer was lost; the rows are the same in either case.
        """
        unknown = only.keys() - {each.name for each in self.partitions}
        if unknown:
            raise NoSuchPartitionField(self.name, f"it is not partitioned by {min(unknown)!r}")
        rules = CompactionRules(
            target_file_bytes=target_bytes,
            small_file_bytes=small_below_bytes if small_below_bytes < target_bytes else target_bytes // 2,
            min_files=2,
            max_files=max_files,
            max_bytes=MAX_BYTES,
            fan_in=2,
            split_above_bytes=0,
            min_file_age=timedelta(0),
            min_partition_age=timedelta(0),
            force=True,
        )

        def is_wanted(partition: str) -> bool:
            parts = (part.partition("=") for part in partition.split("/"))
            values = {unquote_plus(name): unquote_plus(value) for name, _, value in parts}
            return all(values.get(field) == value for field, value in only.items())

        with translated():
            return compact_table(
                self._table,
                rules,
                rewrite_settings(self._table, rules),
                now=now,
                is_closed=lambda _: True,
                only=is_wanted,
            )

    def expire(self, *, older_than: datetime, now: datetime) -> Expiry:
        """Deletes snapshots of before a moment, and the files that only they name; the current one stays.

        Keys of writes that only such snapshots remember are forgotten: those beyond the newest `REMEMBERED`.

        Raises:
            CommitConflict: Somebody else committed meanwhile; nothing was changed.
            AmbiguousWrite: The catalog's answer was lost; no file was deleted.
        """
        with translated():
            return expire_snapshots(self._table, older_than=older_than, now=now)

    def remove_orphans(self, *, older_than: datetime, now: datetime) -> int:
        """Deletes files that writers left behind who died before their commit; how many there were.

        Raises:
            CorruptLake: The table names files that are not there, or another lies in its folder; nothing was deleted.
        """
        with translated():
            return len(remove_orphans(self._table, older_than=older_than, now=now).removed)


def _local(location: str) -> str:
    return location.removeprefix("file://")


def _schema(columns: Sequence[RecordColumn]) -> Schema:
    fields = [
        NestedField(number, each.name, _type(each.type, len(columns) + number), required=each.required, doc=each.doc)
        for number, each in enumerate(columns, 1)
    ]
    return Schema(*fields)


def _type(text: str, element_id: int) -> IcebergType:
    if text.startswith("list<"):
        element = _type(text.removeprefix("list<").removesuffix(">"), 0)
        return ListType(element_id=element_id, element_type=element, element_required=False)
    return NestedField(1, "a", text).field_type  # pyiceberg's own parser of such texts


def _type_text(kind: IcebergType) -> str:
    return f"list<{_type_text(kind.element_type)}>" if isinstance(kind, ListType) else str(kind)


def _spec(schema: Schema, partitions: Sequence[RecordPartition]) -> PartitionSpec:
    fields = []
    for number, each in enumerate(partitions):
        transform = parse_transform(each.transform)
        source = schema.find_field(each.column).field_id
        fields.append(PartitionField(source, FIRST_FIELD + number, transform, each.name))
    return PartitionSpec(*fields)
