"""Landing a feed within a run: plan, read, write, report. The only thing that it knows of Dagster is how to log."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from datalake_assets.core.batches import Batches
from datalake_assets.core.facts import PartitionFacts
from datalake_assets.defs.metadata import (
    Metadata,
    partition_metadata,
    recommendation_metadata,
    totals_metadata,
    write_metadata,
)
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runtime import failures_named
from datalake_assets.errors import SchemaChanged
from datalake_assets.feed import Feed
from datalake_assets.lake.table import LakeTable, Progress, WriteReport
from datalake_assets.settings import Environment
from datalake_assets.sources.base import SourceSystem

__all__ = ["FeedRead", "RunLog", "land", "progress_told_to", "read_feed"]

#: A run's log gets a line of progress this often.
PROGRESS_INTERVAL_S = 15.0

_listener: ContextVar[Callable[[Progress], None] | None] = ContextVar("progress_listener", default=None)


@dataclass(slots=True)
class FeedRead:
    """What an asset hands to its IO manager: rows that nobody has read yet.

    Attributes:
        feed: The feed.
        table: Its data in the lake.
        batches: Its rows; reading begins with the iteration.
        partitions: The run's partitions.
        allow_shrink: Accept fewer rows than the lake has.
        report: What the write did; None until it is done.
        environment: Sets when compaction is recommended, where the feed's policy doesn't.
    """

    feed: Feed
    table: LakeTable
    batches: Batches
    partitions: tuple[str, ...]
    allow_shrink: bool = False
    report: WriteReport | None = None
    environment: Environment = Environment.DEVELOPMENT

    @property
    def selected(self) -> tuple[PartitionFacts, ...]:
        """The reports of the run's own partitions."""
        return tuple(each for each in self._reports if each.key in self.partitions)

    @property
    def beyond(self) -> tuple[PartitionFacts, ...]:
        """The reports of other partitions that received rows."""
        return tuple(each for each in self._reports if each.key not in self.partitions)

    @property
    def _reports(self) -> tuple[PartitionFacts, ...]:
        return self.report.partitions if self.report else ()


class RunLog(Protocol):
    """Where a run tells what it does."""

    def info(self, line: str) -> None:
        """Logs a line."""

    def warning(self, line: str) -> None:
        """Logs a line that a person should read."""

    def landed(self, report: PartitionFacts, metadata: Metadata) -> None:
        """Attaches metadata to the materialization of one of the run's partitions."""

    def landed_beyond(self, report: PartitionFacts, metadata: Metadata) -> None:
        """Records a materialization of a partition that the run did not select."""

    def finished(self, read: FeedRead, metadata: Metadata) -> None:
        """Attaches metadata to all of the run's materializations."""

    def drifted(self, feed: Feed, error: SchemaChanged) -> None:
        """Records that the source's columns are no longer the feed's: the run fails before it can check anything."""


def read_feed(
    lake: Lake, source: SourceSystem, feed: Feed, partitions: Sequence[str], *, allow_shrink: bool, new_epoch: bool
) -> FeedRead:
    """Plans a read of a feed's partitions; nothing is read yet."""
    with failures_named(feed):
        table = lake.table(feed)
        plan = table.plan(partitions, new_epoch=new_epoch)
        batches, environment = source.read(feed, plan.request), lake.settings.env
        return FeedRead(feed, table, batches, tuple(partitions), allow_shrink, environment=environment)


def land(read: FeedRead, run_log: RunLog, *, run_id: str, lake_uri: str) -> None:
    """Streams the rows into the lake, commits, and tells what came of it."""
    with failures_named(read.feed):
        try:
            read.report = report = read.table.write(
                read.batches,
                partitions=read.partitions,
                run_id=run_id,
                allow_shrink=read.allow_shrink,
                on_progress=_progress(run_log),
            )
        except SchemaChanged as error:
            run_log.drifted(read.feed, error)
            raise
    for note in report.notes:
        run_log.warning(note)
    if report.rows_quarantined:
        run_log.warning(
            f"{report.rows_quarantined:,} rows of {read.feed.path} could not be landed and are in quarantine"
        )
    total = {**write_metadata(report), **totals_metadata(read.feed, report.totals)}
    for each in read.selected:
        run_log.landed(each, _metadata_of(read, each, report, lake_uri))
    for each in read.beyond:
        run_log.landed_beyond(each, {**_metadata_of(read, each, report, lake_uri), **total})
    run_log.finished(read, total)
    run_log.info(
        f"{read.feed.path}: read {report.rows_read:,} rows, {report.rows_added:+,} in the lake,"
        f" {report.rows_known:,} known, {report.rows_quarantined:,} quarantined"
    )


def _metadata_of(read: FeedRead, one: PartitionFacts, report: WriteReport, lake_uri: str) -> Metadata:
    return {
        **partition_metadata(read.feed, one, lake_uri=lake_uri, schema=report.schema),
        **recommendation_metadata(read.feed, one, read.environment),
    }


@contextmanager
def progress_told_to(listener: Callable[[Progress], None] | None) -> Iterator[None]:
    """Tells ``listener`` too how far the writes of this thread are, while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def _progress(run_log: RunLog) -> Callable[[Progress], None]:
    listener, told_at = _listener.get(), time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told_at
        if listener is not None:
            listener(progress)
        if time.monotonic() - told_at >= PROGRESS_INTERVAL_S:
            told_at = time.monotonic()
            run_log.info(f"{progress.rows:,} rows read, {progress.bytes_written:,} bytes written so far")

    return tell
