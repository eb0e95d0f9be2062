"""The files that a rewrite makes: one after another, rolled at the target size, read back before they count.

What shows that a chunk decodes as it did before is in `evidence.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Generic, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.files import DataFile
from datalake_assets.core.values import Value
from datalake_assets.errors import CorruptLake
from datalake_assets.parquet.concat import MAX_ROW_GROUPS, Concatenated, ConcatWriter, Seen
from datalake_assets.parquet.evidence import Evidence, Origin, ReadBack, is_copied_whole
from datalake_assets.parquet.footer import Footer, ReadAt
from datalake_assets.parquet.sinks import FileCopier, FinishedSink, ServerSide
from datalake_assets.parquet.stated import schema_of

__all__ = ["Opener", "Outputs", "WrongOrigin", "same_columns"]


def same_columns(one: pq.FileMetaData, other: pq.FileMetaData) -> bool:
    """Whether both have the same columns: paths, types, logical types, repetition."""
    if one.num_columns != other.num_columns:
        return False
    ones, others = schema_of(one), schema_of(other)
    return all(ones.column(index).equals(others.column(index)) for index in range(one.num_columns))


FinishedT = TypeVar("FinishedT")

#: An output may be this much larger than the target, rather than leave a small file behind.
SLACK = 1.1
#: What is held of files that are copied whole into one output, at the most.
LEFT_OUT_BYTES = 16 << 20


class WrongOrigin(Exception):
    """What is stored of a file that was copied whole is not what the file is known by; either may be wrong."""


class Opener(Value, Generic[FinishedT], frozen=True):
    """Where outputs go.

    Attributes:
        open: Begins one.
        discard: Drops a finished one.
        read_back: Gives the bytes of a finished one as they are stored, each block maybe where the one before lay; None
            where the store has verified them all.
        where: What is rewritten, for messages.
        block_bytes: Copied at a time; larger where each read is a request.
        is_read_back: ``read_back`` always gives the bytes.
    """

    open: Callable[[], FinishedSink[FinishedT]]
    discard: Callable[[FinishedT], None]
    read_back: Callable[[FinishedT], Iterator[bytes | memoryview] | None]
    where: str = "compaction"
    block_bytes: int = 1 << 20
    is_read_back: bool = False


@dataclass(slots=True)
class _Open(Generic[FinishedT]):
    sink: FinishedSink[FinishedT]
    writer: ConcatWriter
    bounds: list[datetime] = field(default_factory=list)
    are_bounds_known: bool = True
    first: pq.FileMetaData | None = None
    copied: list[bytes] = field(default_factory=list)  # digests of what was copied, by row group, for `Evidence`
    groups: int = 0  # row groups with rows
    origins: list[tuple[int, Origin]] = field(default_factory=list)  # with the number of its first row group
    undigested: set[int] = field(default_factory=set)  # their row groups
    left_out_bytes: int = 0
    takes_files: bool = False  # its sink takes bytes of an open file by itself; to find that out takes a while

    def add_origin(self, origin: Origin, *, groups: int) -> None:
        """Notes a file that was copied whole, with so many row groups that have rows."""
        self.origins.append((self.groups, origin))
        self.undigested.update(range(self.groups, self.groups + groups))
        self.groups += groups
        self.left_out_bytes += origin.left_out_bytes


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
        vouched: str | None = None,
        descriptor: int | None = None,
        seen: Sequence[Seen] = (),
    ) -> bool:
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
            vouched: The checksum that the file is known by, with which what is stored of it may be compared.
            descriptor: The file, open, where nobody has its bytes in memory.
            seen: Are given its bytes where these are not read by ``read_at``, unless ``vouched`` says what they are.

        Returns:
            Whether the file will be compared with what it is known by: before the output is finished, which may raise
            `WrongOrigin`.
        """
        size_bytes = sum(footer.row_groups[index].size_bytes for index in row_groups)
        if self._open is not None and self._is_full(self._open.writer, size_bytes, len(row_groups)):
            self.roll()
        if self._open is None:
            self._open = self._begun(like)
        is_seen = descriptor is None or (is_sound and self._open.takes_files)
        if vouched is not None and is_seen and self._may_wait(self._open, footer, row_groups):
            ranges = self._open.writer.append(footer, read_at, is_sound=is_sound, unseen=True, descriptor=descriptor)
            found = Evidence(metadata, row_groups).groups
            self._open.add_origin(Origin(footer, vouched, read_at, ranges, found), groups=len(found))
        else:
            vouched, evidence = None, Evidence(metadata, row_groups) if self._verify else None
            self._open.writer.append(
                footer,
                read_at,
                row_groups,
                server_side=server_side,
                is_sound=is_sound,
                seen=[*([evidence.feed] if evidence is not None else []), *seen],
                descriptor=descriptor,
            )
            self._open.copied += evidence.digests() if evidence is not None else []
            self._open.groups += len(evidence.groups) if evidence is not None else 0
        self._open.first = self._open.first or metadata
        if bounds is None:
            self._open.are_bounds_known = False
        else:
            self._open.bounds.extend(bounds)
        return vouched is not None

    def _may_wait(self, opened: _Open[FinishedT], footer: Footer, row_groups: Sequence[int]) -> bool:
        """Whether a file may be proven by what is stored of it."""
        can_be_compared = self._verify and self._opener.is_read_back and opened.left_out_bytes < LEFT_OUT_BYTES
        return can_be_compared and is_copied_whole(footer, row_groups)

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
        writer = ConcatWriter(sink, bare, block_bytes=self._opener.block_bytes)
        return _Open(sink, writer, takes_files=isinstance(sink, FileCopier))

    def roll(self) -> None:
        """Finishes the present output.

        Raises:
            CorruptLake: What is stored is not what was written.
            WrongOrigin: A file that was copied whole is not what it is known by, or not stored so.
        """
        if self._open is None:
            return
        opened, done = self._open, self._open.writer.close(self._metadata(), name=self._open.sink.name)
        finished = opened.sink.finish()
        self._open = None
        bounds = opened.bounds if opened.are_bounds_known else []
        times = {"min_time": min(bounds, default=None), "max_time": max(bounds, default=None)}
        self.finished.append((finished, msgspec.structs.replace(done.file, **times)))
        if self._verify and (done.file.checksum or opened.origins):
            checksum = self._compare(finished, done, opened)
            self.finished[-1] = finished, msgspec.structs.replace(self.finished[-1][1], checksum=checksum)

    def discard(self) -> None:
        """Drops everything; idempotent."""
        if self._open is not None:
            self._open.writer.abandon()
            self._open.sink.discard()
            self._open = None
        for finished, _ in self.finished:
            self._opener.discard(finished)
        self.finished.clear()

    def _compare(self, finished: FinishedT, done: Concatenated, opened: _Open[FinishedT]) -> str:
        """Reads an output back: its bytes are those written, and Arrow finds in them what it found where they are from.

        A store that has verified all bytes need not give them back: then Arrow reads the footer that was sent.

        Returns:
            The checksum of what is stored.
        """
        metadata, evidence = self._evidence(done, opened)
        if metadata.num_rows != done.file.rows or (opened.first and not same_columns(opened.first, metadata)):
            raise self._corrupt()
        chunks = self._opener.read_back(finished)
        if chunks is None and not opened.origins:
            return done.file.checksum
        read = ReadBack(evidence, [origin for _, origin in opened.origins])
        for chunk in chunks or ():
            read.feed(chunk)
        if str(read.rest) != done.seen or evidence.digests() != opened.copied:
            raise self._corrupt()
        for first, origin in opened.origins:
            if not origin.is_found(evidence.groups[first : first + origin.row_groups]):
                raise self._corrupt()
            if not origin.is_there():
                raise WrongOrigin(origin.where)
        return str(read.checksum)

    def _evidence(self, done: Concatenated, opened: _Open[FinishedT]) -> tuple[pq.FileMetaData, Evidence]:
        try:
            return Evidence.of_tail(done.tail, undigested=opened.undigested)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._corrupt() from error

    def _corrupt(self) -> CorruptLake:
        return CorruptLake(self._opener.where, "what was written does not read back as it was; nothing was committed")
