"""Rows of a window, some at a time: in the feed's columns, each with what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.core.position import Ints
from datalake_assets.lake.watching import MARKS

__all__ = [
    "CHUNK_ROWS",
    "LANDED",
    "NO_TIME",
    "SEEN",
    "Chunk",
    "Mask",
    "owned",
    "runs_of_chunks",
    "tables_together",
    "times_of",
]

Mask = npt.NDArray[np.bool_]
SEEN, LANDED = "seen", "landed"
#: Of a row without a time; smaller than any time.
NO_TIME = np.iinfo(np.int64).min
#: Rows below which a chunk is joined to its neighbour: each chunk costs as much as some hundred rows to hand on.
CHUNK_ROWS = 8192
#: A chunk's arrays of a value a row.
_ARRAYS = ("times", "seen_at", "landed", "late", "duplicate", "partitions", "offsets")
#: Bytes that a key takes which duplicates are known by: a dictionary's entry.
_KEY_BYTES = 110
#: Bytes that rows may hold besides their own.
_SMALL_BYTES = 1 << 16


@dataclass(slots=True)
class Chunk:
    """Some rows of the window in the order in which they came; all arrays are as long as there are rows.

    Attributes:
        rows: In the feed's columns.
        times: Event times in microseconds since 1970; `NO_TIME` for none.
        seen_at: When they were seen, likewise.
        landed: Whether they are committed.
        late: Whether they came late.
        duplicate: Whether an earlier row of the window has the same key.
        partitions: Source partitions, as the window counts them; -1 of rows without numbers.
        offsets: Source offsets; -1 likewise.
        keys: Hashes of their keys, by unique rule; 0 of rows without a key.
    """

    rows: pa.RecordBatch
    times: Ints
    seen_at: Ints
    landed: Mask
    late: Mask
    duplicate: Mask
    partitions: Ints
    offsets: Ints
    keys: tuple[npt.NDArray[np.uint64], ...] = ()

    @property
    def size_bytes(self) -> int:
        """What it takes of memory."""
        arrays = sum(getattr(self, name).nbytes for name in _ARRAYS)
        keys = sum(each.nbytes + len(each) * _KEY_BYTES for each in self.keys)
        return int(self.rows.nbytes + arrays + keys)

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def after(self, count: int) -> Chunk:
        """Without its first rows; what they took of memory is free when the chunk before is."""
        arrays = {name: getattr(self, name)[count:].copy() for name in _ARRAYS}
        rest = self.rows.take(pa.array(np.arange(count, len(self))))
        return Chunk(rows=rest, keys=tuple(each[count:].copy() for each in self.keys), **arrays)

    @classmethod
    def joined(cls, chunks: Sequence[Chunk]) -> Chunk:
        """Chunks of equal columns as one."""
        arrays = {name: np.concatenate([getattr(each, name) for each in chunks]) for name in _ARRAYS}
        keys = tuple(np.concatenate(each) for each in zip(*(chunk.keys for chunk in chunks), strict=True))
        return cls(rows=pa.concat_batches([each.rows for each in chunks]), keys=keys, **arrays)

    def table(self) -> pa.Table:
        """Its rows with their marks."""
        state = pa.DictionaryArray.from_arrays(pa.array(self.landed.astype(np.int8)), pa.array([SEEN, LANDED]))
        own = (pa.array(self.seen_at).cast(MARKS["_seen_at"]), state.cast(pa.string()), self.late, self.duplicate)
        taken = set(self.rows.schema.names)
        table = pa.Table.from_batches([self.rows.replace_schema_metadata(None)])
        for name, values in zip(MARKS, own, strict=True):
            if name not in taken:  # the feed's own column is the one that people mean
                table = table.append_column(name, pa.array(values) if isinstance(values, np.ndarray) else values)
        return table


def times_of(rows: pa.RecordBatch, column: str | None) -> Ints:
    """Event times in microseconds since 1970; `NO_TIME` where there is none."""
    none = np.full(rows.num_rows, NO_TIME, dtype=np.int64)
    if column is None or column not in rows.schema.names:
        return none
    values = rows.column(column)
    try:
        moments = pc.cast(values, pa.timestamp("us", getattr(values.type, "tz", None)), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return none
    filled = pc.fill_null(moments.cast(pa.int64()), int(NO_TIME))
    return np.asarray(filled).astype(np.int64)


def owned(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows without what else is in the memory that they lie in, where that is more than they are themselves."""
    if rows.get_total_buffer_size() <= 2 * rows.nbytes + _SMALL_BYTES:
        return rows
    return rows.take(pa.array(np.arange(rows.num_rows)))


def runs_of_chunks(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Neighbours of equal columns, not too many rows at once."""
    runs: list[list[Chunk]] = []
    for chunk in chunks:
        last: list[Any] = runs[-1] if runs else []
        if last and last[-1].rows.schema.equals(chunk.rows.schema) and sum(map(len, last)) < CHUNK_ROWS:
            last.append(chunk)
        else:
            runs.append([chunk])
    return runs


def tables_together(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables as one; columns that came later are null before. Of types that no longer fit, the newest are kept."""
    kept = list(tables)
    while True:
        try:
            return pa.concat_tables(kept, promote_options="default")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kept = kept[1:]
