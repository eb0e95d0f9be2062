"""The pages of row groups, walked without decoding: whether they are what the metadata says, before they are copied.

Metadata can be wrong where the data are right: old writers stated chunks too short (PARQUET-816), others a wrong first
page. Readers that decode page by page get along with that; whoever copies bytes by the metadata loses values. So each
page's header is read, and all that pages say of themselves must add up to what their chunk's metadata says. Where pages
have checksums, these are compared.

A walk is fed the bytes that are copied anyway, in the order of the file, so that it costs no read of its own.

Source: apache/parquet-format, src/main/thrift/parquet.thrift: PageHeader and what it holds.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.field_names import PAGE_HEADER, fault
from datalake_assets.parquet.footer import Footer, ReadAt, read_exactly
from datalake_assets.parquet.row_groups import Chunk
from datalake_assets.parquet.stated_bounds import odd_bounds
from datalake_assets.parquet.thrift import (
    I32,
    I64,
    STRUCT,
    CompactReader,
    MalformedThrift,
    UndecodableThrift,
    leading_numbers,
    next_field,
    skipped,
)

__all__ = ["Page", "PageWalk", "UnsoundPages", "has_checksums", "page_of", "walk_pages"]

BLOCK_BYTES = 4 << 20
#: Bytes that are read for a header at first; statistics can make it longer.
HEADER_BYTES = 256
#: Arrow's own limit of a page header (arrow-cpp, kDefaultMaxPageHeaderSize).
MAX_HEADER_BYTES = 16 << 20
# PageType
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
#: Field of a page's header that holds the header of its kind.
HEADERS = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}
# Encoding: PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
ENCODINGS = (
    "PLAIN", "GROUP_VAR_INT", "PLAIN_DICTIONARY", "RLE", "BIT_PACKED", "DELTA_BINARY_PACKED",
    "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY", "RLE_DICTIONARY", "BYTE_STREAM_SPLIT",
)  # fmt: skip
#: Bytes of a value in a dictionary, by physical type; a text is preceded by its length.
VALUE_BYTES = {1: 4, 2: 8, 3: 12, 4: 4, 5: 8}
BYTE_ARRAY, LENGTH_BYTES = 6, 4


class UnsoundPages(Exception):
    """The pages of a file do not add up to what its metadata says; decoding it may still be right.

    Attributes:
        where: The file.
        reason: What is wrong.
    """

    def __init__(self, where: str, reason: str) -> None:
        self.where, self.reason = where, reason
        super().__init__(f"{where}: {reason}")


class Page(NamedTuple):
    """What a page's header says; ``rows`` is None where it doesn't say."""

    kind: int
    header_bytes: int
    plain_bytes: int
    size_bytes: int
    crc: int | None
    values: int
    rows: int | None
    encoding: int


class PageWalk:
    """A walk over the pages of column chunks.

    Args:
        footer: Of the file.
        row_groups: Which of its row groups; those without rows have no pages.

    Attributes:
        pages: Where data pages begin and how many bytes each takes, by where the first one of their chunk begins.

    Raises:
        UnsoundPages: Column chunks overlap.
    """

    def __init__(self, footer: Footer, row_groups: Sequence[int]) -> None:
        self._where = footer.where
        walks = [
            _ChunkWalk(chunk, footer.row_groups[number].rows, f"column {path!r} of row group {number}")
            for number in row_groups
            for chunk, path in zip(footer.layouts[number].chunks, footer.columns, strict=True)
        ]
        self._chunks = sorted(walks, key=lambda walk: walk.chunk.start)
        for before, after in pairwise(self._chunks):
            if after.chunk.start < before.chunk.end:
                raise UnsoundPages(self._where, f"{after.name}: it begins before the end of {before.name}")
        self._next = 0
        self.pages: dict[int, dict[int, int]] = {}

    def feed(self, offset: int, data: bytes | memoryview) -> None:
        """Takes the bytes from ``offset`` on, which lie behind all those before.

        Raises:
            UnsoundPages: A page is not what the metadata says.
            UnreadableFile: A page's checksum is not that of its bytes.
        """
        view = memoryview(data)
        end = offset + len(view)
        while self._next < len(self._chunks) and self._chunks[self._next].chunk.start < end:
            walk = self._chunks[self._next]
            begin = max(walk.position, offset)
            try:
                walk.feed(view[begin - offset : min(walk.chunk.end, end) - offset])
                if walk.position < walk.chunk.end:
                    return
                walk.finish()
            except MalformedThrift as error:
                raise UnsoundPages(self._where, f"{walk.name}: {error}") from error
            except _Damaged as error:
                raise UnreadableFile(self._where, f"{walk.name}: {error}") from error
            self.pages[walk.chunk.data_offset] = walk.pages
            self._next += 1

    def finish(self) -> None:
        """Sees to it that all chunks were walked.

        Raises:
            UnsoundPages: They were not.
        """
        if self._next < len(self._chunks):
            raise UnsoundPages(self._where, f"{self._chunks[self._next].name}: its pages end early")

    def check_offset_index(self, data: bytes) -> None:
        """Sees to it that an offset index names all data pages of its column chunk, and as they are.

        Raises:
            UnsoundPages: It does not: readers that go by it would miss rows.
        """
        named = list(_locations(data))
        pages = self.pages.get(named[0].start, {}) if named else {}
        rows = [place.first_row for place in named]
        if (
            [(place.start, place.size_bytes) for place in named] != list(pages.items())
            or any(before >= after for before, after in pairwise(rows))
            or rows[:1] not in ([0], [])
        ):
            names = [walk.name for walk in self._chunks if named and walk.chunk.data_offset == named[0].start]
            raise UnsoundPages(self._where, ": ".join([*names[:1], "its offset index is not that of its pages"]))


class _Location(NamedTuple):
    """Where a page lies, by the offset index."""

    start: int
    size_bytes: int
    first_row: int


def _locations(data: bytes) -> Iterator[_Location]:
    reader = CompactReader(data)
    for field, kind in reader.fields():
        if field == 1:  # page_locations
            for _ in range(reader.structs(kind)):
                kinds = {1: I64, 2: I32, 3: I64}
                place = {
                    inner: reader.integer(found, kinds[inner]) for inner, found in reader.fields() if inner in kinds
                }
                yield _Location(place.get(1, -1), place.get(2, -1), place.get(3, -1))


class _Damaged(Exception):
    """A page is not what was written."""


class _ChunkWalk:
    """The walk over one column chunk, fed in pieces."""

    def __init__(self, chunk: Chunk, rows: int, name: str) -> None:
        self.chunk, self._rows, self.name = chunk, rows, name
        self.position = chunk.start
        self._head = b""  # of a header that is not whole yet
        self._page: Page | None = None
        self._page_begin = self._left = self._crc = 0
        self._plain_bytes = self._values = self._page_rows = 0
        self._has_dictionary = False
        self._states_rows = True  # each data page does, which those of version 1 don't
        self._first_data: int | None = None
        self.pages: dict[int, int] = {}

    def feed(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            at += self._pass_page(data[at:]) if self._page else self._pass_header(data[at:])

    def finish(self) -> None:
        chunk = self.chunk
        if self._page is not None or self._head:
            raise MalformedThrift("a page is longer than its column chunk")
        if self._values != chunk.values:
            raise MalformedThrift(f"its pages hold {self._values} values, and its metadata says {chunk.values}")
        if self._plain_bytes != chunk.plain_bytes:
            raise MalformedThrift(
                f"its pages take {self._plain_bytes} bytes, and its metadata says {chunk.plain_bytes}"
            )
        if self._states_rows and self._page_rows != self._rows:
            raise MalformedThrift(f"its pages hold {self._page_rows} rows, and its metadata says {self._rows}")
        if self._first_data != chunk.data_offset:
            raise MalformedThrift("its first page is not where its metadata says")

    def _pass_header(self, data: memoryview) -> int:
        """Bytes of ``data`` that belong to the header here, or to as much of it as there is."""
        known, size = len(self._head), HEADER_BYTES
        left = self.chunk.end - self.position
        while True:
            head = self._head + bytes(data[:size])
            try:
                page = page_of(head)
                break
            except UndecodableThrift as error:
                if size < len(data):
                    size *= 16
                elif len(data) >= left or len(head) > MAX_HEADER_BYTES:
                    reason = fault(head, PAGE_HEADER, owner="a page's header") or f"a page's header: {error}"
                    raise MalformedThrift(reason) from error
                else:
                    self._head = head
                    self.position += len(data)
                    return len(data)
        self._page, self._head = page, b""
        self._page_begin = self.position - known
        self._left, self._crc = page.size_bytes, 0
        self.position += page.header_bytes - known
        self._check(page)
        if self.position + page.size_bytes > self.chunk.end:
            raise MalformedThrift("a page is longer than its column chunk")
        if not page.size_bytes:
            self._end_page(page)
        return page.header_bytes - known

    def _pass_page(self, data: memoryview) -> int:
        page = self._page
        assert page is not None  # noqa: S101  for mypy: the caller asked
        taken = min(self._left, len(data))
        if page.crc is not None:
            self._crc = zlib.crc32(data[:taken], self._crc)
        self._left -= taken
        self.position += taken
        if not self._left:
            self._end_page(page)
        return taken

    def _end_page(self, page: Page) -> None:
        self._page = None
        if page.crc is not None and self._crc != page.crc:
            raise _Damaged("the checksum of a page is not that of its bytes")

    def _check(self, page: Page) -> None:
        self._plain_bytes += page.header_bytes + page.plain_bytes
        if page.kind == DICTIONARY_PAGE:
            self._check_dictionary(page)
            return
        if page.kind not in (DATA_PAGE, DATA_PAGE_V2):
            raise MalformedThrift(f"a page is of the type {page.kind}, which is not known")
        if page.encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY) and not self._has_dictionary:
            raise MalformedThrift("a page needs a dictionary, and there is none")
        if self._first_data is None:
            self._first_data = self._page_begin
        self.pages[self._page_begin] = page.header_bytes + page.size_bytes
        self._values += page.values
        self._states_rows = self._states_rows and page.rows is not None
        self._page_rows += page.rows or 0

    def _check_dictionary(self, page: Page) -> None:
        chunk = self.chunk
        if self._has_dictionary or self._first_data is not None or self._page_begin != chunk.start:
            raise MalformedThrift("its dictionary is not its first page, or not the only one")
        if not chunk.dictionary_offset:
            raise MalformedThrift("it begins with a dictionary, and its metadata states none")
        if chunk.dictionary_offset != self._page_begin:
            raise MalformedThrift("its dictionary is not where its metadata says")
        if page.encoding not in (PLAIN, PLAIN_DICTIONARY):
            raise MalformedThrift(f"its dictionary has the encoding {_encoding_name(page.encoding)}, and not PLAIN")
        width = VALUE_BYTES.get(chunk.kind)
        if width is not None and page.values * width != page.plain_bytes:
            raise MalformedThrift(f"its dictionary of {page.values} values takes {page.plain_bytes} bytes")
        if chunk.kind == BYTE_ARRAY and page.values * LENGTH_BYTES > page.plain_bytes:
            raise MalformedThrift(f"its dictionary of {page.values} values takes {page.plain_bytes} bytes")
        self._has_dictionary = True


def page_of(data: bytes) -> Page:
    """The header that begins with these bytes."""
    numbers, field, kind_of_value, position = leading_numbers(data, 0, 4)
    inner: dict[int, int] = {}
    held = 0
    while field:
        if field in (5, 7, 8):
            CompactReader.expect(kind_of_value, STRUCT)
            held, (inner, position) = field, _numbers(data, position, of_v2=field == 8)  # noqa: PLR2004  data_page_header_v2
        else:
            position = skipped(data, position, kind_of_value)
        field, kind_of_value, position = next_field(data, position, field)
    try:
        kind, plain_bytes, size_bytes = numbers[1], numbers[2], numbers[3]
        encoding = inner[4] if kind == DATA_PAGE_V2 else inner[2]
        values = inner[1]
        rows = inner[3] if kind == DATA_PAGE_V2 else None
    except KeyError as error:
        reason = (
            fault(data, PAGE_HEADER, owner="a page's header") or f"a page's header lacks what type {numbers[1]} has"
        )
        raise MalformedThrift(reason) from error
    if HEADERS.get(kind, held) != held:
        raise MalformedThrift(f"a page is of the type {kind}, and its header of another")
    names = ("uncompressed_page_size", "compressed_page_size", "num_values")
    for name, number in zip(names, (plain_bytes, size_bytes, values), strict=True):
        if number < 0:
            raise MalformedThrift(f"{name} of a page's header is {number}")
    crc = numbers[4] & 0xFFFFFFFF if 4 in numbers else None  # noqa: PLR2004  crc
    return Page(kind, position, plain_bytes, size_bytes, crc, values, rows, encoding)


def _encoding_name(number: int) -> str:
    return ENCODINGS[number] if number in range(len(ENCODINGS)) else str(number)


def _numbers(data: bytes, position: int, *, of_v2: bool) -> tuple[dict[int, int], int]:
    """The numbers that a header of one kind begins with, and its end: values, encoding; of version 2 also rows."""
    found, field, kind, position = leading_numbers(data, position, 4 if of_v2 else 2)
    while field:
        position = skipped(data, position, kind)
        field, kind, position = next_field(data, position, field)
    return found, position


def walk_pages(footer: Footer, read_at: ReadAt, row_groups: Sequence[int] | None = None) -> None:
    """Walks over all pages of row groups; reads them all, where `PageWalk` is fed what is read anyway.

    Args:
        footer: Of the file.
        read_at: Reads it; what it raises is passed on.
        row_groups: Which; None: all, and the bounds that are stated of them.

    Raises:
        UnsoundPages: The pages are not what the metadata says, or a bound is no value of its column.
        UnreadableFile: A page's checksum is not that of its bytes, or the file is shorter than its footer says.
    """
    chosen = [number for number in _all(footer, row_groups) if footer.row_groups[number].rows]
    if row_groups is None and (odd := next(odd_bounds(footer.data), None)):
        raise UnsoundPages(footer.where, odd.reason)
    walk = PageWalk(footer, chosen)
    for start, end in sorted((footer.row_groups[number].start, footer.row_groups[number].end) for number in chosen):
        for offset in range(start, end, BLOCK_BYTES):
            walk.feed(offset, read_exactly(read_at, offset, min(BLOCK_BYTES, end - offset), where=footer.where))
    walk.finish()


def has_checksums(footer: Footer, read_at: ReadAt) -> bool:
    """Whether pages of a file have checksums: writers give them to all or to none, and files are merged from several.

    The first pages of three row groups are looked at, so that a file of a thousand does not take a thousand reads.
    """
    groups = enumerate(zip(footer.row_groups, footer.layouts, strict=True))
    chosen = [number for number, (group, layout) in groups if group.rows and layout.chunks]
    for number in dict.fromkeys([*chosen[:1], *chosen[len(chosen) // 2 :][:1], *chosen[-1:]]):
        chunk = footer.layouts[number].chunks[0]
        length = min(HEADER_BYTES, chunk.end - chunk.start)
        try:
            if page_of(bytes(read_at(chunk.start, length))).crc is not None:
                return True
        except MalformedThrift:  # longer than that: the walk reads on
            return True
    return False


def _all(footer: Footer, row_groups: Sequence[int] | None) -> Iterable[int]:
    return range(len(footer.row_groups)) if row_groups is None else row_groups
