"""The figures of partitions and feeds that reports are made of, from their manifests alone.

Pure. `datalake_assets.lake.statistics` gathers them; `datalake_assets.core.report.findings` draws conclusions.

Files, small files and bytes over time are step functions, from the last commits that each manifest remembers with the
partition's figures after them. A partition that remembers all of its commits begins with nothing; one that forgot the
first ones enters with the first that it knows of. So does one whose first commits are of a release without figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from datalake_assets.core.facts import SIZE_BUCKETS, PlannedPartition
from datalake_assets.core.feed_state import Version
from datalake_assets.core.manifest import PastCommit
from datalake_assets.feed import Feed

if TYPE_CHECKING:
    pass

__all__ = [
    "FeedStatistics",
    "Quarantined",
    "ReadFile",
    "ReadFiles",
    "last_arrival",
]

#: Commits that bring rows; of adopted folders a reconciliation that found new files does, too.
_ARRIVALS = frozenset({"append", "merge", "replace", "snapshot"})


def last_arrival(history: Sequence[PastCommit], *, adopted: bool) -> datetime | None:
    """When rows last came in; None if that is longer ago than the history goes back."""
    for commit in reversed(history):
        if commit.kind in _ARRIVALS or (adopted and commit.kind == "reconcile" and commit.files_added):
            return commit.at
    return None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Rows of a feed that could not be landed.

    Attributes:
        objects: Objects that hold them.
        size_bytes: Their size.
        rows: Distinct rows among those that were counted, by partition key; ``_unknown`` where the key is not known.
        is_exact: Whether all were counted; otherwise there are at least so many.
    """

    objects: int = 0
    size_bytes: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    is_exact: bool = True

    @property
    def total(self) -> int:
        """Rows of all partitions."""
        return sum(self.rows.values())


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A dropped file, as it was read last.

    Attributes:
        name: Its name.
        rows: Rows that were read.
        rejected: Of these, rows in quarantine.
        size_bytes: Its size.
        seconds: Time that it took.
        refused: Why nothing of it was landed; empty if it was.
    """

    name: str
    rows: int
    rejected: int
    size_bytes: int
    seconds: float
    refused: str = ""


@dataclass(frozen=True, slots=True)
class ReadFiles:
    """The dropped files that a feed remembers.

    Attributes:
        newest: Those that were written last.
        landed: How many were landed.
        refused: How many were refused.
        rows: Rows of the landed ones.
        rejected: Of these, rows in quarantine.
        size_bytes: Their size.
        seconds: Time that they took, added up.
    """

    newest: tuple[ReadFile, ...]
    landed: int
    refused: int
    rows: int
    rejected: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SinkLag:
    """How far a sink of a feed is.

    Attributes:
        sink: Its name.
        rows: Rows that it does not have yet, or of which that is not known.
        dead_letters: Documents that it has refused.
    """

    sink: str
    rows: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class FeedStatistics:
    """A feed.

    Attributes:
        feed: The feed.
        partitions: Its partitions with data, in key order; of a table the versions that are kept.
        emptied: Partitions that had data once; their history is remembered.
        versions: A table's kept versions, in number order.
        current: The version that readers of a table get.
        quarantined: What could not be landed.
        last_run: When it was last exported, with new rows or without; None if nobody knows.
        problems: Manifests that cannot be read, with the reason.
        unreadable: Why the feed as a whole cannot be read; empty if it can.
        read_files: Of a feed of dropped files, what is remembered of these; else None.
        sinks: How far the sinks of its rows are, where that was asked for.
    """

    feed: Feed
    partitions: tuple[PlannedPartition, ...]
    emptied: tuple[PlannedPartition, ...] = ()
    versions: tuple[Version, ...] = ()
    current: Version | None = None
    quarantined: Quarantined = Quarantined()
    last_run: datetime | None = None
    problems: tuple[str, ...] = ()
    unreadable: str = ""
    read_files: ReadFiles | None = None
    sinks: tuple[SinkLag, ...] = ()

    @property
    def rows(self) -> int:
        """Rows; of a table, those of all versions that are kept."""
        return sum(partition.rows for partition in self.partitions)

    def kept_bytes(self, rows: int) -> int:
        """Bytes in the lake of so many of its rows, if all take the same."""
        return round(self.size_bytes * rows / self.rows) if self.rows else 0

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
    def sizes(self) -> tuple[int, ...]:
        """Number of files by size bucket, as `bucket_of` cuts them."""
        return _added(partition.sizes for partition in self.partitions)

    @property
    def newest_row(self) -> datetime | None:
        """The latest partition time; None without rows, and for tables."""
        return max((partition.max_time for partition in self.partitions if partition.max_time), default=None)

    @property
    def last_export(self) -> datetime | None:
        """When rows last came in, as far as the manifests remember."""
        return max((each.last_export for each in self.partitions if each.last_export), default=None)


def _added(listed: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*listed, strict=True))) or (0,) * SIZE_BUCKETS
