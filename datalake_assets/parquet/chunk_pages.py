"""The pages of column chunks as far as sizes of rows need them: headers, levels, lengths of texts, dictionary indices.

How many bytes rows take decoded is not in the footer, and Arrow tells it once they are decoded. Here pages are unpacked
one by one, and of their values nothing but the lengths is looked at.

Source: apache/parquet-format: README.md (Nested Encoding, Data Pages), Encodings.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.parquet.bit_streams import (
    LENGTH_BYTES,
    MAX_VALUES,
    Numbers,
    delta_numbers,
    hybrid_numbers,
    text_lengths,
)
from datalake_assets.parquet.footer import TAIL_BYTES
from datalake_assets.parquet.pages import (
    DATA_PAGE,
    DATA_PAGE_V2,
    DICTIONARY_PAGE,
    HEADER_BYTES,
    HEADERS,
    MAX_HEADER_BYTES,
    PLAIN,
    PLAIN_DICTIONARY,
    RLE_DICTIONARY,
    Page,
    page_of,
)
from datalake_assets.parquet.row_groups import MAGIC
from datalake_assets.parquet.stated import schema_of, value_width
from datalake_assets.parquet.thrift import I32, STRUCT, TRUE, CompactReader, MalformedThrift

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "BY_DICTIONARY",
    "DICTIONARY_ENCODINGS",
    "FIXED_OVERHEAD_BYTES",
    "HIDING",
    "OVERHEAD_BYTES",
    "UNREADABLE",
    "Chunk",
    "Chunks",
    "decompresses",
]

#: Read at a time on the way from one page's header to the next.
BLOCK_BYTES = 4 << 20
# Fields on the way to a codec: of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData
ROW_GROUPS, COLUMNS, META_DATA, CODEC = 4, 1, 3, 4
#: CompressionCodec, in Arrow's names; "lz4" is Hadoop's.
CODECS = ("uncompressed", "snappy", "gzip", "lzo", "brotli", "lz4", "zstd", "lz4_raw")
#: Codecs of which all libraries take the same bytes. Newer releases of zstd's refuse frames that older ones decode to
#: something: Arrow brings one, and the native code another.
SETTLED = frozenset({"uncompressed", "snappy"})
SETTLED_NUMBERS = frozenset(map(CODECS.index, SETTLED))
# Encoding
BIT_PACKED, DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY = 4, 6, 7
DICTIONARY_ENCODINGS = (PLAIN_DICTIONARY, RLE_DICTIONARY)
#: The same in Arrow's names.
BY_DICTIONARY = frozenset({"PLAIN_DICTIONARY", "RLE_DICTIONARY"})
#: Encodings in which a text may take fewer bytes than it has.
HIDING = BY_DICTIONARY | {"DELTA_BYTE_ARRAY"}
#: What each text takes besides, an offset and validity; and each value of a fixed width.
OVERHEAD_BYTES, FIXED_OVERHEAD_BYTES = 5, 1
# Fields of a header that say how its page begins: encodings of the levels (version 1); their lengths, and whether what
# follows is compressed (version 2)
DEFINITION_ENCODING, REPETITION_ENCODING = 3, 4
DEFINITION_BYTES, REPETITION_BYTES, IS_COMPRESSED = 5, 6, 7
#: What reading raises: what cannot be made out here is left to Arrow.
UNREADABLE = (MalformedThrift, pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError, MemoryError)


def decompresses(metadata: pq.FileMetaData, source: pa.NativeFile) -> bool:
    """Whether Arrow takes all compressed pages of a file, which another library took, too.

    Args:
        metadata: Of the file, after it was found that Arrow survives it (`open_parquet`).
        source: Its bytes.
    """
    try:
        if _Codecs(source).are_settled(metadata.num_row_groups * metadata.num_columns):
            return True
        for chunks in Chunks(metadata, source):
            for chunk in chunks:
                chunk.decompress()
    except UNREADABLE:
        return False
    return True


class Chunks:
    """The column chunks of an open file.

    Args:
        metadata: Of the file.
        source: Its bytes; only what is asked for is read.
    """

    def __init__(self, metadata: pq.FileMetaData, source: pa.NativeFile) -> None:
        self._metadata, self._blocks, self._codecs = metadata, _Blocks(source), _Codecs(source)

    def __iter__(self) -> Iterator[list[Chunk]]:
        return (self.of(number) for number in range(self._metadata.num_row_groups))

    def of(self, number: int) -> list[Chunk]:
        """Those of a row group."""
        group, schema = self._metadata.row_group(number), schema_of(self._metadata)
        return [
            Chunk.of(group.column(index), schema.column(index), self._blocks, partial(self._codecs.of, number, index))
            for index in range(group.num_columns)
        ]


class _Codecs:
    """The codecs of a file's column chunks as its footer has them: asked for an unknown one, Arrow ends the process."""

    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source
        self._numbers: list[list[int]] | None = None

    def of(self, group: int, column: int) -> str:
        """The name of a codec as Arrow knows it.

        Raises:
            MalformedThrift: There is none.
        """
        number = self._known()[group][column]
        if number not in range(len(CODECS)):
            raise MalformedThrift(f"codec {number} is not known")
        return CODECS[number]

    def are_settled(self, chunks: int) -> bool:
        """Whether all chunks, so many, have a codec of which all libraries take the same bytes."""
        numbers = [number for group in self._known() for number in group]
        return len(numbers) == chunks and SETTLED_NUMBERS.issuperset(numbers)

    def _known(self) -> list[list[int]]:
        if self._numbers is None:
            size_bytes = self._source.size()
            end = self._source.read_at(TAIL_BYTES, size_bytes - TAIL_BYTES)
            length = int.from_bytes(end[: -len(MAGIC)], "little")
            self._numbers = list(_codec_numbers(self._source.read_at(length, size_bytes - TAIL_BYTES - length)))
        return self._numbers


def _codec_numbers(footer: bytes) -> Iterator[list[int]]:
    reader = CompactReader(footer)
    for field, kind in reader.fields():
        if field == ROW_GROUPS:
            for _ in range(reader.structs(kind)):
                yield [
                    number
                    for columns, of_columns in reader.fields()
                    if columns == COLUMNS
                    for _ in range(reader.structs(of_columns))
                    for metadata, _ in reader.fields()
                    if metadata == META_DATA
                    for codec, of_codec in reader.fields()
                    if codec == CODEC
                    for number in [reader.integer(of_codec, I32)]
                ]


class _Blocks:
    """A file's bytes on the way from header to header: far apart they are fetched alone, close together at once."""

    def __init__(self, source: pa.NativeFile) -> None:
        self._source, self._size_bytes = source, source.size()
        self._begin, self._block = 0, memoryview(b"")

    def read(self, offset: int, length: int, *, until: int) -> memoryview:
        """So many bytes from there, or as many as there are; fetches more, but nothing after ``until``."""
        if not 0 <= offset <= self._size_bytes:
            raise MalformedThrift("a page lies outside the file")
        if not self._begin <= offset <= offset + length <= self._begin + len(self._block):
            wanted = min(max(length, min(BLOCK_BYTES, until - offset)), self._size_bytes - offset)
            self._begin, self._block = offset, memoryview(self._source.read_at(wanted, offset))
        return self._block[offset - self._begin : offset - self._begin + length]


class Found(NamedTuple):
    """A page, its header, and where what follows the header begins."""

    page: Page
    header: bytes
    begin: int


class _Unpacked(NamedTuple):
    """A page's levels and what follows them: ``repetition`` is empty where values are not repeated."""

    repetition: Numbers
    is_value: npt.NDArray[np.bool_]
    values: memoryview


@dataclass(slots=True)
class Chunk:
    """A column chunk, and what was found out about it; for its sizes see `Chunks`."""

    path: str
    width: int | None
    codec: Callable[[], str]
    encodings: frozenset[str]
    values: int
    encoded_bytes: int
    start: int
    end: int
    names_dictionary: bool
    levels: tuple[int, int]  # the largest repetition and definition levels
    blocks: _Blocks
    _most: int | None = None
    _entries: Numbers | None = None  # lengths of the dictionary's entries
    _longest: int | None = None

    @classmethod
    def of(cls, chunk: Any, column: Any, blocks: _Blocks, codec: Callable[[], str]) -> Chunk:
        """The chunk by Arrow's metadata of it and of its column."""
        dictionary, data = chunk.dictionary_page_offset, int(chunk.data_page_offset)
        start = dictionary if dictionary and dictionary < data else data
        return cls(
            path=chunk.path_in_schema,
            width=value_width(column),
            codec=codec,
            encodings=frozenset(chunk.encodings),
            values=max(int(chunk.num_values), 0),
            encoded_bytes=max(int(chunk.total_uncompressed_size), int(chunk.total_compressed_size), 0),
            start=start,
            end=start + max(int(chunk.total_compressed_size), 0),
            names_dictionary=bool(dictionary),
            levels=(int(column.max_repetition_level), int(column.max_definition_level)),
            blocks=blocks,
        )

    @property
    def is_repeated(self) -> bool:
        """Whether a row may have several values."""
        return self.levels[0] > 0

    @property
    def may_use_dictionary(self) -> bool:
        """Whether values may be indices into a dictionary, by its encodings."""
        return not BY_DICTIONARY.isdisjoint(self.encodings)

    @property
    def hides_by_prefixes(self) -> bool:
        """Whether a text may be given as what it has more than the one before."""
        return "DELTA_BYTE_ARRAY" in self.encodings

    def most_by_footer(self) -> int:
        """Bytes of a row in this column at the most, as far as the footer tells."""
        times = self.values if self.is_repeated else 1
        if self.width is not None:
            return times * (self.width + FIXED_OVERHEAD_BYTES)
        hides = self.is_repeated and not HIDING.isdisjoint(self.encodings)
        return self.encoded_bytes * (times if hides else 1) + times * OVERHEAD_BYTES

    def most_by_headers(self) -> int:
        """The same by the headers of pages and by the dictionary."""
        if self._most is None:
            self._most = min(self.most_by_footer(), self._looked_for_most())
        return self._most

    def _looked_for_most(self) -> int:
        if self.width is not None:
            return self.most_by_footer()
        longest = most = 0
        for found in self.pages():
            page = found.page
            if page.kind == DICTIONARY_PAGE:
                self._enter(found)
                longest = self.longest_entry()
                continue
            times = page.values if self.is_repeated else 1
            of_page = longest if page.encoding in DICTIONARY_ENCODINGS else page.plain_bytes
            if self.is_repeated and page.encoding in (PLAIN, DELTA_LENGTH_BYTE_ARRAY):
                most += page.plain_bytes  # a row may go on in the next page
            elif self.is_repeated:
                most += times * of_page
            else:
                most = max(most, of_page)
        return most

    def pages(self) -> Iterator[Found]:
        """Its pages in their order; ends with the last value."""
        at, left = self.start, self.values
        while left > 0:
            length = HEADER_BYTES
            while True:
                header = bytes(self.blocks.read(at, length, until=self.end))
                try:
                    page = page_of(header)
                    break
                except MalformedThrift:
                    if len(header) < length or length > MAX_HEADER_BYTES:
                        raise
                    length *= 16
            yield Found(page, header[: page.header_bytes], at + page.header_bytes)
            at += page.header_bytes + page.size_bytes
            left -= page.values if page.kind in (DATA_PAGE, DATA_PAGE_V2) else 0

    def longest_entry(self) -> int:
        """Bytes of the longest text of its dictionary; 0 if it has none."""
        if self._longest is None:
            self._longest = 0
            if self.may_use_dictionary:
                found = next(self.pages(), None)
                if found is not None and found.page.kind == DICTIONARY_PAGE:
                    self._enter(found)
        return self._longest

    def _enter(self, dictionary: Found) -> None:
        if self._entries is None and self.width is None:
            page, _, begin = dictionary
            self._entries = text_lengths(self._unpacked_bytes(page, begin, {}), page.values)
            self._longest = int(self._entries.max(initial=0))

    def row_sizes(self, *, even_bytes: int = 0, short_bytes: int = 0) -> Numbers:
        """Decoded bytes of each row in this column.

        Args:
            even_bytes: Texts of a page of no more than so many bytes are taken to be of one length, if none is hidden.
            short_bytes: Texts of a dictionary are taken to be as long as its longest one, if that has no more.
        """
        sizes: list[Numbers] = []
        overhead = OVERHEAD_BYTES if self.width is None else FIXED_OVERHEAD_BYTES
        for found in self.pages():
            page = found.page
            if page.kind == DICTIONARY_PAGE:
                self._enter(found)
                continue
            length = self._length_of_all(page, even_bytes, short_bytes)
            if length is not None and not self.is_repeated:
                sizes.append(np.full(min(page.values, MAX_VALUES), length + overhead, np.int64))
                continue
            unpacked = self.unpacked(found)
            of_values = np.full(len(unpacked.is_value), overhead, np.int64)
            of_values[unpacked.is_value] += self._lengths(page, unpacked) if length is None else length
            if not self.is_repeated:
                sizes.append(of_values)
                continue
            begins = np.flatnonzero(unpacked.repetition == 0)
            if sizes and (not len(begins) or begins[0]):  # the row before goes on
                sizes[-1][-1] += of_values[: begins[0] if len(begins) else None].sum()
            if len(begins):
                sizes.append(np.add.reduceat(of_values, begins))
        return np.concatenate(sizes) if sizes else np.zeros(0, np.int64)

    def _length_of_all(self, page: Page, even_bytes: int, short_bytes: int) -> int | None:
        """What all values of a page may be taken to have; None if that would be too far off."""
        if self.width is not None:
            return self.width
        if page.encoding in DICTIONARY_ENCODINGS:
            return self._longest if self._longest is not None and self._longest <= short_bytes else None
        is_even = page.encoding in (PLAIN, DELTA_LENGTH_BYTE_ARRAY) and page.plain_bytes <= even_bytes
        return page.plain_bytes // max(page.values, 1) if is_even else None

    def _lengths(self, page: Page, unpacked: _Unpacked) -> Numbers | int:
        """Bytes of each value in Arrow."""
        count = int(unpacked.is_value.sum())
        if page.encoding in DICTIONARY_ENCODINGS and self._entries is not None:
            return self._entries[hybrid_numbers(unpacked.values[1:], unpacked.values[0], count)] if count else 0
        if page.encoding == PLAIN:
            return text_lengths(unpacked.values, count)
        if page.encoding == DELTA_LENGTH_BYTE_ARRAY:
            return delta_numbers(unpacked.values)[0]
        if page.encoding == DELTA_BYTE_ARRAY:
            prefixes, end = delta_numbers(unpacked.values)
            return prefixes + delta_numbers(unpacked.values[end:])[0]
        raise MalformedThrift(f"encoding {page.encoding} is not known")

    def unpacked(self, found: Found) -> _Unpacked:
        """A data page's levels, and the bytes of its values."""
        count = found.page.values
        if count > MAX_VALUES:
            raise MalformedThrift("a page has too many values to look at them")
        *encoded, values = self.parts(found)
        read = [
            hybrid_numbers(data, most.bit_length(), count) if most else np.zeros(count, np.int64)
            for most, data in zip(self.levels, encoded, strict=True)
        ]
        return _Unpacked(read[0], read[1] == self.levels[1], values)

    def parts(self, found: Found) -> tuple[memoryview, memoryview, memoryview]:
        """A data page's encoded repetition levels, definition levels and values."""
        page, header, begin = found
        numbers = _header_numbers(header, HEADERS[page.kind])
        body, at, ends = self._unpacked_bytes(page, begin, numbers), 0, []
        of_v1, of_v2 = (REPETITION_ENCODING, DEFINITION_ENCODING), (REPETITION_BYTES, DEFINITION_BYTES)
        for most, encoding, length in zip(self.levels, of_v1, of_v2, strict=True):
            if page.kind == DATA_PAGE_V2:
                size = numbers.get(length, 0)
            elif not most:
                size = 0
            elif numbers.get(encoding) == BIT_PACKED:
                raise MalformedThrift("levels in the encoding of old are not looked at")
            else:
                size, at = int.from_bytes(body[at : at + LENGTH_BYTES], "little"), at + LENGTH_BYTES
            ends.append((at, at + size))
            at += size
        (first, middle), (again, end) = ends
        return body[first:middle], body[again:end], body[at:]

    def decompress(self) -> None:
        """Has Arrow decompress all pages whose codec is not settled, and keeps nothing.

        Raises:
            MalformedThrift: A page is not what its header says.
            pa.ArrowException: Arrow refuses what is compressed. `UNREADABLE` has what else may be raised.
        """
        if (codec := self.codec()) in SETTLED:
            return
        if codec == "lzo":  # which Arrow refuses even where no page is compressed
            raise MalformedThrift("it is compressed with LZO")
        for page, header, begin in self.pages():
            numbers = _header_numbers(header, HEADERS[page.kind]) if page.kind == DATA_PAGE_V2 else {}
            plain, body, is_packed = self._parted(page, begin, numbers)
            if is_packed:
                _decompressed(body, page.plain_bytes - len(plain), codec)

    def _unpacked_bytes(self, page: Page, begin: int, numbers: Mapping[int, int]) -> memoryview:
        """What a page holds, no longer compressed; ``numbers`` are those of a data page's header."""
        plain, body, is_packed = self._parted(page, begin, numbers)
        codec = self.codec()
        if codec == "uncompressed" or not is_packed:
            return memoryview(b"".join((plain, body)))
        return memoryview(b"".join((plain, _decompressed(body, page.plain_bytes - len(plain), codec))))

    def _parted(self, page: Page, begin: int, numbers: Mapping[int, int]) -> tuple[memoryview, memoryview, bool]:
        """What of a page is never compressed, the rest, and whether that is, unless the codec is none."""
        body = self.blocks.read(begin, page.size_bytes, until=self.end)
        if len(body) < page.size_bytes or page.plain_bytes > self.encoded_bytes + MAX_HEADER_BYTES:
            raise MalformedThrift("a page is not as long as it says")
        if page.kind != DATA_PAGE_V2:
            return body[:0], body, bool(len(body))
        levels = numbers.get(REPETITION_BYTES, 0) + numbers.get(DEFINITION_BYTES, 0)
        return body[:levels], body[levels:], bool(numbers.get(IS_COMPRESSED, 1) and len(body) > levels)


def _header_numbers(header: bytes, field: int) -> dict[int, int]:
    """The numbers and flags of the header of a page's kind, by id."""
    numbers, reader = {}, CompactReader(header)
    for outer, outer_kind in reader.fields():
        if outer == field and outer_kind == STRUCT:
            for inner, kind in reader.fields():
                if kind == I32:
                    numbers[inner] = reader.integer(kind, I32)
                elif inner == IS_COMPRESSED:
                    numbers[inner] = int(kind == TRUE)
    return numbers


def _decompressed(data: memoryview, size_bytes: int, codec: str) -> memoryview:
    if codec != "lz4":
        return memoryview(pa.decompress(pa.py_buffer(data), size_bytes, codec=codec))
    # Hadoop's frames: the sizes of a block, plain and compressed, most significant byte first, before it; or none
    out, at = b"", 0
    while at + 8 <= len(data):
        plain, packed = (int.from_bytes(data[at + place : at + place + 4], "big") for place in (0, 4))
        if at + 8 + packed > len(data) or len(out) + plain > size_bytes:
            return memoryview(pa.decompress(pa.py_buffer(data), size_bytes, codec="lz4_raw"))
        out += bytes(pa.decompress(pa.py_buffer(data[at + 8 : at + 8 + packed]), plain, codec="lz4_raw"))
        at += 8 + packed
    return memoryview(out)
