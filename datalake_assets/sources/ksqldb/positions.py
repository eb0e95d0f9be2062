"""Whether a source still holds what comes next, judged by the source offsets that it delivers.

A gap proves nothing: compaction and transaction markers leave gaps. So a read asks for one row more than it needs, the
last one that was landed. If that row, or the next, comes, nothing was lost in between; and it shows that the server has
scanned up to the position, which silence alone doesn't. Only if it doesn't come, one probe settles what happened.

A topic that was recreated and has grown past the old position looks like the old one; offsets do not show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from datalake_assets.errors import SourceDataLost, SourceRecreated, SourceRefused

__all__ = ["Extent", "OrderWatch", "PositionWatch", "SeenOffsets", "first_offsets", "starts_anew"]

_Offsets = npt.NDArray[np.int64]
_Partitions = npt.NDArray[np.int32]


@dataclass(slots=True)
class Extent:
    """Lowest and highest offset that were seen of one source partition."""

    lowest: int
    highest: int


@dataclass(slots=True)
class SeenOffsets:
    """Offsets that were seen, by source partition."""

    extents: dict[int, Extent] = field(default_factory=dict)

    def add(self, partitions: _Partitions, offsets: _Offsets) -> None:
        """Takes note of rows, in any order."""
        for partition in np.unique(partitions).tolist():
            own = offsets[partitions == partition]
            lowest, highest = int(own.min()), int(own.max())
            extent = self.extents.setdefault(partition, Extent(lowest, highest))
            extent.lowest, extent.highest = min(extent.lowest, lowest), max(extent.highest, highest)


class OrderWatch:
    """Makes sure that offsets ascend within each source partition, as a position stands for all rows below it.

    Rows that come again, as after a rebalance, are no offence: only a row below the highest that did *not* come before
    is. The gaps between rows are remembered for that, 16 bytes each.

    Args:
        source: What is read, for errors.

    Attributes:
        gaps: How many are remembered.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._seen = SeenOffsets()
        self._gaps: dict[int, list[tuple[_Offsets, _Offsets]]] = {}
        self.gaps = 0

    def add(self, partitions: _Partitions, offsets: _Offsets) -> None:
        """Takes the next rows.

        Raises:
            SourceRefused: A row comes after a later one, for the first time.
        """
        for partition in np.unique(partitions).tolist():
            own = offsets[partitions == partition]
            known = self._seen.extents.get(partition) or Extent(int(own[0]), int(own[0]) - 1)
            highest = np.maximum.accumulate(np.concatenate(([known.highest], own)))[:-1]
            ahead = own > highest + 1
            if ahead.any():
                self._gaps.setdefault(partition, []).append((highest[ahead] + 1, own[ahead] - 1))
                self.gaps += int(ahead.sum())
            again = own[own <= highest]
            if len(again):
                self._refuse_new(partition, again, known.lowest)
            self._seen.add(np.full(len(own), partition, np.int32), own)

    def _refuse_new(self, partition: int, again: _Offsets, lowest: int) -> None:
        unseen = again < lowest
        for starts, ends in self._gaps.get(partition, ()):
            gap = np.maximum(np.searchsorted(starts, again, side="right") - 1, 0)
            unseen |= (again >= starts[gap]) & (again <= ends[gap])
        if unseen.any():
            reason = (
                f"offset {again[unseen][0]} of source partition {partition} comes after later ones: the stream is "
                "partitioned anew, so positions mean nothing"
            )
            raise SourceRefused(self._source, reason, cure="derive it without PARTITION BY, or use mode 'pull'")


def first_offsets(starts: Mapping[int, int]) -> dict[int, int]:
    """The offsets to ask for: one before each start. Partitions of which nothing was landed are left out."""
    return {partition: start - 1 for partition, start in starts.items() if start > 0}


class PositionWatch:
    """Follows a read from given positions.

    Args:
        source: What is read, for errors.
        starts: Next offset wanted by source partition; nothing is expected of partitions whose start is 0.
        vouched: Whether the row before each start was asked for too; if not, nothing can be concluded.
    """

    def __init__(self, source: str, starts: Mapping[int, int], *, vouched: bool = True) -> None:
        self._source = source
        self.starts = {partition: start for partition, start in starts.items() if start > 0}
        self.seen = SeenOffsets()
        self._cleared: set[int] = set() if vouched else set(self.starts)

    @property
    def silent(self) -> frozenset[int]:
        """Source partitions of which nothing came although there must be something, as far as is known."""
        return frozenset(self.starts.keys() - self.seen.extents.keys() - self._cleared)

    @property
    def gaps(self) -> frozenset[int]:
        """Source partitions whose first row lies after the one that was wanted, and nobody knows why."""
        late = (p for p, start in self.starts.items() if p in self.seen.extents and self._first(p) > start)
        return frozenset(set(late) - self._cleared)

    def _first(self, partition: int) -> int:
        return self.seen.extents[partition].lowest

    def is_settled_by(self, probe: SeenOffsets) -> bool:
        """Whether a probe that reads on would show nothing new."""
        gaps = self.gaps
        return all(
            _is_conclusive(probe.extents.get(partition), self.starts[partition], gap=partition in gaps)
            for partition in self.silent | gaps
        )

    def settle(self, probe: SeenOffsets) -> frozenset[int]:
        """Judges what is silent or begins with a gap, by what a probe found of it.

        Args:
            probe: Of each such partition, the oldest row that there is, and the newest or one that is not before the
                position.

        Returns:
            Partitions whose rows exist, so that the read must still deliver them.

        Raises:
            SourceDataLost: Rows between position and oldest offset are gone.
            SourceRecreated: The partition ends before the position.
        """
        owed = set()
        for partition in sorted(self.silent | self.gaps):
            found = probe.extents.get(partition) or self.seen.extents.get(partition)
            start = self.starts[partition]
            if found is not None and found.lowest > start:
                raise self._lost(partition, start, found.lowest)
            if partition not in self.silent or found is None:
                self._cleared.add(partition)  # an old gap; or everything expired, after it was landed
            elif found.highest < start - 1:
                raise self._recreated(partition, start, found.highest)
            else:
                owed.add(partition)
        return frozenset(owed)

    def _lost(self, partition: int, start: int, oldest: int) -> SourceDataLost:
        reason = f"partition {partition}: rows from offset {start} to {oldest - 1} expired before they were read"
        return SourceDataLost(self._source, reason)

    def _recreated(self, partition: int, start: int, newest: int) -> SourceRecreated:
        reason = f"partition {partition} ends at offset {newest}, but offsets below {start} were landed already"
        return SourceRecreated(self._source, reason)


def _is_conclusive(found: Extent | None, start: int, *, gap: bool) -> bool:
    return found is not None and (gap or found.lowest > start or found.highest >= start - 1)


def starts_anew(starts: Mapping[int, int], probe: SeenOffsets) -> bool:
    """Whether any source partition ends before its start, so that the source was recreated.

    Args:
        starts: Next offset wanted by source partition.
        probe: What there is.
    """
    ends = (
        (probe.extents[partition].highest, start) for partition, start in starts.items() if partition in probe.extents
    )
    return any(highest < start - 1 for highest, start in ends)
