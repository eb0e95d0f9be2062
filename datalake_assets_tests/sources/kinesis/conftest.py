"""A stream on a real server, and a feed that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datalake_assets.core.batches import ReadRequest
from datalake_assets.core.row_texts import QuarantinedRow
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import WriteReport
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.kinesis.kinesis import Kinesis, connect
from datalake_assets.sources.kinesis.kinesis_model import KinesisSettings
from datalake_assets_tests.sources.kinesis.kinesis_server import KinesisServer, TestStream


@pytest.fixture(scope="module")
def kinesis(kinesis_server: KinesisServer) -> Iterator[Kinesis]:
    """The source, connected to once: a client takes a third of a second to make."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in kinesis_server.environment().items():
            patch.setenv(name, value)
        connected = connect(KinesisSettings(kinesis_endpoint=kinesis_server.url, kinesis_timeout_s=60))
        for _ in connected.discover():
            pass
    yield connected
    connected.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty lake."""
    return open_store(str(tmp_path))


@pytest.fixture
def stream(kinesis_server: KinesisServer) -> TestStream:
    """An empty stream of one shard."""
    return kinesis_server.stream()


def feed_of(stream: TestStream, *, feed: dict[str, Any] | None = None, **source: Any) -> Feed:
    """A feed of a stream."""
    document = {"type": "kinesis", "stream": stream.name, **source}
    return Feed(name="events", kind=FeedKind.STREAM, source=document, **(feed or {}))  # type: ignore[arg-type]


def land(store: Store, kinesis: Kinesis, feed: Feed, *, new_epoch: bool = False) -> WriteReport:
    """Exports what there is."""
    table = open_table(store, feed)
    plan = table.plan(new_epoch=new_epoch)
    return table.write(kinesis.read(feed, plan.request), partitions=plan.partitions, run_id="test")


def landed(store: Store, feed: Feed, *columns: str) -> list[Any]:
    """What the lake has of some columns, in the order of its rows; of one, its values."""
    rows = open_table(store, feed).scan(columns=list(columns)).read_all().to_pylist()
    return [row[columns[0]] for row in rows] if len(columns) == 1 else [tuple(row.values()) for row in rows]


def quarantined(store: Store, feed: Feed) -> list[QuarantinedRow]:
    """The lines in quarantine, in the order of their offsets."""
    keys = [each.key for each in store.list(f"quarantine/streams/{feed.name}")]
    lines = [QuarantinedRow.from_line(line) for key in keys for line in store.get(key)[0].splitlines()]
    return sorted(lines, key=lambda row: (str(row.offset[0]), row.offset[1]) if row.offset else ("", 0))


def offsets_of(kinesis: Kinesis, feed: Feed, start_offsets: dict[Any, int] | None = None) -> dict[Any, list[int]]:
    """The offsets of a read, by shard."""
    found: dict[Any, list[int]] = {}
    for batch in kinesis.read(feed, ReadRequest(start_offsets=start_offsets)):
        for shard, offset in zip(*map(list, batch.numbers), strict=True):
            found.setdefault(shard, []).append(offset)
    return found
