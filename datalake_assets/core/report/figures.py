"""The figures of partitions and feeds that reports are made of, from their manifests alone.

Pure. `datalake_assets.lake.statistics` gathers them; `datalake_assets.core.report.findings` draws conclusions.

Files, small files and bytes over time are step functions, from the last commits that each manifest remembers with the
partition's figures after them. A partition that remembers all of its commits begins with nothing; one that forgot the
first ones enters with the first that it knows of. So does one whose first commits are of a release without figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain

import numpy as np
import numpy.typing as npt

from datalake_assets.core.facts import SIZE_BUCKETS, PlannedPartition
from datalake_assets.core.feed_state import Version
from datalake_assets.core.manifest import PastCommit
from datalake_assets.feed import Feed

__all__ = [
    "POINTS",
    "FeedStatistics",
    "Quarantined",
    "Series",
    "lake_series",
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
    """

    feed: Feed
    partitions: tuple[PlannedPartition, ...]
    emptied: tuple[PlannedPartition, ...] = ()
    versions: tuple[Version, ...] = ()
    current: Version | None = None
    quarantined: Quarantined = Quarantined()
    last_run: datetime | None = None
    problems: tuple[str, ...] = ()

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


#: Points of a series at the most; more commits than that are summed up by equal spans of time.
POINTS = 240

#: When (seconds since 1970), and how many files, small files and bytes more than before.
_Step = tuple[float, int, int, int]
#: Many of them, in rows.
_Steps = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """Amounts over time; each holds from its time until the next.

    Attributes:
        at: Times, aware UTC, rising.
        files: Data files.
        small_files: Of these, small ones.
        size_bytes: Their size.
        entered_late: Partitions that don't begin with nothing: their history goes back less far.
        partitions: Partitions that make it up.
    """

    at: tuple[datetime, ...] = ()
    files: tuple[int, ...] = ()
    small_files: tuple[int, ...] = ()
    size_bytes: tuple[int, ...] = ()
    entered_late: int = 0
    partitions: int = 0

    def __bool__(self) -> bool:
        return bool(self.at)


def lake_series(statistics: Sequence[FeedStatistics], *, points: int = POINTS) -> tuple[Series, tuple[Series, ...]]:
    """The series of the whole lake, and that of each feed."""
    listed = [[*each.partitions, *each.emptied] for each in statistics]
    steps = [_table(step for partition in partitions for step in _steps(partition)) for partitions in listed]
    feeds = tuple(_series(*pair, points=points) for pair in zip(steps, listed, strict=True))
    whole = np.concatenate([_table(()), *steps])
    return _series(whole, list(chain(*listed)), points=points), feeds


def _table(steps: Iterable[_Step]) -> _Steps:
    return np.array(list(steps), dtype=np.float64).reshape(-1, 4)  # whole numbers up to 2**53 are exact


def _steps(partition: PlannedPartition) -> Iterator[_Step]:
    """What each commit changed; the last one left what there is now, whatever it knew of that."""
    files = small = size_bytes = 0
    last = len(partition.history) - 1
    for number, commit in enumerate(partition.history):
        if number == last:
            now = (partition.files, partition.small_files, partition.size_bytes)
        elif commit.files is None or commit.small_files is None or commit.size_bytes is None:
            continue
        else:
            now = (commit.files, commit.small_files, commit.size_bytes)
        yield commit.at.timestamp(), now[0] - files, now[1] - small, now[2] - size_bytes
        files, small, size_bytes = now


def _enters_late(partition: PlannedPartition) -> bool:
    return not partition.remembers_all or any(commit.files is None for commit in partition.history[:-1])


def _series(steps: _Steps, partitions: Sequence[PlannedPartition], *, points: int) -> Series:
    if not len(steps):
        return Series()
    listed = steps[np.argsort(steps[:, 0], kind="stable")] if len(steps) <= points else _summed_up(steps, points)
    files, small_files, size_bytes = (tuple(map(int, np.cumsum(listed[:, column]))) for column in (1, 2, 3))
    return Series(
        at=tuple(datetime.fromtimestamp(time, UTC) for time in listed[:, 0].tolist()),
        files=files,
        small_files=small_files,
        size_bytes=size_bytes,
        entered_late=sum(map(_enters_late, partitions)),
        partitions=len(partitions),
    )


def _summed_up(steps: _Steps, points: int) -> _Steps:
    """One step per span of time, at its end; without those in which nothing happened."""
    times = steps[:, 0]
    first, last = times.min(), times.max()
    span_s = max((last - first) / points, timedelta.resolution.total_seconds())
    slots = np.minimum((times - first) / span_s, points - 1).astype(np.intp)
    ends = np.minimum(first + np.arange(1, points + 1) * span_s, last)
    sums = [np.bincount(slots, weights=steps[:, column], minlength=points) for column in (1, 2, 3)]
    happened = np.bincount(slots, minlength=points) > 0
    return np.column_stack([ends, *sums])[happened]
