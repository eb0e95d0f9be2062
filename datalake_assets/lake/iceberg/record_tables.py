"""Tables that the write API keeps: one catalog and one folder per tenant, below the lake and apart from its feeds.

A tenant's catalog is a file of its own, and so nothing that is asked of it can answer with another tenant's tables. Its
tables are ordinary Iceberg tables, which any engine reads that is given the catalog.

An append is done once per key: the key, what was written and what was answered lie in the same commit as the rows, in
the snapshot's summary and, of the newest `REMEMBERED` keys, in a property of the table, which outlives snapshots.
Whoever loses the commit to another writer loads the table again and looks for the key before trying again. That holds
of a lost answer too: a commit that lands late finds another base than its own, and fails.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import stamina
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.transforms import parse_transform
from pyiceberg.types import IcebergType, ListType, NestedField
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from datalake_assets.errors import AmbiguousWrite, CommitConflict, ConfigError, LakeError, LakeUnavailable
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change, delete_quietly

__all__ = [
    "Appended",
    "FileTotals",
    "KeyReused",
    "Reading",
    "RecordColumn",
    "RecordPartition",
    "RecordSnapshot",
    "RecordTable",
    "SmallFilesProfile",
    "SnapshotNotFound",
    "TableExists",
    "TableNotFound",
    "TenantTables",
    "TooManyPartitions",
    "UnreadableTable",
    "WriteKey",
]

TENANTS = "tenants"
#: Keys that a table remembers whatever becomes of its snapshots; a hundred bytes each, in every metadata file.
REMEMBERED = 200
#: Partitions that one append may write files to.
MAX_PARTITIONS = 200
#: Attempts to commit: of several writers one always wins, so that each gets its turn.
ATTEMPTS = 40
_WAIT_S, _LONGEST_WAIT_S, _TIMEOUT_S = 0.01, 1.0, 60.0
_CATALOG = "catalog.sqlite"
_PREFIX = "datalake.write-"
_WRITES, _KEYS, _ANSWER = f"{_PREFIX}count", f"{_PREFIX}keys", f"{_PREFIX}answer"
#: Number of a spec's first field (Iceberg specification, "Partition Evolution").
FIRST_FIELD = 1000
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


class UnreadableTable(LakeError):
    """The table is in a form that is not read here."""

    default_cure = "read it with that engine, or have it rewrite the table's files"


class KeyReused(LakeError):
    """An idempotency key was used before, for other records."""

    default_cure = "give each write a key of its own"


class TooManyPartitions(ConfigError):
    """An append whose rows belong to more partitions than one may touch."""

    def __init__(self, partitions: int) -> None:
        self.partitions, self.most = partitions, MAX_PARTITIONS
        super().__init__(f"the records belong to {partitions} partitions; write to at most {MAX_PARTITIONS} at a time")


@dataclass(frozen=True, slots=True)
class RecordColumn:
    """A column: its name, its type as Iceberg spells it, whether it has a value in every row, and what it means."""

    name: str
    type: str
    required: bool
    doc: str | None = None


@dataclass(frozen=True, slots=True)
class RecordPartition:
    """A partition field: the column that it is made of, and Iceberg's transform, such as ``day`` or ``bucket[16]``."""

    column: str
    transform: str


@dataclass(frozen=True, slots=True)
class RecordSnapshot:
    """A snapshot: its number, when it was made (aware UTC), by which operation, and how many rows there were then."""

    snapshot_id: int
    at: datetime
    operation: str
    rows: int


@dataclass(frozen=True, slots=True)
class FileTotals:
    """Of a snapshot's data files: rows, files, bytes, files below a size, and of these those that can be merged.

    Files can be merged with others of their partition.
    """

    rows: int = 0
    files: int = 0
    size_bytes: int = 0
    small_files: int = 0
    mergeable_files: int = 0


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


@dataclass(frozen=True, slots=True)
class WriteKey:
    """An idempotency key, and a digest of what is written under it."""

    key: str
    content: str

    @property
    def texts(self) -> tuple[str, str]:
        """Key and digest as tables remember them; the key of one length, and telling nobody anything."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:32], self.content


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did, as its first attempt told it: rows, and of every so many appends what small files there are.

    Attributes:
        snapshot_id: The snapshot.
        rows: Rows appended.
        small_files: Files below the small-file size; None where it was not the turn to look.
        recommended: Whether enough of them can be merged; None likewise.
    """

    snapshot_id: int
    rows: int
    small_files: int | None = None
    recommended: bool | None = None

    def to_json(self) -> list[int | bool | None]:
        """As tables remember it."""
        return [self.snapshot_id, self.rows, self.small_files, self.recommended]


@dataclass(frozen=True, slots=True)
class SmallFilesProfile:
    """When an append says whether small files should be merged.

    Attributes:
        every: At every so many appends of a table.
        at_least: If so many files can be merged.
        below_bytes: Size of a small file.
    """

    every: int
    at_least: int
    below_bytes: int


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
            if self._may_create or file.exists():
                address = URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)
                self._catalog = SqlCatalog("datalake", uri=address, warehouse=str(self._root))
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
        with _translated():
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
        with suppress(NoSuchTableError), _translated():
            if self._catalog is not None:
                return RecordTable(self._catalog.load_table((namespace, name)))
        raise TableNotFound(f"{namespace}.{name}", "there is no such table")

    def names(self, namespace: str | None = None) -> list[tuple[str, str]]:
        """Namespaces and names of all tables, or of those of a namespace, sorted."""
        if self._catalog is None:
            return []
        with _translated():
            every = [each for (each, *_) in self._catalog.list_namespaces()] if namespace is None else [namespace]
            known = [each for each in every if self._catalog.namespace_exists((each,))]
            return sorted((each, name) for each in known for (*_, name) in self._catalog.list_tables((each,)))


@contextmanager
def _translated() -> Iterator[None]:
    """Foreign errors as ours; their texts name files and statements, and stay behind."""
    try:
        yield
    except (OSError, SQLAlchemyError) as error:
        raise LakeUnavailable(TENANTS, f"the tenant's tables cannot be reached ({type(error).__name__})") from error


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
            RecordPartition(schema.find_field(each.source_id).name, str(each.transform))
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
        with _translated():
            return _totals(_files(self._table), small_below_bytes)

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
        with _translated():
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
        appending = _Appending(self._table, rows, key, profile)
        waiting = stamina.retry_context(
            on=(CommitConflict, AmbiguousWrite),
            attempts=ATTEMPTS,
            timeout=_TIMEOUT_S,
            wait_initial=_WAIT_S,
            wait_max=_LONGEST_WAIT_S,
            wait_jitter=_WAIT_S * 5,
        )
        try:
            for attempt in waiting:
                with attempt:
                    return appending.attempt(again=attempt.num > 1)
        except (CommitConflict, KeyReused):
            appending.discard()
            raise
        raise AssertionError


class _Appending:
    """One append, over all its attempts: its files are written once, and its snapshot has one number."""

    def __init__(self, table: Table, rows: pa.Table, key: WriteKey | None, profile: SmallFilesProfile) -> None:
        self._table, self._rows, self._key, self._profile = table, rows, key, profile
        self._snapshot_id = table.metadata.new_snapshot_id()
        self._files: list[DataFile] = []
        self._may_land_late = False

    def attempt(self, *, again: bool) -> Appended:
        """Finds what was done before, or commits.

        Raises:
            KeyReused: The key was used for other rows.
            CommitConflict: Another writer came first.
            AmbiguousWrite: Nobody knows whether it was committed.
        """
        with _translated():
            if again:
                self._table.refresh()
            done = self._done()
            if done is not None:
                return done
            if not self._files:
                _check_spread(self._table, self._rows)
                self._files = _written(self._table, self._rows)
            number = int(self._table.properties.get(_WRITES, 0)) + 1
            answer = self._answer(number)
            change = TableChange(
                Operation.APPEND,
                added=self._files,
                snapshot_id=self._snapshot_id,
                summary={} if self._key is None else {_ANSWER: _json([*self._key.texts, answer.to_json()])},
                set_properties={_WRITES: str(number), **self._remembered(answer)},
            )
            try:
                commit_change(self._table, change)
            except AmbiguousWrite:
                self._may_land_late = True
                raise
        return answer

    def discard(self) -> None:
        """Deletes files that no snapshot names; if one may land late that does, they are left for orphan removal."""
        if not self._may_land_late:
            delete_quietly(self._table.io, [file.file_path for file in self._files])
        self._files = []

    def _answer(self, number: int) -> Appended:
        answer = Appended(self._snapshot_id, self._rows.num_rows)
        if number % self._profile.every:
            return answer
        totals = _totals([*_files(self._table), *self._files], self._profile.below_bytes)
        recommended = totals.mergeable_files >= self._profile.at_least
        return replace(answer, small_files=totals.small_files, recommended=recommended)

    def _remembered(self, answer: Appended) -> dict[str, str]:
        """The property of the newest keys with this one in it."""
        if self._key is None:
            return {}
        before = _loaded(self._table.properties.get(_KEYS))
        return {_KEYS: _json([*before, [*self._key.texts, answer.to_json()]][-REMEMBERED:])}

    def _done(self) -> Appended | None:
        """What an earlier attempt, or a write with this key, did; files that are not in the table are deleted."""
        if self._key is None:
            known = self._table.metadata.snapshot_by_id(self._snapshot_id)
            return None if known is None else self._answer_again()
        found = self._known_answer(*self._key.texts)
        if found is not None and found.snapshot_id != self._snapshot_id:
            self.discard()
        return found

    def _answer_again(self) -> Appended:
        """The answer of an attempt that was committed though nobody said so."""
        return self._answer(int(self._table.properties.get(_WRITES, 0)))

    def _known_answer(self, hashed: str, content: str) -> Appended | None:
        summaries = (each.summary for each in reversed(self._table.snapshots()) if each.summary is not None)
        stated = (_loaded(each[_ANSWER]) for each in summaries if each[_ANSWER])
        for key, written, answer in chain(reversed(_loaded(self._table.properties.get(_KEYS))), stated):
            if key == hashed:
                if written != content:
                    raise KeyReused(".".join(self._table.name()), "this idempotency key was used for another write")
                return Appended(*answer)
        return None


def _written(table: Table, rows: pa.Table) -> list[DataFile]:
    """Writes rows to data files that no snapshot names yet."""
    files = list(_dataframe_to_data_files(table.metadata, rows, table.io))
    for file in files:
        file.spec_id = table.metadata.default_spec_id
    return files


def _local(location: str) -> str:
    return location.removeprefix("file://")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _loaded(text: str | None) -> list[Any]:
    found: list[Any] = json.loads(text) if text else []
    return found


def _files(table: Table) -> list[DataFile]:
    return [task.file for task in table.scan().plan_files()] if table.current_snapshot() is not None else []


def _totals(files: Sequence[DataFile], small_below_bytes: int) -> FileTotals:
    small = [file for file in files if file.file_size_in_bytes < small_below_bytes]
    together = Counter((file.spec_id, file.partition) for file in small)
    return FileTotals(
        rows=sum(file.record_count for file in files),
        files=len(files),
        size_bytes=sum(file.file_size_in_bytes for file in files),
        small_files=len(small),
        mergeable_files=sum(count for count in together.values() if count > 1),
    )


def _check_spread(table: Table, rows: pa.Table) -> None:
    """Refuses rows of too many partitions, before any file is written.

    Raises:
        TooManyPartitions: They are.
    """
    if table.spec().is_unpartitioned():
        return
    schema = table.schema()
    keys = {}
    for number, field in enumerate(table.spec().fields):
        source = schema.find_field(field.source_id)
        keys[str(number)] = field.transform.pyarrow_transform(source.field_type)(rows[source.name])
    partitions = pa.table(keys).group_by(list(keys)).aggregate([]).num_rows
    if partitions > MAX_PARTITIONS:
        raise TooManyPartitions(partitions)


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
        name = each.column if each.transform == "identity" else f"{each.column}_{each.transform.split('[')[0]}"
        transform = parse_transform(each.transform)
        fields.append(PartitionField(schema.find_field(each.column).field_id, FIRST_FIELD + number, transform, name))
    return PartitionSpec(*fields)
