"""What a lake amounts to, from its manifests: the figures behind ``datalake report``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from datalake_assets.config import Feed
from datalake_assets.lake.base import PartitionReport
from datalake_assets.lake.store import Store
from datalake_assets.lake.summary import Summary
from datalake_assets.lake.tables import open_table

__all__ = ["PARTITION_COLUMNS", "FeedStatistics", "lake_statistics", "rebuild_summaries"]

#: Feeds that are looked at at once.
THREADS = 8

#: Columns of `FeedStatistics.rows`.
PARTITION_COLUMNS = (
    "feed",
    "kind",
    "partition",
    "rows",
    "files",
    "small_files",
    "size_bytes",
    "min_time",
    "max_time",
    "commits",
)


@dataclass(frozen=True, slots=True)
class FeedStatistics:
    """What a feed amounts to.

    Attributes:
        feed: The feed.
        partitions: Its partitions with data, in key order.
    """

    feed: Feed
    partitions: tuple[PartitionReport, ...]

    @property
    def rows(self) -> int:
        """Rows; of a table, those of all versions that are kept."""
        return sum(partition.rows for partition in self.partitions)

    @property
    def files(self) -> int:
        """Data files."""
        return sum(partition.files for partition in self.partitions)

    @property
    def small_files(self) -> int:
        """Data files below the feed's ``small_file_bytes``."""
        return sum(partition.small_files for partition in self.partitions)

    @property
    def size_bytes(self) -> int:
        """Size of the data files."""
        return sum(partition.size_bytes for partition in self.partitions)

    @property
    def newest_row(self) -> datetime | None:
        """The latest partition time; None without rows, and for tables."""
        return max((partition.max_time for partition in self.partitions if partition.max_time), default=None)

    def records(self) -> list[dict[str, Any]]:
        """One record per partition, with `PARTITION_COLUMNS`."""
        return [
            {
                "feed": self.feed.name,
                "kind": self.feed.kind.value,
                "partition": partition.key,
                "rows": partition.rows,
                "files": partition.files,
                "small_files": partition.small_files,
                "size_bytes": partition.size_bytes,
                "min_time": partition.min_time,
                "max_time": partition.max_time,
                "commits": partition.generation,
            }
            for partition in self.partitions
        ]


def lake_statistics(store: Store, feeds: Sequence[Feed]) -> tuple[FeedStatistics, ...]:
    """What each feed amounts to; one listing per feed and one request per partition."""
    with ThreadPoolExecutor(THREADS) as pool:
        return tuple(pool.map(lambda feed: _statistics(store, feed), feeds))


def rebuild_summaries(store: Store, statistics: Sequence[FeedStatistics]) -> None:
    """Writes every feed's ``_metadata.json`` anew."""
    for each in statistics:
        Summary(store, each.feed).rebuild(each.partitions, at=store.now())


def _statistics(store: Store, feed: Feed) -> FeedStatistics:
    table = open_table(store, feed)
    reports = (table.report(key) for key in table.partitions())
    return FeedStatistics(feed, tuple(report for report in reports if report is not None and report.files))
