"""From blocks of decoded rows to the lake's batches: positions, windows, and where rejected rows stood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.core.batches import RejectedRow, SourceBatch
from datalake_assets.core.partitions import TimeWindow
from datalake_assets.errors import SourceRefused
from datalake_assets.parquet.rows import DecodedRows
from datalake_assets.parquet.rows import RejectedRow as UndecodedRow
from datalake_assets.sources.ksqldb_columns import Layout
from datalake_assets.sources.ksqldb_positions import OrderWatch, Seen

__all__ = ["Batcher", "numbers_of", "position_of"]


@dataclass(slots=True)
class Batcher:
    """Makes batches of one read.

    Attributes:
        source: What is read, for errors.
        layout: The answer's columns.
        starts: Rows before these offsets are left out, by source partition.
        window: Rows outside of it are left out.
        seen: Takes note of all rows, those that are left out too.
        order: Makes sure that they are in order.
    """

    source: str
    layout: Layout
    starts: Mapping[int, int] = field(default_factory=dict)
    window: TimeWindow | None = None
    seen: Seen | None = None
    order: OrderWatch | None = None

    def batch(self, decoded: DecodedRows) -> SourceBatch | None:
        """The wanted rows of a block; None if there are none."""
        rows = _combined(decoded.table)
        rejected = tuple(row for row in map(self._rejected, decoded.rejected) if row is not None)
        if self.layout.numbering is not None:
            self._note(rows, self.layout.numbering)
        mask = self.layout.wanted(rows, starts=self.starts, window=self.window)
        if not mask.all():
            rows = rows.filter(pa.array(mask))
        if not rows.num_rows and not rejected:
            return None
        partitions, offsets = self._positions(rows)
        return SourceBatch(self.layout.rows(rows), partitions, offsets, rejected)

    def _note(self, rows: pa.RecordBatch, numbering: tuple[int, int]) -> None:
        self._refuse_nulls(rows, numbering)
        for watch in (self.order, self.seen):
            if watch is not None and rows.num_rows:
                watch.add(*numbers_of(rows, numbering))

    def _refuse_nulls(self, rows: pa.RecordBatch, numbering: tuple[int, int]) -> None:
        if any(rows.column(index).null_count for index in numbering):
            names = " or ".join(repr(self.layout.columns[index].name) for index in numbering)
            reason = f"rows without a number in {names}: their source partition and offset are not known"
            raise SourceRefused(self.source, reason, cure="choose other offset_columns, or mode 'pull'")

    def _positions(self, rows: pa.RecordBatch) -> tuple[pa.Array | None, pa.Array | None]:
        if self.layout.numbering is None:
            return None, None
        partition, offset = self.layout.numbering
        return rows.column(partition).cast(pa.int32()), rows.column(offset).cast(pa.int64())

    def _rejected(self, row: UndecodedRow) -> RejectedRow | None:
        at = None if self.layout.numbering is None else position_of(row.raw, len(self.layout.columns))
        if at is not None:
            partition, offset = at
            if self.seen is not None:
                self.seen.add(np.array([partition], np.int32), np.array([offset], np.int64))
            if offset < self.starts.get(partition, 0):
                return None
            return RejectedRow(row.raw, row.reason, f"{partition}:{offset}")
        digest = hashlib.blake2b(row.raw, digest_size=8).hexdigest()
        return RejectedRow(row.raw, row.reason, f"line:{row.line}@{digest}")


def has_rows_before(rows: DecodedRows, layout: Layout, moment_ms: int) -> bool:
    """Whether any row's own timestamp is earlier; a row that was not decoded counts as one."""
    if rows.rejected or layout.rowtime is None:
        return rows.lines > 0
    if not rows.table.num_rows:
        return False
    return bool(pc.min(rows.table.column(layout.rowtime)).as_py() < moment_ms)


def numbers_of(rows: pa.RecordBatch, numbering: tuple[int, int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Source partition and offset of decoded rows."""
    partition, offset = (rows.column(index).to_numpy() for index in numbering)
    return partition, offset


def position_of(raw: bytes, columns: int) -> tuple[int, int] | None:
    """Source partition and offset of a row that could not be decoded, if they can be told for sure.

    Args:
        raw: The row as the server sent it, source partition and offset last.
        columns: How many columns it must have: in a shorter row, others would pass for them.
    """
    try:
        row = json.loads(raw)
        values = row["row"]["columns"] if isinstance(row, dict) else row
        if len(values) != columns:
            return None
        partition, offset = values[-2:]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (partition, offset))
    return (partition, offset) if whole and 0 <= partition < 2**31 and 0 <= offset < 2**63 else None


def _combined(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return pa.RecordBatch.from_pylist([], schema=table.schema)
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
