"""A Parquet file that is about to be rewritten: opened once, understood, proven whole before its bytes are copied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import pyarrow as pa

from datalake_assets.core.files import DataFile
from datalake_assets.core.values import Value
from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.chunk_pages import decompresses
from datalake_assets.parquet.decodable import ROW_BYTES, undecodable
from datalake_assets.parquet.decoding import AT_HAND, failing_column, open_parquet, tables
from datalake_assets.parquet.failed_requests import failed_request
from datalake_assets.parquet.footer import TAIL_BYTES, Footer, footer_fault, parse_footer
from datalake_assets.parquet.native import Depth, Part, load_kernel
from datalake_assets.parquet.proof import Side, Verdict, load_comparer
from datalake_assets.parquet.sinks import ServerSide, checksum_like, new_checksum
from datalake_assets.parquet.stated import stated_of
from datalake_assets.parquet.writer import moment_of

__all__ = ["CHANGED", "Input", "OpenInput"]

#: Why an input is left out whose ETag is another than the manifest says.
CHANGED = "was changed by somebody else"
#: Bytes that are read at a time.
BLOCK_BYTES = 4 << 20
#: A file up to this size is read whole to be proven, and stays in memory until it was copied.
AT_HAND_BYTES = 64 << 20
#: Of a file here, so many bytes at the most are read into memory that is used again.
MAX_BLOCK_BYTES = 4 << 20
#: Between two reads in the file's order, what is skipped is read too, up to so much: magic, bloom filters.
GAP_BYTES = 1 << 16
#: Physical types of timestamps and of dates; 96-bit times have no statistics that count.
_TIMES = ("INT64", "INT32")
_READ_ERRORS = (pa.ArrowException, OSError, ValueError)


class Input(Value, frozen=True):
    """One file to read.

    Attributes:
        file: The file, as its manifest has it; its name is unique among the inputs of a rewrite.
        open: Opens it; small files come as a buffer that was fetched whole.
        copy_source: Key and ETag, where the store itself can copy ranges of it into an output.
        is_encoded: It was encoded as wanted a moment ago: large row groups need not be encoded again, whatever the
            kernel.
        on_checksum: Told the checksum of a file without one, once all of it was read.
        keep: Gives of each piece of its rows, in their order, those that are kept; None keeps all.
    """

    file: DataFile
    open: Callable[[], pa.NativeFile]
    copy_source: tuple[str, str] | None = None
    is_encoded: bool = False
    on_checksum: Callable[[str], None] | None = None
    keep: Callable[[pa.Table], pa.Table] | None = None

    def opened(self) -> pa.NativeFile:
        """The file, opened.

        Raises:
            UnreadableFile: It cannot be.
        """
        with _translating(self.file):
            return self.open()


class OpenInput:
    """An input while it is read; belongs to one thread.

    Args:
        given: Which.
        row_bytes: Decoded bytes of a row at the most.
        trusts_kernel: Of a file without lists, whose checksum nobody knows, it is enough that the native kernel
            decompresses all pages; else the comparer reads all values, or Arrow where it cannot.

    Raises:
        UnreadableFile: It is no Parquet file, or not all of it is there.
    """

    def __init__(self, given: Input, *, row_bytes: int = ROW_BYTES, trusts_kernel: bool = False) -> None:
        self.file = file = given.file
        self._row_bytes, self._trusts_kernel, self._is_decodable = row_bytes, trusts_kernel, False
        self.is_encoded, self._copy_source = given.is_encoded, given.copy_source
        self._keep, self.is_whole = given.keep, given.keep is None
        self._on_checksum = None if file.checksum else given.on_checksum
        self._digest = checksum_like(file.checksum) if file.checksum else self._on_checksum and new_checksum()
        self._digested_bytes = 0  # from the start on, once each
        self._is_decoded = False
        self._proven = False
        self._data: memoryview | None = None  # all of its bytes, once they are in memory
        self._descriptor: int | None = None  # where it is a file here
        self._block = memoryview(b"")  # what was read of it last
        #: Rows that were not kept, once all were read.
        self.dropped_rows = 0
        with _translating(file):
            self._native = given.opened()
            if self._native.size() != file.size_bytes:
                raise UnreadableFile(file.name, f"{self._native.size()} bytes, {file.size_bytes} were expected")
            in_memory = isinstance(self._native, pa.BufferReader)
            if in_memory:
                self._native.seek(0)
                self._data = memoryview(self._native.read_buffer())
            elif isinstance(self._native, pa.OSFile):
                self._descriptor = self._native.fileno()
            is_proven = in_memory and bool(file.checksum)
            if is_proven:
                self.prove()
        with _translating(file, self._with_fault):
            self.parquet = open_parquet(self._native, pre_buffer=not in_memory, is_proven=is_proven)
        with _translating(file):
            # a signature follows the footer of a file with encrypted columns; Arrow aborts when it looks at those
            length = self.parquet.metadata.serialized_size
            begin = max(0, file.size_bytes - TAIL_BYTES - length)
            tail = self._native.read_at(file.size_bytes - begin, begin)
            if int.from_bytes(tail[-TAIL_BYTES:-4], "little") != length:
                raise UnreadableFile(file.name, "it is encrypted")
            #: As it stands in the file.
            self.footer_bytes = tail[:-TAIL_BYTES]
            self.schema: pa.Schema = self.parquet.schema_arrow
            #: The key-value metadata of its footer.
            self.key_values: dict[bytes, bytes] = dict(self.parquet.metadata.metadata or {})
            self.stated = stated = stated_of(self.parquet.metadata)
        there = sum(group.rows for group in stated.groups)
        if there != stated.rows:
            raise UnreadableFile(file.name, f"its footer says {stated.rows} rows, and its row groups have {there}")
        if stated.rows != file.rows:
            raise UnreadableFile(file.name, f"{stated.rows} rows, {file.rows} were expected")

    def close(self) -> None:
        """Closes the file."""
        if self._on_checksum is not None and (self._is_decoded or self._digested_bytes):
            with suppress(*_READ_ERRORS):  # then nobody knows it, as before
                self._digest_rest()
                if self._digested_bytes == self.file.size_bytes:
                    self._on_checksum(str(self._digest))
        self.parquet.close()
        self._native.close()

    @property
    def row_groups(self) -> int:
        """How many."""
        return len(self.stated.groups)

    @property
    def has_lists(self) -> bool:
        """Whether a row may have several values of a column."""
        return any(column.is_repeated for column in self.stated.columns)

    @property
    def mean_row_group_bytes(self) -> float:
        """Bytes of a row group, on average."""
        return self.file.size_bytes / max(self.row_groups, 1)

    @property
    def mean_plain_row_group_bytes(self) -> float:
        """The same before compression."""
        return self.plain_bytes / max(self.row_groups, 1)

    @property
    def plain_bytes(self) -> int:
        """Bytes of its pages before compression, as the footer has them."""
        return sum(group.plain_bytes for group in self.stated.groups)

    @property
    def largest_row_group_bytes(self) -> int:
        """Encoded bytes of the largest row group."""
        groups = self.stated.groups
        return max((sum(chunk.size_bytes for chunk in group.chunks) for group in groups), default=0)

    def time_bounds(self, row_group: int, column: str | None) -> tuple[datetime, ...] | None:
        """Earliest and latest time of a row group, by its statistics; empty if it has none, None if nobody knows."""
        if column is None:
            return ()
        for index, stated in enumerate(self.stated.groups[row_group].chunks):
            if stated.path == column:
                chunk = self.parquet.metadata.row_group(row_group).column(index)
                statistics = chunk.statistics
                if statistics is not None and statistics.null_count == chunk.num_values:
                    return ()
                if statistics is None or not statistics.has_min_max or chunk.physical_type not in _TIMES:
                    return None
                kind = self.schema.field(column).type
                return moment_of(statistics.min_raw, kind), moment_of(statistics.max_raw, kind)
        return None

    @property
    def descriptor(self) -> int | None:
        """The file, open, where it lies here and its bytes are not in memory; who reads it so tells `saw`."""
        return self._descriptor if self._data is None else None

    def read_at(self, offset: int, length: int) -> memoryview:
        """So many bytes from there; what is read in the file's order need not be read again for `prove`."""
        self._fill_gap(offset)
        return self._read_at(offset, length)

    def saw(self, offset: int, data: bytes | memoryview) -> None:
        """Takes what somebody else read of the file, as if `read_at` had."""
        self._fill_gap(offset)
        self._digest_next(offset, data)

    def _fill_gap(self, offset: int) -> None:
        if self._digest is not None and 0 < offset - self._digested_bytes <= GAP_BYTES:
            self._read_at(self._digested_bytes, offset - self._digested_bytes)

    def _digest_next(self, offset: int, data: bytes | memoryview) -> None:
        if self._digest is not None and offset == self._digested_bytes:
            self._digest.update(data)
            self._digested_bytes += len(data)

    def whole(self) -> pa.Buffer:
        """All of its bytes."""
        return pa.py_buffer(self._whole())

    def _whole(self) -> memoryview:
        self._block = memoryview(b"")
        try:
            return self.read_at(0, self.file.size_bytes)
        finally:
            self._block = memoryview(b"")  # it is the caller's

    def _read_at(self, offset: int, length: int) -> memoryview:
        if self._data is not None:
            data = self._data[offset : offset + length]
        elif self._descriptor is not None and length <= MAX_BLOCK_BYTES:
            data = self._block_of(self._descriptor, offset, length)
        else:
            self._native.seek(offset)
            data = memoryview(self._native.read_buffer(length))
        self._digest_next(offset, data)
        return data

    def _block_of(self, descriptor: int, offset: int, length: int) -> memoryview:
        """So many bytes of a file here, in memory that is used again: fresh memory takes longer than the reading."""
        if len(self._block) < length:
            self._block = memoryview(bytearray(length))
        read = 0
        while read < length and (more := os.preadv(descriptor, [self._block[read:length]], offset + read)):
            read += more
        return self._block[:read]

    def server_side(self, *, verify: bool) -> ServerSide | None:
        """Where the store finds the file, to copy from it; None if its bytes are at hand and were to be read anyway."""
        if self._copy_source is None or (verify and isinstance(self._native, pa.BufferReader)):
            return None
        key, etag = self._copy_source
        return ServerSide(key, etag, verify)

    def vouched(self) -> str | None:
        """The checksum that its bytes are known by, where what is stored of them can be compared with it; else None.

        Without a checksum it is that of the bytes in memory, which were proven and are what is copied.
        """
        if self._copy_source is not None:
            return None
        if self._data is None:
            return (self.file.checksum or None) if self._descriptor is not None else None
        if self._digest is None:
            self._digest = new_checksum()
        self._digest_rest()
        return str(self._digest)

    def footer(self) -> Footer:
        """What its footer says, with the places of its row groups."""
        return parse_footer(self.read_at, self.file.size_bytes, where=self.file.name)

    def tables(self) -> Iterator[pa.Table]:
        """Decodes its rows, in order, in pieces of bounded size; gives those that are to be kept.

        Raises:
            UnreadableFile: They don't decode, or must not be decoded, or are not as many as the manifest states.
        """
        rows = kept_rows = 0
        at_hand = isinstance(self._native, AT_HAND)
        with _translating(self.file, self._with_column if at_hand else str):
            self.check_decodable()
            for table in tables(self.parquet, source=self._native, stated=self.stated, schema=self.schema):
                kept = table if self._keep is None else self._keep(table)
                rows, kept_rows = rows + table.num_rows, kept_rows + kept.num_rows
                yield kept
        if rows != self.file.rows:
            raise UnreadableFile(self.file.name, f"{self.file.rows} rows should be there, and {rows} are")
        self._is_decoded, self.dropped_rows = True, rows - kept_rows

    def _with_column(self, reason: str) -> str:
        column = failing_column(self.parquet)
        return f"its column {column!r} {reason}" if column else reason

    def _with_fault(self, reason: str) -> str:
        """Why a file cannot be opened, in the names of its footer's fields if it is the footer."""
        size_bytes = self._native.size()
        length = int.from_bytes(self._native.read_at(TAIL_BYTES, max(0, size_bytes - TAIL_BYTES))[:-4], "little")
        if TAIL_BYTES + length > size_bytes:
            return reason
        return footer_fault(self._native.read_at(length, size_bytes - TAIL_BYTES - length), size_bytes) or reason

    def check_decodable(self) -> None:
        """Sees to it that its rows can be held, and that something proves their values.

        Raises:
            UnreadableFile: They must not be decoded.
        """
        if self._is_decodable:
            return
        if reason := undecodable(self.parquet, self._native, row_bytes=self._row_bytes, stated=self.stated):
            raise UnreadableFile(self.file.name, reason)
        self._is_decodable = True

    def prove(self) -> None:
        """Sees to it that the bytes are those that were committed; where nobody knows them, that they decode.

        The native kernel finds that out where it may, otherwise the comparer, in much less time than Arrow takes, which
        decodes what they do not pass, and decompresses what is compressed by other codecs than Snappy.

        The sooner the better, but for a file whose checksum is known and which is read from its start to its end in any
        case: its last bytes complete the proof.

        Raises:
            UnreadableFile: They are not, or don't.
        """
        if self._proven:
            return
        if self.file.checksum:
            with _translating(self.file):
                self._digest_rest()
            if str(self._digest) != self.file.checksum:
                raise UnreadableFile(self.file.name, "its bytes are not those that were committed")
        elif not self._passes_natively():
            for _ in self.tables():
                pass
        self._proven = True

    def _passes_natively(self) -> bool:
        # whether levels of lists fit together, across columns too, the kernel does not look
        kernel = load_kernel() if self._trusts_kernel and not self.has_lists else None
        comparer = load_comparer() if kernel is None else None
        if kernel is None and comparer is None:
            return False
        if (data := self._at_hand()) is None:
            return False
        self.check_decodable()
        if kernel is not None:
            (found,) = kernel.check([Part(data, rows=self.file.rows)], Depth.DECOMPRESS, memory_bytes=self._row_bytes)
            is_passed = found.refused is None
        else:
            assert comparer is not None  # noqa: S101  for mypy
            told = comparer.read(Side(data, self.file.rows), memory_bytes=self._row_bytes)
            is_passed = told.verdict is Verdict.EQUAL
        return is_passed and decompresses(self.parquet.metadata, pa.BufferReader(data))

    def _at_hand(self) -> pa.Buffer | None:
        """All of its bytes, which are not read again from then on; None if they are too many."""
        if self._data is None and self.file.size_bytes <= min(AT_HAND_BYTES, self._row_bytes):
            with _translating(self.file):
                self._data = self._whole()
        return pa.py_buffer(self._data) if self._data is not None else None

    def is_walked(self) -> bool:
        """Whether the native kernel finds all pages to be what the metadata says: then nobody has to walk them again.

        What it does not pass may be in order all the same.
        """
        data = pa.py_buffer(self._data) if self._data is not None else self._descriptor
        if data is None or (kernel := load_kernel()) is None:
            return False
        part = Part(data, size_bytes=self.file.size_bytes, rows=self.file.rows)
        return kernel.walk([part], memory_bytes=self._row_bytes) == [None]

    def _digest_rest(self) -> None:
        for offset in range(self._digested_bytes, self.file.size_bytes, BLOCK_BYTES):
            self._read_at(offset, min(BLOCK_BYTES, self.file.size_bytes - offset))

    def bloom_columns(self) -> frozenset[str]:
        """Paths of the columns that have bloom filters."""
        return frozenset(chunk.path for group in self.stated.groups[:1] for chunk in group.chunks if chunk.has_bloom)


@contextmanager
def _translating(file: DataFile, explained: Callable[[str], str] = str) -> Iterator[None]:
    """Errors of reading become ours; ``explained`` may say more than Arrow does."""
    try:
        yield
    except FileNotFoundError:
        raise
    except _READ_ERRORS as error:
        if (failure := failed_request(error, file.name)) is not None:
            raise failure from error
        raise UnreadableFile(file.name, explained(f"cannot be read: {str(error).splitlines()[0]}")) from error
