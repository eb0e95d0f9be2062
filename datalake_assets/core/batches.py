"""What a source hands to a lake: record batches with their positions, and the rows that could not be decoded.

This is the seam between reading and writing; sources and lakes know this module and not each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from datalake_assets.core.partitions import TimeWindow
from datalake_assets.core.position import Ints, SourcePartition, numbers_of, row_position

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Backlog",
    "Batches",
    "ChangedBatches",
    "Decode",
    "DecodeItems",
    "Derived",
    "EndlessBatches",
    "FinishedItem",
    "InMemoryBatches",
    "ItemOrigin",
    "LandedItem",
    "LandedItems",
    "News",
    "ReadInParts",
    "ReadRequest",
    "RejectedRow",
    "SourceBatch",
]


@dataclass(frozen=True, slots=True)
class ItemOrigin:
    """Of which item a rejected row is, and what it takes to land it later, once.

    Attributes:
        item: As in `SourceBatch.source_items`.
        forget_after: When the item can no longer come again; Unix seconds.
        name: Of an item that the lake knows by name, with many rows: a file.
        envelope: What its source needs beside the row to decode it again, in the source's own words; empty if nothing.
        reading: Which reading of the item put the row aside; empty if nobody has to tell them apart.
    """

    item: str
    forget_after: int
    name: str = ""
    envelope: str = ""
    reading: str = ""


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that could not be decoded or placed.

    Attributes:
        raw: The row as the source sent it; of one that was decoded, as `row_to_text` writes it.
        reason: Why it was refused.
        position: Where it stood in the source, as far as that is known; rows of equal position are one row.
        decoded: Whether it was decoded, and could not be placed.
        columns: Of a decoded row: its columns that are none of the lake's, or of another type, as `schema_to_json`
            writes them; empty if there are none. JSON alone does not tell a text from a time or a number of bytes.
        origin: Of a source without order: the row's item; None where nobody can land the row later.
    """

    raw: bytes
    reason: str
    position: str
    decoded: bool = False
    columns: str = ""
    origin: ItemOrigin | None = None

    @property
    def remembered_as(self) -> str:
        """By what a partition remembers the row once it is landed: its item, or of an item of many rows its place."""
        return self.origin.item if self.origin is not None and not self.origin.name else self.position


@dataclass(frozen=True, slots=True)
class LandedItem:
    """What a lake remembers of an item by its name, so that its source need not give it again.

    Attributes:
        name: What the item is called, whatever its content: a file's name.
        item: Its identity, as in `SourceBatch.source_items`.
        version: By which its source tells, without reading it, whether it is another.
        size_bytes: Its size.
        modified: When it was last written, aware UTC: the time of its rows, if they have no other.
        rows: Rows that were read of it.
        rejected: Of these, rows that went to quarantine.
        seconds: Time that it took to read.
        refused: Why nothing of it was landed; empty if it was.
        state: ``landing`` while its rows are being committed, or since a crash; ``landed`` afterwards.
        partitions: Keys of the partitions that have, or may have, rows of it.
        superseded: Identities of former contents whose rows may still be there, in one of these partitions.
        number: Counts what the lake remembers; a later one of the same name holds.
        reading: The last reading of it that came to its end; empty in entries of earlier releases.
    """

    name: str
    item: str
    version: str
    size_bytes: int
    modified: datetime
    rows: int
    rejected: int
    seconds: float
    refused: str = ""
    state: str = "landed"
    partitions: tuple[str, ...] = ()
    superseded: tuple[str, ...] = ()
    number: int = 0
    reading: str = ""

    @property
    def all_superseded(self) -> tuple[str, ...]:
        """What another content of it supersedes: this one, and those that it has not replaced itself yet."""
        is_done = self.state == "landed" and not self.refused
        return (self.item,) if is_done else (*self.superseded, self.item)


class LandedItems(Protocol):
    """What a lake has of a feed, for sources that cannot tell by themselves; each question is asked anew."""

    @property
    def schema(self) -> pa.Schema | None:
        """The feed's columns so far; None if nothing was ever landed."""

    def entries(self) -> pa.Table:
        """What is remembered of every item, in the columns of `LandedItem`."""

    def known(self, names: Sequence[str]) -> list[LandedItem | None]:
        """What is remembered of items by now; None of those that never came."""


@dataclass(frozen=True, slots=True)
class News:
    """What a look at a source found that is to be read.

    Attributes:
        items: Names of items.
        cursor: What the next look begins with.
        looked_at: Items that were looked at.
    """

    items: tuple[str, ...]
    cursor: str
    looked_at: int


@dataclass(frozen=True, slots=True)
class FinishedItem:
    """An item that was read to its end.

    Attributes:
        item: What is to be remembered of it; the lake says its state, its number and its partitions.
        former: What its source knew of it before.
        replaces: Rows of its former content are to go when its own come.
        name_column: The column of the rows that has the item's name, by which former rows are found.
        is_mark: It stands for all that was read, and no row has its identity: it is entered before any row is landed.
    """

    item: LandedItem
    former: LandedItem | None = None
    replaces: bool = False
    name_column: str = ""
    is_mark: bool = False


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Some rows of a source, in the source's order.

    Attributes:
        rows: The rows, in the lake's columns; equal schema in all batches of a read.
        source_partitions: int32 per row, no nulls; only from sources that number their rows. Or string, none of them
            a number, of sources that name their partitions.
        source_offsets: int64 per row, no nulls; given where ``source_partitions`` are. Or string, of decimal digits, of
            sources whose numbers are larger; the partitions are strings then, too.
        rejected: Rows that could not be decoded.
        source_items: string per row, no nulls: the item that it came with, a message or a file; only from sources
            without order. A read gives an item once, its rows in one batch or in several.
        forget_after: When the items of the batch can no longer come again; given where ``source_items`` are.
        finished: Items whose last rows are in this batch, from sources that ask what is known of items by name.
        read_to: By source partition, the next offset to be read after this batch, where it lies beyond the last row:
            not every number has one.
        source_id: Names what numbers the rows; another one numbers them anew. Empty where nobody can tell.
        item_name: The name of the one item that all rows are of, from sources whose items have many rows.
    """

    rows: pa.RecordBatch
    source_partitions: pa.Array | None = None
    source_offsets: pa.Array | None = None
    rejected: tuple[RejectedRow, ...] = ()
    source_items: pa.Array | None = None
    forget_after: datetime | None = None
    finished: tuple[FinishedItem, ...] = ()
    read_to: Mapping[SourcePartition, int] = field(default_factory=dict)
    source_id: str = ""
    item_name: str = ""

    @property
    def numbers(self) -> tuple[Ints, Ints]:
        """Source partition and offset of each row, of a source that numbers them."""
        if self.source_partitions is None or self.source_offsets is None:
            raise AssertionError
        return numbers_of(self.source_partitions, self.source_offsets)

    def position(self, row: int) -> str | None:
        """Source partition and offset of a row, as quarantine writes them; None if it has none."""
        if self.source_partitions is None or self.source_offsets is None:
            return None
        return row_position(self.source_partitions[row].as_py(), self.source_offsets[row].as_py())

    def taking(self, which: pa.Array, *, also_rejected: Sequence[RejectedRow] = ()) -> SourceBatch:
        """Some of its rows, by their numbers; others may have been rejected meanwhile."""
        along = (self.source_partitions, self.source_offsets, self.source_items)
        partitions, offsets, items = (None if each is None else each.take(which) for each in along)
        rejected = (*self.rejected, *also_rejected)
        rows = self.rows.take(which)
        return replace(
            self,
            rows=rows,
            source_partitions=partitions,
            source_offsets=offsets,
            rejected=rejected,
            source_items=items,
        )


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What to read.

    Attributes:
        window: Only rows whose partition time lies in it; None for all.
        start_offsets: Next offset wanted by source partition (missing: the first there is); None for all.
        new_epoch: Accept that the source was recreated or has lost rows.
        landed: What the lake has of the feed already; None: nothing.
        items: Names of the only items to look at; None: whatever there is.
        source_id: `SourceBatch.source_id` of what ``start_offsets`` are about; empty if that is not known.
        epoch: The feed's when ``start_offsets`` were read; None if nobody has to know.
    """

    window: TimeWindow | None = None
    start_offsets: Mapping[SourcePartition, int] | None = None
    new_epoch: bool = False
    landed: LandedItems | None = None
    items: tuple[str, ...] | None = None
    source_id: str = ""
    epoch: int | None = None

    @property
    def numbered_starts(self) -> dict[int, int]:
        """``start_offsets``, for sources whose partitions are numbers."""
        return {each: start for each, start in (self.start_offsets or {}).items() if isinstance(each, int)}


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


class EndlessBatches(Batches, Protocol):
    """A read that goes on with what comes; what iterates over it closes the iterator."""

    def __iter__(self) -> Generator[SourceBatch, None, None]:  # noqa: PYI058  it is closed
        """As of `Batches`, but beyond the end of what there is."""


@runtime_checkable
class ReadInParts(Protocol):
    """Batches of a source that gives a part at a time: the next iteration, after `Batches.acknowledge`, gives the next.

    Before that it gives the same part again.
    """

    @property
    def has_more(self) -> bool:
        """Whether the source may have another part by now, which this read wants."""


@runtime_checkable
class Derived(Protocol):
    """Batches that are made of other feeds of the lake."""

    @property
    def inputs(self) -> str:
        """What the rows of the last iteration were made of: equal texts mean equal rows. Empty before the first."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits at a source that can tell, approximately.

    Attributes:
        waiting: Messages that can be had now.
        in_flight: Messages that a reader has, and has not acknowledged yet.
        delayed: Messages that can be had later.
    """

    waiting: int
    in_flight: int = 0
    delayed: int = 0


class ChangedBatches(ABC):
    """Another source's batches with something done to each; all else is that source's. Implements `Batches`.

    Args:
        batches: The source's.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Schema of the changed rows."""

    @abstractmethod
    def changed(self, batch: SourceBatch) -> SourceBatch:
        """What becomes of a batch."""

    @property
    def time_column(self) -> str | None:
        """Implements `Batches`."""
        return self._batches.time_column

    @property
    def request(self) -> ReadRequest:
        """Implements `Batches`."""
        return self._batches.request

    @property
    def recreated(self) -> bool:
        """Implements `Batches`."""
        return self._batches.recreated

    @property
    def unfinished(self) -> str:
        """Implements `Batches`."""
        return self._batches.unfinished

    @property
    def has_more(self) -> bool:
        """Implements `ReadInParts`; of other batches there are no more."""
        return isinstance(self._batches, ReadInParts) and self._batches.has_more

    def acknowledge(self) -> None:
        """Implements `Batches`."""
        self._batches.acknowledge()

    def __iter__(self) -> Iterator[SourceBatch]:
        """Implements `Batches`."""
        return map(self.changed, self._batches)


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


#: Decodes rows again, as their source sent them; keeps their source partitions and offsets.
Decode = Callable[[Sequence[bytes]], SourceBatch]
#: The same of rows of items, given the lake's columns: rows that still do not fit are rejected at their positions, and
#: ``source_items`` are what the rows are `RejectedRow.remembered_as`.
DecodeItems = Callable[[Sequence[RejectedRow], "pa.Schema"], Iterator[SourceBatch]]
