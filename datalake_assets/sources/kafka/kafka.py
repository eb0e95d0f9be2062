"""Kafka as a source: topics of a cluster, read by source partition and offset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datalake_assets.core.batches import Batches, EndlessBatches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.kafka.brokers import Brokers
from datalake_assets.sources.kafka.kafka_model import KafkaSettings, declared
from datalake_assets.sources.kafka.messages import KeptMessage, MessageLayout, plain_values
from datalake_assets.sources.kafka.schema_registry import FORMATS, Registry
from datalake_assets.sources.kafka.topic_reading import TopicBatches

__all__ = ["Kafka", "connect"]


class Kafka:
    """A Kafka cluster, and its schema registry if it has one.

    Args:
        settings: Where they are.

    Raises:
        ConfigError: The settings cannot work.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._brokers, self._registry = Brokers(settings), Registry(settings)

    def __repr__(self) -> str:
        return f"Kafka({self._brokers.source()!r})"

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        """Prepares to read ``feed``; nothing is asked before the iteration, or its ``schema``."""
        return TopicBatches(self._brokers, feed, request, lambda: self._layout(feed))

    def follow(self, feed: Feed, request: ReadRequest) -> EndlessBatches:
        """Prepares to read ``feed`` on and on; implements `Follows`."""
        return TopicBatches(self._brokers, feed, request, lambda: self._layout(feed), follows=True)

    def _layout(self, feed: Feed) -> MessageLayout:
        source = declared(feed)
        if not source.has_registry:
            return MessageLayout(feed, plain_values(source))
        is_registered = source.value_format in FORMATS
        value = self._registry.value_format(source) if is_registered else plain_values(source)
        return MessageLayout(feed, value, self._registry.key_format(source) if source.key == "avro" else None)

    def discover(self) -> Iterator[SourceObject]:
        """Lists the topics.

        Raises:
            SourceError: The cluster failed.
        """
        for name, note in sorted(self._brokers.topics().items()):
            yield SourceObject(name, FeedKind.STREAM, note)

    def check(self, feed: Feed) -> None:
        """Asks whether ``feed`` could be read: its topic, its schemas.

        Raises:
            SourceError: It could not; says why.
            InvalidFeed: Its columns don't fit what the feed says of them.
        """
        self._brokers.check(declared(feed))
        self._layout(feed)

    def decode(self, feed: Feed, raws: Sequence[bytes]) -> SourceBatch:
        """Decodes messages again that went to quarantine; implements `DecodesAgain`."""
        kept, no_messages = [], []
        for raw in raws:
            try:
                kept.append(KeptMessage.from_json(raw))
            except ValueError as error:
                no_messages.append(RejectedRow(raw, str(error), ""))
        batch = self._layout(feed).batch(kept)
        return SourceBatch(batch.rows, batch.source_partitions, batch.source_offsets, (*batch.rejected, *no_messages))

    def count(self, feed: Feed) -> None:
        """Nothing: of a topic's numbers, markers of transactions and compacted messages have no rows."""

    def close(self) -> None:
        """Closes nothing: each read has connections of its own, and closes them."""


def connect(settings: Settings) -> Kafka:
    """The cluster of an installation's settings.

    Raises:
        ConfigError: They name none, or cannot work.
    """
    return Kafka(settings.of(KafkaSettings))
