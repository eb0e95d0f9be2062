"""What shows that an output holds what its inputs held, to a reader that put nothing together.

Whatever writes a footer may get it wrong, and would read its own mistake as it meant it. So it is Arrow that tells
where the column chunks of both files lie, and what they are (`Evidence`). Their bytes are compared in one of two ways:

- by digests of each chunk on both sides, as the bytes pass by;
- of a file that was copied whole by the checksum that it is known by: what is stored of it, and the few bytes that were
  left out, have to make that file again (`Origin`). Then no byte need be looked at before it is stored.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from datalake_assets.parquet.concat import Copied
from datalake_assets.parquet.footer import TAIL_BYTES, Footer, ReadAt, read_exactly
from datalake_assets.parquet.row_groups import MAGIC
from datalake_assets.parquet.sinks import Checksum, checksum_like, new_checksum

__all__ = ["Evidence", "FoundChunk", "Origin", "ReadBack", "is_copied_whole"]

#: Of a file that is copied whole, what is left out is held in memory, up to so much: magic, page indexes, footer.
LEFT_OUT_BYTES = 1 << 20


class FoundChunk(NamedTuple):
    """A column chunk as Arrow finds it: what readers go by, offsets counted from its start, and where it lies."""

    facts: tuple[object, ...]
    start: int
    end: int


class _Range(NamedTuple):
    start: int
    end: int
    place: int


class Evidence:
    """What row groups are, by the metadata that Arrow reads and by their bytes.

    Args:
        metadata: Of their file.
        row_groups: Which, in the order that counts; those without rows are nothing.
        undigested: Those whose bytes count for nothing here, by their number among those with rows.

    Attributes:
        groups: The chunks of each row group that has rows.
    """

    def __init__(
        self, metadata: pq.FileMetaData, row_groups: Sequence[int], *, undigested: Container[int] = ()
    ) -> None:
        self.groups: list[tuple[FoundChunk, ...]] = []
        ranges: list[_Range] = []
        for group in map(metadata.row_group, row_groups):
            if group.num_rows:
                chunks = tuple(_found(group.column(index)) for index in range(group.num_columns))
                if len(self.groups) not in undigested:
                    ranges += [_Range(each.start, each.end, at) for at, each in enumerate(chunks, len(ranges))]
                self.groups.append(chunks)
        self._undigested, self._ranges = undigested, sorted(ranges)
        self._digests = [xxhash.xxh3_64() for _ in ranges]
        self._next = 0
        self._position = 0

    @classmethod
    def of_tail(cls, tail: bytes, *, undigested: Container[int] = ()) -> tuple[pq.FileMetaData, Evidence]:
        """Reads the evidence of all row groups from a file's tail."""
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + tail))
        return metadata, cls(metadata, range(metadata.num_row_groups), undigested=undigested)

    def feed(self, offset: int, data: bytes | memoryview) -> None:
        """Takes the bytes from ``offset`` on, which lie behind all those before."""
        view, end = memoryview(data), offset + len(data)
        while self._next < len(self._ranges) and self._ranges[self._next].start < end:
            chunk = self._ranges[self._next]
            begin = max(chunk.start, self._position, offset)
            self._digests[chunk.place].update(view[begin - offset : min(chunk.end, end) - offset])
            self._position = min(chunk.end, end)
            if self._position < chunk.end:
                return
            self._next += 1

    def digests(self) -> list[bytes]:
        """One for each row group that has rows and whose bytes count, in their order."""
        found, place = [], 0
        for number, chunks in enumerate(self.groups):
            if number in self._undigested:
                continue
            whole = xxhash.xxh3_128()
            for chunk in chunks:
                whole.update(repr(chunk.facts).encode(errors="surrogateescape"))
                whole.update(self._digests[place].digest())
                place += 1
            found.append(whole.digest())
        return found


def _found(chunk: Any) -> FoundChunk:
    data_offset, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
    start, size_bytes = data_offset, chunk.total_compressed_size
    if dictionary is not None and 0 < dictionary < start:
        start = dictionary
    facts = (
        chunk.path_in_schema,
        chunk.physical_type,
        chunk.num_values,
        chunk.compression,
        chunk.encodings,
        size_bytes,
        chunk.total_uncompressed_size,
        data_offset - start,
        dictionary - start if dictionary else None,
    )
    return FoundChunk(facts, start, start + size_bytes)


def is_copied_whole(footer: Footer, row_groups: Sequence[int]) -> bool:
    """Whether these are all row groups of a file, in their order, which are nearly all of its bytes, and lie apart."""
    groups = [group for group in footer.row_groups if group.size_bytes]
    ends = [place for group in groups for place in (group.start, group.end)]
    copied_bytes = sum(group.size_bytes for group in groups)
    return (
        list(row_groups) == list(range(len(footer.row_groups)))
        and ends == sorted(ends)
        and footer.size_bytes - copied_bytes <= LEFT_OUT_BYTES
    )


class Origin:
    """A file that was copied whole, which what is stored of it and what was left out have to make again.

    Args:
        footer: The file's, as it was parsed.
        checksum: That the file is known by.
        read_at: Reads the file.
        ranges: What was copied, and where to.
        found: Its chunks, as Arrow finds them.

    Raises:
        UnreadableFile: The file has another footer by now than was parsed, or ends before it.
    """

    def __init__(
        self,
        footer: Footer,
        checksum: str,
        read_at: ReadAt,
        ranges: Sequence[Copied],
        found: Sequence[Sequence[FoundChunk]],
    ) -> None:
        self.where, self.ranges = footer.where, ranges
        self._found, self._checksum, self._digest = found, checksum, checksum_like(checksum)
        begins, ends = [0, *(each.end for each in ranges)], [*(each.start for each in ranges), footer.size_bytes]
        gaps = zip(begins, ends, strict=True)
        self._left_out = [
            bytes(read_exactly(read_at, begin, end - begin, where=footer.where)) if begin < end else b""
            for begin, end in gaps
        ]
        tail = footer.data + len(footer.data).to_bytes(TAIL_BYTES - len(MAGIC), "little") + MAGIC
        self._is_footer_same = self._left_out[-1].endswith(tail)

    @property
    def row_groups(self) -> int:
        """How many it has, with rows."""
        return len(self._found)

    @property
    def left_out_bytes(self) -> int:
        """Bytes that are held here."""
        return sum(map(len, self._left_out))

    def feed(self, number: int, data: memoryview, *, is_first: bool) -> None:
        """Takes the next stored bytes of the range of this number; ranges come in the order of the file."""
        if is_first:
            self._digest.update(self._left_out[number])
        self._digest.update(data)

    def is_there(self) -> bool:
        """Whether all ranges were what the file is known by, and the footer that was parsed is the one in it."""
        self._digest.update(self._left_out[-1])
        return self._is_footer_same and str(self._digest) == self._checksum

    def is_found(self, groups: Sequence[Sequence[FoundChunk]]) -> bool:
        """Whether Arrow finds the same chunks there, each where the range went that it is in."""
        starts = [each.start for each in self.ranges]
        if len(groups) != len(self._found):
            return False
        for group, chunks in zip(groups, self._found, strict=True):
            if [each.facts for each in group] != [each.facts for each in chunks]:
                return False
            for there, here in zip(group, chunks, strict=True):
                place = bisect_right(starts, here.start) - 1
                if place < 0 or here.end > self.ranges[place].end:
                    return False
                moved = self.ranges[place].to - self.ranges[place].start
                if (there.start, there.end) != (here.start + moved, here.end + moved):
                    return False
        return True


class _Span(NamedTuple):
    """Where bytes of an origin are stored."""

    start: int
    end: int
    origin: Origin
    number: int


@dataclass(slots=True)
class ReadBack:
    """The bytes of an output, in their order, as they are stored.

    Attributes:
        evidence: Of its footer.
        origins: The files that were copied into it whole.
        checksum: Of all bytes so far.
        rest: Of those that are no origin's.
    """

    evidence: Evidence
    origins: Sequence[Origin]
    checksum: Checksum = field(default_factory=new_checksum)
    rest: Checksum = field(default_factory=new_checksum)
    _spans: list[_Span] = field(init=False)
    _next: int = 0
    _position: int = 0

    def __post_init__(self) -> None:
        spans = (
            _Span(each.to, each.to + each.end - each.start, origin, number)
            for origin in self.origins
            for number, each in enumerate(origin.ranges)
        )
        self._spans = sorted(spans, key=lambda span: span.start)
        if not self._spans:
            self.rest = self.checksum

    def feed(self, data: bytes | memoryview) -> None:
        """Takes the next bytes."""
        view, begin, at = memoryview(data), self._position, self._position
        self._position = end = begin + len(view)
        self.checksum.update(view)
        self.evidence.feed(begin, view)
        while at < end and self._spans:
            span = self._spans[self._next] if self._next < len(self._spans) else None
            if span is None or at < span.start:
                stop = end if span is None else min(span.start, end)
                self.rest.update(view[at - begin : stop - begin])
            else:
                stop = min(span.end, end)
                span.origin.feed(span.number, view[at - begin : stop - begin], is_first=at == span.start)
                self._next += stop == span.end
            at = stop
