"""The files that a rewrite makes: one after another, rolled at the target size, read back before they count.

Whatever puts a footer together may get it wrong, and would read its own mistake as it meant it. So it is Arrow that
tells where the column chunks of both files lie, and what they are (`Evidence`); their bytes are compared by digest, as
they pass by. If both agree, a chunk decodes as it did before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from datalake_assets.core.files import DataFile
from datalake_assets.core.values import Value
from datalake_assets.errors import CorruptLake
from datalake_assets.parquet.concat import MAX_ROW_GROUPS, Concatenated, ConcatWriter, ServerSide
from datalake_assets.parquet.footer import Footer, ReadAt
from datalake_assets.parquet.sinks import FinishedSink, checksum_like

__all__ = ["Evidence", "Opener", "Outputs", "same_columns"]

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
                for chunk in map(group.column, range(group.num_columns)):
                    ranges.append(_range(chunk, len(self._facts)))
                    self._facts.append(_facts(chunk, ranges[-1].start))
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


FinishedT = TypeVar("FinishedT")

#: An output may be this much larger than the target, rather than leave a small file behind.
SLACK = 1.1


class Opener(Value, Generic[FinishedT], frozen=True):
    """Where outputs go.

    Attributes:
        open: Begins one.
        discard: Drops a finished one.
        read_back: Gives the bytes of a finished one as they are stored; None where the store has verified them all.
        where: What is rewritten, for messages.
        block_bytes: Copied at a time; larger where each read is a request.
    """

    open: Callable[[], FinishedSink[FinishedT]]
    discard: Callable[[FinishedT], None]
    read_back: Callable[[FinishedT], Iterator[bytes] | None]
    where: str = "compaction"
    block_bytes: int = 1 << 20


@dataclass(slots=True)
class _Open(Generic[FinishedT]):
    sink: FinishedSink[FinishedT]
    writer: ConcatWriter
    bounds: list[datetime] = field(default_factory=list)
    are_bounds_known: bool = True
    first: pq.FileMetaData | None = None
    copied: list[bytes] = field(default_factory=list)  # digests of what was copied, by row group, for `Evidence`


class Outputs(Generic[FinishedT]):
    """Outputs of one rewrite.

    Args:
        opener: Where they go.
        target_bytes: Size at which one is finished and the next begun.
        metadata: Gives all key-values of a footer when it is written.
        verify: Read each back and compare its bytes with those written.
    """

    def __init__(
        self,
        opener: Opener[FinishedT],
        *,
        target_bytes: int,
        metadata: Callable[[], Mapping[bytes, bytes]],
        verify: bool,
    ) -> None:
        self._opener, self._target_bytes, self._metadata, self._verify = opener, target_bytes, metadata, verify
        self._open: _Open[FinishedT] | None = None
        self.finished: list[tuple[FinishedT, DataFile]] = []

    @property
    def rows(self) -> int:
        """Rows of the finished ones."""
        return sum(file.rows for _, file in self.finished)

    def append(
        self,
        footer: Footer,
        read_at: ReadAt,
        row_groups: Sequence[int],
        *,
        metadata: pq.FileMetaData,
        bounds: Sequence[datetime] | None,
        like: Footer,
        server_side: ServerSide | None = None,
        is_sound: bool = False,
    ) -> None:
        """Copies row groups into the present output, or into the next if they would make it too large.

        Args:
            footer: Of the file that they are in.
            read_at: Reads it.
            row_groups: Which; no more than one file holds.
            metadata: Of the same file, as Arrow reads it.
            bounds: Times that enclose theirs; empty if they have none, None if nobody knows.
            like: Gives an output that is begun now its schema.
            server_side: Where the store finds the file, to copy from it without us.
            is_sound: Its pages need no walk.
        """
        size_bytes = sum(footer.row_groups[index].size_bytes for index in row_groups)
        if self._open is not None and self._is_full(self._open.writer, size_bytes, len(row_groups)):
            self.roll()
        if self._open is None:
            self._open = self._begun(like)
        evidence = Evidence(metadata, row_groups) if self._verify else None
        self._open.writer.append(
            footer,
            read_at,
            row_groups,
            server_side=server_side,
            is_sound=is_sound,
            seen=evidence.feed if evidence is not None else None,
        )
        self._open.first = self._open.first or metadata
        self._open.copied += evidence.digests() if evidence is not None else []
        if bounds is None:
            self._open.are_bounds_known = False
        else:
            self._open.bounds.extend(bounds)

    def _is_full(self, writer: ConcatWriter, more_bytes: int, more_row_groups: int) -> bool:
        return (
            writer.size_bytes + more_bytes > self._target_bytes * SLACK
            or writer.row_groups + more_row_groups > MAX_ROW_GROUPS
        )

    def begin(self, like: Footer) -> None:
        """Sees to it that there is one, if only to hold no rows."""
        if self._open is None and not self.finished:
            self._open = self._begun(like)

    def _begun(self, like: Footer) -> _Open[FinishedT]:
        sink = self._opener.open()
        bare = replace(like, key_value_metadata={})
        return _Open(sink, ConcatWriter(sink, bare, block_bytes=self._opener.block_bytes))

    def roll(self) -> None:
        """Finishes the present output.

        Raises:
            CorruptLake: What is stored is not what was written.
        """
        if self._open is None:
            return
        opened, done = self._open, self._open.writer.close(self._metadata(), name=self._open.sink.name)
        finished = opened.sink.finish()
        self._open = None
        bounds = opened.bounds if opened.are_bounds_known else []
        times = {"min_time": min(bounds, default=None), "max_time": max(bounds, default=None)}
        self.finished.append((finished, msgspec.structs.replace(done.file, **times)))
        if self._verify and done.file.checksum:
            self._compare(finished, done, opened)

    def discard(self) -> None:
        """Drops everything; idempotent."""
        if self._open is not None:
            self._open.writer.abandon()
            self._open.sink.discard()
            self._open = None
        for finished, _ in self.finished:
            self._opener.discard(finished)
        self.finished.clear()

    def _compare(self, finished: FinishedT, done: Concatenated, opened: _Open[FinishedT]) -> None:
        """Reads an output back: its bytes are those written, and Arrow finds in them what it found where they are from.

        A store that has verified all bytes need not give them back: then Arrow reads the footer that was sent.
        """
        metadata, evidence = self._evidence(done)
        if metadata.num_rows != done.file.rows or (opened.first and not same_columns(opened.first, metadata)):
            raise self._corrupt()
        chunks = self._opener.read_back(finished)
        if chunks is None:
            return
        digest, offset = checksum_like(done.file.checksum), 0
        for chunk in chunks:
            digest.update(chunk)
            evidence.feed(offset, chunk)
            offset += len(chunk)
        if str(digest) != done.file.checksum or evidence.digests() != opened.copied:
            raise self._corrupt()

    def _evidence(self, done: Concatenated) -> tuple[pq.FileMetaData, Evidence]:
        try:
            return Evidence.of_tail(done.tail)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._corrupt() from error

    def _corrupt(self) -> CorruptLake:
        return CorruptLake(self._opener.where, "what was written does not read back as it was; nothing was committed")
