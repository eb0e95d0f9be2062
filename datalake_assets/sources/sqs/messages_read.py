"""What a feed makes of messages: which item each is, when it can be forgotten, its row, and what becomes of poison.

Whoever has messages, a run that receives them or a Lambda function that is given them, reads them by this.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from datalake_assets.core.batches import ItemOrigin, RejectedRow, SourceBatch
from datalake_assets.core.item_ids import forgotten_at
from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.sources.sqs.queue import QueueAttributes
from datalake_assets.sources.sqs.sqs_messages import (
    Message,
    MessageLayout,
    attribute_text,
    envelope_of,
    message_in,
)
from datalake_assets.sources.sqs.sqs_model import SENT_AT, declared

__all__ = ["MessageReader", "read_again"]

#: Clocks differ, and SQS deletes an expired message some time after its retention period.
MARGIN = timedelta(hours=1)
#: Messages of one day are forgotten together, so that those of one batch are few kinds.
_DAY_S = 86_400
#: Messages that become one record batch.
CHUNK = 1000
_DIGEST_BYTES = 16


class MessageReader:
    """Reads messages for a feed.

    Args:
        feed: A feed of a queue.
        queue: What the queue says of itself.

    Attributes:
        poison: Messages that were read and are none for the feed, by item, and why.

    Raises:
        InvalidFeed: What the feed says does not fit the queue.
    """

    def __init__(self, feed: Feed, queue: QueueAttributes) -> None:
        self._source, self._queue = declared(feed), queue
        self.layout = MessageLayout(feed)
        self.poison: dict[str, tuple[Message, str]] = {}
        if queue.retention > self._source.horizon:
            reason = f"horizon: the queue keeps messages for {queue.retention}; remember them for at least as long"
            raise InvalidFeed(feed.name, reason)
        finds_again = feed.row_time != SENT_AT or feed.is_iceberg
        if self._source.identity == "deduplication" and not finds_again:
            reason = (
                f"source.identity: what is sent again has another {SENT_AT}, and would be looked for in another"
                " partition; give the feed a time_column of the message's own, or keep it as Iceberg"
            )
            raise InvalidFeed(feed.name, reason)
        by_sender = self._source.is_fifo and finds_again and not queue.by_content
        self._identity = self._source.identity or ("deduplication" if by_sender else "message")

    def item_of(self, message: Message) -> str:
        """What the message is remembered by: its id; or its sender's, with a digest of what is landed of it.

        SQS heeds a deduplication id for five minutes, and takes another message under it afterwards: what has another
        content is one.
        """
        if self._identity == "message" or not message.deduplication_id:
            return message.id
        group = f"{message.group}\0" if self._queue.by_group else ""
        landed = [message.body, *(attribute_text(message.attributes.get(name)) for name in self._source.attributes)]
        digest = hashlib.blake2b(json.dumps(landed).encode(), digest_size=_DIGEST_BYTES)
        return f"{group}{message.deduplication_id} {digest.hexdigest()}"

    def forget_after(self, message: Message) -> datetime:
        """When the message can no longer come again: the same however often it comes."""
        end = message.sent_at + self._source.horizon + MARGIN
        return datetime.fromtimestamp(-int(-end.timestamp() // _DAY_S) * _DAY_S, UTC)

    def batches(self, messages: Sequence[Message]) -> Iterator[SourceBatch]:
        """Rows and poison of messages, each of another item, in their order."""
        for begin in range(0, len(messages), CHUNK):
            some = messages[begin : begin + CHUNK]
            for until in sorted({self.forget_after(each) for each in some}):
                yield self._batch([each for each in some if self.forget_after(each) == until], until)

    def _batch(self, messages: Sequence[Message], until: datetime) -> SourceBatch:
        decoded = self.layout.decoded(messages)
        self.poison |= {self.item_of(message): (message, reason) for message, reason in decoded.poison}
        items = pa.array([self.item_of(each) for each in decoded.messages], pa.string())
        rejected = tuple(
            _poison_row(message, reason, ItemOrigin(self.item_of(message), forgotten_at(until)))
            for message, reason in decoded.poison
        )
        return SourceBatch(decoded.rows, rejected=rejected, source_items=items, forget_after=until)

    def is_given_up(self, message: Message) -> bool:
        """Whether a poison message is not waited for any longer: it was received as often as the feed allows.

        Of a queue that has a redrive policy, and a feed that names no other queue for it, SQS itself takes it away.
        """
        if self._queue.has_redrive and self._source.dead_letter_queue is None:
            return False
        return message.receives >= self._source.max_receives


def _poison_row(message: Message, reason: str, origin: ItemOrigin) -> RejectedRow:
    return RejectedRow(message.content, reason, origin.item, origin=replace(origin, envelope=envelope_of(message)))


def read_again(feed: Feed, rows: Sequence[RejectedRow]) -> Iterator[SourceBatch]:
    """Messages that were poison, by what the feed says of them now; the queue is not asked."""
    layout = MessageLayout(feed)
    by_time: dict[int, list[RejectedRow]] = defaultdict(list)
    for row in rows:
        if row.origin is not None:
            by_time[row.origin.forget_after].append(row)
    for until, some in by_time.items():
        newest = {row.origin.item: row for row in some if row.origin is not None}
        origins = {item: row.origin for item, row in newest.items() if row.origin is not None}
        # its receipt is what it is remembered by, since that need not be its id
        messages = [replace(message_in(origins[item].envelope, row.raw), receipt=item) for item, row in newest.items()]
        decoded = layout.decoded(messages)
        items = pa.array([each.receipt for each in decoded.messages], pa.string())
        rejected = tuple(_poison_row(each, reason, origins[each.receipt]) for each, reason in decoded.poison)
        until_ = datetime.fromtimestamp(until, UTC)
        yield SourceBatch(decoded.rows, rejected=rejected, source_items=items, forget_after=until_)
