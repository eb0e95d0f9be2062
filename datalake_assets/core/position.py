"""Positions: how much of its source a partition holds. A row is in the lake if and only if the position says so.

Four kinds, and a feed keeps one for life: ``offsets`` (rows numbered by the source), ``window`` (a partition pulled as
a whole), ``snapshot`` (a version of a table), ``ids`` (items without order, remembered one by one:
`datalake_assets.core.item_ids`). All are immutable and travel in the partition's manifest as JSON.

Rows that a commit passed over, because they went to quarantine, are the holes of an ``offsets`` position: they lie
below it and are not in the lake, until a replay fills them. See the ADR on quarantined rows.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from datalake_assets.core.item_ids import IdsPosition
from datalake_assets.errors import CorruptLake

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "MAX_HOLES",
    "Holes",
    "OffsetsPosition",
    "Position",
    "Runs",
    "SnapshotPosition",
    "WindowPosition",
    "common_position",
    "first_seen",
    "merged_runs",
    "offset_bounds",
    "position_facts",
    "position_from_json",
    "runs_of",
    "within",
]

Mask: TypeAlias = "npt.NDArray[np.bool_]"
Ints: TypeAlias = "npt.NDArray[np.int64]"


#: Offsets are 64-bit numbers, as Kafka has them.
LAST_OFFSET = 2**63 - 1
#: Offsets in ascending order as first and last of each run without a gap.
Runs: TypeAlias = tuple[tuple[int, int], ...]
#: Runs of holes that a position keeps for a source partition; a manifest is read and written whole.
MAX_HOLES = 200


def runs_of(offsets: Ints) -> Runs:
    """The runs of some offsets, in whatever order they come."""
    import numpy as np  # noqa: PLC0415  who reads and writes positions need not load it

    ordered = np.unique(offsets)
    if not len(ordered):
        return ()
    breaks = np.flatnonzero(np.diff(ordered) > 1)
    first, last = ordered[np.r_[0, breaks + 1]], ordered[np.r_[breaks, len(ordered) - 1]]
    return tuple(zip(first.tolist(), last.tolist(), strict=True))


def merged_runs(one: Runs, other: Runs) -> Runs:
    """The offsets that are in either."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted((*one, *other)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def within(runs: Runs, offsets: Ints) -> Mask:
    """Which of the offsets are in the runs."""
    import numpy as np  # noqa: PLC0415  who reads and writes positions need not load it

    if not runs:
        return np.zeros(len(offsets), dtype=np.bool_)
    first, last = np.array(runs, dtype=np.int64).T
    run = np.searchsorted(first, offsets, side="right") - 1
    inside: Mask = (run >= 0) & (offsets <= last[run])
    return inside


def _without(runs: Runs, taken: Runs) -> Runs:
    """The offsets that are in ``runs`` alone."""
    left: list[tuple[int, int]] = []
    for first, last in runs:
        start = first
        for low, high in taken:
            if high < start or low > last:
                continue
            if low > start:
                left.append((start, low - 1))
            start = high + 1
        if start <= last:
            left.append((start, last))
    return tuple(left)


@dataclass(frozen=True, slots=True)
class Holes:
    """Offsets of a source partition that lie below a position and whose rows are not there.

    Attributes:
        runs: These.
        unsure_below: Below it nothing is known: there were more holes than are kept.
    """

    runs: Runs = ()
    unsure_below: int = 0

    def added(self, runs: Runs) -> Holes:
        """The holes with more of them; the lowest are given up where they are too many."""
        merged = merged_runs(self.runs, runs)
        if len(merged) <= MAX_HOLES:
            return Holes(merged, self.unsure_below)
        return Holes(merged[-MAX_HOLES:], max(self.unsure_below, merged[-MAX_HOLES - 1][1] + 1))

    def filled(self, runs: Runs) -> Holes:
        """The holes without these rows, which are there now."""
        return Holes(_without(self.runs, runs), self.unsure_below)

    def between(self, floor: int, last: int) -> Holes:
        """The holes at ``floor`` or above, and not above ``last``."""
        runs = tuple((max(low, floor), min(high, last)) for low, high in self.runs if high >= floor and low <= last)
        return Holes(runs, min(self.unsure_below, last + 1) if self.unsure_below > floor else 0)

    def joined(self, other: Holes) -> Holes:
        """These and others."""
        return Holes((), max(self.unsure_below, other.unsure_below)).added(merged_runs(self.runs, other.runs))

    def to_json(self) -> list[Any]:
        """``[unsure_below, [first, last], …]``."""
        return [self.unsure_below, *(list(run) for run in self.runs)]

    @classmethod
    def from_json(cls, document: Sequence[Any]) -> Holes:
        """The inverse of `to_json`."""
        unsure, *runs = document
        return cls(tuple((int(first), int(last)) for first, last in runs), int(unsure))


@dataclass(frozen=True, slots=True)
class OffsetsPosition:
    """Next wanted offset by source partition: rows below it are in the lake but for holes, rows at or above it are not.

    Attributes:
        next_offsets: Source partition -> (epoch, next offset). The epoch counts how often the topic was recreated; an
            offset means something only within one.
        holes: By source partition, of the same epoch; those without any are left out.
    """

    next_offsets: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    holes: Mapping[int, Holes] = field(default_factory=dict)

    def floor(self, source_partition: int, epoch: int) -> int:
        """The first offset of ``epoch`` that is not in the lake; 0 if none is, and beyond all in a past epoch."""
        at_epoch, offset = self.next_offsets.get(source_partition, (epoch, 0))
        if at_epoch > epoch:
            return LAST_OFFSET
        return offset if at_epoch == epoch else 0

    def new_rows(self, epoch: int, partitions: Ints, offsets: Ints) -> Mask:
        """Which of these rows are not in the lake yet."""
        import numpy as np  # noqa: PLC0415  who reads and writes positions need not load it

        wanted = np.ones(len(offsets), dtype=np.bool_)
        if self.next_offsets:
            for partition in np.unique(partitions):
                rows = partitions == partition
                wanted[rows] = offsets[rows] >= self.floor(int(partition), epoch)
        return wanted

    def admits(self, epoch: int, lowest: Mapping[int, int]) -> bool:
        """Whether rows whose lowest offsets are ``lowest`` (by source partition) are all new here."""
        return all(offset >= self.floor(partition, epoch) for partition, offset in lowest.items())

    def advanced(
        self, epoch: int, highest: Mapping[int, int], *, passed: Mapping[int, Holes] | None = None
    ) -> OffsetsPosition:
        """The position after landing rows up to and including ``highest`` (offset by source partition).

        Args:
            epoch: Of the offsets.
            highest: The highest offset landed.
            passed: Offsets that went to quarantine, now or earlier: holes, where the position moves beyond them.
        """
        merged, holes = dict(self.next_offsets), dict(self.holes)
        for partition, offset in highest.items():
            floor = self.floor(partition, epoch)
            merged[partition] = max(merged.get(partition, (epoch, 0)), (epoch, offset + 1))
            if merged[partition] != (epoch, offset + 1) or offset < floor:
                continue
            known = Holes() if self._is_of_before(partition, epoch) else holes.get(partition, Holes())
            holes[partition] = known.joined((passed or {}).get(partition, Holes()).between(floor, offset))
        return OffsetsPosition(merged, {partition: each for partition, each in holes.items() if each != Holes()})

    def lacks(self, epoch: int, partition: int, offsets: Ints) -> Mask:
        """Which rows of a source partition are certainly not in the lake."""
        holes = Holes() if self._is_of_before(partition, epoch) else self.holes.get(partition, Holes())
        above: Mask = offsets >= self.floor(partition, epoch)
        return above | within(holes.runs, offsets)

    def replayed(self, epoch: int, taken: Mapping[int, Runs], *, passed: Mapping[int, Holes]) -> OffsetsPosition:
        """The position after rows that were in quarantine were landed.

        Args:
            epoch: Of the offsets.
            taken: Offsets landed.
            passed: Other offsets in quarantine whose rows may belong here.
        """
        moved = self.advanced(
            epoch, {partition: runs[-1][1] for partition, runs in taken.items() if runs}, passed=passed
        )
        holes = {partition: each.filled(taken.get(partition, ())) for partition, each in moved.holes.items()}
        return OffsetsPosition(
            moved.next_offsets, {partition: each for partition, each in holes.items() if each != Holes()}
        )

    def _is_of_before(self, partition: int, epoch: int) -> bool:
        """Whether what is known of a source partition is about another epoch."""
        return self.next_offsets.get(partition, (epoch, 0))[0] != epoch

    def to_json(self) -> dict[str, Any]:
        """``{"kind": "offsets", "next": {"0": [epoch, offset]}}``, with ``"holes"`` where there are some."""
        pairs = sorted(self.next_offsets.items())
        holes = {str(partition): each.to_json() for partition, each in sorted(self.holes.items())}
        document = {"kind": "offsets", "next": {str(partition): list(at) for partition, at in pairs}}
        return document | ({"holes": holes} if holes else {})


@dataclass(frozen=True, slots=True)
class WindowPosition:
    """A partition that holds what one pull of its window saw.

    Attributes:
        start: Start of the window, inclusive.
        end: End of the window, exclusive.
        as_of: When that pull began, by the store's clock; an older pull never replaces a newer one.
        rows: Rows that it saw.
        fingerprint: Sum of their hashes (`datalake_assets.parquet.fingerprint`), hexadecimal.
        inputs: Of a mart: what the rows were made of (`datalake_assets.core.batches.Derived`); else empty.
    """

    start: datetime
    end: datetime
    as_of: datetime
    rows: int
    fingerprint: str
    inputs: str = ""

    def to_json(self) -> dict[str, Any]:
        """``{"kind": "window", "start", "end", "as_of", "rows", "fingerprint"}``; ``inputs`` of marts. Times in ISO."""
        return {
            "kind": "window",
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "as_of": self.as_of.isoformat(),
            "rows": self.rows,
            "fingerprint": self.fingerprint,
            **_inputs(self.inputs),
        }


@dataclass(frozen=True, slots=True)
class SnapshotPosition:
    """A version of a table.

    Attributes:
        as_of: When the pull began, by the store's clock.
        rows: Rows that it saw.
        inputs: As in `WindowPosition`.
        fingerprint: Likewise; empty of versions that were landed before there was one.
    """

    as_of: datetime
    rows: int
    inputs: str = ""
    fingerprint: str = ""

    def to_json(self) -> dict[str, Any]:
        """``{"kind": "snapshot", "as_of", "rows", "fingerprint"}``; of marts ``inputs``."""
        told = {"fingerprint": self.fingerprint} if self.fingerprint else {}
        return {"kind": "snapshot", "as_of": self.as_of.isoformat(), "rows": self.rows, **told, **_inputs(self.inputs)}


def _inputs(inputs: str) -> dict[str, str]:
    return {"inputs": inputs} if inputs else {}


Position: TypeAlias = OffsetsPosition | WindowPosition | SnapshotPosition | IdsPosition


def position_from_json(document: Mapping[str, Any] | None) -> Position | None:
    """The inverse of ``to_json``.

    Raises:
        CorruptLake: The document has no known kind.
    """
    if document is None:
        return None
    kind = document.get("kind")
    if kind == "offsets":
        pairs, holes = document["next"].items(), document.get("holes", {}).items()
        return OffsetsPosition(
            {int(partition): (int(at[0]), int(at[1])) for partition, at in pairs},
            {int(partition): Holes.from_json(each) for partition, each in holes},
        )
    if kind == "window":
        return WindowPosition(
            start=datetime.fromisoformat(document["start"]),
            end=datetime.fromisoformat(document["end"]),
            as_of=datetime.fromisoformat(document["as_of"]),
            rows=int(document["rows"]),
            fingerprint=document["fingerprint"],
            inputs=document.get("inputs", ""),
        )
    if kind == "snapshot":
        as_of, rows = datetime.fromisoformat(document["as_of"]), int(document["rows"])
        return SnapshotPosition(as_of, rows, document.get("inputs", ""), document.get("fingerprint", ""))
    if kind == "ids":
        return IdsPosition.from_json(document)
    raise CorruptLake("manifest", f"position of unknown kind {kind!r}")


def position_facts(position: Position | None) -> dict[str, Any]:
    """What a report says of a position: all of it, but for single items, which may be many; ``{}`` for none."""
    if isinstance(position, IdsPosition):
        return {"kind": "ids", "items": position.items}
    return position.to_json() if position is not None else {}


def common_position(
    positions: Sequence[OffsetsPosition],
    *,
    epoch: int,
    hint: Mapping[int, int],
    rejected: Mapping[int, Holes],
) -> OffsetsPosition | None:
    """The one position of all partitions of a feed; None if some have rows of a read that others have not.

    Args:
        positions: Those of the partitions.
        epoch: Of the source, now.
        hint: Up to where everything was landed, or put aside.
        rejected: What was put aside: a hole of all partitions, unless one of them may have got it.
    """
    holes = dict(rejected)
    for each in positions:
        for partition, (at, offset) in each.next_offsets.items():
            if at > epoch or (at == epoch and offset > hint.get(partition, 0)):
                return None
            if at == epoch and partition in holes:
                own, known = each.holes.get(partition, Holes()), holes[partition]
                lacking = _without(known.runs, _without(known.runs, own.runs))
                above = known.between(offset, LAST_OFFSET - 1).runs
                holes[partition] = Holes(merged_runs(lacking, above), max(known.unsure_below, own.unsure_below))
    next_offsets = {partition: (epoch, offset) for partition, offset in hint.items()}
    return OffsetsPosition(next_offsets, {partition: each for partition, each in holes.items() if each != Holes()})


def first_seen(highest: MutableMapping[int, int], partitions: Ints, offsets: Ints) -> Mask:
    """Which rows come for the first time, in a read that is in offset order within each source partition.

    Args:
        highest: Highest offset met so far by source partition; updated.
        partitions: Source partition of each row.
        offsets: Offset of each row. A row at or below the running maximum of its partition came before.
    """
    import numpy as np  # noqa: PLC0415  who reads and writes positions need not load it

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
    import numpy as np  # noqa: PLC0415  who reads and writes positions need not load it

    bounds = {}
    for value in np.unique(partitions):
        own = offsets[partitions == value]
        bounds[int(value)] = (int(own.min()), int(own.max()))
    return bounds
