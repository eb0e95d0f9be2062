"""Messages that somebody else received and will delete, as a Lambda function is given them, read for a feed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from datalake_assets.core.batches import ReadRequest, SourceBatch
from datalake_assets.feed import Feed
from datalake_assets.sources.sqs.messages_read import MessageReader
from datalake_assets.sources.sqs.queue import message_of
from datalake_assets.sources.sqs.sqs import Sqs
from datalake_assets.sources.sqs.sqs_messages import Message
from datalake_assets.sources.sqs.sqs_model import SqsSource, declared

__all__ = ["GivenMessages", "feeds_of_queue", "message_of_event", "queue_of_event"]


def queue_of_event(record: Mapping[str, Any]) -> str:
    """The ARN of the queue that a record of a Lambda event comes from.

    Raises:
        ValueError: It comes from something else.
    """
    if record.get("eventSource") != "aws:sqs":
        raise ValueError(f"this function takes events of SQS, not of {record.get('eventSource')!r}")
    return str(record["eventSourceARN"])


def message_of_event(record: Mapping[str, Any]) -> Message:
    """The message of a record (AWS Lambda developer guide, "Example standard queue message event")."""
    return message_of(
        record["messageId"],
        record["receiptHandle"],
        record["body"],
        record["attributes"],
        record.get("messageAttributes", {}),
    )


def feeds_of_queue(feeds: Sequence[Feed], arn: str) -> list[Feed]:
    """The feeds that read a queue, by its ARN: ``arn:aws:sqs:<region>:<account>:<name>``."""
    *_, region, account, name = arn.split(":")
    found = []
    for feed in feeds:
        source = feed.source
        if not isinstance(source, SqsSource) or source.where != name or source.region not in {"", region}:
            continue
        if "://" in source.queue and f"/{account}/" not in source.queue:
            continue
        found.append(feed)
    return found


class GivenMessages:
    """One batch of a feed's messages; implements `Batches`.

    Args:
        sqs: Asks the queue for what it says of itself, and takes poison to the dead-letter queue.
        feed: The feed.
        messages: The messages; one that is there twice is given once, and another one of the same identity comes again.
    """

    recreated = False
    unfinished = ""

    def __init__(self, sqs: Sqs, feed: Feed, messages: Sequence[Message]) -> None:
        self._sqs, self._feed, self.request = sqs, feed, ReadRequest()
        self._reader = reader = MessageReader(feed, sqs.queue(declared(feed)).attributes())
        self._messages: dict[str, Message] = {}
        self._others: list[Message] = []
        for each in messages:
            first = self._messages.setdefault(reader.item_of(each), each)
            if not each.says_the_same_as(first):
                self._others.append(each)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the feed's messages."""
        return self._reader.layout.schema

    @property
    def time_column(self) -> str | None:
        """The column that partitions the rows."""
        return self._feed.row_time

    def __iter__(self) -> Iterator[SourceBatch]:
        """Gives them all."""
        return self._reader.batches(list(self._messages.values()))

    def acknowledge(self) -> None:
        """Does nothing: who received them deletes them, but for `to_come_again`."""

    def to_come_again(self) -> list[str]:
        """Ids of messages that are not to be deleted yet, once the others are landed.

        These are poison that is not given up, and what has the identity of another message and another body: whether
        it is known can be said once the other one is committed.
        """
        poison = [
            message.id
            for message, reason in self._reader.poison.values()
            if not (self._reader.is_given_up(message) and self._sqs.is_moved(self._feed, message, reason))
        ]
        return [*poison, *(each.id for each in self._others)]
