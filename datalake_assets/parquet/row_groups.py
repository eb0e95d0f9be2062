"""Where a footer's row groups lie, and which numbers of their metadata change when their bytes move.

Metadata is not decoded: a row group keeps its span in the footer and a list of patches. Whatever no patch names comes
out as it went in: statistics, sorting columns, encodings, key-values, and what later versions of the format add.

Source: apache/parquet-format, src/main/thrift/parquet.thrift: RowGroup, ColumnChunk, ColumnMetaData, SchemaElement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from datalake_assets.parquet.thrift import I16, I32, I64, STRUCT, CompactReader, MalformedThrift

__all__ = [
    "EXTENSION",
    "INDEX_FIELDS",
    "MAGIC",
    "Chunk",
    "Layout",
    "Leaf",
    "Patch",
    "Place",
    "Role",
    "RowGroup",
    "parse_row_group",
    "parse_schema",
]

MAGIC = b"PAR1"
REPEATED = 2  # FieldRepetitionType
#: Id of the field that every struct reserves for extensions, which readers may ignore. The one that is known of holds
#: a second footer, with offsets of its own: no copy may carry it (parquet-format, BinaryProtocolExtensions.md).
EXTENSION = 32767
EXTENSION_HEADER_BYTES = 4

# fields that are read: id -> kind
GROUP_NUMBERS = {3: I64, 5: I64, 7: I16}
CHUNK_NUMBERS = {2: I64, 4: I64, 5: I32, 6: I64, 7: I32}
COLUMN_NUMBERS = {1: I32, 5: I64, 6: I64, 7: I64, 9: I64, 10: I64, 11: I64, 14: I64, 15: I32}
OFFSETS_OF_PAGES = (9, 10, 11)


#: The value of a patch of page indexes: this times their place in `Layout.indexes`, plus the field's id.
INDEX_FIELDS = 8


class Role(Enum):
    """What becomes of a number when a row group moves."""

    PAGE = "moved with the data"
    BLOOM = "moved with the bloom filter"
    HINT = "moved if it points into what was copied; otherwise 0, as current writers say"
    START = "where the row group begins now"
    ORDINAL = "the row group's number in its file"
    INDEX = "where a page index is written in the end; for the value see `INDEX_FIELDS`"
    DROP = "left out, with its header"


GROUP_ROLES = {5: Role.START, 7: Role.ORDINAL}
CHUNK_ROLES = {2: Role.HINT, 4: Role.INDEX, 5: Role.INDEX, 6: Role.INDEX, 7: Role.INDEX}
COLUMN_ROLES = {9: Role.PAGE, 10: Role.PAGE, 11: Role.PAGE, 14: Role.BLOOM}


class Patch(NamedTuple):
    """A number in a footer: where its encoded form begins and ends, and its value."""

    begin: int
    end: int
    role: Role
    value: int


class Place(NamedTuple):
    """A range of the file; a length of 0 is one that the footer does not say."""

    offset: int
    length: int

    @classmethod
    def within(cls, offset: int, length: int, *, limit: int) -> Place:
        """The range, if it lies between the magic and the footer."""
        if offset < len(MAGIC) or length < 0 or offset + max(length, 1) > limit:
            raise MalformedThrift("an offset lies outside the file")
        return cls(offset, length)


class Chunk(NamedTuple):
    """What the footer states of one column chunk.

    Attributes:
        kind: Physical type.
        values: Its values, nulls included.
        start: Of its first page.
        end: After its last one.
        plain_bytes: Of its pages before compression, their headers included.
        data_offset: Of its first data page.
        dictionary_offset: Of its dictionary; 0 where there is none, or where it is not stated.
        offsets: Of its first pages of each kind, as far as they are stated.
    """

    kind: int
    values: int
    start: int
    end: int
    plain_bytes: int
    data_offset: int
    dictionary_offset: int
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group's share of the file.

    Attributes:
        rows: Its rows.
        start: Of its first page. Its column chunks lie between here and `end`, their dictionary pages too; bloom
            filters may lie elsewhere.
        end: After its last page; 0, as the start, where there are none.
    """

    rows: int
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes of its column chunks."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Layout:
    """How a row group's metadata is rewritten.

    Attributes:
        begin: Where its span in the footer begins.
        end: Where that span ends.
        patches: In the order of the footer.
        blooms: Its bloom filters.
        indexes: Offset index and column index of each column chunk that has any.
        chunks: Its column chunks.
    """

    begin: int
    end: int
    patches: tuple[Patch, ...]
    blooms: tuple[Place, ...]
    indexes: tuple[tuple[Place | None, Place | None], ...]
    chunks: tuple[Chunk, ...]


class Leaf(NamedTuple):
    """A column of the schema: its physical type, and whether it has one value in each row."""

    kind: int
    is_flat: bool


def parse_schema(reader: CompactReader, kind: int) -> tuple[list[Leaf], bytes]:
    """The columns, and the encoded elements below the root, whose own name means nothing."""
    count = reader.structs(kind)
    if not count:
        raise MalformedThrift("it has no schema")
    _, _, children = _element(reader)
    begin, leaves = reader.position, []
    open_groups = [[children, True]]
    for _ in range(count - 1):
        while open_groups and not open_groups[-1][0]:
            open_groups.pop()
        if not open_groups:
            raise MalformedThrift("its schema has elements that belong nowhere")
        open_groups[-1][0] -= 1
        physical, repetition, children = _element(reader)
        is_flat = bool(open_groups[-1][1] and repetition != REPEATED)
        if children:
            open_groups.append([children, is_flat])
        elif physical is not None:
            leaves.append(Leaf(physical, is_flat))
    if any(remaining for remaining, _ in open_groups):
        raise MalformedThrift("its schema lacks elements")
    return leaves, reader.data[begin : reader.position]


def _element(reader: CompactReader) -> tuple[int | None, int, int]:
    """Physical type, repetition and number of children."""
    numbers = {}
    named = False
    for field, kind in reader.fields():
        if field in (1, 3, 5):
            numbers[field] = reader.integer(kind, I32)
        named = named or field == 4  # noqa: PLR2004  # name
    children = numbers.get(5, 0)
    if not named or children < 0:
        raise MalformedThrift("its schema is damaged")
    return numbers.get(1), numbers.get(3, 0), children


def parse_row_group(reader: CompactReader, leaves: list[Leaf], *, limit: int) -> tuple[RowGroup, Layout]:
    """The row group that begins here.

    Args:
        reader: At its metadata.
        leaves: Columns of the schema.
        limit: Where the footer begins: all that is pointed at must lie before it.
    """
    return _RowGroupParser(reader, limit).parse(leaves)


class _RowGroupParser:
    def __init__(self, reader: CompactReader, limit: int) -> None:
        self._reader, self._limit = reader, limit
        self._patches: list[Patch] = []
        self._blooms: list[Place] = []
        self._indexes: list[tuple[Place | None, Place | None]] = []

    def parse(self, leaves: list[Leaf]) -> tuple[RowGroup, Layout]:
        reader, begin = self._reader, self._reader.position
        chunks: list[Chunk] | None = None
        numbers: dict[int, int] = {}
        for field, kind in reader.fields():
            if field == 1:
                chunks = [self._chunk() for _ in range(reader.structs(kind))]
            elif field in GROUP_NUMBERS:
                numbers[field] = self._number(field, kind, GROUP_NUMBERS, GROUP_ROLES)
            elif field == EXTENSION:
                self._drop(kind)
        rows = numbers[3]
        if chunks is None or rows < 0:
            raise MalformedThrift("a row group is damaged")
        _check_chunks(chunks, leaves, rows)
        _check_places(chunks if rows else (), self._limit)  # without rows, Arrow leaves offsets of 0
        start = min((chunk.start for chunk in chunks), default=0) if rows else 0
        end = max((chunk.end for chunk in chunks), default=0) if rows else 0
        layout = Layout(
            begin, reader.position, tuple(self._patches), tuple(self._blooms), tuple(self._indexes), tuple(chunks)
        )
        return RowGroup(rows, start, end), layout

    def _number(self, field: int, kind: int, kinds: dict[int, int], roles: dict[int, Role]) -> int:
        """The field's number, which is to be patched if it has a role; an offset of 0 says that there is none."""
        begin = self._reader.position
        value = self._reader.integer(kind, kinds[field])
        role = roles.get(field)
        if role is Role.INDEX:
            number = INDEX_FIELDS * len(self._indexes) + field
            self._patches.append(Patch(begin, self._reader.position, role, number))
        elif role is not None and (value or role in (Role.ORDINAL, Role.START)):
            self._patches.append(Patch(begin, self._reader.position, role, value))
        return value

    def _drop(self, kind: int) -> None:
        reader = self._reader
        begin = reader.position - EXTENSION_HEADER_BYTES
        reader.skip(kind)
        if (
            reader.data[begin : begin + 1] != bytes((kind,))
            or reader.data[reader.position : reader.position + 1] != b"\0"
        ):
            raise MalformedThrift("an extension is not the last field")
        self._patches.append(Patch(begin, reader.position, Role.DROP, 0))

    def _chunk(self) -> Chunk:
        reader = self._reader
        chunk: Chunk | None = None
        numbers: dict[int, int] = {}
        for field, kind in reader.fields():
            if field == 3:  # noqa: PLR2004  # meta_data
                reader.expect(kind, STRUCT)
                chunk = self._column()
            elif field in CHUNK_NUMBERS:
                numbers[field] = self._number(field, kind, CHUNK_NUMBERS, CHUNK_ROLES)
            elif field == 1:
                raise MalformedThrift("its rows lie in other files")
            elif field in (8, 9):
                raise MalformedThrift("a column is encrypted")
            elif field == EXTENSION:
                self._drop(kind)
        if chunk is None:
            raise MalformedThrift("a column chunk has no metadata")
        self._note_indexes(numbers)
        return chunk

    def _note_indexes(self, numbers: dict[int, int]) -> None:
        offset_index, column_index = (
            Place.within(numbers[offset], numbers[length], limit=self._limit)
            if numbers.keys() & {offset, length}
            else None
            for offset, length in ((4, 5), (6, 7))
        )
        if offset_index or column_index:
            self._indexes.append((offset_index, column_index))

    def _column(self) -> Chunk:
        reader = self._reader
        numbers: dict[int, int] = {}
        for field, kind in reader.fields():
            if field in COLUMN_NUMBERS:
                numbers[field] = self._number(field, kind, COLUMN_NUMBERS, COLUMN_ROLES)
            elif field == EXTENSION:
                self._drop(kind)
        if numbers.get(14):
            self._blooms.append(Place.within(numbers[14], numbers.get(15, 0), limit=self._limit))
        dictionary, start = numbers.get(11, 0), numbers[9]
        start = dictionary if 0 < dictionary < start else start
        offsets = tuple(numbers[field] for field in OFFSETS_OF_PAGES if numbers.get(field))
        return Chunk(
            numbers[1], numbers[5], start, start + numbers[7], numbers.get(6, -1), numbers[9], dictionary, offsets
        )


def _check_chunks(chunks: list[Chunk], leaves: list[Leaf], rows: int) -> None:
    """Refuses what contradicts the schema or the count of rows."""
    if len(chunks) != len(leaves):
        raise MalformedThrift(f"a row group has {len(chunks)} column chunks for {len(leaves)} columns")
    for chunk, leaf in zip(chunks, leaves, strict=True):
        if chunk.kind != leaf.kind:
            raise MalformedThrift("a column chunk is not of its column's type")
        if chunk.values < 0 or (leaf.is_flat and chunk.values != rows):
            raise MalformedThrift("a column chunk has not as many values as its row group has rows")


def _check_places(chunks: Iterable[Chunk], limit: int) -> None:
    for chunk in chunks:
        if not len(MAGIC) <= chunk.start < chunk.end <= limit:
            raise MalformedThrift("a column chunk lies outside the file")
        if any(not chunk.start <= offset < chunk.end for offset in chunk.offsets):
            raise MalformedThrift("a page lies outside its column chunk")
