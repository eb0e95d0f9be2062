"""The SQL that reading ksqlDB takes, and what the server's answers state of its streams and tables; pure text.

Names are always quoted: ksqlDB upper-cases what is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from datalake_assets.core.partitions import TimeWindow
from datalake_assets.errors import SourceRefused
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.ksqldb.client import KsqlClient

__all__ = [
    "PSEUDO_COLUMNS",
    "WINDOW_COLUMNS",
    "Description",
    "at_or_after",
    "before",
    "describe",
    "described",
    "epoch_ms",
    "in_window",
    "listed",
    "quoted",
    "select",
]

#: Columns of every row that no object declares (ksqlDB reference, "Pseudocolumns").
PSEUDO_COLUMNS = ("ROWTIME", "ROWPARTITION", "ROWOFFSET")
#: Bounds of a windowed object's rows, epoch ms; ``DESCRIBE`` leaves them out.
WINDOW_COLUMNS = ("WINDOWSTART", "WINDOWEND")
#: Written bare: the parser knows them by name only where they are.
_BARE = frozenset({*PSEUDO_COLUMNS, *WINDOW_COLUMNS})


def quoted(name: str) -> str:
    """A name as SQL takes it literally."""
    return name if name in _BARE else "`" + name.replace("`", "``") + "`"


def select(
    columns: Sequence[str], source: str, *, where: Iterable[str] = (), push: bool = False, limit: int | None = None
) -> str:
    """A query.

    Args:
        columns: Names, or ``*`` alone.
        source: The object's name.
        where: Conditions that must all hold; empty ones are left out.
        push: Whether it goes on with every change, rather than end.
        limit: Rows after which it ends; None for all.
    """
    listed = ", ".join(column if column == "*" else quoted(column) for column in columns)
    conditions = " AND ".join(condition for condition in where if condition)
    filtered = f" WHERE {conditions}" if conditions else ""
    query = f"SELECT {listed} FROM {quoted(source)}{filtered}"  # noqa: S608  names are quoted, the rest is numbers
    limited = "" if limit is None else f" LIMIT {limit}"
    return f"{query}{' EMIT CHANGES' if push else ''}{limited};"


def describe(name: str) -> str:
    """What an object is."""
    return f"DESCRIBE {quoted(name)};"


def epoch_ms(time: datetime) -> int:
    """The first whole millisecond that is not before ``time``."""
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return -(-(since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds) // 1000)


def in_window(column: str, window: TimeWindow | None, *, as_text: bool) -> str:
    """Whether a column's time lies in a half-open window, or is null: such rows are in none, and would not be noticed.

    Args:
        column: ROWTIME, which is never null, or a BIGINT of epoch milliseconds; or, ``as_text``, a TIMESTAMP.
        window: None for any time.
        as_text: Whether to compare with a TIMESTAMP literal.
    """
    if window is None:
        return ""
    start, end = (_moment(time, as_text=as_text) for time in (window.start, window.end))
    within = f"{quoted(column)} >= {start} AND {quoted(column)} < {end}"
    return within if column in PSEUDO_COLUMNS else f"({within} OR {quoted(column)} IS NULL)"


def _moment(time: datetime, *, as_text: bool) -> str:
    if not as_text:
        return str(epoch_ms(time))
    # ksqlDB casts a string literal beside a TIMESTAMP; it takes UTC where no zone is given
    return f"'{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}'"


def at_or_after(numbering: tuple[str, str], starts: Mapping[int, int], *, nullable: bool) -> str:
    """Whether a row is at its source partition's start or later; rows of other partitions always are.

    Args:
        numbering: The columns that carry source partition and offset.
        starts: First offset wanted by source partition.
        nullable: Whether rows without numbers count too, so that they are noticed.
    """
    partition, offset = map(quoted, numbering)
    missing = f"{partition} IS NULL OR {offset} IS NULL OR " if nullable else ""
    parts = (f"({missing}{partition} <> {number} OR {offset} >= {start})" for number, start in sorted(starts.items()))
    return " AND ".join(parts)


def before(numbering: tuple[str, str], ends: Mapping[int, int]) -> str:
    """Whether a row is in one of these source partitions, and before its end."""
    partition, offset = map(quoted, numbering)
    parts = (f"({partition} = {number} AND {offset} < {end})" for number, end in sorted(ends.items()))
    return f"({' OR '.join(parts)})"


#: The declaration of a table that can be pulled without being derived (ksqlDB reference, "CREATE TABLE").
_SOURCE_TABLE = re.compile(r"\s*CREATE\s+(?:OR\s+REPLACE\s+)?SOURCE\s+TABLE\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Description:
    """A stream or table, as DESCRIBE shows it.

    Attributes:
        name: Its name.
        kind: ``stream`` or ``table``.
        types: SQL type by column, in order; ksqlDB leaves out the key types of maps.
        header_columns: Columns that are filled from Kafka record headers.
        window: ``TUMBLING``, ``HOPPING``, ``SESSION``, or empty.
        derived: Whether a query of the server writes it.
        source_table: Whether it was declared with CREATE SOURCE TABLE.
        topic: The topic of Kafka that has its rows; empty if the server does not say.
    """

    name: str
    kind: str
    types: Mapping[str, str]
    header_columns: tuple[str, ...]
    window: str
    derived: bool
    source_table: bool
    topic: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of its rows, the window's bounds among them."""
        bounds = [name for name in WINDOW_COLUMNS if self.window and name not in self.types]
        return (*self.types, *bounds)

    @property
    def note(self) -> str:
        """Why it cannot be landed; empty if it can."""
        if self.kind == "stream":
            return ""
        derive = f"derive a table: CREATE TABLE … AS SELECT * FROM {quoted(self.name)}"  # noqa: S608  advice, not run
        if self.window == "SESSION":
            return "tables with session windows cannot be read whole (ksqlDB #7952)"
        if not self.derived and not self.source_table:
            return f"not queryable; {derive}"
        if self.source_table and self.header_columns:
            return f"columns from record headers come in the wrong order from a source table; {derive}"
        return ""


def described(client: KsqlClient, name: str) -> Description:
    """Asks what an object is.

    Raises:
        SourceRefused: There is no such object.
        SourceError: The server failed.
    """
    source = client.source(name)
    entity = client.statement(describe(name), source=source)
    try:
        return _description(entity["sourceDescription"])
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceRefused(source, "the server's description cannot be read") from error


def _description(entity: Mapping[str, Any]) -> Description:
    fields = entity["fields"]
    return Description(
        name=entity["name"],
        kind=entity["type"].lower(),
        types={field["name"]: field["schema"]["type"] for field in fields},
        header_columns=tuple(field["name"] for field in fields if field.get("type") == "HEADER"),
        window=entity.get("windowType") or "",
        derived=bool(entity.get("writeQueries")),
        source_table=_SOURCE_TABLE.match(entity.get("statement") or "") is not None,
        topic=str(entity.get("topic") or ""),
    )


def listed(client: KsqlClient) -> Iterator[SourceObject]:
    """Lists streams, then tables, each by name; asks once more for every table.

    Raises:
        SourceError: The server failed.
    """
    for name in _names(client, "STREAMS"):
        yield SourceObject(name, "stream")
    for name in _names(client, "TABLES"):
        yield SourceObject(name, "table", described(client, name).note)


def _names(client: KsqlClient, what: str) -> list[str]:
    entity = client.statement(f"LIST {what};", source=client.source())
    try:
        return sorted(str(item["name"]) for item in entity[what.lower()])
    except (KeyError, TypeError) as error:
        raise SourceRefused(client.source(), f"the server's list of {what.lower()} cannot be read") from error
