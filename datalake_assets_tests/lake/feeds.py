"""Small feeds and sources for the lake's tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Literal

import pyarrow as pa

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceSystem, System

START = datetime(2025, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema([("id", pa.int64()), ("note", pa.string()), ("rowtime", pa.timestamp("ms", "UTC"))])


class PostSource(SystemSource):
    """Parcels, in no order."""

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.STREAM})

    type: Literal["post"] = "post"

    @property
    def where(self) -> str:
        return "post"

    @property
    def time_column(self) -> str:
        return "rowtime"

    def position_kind(self, kind: FeedKind) -> PositionKind:
        return PositionKind.IDS


def _connect(settings: Settings) -> SourceSystem:
    raise NotImplementedError


#: A source of items, for a registry: feeds of it are given what they land.
POST = System(PostSource, _connect)


def stream_feed(mode: str = "offsets", **changes: object) -> Feed:
    """A stream by day since 2025-01-01."""
    source = {"type": "ksqldb", "object": "S", "mode": mode}
    return parse_feed(json.dumps({"name": "s", "kind": "stream", "source": source, "start": "2025-01-01", **changes}))


def table_feed(**changes: object) -> Feed:
    """A table."""
    source = {"type": "ksqldb", "object": "T"}
    return parse_feed(json.dumps({"name": "t", "kind": "table", "source": source, **changes}))


def rows(ids: Sequence[int]) -> pa.RecordBatch:
    """Row ``i`` happens ``i`` hours after the start: 24 rows a day."""
    times = [START + timedelta(hours=i) for i in ids]
    return pa.record_batch([pa.array(ids, pa.int64()), pa.array([f"n{i}" for i in ids]), times], schema=SCHEMA)


def numbered(ids: Sequence[int], *, partition: int = 0, rejected: Sequence[RejectedRow] = ()) -> SourceBatch:
    """Rows whose offset is their id."""
    return SourceBatch(
        rows(ids), pa.array([partition] * len(ids), pa.int32()), pa.array(ids, pa.int64()), tuple(rejected)
    )


def stream_of(*batches: SourceBatch, request: ReadRequest | None = None, recreated: bool = False) -> InMemoryBatches:
    """A read of a stream."""
    return InMemoryBatches(tuple(batches), "rowtime", request or ReadRequest(), recreated=recreated)


def table_of(count: int) -> InMemoryBatches:
    """A read of a table with ``count`` rows."""
    return InMemoryBatches((SourceBatch(rows(range(count))),))
