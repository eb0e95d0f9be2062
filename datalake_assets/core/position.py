"""Positions: how much of its source a partition holds. A row is in the lake if and only if the position says so.

Three kinds, and a feed keeps one for life: ``offsets`` (rows numbered by the source), ``window`` (a partition pulled as
a whole), ``snapshot`` (a version of a table). All are immutable and travel in the partition's manifest as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from datalake_assets.errors import CorruptLake

__all__ = [
    "OffsetsPosition",
    "Position",
    "SnapshotPosition",
    "WindowPosition",
    "first_seen",
    "offset_bounds",
    "position_from_json",
]

Mask: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OffsetsPosition:
    """Next wanted offset by source partition: rows below it are in the lake, rows at or above it are not.

    Attributes:
        next_offsets: Source partition -> (epoch, next offset). The epoch counts how often the topic was recreated; an
            offset means something only within one.
    """

    next_offsets: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def floor(self, source_partition: int, epoch: int) -> int:
        """The first offset of ``epoch`` that is not in the lake; 0 if none is, and beyond all in a past epoch."""
        at_epoch, offset = self.next_offsets.get(source_partition, (epoch, 0))
        if at_epoch > epoch:
            return np.iinfo(np.int64).max
        return offset if at_epoch == epoch else 0

    def new_rows(self, epoch: int, partitions: Ints, offsets: Ints) -> Mask:
        """Which of these rows are not in the lake yet."""
        wanted = np.ones(len(offsets), dtype=np.bool_)
        if self.next_offsets:
            for partition in np.unique(partitions):
                rows = partitions == partition
                wanted[rows] = offsets[rows] >= self.floor(int(partition), epoch)
        return wanted

    def admits(self, epoch: int, lowest: Mapping[int, int]) -> bool:
        """Whether rows whose lowest offsets are ``lowest`` (by source partition) are all new here."""
        return all(offset >= self.floor(partition, epoch) for partition, offset in lowest.items())

    def advanced(self, epoch: int, highest: Mapping[int, int]) -> OffsetsPosition:
        """The position after landing rows up to and including ``highest`` (offset by source partition)."""
        merged = dict(self.next_offsets)
        for partition, offset in highest.items():
            merged[partition] = max(merged.get(partition, (epoch, 0)), (epoch, offset + 1))
        return OffsetsPosition(merged)

    def to_json(self) -> dict[str, Any]:
        """``{"kind": "offsets", "next": {"0": [epoch, offset]}}``."""
        pairs = sorted(self.next_offsets.items())
        return {"kind": "offsets", "next": {str(partition): list(at) for partition, at in pairs}}


@dataclass(frozen=True, slots=True)
class WindowPosition:
    """A partition that holds what one pull of its window saw.

    Attributes:
        start: Start of the window, inclusive.
        end: End of the window, exclusive.
        as_of: When that pull began, by the store's clock; an older pull never replaces a newer one.
        rows: Rows that it saw.
        fingerprint: Sum of their hashes (`datalake_assets.parquet.fingerprint`), hexadecimal.
    """

    start: datetime
    end: datetime
    as_of: datetime
    rows: int
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """``{"kind": "window", "start", "end", "as_of", "rows", "fingerprint"}``, times in ISO 8601."""
        return {
            "kind": "window",
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "as_of": self.as_of.isoformat(),
            "rows": self.rows,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class SnapshotPosition:
    """A version of a table.

    Attributes:
        as_of: When the pull began, by the store's clock.
        rows: Rows that it saw.
    """

    as_of: datetime
    rows: int

    def to_json(self) -> dict[str, Any]:
        """``{"kind": "snapshot", "as_of", "rows"}``."""
        return {"kind": "snapshot", "as_of": self.as_of.isoformat(), "rows": self.rows}


Position: TypeAlias = OffsetsPosition | WindowPosition | SnapshotPosition


def position_from_json(document: Mapping[str, Any] | None) -> Position | None:
    """The inverse of ``to_json``.

    Raises:
        CorruptLake: The document has no known kind.
    """
    if document is None:
        return None
    kind = document.get("kind")
    if kind == "offsets":
        pairs = document["next"].items()
        return OffsetsPosition({int(partition): (int(at[0]), int(at[1])) for partition, at in pairs})
    if kind == "window":
        return WindowPosition(
            start=datetime.fromisoformat(document["start"]),
            end=datetime.fromisoformat(document["end"]),
            as_of=datetime.fromisoformat(document["as_of"]),
            rows=int(document["rows"]),
            fingerprint=document["fingerprint"],
        )
    if kind == "snapshot":
        return SnapshotPosition(as_of=datetime.fromisoformat(document["as_of"]), rows=int(document["rows"]))
    raise CorruptLake("manifest", f"position of unknown kind {kind!r}")


def first_seen(highest: MutableMapping[int, int], partitions: Ints, offsets: Ints) -> Mask:
    """Which rows come for the first time, in a read that is in offset order within each source partition.

    Args:
        highest: Highest offset met so far by source partition; updated.
        partitions: Source partition of each row.
        offsets: Offset of each row. A row at or below the running maximum of its partition came before.
    """
    fresh = np.ones(len(offsets), dtype=np.bool_)
    for value in np.unique(partitions):
        rows = np.flatnonzero(partitions == value)
        own = offsets[rows]
        before = np.maximum.accumulate(np.concatenate(([highest.get(int(value), -1)], own)))
        fresh[rows] = own > before[:-1]
        highest[int(value)] = int(before[-1])
    return fresh


def offset_bounds(partitions: Ints, offsets: Ints) -> dict[int, tuple[int, int]]:
    """Lowest and highest offset by source partition."""
    bounds = {}
    for value in np.unique(partitions):
        own = offsets[partitions == value]
        bounds[int(value)] = (int(own.min()), int(own.max()))
    return bounds
