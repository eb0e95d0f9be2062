"""Changes on their way into a merge: read once, kept on this machine's disk, and taken in rounds of bounded size.

A read may have more changes than memory, and may still fail at its end: nothing is committed before it was whole. So
changes are spooled, and each round of them is brought down to the newest change of every key.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datalake_assets.core.batches import Batches, ChangedBatches, SourceBatch
from datalake_assets.core.merging import MergeRule, key_texts, merged_columns, newest_changes, row_of_change
from datalake_assets.core.position import Ints, Mask, OffsetsPosition, SourcePartition, numbers_of, offset_bounds
from datalake_assets.errors import LakeError
from datalake_assets.feed import Feed
from datalake_assets.lake.landing import Contract, Landing, OffsetsFence, Placement
from datalake_assets.lake.quarantined_rows import Quarantine
from datalake_assets.lake.table import Progress

__all__ = ["Collecting", "Round", "Spool", "Unwrapped", "one_array"]

#: Changes of a round, and their bytes: what a merge holds in memory.
ROUND_ROWS = 500_000
ROUND_BYTES = 128 << 20

#: What a spool keeps of each change besides its columns.
_OWN = ("source partition", "source offset", "deletes", "partition")


class Spool:
    """Changes on this machine's disk: as many as a read has, and in memory as many as a round has.

    Args:
        schema: Their columns.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema.remove_metadata()
        self._file = tempfile.TemporaryFile(prefix="datalake-merge-")  # noqa: SIM115  it outlives this
        self._writer: pa.RecordBatchStreamWriter | None = None
        self.bytes_written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, rows: pa.RecordBatch, *own: pa.Array) -> None:
        """Takes changes in the order in which they were read."""
        try:
            if self._writer is None:  # what numbers a source has is known from its first rows
                numbered = [pa.field(name, each.type) for name, each in zip(_OWN, own, strict=True)]
                options = pa.ipc.IpcWriteOptions(compression="lz4", emit_dictionary_deltas=True)
                self._schema = pa.schema([*self._schema, *numbered])
                self._writer = pa.ipc.new_stream(self._file, self._schema, options=options)
            self._writer.write_batch(pa.RecordBatch.from_arrays([*rows.columns, *own], schema=self._schema))
        except OSError as error:
            cure = "make room there, or set TMPDIR to a folder that has some"
            raise LakeError(tempfile.gettempdir(), f"changes cannot be kept: {error}", cure=cure) from error
        self.bytes_written = self._file.tell()

    def rounds(self, *, whole_numbers: bool = False) -> Iterator[pa.Table]:
        """All changes in their order, so many at once.

        Args:
            whole_numbers: Changes may share a number, and a round has all changes of each.
        """
        if self._writer is None:
            return
        self._writer.close()
        self._file.seek(0)
        held: list[pa.RecordBatch] = []
        rows = size_bytes = 0
        with pa.ipc.open_stream(self._file) as reader:
            for batch in (each for each in reader if each.num_rows):
                full = rows >= ROUND_ROWS or size_bytes >= ROUND_BYTES
                if full and not (whole_numbers and _number(held[-1], -1) == _number(batch, 0)):
                    yield pa.Table.from_batches(held)
                    held, rows, size_bytes = [], 0, 0
                held.append(batch)
                rows, size_bytes = rows + batch.num_rows, size_bytes + batch.nbytes
        if held:
            yield pa.Table.from_batches(held)


def _number(changes: pa.RecordBatch, index: int) -> tuple[Any, Any]:
    """Source partition and offset of one of a spool's changes."""
    first = changes.num_columns - len(_OWN)
    return changes.column(first)[index].as_py(), changes.column(first + 1)[index].as_py()


class Collecting(Landing):
    """One pass over changes: every change quarantined, seen before, or kept for the rounds.

    A deletion needs no time: whichever partition has its row loses it.
    """

    def __init__(
        self,
        placement: Placement,
        contract: Contract,
        spool: Spool,
        quarantine: Quarantine,
        fence: OffsetsFence,
        *,
        rule: MergeRule,
        done: OffsetsPosition,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        super().__init__(placement, contract, spool, quarantine, fence=fence, on_progress=on_progress)
        self._spool, self._rule, self._done, self._changes = spool, rule, done, fence

    def _land(self, batch: SourceBatch) -> None:
        policy, fitted = self._contract.policy, self._fitted(batch.rows)
        rows, found = fitted.rows, replace(fitted, misfits=(*fitted.misfits, *self._rule.refused(fitted.rows)))
        refused = found.refused(policy)
        partitions, offsets = batch.numbers
        wanted = self._changes.fresh(partitions, offsets)
        wanted &= self._done.new_rows(self._changes.epoch, partitions, offsets)
        self.rows_known += int((~wanted).sum())
        deletes = self._rule.deletions(rows, batch.rows.schema.names)
        codes, names, placed = self._place(rows)
        kept = wanted & ~refused & (placed | deletes)
        self._reject(batch, found, refused, np.flatnonzero(wanted & ~kept))
        counts = {each.reason: int((each.rows & wanted).sum()) for each in fitted.misfits}
        self.misfits.update({reason: count for reason, count in counts.items() if count})
        self.misfit_rows += int((fitted.refused(policy) & wanted).sum())
        where = pa.array(names, pa.string()).take(pa.array(codes, mask=codes < 0))
        numbers = (batch.source_partitions, batch.source_offsets, pa.array(deletes), where)
        taken = pa.array(kept)
        self.rows_landed += int(kept.sum())
        self._show(batch, rows, kept, ~wanted)
        self._spool.write(rows.filter(taken), *(each.filter(taken) for each in numbers if each is not None))


@dataclass(slots=True)
class Round:
    """Some changes in the order in which they were read, and the newest one of each key.

    Attributes:
        rows: The newest changes, one a key.
        keys: Their keys, as bytes.
        order: Their order values; None if the offset decides.
        deleted: Which of them delete.
        partitions: Their source partitions.
        offsets: Their offsets.
        places: The partitions that they belong to; "" of deletions.
        named: The partitions that any change belongs to, also one that another replaced.
        lowest: The lowest offset of any change, by source partition.
        highest: The highest one.
        epoch: Of the offsets.
        stale: Which of them are older than what stands, or than a deletion.
    """

    rows: pa.Table
    keys: pa.Array
    order: pa.Array | None
    deleted: Mask
    partitions: Ints
    offsets: Ints
    places: npt.NDArray[np.object_]
    named: frozenset[str]
    lowest: Mapping[SourcePartition, int]
    highest: Mapping[SourcePartition, int]
    epoch: int
    stale: Mask = field(init=False)

    def __post_init__(self) -> None:
        self.stale = np.zeros(len(self.deleted), dtype=np.bool_)

    @classmethod
    def of(cls, changes: pa.Table, schema: pa.Schema, rule: MergeRule, *, epoch: int) -> Round:
        """Takes what a `Spool` gave."""
        table = changes.combine_chunks()
        own = [one_array(table.column(len(schema) + index)) for index in range(len(_OWN))]
        (partitions, offsets), deleted, places = numbers_of(*own[:2]), np.asarray(own[2]), np.asarray(own[3])
        rows = table.select(range(len(schema)))  # what a spool adds may have a name of theirs
        keys = key_texts([one_array(rows.column(name)) for name in rule.key])
        order = None if rule.order_by is None else one_array(rows.column(rule.order_by))
        newest = newest_changes(keys, order, partitions, offsets)
        taken, bounds = pa.array(newest), offset_bounds(partitions, offsets)
        return cls(
            rows=rows.take(taken),
            keys=keys.take(taken),
            order=None if order is None else order.take(taken),
            deleted=deleted[newest],
            partitions=partitions[newest],
            offsets=offsets[newest],
            places=np.where(deleted, "", places)[newest],
            named=frozenset(set(places[~deleted].tolist())),
            lowest={partition: low for partition, (low, _) in bounds.items()},
            highest={partition: high for partition, (_, high) in bounds.items()},
            epoch=epoch,
        )


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


class Unwrapped(ChangedBatches):
    """Batches of envelopes as batches of the rows in them.

    Args:
        batches: The envelopes.
        feed: Whose they are.
    """

    def __init__(self, batches: Batches, feed: Feed) -> None:
        super().__init__(batches)
        self._feed = feed

    @cached_property
    def schema(self) -> pa.Schema:
        """Implements `ChangedBatches`: the rows' columns."""
        return merged_columns(self._feed, self._batches.schema)

    def changed(self, batch: SourceBatch) -> SourceBatch:
        """Implements `ChangedBatches`."""
        return replace(batch, rows=row_of_change(batch.rows, self.schema))
