"""What the commits of a lake changed over time, as series of amounts: for plots and documents.

Apart from the other figures because it alone loads numpy, which a report on a terminal does without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from datalake_assets.core.facts import PlannedPartition
from datalake_assets.core.report.figures import FeedStatistics

__all__ = ["POINTS", "Series", "lake_series"]

#: Points of a series at the most; more commits than that are summed up by equal spans of time.
POINTS = 240

#: When (seconds since 1970), and how many files, small files and bytes more than before.
_Step = tuple[float, int, int, int]
#: Many of them, in rows.
_Steps: TypeAlias = npt.NDArray[np.float64]


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
