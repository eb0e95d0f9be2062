"""Rows of one output sorted by columns, in memory for the keys alone: the rows themselves lie in a file meanwhile."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["sorted_pieces"]


def sorted_pieces(
    tables: Iterable[pa.Table], schema: pa.Schema, by: Sequence[str], *, piece_bytes: int, scratch: str | None = None
) -> Iterator[pa.Table]:
    """All rows in ascending order of some columns, nulls last, in pieces of about ``piece_bytes``; stable.

    Holds the sort keys, an index of 8 bytes per row and one piece in memory. The decoded rows are written to a
    temporary file, uncompressed, which is gone when the iteration ends.

    Args:
        tables: The rows, of this schema.
        schema: Theirs.
        by: Columns to sort by; they must be of types that Arrow can order.
        piece_bytes: Decoded size of a piece.
        scratch: Folder of the temporary file; None: the system's.
    """
    with tempfile.TemporaryDirectory(prefix="datalake-sort-", dir=scratch) as folder:
        file = Path(folder) / "rows.arrow"
        keys: list[pa.Table] = []
        total_bytes = 0
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for table in tables:
                writer.write_table(table)
                keys.append(table.select(list(by)).combine_chunks())
                total_bytes += table.nbytes
        order = pc.sort_indices(pa.concat_tables(keys), sort_keys=[(name, "ascending") for name in by])
        keys.clear()
        with pa.memory_map(str(file)) as mapped:
            rows = pa.ipc.open_file(mapped).read_all()
            count = max(1, int(rows.num_rows * piece_bytes / max(total_bytes, 1)))
            for start in range(0, rows.num_rows, count):
                yield rows.take(order.slice(start, count))
