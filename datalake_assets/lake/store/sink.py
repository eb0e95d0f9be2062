"""What the staged writers of all stores share: the life of a sink, from the first byte to finished or discarded.

pyarrow calls `close` unasked, exceptions leave `with` blocks, and writers get lost; none of that may publish anything,
nor leave anything behind.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from datalake_assets.lake.store.base import StagedFile
from datalake_assets.parquet.sinks import ByteLike

__all__ = ["StagedSink"]


class StagedSink:
    """Base of the `StagedWriter`s: a store implements `_append`, `_seal` and `_drop`, and `_abandon` if it differs."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._size_bytes = 0
        self._closed = False
        self._discarded = False
        self._staged: StagedFile | None = None

    def _append(self, data: memoryview) -> None:
        raise NotImplementedError

    def _seal(self) -> StagedFile:
        raise NotImplementedError

    def _drop(self) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """What garbage collection does in place of `_drop`: it may run inside any lock, so it must take none."""
        self._drop()

    @property
    def name(self) -> str:
        """Of the file, within its folder."""
        return self.key.rpartition("/")[2]

    @property
    def closed(self) -> bool:
        """No more writes."""
        return self._closed

    def write(self, data: ByteLike, /) -> int:
        """Append, all of it."""
        if self._closed:
            raise ValueError("write to closed file")
        view = memoryview(data).cast("B")
        self._append(view)
        self._size_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size_bytes

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """End the writing; neither finishes nor discards."""
        self._closed = True

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Until closed."""
        return not self._closed

    def seekable(self) -> bool:
        """Never."""
        return False

    def finish(self) -> StagedFile:
        """Make everything durable, still invisible."""
        if self._discarded:
            raise ValueError("finish of a discarded file")
        self._closed = True
        if self._staged is None:
            self._staged = self._seal()
        return self._staged

    def discard(self) -> None:
        """Drop what was written; without effect after `finish`, or a second time."""
        if self._staged is None and not self._discarded:
            self._closed = self._discarded = True
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def __del__(self) -> None:
        if getattr(self, "_staged", None) is None and not getattr(self, "_discarded", True):
            self._discarded = True
            with contextlib.suppress(Exception):  # nobody is left to tell; the sweep by age finds what stays
                self._abandon()
