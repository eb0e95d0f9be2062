"""A queue on a real server, and a feed that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import WriteReport
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.sqs.sqs import Sqs, connect
from datalake_assets.sources.sqs.sqs_model import SqsSettings
from datalake_assets_tests.sources.sqs.sqs_server import SqsServer, TestQueue

FIELDS = {"n": "long not null", "price": "decimal(10,2)"}


@pytest.fixture(autouse=True)
def _credentials(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sqs_server" in request.fixturenames:
        for name, value in request.getfixturevalue("sqs_server").environment().items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def sqs(sqs_server: SqsServer) -> Iterator[Sqs]:
    """The source, connected to."""
    connected = connect(SqsSettings(sqs_endpoint=sqs_server.url))
    yield connected
    connected.close()


@pytest.fixture
def queue(sqs_server: SqsServer) -> TestQueue:
    """An empty queue."""
    return sqs_server.queue()


@pytest.fixture
def fifo(sqs_server: SqsServer) -> TestQueue:
    """An empty FIFO queue, whose senders give deduplication ids."""
    return sqs_server.queue(fifo=True)


def feed_of(queue: TestQueue, *, feed: dict[str, Any] | None = None, **source: Any) -> Feed:
    """A feed of a queue, which waits for nothing that is not there."""
    document = {"type": "sqs", "queue": queue.name, "fields": FIELDS, "idle_s": 1, **source}
    return Feed(name="trades", kind=FeedKind.STREAM, source=document, **(feed or {}))  # type: ignore[arg-type]


def bodies(numbers: range) -> Iterator[dict[str, Any]]:
    """Bodies that fit `FIELDS`."""
    return ({"n": number, "price": f"{number}.50"} for number in numbers)


def land(store: Store, sqs: Sqs, feed: Feed) -> WriteReport:
    """One export."""
    table = open_table(store, feed)
    plan = table.plan()
    return table.write(sqs.read(feed, plan.request), partitions=plan.partitions, run_id="test")


def landed(store: Store, feed: Feed, column: str = "n") -> list[Any]:
    """What the lake has of a column, in the order of its rows."""
    return open_table(store, feed).scan(columns=[column]).read_all()[column].to_pylist()
