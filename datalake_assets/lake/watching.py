"""Lets others see the rows of a pass while it lands them, so that nobody has to read a source twice to show them.

A pass tells what it decided of each row: it is to be landed, was sent again, or goes to quarantine. Rows are told
before the commit; that they are committed is told at the end. Who watches is said by a context variable, since a pass
may run deep in a framework, in the same thread.

Watching is never a reason for a row not to land: what a watcher raises is logged, and the pass goes on unwatched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import pyarrow as pa

from datalake_assets.core.batches import RejectedRow
from datalake_assets.core.position import Ints
from datalake_assets.feed import Feed

__all__ = ["MARKS", "PassWatch", "Watcher", "present_watch", "show_failure", "watched_by", "watched_pass"]

logger = logging.getLogger(__name__)

#: What rows that are shown have besides their feed's columns: when they were seen, whether they are committed, and what
#: is odd about them.
MARKS = {
    "_seen_at": pa.timestamp("us", "UTC"),
    "_state": pa.string(),
    "_late": pa.bool_(),
    "_duplicate": pa.bool_(),
}


class PassWatch(Protocol):
    """Sees one pass over a feed's source; begun, told and ended in one thread."""

    def accepted(self, rows: pa.RecordBatch, partitions: Ints | None, offsets: Ints | None) -> None:
        """Rows that this pass is to commit.

        Args:
            rows: In the feed's columns.
            partitions: Source partition of each row, int64, or texts as Python's objects; None of rows without numbers.
            offsets: Offset of each row, int64, or Python's own numbers; given where ``partitions`` are.
        """

    def known(self, rows: pa.RecordBatch, partitions: Ints | None, offsets: Ints | None) -> None:
        """Rows that the lake has already; arguments as of `accepted`."""

    def quarantined(self, rows: Sequence[RejectedRow]) -> None:
        """Rows that could not be decoded or placed."""

    def ended(self, error: BaseException | None) -> None:
        """The pass is over: all that it accepted is committed, or it failed, and some of it may be."""


class Watcher(Protocol):
    """Wants to see passes."""

    def begin(self, feed: Feed) -> PassWatch | None:
        """A pass over a feed's source begins; None: nobody looks at it."""

    def failed(self, name: str, reason: str) -> None:
        """A feed's source cannot be read for now, by no pass."""


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)
_present: ContextVar[PassWatch | None] = ContextVar("present_watch", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Shows ``watcher`` the passes of this thread, while the block runs."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def watched_pass(feed: Feed) -> Iterator[None]:
    """What runs within it is one pass over the source of a feed."""
    watcher = _watcher.get()
    watch = None if watcher is None else _Guarded.begun(watcher, feed)
    if watch is None:
        yield
        return
    token = _present.set(watch)
    try:
        yield
    except BaseException as error:
        watch.ended(error)
        raise
    else:
        watch.ended(None)
    finally:
        _present.reset(token)


def present_watch() -> PassWatch | None:
    """Who sees the pass that runs in this thread, if anybody does."""
    return _present.get()


def show_failure(name: str, reason: str) -> None:
    """Tells who watches the passes of this thread, if anybody does, that a feed cannot be read for now."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher.failed(name, reason)


class _Guarded:
    """Another's watch, which is asked no more once it has failed."""

    def __init__(self, watch: PassWatch) -> None:
        self._watch: PassWatch | None = watch

    @classmethod
    def begun(cls, watcher: Watcher, feed: Feed) -> _Guarded | None:
        """The guarded watch of a pass."""
        try:
            watch = watcher.begin(feed)
        except Exception:
            logger.exception("feed %s: the pass cannot be watched", feed.name)
            return None
        return None if watch is None else cls(watch)

    def accepted(self, rows: pa.RecordBatch, partitions: Ints | None, offsets: Ints | None) -> None:
        """Implements `PassWatch`."""
        self._tell(lambda watch: watch.accepted(rows, partitions, offsets))

    def known(self, rows: pa.RecordBatch, partitions: Ints | None, offsets: Ints | None) -> None:
        """Implements `PassWatch`."""
        self._tell(lambda watch: watch.known(rows, partitions, offsets))

    def quarantined(self, rows: Sequence[RejectedRow]) -> None:
        """Implements `PassWatch`."""
        self._tell(lambda watch: watch.quarantined(rows))

    def ended(self, error: BaseException | None) -> None:
        """Implements `PassWatch`."""
        self._tell(lambda watch: watch.ended(error))

    def _tell(self, what: Callable[[PassWatch], None]) -> None:
        if self._watch is None:
            return
        try:
            what(self._watch)
        except Exception:
            logger.exception("a pass is not watched any more")
            self._watch = None
