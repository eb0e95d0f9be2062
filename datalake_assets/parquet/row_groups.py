"""Where a footer's row groups lie, and which numbers of their metadata change when their bytes move.

Metadata is not decoded: a row group keeps its span in the footer and a list of patches. Whatever no patch names comes
out as it went in: statistics, sorting columns, encodings, key-values, and what later versions of the format add.

Source: apache/parquet-format, src/main/thrift/parquet.thrift: RowGroup, ColumnChunk, ColumnMetaData, SchemaElement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from datalake_assets.core.values import Value
from datalake_assets.parquet.thrift import (
    I16,
    I32,
    I64,
    STRUCT,
    CompactReader,
    MalformedThrift,
    UndecodableThrift,
    zigzag,
)

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
    "moved_offset_index",
    "parse_row_group",
    "parse_schema",
]

MAGIC = b"PAR1"
REPEATED = 2  # FieldRepetitionType
#: Type
TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
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
    def within(cls, offset: int, length: int, *, limit: int, what: str) -> Place:
        """The range, if it lies between the magic and the footer; ``what`` lies there."""
        if offset < len(MAGIC) or length < 0 or offset + max(length, 1) > limit:
            raise MalformedThrift(f"its {what}, {length} bytes from byte {offset} on, lies outside the file")
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


class RowGroup(Value, frozen=True):
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


class Layout(Value, frozen=True):
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
    """A column of the schema: its physical type, whether it has one value in each row, and its path."""

    kind: int
    is_flat: bool
    path: str


def parse_schema(reader: CompactReader, kind: int) -> tuple[list[Leaf], bytes]:
    """The columns, and the encoded elements below the root, whose own name means nothing."""
    count = reader.structs(kind)
    if not count:
        raise MalformedThrift("it has no schema")
    *_, children = _element(reader)
    begin, leaves = reader.position, []
    open_groups = [_Group(children, is_flat=True, path="")]
    for _ in range(count - 1):
        while open_groups and not open_groups[-1].left:
            open_groups.pop()
        if not open_groups:
            raise MalformedThrift("its schema has elements that belong nowhere")
        above = open_groups[-1]
        above.left -= 1
        name, physical, repetition, children = _element(reader)
        path, is_flat = f"{above.path}{name}", above.is_flat and repetition != REPEATED
        if children:
            open_groups.append(_Group(children, is_flat, f"{path}."))
        elif physical is not None:
            if physical not in range(len(TYPES)):
                raise MalformedThrift(f"column {path!r} has the type {physical}, which is not known")
            leaves.append(Leaf(physical, is_flat, path))
    if left := sum(group.left for group in open_groups):
        raise MalformedThrift(f"its schema lacks {left} elements that are counted in it")
    return leaves, reader.data[begin : reader.position]


@dataclass(slots=True)
class _Group:
    """A group of the schema, some of whose elements are still to come; ``path`` ends with a dot, but for the root's."""

    left: int
    is_flat: bool
    path: str


def _element(reader: CompactReader) -> tuple[str, int | None, int, int]:
    """Name, physical type, repetition and number of children."""
    numbers = {}
    name: bytes | None = None
    for field, kind in reader.fields():
        if field in (1, 3, 5):
            numbers[field] = reader.integer(kind, I32)
        elif field == 4:  # noqa: PLR2004  # name
            name = reader.binary(kind)
    children = numbers.get(5, 0)
    if name is None:
        raise MalformedThrift("an element of its schema has no name")
    text = name.decode(errors="backslashreplace")
    if children < 0:
        raise MalformedThrift(f"its schema says that {text!r} has {children} elements")
    return text, numbers.get(1), numbers.get(3, 0), children


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
                chunks = [self._chunk_of(leaves, index) for index in range(reader.structs(kind))]
            elif field in GROUP_NUMBERS:
                numbers[field] = self._number(field, kind, GROUP_NUMBERS, GROUP_ROLES)
            elif field == EXTENSION:
                self._drop(kind)
        rows = numbers[3]
        if chunks is None or rows < 0:
            raise MalformedThrift(f"it has {rows} rows" if chunks is not None else "it has no columns")
        _check_chunks(chunks, leaves, rows)
        _check_places(chunks if rows else (), leaves, self._limit)  # without rows, Arrow leaves offsets of 0
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

    def _chunk_of(self, leaves: list[Leaf], index: int) -> Chunk:
        try:
            return self._chunk()
        except UndecodableThrift:
            raise
        except MalformedThrift as error:
            name = repr(leaves[index].path) if index < len(leaves) else f"{index}"
            raise MalformedThrift(f"column {name}: {error}") from error

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
                raise MalformedThrift("it is encrypted")
            elif field == EXTENSION:
                self._drop(kind)
        if chunk is None:
            raise MalformedThrift("it has no metadata")
        self._note_indexes(numbers)
        return chunk

    def _note_indexes(self, numbers: dict[int, int]) -> None:
        offset_index, column_index = (
            Place.within(numbers.get(offset, 0), numbers.get(length, -1), limit=self._limit, what=what)
            if numbers.keys() & {offset, length}
            else None
            for offset, length, what in ((4, 5, "offset index"), (6, 7, "column index"))
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
            self._blooms.append(Place.within(numbers[14], numbers.get(15, 0), limit=self._limit, what="bloom filter"))
        dictionary, start = numbers.get(11, 0), numbers[9]
        start = dictionary if 0 < dictionary < start else start
        offsets = tuple(numbers[field] for field in OFFSETS_OF_PAGES if numbers.get(field))
        return Chunk(
            numbers[1], numbers[5], start, start + numbers[7], numbers.get(6, -1), numbers[9], dictionary, offsets
        )


def _check_chunks(chunks: list[Chunk], leaves: list[Leaf], rows: int) -> None:
    """Refuses what contradicts the schema or the count of rows."""
    if len(chunks) != len(leaves):
        raise MalformedThrift(f"it has {len(chunks)} column chunks for {len(leaves)} columns")
    for chunk, leaf in zip(chunks, leaves, strict=True):
        if chunk.kind != leaf.kind:
            kinds = [TYPES[kind] if kind in range(len(TYPES)) else f"type {kind}" for kind in (chunk.kind, leaf.kind)]
            raise MalformedThrift(f"column {leaf.path!r} is {kinds[0]}, and {kinds[1]} by the schema")
        if chunk.values < 0 or (leaf.is_flat and chunk.values != rows):
            raise MalformedThrift(f"column {leaf.path!r} has {chunk.values} values for {rows} rows")


def _check_places(chunks: Iterable[Chunk], leaves: list[Leaf], limit: int) -> None:
    for chunk, leaf in zip(chunks, leaves, strict=False):
        place = f"bytes {chunk.start} to {chunk.end}"
        if not len(MAGIC) <= chunk.start < chunk.end <= limit:
            raise MalformedThrift(f"column {leaf.path!r} lies at {place}, and the data at {len(MAGIC)} to {limit}")
        for offset in chunk.offsets:
            if not chunk.start <= offset < chunk.end:
                raise MalformedThrift(f"a page of column {leaf.path!r} is at byte {offset}, and the column at {place}")


def moved_offset_index(data: bytes, moved: Callable[[int], int]) -> bytes:
    """The same offset index, its pages where `moved` says that they lie now."""
    reader, cursor = CompactReader(data), 0
    pieces: list[bytes] = []
    for field, kind in reader.fields():
        if field != 1:  # page_locations
            continue
        for _ in range(reader.structs(kind)):
            for inner, inner_kind in reader.fields():
                if inner == 1:  # offset
                    pieces.append(data[cursor : reader.position])
                    pieces.append(zigzag(moved(reader.integer(inner_kind, I64))))
                    cursor = reader.position
    if reader.position != len(data):
        raise MalformedThrift("more follows the end of an offset index")
    pieces.append(data[cursor:])
    return b"".join(pieces)
