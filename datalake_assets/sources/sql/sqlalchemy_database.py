"""Any database that SQLAlchemy reaches, MySQL and MariaDB among them: rows by its DBAPI, from a cursor on the server.

Tables tell their columns' types; what a query gives is told by the feed, since DBAPIs say too little of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.database_connections import connected_in_time
from datalake_assets.errors import SourceRefused
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

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["SqlAlchemyDatabase"]

#: Schemas of a server's own.
_SYSTEM = frozenset({"information_schema", "mysql", "performance_schema", "sys", "INFORMATION_SCHEMA", "SYS"})
#: The session in UTC, and reading alone.
_SESSION = {
    "mysql": (
        "SET time_zone = '+00:00'",
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET SESSION TRANSACTION READ ONLY",
    ),
    "mariadb": (
        "SET time_zone = '+00:00'",
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET SESSION TRANSACTION READ ONLY",
    ),
}


class SqlAlchemyDatabase:
    """A database by SQLAlchemy; implements `Database`.

    Args:
        name: What it is called, for messages.
        url: SQLAlchemy's, which names dialect and driver.
        timeout_s: Patience while connecting.
    """

    def __init__(self, name: str, *, url: str, timeout_s: float) -> None:
        self.name, self._url, self._timeout_s = name, url, timeout_s
        self.dialect = url.partition(":")[0].partition("+")[0]
        self._open_engine: sa.Engine | None = None

    def quoted(self, name: str) -> str:
        """Implements `Database`."""
        quoted: str = self._engine().dialect.identifier_preparer.quote_identifier(name)
        return quoted

    def tables(self) -> Iterator[SourceObject]:
        """Implements `Database`."""
        import sqlalchemy as sa  # noqa: PLC0415  an optional extra

        with self._translated():
            inspector = sa.inspect(self._engine())
            default = inspector.default_schema_name
            for schema in inspector.get_schema_names():
                if schema in _SYSTEM:
                    continue
                for name in sorted([*inspector.get_table_names(schema), *inspector.get_view_names(schema)]):
                    parts = [name] if schema == default else [schema, name]
                    plain = all(re.fullmatch(r"[^.:\"]+", part) for part in parts)
                    yield SourceObject(".".join(parts if plain else (f'"{part}"' for part in parts)), "table")

    def columns(self, relation: Relation) -> list[SqlColumn]:
        """Implements `Database`."""
        import sqlalchemy as sa  # noqa: PLC0415  an optional extra

        with self._translated():
            if relation.query:
                with self._connection() as connection:
                    result = connection.exec_driver_sql(f"SELECT q.* FROM {source_of(self, relation)} WHERE 1 = 0")
                    return [SqlColumn(name, None, "a column of a query") for name in result.keys()]  # noqa: SIM118  not a mapping
            *schema, table = relation.name
            try:
                found = sa.inspect(self._engine()).get_columns(table, schema[0] if schema else None)
            except sa.exc.NoSuchTableError as error:
                raise SourceRefused(self.name, f"there is no table {'.'.join(relation.name)}") from error
            return [_column(each["name"], each["type"], self.dialect) for each in found]

    def settled(self, relation: Relation, cursor: SqlColumn, lag: timedelta | None, *, start: int | None) -> Bound:
        """Implements `Database`: the declared lag alone."""
        if lag is None:
            raise refuse_unsettled(self, cursor, "this database does not tell which transactions are open")
        if pt.is_integer(cursor.type):
            statement = f"SELECT MAX(q.{self.quoted(cursor.name)}) FROM {source_of(self, relation)}"
            highest = self._value(statement)
            if is_news(None if highest is None else int(highest), start):
                time.sleep(lag.total_seconds())
            return Bound(None if highest is None else int(highest) + 1)
        mine = self.dialect in _SESSION
        now = self._value("SELECT UTC_TIMESTAMP(6)" if mine else "SELECT CURRENT_TIMESTAMP")
        if not isinstance(now, datetime):
            raise refuse_unsettled(self, cursor, "the database's clock is not known")
        return Bound(settled_before(now if now.tzinfo else now.replace(tzinfo=UTC), cursor.type, lag))

    def has_nulls(self, relation: Relation, column: SqlColumn) -> bool:
        """Implements `Database`."""
        where = f"q.{self.quoted(column.name)} IS NULL"
        statement = f"SELECT COUNT(*) FROM {source_of(self, relation)} WHERE {where}"
        return bool(self._value(statement))

    def rows(
        self, relation: Relation, columns: Sequence[SqlColumn], within: ColumnRange | None, *, batch_rows: int
    ) -> Iterator[Sequence[pa.Array | list[Any]]]:
        """Implements `Database`: by a cursor that the server keeps, so that no more than some rows are here."""
        with self._translated(), self._connection() as connection:
            streaming = connection.execution_options(stream_results=True, yield_per=batch_rows)
            result = streaming.exec_driver_sql(selected(self, relation, columns, within))
            for rows in result.partitions():
                yield [list(column) for column in zip(*rows, strict=True)]

    def close(self) -> None:
        """Implements `Database`."""
        if self._open_engine is not None:
            self._open_engine.dispose()
            self._open_engine = None

    def _engine(self) -> sa.Engine:
        if self._open_engine is None:
            try:
                import sqlalchemy as sa  # noqa: PLC0415  an optional extra

                engine = sa.create_engine(self._url, poolclass=sa.pool.NullPool)
                in_time = connected_in_time(engine.dialect.driver, self._timeout_s, self._timeout_s)
                sa.event.listen(engine, "do_connect", in_time)
                self._open_engine = engine
            except ImportError as error:
                raise absent_driver(self.name, "mysql" if self.dialect in _SESSION else "sqlalchemy", error) from error
            except (ValueError, sa.exc.SQLAlchemyError) as error:  # a URL that is none, and may have a password
                raise translated(self.name, error, transient=False, url=self._url) from None
        return self._open_engine

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        with self._engine().connect().execution_options(no_parameters=True) as connection:  # a % is a % then
            for statement in _SESSION.get(self.dialect, ()):
                connection.exec_driver_sql(statement)
            connection.commit()  # from the next statement on it is another transaction, of that kind
            yield connection

    def _value(self, statement: str) -> Any:
        with self._translated(), self._connection() as connection:
            return connection.exec_driver_sql(statement).scalar()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import sqlalchemy as sa  # noqa: PLC0415  an optional extra

        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            passing = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError)
            raise translated(self.name, error, transient=passing, url=self._url) from error


def _column(name: str, type_: Any, dialect: str) -> SqlColumn:
    """The column of a table, in a type that holds each of its values as it is."""
    import sqlalchemy as sa  # noqa: PLC0415  an optional extra

    kind = str(type_).upper() if not isinstance(type_, sa.types.NullType) else "of a type that SQLAlchemy does not know"
    own = kind.partition("(")[0]
    is_mysql = dialect in _SESSION
    if is_mysql and own == "JSON":
        return SqlColumn(name, pa.string(), kind)
    if is_mysql and own == "TIME":  # more than a day, too
        return SqlColumn(name, pa.string(), kind, "CAST({} AS CHAR)")
    if is_mysql and own == "FLOAT":  # its text has six digits
        return SqlColumn(name, pa.float64(), kind, "CAST({} AS DOUBLE)")
    if is_mysql and own == "BIGINT" and getattr(type_, "unsigned", False):
        return SqlColumn(name, pa.decimal128(20, 0), kind)
    if is_mysql and own == "TIMESTAMP":  # a moment, unlike DATETIME; the session is in UTC
        return SqlColumn(name, pa.timestamp("us", "UTC"), kind)
    found: pa.DataType | None = None
    for base, make in _TYPES:
        if isinstance(type_, getattr(sa.types, base)):
            found = make(type_)
            break
    return SqlColumn(name, pa.binary() if is_mysql and own == "BIT" else found, kind)


def _decimal(type_: Any) -> pa.DataType | None:
    if type_.precision is None or type_.precision > 38:  # noqa: PLR2004  Arrow's
        return None
    return pa.decimal128(type_.precision, type_.scale or 0)


_TYPES = (
    ("Boolean", lambda _: pa.bool_()),
    ("Integer", lambda _: pa.int64()),
    ("Float", lambda _: pa.float64()),
    ("Numeric", _decimal),
    ("DateTime", lambda type_: pa.timestamp("us", "UTC") if type_.timezone else pa.timestamp("us")),
    ("Date", lambda _: pa.date32()),
    ("Time", lambda _: pa.time64("us")),
    ("JSON", lambda _: None),
    ("Uuid", lambda _: None),
    ("String", lambda _: pa.string()),
    ("_Binary", lambda _: pa.binary()),
)
