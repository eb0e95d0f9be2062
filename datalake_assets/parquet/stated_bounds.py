"""Bounds that a footer states in another width than the values have: over some of them Arrow ends the process.

Arrow decodes bounds when it is asked for a chunk's statistics, and when a filter is held against them. If they are
shorter than a value, or the chunk has another type than its column, it throws where nobody catches it (Arrow 26). So
this is looked at before any file of others is used. Writers may cut off byte arrays, also those of one length
(parquet-rs does): such a file is sound, but must not be asked for its statistics.

Source: apache/parquet-format, src/main/thrift/parquet.thrift: Statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa

from datalake_assets.parquet.footer import TAIL_BYTES
from datalake_assets.parquet.native import Part, load_kernel
from datalake_assets.parquet.row_groups import TYPES
from datalake_assets.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, CompactReader, MalformedThrift

__all__ = ["OddBound", "check_bounds", "fatal_bound", "has_cut_bounds", "odd_bounds"]

# SchemaElement, FileMetaData, RowGroup, ColumnChunk and ColumnMetaData
ELEMENT_TYPE, ELEMENT_LENGTH, ELEMENT_NAME, ELEMENT_CHILDREN = 1, 2, 4, 5
SCHEMA, ROW_GROUPS, COLUMNS, META_DATA, CHUNK_TYPE, STATISTICS = 2, 4, 1, 3, 1, 12
CRYPTO, SIZES, PLACES, WITH_COLUMN_KEY = 8, 16, 17, 2
#: Kinds of the elements that lists have: of FileMetaData, of RowGroup, of ColumnMetaData, and of structs within.
FILE_LISTS = {SCHEMA: STRUCT, ROW_GROUPS: STRUCT, 5: STRUCT, 7: STRUCT}
GROUP_LISTS = {COLUMNS: STRUCT, 4: STRUCT}
CHUNK_LISTS = {2: I32, 3: BINARY, 8: STRUCT, 13: STRUCT}
INNER_LISTS = {SIZES: {2: I64, 3: I64}, PLACES: {2: I32}}
#: Holds most footers whole.
FIRST_READ_BYTES = 64 << 10
#: Statistics: max and min, then max_value and min_value.
BOUNDS = (1, 2, 5, 6)
#: Bytes of a value by physical type; those of texts differ, and 96-bit times have no order, so that nobody looks.
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8}
FIXED = "FIXED_LEN_BYTE_ARRAY"


class OddBound(NamedTuple):
    """A bound that is no value of its column.

    Attributes:
        reason: What is wrong, for a person.
        is_cut: It is that of a byte array, cut off, as it may be.
        is_short: Arrow ends the process over it.
    """

    reason: str
    is_cut: bool
    is_short: bool

    @property
    def is_fatal(self) -> bool:
        """No reader takes it, and Arrow ends the process."""
        return self.is_short and not self.is_cut


def check_bounds(source: pa.NativeFile) -> None:
    """Raises unless Arrow survives to be asked for the statistics of all columns, but for cut byte arrays.

    Raises:
        OSError: A bound is shorter than a value, or a chunk has another type than its column.
    """
    for bound in _odd_bounds_of(source):
        if bound.is_fatal:
            raise OSError(f"its footer is damaged: {bound.reason}")


def fatal_bound(footer: bytes) -> str:
    """Why Arrow must not be asked for what an encoded footer states, for a person; empty if it may."""
    try:
        return next((bound.reason for bound in odd_bounds(footer) if bound.is_fatal), "")
    except MalformedThrift as error:
        return str(error)


def has_cut_bounds(source: pa.NativeFile) -> bool:
    """Whether bounds of byte arrays are cut off, so that Arrow must not hold a filter against them.

    Raises:
        OSError: The footer cannot be read.
    """
    return any(bound.is_cut and bound.is_short for bound in _odd_bounds_of(source))


def odd_bounds(footer: bytes) -> Iterator[OddBound]:
    """The bounds of an encoded footer that have another width than the values of their column.

    Raises:
        MalformedThrift: It is none.
    """
    leaves: list[_Leaf] = []
    reader = CompactReader(footer)
    for field, kind in _checked(reader, FILE_LISTS):
        if field == SCHEMA:
            elements = [_element(reader) for _ in range(reader.structs(kind))]
            leaves = [leaf for leaf in elements if leaf is not None]
        elif field == ROW_GROUPS:
            for _ in range(reader.structs(kind)):
                yield from _of_group(reader, leaves)


class _Leaf(NamedTuple):
    name: str
    kind: int
    length: int


def _element(reader: CompactReader) -> _Leaf | None:
    """An element of the schema, if it is a leaf."""
    numbers, name = {}, b""
    for field, kind in reader.fields():
        if field in (ELEMENT_TYPE, ELEMENT_LENGTH, ELEMENT_CHILDREN) and kind == I32:
            numbers[field] = reader.integer(kind, I32)
        elif field == ELEMENT_NAME and kind == BINARY:
            name = reader.binary(kind)
    if numbers.get(ELEMENT_CHILDREN) or ELEMENT_TYPE not in numbers:
        return None
    return _Leaf(name.decode(errors="backslashreplace"), numbers[ELEMENT_TYPE], numbers.get(ELEMENT_LENGTH, 0))


def _checked(reader: CompactReader, lists: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """The fields of a struct, whose lists must have elements of these kinds: else Arrow reads all else otherwise."""
    for field, kind in reader.fields():
        if kind == LIST and field in lists:
            reader.expect_elements(lists[field])
        yield field, kind


def _check_key(reader: CompactReader) -> None:
    for field, kind in reader.fields():
        if field == WITH_COLUMN_KEY and kind == STRUCT:
            for _ in _checked(reader, {1: BINARY}):  # the column's path
                pass


def _of_group(reader: CompactReader, leaves: list[_Leaf]) -> Iterator[OddBound]:
    for field, kind in _checked(reader, GROUP_LISTS):
        if field != COLUMNS or kind != LIST:
            continue
        for index in range(reader.structs(kind)):
            for part, of_part in reader.fields():
                if part == CRYPTO and of_part == STRUCT:
                    _check_key(reader)
                elif part == META_DATA and of_part == STRUCT and index < len(leaves):
                    yield from _of_chunk(reader, leaves[index])


def _of_chunk(reader: CompactReader, leaf: _Leaf) -> Iterator[OddBound]:
    for field, kind in _checked(reader, CHUNK_LISTS):
        if field == CHUNK_TYPE:
            if (stated := reader.integer(kind, I32)) != leaf.kind:
                reason = f"a chunk of column {leaf.name!r} is {_type_name(stated)}, and {_type_name(leaf.kind)} by the"
                yield OddBound(f"{reason} schema", is_cut=False, is_short=True)
        elif field == STATISTICS and kind == STRUCT:
            yield from _of_statistics(reader, leaf)
        elif field in INNER_LISTS and kind == STRUCT:
            for _ in _checked(reader, INNER_LISTS[field]):
                pass


def _of_statistics(reader: CompactReader, leaf: _Leaf) -> Iterator[OddBound]:
    name = _type_name(leaf.kind)
    width = leaf.length if name == FIXED else WIDTHS.get(name)
    for field, kind in reader.fields():
        if field in BOUNDS and kind == BINARY and width is not None:
            size = len(reader.binary(kind))
            if size != width:
                reason = f"a bound of column {leaf.name!r} takes {size} bytes, and its values {width}"
                yield OddBound(reason, is_cut=name == FIXED, is_short=size < width)


def _type_name(number: int) -> str:
    return TYPES[number] if number in range(len(TYPES)) else f"type {number}"


def _odd_bounds_of(source: pa.NativeFile) -> list[OddBound]:
    """The same of an open file; the kernel says in a tenth of the time that there are none."""
    if (kernel := load_kernel()) is not None and (part := _at_hand(source)) is not None:
        (found,) = kernel.check([part])
        if found.refused is None:
            return []
    try:
        return [*odd_bounds(_footer(source))]
    except MalformedThrift as error:
        raise OSError(f"its footer is damaged: {error}") from error


def _footer(source: pa.NativeFile) -> bytes:
    """An encoded footer; mostly in one read, which may be a request."""
    size_bytes = source.size()
    most = min(size_bytes, FIRST_READ_BYTES)
    tail = source.read_at(most, size_bytes - most)
    wanted = int.from_bytes(tail[-TAIL_BYTES:-4], "little") + TAIL_BYTES
    if most < wanted <= size_bytes:
        tail = source.read_at(wanted, size_bytes - wanted)
    return bytes(tail[-wanted:-TAIL_BYTES])


def _at_hand(source: pa.NativeFile) -> Part | None:
    """The file for the kernel, if its bytes are here."""
    if isinstance(source, pa.OSFile):
        return Part(source.fileno())
    if isinstance(source, (pa.BufferReader, pa.MemoryMappedFile)):
        place = source.tell()
        source.seek(0)
        data = source.read_buffer()
        source.seek(place)
        return Part(data)
    return None
