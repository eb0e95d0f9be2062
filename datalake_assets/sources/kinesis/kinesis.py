"""Kinesis as a source: streams of a region, read by shard and sequence number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datalake_assets.core.batches import Batches, ReadRequest, SourceBatch
from datalake_assets.errors import SourceRefused
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.settings import Settings
from datalake_assets.sources.aws_clients import refuse_endpoint
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.kinesis.kinesis_model import KinesisSettings, declared
from datalake_assets.sources.kinesis.kinesis_records import RecordLayout
from datalake_assets.sources.kinesis.shard_reading import ShardBatches
from datalake_assets.sources.kinesis.streams import Stream, Streams

__all__ = ["Kinesis", "connect"]


class Kinesis:
    """Kinesis, or another server that speaks it.

    Args:
        settings: Where it is.
    """

    def __init__(self, settings: KinesisSettings) -> None:
        self._settings = settings
        self._regions: dict[str, Streams] = {}

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        """Prepares to read ``feed``; nothing is asked before the iteration.

        Raises:
            InvalidFeed: Its columns don't fit what the feed says of them.
        """
        return ShardBatches(self._stream(feed), feed, request)

    def follow(self, feed: Feed, request: ReadRequest) -> ShardBatches:
        """Prepares to read ``feed`` on and on, by asking each shard four times a second.

        Raises:
            InvalidFeed: Its columns don't fit what the feed says of them.
        """
        return ShardBatches(self._stream(feed), feed, request, follows=True)

    def discover(self) -> Iterator[SourceObject]:
        """Lists the streams of the region of the settings.

        Raises:
            SourceError: They cannot be listed.
        """
        for name in self._streams("").names():
            yield SourceObject(name, FeedKind.STREAM)

    def check(self, feed: Feed) -> None:
        """Asks whether ``feed`` could be read: its stream, its shards.

        Raises:
            SourceError: It could not; says why.
            InvalidFeed: Its columns don't fit what the feed says of them.
        """
        RecordLayout(feed)
        stream = self._stream(feed)
        if stream.facts().status == "DELETING":
            raise SourceRefused(stream.source, "the stream is being deleted", cure="correct the feed's stream")
        stream.shards()

    def decode(self, feed: Feed, raws: Sequence[bytes]) -> SourceBatch:
        """Decodes records again that went to quarantine; implements `DecodesAgain`."""
        return RecordLayout(feed).again(raws)

    def count(self, feed: Feed) -> None:
        """Nothing: a stream does not count its records."""

    def close(self) -> None:
        """Closes its connections; idempotent."""
        while self._regions:
            self._regions.popitem()[1].close()

    def _stream(self, feed: Feed) -> Stream:
        source = declared(feed)
        return self._streams(source.region).stream(source.stream)

    def _streams(self, region: str) -> Streams:
        if region not in self._regions:
            self._regions[region] = Streams(region, self._settings)
        return self._regions[region]


def connect(settings: Settings) -> Kinesis:
    """Kinesis by an installation's settings.

    Raises:
        ConfigError: They cannot work.
    """
    own = settings.of(KinesisSettings)
    refuse_endpoint("kinesis", own.kinesis_endpoint)
    return Kinesis(own)
