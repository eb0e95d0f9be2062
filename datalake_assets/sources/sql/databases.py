"""What every kind of database does alike: names are quoted, ranges of a cursor column are written, values become exact.

A database says which columns a relation has, up to where its rows are settled, and gives the rows of a range in Arrow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Protocol
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from datalake_assets.errors import ConfigError, SourceRefused, SourceUnavailable
from datalake_assets.sources.base import SourceObject

__all__ = [
    "Bound",
    "ColumnRange",
    "Database",
    "Relation",
    "SqlColumn",
    "absent_driver",
    "exact",
    "is_news",
    "literal",
    "refuse_unsettled",
    "relation_of",
    "selected",
    "settled_before",
    "translated",
]

#: Values of times may have been rounded or cut to whole seconds, so that the last second of them may still grow.
COARSEST = timedelta(seconds=1)
_PART = re.compile(r'"((?:[^"]|"")+)"|([^."]+)')
#: PostgreSQL's calendar begins in 4713 BC; below it lies what ADBC makes of its infinities. Microseconds and days since
#: 1970 (PostgreSQL manual, date/time types).
_FIRST_MICROSECOND, _FIRST_DAY = -210_866_803_200_000_000, -2_440_588
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Relation:
    """What is read: a table or view by the parts of its name, or a query.

    Attributes:
        name: The parts, the schema's first; empty for a query.
        query: A SELECT; empty for a table.
    """

    name: tuple[str, ...] = ()
    query: str = ""


@dataclass(frozen=True, slots=True)
class SqlColumn:
    """A column of a relation.

    Attributes:
        name: As the database has it.
        type: Its type in the lake; None where no exact one is known.
        kind: What the database calls its type.
        text: How its value is asked for, with ``{}`` for the column; empty: as it is.
    """

    name: str
    type: pa.DataType | None
    kind: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class ColumnRange:
    """Rows by a column, in its order: from ``low`` on, and before ``high``; None for no bound.

    Attributes:
        column: Its name in the database.
        low: The first value.
        high: The first value that is not wanted.
    """

    column: str
    low: int | datetime | date | None = None
    high: int | datetime | date | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """Up to where no row can be missing.

    Attributes:
        high: The first cursor value that is not settled; None if there is no row.
        note: What holds it back; empty if nothing does.
    """

    high: int | datetime | date | None
    note: str = ""


class Database(Protocol):
    """A connection to a database; one thread at a time."""

    #: What is asked, for messages.
    name: str
    #: The functions, operators and literals that it has.
    dialect: str

    def tables(self) -> Iterator[SourceObject]:
        """Its tables and views, but for the system's own."""

    def columns(self, relation: Relation) -> list[SqlColumn]:
        """The columns, in their order."""

    def settled(self, relation: Relation, cursor: SqlColumn, lag: timedelta | None, *, start: int | None) -> Bound:
        """Up to where rows by a cursor column are settled, by the database's own proof or by a lag that is declared.

        Args:
            relation: What is read.
            cursor: Its column: integers, dates or times.
            lag: How late a row may become visible; None: nobody has said.
            start: Of integers: the first value that is not landed yet; None if none is.

        Raises:
            SourceRefused: It cannot prove it, and no lag is declared.
        """

    def rows(
        self, relation: Relation, columns: Sequence[SqlColumn], within: ColumnRange | None, *, batch_rows: int
    ) -> Iterator[Sequence[pa.Array | list[Any]]]:
        """The rows of one moment, some at once, as a column each, in Arrow or as Python's values.

        Others than those of the range may come along, in its order.
        """

    def has_nulls(self, relation: Relation, column: SqlColumn) -> bool:
        """Whether a column has no value in some row, or one that lies in no range of the column's type."""

    def quoted(self, name: str) -> str:
        """A name as it stands in a statement."""

    def close(self) -> None:
        """Closes the connection; idempotent."""


def relation_of(table: str, query: str) -> Relation:
    """What a feed names.

    Raises:
        ConfigError: The name of a table is not written as one.
    """
    if query:
        return Relation(query=query)
    parts, at = [], 0
    while match := _PART.match(table, at):
        parts.append(match[1].replace('""', '"') if match[1] else match[2])
        at = match.end() + 1
        if at > len(table) or table[match.end()] != ".":
            break
    if not parts or match is None or match.end() != len(table):
        raise ConfigError(f'{table!r} is no name of a table: write it like orders, public.orders or public."odd.name"')
    return Relation(tuple(parts))


def selected(
    database: Database, relation: Relation, columns: Sequence[SqlColumn], within: ColumnRange | None = None
) -> str:
    """The SELECT of some columns, in their order, of the rows of a range.

    Args:
        database: How names and values are written.
        relation: What is read.
        columns: What of it.
        within: Which rows; None: all.
    """
    named = [f"q.{database.quoted(each.name)}" for each in columns]
    wanted = ", ".join(
        f"{each.text.replace('{}', name)} AS {database.quoted(each.name)}" if each.text else name
        for each, name in zip(columns, named, strict=True)
    )
    statement = f"SELECT {wanted} FROM {source_of(database, relation)}"
    if within is None:
        return statement
    column = f"q.{database.quoted(within.column)}"
    low, high = within.low, within.high
    if database.dialect == "sqlite":  # times are texts, which begin with the day in each of their forms
        low = _day(low, 0) if isinstance(low, datetime) else low
        high = _day(high, 1) if isinstance(high, datetime) else high
    bounds = [
        f"{column} {sign} {literal(value, database.dialect)}"
        for sign, value in ((">=", low), ("<", high))
        if value is not None
    ]
    where = " AND ".join(bounds) or f"{column} IS NOT NULL"
    return f"{statement} WHERE {where} ORDER BY {column}"


def _day(moment: datetime, later: int) -> date:
    """A day before, or some days later, than all days with which texts of a moment begin.

    Texts with a zone begin with the day there, which may be the one before, or after, that of UTC.
    """
    elsewhere = moment.tzinfo is not None
    days = moment.toordinal() + (later + elsewhere if later else -elsewhere)
    return date.fromordinal(min(max(days, 1), date.max.toordinal()))


def source_of(database: Database, relation: Relation) -> str:
    """What stands behind FROM, known as ``q``."""
    if relation.query:
        return f"({relation.query}\n) q"
    return f"{'.'.join(map(database.quoted, relation.name))} q"


def literal(value: int | datetime | date, dialect: str) -> str:
    """A cursor's value in a statement; aware times are UTC's."""
    if isinstance(value, datetime):
        text = value.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
        if dialect == "postgresql" and value.tzinfo is not None:
            return f"TIMESTAMPTZ '{text}+00'"
        return f"CAST('{text}' AS DATETIME2)" if dialect == "mssql" else f"TIMESTAMP '{text}'"
    if isinstance(value, date):
        return f"'{value.isoformat()}'" if dialect in {"sqlite", "mssql"} else f"DATE '{value.isoformat()}'"
    return str(int(value))


def settled_before(now: datetime, kind: pa.DataType, lag: timedelta) -> datetime | date:
    """The first value of a cursor of times that may still come, if rows become visible within ``lag``.

    Args:
        now: The database's clock, aware.
        kind: The cursor's type.
        lag: How late they may be.
    """
    moment = now.astimezone(UTC) - lag - COARSEST
    if pt.is_date(kind):
        return moment.date()
    return moment if kind.tz else moment.replace(tzinfo=None)


def is_news(highest: int | None, start: int | None) -> bool:
    """Whether there is a row beyond those that are landed, for which it is worth to wait."""
    return highest is not None and (start is None or highest >= start)


def refuse_unsettled(database: Database, cursor: SqlColumn, why: str) -> SourceRefused:
    """The error for a cursor whose rows the database cannot prove to be all there."""
    cure = "say in the feed how late a row may become visible at the most: source.lag (--lag)"
    return SourceRefused(database.name, f"cursor {cursor.name!r}: {why}", cure=cure)


def absent_driver(name: str, extra: str, error: ImportError) -> ConfigError:
    """The error for a database whose driver is not installed."""
    return ConfigError(f"{name}: its driver is not installed ({error.name}); pip install 'datalake-assets[{extra}]'")


def translated(database: str, error: Exception, *, transient: bool, url: str = "") -> SourceRefused | SourceUnavailable:
    """A driver's error as ours, on one line, without the statement and without what the URL says of users."""
    text = str(error).split("Query was:")[0].split("[SQL:")[0]
    parts = {each for each in re.split(r"[/@:?&=]", url) if len(each) > 2}  # noqa: PLR2004  shorter ones are words
    for part in sorted(parts | {unquote(each) for each in parts}, key=len, reverse=True):  # drivers decode them
        if part.lower() not in {"postgresql", "sqlite", "mysql", "pymysql", "localhost", "127.0.0.1"}:
            text = text.replace(part, "…")
    kind = SourceUnavailable if transient else SourceRefused
    return kind(database, " ".join(text.split())[:500] or type(error).__name__)


# values


@dataclass(frozen=True, slots=True)
class Exact:
    """A column of values in its type, and the rows whose value is none of it.

    Attributes:
        values: Null where a value does not fit.
        bad: Why, by row.
    """

    values: pa.Array
    bad: Mapping[int, str] = field(default_factory=dict)


def exact(values: pa.Array | list[Any], kind: pa.DataType) -> Exact:
    """Values in a type, none of them changed on the way; those that it cannot hold are named.

    Args:
        values: Of one column, in Arrow or as Python has them.
        kind: The type.
    """
    try:
        found = Exact(_typed(values, kind))
    except (pa.ArrowException, ValueError, TypeError, OverflowError, ArithmeticError):
        found = _one_by_one(values, kind)
    return _within_calendar(found)


def _typed(values: pa.Array | list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(values, list):
        return _of_python(values, kind)
    plain = values.storage if isinstance(values, pa.ExtensionArray) else values
    return plain if plain.type == kind else _cast(plain, kind)


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values of one type as those of another, where Arrow itself would round them or cut something off."""
    if pt.is_floating(values.type) and pt.is_decimal(kind):  # the shortest decimal that it is
        values = values.cast(pa.string())
    cast = values.cast(kind)
    if pt.is_timestamp(values.type) and pt.is_date(kind) and cast.cast(values.type) != values:
        raise ValueError("it has a time of the day")
    return cast


def _of_python(values: list[Any], kind: pa.DataType) -> pa.Array:
    """A DBAPI's values: texts are read as such, and nothing is taken that Arrow would round or cut."""
    present = {type(each) for each in values if each is not None}
    if present == {str}:
        return pa.array(values, pa.string()).cast(kind)
    taken = next((types for is_kind, types in _TAKEN if is_kind(kind)), frozenset())
    if not present <= taken:
        raise TypeError(f"a {min(each.__name__ for each in present - taken)}")
    if float in present and pt.is_decimal(kind):  # of a database without decimals: the shortest one that it is
        values = [repr(each) if isinstance(each, float) else each for each in values]
        return pa.array([each if each is None else str(each) for each in values], pa.string()).cast(kind)
    if int in present and pt.is_boolean(kind):
        if not all(each in {0, 1, None} for each in values):
            raise TypeError("neither 0 nor 1")
        values = [each if each is None else bool(each) for each in values]
    if pt.is_time(kind) or (pt.is_timestamp(kind) and kind.tz is None):
        zoned = [each for each in values if isinstance(each, time | datetime) and each.tzinfo is not None]
        if zoned:
            raise TypeError(f"it has a time zone: {zoned[0].isoformat()}")
    if Decimal in present and pt.is_integer(kind):
        if any(each is not None and each != int(each) for each in values):
            raise TypeError("not a whole number")
        values = [each if each is None else int(each) for each in values]
    return pa.array(values, kind)


#: What Python's values may be of a type, besides texts.
_TAKEN: tuple[tuple[Callable[[pa.DataType], bool], frozenset[type]], ...] = (
    (pt.is_boolean, frozenset({bool, int})),
    (pt.is_integer, frozenset({int, Decimal})),
    (pt.is_floating, frozenset({float, int})),
    (pt.is_decimal, frozenset({Decimal, int, float})),
    (pt.is_binary, frozenset({bytes, bytearray, memoryview})),
    (pt.is_date, frozenset({date})),
    (pt.is_timestamp, frozenset({datetime})),
    (pt.is_time, frozenset({time})),
)


def _one_by_one(values: pa.Array | list[Any], kind: pa.DataType) -> Exact:
    made, bad = [], {}
    for number in range(len(values)):
        try:
            made.append(_typed(values[number : number + 1], kind))
        except (pa.ArrowException, ValueError, TypeError, OverflowError, ArithmeticError) as error:
            made.append(pa.nulls(1, kind))
            bad[number] = f"its value is not {kind}: {' '.join(str(error).split())[:100]}"
    return Exact(pa.concat_arrays(made) if made else pa.array([], kind), bad)


def _within_calendar(found: Exact) -> Exact:
    kind = found.values.type
    if kind == pa.time64("us"):
        numbers, least, most, what = found.values.view(pa.int64()), 0, _DAY_US - 1, "24:00 is no time of a day"
    elif pt.is_timestamp(kind) and kind.unit == "us":
        numbers, least, most = found.values.view(pa.int64()), _FIRST_MICROSECOND, None
        what = "infinity, or a time beyond the calendar"
    elif kind == pa.date32():
        numbers, least, most = found.values.view(pa.int32()), _FIRST_DAY, None
        what = "infinity, or a date beyond the calendar"
    else:
        return found
    outside = pc.less(numbers, least)
    if most is not None:
        outside = pc.or_(outside, pc.greater(numbers, most))
    if not pc.any(outside).as_py():
        return found
    rows = pc.indices_nonzero(pc.fill_null(outside, fill_value=False)).to_pylist()
    kept = pc.if_else(outside, pa.scalar(None, kind), found.values)
    return Exact(kept, {**found.bad, **dict.fromkeys(rows, what)})
