"""Large files of a local lake: written and read past the page cache, where the file system can.

A byte that goes through the cache is copied once more, into memory that has to be found for it first. Of a copy that is
half of the processor's time, and several times all else where a virtual machine gets its memory from the host page by
page. Past the cache, what is read back has been on the disk besides, and not only in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["BlockWriter", "stored_blocks"]

#: Read and written at a time: of what is cached, more than fits into a processor's cache takes twice as long.
BLOCK_BYTES: Final = 1 << 20
#: Disks want blocks to begin and end at a multiple of their sectors, of which none is larger (open(2), O_DIRECT).
ALIGNMENT: Final = 4096
#: A large page of x86-64's, and of most ARMs; others are content with such memory, too.
_LARGE_PAGE_BYTES: Final = 2 << 20
_IN_LARGE_PAGES: Final[int | None] = getattr(mmap, "MADV_HUGEPAGE", None)
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE: what is not written in the end is no part of the file
_DIRECT: Final = getattr(os, "O_DIRECT", 0)  # Linux's
_IF_CACHED: Final = getattr(os, "RWF_NOWAIT", 0)


class BlockWriter:
    """Appends to a file in whole blocks, past the page cache; where that is not possible, through it.

    Args:
        descriptor: The file, which stands at its end. Nobody else writes to it from now on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._block = descriptor, _new_block()
        self._begin = self._filled = os.lseek(descriptor, 0, os.SEEK_CUR) % ALIGNMENT
        self._end = ALIGNMENT if self._begin else BLOCK_BYTES  # up to there through the cache
        if not self._begin:
            _bypass(descriptor, wanted=True)

    def expect(self, size_bytes: int) -> None:
        """Finds room for so many bytes, which are about to be written."""
        _reserve(self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_CUR), self._filled - self._begin + size_bytes)

    def room(self, most_bytes: int) -> memoryview:
        """Where the next bytes may be put, to be taken then; as many at the most."""
        return self._block[self._filled : min(self._end, self._filled + most_bytes)]

    def take(self, count: int) -> None:
        """Appends so many bytes, which were put where there is room."""
        self._filled += count
        if self._filled == self._end:
            is_whole = not self._begin
            self._write_block()
            if not is_whole:
                _bypass(self._descriptor, wanted=True)

    def write(self, data: memoryview) -> None:
        """Appends, all of it."""
        while data:
            room = self.room(len(data))
            room[:] = data[: len(room)]
            self.take(len(room))
            data = data[len(room) :]

    def finish(self) -> None:
        """Writes what is left, which need not end where a block may: through the cache."""
        _bypass(self._descriptor, wanted=False)
        self._write_block()

    def _write_block(self) -> None:
        left = self._block[self._begin : self._filled]
        self._begin, self._filled, self._end = 0, 0, BLOCK_BYTES
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not _bypass(self._descriptor, wanted=False):
                    raise


def stored_blocks(file: Path) -> Iterator[memoryview]:
    """The bytes of a file; each block lies where the one before lay.

    What is not in the page cache is read past it: from the disk, where what was written so is, and nowhere else yet.
    """
    block, at, flags = _new_block(), 0, _IF_CACHED
    with file.open("rb", buffering=0) as opened:
        descriptor, size_bytes = opened.fileno(), os.fstat(opened.fileno()).st_size
        while at < size_bytes:
            try:
                count = os.preadv(descriptor, [block], at, flags)
            except OSError as error:
                flags = _otherwise(descriptor, error, flags)
                continue
            if not count:
                return
            yield block[:count]
            at += count


def _otherwise(descriptor: int, error: OSError, flags: int) -> int:
    """Flags with which a read may go better that failed so; raises the error if none will."""
    if flags:
        if error.errno == errno.EAGAIN:
            _bypass(descriptor, wanted=True)
        elif error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise error
    elif error.errno != errno.EINVAL or not _bypass(descriptor, wanted=False):
        raise error
    return 0


def _new_block() -> memoryview:
    """Memory that begins where a block may; in one large page, where the system has such.

    For a disk all pages of a block are looked up, which takes half of the processor's time where there are 256.
    """
    import ctypes  # noqa: PLC0415  only who reads or copies large files needs it

    held = mmap.mmap(-1, 2 * _LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _IN_LARGE_PAGES is not None:
        with contextlib.suppress(OSError):  # not every kernel has them
            held.madvise(_IN_LARGE_PAGES)
    begin = -ctypes.addressof(ctypes.c_char.from_buffer(held)) % _LARGE_PAGE_BYTES
    return memoryview(held)[begin : begin + BLOCK_BYTES]


def _bypass(descriptor: int, *, wanted: bool) -> bool:
    """Has a file bypass the page cache from now on, or no longer; returns whether that is another way than before."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if not _DIRECT or bool(flags & _DIRECT) == wanted:
        return False
    with contextlib.suppress(OSError):  # not every file system can
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags ^ _DIRECT)
        return True
    return False


def _reserve(descriptor: int, begin: int, size_bytes: int) -> None:
    """Has the file system find room for bytes that are about to be written, at once and not page by page.

    Copies take a fifth less of the processor's time. Where it cannot, nothing changes: the writing itself will tell.
    """
    fallocate = _fallocate()
    if fallocate is not None and size_bytes > 0:
        fallocate(descriptor, _KEEP_SIZE, begin, size_bytes)


@cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """Linux's fallocate(2): the one that POSIX has writes to each block where a file system knows of no room."""
    import ctypes  # noqa: PLC0415  only who copies large files needs it

    found = getattr(ctypes.CDLL(None), "fallocate64", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return found
