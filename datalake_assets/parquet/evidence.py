"""Whether a file of copied row groups says of them, and holds of them, what the files did that they come from.

Whatever puts a footer together may get it wrong, and would read its own mistake as it meant it. So it is Arrow that
tells where the column chunks of both files lie, and what they are; their bytes are compared by digest, as they pass by.
If both agree, a chunk decodes as it did before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

__all__ = ["Evidence", "same_columns"]

MAGIC = b"PAR1"


class _Range(NamedTuple):
    start: int
    end: int
    place: int


class Evidence:
    """What row groups are, by the metadata that Arrow reads and by their bytes.

    Args:
        metadata: Of their file.
        row_groups: Which, in the order that counts; those without rows are nothing.
    """

    def __init__(self, metadata: pq.FileMetaData, row_groups: Sequence[int]) -> None:
        self._facts: list[str] = []
        self._groups: list[int] = []  # how many chunks each has
        ranges: list[_Range] = []
        for group in map(metadata.row_group, row_groups):
            if group.num_rows:
                for index in range(group.num_columns):
                    ranges.append(_range(group.column(index), len(self._facts)))
                    self._facts.append(_facts(group.column(index), ranges[-1].start))
                self._groups.append(group.num_columns)
        self._ranges = sorted(ranges)
        self._digests = [xxhash.xxh3_64() for _ in ranges]
        self._next = 0
        self._position = 0

    @classmethod
    def of_tail(cls, tail: bytes) -> tuple[pq.FileMetaData, Evidence]:
        """Reads the evidence of all row groups from a file's tail."""
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + tail))
        return metadata, cls(metadata, range(metadata.num_row_groups))

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
        """One for each row group that has rows."""
        found, place = [], 0
        for columns in self._groups:
            whole = xxhash.xxh3_128()
            for chunk in range(place, place + columns):
                whole.update(self._facts[chunk].encode(errors="surrogateescape"))
                whole.update(self._digests[chunk].digest())
            found.append(whole.digest())
            place += columns
        return found


def same_columns(one: pq.FileMetaData, other: pq.FileMetaData) -> bool:
    """Whether both have the same columns: paths, types, logical types, repetition."""
    count = one.num_columns
    return count == other.num_columns and all(
        one.schema.column(index).equals(other.schema.column(index)) for index in range(count)
    )


def _range(chunk: Any, place: int) -> _Range:
    start, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
    if dictionary is not None and 0 < dictionary < start:
        start = dictionary
    return _Range(start, start + chunk.total_compressed_size, place)


def _facts(chunk: Any, start: int) -> str:
    """What a reader goes by, offsets counted from the chunk's start."""
    dictionary = chunk.dictionary_page_offset
    return repr(
        (
            chunk.path_in_schema,
            chunk.physical_type,
            chunk.num_values,
            chunk.compression,
            chunk.encodings,
            chunk.total_compressed_size,
            chunk.total_uncompressed_size,
            chunk.data_page_offset - start,
            dictionary - start if dictionary else None,
        )
    )
