"""What a source hands to a lake: record batches with their positions, and the rows that could not be decoded.

This is the seam between reading and writing; sources and lakes know this module and not each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from datalake_assets.core.partitions import TimeWindow

__all__ = ["Batches", "InMemoryBatches", "ReadRequest", "RejectedRow", "SourceBatch"]


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that could not be decoded or placed.

    Attributes:
        raw: The row as the source sent it; of one that was decoded, as `row_to_text` writes it.
        reason: Why it was refused.
        position: Where it stood in the source, as far as that is known; rows of equal position are one row.
        decoded: Whether it was decoded, and could not be placed.
    """

    raw: bytes
    reason: str
    position: str
    decoded: bool = False


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Some rows of a source, in the source's order.

    Attributes:
        rows: The rows, in the lake's columns; equal schema in all batches of a read.
        source_partitions: int32 per row, no nulls; only from sources that number their rows.
        source_offsets: int64 per row, no nulls; given where ``source_partitions`` are.
        rejected: Rows that could not be decoded.
    """

    rows: pa.RecordBatch
    source_partitions: pa.Array | None = None
    source_offsets: pa.Array | None = None
    rejected: tuple[RejectedRow, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What to read.

    Attributes:
        window: Only rows whose partition time lies in it; None for all.
        start_offsets: Next offset wanted by source partition (missing: the first there is); None for all.
        new_epoch: Accept that the source was recreated or has lost rows.
    """

    window: TimeWindow | None = None
    start_offsets: Mapping[int, int] | None = None
    new_epoch: bool = False


class Batches(Protocol):
    """One read of a source; nothing is read before the iteration, and every iteration reads anew."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows, in the lake's column names; asks the source if need be."""

    @property
    def time_column(self) -> str | None:
        """The column of ``schema`` that partitions the rows; None for a table."""

    @property
    def request(self) -> ReadRequest:
        """What is read."""

    @property
    def recreated(self) -> bool:
        """Whether the source numbers its rows anew since the position asked from; known from the first batch on.

        Only ever true if the request accepts it (``new_epoch``).
        """

    @property
    def unfinished(self) -> str:
        """Why the last iteration, without an error, did not come to the end of what there is; empty if it did.

        Only reads that can be gone on with may end so: those of numbered rows.
        """

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the rows; an iteration that ends without an error was complete, unless `unfinished` says otherwise.

        Raises:
            SourceError: The source failed, refused, or ended without saying that it was complete.
        """

    def acknowledge(self) -> None:
        """Tells the source that all rows of the last iteration are committed; does nothing where it needn't know."""


@dataclass(slots=True)
class InMemoryBatches:
    """Batches that are there already; for tests and small writes.

    Attributes:
        batches: The batches; at least one, for the schema.
        time_column: The column that partitions the rows; None for a table.
        request: What was read.
        recreated: Whether the source numbers its rows anew.
        unfinished: Why the iteration ends before the end of what there is; empty if it does not.
        acknowledged: Whether `acknowledge` was called.
    """

    batches: tuple[SourceBatch, ...]
    time_column: str | None = None
    request: ReadRequest = field(default_factory=ReadRequest)
    recreated: bool = False
    unfinished: str = ""
    acknowledged: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Schema of the first batch."""
        return self.batches[0].rows.schema

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the batches."""
        return iter(self.batches)

    def acknowledge(self) -> None:
        """Remembers that it was called."""
        self.acknowledged = True
