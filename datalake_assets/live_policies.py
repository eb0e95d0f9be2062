"""What a feed may say of its present: when it is committed, how much of it is kept, what is always asked of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from datalake_assets.policies import MIB, MOST, Duration, Model

__all__ = ["MOST_TILES", "BatchPolicy", "LiveWindowPolicy", "Tile"]

#: Tiles of a feed; each is a query a second.
MOST_TILES = 12


class BatchPolicy(Model):
    """When `datalake run` commits what it has read of a feed that it follows: whatever comes first.

    Attributes:
        max_rows: Rows of a batch.
        max_bytes: Bytes of a batch, as they are held in memory.
        max_age: How long the first row of a batch waits for its commit, while commits are cheap and small files few.
        longest_age: How long it waits at the most: the wait grows with the small files of the partitions, and with what
            a commit takes.
        small_files: Small files that a partition may have before the wait grows.
    """

    max_rows: Annotated[int, Field(ge=1, le=10_000_000)] = 250_000
    max_bytes: Annotated[int, Field(ge=64 * 1024, le=4096 * MIB)] = 64 * MIB
    max_age: Annotated[Duration, Field(ge=timedelta(milliseconds=50), le=timedelta(hours=1))] = timedelta(seconds=5)
    longest_age: Annotated[Duration, Field(le=timedelta(hours=1))] = timedelta(minutes=1)
    small_files: Annotated[int, Field(ge=1, le=MOST)] = 100

    @model_validator(mode="after")
    def _grows(self) -> BatchPolicy:
        if self.longest_age < self.max_age:
            msg = "longest_age: it must be no shorter than max_age"
            raise ValueError(msg)
        return self


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
