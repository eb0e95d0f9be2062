"""The few SQL statements that reading ksqlDB takes; pure text.

Names are always quoted: ksqlDB upper-cases what is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from datalake_assets.core.partitions import TimeWindow

__all__ = [
    "PSEUDO_COLUMNS",
    "WINDOW_COLUMNS",
    "at_or_after",
    "before",
    "describe",
    "epoch_ms",
    "in_window",
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


def select(columns: Sequence[str], source: str, *, where: Iterable[str] = (), push: bool = False) -> str:
    """A query.

    Args:
        columns: Names, or ``*`` alone.
        source: The object's name.
        where: Conditions that must all hold; empty ones are left out.
        push: Whether it goes on with every change, rather than end.
    """
    listed = ", ".join(column if column == "*" else quoted(column) for column in columns)
    conditions = " AND ".join(condition for condition in where if condition)
    filtered = f" WHERE {conditions}" if conditions else ""
    query = f"SELECT {listed} FROM {quoted(source)}{filtered}"  # noqa: S608  names are quoted, the rest is numbers
    return f"{query}{' EMIT CHANGES' if push else ''};"


def describe(name: str) -> str:
    """What an object is."""
    return f"DESCRIBE {quoted(name)};"


def epoch_ms(time: datetime) -> int:
    """The first whole millisecond that is not before ``time``."""
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return -(-(since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds) // 1000)


def in_window(column: str, window: TimeWindow | None, *, as_text: bool) -> str:
    """Whether a column's time lies in a half-open window.

    Args:
        column: ROWTIME or a BIGINT of epoch milliseconds; or, ``as_text``, a TIMESTAMP.
        window: None for any time.
        as_text: Whether to compare with a TIMESTAMP literal.
    """
    if window is None:
        return ""
    start, end = (_moment(time, as_text=as_text) for time in (window.start, window.end))
    return f"{quoted(column)} >= {start} AND {quoted(column)} < {end}"


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
