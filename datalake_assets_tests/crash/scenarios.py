"""The exports that are killed: what the source says in each of its states, and so what the lake must hold."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pyarrow as pa

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.feed import Feed, parse_feed

__all__ = ["SCENARIOS", "Row", "Rows", "Scenario", "rows_of"]

START = datetime(2025, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [("id", pa.int64()), ("note", pa.string()), ("rowtime", pa.timestamp("ms", "UTC")), ("load", pa.binary())]
)
# two of these in a batch make a file, so that there are commits of several files
LOAD_BYTES = 540_000
SMALL_FILES = {"target_file_size_bytes": 1 << 20, "row_group_bytes": 1 << 20}

Row = tuple[int, str, datetime, int]
Rows = frozenset[Row]


@cache
def load(number: int) -> bytes:
    """Some incompressible bytes."""
    return random.Random(number).randbytes(LOAD_BYTES)


def batch_of(rows: Sequence[tuple[int, str, datetime, bytes | None]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA
    )


def _slices(rows: Sequence[Any], count: int) -> list[Sequence[Any]]:
    return [rows[first : first + count] for first in range(0, len(rows), count)]


def rows_of(table: pa.Table) -> list[Row]:
    """The rows of a table in a comparable form, in its order."""
    columns = table.select(SCHEMA.names).to_pydict()
    loads = [hash(value) if value else 0 for value in columns["load"]]
    return list(zip(columns["id"], columns["note"], columns["rowtime"], loads, strict=True))


class Scenario(ABC):
    """A feed and its source.

    Attributes:
        feed: The feed.
        selected: The partitions that are exported; None leaves it to the plan.
    """

    feed: Feed
    selected: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Its feed's."""
        return self.feed.name

    @abstractmethod
    def batches(self, state: int, request: ReadRequest) -> InMemoryBatches:
        """What the source answers in its n-th state."""

    @abstractmethod
    def truth(self, state: int) -> Rows:
        """The rows that the source has then, as `rows_of` gives them."""

    def quarantined(self, state: int) -> frozenset[str]:
        """Positions of the rows that cannot be landed."""
        return frozenset()

    @staticmethod
    def _comparable(rows: Sequence[tuple[int, str, datetime, bytes | None]]) -> Rows:
        return frozenset(rows_of(pa.Table.from_batches([batch_of(rows)])))


def _feed(name: str, kind: str, mode: str = "offsets", **rest: object) -> Feed:
    source = {"type": "ksqldb", "object": name.upper(), "mode": mode}
    document = {"name": name, "kind": kind, "source": source, "start": f"{START:%Y-%m-%d}", "format": SMALL_FILES}
    return parse_feed(json.dumps(document | rest))


class Appended(Scenario):
    """Two source partitions grow; rows come late, come twice, cannot be decoded, or have an impossible time."""

    feed = _feed("appended", "stream")

    def batches(self, state: int, request: ReadRequest) -> InMemoryBatches:
        """From a little before the offsets asked for, with repetitions."""
        batches = []
        for partition in (0, 1):
            first = max(0, (request.start_offsets or {}).get(partition, 0) - 3)
            offsets = list(range(first, self._end(state)))
            offsets[5:5] = offsets[2:5]
            batches += [self._batch(partition, some) for some in _slices(offsets, 10)]
        return InMemoryBatches(tuple(batches), "rowtime", request)

    def _batch(self, partition: int, offsets: Sequence[int]) -> SourceBatch:
        good = [offset for offset in offsets if not self._is_bad(offset)]
        return SourceBatch(
            batch_of([self._row(partition, offset) for offset in good]),
            pa.array([partition] * len(good), pa.int32()),
            pa.array(good, pa.int64()),
            tuple(RejectedRow(b"\xff{", "not JSON", f"{partition}:{at}") for at in offsets if self._is_bad(at)),
        )

    def truth(self, state: int) -> Rows:
        """Every row with a possible time."""
        rows = [self._row(partition, offset) for partition, offset in self._offsets(state)]
        return self._comparable([row for row in rows if row[2] >= START])

    def quarantined(self, state: int) -> frozenset[str]:
        """The others, and those that cannot be decoded."""
        bad = {(0, offset) for offset in range(self._end(state)) if self._is_bad(offset)}
        bad |= {(1, offset) for _, offset in bad}
        bad |= {at for at in self._offsets(state) if self._row(*at)[2] < START}
        return frozenset(f"{partition}:{offset}" for partition, offset in bad)

    def _offsets(self, state: int) -> list[tuple[int, int]]:
        return [
            (partition, offset)
            for partition in (0, 1)
            for offset in range(self._end(state))
            if not self._is_bad(offset)
        ]

    @staticmethod
    def _end(state: int) -> int:
        return 20 * (state + 1)

    @staticmethod
    def _is_bad(offset: int) -> bool:
        return offset % 20 == 7

    @staticmethod
    def _row(partition: int, offset: int) -> tuple[int, str, datetime, bytes | None]:
        number = partition * 1_000_000 + offset
        late = timedelta(days=1) if offset % 5 == 0 else timedelta()
        time = START + timedelta(days=1 + offset // 30, minutes=offset) - late
        if offset % 20 == 11:
            time = START - timedelta(days=3)
        return number, f"n{number}", time, load(number % 3) if offset % 20 in {13, 14} else None


def _in_pairs(rows: Sequence[Any]) -> tuple[SourceBatch, ...]:
    return tuple(SourceBatch(batch_of(some)) for some in _slices(rows, 2))


class Replaced(Scenario):
    """Three days are pulled again and again, and have other rows each time."""

    feed = _feed("replaced", "stream", "pull")
    selected = ("2025-01-01", "2025-01-02", "2025-01-03")

    def batches(self, state: int, request: ReadRequest) -> InMemoryBatches:
        """All rows."""
        return InMemoryBatches(_in_pairs(self._rows(state)), "rowtime", request)

    def truth(self, state: int) -> Rows:
        """All rows."""
        return self._comparable(self._rows(state))

    @staticmethod
    def _rows(state: int) -> list[tuple[int, str, datetime, bytes | None]]:
        count = 15 + state
        return [
            (
                day * 1000 + number,
                f"n{state if number % 2 else ''}",
                START + timedelta(days=day, minutes=number),
                load(number) if day == 1 and number < 4 else None,
            )
            for day in range(3)
            for number in range(count)
        ]


class Versions(Scenario):
    """A table that changes between pulls; two versions are kept."""

    feed = _feed("versions", "table", retention={"versions": 2})

    def batches(self, state: int, request: ReadRequest) -> InMemoryBatches:
        """All rows."""
        return InMemoryBatches(_in_pairs(self._rows(state)), None, request)

    def truth(self, state: int) -> Rows:
        """All rows."""
        return self._comparable(self._rows(state))

    @staticmethod
    def _rows(state: int) -> list[tuple[int, str, datetime, bytes | None]]:
        return [
            (number, f"state {state}", START + timedelta(minutes=number), load(number) if number < 4 else None)
            for number in range(15 + state)
        ]


SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (Appended(), Replaced(), Versions())}
