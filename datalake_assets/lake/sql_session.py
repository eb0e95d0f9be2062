"""SQL over the feeds of a lake, run by DuckDB in this process, exact per partition.

Every feed that a query names becomes a view over the files that its manifests name at that moment, so a half-written
commit is never seen. A file that goes away before it was read makes the query run again, over the files of then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from datalake_assets.core.rules import identifier, literal
from datalake_assets.errors import ConfigError, LakeError, SnapshotExpired
from datalake_assets.feed import Feed
from datalake_assets.lake.sql_views import is_taken, show
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import TableReader, TableSnapshot
from datalake_assets.lake.tables import open_table

__all__ = ["SqlRefused", "SqlResult", "run_sql"]

#: Times that a query is run because files that it was reading were replaced.
ATTEMPTS = 5
# what DuckDB takes for a pattern, or for a partition, rather than for a name
_PATTERN = frozenset("*?[{=")
_HIVE_TYPES = {"year": "INTEGER", "month": "INTEGER", "day": "INTEGER", "hour": "INTEGER", "version": "VARCHAR"}
_READS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


class SqlRefused(ConfigError):
    """A query that is no query, or not a valid one.

    Args:
        reason: What DuckDB says about it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the query cannot be run: {reason}")


@dataclass(frozen=True, slots=True)
class SqlResult:
    """The answer to a query.

    Attributes:
        columns: Names of the columns.
        types: Their types, as DuckDB names them.
        rows: The rows, as Python values.
        truncated: Whether there were more rows than asked for.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False


def run_sql(store: Store, feeds: Sequence[Feed], query: str, *, limit: int | None = None) -> SqlResult:
    """Answers one SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN) over feeds by their names.

    Streams have the columns ``year``, ``month``, … of their partitions, tables ``version`` and the rows of their
    current version, folders what their folders' names say. Times are UTC.

    Args:
        store: The lake.
        feeds: The feeds that the query may name.
        query: The SQL.
        limit: Rows to return at the most; None for all.

    Raises:
        SqlRefused: It is no single read, or DuckDB refuses it.
        SnapshotExpired: Its files were replaced every time.
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        wanted = _named(connection, {feed.name: feed for feed in feeds}, query)
        for attempt in range(ATTEMPTS):
            tables = {feed.name: open_table(store, feed) for feed in wanted}
            snapshots = {name: table.snapshot() for name, table in tables.items()}
            try:
                for name, table in tables.items():
                    _register(connection, table, snapshots[name].dataset(), root=store.path(""))
                return _fetch(connection.execute(query), limit)
            except duckdb.Error as error:
                if not _have_expired(snapshots.values()):
                    raise _refused(error) from error
                if attempt == ATTEMPTS - 1:
                    raise SnapshotExpired(store.uri, "files were replaced each time the query ran") from error
    raise AssertionError


def _named(connection: duckdb.DuckDBPyConnection, feeds: Mapping[str, Feed], query: str) -> list[Feed]:
    """The feeds that the query names."""
    try:
        statements = connection.extract_statements(query)
        if len(statements) != 1 or statements[0].type not in _READS:
            raise SqlRefused("give one SELECT; nothing else is run here")
        names = {name.lower() for name in connection.get_table_names(query)}
    except duckdb.ParserException as error:
        raise _refused(error) from error
    except duckdb.Error:  # some statements cannot be asked for their tables
        return list(feeds.values())
    return [feed for name, feed in feeds.items() if name in names]


def _register(connection: duckdb.DuckDBPyConnection, table: TableReader, dataset: ds.Dataset, *, root: str) -> None:
    """Makes a feed's view: DuckDB's own reader over local files, Arrow's over all else."""
    feed, name = table.feed, identifier(table.feed.name)
    files: Sequence[str] = dataset.files
    connection.execute(f"DROP VIEW IF EXISTS {name}")
    if not dataset.schema.names:
        raise SqlRefused(f"feed {feed.name!r} has no data yet; {_cure(feed)}")
    # adopted folders have names that DuckDB would expand, and columns that it would type by itself
    by_itself = table.is_listed_plainly and not _PATTERN & set(root)
    plain = isinstance(dataset.filesystem, pafs.LocalFileSystem) and by_itself and is_taken(dataset.schema)
    if not files or not plain:
        show(connection, feed.name, dataset)
        return
    columns = ", ".join(map(identifier, dataset.schema.names))
    listed = ", ".join(map(literal, files))
    kinds = ", ".join(f"'{column}': {kind}" for column, kind in _HIVE_TYPES.items() if column in dataset.schema.names)
    union = feed.schema_policy == "evolve"
    options = f"hive_partitioning = true, hive_types = {{{kinds}}}, union_by_name = {union}"
    files_read = f"read_parquet([{listed}], {options})"
    connection.execute(f"CREATE VIEW {name} AS SELECT {columns} FROM {files_read}")  # noqa: S608  all are quoted


def _fetch(connection: duckdb.DuckDBPyConnection, limit: int | None) -> SqlResult:
    described = connection.description or []
    rows = connection.fetchall() if limit is None else connection.fetchmany(limit + 1)
    return SqlResult(
        columns=tuple(column[0] for column in described),
        types=tuple(str(column[1]) for column in described),
        rows=tuple(rows[:limit]),
        truncated=limit is not None and len(rows) > limit,
    )


def _have_expired(snapshots: Iterable[TableSnapshot]) -> bool:
    """Whether files that the query was to read are no longer in the manifests."""
    try:
        return any(snapshot.has_expired() for snapshot in snapshots)
    except LakeError:
        return False


def _refused(error: duckdb.Error) -> SqlRefused:
    """DuckDB's message without the excerpt of the query below it."""
    text = str(error).split("\n\nLINE ", 1)[0]
    return SqlRefused(" ".join(text.split()))


def _cure(feed: Feed) -> str:
    """How a feed without data gets some."""
    if feed.is_adopted:
        return f"look again with 'datalake repair {feed.name}'"
    if not feed.is_exported:
        return f"materialize asset {feed.asset!r}"
    return f"export it with 'datalake export --{feed.kind} {feed.name}'"
