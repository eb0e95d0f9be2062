"""SQS as a source: micro-batches of a queue's messages, committed first and deleted after.

A batch is finished by its number of messages, its bytes or its age, or because the queue is empty. It is then landed
and committed, and only then are its messages deleted: a crash in between gives them again, and they are known. While
it is being landed its messages are kept from other readers. With more messages waiting than a batch takes, the batch
is as large as what waits, up to the feed's target size of files: a backlog becomes few files, and once it is gone
batches are small again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress

import pyarrow as pa

from datalake_assets.core.batches import Backlog, Batches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.errors import SourceError, SourceUnavailable
from datalake_assets.feed import Feed
from datalake_assets.settings import Settings
from datalake_assets.sources.aws_clients import refuse_endpoint
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.sqs.messages_read import CHUNK, MessageReader, read_again
from datalake_assets.sources.sqs.queue import (
    BATCH,
    Queue,
    QueueAttributes,
    QueueFull,
    QueueServer,
    region_of,
)
from datalake_assets.sources.sqs.sqs_messages import Message, MessageLayout
from datalake_assets.sources.sqs.sqs_model import SqsSettings, SqsSource, declared

__all__ = ["Sqs", "connect"]

logger = logging.getLogger(__name__)

#: Messages of one batch. SQS hides at most 120,000 of a queue from others (SQS quota: in-flight messages).
MOST_HELD = 100_000
#: How much longer than its age a batch may grow under backlog, whose messages are late already.
PATIENCE = 20
#: Messages of a batch for each request that is under way at once: few messages need no haste.
PER_RECEIVER = 100
#: A message is hidden for longer once this share of its time is left, and looked at so often in that time.
_EXTEND_AT, _LOOKS = 0.5, 6


class Sqs:
    """Queues to read feeds from; one thread at a time.

    Args:
        settings: Endpoint, region and patience.
    """

    def __init__(self, settings: SqsSettings) -> None:
        self._settings = settings
        self._servers: dict[str, QueueServer] = {}
        self._held: dict[str, _Held] = {}

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        """Prepares to read ``feed``; what another read of it did not acknowledge comes first."""
        return _MicroBatches(self, feed, request)

    def decode_items(self, feed: Feed, rows: Sequence[RejectedRow], schema: pa.Schema) -> Iterator[SourceBatch]:  # noqa: ARG002  the feed says all
        """Implements `DecodesItems`; the queue is not asked."""
        return read_again(feed, rows)

    def queue(self, source: SqsSource, name_or_url: str | None = None) -> Queue:
        """The queue of a feed, or another one in its region.

        Raises:
            SourceError: There is none.
        """
        wanted = name_or_url or source.queue
        return self._server(source.region or region_of(wanted)).queue(wanted)

    def _server(self, region: str) -> QueueServer:
        if region not in self._servers:
            self._servers[region] = QueueServer(region, self._settings)
        return self._servers[region]

    def held(self, feed: Feed) -> _Held:
        """The messages of a feed that were received and not acknowledged yet."""
        if feed.name not in self._held:
            source = declared(feed)
            self._held[feed.name] = _Held(self.queue(source), source)
        return self._held[feed.name]

    def discover(self) -> Iterator[SourceObject]:
        """Lists the queues of the region.

        Raises:
            SourceError: It failed.
        """
        for url in sorted(self._server("").names()):
            yield SourceObject(url.rpartition("/")[2], "stream")

    def check(self, feed: Feed) -> None:
        """Asks whether ``feed`` could be read: its queue, its horizon, its columns, where poison goes.

        Raises:
            SourceError: It could not; says why.
            InvalidFeed: What it says does not fit its queue.
        """
        source = declared(feed)
        MessageReader(feed, self.queue(source).attributes())
        if source.dead_letter_queue is not None:
            self.queue(source, source.dead_letter_queue).attributes()

    def count(self, feed: Feed) -> None:
        """Nothing: what waits in a queue are not its rows."""

    def backlog(self, feed: Feed) -> Backlog:
        """What waits in the feed's queue; implements `HasBacklog`."""
        return self.queue(declared(feed)).attributes().backlog

    def is_moved(self, feed: Feed, message: Message, reason: str) -> bool:
        """Sends a poison message to the feed's dead-letter queue, if it has one; whether it may be deleted now."""
        source = declared(feed)
        if source.dead_letter_queue is None:
            return True
        notes = {"datalake_reason": reason[:200], "datalake_queue": source.where, "datalake_message_id": message.id}
        try:
            self.queue(source, source.dead_letter_queue).send(message, notes)
        except SourceError as error:
            logger.warning("queue %s: message %s stays where it is: %s", source.where, message.id, error)
            return False
        return True

    def close(self) -> None:
        """Closes its connections; what is held comes again once its time is over. Idempotent."""
        for held in self._held.values():
            held.close()
        for server in self._servers.values():
            server.close()
        self._held.clear()
        self._servers.clear()


def connect(settings: Settings) -> Sqs:
    """SQS by an installation's settings.

    Raises:
        ConfigError: They cannot work.
    """
    own = settings.of(SqsSettings)
    refuse_endpoint("sqs", own.sqs_endpoint)
    return Sqs(own)


class _Held:
    """Messages that are hidden from others for us: those of one part, until they are acknowledged.

    Attributes:
        messages: By item, the newest reception of each.
        size_bytes: Of their bodies.
    """

    def __init__(self, queue: Queue, source: SqsSource) -> None:
        self.queue, self._visibility_s = queue, source.visibility_s
        self.pool = ThreadPoolExecutor(source.receivers, thread_name_prefix="sqs")
        self.messages: dict[str, Message] = {}
        self.size_bytes = 0
        self._part = 0
        self._repeats: list[Message] = []
        self._others: list[Message] = []
        self._until: list[tuple[float, list[Message]]] = []
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, messages: Sequence[Message], reader: MessageReader, *, received_at: float) -> list[Message]:
        """Takes messages that were received; returns those whose item is new."""
        new = []
        with self._lock:
            for message in messages:
                item = reader.item_of(message)
                before = self.messages.get(item)
                if before is None:
                    new.append(message)
                    self.messages[item] = message
                    self.size_bytes += len(message.content)
                elif before.id == message.id:
                    before.receipt, before.receives = message.receipt, message.receives
                else:
                    (self._repeats if message.says_the_same_as(before) else self._others).append(message)
            self._until.append((received_at + self._visibility_s, list(messages)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._extend, name="sqs-visibility", daemon=True)
            self._thread.start()
        return new

    def _extend(self) -> None:
        """Hides for longer what will be seen by others soon."""
        while not self._ended.wait(self._visibility_s / _LOOKS):
            now = time.monotonic()
            with self._lock:
                part = self._part
                soon = now + _EXTEND_AT * self._visibility_s
                due = [each for each in self._until if each[0] < soon]
                self._until = [each for each in self._until if each[0] >= soon]
            receipts = [message.receipt for _, some in due for message in some]
            if not receipts:
                continue
            try:
                self.queue.hide(receipts, self.pool, visibility_s=self._visibility_s)
            except SourceError as error:
                logger.warning("%s: messages may come again while they are landed: %s", self.queue.source, error)
            except (RuntimeError, CancelledError):  # the pool is shut down: this is the end
                return
            with self._lock:
                if part != self._part:  # they were acknowledged meanwhile
                    continue
                self._until.append((now + self._visibility_s, [message for _, some in due for message in some]))

    def release(self, deleted: Sequence[Message]) -> None:
        """Deletes messages, and forgets all that are held: those that are not deleted come again.

        A message with another's identity and another body comes again at once: the lake decides whether it is known,
        since the other one may be poison, or may lie in quarantine.

        Raises:
            SourceRefused: Deleting is not allowed.
        """
        with self._lock:
            receipts = [message.receipt for message in (*deleted, *self._repeats)]
            again = [message.receipt for message in self._others]
            self.messages.clear()
            self._repeats.clear()
            self._others.clear()
            self._until.clear()
            self.size_bytes = 0
            self._part += 1
        try:
            left = self.queue.delete(receipts, self.pool)
        except SourceUnavailable as error:
            logger.warning("%s: landed messages were not deleted, and come again: %s", self.queue.source, error)
            return
        if left:
            logger.warning("%s: %d landed messages were not deleted, and come again", self.queue.source, left)
        with suppress(SourceError):  # else they come again once their time is over
            self.queue.hide(again, self.pool, visibility_s=0)

    def close(self) -> None:
        """Ends its threads."""
        self._ended.set()
        self.pool.shutdown(wait=False, cancel_futures=True)
        if self._thread is not None:
            self._thread.join()


class _MicroBatches:
    """One read of a queue, part by part; implements `Batches` and `ReadInParts`."""

    recreated = False
    unfinished = ""

    def __init__(self, sqs: Sqs, feed: Feed, request: ReadRequest) -> None:
        self._sqs, self._feed, self.request = sqs, feed, request
        self._source = declared(feed)
        self._began = time.monotonic()
        self._reader: MessageReader | None = None
        self._more = False
        self._taken = 0

    @property
    def schema(self) -> pa.Schema:
        """The columns of the feed's messages; the queue is not asked."""
        return MessageLayout(self._feed).schema

    @property
    def time_column(self) -> str | None:
        """The column that partitions the rows."""
        return self._feed.row_time

    @property
    def has_more(self) -> bool:
        """Whether the queue was not found to be empty, and the run has time."""
        return self._more and time.monotonic() - self._began < self._source.run_s

    def __iter__(self) -> Iterator[SourceBatch]:
        """Receives a part, or gives again the one that was not acknowledged.

        Raises:
            SourceError: The queue failed, or refused.
            InvalidFeed: What the feed says does not fit the queue.
        """
        held = self._sqs.held(self._feed)
        attributes = held.queue.attributes()
        self._reader = reader = MessageReader(self._feed, attributes)
        if held.messages:
            yield from reader.batches(list(held.messages.values()))
            self._more = True
            return
        waiting: list[Message] = []
        for messages in self._received(held, reader, attributes):
            waiting += messages
            if len(waiting) >= CHUNK:
                yield from reader.batches(waiting)
                waiting = []
        yield from reader.batches(waiting)

    def _received(self, held: _Held, reader: MessageReader, queue: QueueAttributes) -> Iterator[list[Message]]:
        """New messages until the part is full, old enough, or the queue empty."""
        part = _Part(self._source, self._feed, queue)
        pending: dict[Future[list[Message]], tuple[int, float, float]] = {}
        while True:
            asked = sum(most for most, _, _ in pending.values())
            while part.wants_more(held) and len(pending) < part.receivers:
                room = part.records - len(held.messages) - asked
                if room <= 0:
                    break
                most = min(BATCH, room)
                self._keep_rate(asked + most)
                wait_s = part.wait_s(held)
                asked += most
                now = time.monotonic()
                call = held.pool.submit(held.queue.receive, most, wait_s=wait_s, visibility_s=self._source.visibility_s)
                pending[call] = (most, wait_s, now)
            if not pending:
                break
            for call in wait(pending, return_when=FIRST_COMPLETED).done:
                _, waited_s, at = pending.pop(call)
                messages = part.answered(call, waited_s=waited_s)
                self._taken += len(messages)
                if messages:
                    yield held.add(messages, reader, received_at=at)
        # a queue that is empty for now may be so because of what is held
        self._more = bool(held.messages) and (self._source.is_fifo or not part.is_empty)

    def _keep_rate(self, wanted: int) -> None:
        """Waits where the feed limits messages a second."""
        rate = self._source.messages_per_s
        if rate is not None:
            time.sleep(max(0.0, (self._taken + wanted - BATCH) / rate - (time.monotonic() - self._began)))

    def acknowledge(self) -> None:
        """Deletes what was landed; poison is left in the queue, or given up."""
        held = self._sqs.held(self._feed)
        if self._reader is None or not held.messages:
            return
        poison = self._reader.poison
        deleted = [message for item, message in held.messages.items() if item not in poison]
        deleted += [
            message
            for message, reason in poison.values()
            if self._reader.is_given_up(message) and self._sqs.is_moved(self._feed, message, reason)
        ]
        self._reader = None
        held.release(deleted)


class _Part:
    """When a part is finished.

    Attributes:
        records: Messages that it takes.
        receivers: Requests at once.
        is_empty: Whether the queue had nothing more.
    """

    def __init__(self, source: SqsSource, feed: Feed, queue: QueueAttributes) -> None:
        backlog = queue.backlog.waiting
        self._source = source
        self.records = min(max(source.batch_records, backlog), MOST_HELD)
        self.receivers = max(1, min(source.receivers, math.ceil(self.records / PER_RECEIVER)))
        self._age_s = source.batch_age_s * (PATIENCE if backlog > source.batch_records else 1)
        self._bytes = source.batch_bytes or feed.format.target_file_size_bytes
        self._since: float | None = None
        self._is_full = self.is_empty = False

    def wants_more(self, held: _Held) -> bool:
        """Whether another request is worth it."""
        return not (self._is_full or self.is_empty or held.size_bytes >= self._bytes or self._left_s <= 0)

    @property
    def _left_s(self) -> float:
        return self._age_s if self._since is None else self._age_s - (time.monotonic() - self._since)

    def wait_s(self, held: _Held) -> float:
        """How long the next request may wait for a message.

        A group of a FIFO queue gives nothing more while one of its messages is held: there is nothing to wait for.
        Elsewhere at least a second, since SQS asks all its servers only if it may wait.
        """
        if self._source.is_fifo and held.messages:
            return 0
        return max(1, min(self._source.idle_s, self._left_s))

    def answered(self, call: Future[list[Message]], *, waited_s: float) -> list[Message]:
        """The messages of a request, which may have waited for so long; without any, the queue may be empty."""
        try:
            messages = call.result()
        except QueueFull:
            self._is_full = True
            return []
        if messages and self._since is None:
            self._since = time.monotonic()
        is_patient = self._source.is_fifo or waited_s >= self._source.idle_s
        self.is_empty = self.is_empty or (is_patient and not messages)
        return messages
