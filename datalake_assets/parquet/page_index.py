"""Page indexes and bloom filters: what a column chunk has outside its pages, for a reader to skip some of them.

Of these only the offset index holds offsets; a column index and a bloom filter mean the same wherever they lie.

Source: apache/parquet-format, src/main/thrift/parquet.thrift: OffsetIndex, PageLocation, BloomFilterHeader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from datalake_assets.parquet.footer import Footer, ReadAt, read_exactly
from datalake_assets.parquet.row_groups import Place
from datalake_assets.parquet.thrift import I32, I64, CompactReader, MalformedThrift, zigzag

__all__ = ["bloom_places", "moved_offset_index", "read_places"]

#: More than any bloom filter's header takes: a number, and three unions of empty structs.
BLOOM_HEADER_BYTES = 64
#: Page indexes are held in memory; those of a file of a gigabyte with small pages take a few MiB.
MAX_INDEX_BYTES = 64 << 20
#: Places closer than this are read at once, up to so many bytes.
GAP_BYTES, READ_BYTES = 64 << 10, 4 << 20


def bloom_places(footer: Footer, read_at: ReadAt, blooms: Iterable[Place]) -> list[Place]:
    """The bloom filters with their lengths, which files of before parquet-format 2.10 say only in their headers."""
    places = []
    for offset, length in blooms:
        limit = footer.end_of_data - offset
        header = b"" if length else bytes(_read(footer, read_at, offset, min(BLOOM_HEADER_BYTES, limit)))
        places.append(Place(offset, length or _bloom_size(header, limit)))
    return places


def _bloom_size(header: bytes, limit: int) -> int:
    reader, size = CompactReader(header), 0
    for field, kind in reader.fields():
        if field == 1:  # numBytes
            size = reader.integer(kind, I32)
    if size <= 0 or reader.position + size > limit:
        raise MalformedThrift("a bloom filter lies outside the file")
    return reader.position + size


def read_places(footer: Footer, read_at: ReadAt, places: Iterable[Place]) -> dict[Place, bytes]:
    """The bytes of these page indexes, in few reads: writers put them side by side."""
    ordered = sorted(places)
    if sum(length for _, length in ordered) > MAX_INDEX_BYTES:
        raise MalformedThrift("its page indexes are too large")
    found: dict[Place, bytes] = {}
    for together in _neighbours(ordered):
        start, end = together[0].offset, max(offset + length for offset, length in together)
        data = bytes(_read(footer, read_at, start, end - start))
        found |= {place: data[place.offset - start : place.offset - start + place.length] for place in together}
    return found


def _neighbours(ordered: Iterable[Place]) -> Iterator[list[Place]]:
    together: list[Place] = []
    for place in ordered:
        offset, length = place
        if together:
            before = together[-1].offset + together[-1].length
            if offset - before > GAP_BYTES or offset + length - together[0].offset > READ_BYTES:
                yield together
                together = []
        together.append(place)
    if together:
        yield together


def _read(footer: Footer, read_at: ReadAt, offset: int, length: int) -> bytes | memoryview:
    return read_exactly(read_at, offset, length, where=footer.where)


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
