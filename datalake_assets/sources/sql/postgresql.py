"""PostgreSQL by ADBC, and any other database that has an ADBC driver: rows come in Arrow, by COPY, as they are sent.

PostgreSQL tells by itself which rows can still come below the highest cursor value: those of transactions that hold a
lock for writing, or that began before. See the ADR on cursors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.errors import SourceRefused, SourceUnavailable
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.sql.databases import (
    Bound,
    ColumnRange,
    Relation,
    SqlColumn,
    absent_driver,
    is_news,
    refuse_unsettled,
    selected,
    settled_before,
    source_of,
    translated,
)

__all__ = ["AdbcDatabase", "PostgreSql"]

#: Classes of SQLSTATE of what passes: connection, resources, operator, system (PostgreSQL manual, appendix A); and a
#: query of a standby that was cancelled for recovery.
_TRANSIENT = ("08", "53", "57", "58", "40")
_POLL_S = (0.02, 0.5)
#: Bytes of a batch of rows.
BATCH_BYTES = 2 << 20
#: Rows that wait for so long for a transaction of others are worth a word.
HELD_BACK = timedelta(seconds=60)

_TABLES = """SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition AND n.nspname <> 'information_schema'
AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1, 2"""
#: A table, its parts and its sequences; of a view, none.
_PARTS = """WITH RECURSIVE part(oid) AS (
SELECT oid FROM pg_class WHERE oid = to_regclass({name}) AND relkind IN ('r', 'p')
UNION SELECT i.inhrelid FROM pg_inherits i JOIN part ON i.inhparent = part.oid)
SELECT oid::int8 FROM part UNION SELECT d.objid::int8 FROM pg_depend d JOIN part ON d.refobjid = part.oid
JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'"""
#: Transactions, prepared ones too, that may write, each with its process: a lock is kept until their end.
_WRITERS = """SELECT virtualtransaction, COALESCE(pid, 0) FROM pg_locks WHERE locktype = 'relation' AND granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
AND pid IS DISTINCT FROM pg_backend_pid() AND {which}"""
#: The clock, and the start of the oldest transaction that is open, with its process.
_OLDEST = """SELECT clock_timestamp(), a.xact_start, a.pid FROM (SELECT 1) one LEFT JOIN LATERAL (
SELECT xact_start, pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
AND xact_start IS NOT NULL AND backend_type NOT IN ('autovacuum worker', 'walsender')
ORDER BY xact_start LIMIT 1) a ON true"""


class AdbcDatabase:
    """A database with an ADBC driver; implements `Database`.

    Args:
        name: What it is called, for messages.
        driver: The package of its driver, like ``adbc_driver_snowflake``.
        uri: What that driver takes.
        url: As the settings have it, whose parts are kept out of messages.
        timeout_s: Patience.
    """

    dialect = "adbc"
    #: The extra that brings the driver.
    extra = "adbc"
    #: What a statement is told whose rows are wanted: options of the driver.
    options: Mapping[str, str] = {}

    def __init__(self, name: str, *, driver: str, uri: str, url: str, timeout_s: float) -> None:
        self.name, self._driver, self._uri, self._url, self._timeout_s = name, driver, uri, url, timeout_s
        self._connection: Any = None

    def quoted(self, name: str) -> str:
        """Implements `Database`."""
        return '"' + name.replace('"', '""') + '"'

    def tables(self) -> Iterator[SourceObject]:
        """Implements `Database`."""
        with self._cursor() as cursor:
            objects = cursor.connection.adbc_get_objects(depth="tables").read_all().to_pylist()
        for catalog in objects:
            for schema in catalog["catalog_db_schemas"] or ():
                for table in schema["db_schema_tables"] or ():
                    parts = [part for part in (schema["db_schema_name"], table["table_name"]) if part]
                    yield SourceObject(".".join(map(_written, parts)), "table")

    def columns(self, relation: Relation) -> list[SqlColumn]:
        """Implements `Database`."""
        return [self._column(field) for field in self._schema(relation)]

    def _schema(self, relation: Relation) -> pa.Schema:
        with self._cursor() as cursor:
            return cursor.adbc_execute_schema(f"SELECT q.* FROM {source_of(self, relation)}")

    def _column(self, field: pa.Field) -> SqlColumn:
        nested = pt.is_nested(field.type) or isinstance(field.type, pa.BaseExtensionType) or pt.is_interval(field.type)
        return SqlColumn(field.name, None if nested else field.type, str(field.type))

    def settled(self, relation: Relation, cursor: SqlColumn, lag: timedelta | None, *, start: int | None) -> Bound:
        """Implements `Database`: the declared lag alone."""
        if lag is None:
            raise refuse_unsettled(self, cursor, "this database does not tell which transactions are open")
        if pt.is_integer(cursor.type):
            highest = self._highest(relation, cursor)
            if is_news(highest, start):
                time.sleep(lag.total_seconds())
            return Bound(None if highest is None else highest + 1)
        (now,) = self._row("SELECT CURRENT_TIMESTAMP")
        return Bound(settled_before(now, cursor.type, lag))

    def _highest(self, relation: Relation, cursor: SqlColumn) -> int | None:
        (highest,) = self._row(f"SELECT MAX(q.{self.quoted(cursor.name)}) FROM {source_of(self, relation)}")
        return None if highest is None else int(highest)

    def has_nulls(self, relation: Relation, column: SqlColumn) -> bool:
        """Implements `Database`."""
        where = f"q.{self.quoted(column.name)} IS NULL"
        return bool(self._rows(f"SELECT 1 FROM {source_of(self, relation)} WHERE {where} LIMIT 1"))

    def rows(
        self,
        relation: Relation,
        columns: Sequence[SqlColumn],
        within: ColumnRange | None,
        *,
        batch_rows: int,  # noqa: ARG002  the driver gives batches of its own
    ) -> Iterator[Sequence[pa.Array | list[Any]]]:
        """Implements `Database`: as the driver sends them."""
        with self._cursor() as cursor:
            cursor.adbc_statement.set_options(**self.options)
            cursor.execute(selected(self, relation, columns, within))
            for batch in cursor.fetch_record_batch():
                yield batch.columns

    def close(self) -> None:
        """Implements `Database`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it is broken, or busy with what nobody waits for
                connection.close()

    # statements

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            cursor.execute(statement)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    def _row(self, statement: str) -> tuple[Any, ...]:
        (row,) = self._rows(statement)
        return row

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        """A cursor whose errors are ours; after one, or where its rows are not wanted, the connection is made anew."""
        try:
            driver, failures = import_module(f"{self._driver}.dbapi"), import_module("adbc_driver_manager").Error
        except ImportError as error:
            raise absent_driver(self.name, self.extra, error) from error
        try:
            with closing(self._connected(driver).cursor()) as cursor:
                yield cursor
        except failures as error:
            ours = self._error_of(error)
            self.close()
            raise ours from error
        except (pa.ArrowException, OSError) as error:  # the stream of rows broke
            self.close()
            raise translated(self.name, error, transient=True, url=self._url) from error
        except BaseException:
            self.close()
            raise

    def _connected(self, driver: Any) -> Any:
        if self._connection is None:
            connection = driver.connect(self._uri, autocommit=True)
            self._prepare(connection)
            self._connection = connection
        return self._connection

    def _prepare(self, connection: Any) -> None:
        """What a new connection is told."""

    def _error_of(self, error: Exception) -> SourceRefused | SourceUnavailable:
        state = getattr(error, "sqlstate", None) or ""
        passing = self._connection is None or state.startswith(_TRANSIENT) or (not state and _is_operational(error))
        return translated(self.name, error, transient=passing, url=self._url)


def _is_operational(error: Exception) -> bool:
    return type(error).__name__ == "OperationalError"


class PostgreSql(AdbcDatabase):
    """PostgreSQL; implements `Database`. Its sessions only read, in UTC, each statement at one moment."""

    dialect, extra = "postgresql", "postgresql"
    # by default 16 MiB, of which there are several at once (ADBC's documentation, "PostgreSQL driver", options)
    options: Mapping[str, str] = {"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}

    def __init__(self, name: str, *, url: str, timeout_s: float) -> None:
        uri = (
            url
            if "connect_timeout" in url
            else f"{url}{'&' if '?' in url else '?'}connect_timeout={int(timeout_s) or 1}"
        )
        super().__init__(name, driver="adbc_driver_postgresql", uri=uri, url=url, timeout_s=timeout_s)

    def _prepare(self, connection: Any) -> None:
        with closing(connection.cursor()) as cursor:
            for statement in (
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                "SET TIME ZONE 'UTC'",
                "SET DateStyle = 'ISO'",
                "SET IntervalStyle = 'iso_8601'",
                "SET application_name = 'datalake'",
            ):
                cursor.execute(statement)

    def tables(self) -> Iterator[SourceObject]:
        """Implements `Database`."""
        for schema, table in self._rows(_TABLES):
            yield SourceObject(f"{_written(schema)}.{_written(table)}", "table")

    def _column(self, field: pa.Field) -> SqlColumn:
        """What Arrow has no type for comes as text, as PostgreSQL writes it; arrays and rows as JSON."""
        about = field.metadata or {}
        kind = about.get(b"POSTGRESQL:type", b"").decode()
        if kind == "numeric":
            return SqlColumn(field.name, _decimal(int(about.get(b"POSTGRESQL:typmod", b"-1"))), kind)
        if pt.is_nested(field.type):
            return SqlColumn(field.name, pa.string(), kind, "to_json({})::text")
        if kind in {"json", "jsonb"}:
            return SqlColumn(field.name, pa.string(), kind)
        if kind == "oid":
            return SqlColumn(field.name, pa.int64(), kind, "{}::int8")
        plain = not isinstance(field.type, pa.BaseExtensionType) and not pt.is_interval(field.type)
        if plain and kind != "money":
            return SqlColumn(field.name, field.type, kind)
        return SqlColumn(field.name, pa.string(), kind, "{}::text")

    def settled(self, relation: Relation, cursor: SqlColumn, lag: timedelta | None, *, start: int | None) -> Bound:
        """Implements `Database`: by the locks and the starts of the transactions that are open."""
        if lag is None:
            self._refuse_blindness(cursor)
        if not pt.is_integer(cursor.type):
            return self._settled_time(cursor, lag)
        highest = self._highest(relation, cursor)
        if is_news(highest, start):
            self._await_writers(relation, lag)
        return Bound(None if highest is None else highest + 1)

    def has_nulls(self, relation: Relation, column: SqlColumn) -> bool:
        """Implements `Database`: of a table that allows none, the rows are not asked."""
        if relation.name:
            name = ".".join(map(self.quoted, relation.name)).replace("'", "''")
            found = self._rows(
                f"SELECT attnotnull FROM pg_attribute WHERE attrelid = to_regclass('{name}')"
                f" AND attname = '{column.name.replace(chr(39), chr(39) * 2)}'"
            )
            if found == [(True,)]:
                return False
        return super().has_nulls(relation, column)

    def _refuse_blindness(self, cursor: SqlColumn) -> None:
        standby, sees_all, prepared, hidden = self._row(
            "SELECT pg_is_in_recovery(), pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),"
            " EXISTS (SELECT 1 FROM pg_prepared_xacts WHERE database = current_database()),"
            " EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'disabled')"
        )
        if standby:
            raise refuse_unsettled(self, cursor, "a standby does not tell which transactions are open")
        if pt.is_integer(cursor.type):
            return
        if cursor.type != pa.timestamp("us", "UTC"):
            raise refuse_unsettled(self, cursor, f"nobody knows the clock that a {cursor.kind} is of")
        if not sees_all:
            raise refuse_unsettled(
                self, cursor, "the user does not see when transactions of others began (pg_read_all_stats)"
            )
        if hidden:
            raise refuse_unsettled(
                self, cursor, "a session does not tell when its transactions began (track_activities)"
            )
        if prepared:
            raise refuse_unsettled(self, cursor, "nobody knows when the prepared transactions of it began")

    def _settled_time(self, cursor: SqlColumn, lag: timedelta | None) -> Bound:
        now, oldest, pid = self._row(_OLDEST)
        if lag is not None or oldest is None or oldest > now:
            return Bound(settled_before(now, cursor.type, lag or timedelta(0)))
        held = now - oldest > HELD_BACK
        note = f"rows since {oldest:%Y-%m-%d %H:%M:%S} UTC wait for the transaction of process {pid}" if held else ""
        return Bound(settled_before(oldest, cursor.type, timedelta(0)), note)

    def _await_writers(self, relation: Relation, lag: timedelta | None) -> None:
        """Waits for the transactions that hold a lock for writing now: each may have a lower value than the highest.

        With a lag that is declared, no longer than that.
        """
        which = self._which(relation)
        open_ = dict(self._rows(_WRITERS.format(which=which)))
        began, pause = time.monotonic(), _POLL_S[0]
        patience = self._timeout_s if lag is None else lag.total_seconds()
        while open_ and time.monotonic() - began < patience:
            time.sleep(min(pause, max(0.0, patience - (time.monotonic() - began))))
            pause = min(2 * pause, _POLL_S[1])
            still = {virtual for virtual, _ in self._rows(_WRITERS.format(which=which))}
            open_ = {virtual: pid for virtual, pid in open_.items() if virtual in still}
        if open_ and lag is None:
            pids = ", ".join(str(pid) if pid else "a prepared transaction" for pid in sorted(set(open_.values()))[:5])
            reason = f"transactions were open for {patience:g} s that may write rows below the highest value: {pids}"
            cure = "end them, or say how late a row may become visible: source.lag"
            raise SourceUnavailable(self.name, reason, cure=cure)

    def _which(self, relation: Relation) -> str:
        """The locks that count: those of a table, its parts and sequences; of a view or a query those of any table."""
        if relation.name:
            name = ".".join(map(self.quoted, relation.name)).replace("'", "''")
            parts = [str(oid) for (oid,) in self._rows(_PARTS.format(name=f"'{name}'"))]
            if parts:
                return f"relation IN ({', '.join(parts)})"
        return "relation >= 16384"  # FirstNormalObjectId: below it lie the system's own (PostgreSQL, transam.h)


def _decimal(typmod: int) -> pa.DataType | None:
    """The type of a ``numeric``; None where its digits are not declared, or too many."""
    if typmod < 0:
        return None
    precision, scale = (typmod - 4) >> 16 & 0xFFFF, ((typmod - 4) & 0x7FF ^ 1024) - 1024
    digits = max(precision, scale) if scale >= 0 else precision - scale
    return pa.decimal128(digits, max(scale, 0)) if digits <= 38 else None  # noqa: PLR2004  Arrow's


def _written(part: str) -> str:
    return part if "." not in part and '"' not in part and ":" not in part else '"' + part.replace('"', '""') + '"'
