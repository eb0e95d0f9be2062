"""Reads that are begun before their turn, since they end by silence: several feeds' silences pass at once.

Feeds are exported one after the other. A read that is over only once nothing came for a while (`BeginsAhead`) costs
little but that while, and what a server takes until it sends the first row; so it begins in a thread of its own while
the feeds before it are landed. Nothing of how a read ends is different: the thread waits as the export itself would.

Begun ahead, a read is a help and never a duty. One that has failed when its turn comes, that is another than the export
would begin now, or too old a one, leaves the export to read by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Self

from datalake_assets.core.batches import Batches, ReadRequest, SourceBatch
from datalake_assets.errors import IncompleteResponse, SchemaChanged
from datalake_assets.feed import Feed
from datalake_assets.sources.base import BeginsAhead, SourceSystem

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ReadAhead", "ReadsAhead"]

logger = logging.getLogger(__name__)

#: Reads that are begun and not taken, at most; each holds some 20 MB if there is so much to read.
MOST_READS = 4
#: Feeds ahead of which it is looked for such reads: what is begun much too early has grown old by its turn.
_FEEDS_AHEAD = 8
#: A read waits, and holds its server back, while so much is to be taken; it may be more by a batch,
_FULL_BYTES = 1 << 20
#: but not longer than this: a server may give up who reads no further, and the export begins anew.
_PATIENCE_S = 10.0
#: Rows that came after the end of a read are left to the next export, as ever; so the end must not be longer ago.
_OLDEST_S = 60.0
#: Time for a read that is given up to end its query.
_JOIN_S = 1.0


class ReadAhead:
    """One read in a thread of its own, for one consumer; `stop` it.

    Args:
        feed: What is read.
        request: Where an export would begin now.
        connect: Connects to systems of a type.
        clock: Monotonic seconds.

    Attributes:
        unfinished: `Batches.unfinished` of the read; known at its end.
    """

    def __init__(
        self,
        feed: Feed,
        request: ReadRequest,
        *,
        connect: Callable[[str], AbstractContextManager[SourceSystem]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed, self._request, self._connect, self._clock = feed, request, connect, clock
        self.unfinished = ""
        self._changed = threading.Condition()
        self._schema: pa.Schema | None = None
        self._batches: deque[SourceBatch] = deque()
        self._size_bytes = 0
        self._is_taken = self._is_stopped = False
        self._ended_at: float | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"read-ahead-{feed.name}", daemon=True)
        self._thread.start()

    def take(self, request: ReadRequest) -> bool:
        """Whether the read is the one that an export with this request would begin now; if not, it is stopped."""
        with self._changed:
            age_s = 0.0 if self._ended_at is None else self._clock() - self._ended_at
            is_of_use = self._request == request and not self._is_stopped and self._error is None
            self._is_taken = is_of_use and age_s <= _OLDEST_S
            self._changed.notify_all()
        if not self._is_taken:
            self.stop()
        return self._is_taken

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows; waits for it.

        Raises:
            Exception: What the read failed with.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._schema is not None or self._ended_at is not None)
            if self._schema is not None:
                return self._schema
        raise self._error or AssertionError("a read that ends has a schema, or an error")

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the rows, once.

        Raises:
            Exception: What the read failed with, after all rows before it.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._batches or self._ended_at is not None)
                if not self._batches:
                    break
                batch = self._batches.popleft()
                self._size_bytes -= _size_bytes(batch)
                self._changed.notify_all()
            yield batch
        if self._error is not None:
            raise self._error
        if self._is_stopped:  # its rows were dropped, and it ended early: that must never pass for an end
            raise IncompleteResponse(self._feed.source.where, "the read was given up")

    def stop(self, *, wait_s: float = _JOIN_S) -> None:
        """Gives the read up, if it goes on; rows that nobody took are dropped. Idempotent."""
        with self._changed:
            self._is_stopped = True
            self._batches.clear()
            self._changed.notify_all()
        self._thread.join(wait_s)

    def _run(self) -> None:
        error: Exception | None = None
        try:
            with self._connect(self._feed.source.type) as system:
                if not isinstance(system, BeginsAhead):
                    raise TypeError(f"source {self._feed.source.type!r} cannot be read ahead")  # noqa: TRY301
                self._read(system.read_ahead(self._feed, self._request, is_wanted=lambda: not self._is_stopped))
        except Exception as raised:  # noqa: BLE001  raised again in the consumer's thread
            error = raised
        finally:
            with self._changed:
                self._error, self._ended_at = error, self._clock()
                self._changed.notify_all()

    def _read(self, batches: Batches) -> None:
        schema = batches.schema
        with self._changed:
            self._schema = schema
            self._changed.notify_all()
        for batch in batches:
            self._put(batch)
        self.unfinished = batches.unfinished

    def _put(self, batch: SourceBatch) -> None:
        """Hands a batch over, when there is room; gives the read up if nobody makes any."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room or self._is_taken or self._is_stopped, _PATIENCE_S):
                self._is_stopped = True
            self._changed.wait_for(lambda: self._has_room or self._is_stopped)
            if self._is_stopped:
                self._batches.clear()
                return
            self._batches.append(batch)
            self._size_bytes += _size_bytes(batch)
            self._changed.notify_all()

    @property
    def _has_room(self) -> bool:
        return self._size_bytes < _FULL_BYTES


def _size_bytes(batch: SourceBatch) -> int:
    return int(batch.rows.nbytes) + sum(len(row.raw) for row in batch.rejected)


class _BegunBatches:
    """The batches of a read that was begun ahead; those of another one, if they are read again.

    Args:
        feed: What is read.
        begun: The read that goes on.
        again: Reads the same, from the beginning.
    """

    def __init__(self, feed: Feed, begun: ReadAhead, again: Batches) -> None:
        self._feed, self._begun, self._again = feed, begun, again
        self._is_begun_read = self._is_read_again = False

    @property
    def schema(self) -> pa.Schema:
        """Implements `Batches`."""
        return self._begun.schema

    @property
    def time_column(self) -> str | None:
        """Implements `Batches`."""
        return self._again.time_column

    @property
    def request(self) -> ReadRequest:
        """Implements `Batches`."""
        return self._again.request

    @property
    def recreated(self) -> bool:
        """Implements `Batches`."""
        return self._is_read_again and self._again.recreated

    @property
    def unfinished(self) -> str:
        """Implements `Batches`."""
        return self._again.unfinished if self._is_read_again else self._begun.unfinished

    def acknowledge(self) -> None:
        """Implements `Batches`."""
        self._again.acknowledge()

    def __iter__(self) -> Iterator[SourceBatch]:
        """Implements `Batches`."""
        if self._is_begun_read:
            self._is_read_again = True
            self._refuse_other_columns()
            yield from self._again
            return
        self._is_begun_read = True
        try:
            yield from self._begun
        finally:
            self._begun.stop()

    def _refuse_other_columns(self) -> None:
        if not self._again.schema.equals(self._begun.schema):
            what = "the columns changed while it was being read"
            raise SchemaChanged(f"{self._feed.source.type} {self._feed.source.where}", what, cure="run it again")


class ReadsAhead:
    """The reads of a command's feeds that are begun before their turn; a context that ends those that nobody took.

    Args:
        feeds: All that the command exports, in its order.
        plan: Says where an export of a feed would begin now.
        connect: Connects to systems of a type; called in other threads.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        *,
        plan: Callable[[Feed], ReadRequest],
        connect: Callable[[str], AbstractContextManager[SourceSystem]],
    ) -> None:
        self._feeds, self._plan, self._connect = feeds, plan, connect
        self._begun: dict[str, ReadAhead] = {}
        self._taken: dict[str, ReadAhead] = {}
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = [*self._begun.values(), *self._taken.values()]
        for each in left:
            each.stop(wait_s=0.0)
        for each in left:
            each.stop()

    def begin(self, turn: int) -> None:
        """Begins reads of the feed whose turn it is, and of those that follow, as many as may go on at once."""
        for feed in islice(self._feeds, turn, turn + _FEEDS_AHEAD):
            if len(self._begun) >= MOST_READS:
                return
            if feed.ends_by_silence and feed.name not in self._seen:
                self._seen.add(feed.name)
                self._begin(feed)

    def _begin(self, feed: Feed) -> None:
        try:
            request = self._plan(feed)
        except Exception as error:  # noqa: BLE001  it fails again in its turn, and is told then
            logger.debug("%s is not read ahead: %s", feed.path, error)
            return
        self._begun[feed.name] = ReadAhead(feed, request, connect=self._connect)

    def instead_of(self, feed: Feed, batches: Batches) -> Batches:
        """The read of a feed whose turn it is: the one that was begun, if it is what ``batches`` would read now."""
        begun = self._begun.pop(feed.name, None)
        if begun is None or not begun.take(batches.request):
            return batches
        self._taken[feed.name] = begun
        return _BegunBatches(feed, begun, batches)

    def end(self, feed: Feed) -> None:
        """Ends what goes on of a feed whose turn is over, since its export failed before it had all of it."""
        for reads in (self._begun, self._taken):
            left = reads.pop(feed.name, None)
            if left is not None:
                left.stop()
