"""A source system in memory for exports into a lake of files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import dagster as dg
import pyarrow as pa

from datalake_assets.core.batches import Batches, InMemoryBatches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.defs.feeds.runner import FeedRunner
from datalake_assets.defs.resources import Lake, LakeResource, SourceResource
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind
from datalake_assets.sources.base import SourceObject, SourceSystem
from datalake_assets.sources.systems import no_stand_in
from datalake_assets_tests.defs.fakes import days_ago, rows

RECENT = {"start": days_ago(5).date()}


@dataclass
class Sent:
    """The rows of each feed, numbered in one source partition.

    ``rejected`` come with the next read, ``id_type`` is what the source calls the type of its ids now, and ``extra`` is
    whether the last row has a value of one more column.
    """

    rows: dict[str, list[datetime]] = field(default_factory=dict)
    rejected: tuple[RejectedRow, ...] = ()
    id_type: pa.DataType = field(default_factory=pa.int64)
    extra: bool = False

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        sent = [at for at in self.rows[feed.name] if request.window is None or request.window.contains(at)]
        plain = rows(*sent)
        batch = plain.set_column(0, "id", plain["id"].cast(self.id_type))
        if self.extra:
            batch = batch.append_column("extra", pa.array([None] * (len(sent) - 1) + ["x"]))
        time_column = "rowtime" if feed.kind is FeedKind.STREAM else None
        if feed.position_kind is not PositionKind.OFFSETS:
            return InMemoryBatches((SourceBatch(batch, rejected=self.rejected),), time_column, request)
        start = (request.start_offsets or {}).get(0, 0)
        numbered = SourceBatch(
            batch.slice(start),
            source_partitions=pa.array([0] * len(sent[start:]), pa.int32()),
            source_offsets=pa.array(range(start, len(sent)), pa.int64()),
            rejected=self.rejected,
        )
        return InMemoryBatches((numbered,), time_column, request)

    def discover(self) -> Iterator[SourceObject]:
        return iter(())

    def check(self, feed: Feed) -> None: ...

    def count(self, feed: Feed) -> None: ...

    def close(self) -> None: ...


class SentSource(SourceResource):
    """Connects to it."""

    sent: dg.ResourceDependency[Sent]

    @contextmanager
    def connect(self, settings: object, lake: Lake) -> Iterator[SourceSystem]:
        yield self.sent


def exporter(lake: Lake, sent: Sent, *feeds: Feed) -> FeedRunner:
    """Feeds on the lake's files, exported from it."""
    resource = LakeResource(settings=lake.settings)
    source = SentSource(type="ksqldb", settings=lake.settings, lake=resource, stand_in=no_stand_in, sent=sent)
    return FeedRunner(feeds, Lake(lake.settings), {"lake": resource, "ksqldb": source})


def key(days: int) -> str:
    """The partition of so many days ago."""
    return f"{days_ago(days):%Y-%m-%d}"
