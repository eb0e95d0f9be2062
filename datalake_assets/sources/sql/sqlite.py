"""SQLite, by the standard library: one writer at a time, so that what a transaction sees has nothing missing below it.

A column has the type that its table declares; SQLite itself keeps any value in any column, so each is looked at.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.errors import SourceRefused, SourceUnavailable
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.sql.databases import (
    Bound,
    ColumnRange,
    Relation,
    SqlColumn,
    is_news,
    refuse_unsettled,
    selected,
    settled_before,
    source_of,
)

__all__ = ["Sqlite", "declared_type"]

#: How texts begin that are times, or dates.
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_DECIMAL = re.compile(r"(?:DECIMAL|NUMERIC|DEC)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)")
#: By what a declared type begins with, or has in it (SQLite manual, "Determination of Column Affinity"; times first).
_KINDS: tuple[tuple[str, pa.DataType], ...] = (
    (r"(TIMESTAMPTZ|TIMESTAMP WITH TIME ZONE)$", pa.timestamp("us", "UTC")),
    (r"(DATETIME|TIMESTAMP)", pa.timestamp("us")),
    (r"DATE$", pa.date32()),
    (r"BOOL", pa.bool_()),
    (r".*INT", pa.int64()),
    (r".*(CHAR|CLOB|TEXT)|(JSON|UUID|ENUM)", pa.string()),
    (r".*BLOB|.*BINARY", pa.binary()),
    (r".*(REAL|FLOA|DOUB)", pa.float64()),
)


def declared_type(kind: str) -> pa.DataType | None:
    """The type of a column that is declared so; None where that says nothing exact."""
    text = " ".join(kind.upper().split())
    digits = _DECIMAL.match(text)
    if digits:
        precision, scale = int(digits[1]), int(digits[2] or 0)
        return pa.decimal128(precision, scale) if scale <= precision <= 38 else None  # noqa: PLR2004  Arrow's
    return next((type_ for pattern, type_ in _KINDS if re.match(pattern, text)), None)


class Sqlite:
    """A SQLite file, opened to read; implements `Database`.

    Args:
        name: What it is called, for messages.
        url: ``sqlite:////absolute/path``.
        timeout_s: Patience while others write.
    """

    dialect = "sqlite"

    def __init__(self, name: str, *, url: str, timeout_s: float) -> None:
        self.name, self._timeout_s = name, timeout_s
        self._path = Path(unquote(urlsplit(url).path.removeprefix("/")))
        self._connection: sqlite3.Connection | None = None
        self._views = count()

    def quoted(self, name: str) -> str:
        """Implements `Database`."""
        return '"' + name.replace('"', '""') + '"'

    def tables(self) -> Iterator[SourceObject]:
        """Implements `Database`."""
        listed = (
            "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
        for (name,) in self._rows(f"{listed} ORDER BY name"):
            yield SourceObject(name if re.fullmatch(r"[^.:\"]+", name) else self.quoted(name), "table")

    def columns(self, relation: Relation) -> list[SqlColumn]:
        """Implements `Database`: those of a query by a view that this connection alone has."""
        view = f"temp.datalake_{next(self._views)}"
        with self._translated():
            connection = self._connected()
            connection.execute(
                f"CREATE TEMP VIEW {view.removeprefix('temp.')} AS SELECT q.* FROM {source_of(self, relation)}"
            )
            try:
                described = connection.execute(f"PRAGMA temp.table_info({view.removeprefix('temp.')})").fetchall()
            finally:
                connection.execute(f"DROP VIEW {view}")
        return [SqlColumn(name, declared_type(kind), kind or "of no declared type") for _, name, kind, *_ in described]

    def settled(self, relation: Relation, cursor: SqlColumn, lag: timedelta | None, *, start: int | None) -> Bound:
        """Implements `Database`: integers are settled as they are seen, or a declared lag later; times by that alone.

        One writes at a time, so that no lower value can be hidden; the highest may come once more with another row.
        """
        if pt.is_integer(cursor.type):
            found = self._rows(f"SELECT MAX(q.{self.quoted(cursor.name)}) FROM {source_of(self, relation)}")
            highest = found[0][0]
            if highest is not None and not isinstance(highest, int):
                raise SourceRefused(self.name, f"cursor {cursor.name!r} has values that are no integers")
            if lag is not None and is_news(highest, start):
                time.sleep(lag.total_seconds())
            return Bound(None if highest is None else highest + 1)
        if lag is None:
            raise refuse_unsettled(self, cursor, "nobody knows when a time was written down that a row has")
        return Bound(settled_before(datetime.now(UTC), cursor.type, lag))

    def has_nulls(self, relation: Relation, column: SqlColumn) -> bool:
        """Implements `Database`: of times also what is no text of a day, such as a number of seconds."""
        value = f"q.{self.quoted(column.name)}"
        where = f"{value} IS NULL"
        if pt.is_temporal(column.type):
            where += f" OR typeof({value}) <> 'text' OR {value} NOT GLOB '{_DAY}*'"
        return bool(self._rows(f"SELECT 1 FROM {source_of(self, relation)} WHERE {where} LIMIT 1"))

    def rows(
        self, relation: Relation, columns: Sequence[SqlColumn], within: ColumnRange | None, *, batch_rows: int
    ) -> Iterator[Sequence[pa.Array | list[Any]]]:
        """Implements `Database`."""
        with self._translated(), closing(self._connected().cursor()) as cursor:
            cursor.execute(selected(self, relation, columns, within))
            while rows := cursor.fetchmany(batch_rows):
                yield [list(column) for column in zip(*rows, strict=True)]

    def close(self) -> None:
        """Implements `Database`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            uri = f"file:{quote(str(self._path))}?mode=ro"
            self._connection = sqlite3.connect(uri, uri=True, timeout=self._timeout_s, isolation_level=None)
            self._connection.text_factory = _text  # one that is none in UTF-8 is a bad value, and no end of the read
        return self._connection

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self._translated():
            return self._connected().execute(statement).fetchall()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            busy = getattr(error, "sqlite_errorname", "") or ""
            kind = (
                SourceUnavailable
                if busy.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR"))
                else SourceRefused
            )
            raise kind(self.name, " ".join(str(error).split())) from error


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
