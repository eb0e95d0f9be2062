"""A whole source in under 80 lines: ticks, numbered as they happened, as many as the settings say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal

import pyarrow as pa

from datalake_assets.core.batches import Batches, InMemoryBatches, ReadRequest, SourceBatch
from datalake_assets.errors import SourceRefused
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.settings import Settings
from datalake_assets.sources.base import FeedOption, SourceObject, SourceSystem, System

EPOCH = datetime(2026, 11, 1, tzinfo=UTC)
SCHEMA = pa.schema([("tick", pa.int64()), ("at", pa.timestamp("us", "UTC"))])


class ToySource(SystemSource):
    """Ticks of a clock, one every six hours."""

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.STREAM})
    counts_rows: ClassVar[bool] = True

    type: Literal["toy"] = "toy"
    clock: Literal["tower", "wrist"]

    @property
    def where(self) -> str:
        return self.clock

    @property
    def time_column(self) -> str:
        return "at"

    def position_kind(self, kind: FeedKind) -> PositionKind:
        return PositionKind.OFFSETS


class ToySettings(Settings):
    """Attributes: toy_ticks: How many there are by now."""

    toy_ticks: int = 10


class Toy:
    def __init__(self, ticks: int) -> None:
        self.ticks = ticks

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        numbers = range((request.start_offsets or {}).get(0, 0), self.ticks)
        rows = [{"tick": number, "at": EPOCH + timedelta(hours=6 * number)} for number in numbers]
        offsets = pa.array(numbers, pa.int64())
        partitions = pa.array([0] * len(numbers), pa.int32())
        batch = SourceBatch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA), partitions, offsets)
        return InMemoryBatches((batch,), feed.row_time, request)

    def discover(self) -> Iterator[SourceObject]:
        yield SourceObject("tower", "stream")
        yield SourceObject("sundial", "stream", "it does not tick")

    def check(self, feed: Feed) -> None:
        if not self.ticks:
            raise SourceRefused(f"toy {feed.source.where}", "it has stopped")

    def count(self, feed: Feed) -> int:
        return self.ticks

    def close(self) -> None: ...


def connect(settings: Settings) -> SourceSystem:
    return Toy(settings.of(ToySettings).toy_ticks)


CLOCK = FeedOption("--clock", "clock", "Which clock.", choices=("tower", "wrist"), required=True)
TOY = System(ToySource, connect, ToySettings, (CLOCK,), "clock", "Add every clock that ticks.")
