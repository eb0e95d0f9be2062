"""Rows of a row group by its page indexes: which pages may have any that a filter takes, and these pages decoded alone.

Arrow reads column chunks whole. Of a row group of 16 MB that lies in a store far away, a look-up by a key needs a page
of each column. Pages of several columns begin at different rows, so that each column's are put into a file of its own
in memory, which Arrow decodes, and are cut to the rows that all of them have.

Nothing is believed that can be looked at: an offset index has to name pages side by side from the first row to the
last, and each page's own header has to say the same number of values; for bounds see `page_bounds`. These are used of
types whose order nobody disputes; of floating-point numbers they say nothing of what is none.

Source: apache/parquet-format, src/main/thrift/parquet.thrift: OffsetIndex, ColumnIndex; PageIndex.md.
"""

from __future__ import annotations

import base64
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
import pyarrow.types as pt

from datalake_assets.parquet.chunk_pages import CODECS
from datalake_assets.parquet.footer import SCHEMA_FIELD, Footer
from datalake_assets.parquet.page_bounds import BoundForm, Bounds, page_bounds
from datalake_assets.parquet.pages import DATA_PAGE, DATA_PAGE_V2, DICTIONARY_PAGE, page_of
from datalake_assets.parquet.row_groups import MAGIC, Chunk, Place
from datalake_assets.parquet.stated import schema_of
from datalake_assets.parquet.thrift import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    CompactReader,
    CompactWriter,
    MalformedThrift,
    zigzag,
)

__all__ = ["ChunkIndex", "Leaves", "PagePlace", "Rows", "chunk_index", "common", "covering", "decoded", "met"]

#: Rows of a row group: the first, and the one after the last.
Rows = tuple[int, int]
#: Codecs of which Arrow's names are not ambiguous.
_CODECS = {name.upper(): CODECS.index(name) for name in ("uncompressed", "snappy", "gzip", "brotli", "zstd")}
#: Encodings that a chunk's metadata has to list (PLAIN, RLE, RLE_DICTIONARY); pages say by themselves which is theirs.
_ENCODINGS = (0, 3, 8)
#: Units of times, as the format spells them and as Arrow does.
_UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}
_FORMAT = ds.ParquetFileFormat()
#: Field of the number of children in an element of the schema, which leaves do not have.
_NUM_CHILDREN = 5
#: Field of FileMetaData that says how the bounds of each column are ordered; and the one way that is defined.
_COLUMN_ORDERS, _TYPE_ORDER = 7, 1
#: Bytes of a number as a bound has it, by its physical type.
_WIDTHS = {"INT32": 4, "INT64": 8}


class PagePlace(NamedTuple):
    """Where a data page lies in its file, its header included, and which rows of the row group it has."""

    start: int
    size_bytes: int
    rows: Rows


class ChunkIndex(NamedTuple):
    """The pages of a column chunk.

    Attributes:
        column: Its place among the file's leaves.
        dictionary: Where its dictionary page lies: from, to; the same where there is none.
        pages: Its data pages, in their order.
        bounds: Of each page; None where they are not used.
    """

    column: int
    dictionary: tuple[int, int]
    pages: tuple[PagePlace, ...]
    bounds: tuple[Bounds, ...] | None


class Leaves:
    """The columns of a file that are flat, by their names.

    Args:
        footer: Of the file.
        metadata: The same, as Arrow has it.

    Raises:
        MalformedThrift: The schema is not what Arrow makes of it.
    """

    def __init__(self, footer: Footer, metadata: pq.FileMetaData) -> None:
        self._footer, self._metadata, self._described = footer, metadata, schema_of(metadata)
        self.schema: pa.Schema = self._described.to_arrow_schema()
        self._places: dict[str, int] = {}
        at = 0
        for field in self.schema:
            self._places[field.name] = at
            at += _leaves(field.type)
        kind, encoded = footer.fields[SCHEMA_FIELD]
        self._elements = list(_leaf_elements(encoded, kind))
        if not at == len(self._elements) == metadata.num_columns or len(self._places) != len(self.schema):
            raise MalformedThrift("its columns are not those that Arrow has")
        self._has_orders = _are_by_type(footer.fields.get(_COLUMN_ORDERS), at)

    def place(self, name: str, kind: pa.DataType) -> int | None:
        """Which leaf a column is; None if it is not there, or not a flat one of that type."""
        at = self._places.get(name)
        if at is None or pt.is_nested(kind) or _alike(self.schema.field(name).type) != _alike(kind):
            return None
        return at

    def chunk(self, group: int, column: int) -> Chunk:
        """What the footer states of a column chunk."""
        return self._footer.layouts[group].chunks[column]

    def indexes(self, group: int, column: int) -> tuple[Place | None, Place | None]:
        """Where its offset index and its column index lie."""
        layout = self._footer.layouts[group]
        if len(layout.indexes) != len(layout.chunks):  # some have none, and nothing says which
            return None, None
        return layout.indexes[column]

    def order(self, column: int) -> str:
        """How the bounds of a leaf are written and ordered; empty if that is not known here."""
        if not self._has_orders:
            return ""
        described = self._described.column(column)
        field = self.schema.field(next(name for name, place in self._places.items() if place == column))
        kind, logical = field.type, described.logical_type
        stated = str(logical.type)
        if described.physical_type == "BYTE_ARRAY":
            return "STRING" if stated == "STRING" and _alike(kind) == pa.string() else ""
        if described.physical_type not in ("INT32", "INT64"):
            return ""
        if pt.is_integer(kind) and stated in ("NONE", "INT"):
            return "UNSIGNED" if pt.is_unsigned_integer(kind) else "SIGNED"
        if pt.is_timestamp(kind):  # Arrow restores units that are not those of the file
            return "TIMESTAMP" if _UNITS.get(json.loads(logical.to_json()).get("timeUnit")) == kind.unit else ""
        return "DATE" if pt.is_date32(kind) and stated == "DATE" else ""

    def width(self, column: int) -> int:
        """Bytes of a leaf's bounds; 0 if they are of several lengths."""
        return _WIDTHS.get(self._described.column(column).physical_type, 0)

    def extremes(self, group: int, column: int) -> tuple[bytes, bytes] | None:
        """The bounds of a column chunk of numbers, written as those of its pages are; None if it states none."""
        chunk, width = self._metadata.row_group(group).column(column), self.width(column)
        statistics = chunk.statistics if chunk.is_stats_set else None
        if not width or statistics is None or not statistics.has_min_max:
            return None
        low, high = (
            (each % (1 << 8 * width)).to_bytes(width, "little") for each in (statistics.min_raw, statistics.max_raw)
        )
        return low, high

    def rows(self, group: int) -> int:
        """Rows of a row group."""
        return self._footer.row_groups[group].rows

    def file_of(self, group: int, column: int, pages: Sequence[bytes], rows: int, plain_bytes: int) -> bytes:
        """A Parquet file that has these pages of a column, the dictionary first if there is one, and nothing else.

        Raises:
            MalformedThrift: Its codec is not one that is known here.
        """
        described = self._metadata.row_group(group).column(column)
        codec = _CODECS.get(described.compression)
        if codec is None:
            raise MalformedThrift(f"codec {described.compression}")
        body = b"".join(pages)
        has_dictionary = page_of(pages[0]).kind not in (DATA_PAGE, DATA_PAGE_V2)
        field = self.schema.field(next(name for name, place in self._places.items() if place == column))
        chunk = CompactWriter()
        chunk.field(1, I32, zigzag(self.chunk(group, column).kind))
        chunk.field(2, LIST, _list(I32, map(zigzag, _ENCODINGS)))
        chunk.field(3, LIST, _list(BINARY, [CompactWriter.binary(field.name.encode())]))
        chunk.field(4, I32, zigzag(codec))
        chunk.field(5, I64, zigzag(rows))
        chunk.field(6, I64, zigzag(plain_bytes))
        chunk.field(7, I64, zigzag(len(body)))
        chunk.field(9, I64, zigzag(len(MAGIC) + (len(pages[0]) if has_dictionary else 0)))
        if has_dictionary:
            chunk.field(11, I64, zigzag(len(MAGIC)))
        column_chunk, group_, root, key_value, file = (CompactWriter() for _ in range(5))
        column_chunk.field(2, I64, zigzag(len(MAGIC)))
        column_chunk.field(3, STRUCT, chunk.end())
        group_.field(1, LIST, _list(STRUCT, [column_chunk.end()]))
        group_.field(2, I64, zigzag(plain_bytes))
        group_.field(3, I64, zigzag(rows))
        root.field(4, BINARY, CompactWriter.binary(b"schema"))
        root.field(_NUM_CHILDREN, I32, zigzag(1))
        arrow = base64.b64encode(pa.schema([field]).serialize().to_pybytes())
        key_value.field(1, BINARY, CompactWriter.binary(b"ARROW:schema"))
        key_value.field(2, BINARY, CompactWriter.binary(arrow))
        file.field(1, I32, zigzag(self._footer.version))
        file.field(2, LIST, _list(STRUCT, [root.end(), self._elements[column]]))
        file.field(3, I64, zigzag(rows))
        file.field(4, LIST, _list(STRUCT, [group_.end()]))
        file.field(5, LIST, _list(STRUCT, [key_value.end()]))
        footer = file.end()
        return b"".join((MAGIC, body, footer, len(footer).to_bytes(4, "little"), MAGIC))


def _list(kind: int, items: Iterator[bytes] | Sequence[bytes]) -> bytes:
    listed = list(items)
    return CompactWriter.list_header(kind, len(listed)) + b"".join(listed)


def _leaves(kind: pa.DataType) -> int:
    if not pt.is_nested(kind):
        return 1
    return sum(_leaves(kind.field(place).type) for place in range(kind.num_fields))


def _leaf_elements(encoded: bytes, kind: int) -> Iterator[bytes]:
    """The encoded elements of a schema that are columns."""
    reader = CompactReader(encoded)
    for _ in range(reader.structs(kind)):
        begin, children = reader.position, 0
        for field, of_field in reader.fields():
            if field == _NUM_CHILDREN:
                children = reader.integer(of_field, I32)
        if not children:
            yield encoded[begin : reader.position]


def _are_by_type(orders: tuple[int, bytes] | None, count: int) -> bool:
    """Whether a footer says of all its columns that bounds are ordered as their types are; else bounds mean nothing."""
    if orders is None:
        return False
    kind, encoded = orders
    reader = CompactReader(encoded)
    return reader.structs(kind) == count and all([f for f, _ in reader.fields()] == [_TYPE_ORDER] for _ in range(count))


def _alike(kind: pa.DataType) -> pa.DataType:
    """One type for those that differ in the width of their offsets alone."""
    if pt.is_large_string(kind):
        return pa.string()
    return pa.binary() if pt.is_large_binary(kind) else kind


def chunk_index(leaves: Leaves, group: int, column: int, kind: pa.DataType, read: Mapping[Place, bytes]) -> ChunkIndex:
    """The pages of a column chunk.

    Args:
        leaves: Of the file.
        group: The row group.
        column: The leaf.
        kind: Its type in Arrow, as bounds are to have it.
        read: The encoded indexes by their places; without a column index no bounds are known.

    Raises:
        MalformedThrift: The offset index is not there, or not one of these rows.
    """
    chunk, (offsets, bounds) = leaves.chunk(group, column), leaves.indexes(group, column)
    encoded = b"" if offsets is None else read.get(offsets, b"")
    pages = _pages(encoded, leaves.rows(group))
    ends = [page.start + page.size_bytes for page in pages]
    if pages[0].start != chunk.data_offset or any(
        end > start for end, start in zip(ends, [*(page.start for page in pages[1:]), chunk.end], strict=True)
    ):
        raise MalformedThrift("pages lie outside of their column chunk, or over one another")
    known, form = None, BoundForm(leaves.order(column), leaves.width(column), kind)
    if form.order and bounds is not None and bounds in read:
        rows = [after - first for _, _, (first, after) in pages]
        known = page_bounds(read[bounds], form, rows, leaves.extremes(group, column))
    return ChunkIndex(column, (chunk.start, chunk.data_offset), pages, known)


def _pages(encoded: bytes, rows: int) -> tuple[PagePlace, ...]:
    reader, found = CompactReader(encoded), list[tuple[int, int, int]]()
    for field, kind in reader.fields():
        if field == 1:  # page_locations
            for _ in range(reader.structs(kind)):
                kinds = {1: I64, 2: I32, 3: I64}
                place = {inner: reader.integer(of, kinds[inner]) for inner, of in reader.fields() if inner in kinds}
                found.append((place.get(1, -1), place.get(2, -1), place.get(3, -1)))
    firsts = [first for *_, first in found]
    if firsts[:1] != [0] or any(before >= after for before, after in pairwise([*firsts, rows])):
        raise MalformedThrift("an offset index that does not name all rows")
    if any(start < 0 or size <= 0 for start, size, _ in found):
        raise MalformedThrift("an offset index names no place")
    return tuple(
        PagePlace(start, size, (first, after))
        for (start, size, first), after in zip(found, [*firsts[1:], rows], strict=True)
    )


def met(index: ChunkIndex, name: str, schema: pa.Schema, where: ds.Expression) -> list[Rows]:
    """The rows of pages that may have some that a filter takes, by the bounds of one column, in their order.

    Args:
        index: Of the column.
        name: Of the column.
        schema: Of all columns that the filter names.
        where: The filter.
    """
    pages = [page.rows for page in index.pages]
    if index.bounds is None:
        return _joined(pages)
    nowhere = pa.fs.LocalFileSystem()  # nothing is opened by it
    named = [
        _FORMAT.make_fragment(str(place), filesystem=nowhere, partition_expression=_guarantee(name, each))
        for place, each in enumerate(index.bounds)
    ]
    found = ds.FileSystemDataset(named, schema, _FORMAT, nowhere).get_fragments(where)
    return _joined(pages[place] for place in sorted(int(each.path) for each in found))


def _guarantee(name: str, bounds: Bounds) -> ds.Expression:
    """What holds for all values of a page, as Arrow says it of row groups."""
    column = pc.field(name)
    if bounds.least is None:
        return column.is_null()
    within = (column >= bounds.least) & (column <= bounds.greatest)
    return within | column.is_null() if bounds.may_be_null else within


def _joined(ranges: Iterable[Rows]) -> list[Rows]:
    found: list[Rows] = []
    for first, after in ranges:
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], after
        else:
            found.append((first, after))
    return found


def common(one: Sequence[Rows], other: Sequence[Rows]) -> list[Rows]:
    """The rows that two lists of ranges have both; each is in order."""
    found: list[Rows] = []
    here, there = 0, 0
    while here < len(one) and there < len(other):
        first, after = max(one[here][0], other[there][0]), min(one[here][1], other[there][1])
        if first < after:
            found.append((first, after))
        if one[here][1] < other[there][1]:
            here += 1
        else:
            there += 1
    return found


def covering(index: ChunkIndex, rows: Sequence[Rows]) -> list[PagePlace]:
    """The pages of a column that have some of these rows."""
    firsts = [first for first, _ in rows]

    def is_met(page: PagePlace) -> bool:
        last = bisect_left(firsts, page.rows[1]) - 1  # of the ranges that begin before its end
        return last >= 0 and rows[last][1] > page.rows[0]

    return [page for page in index.pages if is_met(page)]


def decoded(
    leaves: Leaves, group: int, index: ChunkIndex, rows: Sequence[Rows], read: Callable[[int, int], bytes]
) -> pa.ChunkedArray:
    """The values of some rows of a column chunk.

    Args:
        leaves: Of the file.
        group: The row group.
        index: Of the column.
        rows: Which.
        read: Gives bytes of the file: from, to. The dictionary and the pages of `covering` are asked for.

    Raises:
        MalformedThrift: A page is not what the offset index says.
        pa.ArrowException: It cannot be decoded.
    """
    chosen = covering(index, rows)
    pages, plain_bytes = [], 0
    if index.dictionary[0] < index.dictionary[1]:
        pages.append(read(*index.dictionary))
        header = page_of(pages[0])
        if header.kind != DICTIONARY_PAGE or header.header_bytes + header.size_bytes != len(pages[0]):
            raise MalformedThrift("there is something else than a dictionary before the first page")
        plain_bytes += header.header_bytes + header.plain_bytes
    for place in chosen:
        data = read(place.start, place.start + place.size_bytes)
        header = page_of(data)
        count = place.rows[1] - place.rows[0]
        if (
            header.kind not in (DATA_PAGE, DATA_PAGE_V2)
            or header.values != count
            or header.rows not in (None, count)
            or header.header_bytes + header.size_bytes != place.size_bytes
        ):
            raise MalformedThrift("a page is not what the offset index says")
        pages.append(data)
        plain_bytes += header.header_bytes + header.plain_bytes
    total = sum(place.rows[1] - place.rows[0] for place in chosen)
    file = leaves.file_of(group, index.column, pages, total, plain_bytes)
    try:
        (column,) = pq.ParquetFile(pa.BufferReader(file)).read(use_threads=False).columns
    except OSError as error:  # it was read from memory: they are damaged, or not what the index says
        raise MalformedThrift("pages cannot be decoded alone") from error
    if len(column) != total:
        raise MalformedThrift("pages have another number of rows than the offset index says")
    pieces: list[pa.Array] = []
    before = 0  # rows of the pages before this one
    at = 0
    for first, after in common([place.rows for place in chosen], rows):
        while first >= chosen[at].rows[1]:
            before, at = before + chosen[at].rows[1] - chosen[at].rows[0], at + 1
        pieces += column.slice(before + first - chosen[at].rows[0], after - first).chunks
    return pa.chunked_array(pieces, column.type)
