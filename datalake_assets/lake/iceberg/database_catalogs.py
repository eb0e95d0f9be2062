"""Iceberg catalogs in a database: what pyiceberg's lacks beside other processes, and where tables have many snapshots.

Of a commit that failed nothing may be left. SQLite refuses a commit while another process is reading, Spark's catalog
for instance, and leaves the transaction open. SQLAlchemy takes it for ended, so that whoever gets the connection next
reads what was never committed: a commit that is looked for in the catalog would be found, and be gone a moment later.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Self, TypeVar, cast

import sqlalchemy.exc
from pydantic import BaseModel
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.io import FileIO
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import MetadataLogEntry, Snapshot, SnapshotLogEntry
from pyiceberg.table.update import TableRequirement, TableUpdate
from sqlalchemy import event

from datalake_assets.lake.iceberg.bounded_catalogs import bound_database

__all__ = ["DatabaseCatalog", "RememberingCatalog", "made_beside_others", "why_not_committed"]

#: Tables whose metadata is kept at hand; a kilobyte for each snapshot.
REMEMBERED = 8
#: Snapshots whose texts are kept at hand, of all tables of a catalog; a kilobyte or two each.
TEXTS = 5000
_M = TypeVar("_M", bound=BaseModel)


def _roll_back(connection: Any, *_: object) -> None:
    """Ends a transaction that SQLAlchemy believes to be over; of drivers that say whether there is one."""
    if getattr(connection, "in_transaction", False):
        connection.rollback()


#: What SQLite says before it changes anything, also of a COMMIT, whose transaction stays open (SQLite, "Transaction":
#: "attempting to COMMIT … might also result in an SQLITE_BUSY"), or is rolled back ("Result and Error Codes").
_NOTHING_CHANGED = {
    sqlite3.SQLITE_BUSY: "another process keeps the catalog's database locked",
    sqlite3.SQLITE_LOCKED: "another process keeps the catalog's database locked",
    sqlite3.SQLITE_FULL: "the disk of the catalog's database is full",
}


class MetadataUnwritten(OSError):
    """A metadata file could not be written; the database was not told of it."""


def why_not_committed(catalog: Catalog, error: Exception) -> str:
    """Why a commit that failed certainly does not stand, in a catalog in a database; empty if nobody knows.

    What SQLite leaves open was rolled back by the time that this is asked.
    """
    if isinstance(error, MetadataUnwritten):
        return f"its metadata could not be written ({error.strerror})"
    driver = getattr(error, "orig", None) if isinstance(error, sqlalchemy.exc.OperationalError) else None
    code = getattr(driver, "sqlite_errorcode", 0) & 0xFF  # the rest says more of it
    return _NOTHING_CHANGED.get(code, "") if isinstance(catalog, DatabaseCatalog) else ""


class DatabaseCatalog(SqlCatalog):
    """A catalog in a database, of which a failed commit leaves nothing to be read, and which is not waited for long."""

    def _init_catalog(self) -> None:
        """Says what holds of all connections before there is one; upstream then asks which tables there are."""
        bound_database(self.engine)
        event.listen(self.engine, "reset", _roll_back)
        super()._init_catalog()

    def _write_metadata(  # type: ignore[override]  # upstream's is static, and called by the instance
        self, metadata: TableMetadata, io: FileIO, metadata_path: str
    ) -> None:
        """Writes a metadata file, before the database is told.

        Raises:
            MetadataUnwritten: The disk, or the store, refused it.
        """
        try:
            ToOutputFile.table_metadata(self._as_written(metadata), io.new_output(metadata_path))
        except OSError as error:
            raise MetadataUnwritten(error.errno, error.strerror or type(error).__name__) from error

    def _as_written(self, metadata: TableMetadata) -> TableMetadata:
        return metadata


class _Shared:
    """Never changes, so that a copy of what it is part of has it, too."""

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self


class _SharedSnapshot(_Shared, Snapshot):
    """A snapshot of metadata that was read."""


class _SharedEntry(_Shared, SnapshotLogEntry):
    """A line of a snapshot log that was read."""


class _SharedFile(_Shared, MetadataLogEntry):
    """A line of a metadata log that was read."""


class _SharedList(_Shared, list[Any]):
    """The snapshots of metadata, or a log of it: upstream makes a new list for each change."""

    def __add__(self, others: list[Any]) -> _SharedList:
        return _SharedList([*self, *others])


class _AsText:
    """Metadata that is written with texts of its snapshots that are known.

    Args:
        metadata: The metadata.
        text_of: Gives the JSON of a snapshot; nulls are left out, or not.
    """

    def __init__(self, metadata: TableMetadata, text_of: Callable[[Snapshot, bool], str]) -> None:
        self._metadata, self._text_of = metadata, text_of

    def model_dump_json(self, *, exclude_none: bool) -> str:
        """What the metadata's own gives, but for the order of its fields."""
        rest = self._metadata.model_dump_json(exclude_none=exclude_none, exclude={"snapshots"})
        snapshots = ",".join([self._text_of(each, exclude_none) for each in self._metadata.snapshots])
        return f'{rest[:-1]},"snapshots":[{snapshots}]}}'


class RememberingCatalog(DatabaseCatalog):
    """A catalog in a database, which does not read a table's metadata again while that is the same file.

    Metadata tells of every snapshot, and a commit reads, copies and writes it: an append to a table of a thousand
    snapshots would take ten times as long as one to a new table. A metadata file never changes, so what was read last
    is kept; snapshots never change, so a copy shares them, and the text of each is made once.
    """

    def __init__(self, name: str, **properties: str) -> None:
        super().__init__(name, **properties)
        self._read: OrderedDict[str, TableMetadata] = OrderedDict()
        self._texts: OrderedDict[tuple[int, str, bool], str] = OrderedDict()

    def commit_table(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> CommitTableResponse:
        """Commits, and remembers what became of the metadata."""
        response = super().commit_table(table, requirements, updates)
        self._remember(response.metadata_location, response.metadata)
        return response

    def _as_written(self, metadata: TableMetadata) -> TableMetadata:
        return cast(TableMetadata, _AsText(metadata, self._text_of))

    def _text_of(self, snapshot: Snapshot, exclude_none: bool) -> str:  # noqa: FBT001  one of two texts of it
        # ids are of their table alone, paths of lists of manifests are of one commit
        at = (snapshot.snapshot_id, snapshot.manifest_list, exclude_none)
        text = self._texts.get(at)
        if text is None:
            text = self._texts[at] = snapshot.model_dump_json(exclude_none=exclude_none)
            while len(self._texts) > TEXTS:
                self._texts.popitem(last=False)
        return text

    def _convert_orm_to_iceberg(self, orm_table: IcebergTables) -> Table:
        location = orm_table.metadata_location
        metadata = self._read.get(location or "")
        if location is None or metadata is None:
            table: Table = super()._convert_orm_to_iceberg(orm_table)
            table.metadata = self._remember(table.metadata_location, table.metadata)
            return table
        return Table(
            identifier=(*self.identifier_to_tuple(orm_table.table_namespace), orm_table.table_name),
            metadata=metadata,
            metadata_location=location,
            io=self._load_file_io(metadata.properties, location),
            catalog=self,
        )

    def _remember(self, location: str, metadata: TableMetadata) -> TableMetadata:
        update = {
            "snapshots": _SharedList(_shared(_SharedSnapshot, each) for each in metadata.snapshots),
            "snapshot_log": _SharedList(_shared(_SharedEntry, each) for each in metadata.snapshot_log),
            "metadata_log": _SharedList(_shared(_SharedFile, each) for each in metadata.metadata_log),
        }
        kept: TableMetadata = metadata.model_copy(update=update)
        self._read[location] = kept
        while len(self._read) > REMEMBERED:
            self._read.popitem(last=False)
        return kept


def _shared(kind: type[_M], model: _M) -> _M:
    return model if isinstance(model, kind) else kind.model_construct(**dict(model))


_Made = TypeVar("_Made", bound=Catalog)
#: Times that a catalog in a database is opened; it has two tables, and each can be made by somebody else just then.
_OPENINGS = 5
#: What databases say of something that is made twice at once.
_MADE_TWICE = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError)


def made_beside_others(make: Callable[[], _Made]) -> _Made:
    """A catalog in a database whose tables others may be making, too: all but one of them are refused that."""
    for _ in range(_OPENINGS - 1):
        try:
            return make()
        except _MADE_TWICE as error:  # one that is out of reach is not asked again: it may take minutes to say so
            if not any(what in str(error) for what in ("already exists", "locked")):
                raise
    return make()
