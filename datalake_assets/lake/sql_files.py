"""Files of a store for the process of a query, which has no credentials: it asks its parent, who has them.

The questions go over a socket: stretches of the files of one snapshot, by their numbers. Nothing else can be asked for,
and what the parent holds for it is bounded, whatever a query makes of its process.

The way to a store takes longer than what is read there. Arrow would read the row groups of a file at once, and can't of
a file that Python reads, which it locks meanwhile. So footers are fetched while the query is being prepared, unless it
names no column, and where a query reads the same columns of one row group after another, those of the following are
asked for before it comes to them: of two at first, then of twice as many each time, as files are read ahead everywhere.
Where it filters nothing, and there is little to read of each, those of a file are asked for at once. What is asked for
before Arrow reads at all is for `sql_scans` to say.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = [
    "ENDS",
    "IO_THREADS",
    "AskedFile",
    "AskedFiles",
    "ReadableFile",
    "end_bytes",
    "serving",
]

logger = logging.getLogger(__name__)

#: Threads that read for one query: what takes the time is the way to the store. Ends of files that are fetched before
#: anybody asks for them.
READERS, ENDS = 48, 16
#: Threads by which Arrow reads, which wait for answers.
IO_THREADS = 16
#: Bytes that are asked for at a time.
_PIECE = 4 << 20
#: Bytes that are read for one query at the same time, and are on their way to it.
_HELD_BYTES = 64 << 20
#: What Arrow reads of a file first (kDefaultFooterReadSize in its parquet/file_reader.cc). Large files have page
#: indexes there, of a thousandth of their bytes or so; the ends of those are fetched with them.
_FOOTER, _LONG_END, _SHARE_OF_END = 64 << 10, 256 << 10, 512
#: Bytes of the columns of a row group that is read ahead from the first on: a query may end early all the same.
_LITTLE = 1 << 20
#: Row groups that are read ahead of one file; and bytes of all files, those included that nobody came to read.
_AHEAD, _AHEAD_BYTES = 16, 64 << 20
#: A question: its number, that of the file, offset, length. An answer: the number, and how many bytes follow.
_QUESTION, _ANSWER = struct.Struct(">IIQI"), struct.Struct(">Iq")
#: In place of a file's number: the ends of the first files will be wanted. It has no answer.
_ENDS = (1 << 32) - 1
#: In place of how many: the file is gone; it cannot be read.
_GONE, _UNREADABLE = -1, -2


def end_bytes(size_bytes: int) -> int:
    """How much of the end of a file is fetched at first."""
    return min(size_bytes, max(_FOOTER, min(_LONG_END, size_bytes // _SHARE_OF_END)))


class ReadableFile(Protocol):
    """A file in a store, as whoever has access to it opens it; read by several threads at once."""

    def read_at(self, nbytes: int, offset: int) -> bytes:
        """Bytes from an offset on; fewer at the file's end."""


@contextmanager
def serving(
    files: Sequence[str], sizes: Sequence[int], open_file: Callable[[str], ReadableFile]
) -> Iterator[socket.socket]:
    """Reads files for a query as long as the context is open; gives the end of the socket that is to ask.

    Args:
        files: All that it may read.
        sizes: Bytes of each.
        open_file: Opens one; used by several threads.
    """
    ours, theirs = socket.socketpair()
    threading.Thread(target=_Serving(files, sizes, open_file, ours).run, name="query-files", daemon=True).start()
    try:
        yield theirs
    finally:
        theirs.close()
        with suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)  # what is being read for it is for nobody: a store may take its time


class _Serving:
    """Answers the questions of one query."""

    def __init__(
        self,
        files: Sequence[str],
        sizes: Sequence[int],
        open_file: Callable[[str], ReadableFile],
        ours: socket.socket,
    ) -> None:
        self._files, self._sizes, self._open_file, self._socket = files, sizes, open_file, ours
        self._footers: dict[tuple[int, int, int], Future[tuple[bytes, int]]] = {}
        self._opening = [threading.Lock() for _ in files]
        self._opened: dict[int, ReadableFile] = {}
        self._sending = threading.Lock()
        self._held = _Held()  # a question waits where it came from

    def run(self) -> None:
        """Answers until the other end is closed, or asks for what it may not."""
        pool, is_announced = ThreadPoolExecutor(READERS, thread_name_prefix="query-read"), False
        with self._socket:
            while question := _exactly(self._socket, _QUESTION.size):
                number, file, offset, length = _QUESTION.unpack(question)
                if file == _ENDS and not is_announced:
                    is_announced = True
                    self._fetch_ends(pool)
                    continue
                if file >= len(self._files) or length > _PIECE:
                    break
                self._held.take(length)
                pool.submit(self._answer, number, file, offset, length)
            pool.shutdown(wait=False, cancel_futures=True)

    def _fetch_ends(self, pool: ThreadPoolExecutor) -> None:
        """Those of the first files, before anybody asks."""
        for file, size in enumerate(self._sizes[:ENDS]):
            stretch = file, size - end_bytes(size), end_bytes(size)
            self._footers[stretch] = pool.submit(self._read, *stretch)

    def _answer(self, number: int, file: int, offset: int, length: int) -> None:
        try:
            fetched = self._footers.pop((file, offset, length), None)
            data, size = self._read(file, offset, length) if fetched is None else fetched.result()
            with self._sending, suppress(OSError):  # the query may have ended
                self._socket.sendall(_ANSWER.pack(number, size))
                self._socket.sendall(data)
        finally:
            self._held.give_back(length)

    def _read(self, file: int, offset: int, length: int) -> tuple[bytes, int]:
        """A stretch of a file and its length, or nothing and the reason."""
        try:
            with self._opening[file]:
                if file not in self._opened:
                    self._opened[file] = self._open_file(self._files[file])
            data = self._opened[file].read_at(length, offset)
        except FileNotFoundError:
            return b"", _GONE
        except Exception as error:  # noqa: BLE001  each store has errors of its own; the query is told that it failed
            logger.warning("%s could not be read for a query: %s", self._files[file], error)
            return b"", _GONE if self._is_gone(file) else _UNREADABLE
        return data, len(data)

    def _is_gone(self, file: int) -> bool:
        """Whether a file that was opened before was deleted since; not every store says so when it is read."""
        try:
            self._open_file(self._files[file])
        except FileNotFoundError:
            return True
        except Exception:  # noqa: BLE001  as above
            return False
        return False


class _Held:
    """How much is being read, in number and in bytes; one stretch may always be."""

    def __init__(self) -> None:
        self._changed, self._count, self._bytes = threading.Condition(), 0, 0

    def take(self, size_bytes: int) -> None:
        """Waits until so much more may be read."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._count or (self._count < READERS and self._bytes + size_bytes <= _HELD_BYTES)
            )
            self._count, self._bytes = self._count + 1, self._bytes + size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Says that it has been sent."""
        with self._changed:
            self._count, self._bytes = self._count - 1, self._bytes - size_bytes
            self._changed.notify()


def _exactly(sender: socket.socket, size: int) -> bytes | bytearray:
    """So many bytes; none if the other end is closed before."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        try:
            received = sender.recv_into(left)
        except OSError:
            return b""
        if not received:
            return b""
        left = left[received:]
    return data


class AskedFiles:
    """Asks the parent for stretches of files; used by several threads.

    Args:
        parent: The end of the socket that asks.

    Attributes:
        is_gone: Whether a file was not there any more.
        is_unreachable: Whether one could not be read.
        reads_all: Whether no row group is left out by what it states of its values.
    """

    def __init__(self, parent: socket.socket) -> None:
        self._socket, self._lock, self._asked = parent, threading.Lock(), 0
        self._sending = threading.Lock()  # whoever waits there must not keep answers from being taken
        self._answers: dict[int, Future[bytes | bytearray]] = {}
        self._left = _AHEAD_BYTES
        self.is_gone = self.is_unreachable = self.reads_all = False
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, file: int, offset: int, length: int) -> Future[bytes | bytearray]:
        """Asks for a stretch of a file, of a few MiB; the answer fails with OSError if it cannot be read."""
        answer: Future[bytes | bytearray] = Future()
        with self._lock:
            number = self._asked = (self._asked + 1) % (1 << 32)
            self._answers[number] = answer
        try:
            with self._sending:
                self._socket.sendall(_QUESTION.pack(number, file, offset, length))
        except OSError:  # the parent has gone; whoever listens saw so before this question was there, or after
            with self._lock:
                unanswered = self._answers.pop(number, None)
            if unanswered is not None:
                unanswered.set_exception(_nobody_reads())
        return answer

    def announce(self) -> None:
        """Says that files will be read, from their ends on."""
        with self._sending:
            self._socket.sendall(_QUESTION.pack(0, _ENDS, 0, 0))

    def take_ahead(self, size_bytes: int) -> bool:
        """Whether so much more may be read ahead; given back with a number below zero."""
        with self._lock:
            if size_bytes > self._left:
                return False
            self._left -= size_bytes
            return True

    def _listen(self) -> None:
        while head := _exactly(self._socket, _ANSWER.size):
            number, size = _ANSWER.unpack(head)
            data = _exactly(self._socket, size) if size > 0 else b""
            with self._lock:
                answer = self._answers.pop(number)
            if size >= 0:
                answer.set_result(data)
                continue
            self.is_gone, self.is_unreachable = self.is_gone or size == _GONE, self.is_unreachable or size != _GONE
            answer.set_exception(OSError("the file cannot be read"))
        with self._lock:
            while self._answers:
                self._answers.popitem()[1].set_exception(_nobody_reads())


def _nobody_reads() -> OSError:
    return OSError("nobody reads files any more")


class AskedFile(io.RawIOBase):
    """A Parquet file that the parent reads; read by one thread at a time, while others may ask for what they will read.

    Args:
        asked: Asks for it.
        number: Which.
        size_bytes: Its length.
    """

    def __init__(self, asked: AskedFiles, number: int, size_bytes: int) -> None:
        super().__init__()
        self._asked, self._number, self._size, self._place = asked, number, size_bytes, 0
        self._lock = threading.Lock()  # for what was asked for
        self._ahead: dict[tuple[int, int], list[Future[bytes | bytearray]]] = {}
        self._end_asked: list[Future[bytes | bytearray]] = []
        self._groups: _RowGroups | None = None
        self._reads = 0

    @property
    def again(self) -> AskedFile:
        """The same file, for another reader."""
        return AskedFile(self._asked, self._number, self._size)

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self._size

    def ask_end(self) -> int:
        """Asks for its end, once; where that begins."""
        with self._lock:
            self._end_asked = self._end_asked or self.ask(self._end_begin, self._size)
        return self._end_begin

    def end(self) -> bytes:
        """Its end, as much as `end_bytes` says."""
        self.ask_end()
        return b"".join(answer.result() for answer in self._end_asked)

    @property
    def _end_begin(self) -> int:
        """Where its end begins, which is kept once it was read."""
        return self._size - end_bytes(self._size)

    @property
    def has_end(self) -> bool:
        """Whether its end has been read."""
        return bool(self._end_asked) and all(each.done() and each.exception() is None for each in self._end_asked)

    def ask(self, start: int, end: int) -> list[Future[bytes | bytearray]]:
        """Asks for a stretch, in pieces of what may be asked for at a time."""
        pieces = range(start, end, _PIECE)
        return [self._asked.ask(self._number, piece, min(_PIECE, end - piece)) for piece in pieces]

    def ask_ahead(self, stretches: Iterable[tuple[int, int]]) -> None:
        """Asks for stretches that will be read as they are, as far as there is room for them."""
        with self._lock:
            self._ask_ahead(each for each in stretches if each[1] <= self._end_begin)

    def _ask_ahead(self, stretches: Iterable[tuple[int, int]], most: int | None = None) -> None:
        for stretch in stretches:
            if stretch in self._ahead or stretch[0] >= self._end_begin:  # the end has been asked for by itself
                continue
            is_enough = most is not None and len(self._ahead) >= most
            if is_enough or not self._asked.take_ahead(stretch[1] - stretch[0]):
                return
            self._ahead[stretch] = self.ask(*stretch)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Sets where it begins."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> Any:
        """So many bytes, or all up to the end."""
        start, end = self._place, self._size if size < 0 else min(self._size, self._place + size)
        if start >= end:
            return b""
        if start >= self._end_begin and (end == self._size or self._end_asked):
            data = self.end()
            self._groups = self._groups or _RowGroups.of(data)
            data = data[start - self._size : end - self._size or None]
        else:
            data = b"".join(answer.result() for answer in self._answers(start, end))
        self._place = end
        return data

    def _answers(self, start: int, end: int) -> list[Future[bytes | bytearray]]:
        """A stretch, which may have been asked for ahead; others are asked for after it."""
        with self._lock:
            answers = self._ahead.pop((start, end), None)
            if answers is not None:
                self._asked.take_ahead(start - end)
            answers = answers or self.ask(start, end)
            if self._groups is not None:
                self._read_ahead(start, end)
        return answers

    def _read_ahead(self, start: int, end: int) -> None:
        """Asks for the same columns of other row groups, once those of two were read, or where all will be."""
        assert self._groups is not None  # noqa: S101  for mypy: the caller has looked
        alike = self._groups.like(start, end)
        self._reads += bool(alike)
        if self._asked.reads_all and end - start <= _LITTLE:
            most = _AHEAD
        else:
            most = min(_AHEAD, 1 << (self._reads - 1)) if self._reads > 1 else 0
        self._ask_ahead(alike, most)


class _RowGroups:
    """Where the columns of a file's row groups lie."""

    def __init__(self, columns: list[list[tuple[int, int]]]) -> None:
        self._columns = columns
        self._left = set(range(len(columns)))

    @classmethod
    def of(cls, footer: bytes) -> _RowGroups | None:
        """As the end of a file says it; None if it is not all of its footer."""
        import pyarrow as pa  # noqa: PLC0415  loaded before, in the process of a query alone
        import pyarrow.parquet as pq  # noqa: PLC0415  likewise

        try:
            metadata = pq.read_metadata(pa.BufferReader(footer))
        except (pa.ArrowException, OSError):
            return None
        groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
        return cls([[_stretch(group.column(place)) for place in range(group.num_columns)] for group in groups])

    def like(self, start: int, end: int) -> list[tuple[int, int]]:
        """Of row groups that nobody has read, what this stretch is of its own; nothing if it is not some columns."""
        for group in self._left:
            first = next((place for place, each in enumerate(self._columns[group]) if each[0] == start), None)
            last = next((place for place, each in enumerate(self._columns[group]) if each[1] == end), None)
            if first is not None and last is not None:
                self._left.discard(group)
                return [(self._columns[each][first][0], self._columns[each][last][1]) for each in sorted(self._left)]
        return []


def _stretch(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    start = column.dictionary_page_offset or column.data_page_offset
    start = min(start, column.data_page_offset)
    return start, start + column.total_compressed_size
