"""The catalog that needs no server: a DuckDB database with a view of each feed, which every program can open.

Its views list folders, so that they show what was committed since; what else changes (new feeds, columns, the version
of a table, the files of an Iceberg or Delta table) is brought in step by the next sync. The file is never changed while
others read it: a copy is changed, and takes its place at once. A lock on its folder keeps two syncs from taking each
other's place.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import duckdb
import pyarrow as pa

from datalake_assets.catalog.base import OWNER, Known, Outcome, State
from datalake_assets.catalog.entries import FOLDER_COLUMN, Entry
from datalake_assets.catalog.views import View
from datalake_assets.core.arrow_arrays import has_floats
from datalake_assets.core.partitions import partition_columns
from datalake_assets.core.rules import identifier, literal
from datalake_assets.errors import ConfigError, LakeUnavailable, TransientStoreError, duckdb_interrupted
from datalake_assets.lake.sql_gate import interruptible, message_of
from datalake_assets.lake.table import Logged

__all__ = ["DuckDBFile", "duckdb_view", "why_no_view"]

#: Files that a view names at the most: DuckDB opens each of them before it answers.
MOST_FILES = 10_000
#: What DuckDB takes for a pattern rather than for a name.
_PATTERN = frozenset("*?[")


def duckdb_view(entry: Entry) -> str:
    """The statement that makes the view of a feed.

    Raises:
        ConfigError: There can be none.
    """
    if reason := why_no_view(entry):
        raise ConfigError(reason)
    if entry.logged is not None:
        return _view_of_files(entry, entry.logged)
    feed, names = entry.feed, entry.listed
    given = set(names).intersection(partition_columns(feed))
    kinds = {name: "VARCHAR" if name == "version" else "INTEGER" for name in names if name in given}
    # files may be older than a change of the policy: only a feed that was never changed has always been frozen
    union = feed.schema_policy != "freeze" or feed.revision > 1
    is_hive = bool(kinds) or (feed.is_adopted and FOLDER_COLUMN not in entry.partition_columns)
    options = [f"hive_partitioning = {str(is_hive).lower()}", f"union_by_name = {str(union).lower()}"]
    options += _of_floats(entry)
    if kinds:
        options.append(f"hive_types = {{{', '.join(f'{name}: {kind}' for name, kind in kinds.items())}}}")
    files = literal(f"{entry.location}/{entry.pattern}")
    if entry.named:
        files = f"[{', '.join(map(literal, entry.named))}]"
    columns = ", ".join(map(identifier, names))
    query = f"SELECT {columns} FROM read_parquet({files}, {', '.join(options)})"  # noqa: S608  all are quoted
    return f"CREATE OR REPLACE VIEW {identifier(entry.name)} AS {query}"


def _of_floats(entry: Entry) -> list[str]:
    """What DuckDB is to be told where a value may be NaN: it takes bounds for those of all rows otherwise."""
    return ["can_have_nan = true"] if any(has_floats(each.kind) for each in entry.columns) else []


def why_no_view(entry: Entry) -> str:
    """Why a feed has no view; empty if it has."""
    logged = entry.logged
    if logged is not None and logged.why_not_plain:
        return f"{logged.why_not_plain}: DuckDB reads it by its extension {logged.format}, from {logged.location}"
    files = logged.files if logged is not None else entry.named
    if len(files) > MOST_FILES:
        return f"it has {len(files):,} files, and a view names {MOST_FILES:,} at the most; compact it"
    if logged is not None and (odd := [name for name in logged.hive_columns if _path_type(entry, name) is None]):
        return f"its partitions are by {odd[0]!r}, of a type that paths do not tell exactly"
    if any(_PATTERN & set(each) for each in (entry.location, *files)):
        return f"{entry.location}: DuckDB takes '*', '?' and '[' in an address for a pattern"
    return ""


def _path_type(entry: Entry, name: str) -> str | None:
    """DuckDB's type of a column that stands in paths; None if a text in a path may be read as another value."""
    kind = next((each.kind for each in entry.columns if each.name == name), None)
    return None if kind is None else _PATH_TYPES.get(kind)


_PATH_TYPES = {
    pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR",
    pa.string_view(): "VARCHAR",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.date32(): "DATE",
}
_PARTS = {"year": "year", "month": "month", "day": "day", "hour": "hour"}


def _view_of_files(entry: Entry, logged: Logged) -> str:
    """A view of the files that the table has by now; a later sync makes it anew."""
    listed = ", ".join(literal(_plain(each)) for each in logged.files)
    kinds = {name: _path_type(entry, name) for name in logged.hive_columns}
    options = [f"hive_partitioning = {str(bool(kinds)).lower()}", "union_by_name = true", *_of_floats(entry)]
    if kinds:
        options.append(f"hive_types = {{{', '.join(f'{identifier(name)}: {kind}' for name, kind in kinds.items())}}}")
    own = {each.name for each in entry.columns}
    columns = ", ".join(identifier(each) if each in own else _derived(entry, each) for each in entry.listed)
    query = f"SELECT {columns} FROM read_parquet([{listed}], {', '.join(options)})"  # noqa: S608  all are quoted
    return f"CREATE OR REPLACE VIEW {identifier(entry.name)} AS {query}"


def _derived(entry: Entry, name: str) -> str:
    """A column that no file has: of a table its version, of a stream a part of the row's time in UTC."""
    if entry.time_column is None:
        return f"{literal(entry.version)} AS {identifier(name)}"
    part = _PARTS[name.removeprefix(entry.feed.partition_prefix)]
    at = f"make_timestamp(epoch_us({identifier(entry.time_column)}))"
    return f"CAST(date_part({literal(part)}, {at}) AS INTEGER) AS {identifier(name)}"


def _plain(address: str) -> str:
    """The path of a local file, or an address of S3 as DuckDB writes it."""
    scheme, separator, rest = address.partition(":")
    if separator and scheme == "file":
        return f"/{rest.lstrip('/')}"
    return f"s3:{rest}" if separator and scheme in {"s3a", "s3n"} else address


class DuckDBFile:
    """A database file; implements `Catalog`.

    Args:
        file: Where it is, or is to be.
        lake: The lake's address.

    Raises:
        ConfigError: The lake is in S3, which DuckDB reads by an extension of its own, with credentials of its own.
    """

    kind = "duckdb"

    def __init__(self, file: Path, *, lake: str) -> None:
        if "://" in lake:
            raise ConfigError(
                "a DuckDB file is the catalog of local lakes; of a lake in S3 'datalake catalog ddl --dialect duckdb'"
                " prints the views, for a DuckDB that has httpfs and a secret"
            )
        self._file, self._lake = file.absolute(), lake
        self._copy = self._file.with_name(f"{self._file.name}.new")
        self._stack = ExitStack()
        self._worker = self._stack.enter_context(ThreadPoolExecutor(1, "DuckDB"))  # no thread before it is needed
        self._open: duckdb.DuckDBPyConnection | None = None
        self._is_changed = False

    def __enter__(self) -> Self:
        self._stack.enter_context(_locked(self._file.parent))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._open is not None:
                with _named(self._file):
                    self._open.close()
                if self._is_changed:
                    self._replace()
        finally:
            self._open = None
            with suppress(OSError):  # it is begun anew the next time
                _remove(self._copy)
            self._stack.close()

    def _replace(self) -> None:
        try:
            with self._copy.open("rb") as written:
                os.fsync(written.fileno())
            self._copy.replace(self._file)
        except OSError as error:
            raise LakeUnavailable(str(self._file), error.strerror or str(error)) from error

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """The copy that is changed, made when it is first needed."""
        if self._open is None:
            with _named(self._file):
                _remove(self._copy)
                if self._file.exists():
                    _check_alone(self._file)
                    shutil.copyfile(self._file, self._copy)
                self._open = duckdb.connect(str(self._copy))
            self._refuse_others()
        return self._open

    @duckdb_interrupted()
    def _refuse_others(self) -> None:
        """A database in which somebody keeps rows is no place of ours."""
        assert self._open is not None  # noqa: S101  for mypy: the caller has opened it
        tables = self._open.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()
        if tables:
            raise ConfigError(
                f"{self._file} has tables of somebody's in it ({tables[0][0]}): name another file with"
                " DATALAKE_CATALOG_FILE"
            )

    def has_database(self) -> bool:
        """Implements `Catalog`."""
        return self._file.exists()

    def create_database(self) -> None:
        """Implements `Catalog`."""
        self._is_changed = self._is_changed or not self._file.exists()
        _ = self._connection

    def known(self) -> dict[str, Known]:
        """Implements `Catalog`."""
        if self._open is None and not self._file.exists():
            return {}
        return {name.lower(): Known(name, told.get(OWNER, ""), "query" in told) for name, told in self._told().items()}

    @duckdb_interrupted()
    def _told(self) -> dict[str, dict[str, str]]:
        rows = self._connection.execute("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall()
        return {name: _comment(comment) for name, comment in rows}

    def why_not(self, entry: Entry) -> str:
        """Implements `Catalog`."""
        return why_no_view(entry)

    def needs(self, entry: Entry) -> bool:
        """Implements `Catalog`; a view lists partitions by itself."""
        return self._told().get(entry.name, {}).get("digest") != entry.digest

    def create(self, entry: Entry) -> Outcome:
        """Implements `Catalog`."""
        return self._show(entry, "created")

    def update(self, entry: Entry) -> Outcome:
        """Implements `Catalog`."""
        return self._show(entry, "updated") if self.needs(entry) else Outcome(self.kind, entry.name, "current")

    def _show(self, entry: Entry, state: State) -> Outcome:
        told = {OWNER: self._lake, "digest": entry.digest, "description": entry.feed.description}
        self._put(entry.name, duckdb_view(entry), told)
        return Outcome(self.kind, entry.name, state, detail=_kind_text(entry))

    @duckdb_interrupted()
    def _put(self, name: str, statement: str, told: dict[str, str]) -> None:
        """Makes a view, and asks it for a row: what is entered can be read."""
        connection = self._connection
        connection.execute("BEGIN")
        try:
            connection.execute(statement)
            connection.execute(f"COMMENT ON VIEW {identifier(name)} IS {literal(json.dumps(told))}")
            row = f"SELECT * FROM {identifier(name)} LIMIT 1"  # noqa: S608  quoted
            interruptible(lambda: connection.execute(row).fetchall(), connection, self._worker)
            connection.execute("COMMIT")
        except duckdb.Error as error:
            with suppress(duckdb.Error):  # a commit that failed has rolled back by itself
                connection.execute("ROLLBACK")
            raise ConfigError(f"DuckDB cannot read {name!r}: {message_of(error)}") from error
        self._is_changed = True

    def put_view(self, view: View) -> Outcome:
        """Implements `Catalog`."""
        told = self._told().get(view.name, {})
        wanted = {OWNER: self._lake, "query": view.query, "description": view.description}
        if told == wanted:
            return Outcome(self.kind, view.name, "current")
        self._put(view.name, f"CREATE OR REPLACE VIEW {identifier(view.name)} AS {view.query}", wanted)
        return Outcome(self.kind, view.name, "updated" if told else "created")

    @duckdb_interrupted()
    def drop(self, known: Known) -> None:
        """Implements `Catalog`."""
        self._connection.execute(f"DROP VIEW IF EXISTS {identifier(known.name)}")
        self._is_changed = True


def _kind_text(entry: Entry) -> str:
    named = entry.logged.files if entry.logged is not None else entry.named
    files = f"{len(named):,} files as of this sync" if named else ""
    return ", ".join(filter(None, [f"version {entry.version}" if entry.version else "", files]))


def _comment(text: str | None) -> dict[str, str]:
    try:
        told = json.loads(text or "{}")
    except ValueError:  # somebody's own view
        return {}
    return told if isinstance(told, dict) else {}


def _remove(file: Path) -> None:
    for each in (file, file.with_name(f"{file.name}.wal")):
        with suppress(FileNotFoundError):
            each.unlink()


def _check_alone(file: Path) -> None:
    """A database with a log beside it is being written by somebody, or was not closed: the file alone is not all of it.

    Raises:
        TransientStoreError: It is so.
    """
    if file.with_name(f"{file.name}.wal").exists():
        raise TransientStoreError(
            str(file), "somebody writes it, or did not close it; open it with DuckDB and close it"
        )


@contextmanager
def _named(file: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise LakeUnavailable(
            str(file), f"it cannot be opened: {message_of(error)}", cure="name another file with DATALAKE_CATALOG_FILE"
        ) from error
    except OSError as error:
        raise LakeUnavailable(str(file), error.strerror or str(error)) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits for other syncs of files in the folder; the lock goes with the process that holds it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise LakeUnavailable(str(folder), error.strerror or str(error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
