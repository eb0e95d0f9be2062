"""Files of queries that stay open, and ends of files that were read, from one query to the next."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from datalake_assets.lake.sql_files import ReadableFile, end_bytes

__all__ = ["KeptEnd", "KeptOpen"]


class KeptOpen:
    """Files that stay open from query to query, the latest: opening one asks its store how long it is.

    For files that never change under their name. Used by several threads.

    Args:
        most: Files at the most.
    """

    def __init__(self, most: int = 64) -> None:
        self._most, self._lock = most, threading.Lock()
        self._kept: OrderedDict[Hashable, ReadableFile] = OrderedDict()

    def open(self, key: Hashable, open_file: Callable[[], ReadableFile]) -> ReadableFile:
        """The file of a key; opened if it is not, and again if it cannot be read."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        return _KeptFile(self, key, open_file, found if found is not None else self.opened(key, open_file))

    def opened(self, key: Hashable, open_file: Callable[[], ReadableFile]) -> ReadableFile:
        """Opens it anew; one that is not there is forgotten."""
        with self._lock:
            self._kept.pop(key, None)
        file = open_file()
        with self._lock:
            self._kept[key] = file
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return file


class KeptEnd:
    """A file whose end is kept once it was read: every query begins with it.

    Args:
        file: The file.
        size_bytes: Its length.
    """

    def __init__(self, file: ReadableFile, size_bytes: int) -> None:
        end = end_bytes(size_bytes)
        self._file, self._end, self._kept = file, (end, size_bytes - end), b""

    def read_at(self, nbytes: int, offset: int) -> bytes:
        """Implements `ReadableFile`."""
        if (nbytes, offset) != self._end:
            return self._file.read_at(nbytes, offset)
        self._kept = self._kept or self._file.read_at(nbytes, offset)
        return self._kept


class _KeptFile:
    """A file that may have been open for long: then credentials may have run out, or it is gone."""

    def __init__(
        self, kept: KeptOpen, key: Hashable, open_file: Callable[[], ReadableFile], file: ReadableFile
    ) -> None:
        self._kept, self._key, self._open_file, self._file = kept, key, open_file, file

    def read_at(self, nbytes: int, offset: int) -> bytes:
        """Implements `ReadableFile`."""
        try:
            return self._file.read_at(nbytes, offset)
        except Exception:  # noqa: BLE001  each store has errors of its own; those of a file just opened are passed on
            self._file = self._kept.opened(self._key, self._open_file)
        return self._file.read_at(nbytes, offset)
