"""Whether Arrow survives being asked for what a footer states of column chunks: over some damage it ends the process.

Whoever reads gets an error instead. So Arrow is had to read all of them where there is nothing to be read.
"""

from __future__ import annotations

import functools
import io
import mmap
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.parquet.row_groups import MAGIC

__all__ = ["Tail", "check_chunks"]

#: A page's header that states -1 bytes after compression; behind the magic most files have their first page. Arrow
#: gives it up at once, where it would look for a longer header a dozen times.
_BAD_PAGE: Final = bytes.fromhex("15001502150100")  # parquet.thrift, PageHeader: type, and both sizes
#: What Arrow says of that one, and of zeros (arrow-cpp, SerializedPageReader::NextPage).
_NO_PAGE: Final = ("Invalid page header", "Deserializing page header failed")
#: What Arrow says of a file that has fewer bytes than its footer says (arrow-cpp, ReadAt).
_NO_BYTES: Final = "File too short"
_NOT_RESERVED: Final = getattr(mmap, "MAP_NORESERVE", 0)
#: Files up to this size share their zeros, which take addresses alone: a mapping for each would cost as much again as
#: what is asked, and more where several threads ask.
_SHARED_BYTES: Final = 64 << 20


def check_chunks(metadata: pq.FileMetaData, size_bytes: int) -> None:
    """Raises unless the metadata of all column chunks can be read.

    Arrow looks at every chunk, in order to fetch several at once, before it finds that there are no pages: in memory
    that nobody has touched, which takes neither a thread nor a read of the file. What it says otherwise, as of a codec
    that it does not know, does not count: then it is asked again, of a file that has no bytes.

    Raises:
        OSError: One is damaged.
    """
    if not metadata.num_row_groups or not metadata.num_columns:
        return
    try:
        _read_all(pa.BufferReader(_without_pages(size_bytes)), metadata)
    except (OSError, ValueError, OverflowError) as error:
        if any(reason in str(error) for reason in _NO_PAGE):
            return
    else:
        return
    try:
        _read_all(Tail(b"", size_bytes), metadata)
    except OSError as error:
        if _NO_BYTES not in str(error):
            raise


def _without_pages(size_bytes: int) -> pa.Buffer:
    """So many zeros, behind the first page: they take no memory, and are there only to be pointed at."""
    return _shared_zeros().slice(0, size_bytes) if size_bytes <= _SHARED_BYTES else _zeros(size_bytes)


@functools.cache
def _shared_zeros() -> pa.Buffer:
    return _zeros(_SHARED_BYTES)


def _zeros(size_bytes: int) -> pa.Buffer:
    empty = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NOT_RESERVED)
    empty[len(MAGIC) : len(MAGIC) + len(_BAD_PAGE)] = _BAD_PAGE
    return pa.py_buffer(empty)


def _read_all(source: pa.NativeFile | io.RawIOBase, metadata: pq.FileMetaData) -> None:
    reader = pq.ParquetFile(source, metadata=metadata, pre_buffer=True).reader
    groups, columns = range(metadata.num_row_groups), range(metadata.num_columns)
    reader.read_row_groups([*groups], column_indices=[*columns], use_threads=False)


class Tail(io.RawIOBase):
    """A file of which only the end is known; what lies before it reads as too short."""

    def __init__(self, tail: bytes, size_bytes: int) -> None:
        super().__init__()
        self._tail, self._size_bytes, self._begin, self._at = tail, size_bytes, size_bytes - len(tail), 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves there; gives the position."""
        self._at = offset + (0, self._at, self._size_bytes)[whence]
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """A read that reaches into the known end gets it, after zeros."""
        end = self._size_bytes if size < 0 else min(self._size_bytes, self._at + size)
        if end <= self._begin:
            return b""
        data = bytes(max(0, self._begin - self._at)) + self._tail[max(0, self._at - self._begin) : end - self._begin]
        self._at = end
        return data
