"""Databases as batches: which rows are wanted, each column in its exact type, each row by its cursor's number.

A stream by a cursor column carries positions of the kind ``offsets``. The number of a row is its cursor value: an
integer, the days or the microseconds since 1970. Rows may share one; a read ends where no row can come any more
(`Database.settled`), so that all rows of a value come in one read. Values below zero are a source partition of their
own, since offsets begin at zero.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt
import stamina

from datalake_assets.core.arrow_arrays import empty_array
from datalake_assets.core.batches import Batches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.core.row_texts import row_to_text, values_of
from datalake_assets.core.schema import lake_name, lake_names, source_metadata
from datalake_assets.errors import (
    ConfigError,
    InvalidFeed,
    SourceRecreated,
    SourceRefused,
    SourceUnavailable,
)
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.files.text_values import named_type
from datalake_assets.sources.sql.cursor_numbers import Numbering, number_of, numbers_of, unit_of, value_of
from datalake_assets.sources.sql.databases import ColumnRange, Database, SqlColumn, exact, relation_of
from datalake_assets.sources.sql.postgresql import AdbcDatabase, PostgreSql
from datalake_assets.sources.sql.sql_declaration import DEFAULT, SqlSettings, databases, declared_sql
from datalake_assets.sources.sql.sqlalchemy_database import SqlAlchemyDatabase
from datalake_assets.sources.sql.sqlite import Sqlite

__all__ = ["SqlBatches", "SqlDatabases", "connect", "open_database"]

logger = logging.getLogger(__name__)

#: Source partitions: of cursor values from zero on, and of those below, which are counted from the lowest int64.
AT_LEAST_ZERO, BELOW_ZERO = 0, 1
_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1
ATTEMPTS = 3


def connect(settings: Settings) -> SqlDatabases:
    """The databases of an installation; asks none of them yet.

    Raises:
        ConfigError: The settings cannot work.
    """
    own = settings.of(SqlSettings)
    return SqlDatabases(databases(own), timeout_s=own.sql_timeout_s)


def open_database(name: str, url: str, *, timeout_s: float) -> Database:
    """A database by its URL; connects at the first question."""
    said = f"database {name!r}"
    scheme = url.partition(":")[0]
    if scheme in {"postgresql", "postgres"}:
        return PostgreSql(said, url=url, timeout_s=timeout_s)
    if scheme == "sqlite":
        return Sqlite(said, url=url, timeout_s=timeout_s)
    if scheme.startswith("adbc+"):
        driver = scheme.removeprefix("adbc+")
        uri = url.partition("://")[2] if driver in {"sqlite", "duckdb"} else url.removeprefix("adbc+")
        return AdbcDatabase(said, driver=f"adbc_driver_{driver}", uri=uri, url=url, timeout_s=timeout_s)
    return SqlAlchemyDatabase(said, url=url, timeout_s=timeout_s)


class SqlDatabases:
    """The databases that feeds are read from; implements `SourceSystem`. One thread at a time.

    Args:
        urls: By the names that feeds give.
        timeout_s: Patience.
    """

    def __init__(self, urls: Mapping[str, str], *, timeout_s: float) -> None:
        self._urls, self._timeout_s = urls, timeout_s
        self._open: dict[str, Database] = {}

    def database(self, name: str) -> Database:
        """One of them.

        Raises:
            ConfigError: The settings do not have it.
        """
        if name not in self._urls:
            where = (
                "DATALAKE_SQL_URL"
                if name == DEFAULT
                else f"DATALAKE_SQL_DATABASES, like {{{name!r}: 'postgresql://…'}}"
            )
            raise ConfigError(f"no database {name!r} is set; set {where}")
        if name not in self._open:
            self._open[name] = open_database(name, self._urls[name], timeout_s=self._timeout_s)
        return self._open[name]

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        """Implements `SourceSystem`."""
        return SqlBatches(feed, request, self.database(declared_sql(feed).database))

    def discover(self) -> Iterator[SourceObject]:
        """Implements `SourceSystem`: the tables and views of all databases."""
        if not self._urls:
            self.database(DEFAULT)
        for name in sorted(self._urls):
            for each in self.database(name).tables():
                yield each if name == DEFAULT else SourceObject(f"{name}:{each.name}", each.kind, each.note)

    def check(self, feed: Feed) -> None:
        """Implements `SourceSystem`: asks for the columns, and up to where rows are settled."""
        SqlBatches(feed, ReadRequest(), self.database(declared_sql(feed).database)).check()

    def count(self, feed: Feed) -> None:
        """Implements `SourceSystem`: databases count rows by reading them."""

    def close(self) -> None:
        """Implements `SourceSystem`."""
        for each in self._open.values():
            each.close()
        self._open.clear()


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a read: as the database has them, and as fields of the lake, in one order."""

    asked: tuple[SqlColumn, ...]
    schema: pa.Schema

    def of_lake(self, name: str) -> SqlColumn | None:
        """The database's column by the lake's name."""
        index = self.schema.get_field_index(name)
        return self.asked[index] if index >= 0 else None


class SqlBatches:
    """One read of a table or a query; implements `Batches`.

    Args:
        feed: The feed.
        request: What to read.
        database: Where.
    """

    def __init__(self, feed: Feed, request: ReadRequest, database: Database) -> None:
        self._feed, self._source, self._database = feed, declared_sql(feed), database
        self.request = request
        self.recreated, self.unfinished = False, ""
        self._relation = relation_of(self._source.object, self._source.query)
        self._known: _Columns | None = None

    def acknowledge(self) -> None:
        """Implements `Batches`: a database keeps its rows."""

    @property
    def time_column(self) -> str | None:
        """Implements `Batches`.

        Raises:
            InvalidFeed: A stream has none.
        """
        if self._feed.kind is FeedKind.TABLE:
            return None
        if self._feed.row_time is None:
            raise InvalidFeed(self._feed.name, "time_column: name the column that partitions the rows, or a cursor")
        return self._feed.row_time

    @property
    def schema(self) -> pa.Schema:
        """Implements `Batches`."""
        return self._columns.schema

    def check(self) -> None:
        """Asks whether it could be read; raises what reading would raise."""
        columns = self._columns
        if self._feed.kind is FeedKind.TABLE:
            return
        cursor = self._cursor(columns)
        if cursor is not None:
            self._database.settled(self._relation, cursor, self._source.lag, start=_HIGHEST)

    # columns

    @property
    def _columns(self) -> _Columns:
        if self._known is None:
            found = self._asked(lambda: self._database.columns(self._relation))
            self._known = self._in_lake(found)
        return self._known

    def _asked(self, question: Callable[[], Any]) -> Any:
        """An answer; asked again where what failed may pass, for nothing was read yet."""
        for attempt in stamina.retry_context(on=SourceUnavailable, attempts=ATTEMPTS, timeout=None, wait_initial=0.2):
            with attempt:
                return question()
        raise AssertionError

    def _in_lake(self, found: Sequence[SqlColumn]) -> _Columns:
        names = lake_names([each.name for each in found], feed=self._feed.name, rename=self._source.rename)
        if strangers := sorted(set(self._source.columns) - set(names)):
            raise InvalidFeed(self._feed.name, f"source.columns: there is no column {strangers[0]!r}")
        asked, fields = [], []
        for column, name in zip(found, names, strict=True):
            kind = column.type
            if name in self._source.columns:
                kind = named_type(self._source.columns[name])
                column = SqlColumn(column.name, kind, column.kind, column.text)  # noqa: PLW2901  as it is declared
            if kind is None:
                cure = f"say its type (source.columns, --column-type {name}=…), or cast it in a query"
                reason = f"column {column.name!r} is {column.kind}, and no type of the lake is exact for it"
                raise SourceRefused(self._where, reason, cure=cure)
            asked.append(column)
            fields.append(pa.field(name, kind, metadata=source_metadata(column.name)))
        if not fields:
            raise SourceRefused(self._where, "it has no columns")
        columns = _Columns(tuple(asked), pa.schema(fields))
        self._check_time(columns)
        return columns

    def _check_time(self, columns: _Columns) -> None:
        name = self.time_column
        if name is None:
            return
        column = columns.of_lake(name)
        if column is None:
            raise InvalidFeed(self._feed.name, f"time_column: there is no column {name!r}")
        if not pt.is_timestamp(column.type):
            reason = f"time_column: {name!r} is {column.type}, no time: name another, or cast it in a query"
            raise InvalidFeed(self._feed.name, reason)

    @property
    def _where(self) -> str:
        return f"feed {self._feed.name!r}, {self._source.where}"

    def _cursor(self, columns: _Columns) -> SqlColumn | None:
        """The cursor column of a stream that has one; its rows can be numbered."""
        name = self._source.cursor
        if name is None or self._feed.kind is FeedKind.TABLE:
            return None
        alike = [each for each in columns.asked if name in {each.name, lake_name(each.name)}]
        column = next((each for each in alike if each.name == name), alike[0] if alike else None)
        if column is None:
            raise InvalidFeed(self._feed.name, f"source.cursor: there is no column {name!r}")
        kind: Any = column.type
        if pt.is_decimal(kind) and kind.scale == 0:  # the integers of Oracle, and those of MySQL without a sign
            return SqlColumn(column.name, pa.int64(), column.kind, column.text)
        if not (pt.is_integer(kind) or kind == pa.date32() or (pt.is_timestamp(kind) and kind.unit == "us")):
            reason = f"source.cursor: {name!r} is {column.kind}; only integers, dates and times can be read on from"
            raise InvalidFeed(self._feed.name, reason)
        return column

    # rows

    def __iter__(self) -> Iterator[SourceBatch]:
        """Implements `Batches`."""
        self.recreated, self.unfinished = False, ""
        self._known = None  # each iteration asks anew
        columns = self._columns
        cursor = self._cursor(columns)
        if cursor is None:
            yield from self._batches(columns, self._window(columns), numbered=False)
            return
        relation = ".".join(map(self._database.quoted, self._relation.name))
        numbering = Numbering(self._source.database, relation, cursor.name, unit_of(cursor.type))
        within = self._unread(cursor, numbering)
        known = numbering.to_text(before="" if self.recreated else self.request.source_id)
        if known != self.request.source_id:  # though no row is new
            yield replace(_nothing(columns), source_id=known)
        if within is not None:
            for batch in self._batches(columns, within, numbered=True):
                yield replace(batch, source_id=known)

    def _window(self, columns: _Columns) -> ColumnRange | None:
        window, name = self.request.window, self.time_column
        column = columns.of_lake(name) if name is not None else None
        if window is None or column is None or column.type is None:
            return None
        self.unfinished = self._without_value(column)
        low, high = window.start.astimezone(UTC), window.end.astimezone(UTC)
        if column.type.tz is None:
            return ColumnRange(column.name, low.replace(tzinfo=None), high.replace(tzinfo=None))
        return ColumnRange(column.name, low, high)

    def _refuse_other(self, numbering: Numbering) -> bool:
        """Whether the numbers are others than those of what was landed, which a person takes for granted.

        Raises:
            SourceRecreated: Nobody does.
        """
        before = Numbering.of(self.request.source_id)
        if not self.request.source_id or (before is not None and before.goes_on_as(numbering)):
            return False
        if not self.request.new_epoch:
            was = "of another system" if before is None else before.told
            reason = f"what was landed is {was}, and it reads {numbering.told}: which rows are new nobody knows"
            cure = "let it read what it read, and add a feed for the other; --new-epoch lands all rows of the other"
            raise SourceRecreated(self._where, reason, cure=cure)
        return True

    def _unread(self, cursor: SqlColumn, numbering: Numbering) -> ColumnRange | None:
        """The rows that are not landed and settled; None if there are none."""
        self.recreated = self._refuse_other(numbering)
        start = None if self.recreated else self._start()
        bound = self._database.settled(self._relation, cursor, self._source.lag, start=start)
        notes = [each for each in (bound.note, self._without_value(cursor)) if each]
        high = None if bound.high is None else number_of(bound.high)
        if start is not None and pt.is_integer(cursor.type) and high is not None and high < start:
            if self.request.new_epoch:
                self.recreated, start = True, None
            else:
                notes.append(
                    f"its highest {cursor.name} is {high - 1}, and {start - 1} was landed: the last rows were deleted,"
                    " or it was created anew, which --new-epoch takes for granted"
                )
        elif start is not None and high is not None and self._is_behind(high, start, cursor):
            newest = f"the newest {cursor.name} that was landed, {value_of(start - 1, cursor.type)}"
            notes.append(f"its clock is behind {newest}: rows that are written until it is there are not read")
        self.unfinished = "; ".join(notes)
        if high is None or (start is not None and high <= start):
            return None
        return ColumnRange(cursor.name, None if start is None else value_of(start, cursor.type), bound.high)

    def _is_behind(self, high: int, start: int, cursor: SqlColumn) -> bool:
        """Whether a database's clock was put back: all that was landed lay before it, whatever the lag was then."""
        if pt.is_integer(cursor.type):
            return False
        unit = timedelta(days=1) if pt.is_date(cursor.type) else timedelta(microseconds=1)
        lag = -(-(self._source.lag or timedelta()) // unit)  # rounded up
        return high + lag < start

    def _without_value(self, column: SqlColumn) -> str:
        """What is to be said of rows that no range has; empty if there are none."""
        if not self._asked(lambda: self._database.has_nulls(self._relation, column)):
            return ""
        return f"rows that have no {column.kind} in {column.name} were not read: nobody knows where they belong"

    def _start(self) -> int | None:
        """The first cursor value that is not landed; None if none is."""
        starts = self.request.start_offsets or {}
        if AT_LEAST_ZERO in starts:
            return starts[AT_LEAST_ZERO]
        return starts[BELOW_ZERO] + _LOWEST if BELOW_ZERO in starts else None

    def _batches(self, columns: _Columns, within: ColumnRange | None, *, numbered: bool) -> Iterator[SourceBatch]:
        by = None if within is None else [each.name for each in columns.asked].index(within.column)
        last = _LOWEST
        rows = self._database.rows(self._relation, columns.asked, within, batch_rows=self._source.batch_rows)
        for values in rows:
            some = self._exact_rows(columns, values)
            numbers = None if by is None or within is None else some.numbers_in(by, within)
            batch = some.batch(numbers if numbered else None)
            if numbered and numbers is not None and batch.rows.num_rows:
                good = np.delete(numbers, list(some.bad))
                if int(good[0]) < last or (np.diff(good) < 0).any():
                    reason = f"rows do not come in the order of {within.column if within else ''!r}"
                    raise SourceRefused(self._where, reason, cure="its values are written in different forms")
                last = int(good[-1])
            if batch.rows.num_rows or batch.rejected:
                yield batch

    def _exact_rows(self, columns: _Columns, values: Sequence[pa.Array | list[Any]]) -> _Rows:
        found = [exact(each, column.type) for each, column in zip(values, columns.asked, strict=True)]
        bad: dict[int, str] = {}
        for field, each in zip(columns.schema, found, strict=True):
            for row, reason in each.bad.items():
                bad.setdefault(row, f"{field.name}: {reason}")
        return _Rows(pa.RecordBatch.from_arrays([each.values for each in found], schema=columns.schema), values, bad)


def _nothing(columns: _Columns) -> SourceBatch:
    """No rows, with the numbers of none."""
    rows = pa.RecordBatch.from_arrays([empty_array(each.type) for each in columns.schema], schema=columns.schema)
    return SourceBatch(rows, pa.array([], pa.int32()), pa.array([], pa.int64()))


@dataclass(slots=True)
class _Rows:
    """Some rows as they came.

    Attributes:
        rows: In the lake's types.
        sent: As the database sent them, a column each.
        bad: Why a row has a value that fits no column, by its number.
    """

    rows: pa.RecordBatch
    sent: Sequence[pa.Array | list[Any]]
    bad: dict[int, str]

    def numbers_in(self, by: int, within: ColumnRange) -> npt.NDArray[np.int64]:
        """Leaves out the rows that lie outside of a range of a column; returns the numbers of the others' values."""
        numbers = numbers_of(self.rows.column(by))
        inside = np.ones(len(numbers), dtype=np.bool_)
        if within.low is not None:
            inside &= numbers >= number_of(within.low)
        if within.high is not None:
            inside &= numbers < number_of(within.high)
        inside[[row for row in self.bad if self.rows.column(by)[row].as_py() is None]] = (
            True  # it is the value that is bad
        )
        if inside.all():
            return numbers
        kept = np.flatnonzero(inside)
        place = {old: new for new, old in enumerate(kept.tolist())}
        self.bad = {place[row]: reason for row, reason in self.bad.items() if row in place}
        self.sent = [
            each.take(pa.array(kept)) if isinstance(each, pa.Array) else [each[row] for row in kept.tolist()]
            for each in self.sent
        ]
        self.rows = self.rows.take(pa.array(kept))
        return numbers[kept]

    def batch(self, numbers: npt.NDArray[np.int64] | None) -> SourceBatch:
        """The good rows, with their numbers where they have some; the bad ones are rejected."""
        rejected = tuple(self._rejected(row, reason, numbers) for row, reason in self.bad.items())
        keep = np.ones(self.rows.num_rows, dtype=np.bool_)
        keep[list(self.bad)] = False
        rows = self.rows.filter(pa.array(keep)) if self.bad else self.rows
        if numbers is None:
            return SourceBatch(rows, rejected=rejected)
        kept = numbers[keep]
        partitions, offsets = (kept < 0).astype(np.int32), np.where(kept < 0, kept - _LOWEST, kept)
        return SourceBatch(rows, pa.array(partitions), pa.array(offsets), rejected)

    def _rejected(self, row: int, reason: str, numbers: npt.NDArray[np.int64] | None) -> RejectedRow:
        """A row as it came, known by its number and its content."""
        raw = row_to_text(
            {name: _plain(each, row) for name, each in zip(self.rows.schema.names, self.sent, strict=True)}
        )
        digest = hashlib.blake2b(raw, digest_size=12).hexdigest()
        if numbers is None:
            return RejectedRow(raw, reason, f"row:{digest}")
        number = int(numbers[row])
        return RejectedRow(raw, reason, f"{int(number < 0)}:{number - _LOWEST if number < 0 else number}#{digest}")


def _plain(column: pa.Array | list[Any], row: int) -> Any:
    """A value as it came, for a person."""
    if isinstance(column, list):
        return column[row]
    plain = column.storage if isinstance(column, pa.ExtensionArray) else column
    return values_of(plain.slice(row, 1))[0]
