"""A topic on a real broker, and a feed that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import WriteReport
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.kafka.kafka import Kafka, connect
from datalake_assets.sources.kafka.kafka_model import KafkaSettings
from datalake_assets_tests.sources.kafka.kafka_server import KafkaServer, RegistryServer, TestTopic


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    """A schema registry without schemas."""
    with RegistryServer() as server:
        yield server


@pytest.fixture
def topic(kafka_server: KafkaServer) -> TestTopic:
    """An empty topic of one partition."""
    return kafka_server.topic()


@pytest.fixture
def kafka(kafka_server: KafkaServer, registry: RegistryServer) -> Iterator[Kafka]:
    """The source, connected to."""
    connected = connect(
        KafkaSettings(kafka_servers=kafka_server.servers, kafka_registry_url=registry.url, kafka_timeout_s=60)
    )
    yield connected
    connected.close()


def feed_of(topic: TestTopic, *, feed: dict[str, Any] | None = None, **source: Any) -> Feed:
    """A feed of a topic."""
    document = {"type": "kafka", "topic": topic.name, **source}
    return Feed(name="events", kind=FeedKind.STREAM, source=document, **(feed or {}))  # type: ignore[arg-type]


def land(store: Store, kafka: Kafka, feed: Feed, *, new_epoch: bool = False) -> WriteReport:
    """Exports what there is."""
    table = open_table(store, feed)
    plan = table.plan(new_epoch=new_epoch)
    return table.write(kafka.read(feed, plan.request), partitions=plan.partitions, run_id="test")


def landed(store: Store, feed: Feed, *columns: str) -> list[Any]:
    """What the lake has of some columns, in the order of its rows; of one, its values."""
    rows = open_table(store, feed).scan(columns=list(columns)).read_all().to_pylist()
    return [row[columns[0]] for row in rows] if len(columns) == 1 else [tuple(row.values()) for row in rows]
