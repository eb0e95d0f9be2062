"""Positions: how much of its source a partition holds. A row is in the lake if and only if the position says so.

Four kinds, and a feed keeps one for life: ``offsets`` (rows numbered by the source), ``window`` (a partition pulled as
a whole), ``snapshot`` (a version of a table), ``ids`` (items without order, remembered one by one:
`datalake_assets.core.item_ids`). All are immutable and travel in the partition's manifest as JSON.

Rows that a commit passed over, because they went to quarantine, are the holes of an ``offsets`` position: they lie
below it and are not in the lake, until a replay fills them. See the ADR on quarantined rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

from datalake_assets.core.item_ids import IdsPosition
from datalake_assets.core.values import Value
from datalake_assets.errors import CorruptLake

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

__all__ = [
    "MAX_HOLES",
    "Holes",
    "OffsetsPosition",
    "Position",
    "Runs",
    "SnapshotPosition",
    "SourcePartition",
    "WindowPosition",
    "common_position",
    "first_seen",
    "integers",
    "merged_runs",
    "number_arrays",
    "numbers_in",
    "numbers_of",
    "offset_bounds",
    "offset_to_json",
    "partition_of",
    "position_facts",
    "position_from_json",
    "row_position",
    "runs_of",
    "within",
]

Mask: TypeAlias = "npt.NDArray[np.bool_]"
#: Offsets, or source partitions, of rows: int64, or Python's own numbers and texts where the source's are larger.
Ints: TypeAlias = "npt.NDArray[Any]"
#: What a source calls a part of it that has an order of its own: a number, as Kafka does; or a text that is no number,
#: as Kinesis does.
SourcePartition: TypeAlias = int | str


#: Above all offsets. Kafka's have 63 bits; Kinesis's sequence numbers 186, and 24 more within an aggregated record.
LAST_OFFSET = 2**256 - 1
_INT64 = 2**63
#: Offsets in ascending order as first and last of each run without a gap.
Runs: TypeAlias = tuple[tuple[int, int], ...]
#: Runs of holes that a position keeps for a source partition; a manifest is read and written whole.
MAX_HOLES = 200


def partition_of(text: str) -> SourcePartition:
    """The source partition that is written so in JSON, where names are texts: the inverse of ``str``."""
    return int(text) if re.fullmatch("0|-?[1-9][0-9]*", text) else text


#: Source partition and offset, as `row_position` writes them. Rows that share a number have a digest behind it.
_NUMBERED = re.compile(r"(?:(\d{1,10})|\[([^\]]{1,200})\]):(\d{1,80})(?:#[0-9a-f]+)?")


def row_position(partition: SourcePartition, offset: int | str) -> str:
    """Where a row stood, as quarantine writes it: ``0:17``; names are told from numbers by brackets."""
    return f"[{partition}]:{offset}" if isinstance(partition, str) else f"{partition}:{offset}"


def numbers_in(position: str) -> tuple[SourcePartition, int] | None:
    """Source partition and offset of a position as `row_position` writes it; None if it is another."""
    match = _NUMBERED.fullmatch(position)
    return None if match is None else (match[2] or int(match[1]), int(match[3]))


def offset_to_json(offset: int) -> int | str:
    """A number as JSON has it: a text where 64 bits don't hold it, as they do all that earlier releases wrote.

    ``int`` is the inverse.
    """
    return offset if -_INT64 <= offset < _INT64 else str(offset)


def integers(values: Sequence[int]) -> Ints:
    """Numbers of any size."""
    import numpy as np  # noqa: PLC0415  who reads and writes positions need not load it

    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        return np.array(values, dtype=object)


def numbers_of(partitions: pa.Array, offsets: pa.Array) -> tuple[Ints, Ints]:
    """What `datalake_assets.core.batches.SourceBatch` says of its rows, to compute with.

    Args:
        partitions: The source partition of each row: integers, or strings that are no numbers.
        offsets: The offset of each row: integers, or strings of decimal digits.
    """
    import numpy as np  # noqa: PLC0415  who reads and writes positions need not load it
    import pyarrow.types as pt  # noqa: PLC0415  who reads and writes positions need not load it

    if pt.is_integer(offsets.type):
        return np.asarray(partitions).astype(np.int64), np.asarray(offsets).astype(np.int64)
    names = np.array(partitions.to_pylist(), dtype=object)
    return names, np.array([int(each) for each in offsets.to_pylist()], dtype=object)


def number_arrays(at: Sequence[tuple[SourcePartition, int]]) -> tuple[pa.Array, pa.Array]:
    """The inverse of `numbers_of`, of pairs of source partition and offset; int32 and int64 where these hold them."""
    import pyarrow as pa  # noqa: PLC0415  who reads and writes positions need not load it

    if all(isinstance(partition, int) and offset < _INT64 for partition, offset in at):
        return pa.array([each for each, _ in at], pa.int32()), pa.array([each for _, each in at], pa.int64())
    return pa.array([each for each, _ in at], pa.string()), pa.array([str(each) for _, each in at], pa.string())


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
    first, last = (integers(each) for each in zip(*runs, strict=True))
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


class Holes(Value, frozen=True):
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
        return [offset_to_json(self.unsure_below), *(list(map(offset_to_json, run)) for run in self.runs)]

    @classmethod
    def from_json(cls, document: Sequence[Any]) -> Holes:
        """The inverse of `to_json`."""
        unsure, *runs = document
        return cls(tuple((int(first), int(last)) for first, last in runs), int(unsure))


class OffsetsPosition(Value, frozen=True):
    """Next wanted offset by source partition: rows below it are in the lake but for holes, rows at or above it are not.

    Attributes:
        next_offsets: Source partition -> (epoch, next offset). The epoch counts how often the topic was recreated; an
            offset means something only within one.
        holes: By source partition, of the same epoch; those without any are left out.
    """

    next_offsets: Mapping[SourcePartition, tuple[int, int]] = msgspec.field(default_factory=dict)
    holes: Mapping[SourcePartition, Holes] = msgspec.field(default_factory=dict)

    def floor(self, source_partition: SourcePartition, epoch: int) -> int:
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
            for partition in np.unique(partitions).tolist():
                rows = partitions == partition
                wanted[rows] = offsets[rows] >= self.floor(partition, epoch)
        return wanted

    def admits(self, epoch: int, lowest: Mapping[SourcePartition, int]) -> bool:
        """Whether rows whose lowest offsets are ``lowest`` (by source partition) are all new here."""
        return all(offset >= self.floor(partition, epoch) for partition, offset in lowest.items())

    def advanced(
        self,
        epoch: int,
        highest: Mapping[SourcePartition, int],
        *,
        passed: Mapping[SourcePartition, Holes] | None = None,
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

    def lacks(self, epoch: int, partition: SourcePartition, offsets: Ints) -> Mask:
        """Which rows of a source partition are certainly not in the lake."""
        holes = Holes() if self._is_of_before(partition, epoch) else self.holes.get(partition, Holes())
        above: Mask = offsets >= self.floor(partition, epoch)
        return above | within(holes.runs, offsets)

    def replayed(
        self, epoch: int, taken: Mapping[SourcePartition, Runs], *, passed: Mapping[SourcePartition, Holes]
    ) -> OffsetsPosition:
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

    def _is_of_before(self, partition: SourcePartition, epoch: int) -> bool:
        """Whether what is known of a source partition is about another epoch."""
        return self.next_offsets.get(partition, (epoch, 0))[0] != epoch

    def to_json(self) -> dict[str, Any]:
        """``{"kind": "offsets", "next": {"0": [epoch, offset]}}``, with ``"holes"`` where there are some.

        Offsets of more than 64 bits are texts.
        """
        pairs = _by_partition(self.next_offsets)
        holes = {str(partition): each.to_json() for partition, each in _by_partition(self.holes)}
        document = {
            "kind": "offsets",
            "next": {str(partition): [epoch, offset_to_json(offset)] for partition, (epoch, offset) in pairs},
        }
        return document | ({"holes": holes} if holes else {})


T = TypeVar("T")


def _by_partition(found: Mapping[SourcePartition, T]) -> Iterable[tuple[SourcePartition, T]]:
    """In the order of the source partitions: numbers by their size, then names."""
    return sorted(found.items(), key=lambda each: (isinstance(each[0], str), each[0]))


class WindowPosition(Value, frozen=True):
    """A partition that holds what one pull of its window saw.

    Attributes:
        start: Start of the window, inclusive.
        end: End of the window, exclusive.
        as_of: When that pull began, by the store's clock, and after those that it has seen, whatever that clock says;
            an older pull never replaces a newer one.
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


class SnapshotPosition(Value, frozen=True):
    """A version of a table.

    Attributes:
        as_of: When the pull began, as in `WindowPosition`.
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
            {partition_of(partition): (int(at[0]), int(at[1])) for partition, at in pairs},
            {partition_of(partition): Holes.from_json(each) for partition, each in holes},
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
    hint: Mapping[SourcePartition, int],
    rejected: Mapping[SourcePartition, Holes],
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


def first_seen(highest: MutableMapping[SourcePartition, int], partitions: Ints, offsets: Ints) -> Mask:
    """Which rows come for the first time, in a read that is in offset order within each source partition.

    Args:
        highest: Highest offset met so far by source partition; updated.
        partitions: Source partition of each row.
        offsets: Offset of each row. A row at or below the running maximum of its partition came before.
    """
    import numpy as np  # noqa: PLC0415  who reads and writes positions need not load it

    fresh = np.ones(len(offsets), dtype=np.bool_)
    for value in np.unique(partitions).tolist():
        rows = np.flatnonzero(partitions == value)
        own = offsets[rows]
        before = np.maximum.accumulate(np.concatenate((integers([highest.get(value, -1)]), own)))
        fresh[rows] = own > before[:-1]
        highest[value] = int(before[-1])
    return fresh


def offset_bounds(partitions: Ints, offsets: Ints) -> dict[SourcePartition, tuple[int, int]]:
    """Lowest and highest offset by source partition."""
    import numpy as np  # noqa: PLC0415  who reads and writes positions need not load it

    bounds = {}
    for value in np.unique(partitions).tolist():
        own = offsets[partitions == value]
        bounds[value] = (int(own.min()), int(own.max()))
    return bounds
