"""A table of the write API: what is in it, what is appended to it, and how its files are kept in order.

It is an ordinary Iceberg table, which any engine reads that is given the catalog; `tenant_tables` says where that is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import unquote_plus
from uuid import UUID

import pyarrow as pa
from pyiceberg.manifest import DataFile, FileFormat
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.types import IcebergType, ListType

from datalake_assets.core.compaction.plan import CompactionRules
from datalake_assets.errors import AmbiguousWrite, CommitConflict, ConfigError, LakeError, TransientStoreError
from datalake_assets.lake.iceberg.iceberg_compaction import IcebergCompaction, compact_table, rewrite_settings
from datalake_assets.lake.iceberg.iceberg_expiry import Expiry, expire_snapshots, remove_orphans
from datalake_assets.lake.iceberg.iceberg_planning import why_too_new
from datalake_assets.lake.iceberg.named_files import SnapshotFile, named_files
from datalake_assets.lake.iceberg.object_reads import open_native, open_sized
from datalake_assets.lake.iceberg.record_appends import (
    Appended,
    FileTotals,
    RecordAppend,
    SmallFilesProfile,
    WriteKey,
    data_files,
    file_totals,
    live_files,
    translated,
)
from datalake_assets.lake.iceberg.snapshot_files import may_lack_columns
from datalake_assets.lake.kept_files import KeptEnd, KeptOpen
from datalake_assets.lake.sql_files import ReadableFile
from datalake_assets.parquet.decoding import open_parquet

__all__ = [
    "NoSuchPartitionField",
    "Reading",
    "RecordColumn",
    "RecordPartition",
    "RecordSnapshot",
    "RecordTable",
    "SnapshotNotFound",
    "UnreadableTable",
]

#: Of files that one compaction merges.
MAX_BYTES = 64 << 30
#: Decoded bytes of a row group. In a store far away a query asks for each column of each, so that few are better; but
#: it has to hold some of them, and so has whoever makes them: half a GiB is enough with one thread.
ROW_GROUP_BYTES = 32 << 20
#: Footers that are read at once, of files that may lack columns.
FOOTERS = 8
#: Files of snapshots that are kept in mind; some hundred bytes each.
KNOWN_FILES = 100_000


class SnapshotNotFound(LakeError):
    """The table has no such snapshot, or none at that time."""

    default_cure = "DESCRIBE names the newest ones; older ones expire"


class NoSuchPartitionField(ConfigError):
    """A table is not partitioned by a field of that name."""

    def __init__(self, table: str, reason: str) -> None:
        self.table, self.reason = table, reason
        super().__init__(f"{table}: {reason}; DESCRIBE names the fields")


class UnreadableTable(LakeError):
    """The table is in a form that is not read, or not written, here."""

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
        files: Parquet files that are its rows, each with all columns: by absolute path, or by URI in a store.
        sizes: Bytes of each, if they are in a store.
        open_file: Opens one, if they are in a store.
        rows: Of all files, as manifests have them.
    """

    snapshot_id: int | None
    schema: pa.Schema
    files: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    open_file: Callable[[str], ReadableFile] | None = None
    rows: int = 0


#: A table's id and place, and a snapshot's number.
_SnapshotKey = tuple[UUID, str, int]


@dataclass(frozen=True, slots=True)
class _SnapshotFiles:
    """The files of a snapshot: paths, sizes, and rows of all together."""

    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    rows: int


class _KnownFiles:
    """The files of snapshots that were queried lately, whatever the table; used by several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_SnapshotKey, _SnapshotFiles] = OrderedDict()
        self._lock, self._files = threading.Lock(), 0

    def get(self, key: _SnapshotKey) -> _SnapshotFiles | None:
        """The files, if they are known."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, key: _SnapshotKey, files: _SnapshotFiles) -> None:
        """Remembers them, and forgets what was asked for longest ago if there are too many."""
        with self._lock:
            self._files += len(files.paths) + 1 if key not in self._kept else 0
            self._kept[key] = files
            while self._files > KNOWN_FILES:
                self._files -= len(self._kept.popitem(last=False)[1].paths) + 1


_files = _KnownFiles()
#: Data files never change.
_opened = KeptOpen()


class RecordTable:
    """One table, as it was when it was loaded; an append loads it again.

    Args:
        table: pyiceberg's.
        name: Namespace and name, as its tenant knows them; a catalog may know it by others.
    """

    def __init__(self, table: Table, name: str) -> None:
        self._table, self.name = table, name

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
    def write_defaults(self) -> dict[str, Any]:
        """What a writer enters who says nothing of a column (Iceberg specification, "Default values"), by its name."""
        stated = {each.name: each.write_default for each in self._table.schema().fields}
        return {name: value for name, value in stated.items() if value is not None}

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
                return Reading(None, self.arrow_schema)
            raise SnapshotNotFound(self.name, "there is no such snapshot")
        # expiries of other engines forget schemas of before, under which there may still be files
        if len(self._table.schemas()) > 1 or self._table.metadata.current_schema_id:
            raise UnreadableTable(self.name, "another engine has changed columns")
        files = self._files_of(found)
        if all(each.startswith("/") for each in files.paths):
            return Reading(found.snapshot_id, self.arrow_schema, files.paths, rows=files.rows)
        open_file = partial(self._open_file, dict(zip(files.paths, files.sizes, strict=True)))
        return Reading(found.snapshot_id, self.arrow_schema, files.paths, files.sizes, open_file, files.rows)

    def _open_file(self, sizes: Mapping[str, int], path: str) -> ReadableFile:
        key = self._table.metadata.table_uuid, self._table.location(), path
        return _opened.open(key, lambda: KeptEnd(open_sized(self._table.io, path, sizes[path]), sizes[path]))

    def _files_of(self, snapshot: Snapshot) -> _SnapshotFiles:
        """A snapshot's files, which never change: what names them is read once."""
        # a moved copy has other paths
        key = self._table.metadata.table_uuid, self._table.location(), snapshot.snapshot_id
        known = _files.get(key)
        if known is None:
            files = named_files(self._table, snapshot) or self._listed_files(snapshot)
            paths, sizes = tuple(_local(each.path) for each in files), tuple(each.size_bytes for each in files)
            known = _SnapshotFiles(paths, sizes, sum(each.rows for each in files))
            _files.keep(key, known)
        return known

    def _listed_files(self, snapshot: Snapshot) -> list[SnapshotFile]:
        with translated():
            found = live_files(self._table, snapshot)
        if any(each.deletes for each in found):
            raise UnreadableTable(self.name, "another engine has deleted rows")
        if any(each.file.file_format != FileFormat.PARQUET for each in found):
            raise UnreadableTable(self.name, "another engine has written files that are not Parquet")
        files = [each.file for each in found]
        doubtful = [each for each in files if may_lack_columns(each, self._table.metadata)]
        with ThreadPoolExecutor(FOOTERS, thread_name_prefix="footers") as pool:
            for lacking in pool.map(self._lacking, doubtful):
                if lacking:
                    columns = ", ".join(map(repr, lacking))
                    reason = f"another engine has added files without {columns}, which their partitions state"
                    raise UnreadableTable(self.name, reason)
        return [SnapshotFile(each.file_path, each.file_size_in_bytes, each.record_count) for each in files]

    def _lacking(self, file: DataFile) -> list[str]:
        """Columns that a file does not have, though its partition states them; reading it alone would give null."""
        doubtful = may_lack_columns(file, self._table.metadata)
        with translated(), open_native(self._table.io, file.file_path, file.file_size_in_bytes) as source:
            has = set(open_parquet(source).schema_arrow.names)
        return [each.name for each in self._table.schema().fields if each.field_id in doubtful and each.name not in has]

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
            UnreadableTable: Another engine made the table's format one that is not written here.
        """
        self._check_format()
        return RecordAppend(self._table, self.name, rows, key, profile).run()

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
            UnreadableTable: Another engine made the table's format one that is not written here.
        """
        self._check_format()
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

        with self._restated():
            return compact_table(
                self._table,
                rules,
                rewrite_settings(
                    self._table, rules, row_group_bytes=ROW_GROUP_BYTES, copies=(ROW_GROUP_BYTES // 2, 0.5), workers=1
                ),
                now=now,
                is_closed=lambda _: True,
                only=is_wanted,
                names_files=True,
            )

    def expire(self, *, older_than: datetime, now: datetime) -> Expiry:
        """Deletes snapshots of before a moment, and the files that only they name; the current one stays.

        Keys of writes that only such snapshots remember are forgotten: those beyond the newest `REMEMBERED`.

        Raises:
            CommitConflict: Somebody else committed meanwhile; nothing was changed.
            AmbiguousWrite: The catalog's answer was lost; no file was deleted.
            UnreadableTable: Another engine made the table's format one that is not written here.
        """
        self._check_format()
        with self._restated():
            return expire_snapshots(self._table, older_than=older_than, now=now)

    def remove_orphans(self, *, older_than: datetime, now: datetime) -> int:
        """Deletes files that writers left behind who died before their commit; how many there were.

        Raises:
            CorruptLake: The table names files that are not there, or another lies in its folder; nothing was deleted.
        """
        with self._restated():
            return len(remove_orphans(self._table, older_than=older_than, now=now).removed)

    def _check_format(self) -> None:
        if reason := why_too_new(self._table.metadata):
            raise UnreadableTable(self.name, reason, cure="write and compact it with the engine that made it so")

    @contextmanager
    def _restated(self) -> Iterator[None]:
        """Lost commits in words of our own: those of a catalog may tell of others, and of where it is."""
        try:
            with translated():
                yield
        except CommitConflict as error:
            raise CommitConflict(self.name, "others changed the table at the same time") from error
        except TransientStoreError as error:
            raise TransientStoreError(self.name, "the catalog could not take a change; nothing was changed") from error
        except AmbiguousWrite as error:
            raise AmbiguousWrite(
                self.name, "the catalog's answer was lost; the rows are the same in either case", cure="ask again"
            ) from error


def _local(location: str) -> str:
    return location.removeprefix("file://")


def _type_text(kind: IcebergType) -> str:
    return f"list<{_type_text(kind.element_type)}>" if isinstance(kind, ListType) else str(kind)
