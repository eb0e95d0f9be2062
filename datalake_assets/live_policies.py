"""What a feed may say of its live view: how much of the present is kept, and which questions are always asked of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator

from datalake_assets.policies import Duration, Model

__all__ = ["MOST_TILES", "LiveWindowPolicy", "Tile"]

#: Tiles of a feed; each is a query a second.
MOST_TILES = 12


class LiveWindowPolicy(Model):
    """How much of a feed's present the live view keeps in memory, and what it calls late.

    Attributes:
        minutes: Rows are forgotten so long after they came.
        max_rows: Rows that are kept at the most; the oldest go first.
        max_mb: Mebibytes that they may take.
        late_after: A row is late if it is older, by so much, than one that came before it of the same source partition.
        silent_after: The source is late if nothing comes for so long; None: as its own pace suggests, two seconds at
            the least.
    """

    minutes: Annotated[float, Field(gt=0, le=24 * 60)] = 10.0
    max_rows: Annotated[int, Field(ge=1, le=5_000_000)] = 200_000
    max_mb: Annotated[int, Field(ge=1, le=4096)] = 64
    late_after: Duration = timedelta(seconds=10)
    silent_after: Duration | None = None


class Tile(Model):
    """A question in SQL that the live view always asks: of the window, and of the lake beside it.

    Attributes:
        name: Its title.
        sql: One SELECT in DuckDB's SQL over ``data``, the feed's rows.
        kind: ``number``: the first value of its first row; ``series``: a time, or any other label, and a number;
            ``table``: the first rows as they are.
        unit: Of its numbers, like ``USD``.
        history: How far back the lake is asked, by whole partitions; zero: not at all. Then the query may also use
            what only the window has: ``_seen_at``, ``_state``, ``_late`` and ``_duplicate``.
    """

    name: Annotated[str, Field(min_length=1, max_length=80)]
    sql: Annotated[str, Field(min_length=1, max_length=20_000)]
    kind: Literal["number", "series", "table"] = "table"
    unit: Annotated[str, Field(max_length=20)] = ""
    history: Duration = timedelta(days=1)

    @field_validator("name")
    @classmethod
    def _is_one_line(cls, name: str) -> str:
        if not name.isprintable():
            msg = "write it on one line, in characters that can be printed"
            raise ValueError(msg)
        return name
