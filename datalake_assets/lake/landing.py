"""One pass over a source: every row is known already, quarantined, or staged in the file of its partition.

Staged files are not visible: the commits come after, in `datalake_assets.lake.export_commits`. Quarantined rows are
kept as JSON lines beside the data, so that no row is dropped silently.

Rows that nobody wants are kept out at three places, each for a reason of its own. The source's *query* asks for as
little as the server can leave out, which saves work and the wire, and is a wish. The source's *reader* drops what came
all the same: a server may compare times as texts, or begin before the offset that was asked for. *Here* the position of
each partition decides, since nothing else is exact: a row lands if and only if its position says so, whoever read it,
and when.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.core.arrow_arrays import constant, moment, null_of, numbers_in, of_numbers, truths_in
from datalake_assets.core.batches import Batches, FinishedItem, ItemOrigin, RejectedRow, SourceBatch
from datalake_assets.core.item_ids import forgotten_at
from datalake_assets.core.partitions import UNKNOWN_PARTITION, PartitionBy, key_of, keys_of
from datalake_assets.core.position import (
    Ints,
    OffsetsPosition,
    Runs,
    SourcePartition,
    first_seen,
    integers,
    offset_bounds,
    runs_of,
)
from datalake_assets.core.row_texts import QuarantinedRow, rows_to_text, values_of
from datalake_assets.core.schema import DISCARDING, Fitted, SchemaPolicy, conform, fitted, schema_to_json
from datalake_assets.lake.quarantined_rows import Quarantine
from datalake_assets.lake.table import Progress
from datalake_assets.lake.watching import present_watch
from datalake_assets.parquet.fingerprint import row_hashes

__all__ = ["AHEAD", "Fence", "Landing", "Mask", "Offsets", "OffsetsFence", "Placement"]

#: A partition time further ahead than this is a broken clock, not an event.
AHEAD = timedelta(days=1)
#: Seconds between two progress reports.
PROGRESS_S = 0.2
_NOWHERE = constant(-1).cast(pa.int32())

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Offsets:
    """Lowest and highest offset staged, by source partition."""

    lowest: dict[SourcePartition, int] = field(default_factory=dict)
    highest: dict[SourcePartition, int] = field(default_factory=dict)

    def add(self, bounds: dict[SourcePartition, tuple[int, int]]) -> None:
        """Takes in more rows."""
        for partition, (low, high) in bounds.items():
            self.lowest[partition] = min(low, self.lowest.get(partition, low))
            self.highest[partition] = max(high, self.highest.get(partition, high))


class Fence(Protocol):
    """Keeps rows out that the lake has already, by what the source says of them.

    Attributes:
        epoch: Of the source's numbers; 0 where it has none.
    """

    epoch: int

    def doubt(self, batch: SourceBatch) -> str:
        """Why nobody can say whether the rows of a batch are there already; empty if it can be said."""

    def reject(self, row: RejectedRow) -> None:
        """Takes note of a row that goes to quarantine."""

    def passed(self, read_to: Mapping[SourcePartition, int]) -> None:
        """Takes note of numbers that no row has: of each source partition all before the one given."""

    def new_rows(self, batch: SourceBatch, keys: npt.NDArray[np.int32], names: list[str], placed: Mask) -> Mask:
        """Which rows are to be landed: not in their partition yet.

        Args:
            batch: The rows.
            keys: The partition of each, as a number.
            names: Partition keys by number.
            placed: Which rows have a partition.
        """


@dataclass(slots=True)
class OffsetsFence:
    """The fence for sources that number their rows.

    Attributes:
        epoch: Epoch of the offsets read.
        position_of: The committed position of a partition, by key.
        seen: Highest offset read by source partition.
        staged: What was let in, by partition key.
        rejected: Offsets that go to quarantine, by source partition.
        shared: Whether rows may share an offset; then a read gives each row once (`SystemSource.shared_numbers`).
    """

    epoch: int
    position_of: Callable[[str], OffsetsPosition]
    seen: dict[SourcePartition, int] = field(default_factory=dict)
    staged: dict[str, Offsets] = field(default_factory=lambda: defaultdict(Offsets))
    rejected: dict[SourcePartition, list[int]] = field(default_factory=lambda: defaultdict(list))
    shared: bool = False

    def doubt(self, batch: SourceBatch) -> str:  # noqa: ARG002  numbers never get out of date
        """Implements `Fence`: never."""
        return ""

    def reject(self, row: RejectedRow) -> None:
        """Implements `Fence`."""
        at = QuarantinedRow.of(row, epoch=self.epoch).offset
        if at is not None:
            partition, offset = at
            self.rejected[partition].append(offset)
            self.seen[partition] = max(offset, self.seen.get(partition, offset))

    def passed(self, read_to: Mapping[SourcePartition, int]) -> None:
        """Implements `Fence`."""
        for partition, offset in read_to.items():
            self.seen[partition] = max(offset - 1, self.seen.get(partition, -1))

    def together(self) -> Offsets:
        """What was let in, wherever it goes."""
        joined = Offsets()
        for each in self.staged.values():
            joined.add({partition: (low, each.highest[partition]) for partition, low in each.lowest.items()})
        return joined

    def fresh(self, partitions: Ints, offsets: Ints) -> Mask:
        """Which rows this read gives for the first time; takes note of their offsets."""
        if not self.shared:
            return first_seen(self.seen, partitions, offsets)
        for partition, (_, high) in offset_bounds(partitions, offsets).items():
            self.seen[partition] = max(high, self.seen.get(partition, high))
        return np.ones(len(offsets), dtype=np.bool_)

    @property
    def rejected_runs(self) -> dict[SourcePartition, Runs]:
        """The rejected rows, by source partition."""
        return {partition: runs_of(integers(offsets)) for partition, offsets in self.rejected.items()}

    def new_rows(self, batch: SourceBatch, keys: npt.NDArray[np.int32], names: list[str], placed: Mask) -> Mask:
        """Implements `Fence`: what is read for the first time, too."""
        partitions, offsets = batch.numbers
        wanted = self.fresh(partitions, offsets) & placed
        for number, key in enumerate(names):
            rows = np.flatnonzero((keys == number) & wanted)
            wanted[rows] = self.position_of(key).new_rows(self.epoch, partitions[rows], offsets[rows])
            rows = rows[wanted[rows]]
            if len(rows):
                self.staged[key].add(offset_bounds(partitions[rows], offsets[rows]))
        return wanted


@dataclass(frozen=True, slots=True)
class Contract:
    """What rows have to be like, and what becomes of those that are not.

    Attributes:
        schema: The feed's schema.
        policy: Its ``schema_policy``. Under those that discard nothing, all batches have the schema.
        beside: Takes the rows as they came that are landed without some of their values.
        partition_path: The path of a partition, by its key.
    """

    schema: pa.Schema
    policy: SchemaPolicy
    beside: Quarantine
    partition_path: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where rows go.

    Attributes:
        time_column: The column that says so; None: all go to ``key``.
        by: Length of the partitions.
        earliest: Rows before it are quarantined.
        latest: Rows after it are quarantined.
        key: The one partition of rows without a time column.
    """

    time_column: str | None
    by: PartitionBy
    earliest: datetime
    latest: datetime
    key: str = ""


class _Taking(Protocol):
    """What takes rows: a `RollingWriter`, or what keeps them for later."""

    bytes_written: int

    def write(self, rows: pa.RecordBatch, /) -> None:
        """Takes rows."""


class Landing:
    """One pass.

    Args:
        placement: Where rows go.
        contract: What rows have to be like.
        writer: Takes the rows to be landed.
        quarantine: Takes those that cannot be.
        fence: Keeps out what is there; None for reads that replace it.
        fingerprint: Keep a fingerprint of each partition's rows.
        on_progress: Called now and then.
        reading: `ItemOrigin.reading` of the rows that are put aside.

    Attributes:
        fingerprints: By partition key; equal for equal rows in whatever order.
        misfits: Values that did not fit the contract, by the reason.
        misfit_rows: Rows that could not be landed for it.
        values_discarded: Values of rows that were landed without them.
        finished: Items that were read to their ends.
        source_id: `SourceBatch.source_id` of what was read.
    """

    def __init__(
        self,
        placement: Placement,
        contract: Contract,
        writer: _Taking,
        quarantine: Quarantine,
        *,
        fence: Fence | None = None,
        fingerprint: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        reading: str = "",
    ) -> None:
        self._reading = reading
        self._stood: Counter[str] = Counter()
        self._placement, self._contract, self._writer = placement, contract, writer
        self._quarantine, self.fence, self._on_progress = quarantine, fence, on_progress
        self.fingerprints: dict[str, int] | None = defaultdict(int) if fingerprint else None
        self.rows_read = self.rows_known = self.rows_landed = self.misfit_rows = self.values_discarded = 0
        self.misfits: Counter[str] = Counter()
        self.finished: list[FinishedItem] = []
        self.source_id = ""
        self._reported_at = 0.0
        self._watch = present_watch()

    def run(self, batches: Batches) -> None:
        """Reads all of ``batches``.

        Raises:
            SourceError: As the source raises it.
            LakeError: A file could not be staged.
        """
        epoch = self.fence.epoch if self.fence else 0
        for batch in batches:
            if self.fence is not None:
                self.fence.epoch = epoch + batches.recreated
            self.rows_read += batch.rows.num_rows + len(batch.rejected)
            if batch.rows.num_rows:
                self._land(batch)
            self._put_aside(batch.rejected)
            if self.fence is not None:
                self.fence.passed(batch.read_to)
            self.finished += batch.finished
            self.source_id = batch.source_id or self.source_id
            self._report()
        self._quarantine.flush()
        self._contract.beside.flush()

    def _put_aside(self, rows: Sequence[RejectedRow], key: str = "") -> None:
        """To quarantine; under a partition if that is known."""
        rows = [self._of_reading(row) for row in rows]
        self._quarantine.add(rows, partition_path=self._path(key), epoch=self._epoch)
        if rows and self._watch is not None:
            self._watch.quarantined(rows)
        if self.fence is not None:
            for row in rows:
                self.fence.reject(row)

    def _of_reading(self, row: RejectedRow) -> RejectedRow:
        """A row that says which reading of its file it is of; a message is one row, and the same at each reception."""
        if row.origin is None or not row.origin.name:
            return row
        return replace(row, origin=replace(row.origin, reading=self._reading))

    def _land(self, batch: SourceBatch) -> None:
        found = self._fitted(batch.rows)
        rows, refused = found.rows, found.refused(self._contract.policy)
        doubt = self.fence.doubt(batch) if self.fence is not None else ""
        codes, names, placed = self._place(rows)
        placed = wanted = placed & ~refused & (not doubt)
        if self.fence is not None:
            wanted = self.fence.new_rows(batch, codes, names, placed)
            self.rows_known += int(placed.sum() - wanted.sum())
        if not placed.all():  # after the fence, which takes the highest offset that it was given for seen
            self._reject(batch, found, refused, np.flatnonzero(~placed), doubt)
        if found.misfits:
            self._keep_beside(batch, found, wanted, [names[code] if code >= 0 else "" for code in codes])
            self.misfits.update({each.reason: int((each.rows & (wanted | refused)).sum()) for each in found.misfits})
            self.misfit_rows += int(refused.sum())
        if self.fingerprints is not None:
            hashes = row_hashes(rows)
            for number, key in enumerate(names):
                added = int(hashes[(codes == number) & wanted].sum())
                self.fingerprints[key] = (self.fingerprints[key] + added) % (1 << 64)
        self.rows_landed += int(wanted.sum())
        self._show(batch, rows, wanted, placed & ~wanted)
        self._writer.write(rows if wanted.all() else rows.filter(of_numbers(wanted)))

    def _show(self, batch: SourceBatch, rows: pa.RecordBatch, wanted: Mask, known: Mask) -> None:
        """Shows whoever watches the pass what becomes of a batch's rows."""
        if self._watch is None:
            return
        numbers = None if batch.source_partitions is None else batch.numbers
        for which, tell in ((wanted, self._watch.accepted), (known, self._watch.known)):
            if which.any():
                partitions, offsets = (None, None) if numbers is None else (each[which] for each in numbers)
                tell(rows if which.all() else rows.filter(of_numbers(which)), partitions, offsets)

    def _fitted(self, rows: pa.RecordBatch) -> Fitted:
        if self._contract.policy not in DISCARDING:
            return Fitted(conform(rows, self._contract.schema))
        return fitted(rows, self._contract.schema, needed=self._placement.time_column)

    def _keep_beside(self, batch: SourceBatch, found: Fitted, wanted: Mask, keys: Sequence[str]) -> None:
        """Keeps the rows as they came that are landed without some of their values."""
        which = np.flatnonzero(found.unfit & wanted)
        columns = _foreign_columns(found)
        for index, raw in zip(which.tolist(), _texts(batch, found, which), strict=True):
            at = self._position(batch, index, raw)
            row = RejectedRow(raw, found.reason(index), at, decoded=True, columns=columns)
            self._contract.beside.add((row,), partition_path=self._path(keys[index]), epoch=self._epoch)
        self.values_discarded += sum(int((each.rows & wanted).sum()) for each in found.misfits)

    @property
    def _epoch(self) -> int | None:
        return None if self.fence is None else self.fence.epoch

    def _path(self, key: str) -> str:
        return self._contract.partition_path(key) if key else UNKNOWN_PARTITION

    def _place(self, rows: pa.RecordBatch) -> tuple[npt.NDArray[np.int32], list[str], Mask]:
        """Partition of each row as (code per row, key by code), and which rows have one."""
        if self._placement.time_column is None:
            everywhere = np.ones(rows.num_rows, dtype=np.bool_)
            return np.zeros(rows.num_rows, dtype=np.int32), [self._placement.key], everywhere
        times = rows.column(self._placement.time_column)
        lower = moment(self._placement.earliest, times.type)
        upper = moment(self._placement.latest, times.type)
        inside = pc.and_(pc.greater_equal(times, lower), pc.less_equal(times, upper))
        placed = truths_in(inside)
        good = times if placed.all() else pc.if_else(of_numbers(placed), times, null_of(times.type))
        keys = keys_of(good, self._placement.by)
        return numbers_in(pc.fill_null(keys.indices, _NOWHERE)), keys.dictionary.to_pylist(), placed

    def _reject(
        self, batch: SourceBatch, found: Fitted, refused: Mask, which: npt.NDArray[np.intp], doubt: str = ""
    ) -> None:
        column, columns = self._placement.time_column, _foreign_columns(found)
        times = [None] * len(which) if column is None else values_of(found.rows.column(column).take(of_numbers(which)))
        for index, raw, time_ in zip(which.tolist(), _texts(batch, found, which), times, strict=True):
            reason = found.reason(index) if refused[index] else doubt or self._why(column or "", time_)
            known = isinstance(time_, datetime)
            key = key_of(_aware(time_), self._placement.by) if known else "" if column else self._placement.key
            position = self._position(batch, index, raw)
            if batch.item_name:  # a file has equal records, each of them a row
                self._stood[position] += 1
                position += f"~{self._stood[position]}" if self._stood[position] > 1 else ""
            origin = _origin(batch, index)
            row = RejectedRow(raw, reason, position, decoded=True, columns=columns, origin=origin)
            self._put_aside((row,), key)

    def _position(self, batch: SourceBatch, index: int, raw: bytes) -> str:
        """Where a row stood; it is known by its content, too, where others may have stood there."""
        at = _position(batch, index, raw)
        shared = isinstance(self.fence, OffsetsFence) and self.fence.shared
        return f"{at}#{_digest(raw)}" if shared else at

    def _why(self, column: str, value: Any) -> str:
        if value is None:
            return f"{column} is null"
        is_early = value < 0 if isinstance(value, int) else _aware(value) < self._placement.earliest
        where = "before the feed's start" if is_early else f"more than {AHEAD.days} day ahead"
        return f"{column} lies {where}"

    def _report(self) -> None:
        if self._on_progress is None or time.monotonic() - self._reported_at < PROGRESS_S:
            return
        self._reported_at = time.monotonic()
        self._on_progress(Progress(rows=self.rows_read, bytes_written=self._writer.bytes_written))


def _texts(batch: SourceBatch, found: Fitted, which: npt.NDArray[np.intp]) -> list[bytes]:
    """Rows as they came, where these are not the lake's columns; else as they would have been landed."""
    return rows_to_text((found.rows if found.foreign is None else batch.rows).take(of_numbers(which)))


def _foreign_columns(found: Fitted) -> str:
    """What lines say of columns that are not the lake's."""
    return (
        "" if found.foreign is None else schema_to_json(pa.schema([each.remove_metadata() for each in found.foreign]))
    )


def _position(batch: SourceBatch, index: int, raw: bytes) -> str:
    at = batch.position(index)
    if at is not None:
        return at
    if batch.source_items is not None:
        return f"{batch.source_items[index].as_py()}#{_digest(raw)}"
    return f"row:{_digest(raw)}"


def _origin(batch: SourceBatch, index: int) -> ItemOrigin | None:
    """The item of a row, of a source that has items."""
    if batch.source_items is None or batch.forget_after is None:
        return None
    return ItemOrigin(batch.source_items[index].as_py(), forgotten_at(batch.forget_after), batch.item_name)


def _digest(raw: bytes) -> str:
    """A short digest that names a row which has no position."""
    return hashlib.blake2b(raw, digest_size=12).hexdigest()


def _aware(moment: datetime) -> datetime:
    """Naive times are UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
