"""A queue, through boto3: messages are received, kept from others for longer, deleted, and moved to another queue.

Here SQS's failures become ours, once. boto3 repeats what may be repeated, in its ``standard`` mode; a request of many
entries can fail for some of them, which are told apart.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from botocore import UNSIGNED

from datalake_assets.core.batches import Backlog
from datalake_assets.errors import SourceError, SourceRefused, SourceUnavailable
from datalake_assets.sources.aws_clients import AwsClients, translated
from datalake_assets.sources.sqs.sqs_messages import Message
from datalake_assets.sources.sqs.sqs_model import LONGEST_POLL_S, SqsSettings

__all__ = [
    "BATCH",
    "Queue",
    "QueueAttributes",
    "QueueFull",
    "QueueServer",
    "message_of",
    "region_of",
]

logger = logging.getLogger(__name__)

#: SQS limit: entries of one request, and messages of one answer.
BATCH = 10
#: Attempts at a request that may be repeated.
ATTEMPTS = 5
#: Codes of a service that is busy or restarting; with them, every status from 500 on.
_BUSY = frozenset({"RequestThrottled", "Throttling", "ThrottlingException", "ServiceUnavailable", "InternalFailure"})
_OVER_LIMIT = "OverLimit"
_CONNECTIONS = 64
#: SQS limit: attributes of a message.
_ATTRIBUTES = 10
_SERVER_ERROR = 500
T = TypeVar("T")


class QueueFull(Exception):
    """As many messages are hidden from others as the queue allows; never leaves this package."""


@dataclass(frozen=True, slots=True)
class QueueAttributes:
    """What a queue says of itself.

    Attributes:
        arn: Its name in all of AWS.
        backlog: How many messages it has.
        retention: How long it keeps a message.
        has_redrive: Whether it moves messages to a dead-letter queue by itself.
        by_content: Whether it makes deduplication ids of the bodies.
        by_group: Whether deduplication ids are those of a group alone.
    """

    arn: str
    backlog: Backlog
    retention: timedelta
    has_redrive: bool = False
    by_content: bool = False
    by_group: bool = False

    @classmethod
    def of(cls, found: Mapping[str, str]) -> QueueAttributes:
        """Reads SQS's own names and texts."""
        counts = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        visible, in_flight = (int(found.get(name, 0)) for name in counts)
        return cls(
            arn=found.get("QueueArn", ""),
            backlog=Backlog(visible, in_flight, int(found.get("ApproximateNumberOfMessagesDelayed", 0))),
            retention=timedelta(seconds=int(found.get("MessageRetentionPeriod", 345_600))),
            has_redrive=bool(found.get("RedrivePolicy")),
            by_content=found.get("ContentBasedDeduplication") == "true",
            by_group=found.get("DeduplicationScope") == "messageGroup",
        )


class QueueServer:
    """SQS in one region, or another server that speaks it; holds connections, so close it.

    Args:
        region: The region; empty: that of the settings, or of AWS's conventions.
        settings: The endpoint, and how long to wait.

    Raises:
        ConfigError: The endpoint cannot work, or no region is known.
    """

    def __init__(self, region: str, settings: SqsSettings) -> None:
        clients = AwsClients("sqs", region or settings.sqs_region or "", settings.sqs_endpoint)
        self.region = clients.region
        self.client = clients.client(
            connect_timeout=settings.sqs_timeout_s,
            read_timeout=settings.sqs_timeout_s + LONGEST_POLL_S,
            max_pool_connections=_CONNECTIONS,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            **({"signature_version": UNSIGNED} if settings.sqs_unsigned else {}),
        )

    def names(self) -> Iterator[str]:
        """URLs of all queues of the region, in no order."""
        pages = self.client.get_paginator("list_queues").paginate(PaginationConfig={"PageSize": 1000})
        with translated("the queues of SQS", _refusal):
            for page in pages:
                yield from page.get("QueueUrls", ())

    def queue(self, name_or_url: str) -> Queue:
        """A queue by its name or URL; a name is looked up.

        Raises:
            SourceError: There is none, or it cannot be asked.
        """
        if "://" in name_or_url:
            return Queue(self.client, name_or_url)
        with translated(f"queue {name_or_url!r}", _refusal):
            return Queue(self.client, self.client.get_queue_url(QueueName=name_or_url)["QueueUrl"])

    def close(self) -> None:
        """Closes its connections; idempotent."""
        self.client.close()


def region_of(name_or_url: str) -> str:
    """The region in a queue's URL (SQS endpoints: ``sqs.<region>.amazonaws.com``); empty where it has none."""
    host = name_or_url.partition("://")[2].partition("/")[0]
    parts = host.split(".")
    return parts[1] if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) and parts[0] == "sqs" else ""


class Queue:
    """One queue; may be used by several threads.

    Args:
        client: boto3's client.
        url: The queue's URL.
    """

    def __init__(self, client: Any, url: str) -> None:
        self._client, self.url = client, url
        self.name = url.rpartition("/")[2]

    @property
    def source(self) -> str:
        """What is read, for messages."""
        return f"queue {self.name!r}"

    def attributes(self) -> QueueAttributes:
        """What the queue says of itself; its numbers are approximate.

        Raises:
            SourceError: It could not be asked.
        """
        with translated(self.source, _refusal):
            answer = self._client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])
        return QueueAttributes.of(answer.get("Attributes", {}))

    def receive(self, most: int, *, wait_s: float, visibility_s: int) -> list[Message]:
        """Receives up to 10 messages, and hides them from others.

        Args:
            most: How many, 1 to 10.
            wait_s: How long to wait for the first, 0 to 20.
            visibility_s: How long they are hidden.

        Raises:
            QueueFull: Too many are hidden already.
            SourceError: The queue failed.
        """
        with translated(self.source, _refusal):
            answer = self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=min(most, BATCH),
                WaitTimeSeconds=max(0, min(LONGEST_POLL_S, round(wait_s))),
                VisibilityTimeout=visibility_s,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
            )
        return [_message(each) for each in answer.get("Messages", ())]

    def delete(self, receipts: Sequence[str], threads: Executor) -> int:
        """Deletes messages by their receipts; returns how many could not be deleted, which will come again.

        Raises:
            SourceRefused: Deleting is not allowed.
        """
        return self._in_batches(receipts, threads, lambda entries: self._client.delete_message_batch(**entries))

    def hide(self, receipts: Sequence[str], threads: Executor, *, visibility_s: int) -> int:
        """Hides messages from others for so long from now on; returns how many could not be hidden."""
        change = {"VisibilityTimeout": visibility_s}
        return self._in_batches(
            receipts, threads, lambda entries: self._client.change_message_visibility_batch(**entries), **change
        )

    def _in_batches(self, receipts: Sequence[str], threads: Executor, send: Callable[[Any], Any], **change: int) -> int:
        def run(some: Sequence[str]) -> int:
            left = list(some)
            for _ in range(ATTEMPTS):
                entries = [{"Id": str(number), "ReceiptHandle": each, **change} for number, each in enumerate(left)]
                with translated(self.source, _refusal):
                    failed = send({"QueueUrl": self.url, "Entries": entries}).get("Failed", ())
                again = [left[int(each["Id"])] for each in failed if not each.get("SenderFault")]
                final = len(failed) - len(again)
                if final:
                    reasons = {each.get("Code", "") for each in failed if each.get("SenderFault")}
                    logger.warning("%s: %d messages were not to be had: %s", self.source, final, sorted(reasons))
                if not again:
                    return final
                left = again
            return len(left)

        parts = [receipts[begin : begin + BATCH] for begin in range(0, len(receipts), BATCH)]
        return sum(threads.map(run, parts)) if len(parts) > 1 else sum(map(run, parts))

    def send(self, message: Message, notes: Mapping[str, str]) -> None:
        """Sends a message's body and attributes as a new message, with notes as further attributes if there is room.

        To a FIFO queue in the message's group, and once: the deduplication id is the message's own id.

        Raises:
            SourceError: The queue failed, or refused.
        """
        added = {name: {"DataType": "String", "StringValue": text} for name, text in notes.items() if text}
        attributes = dict([*message.attributes.items(), *added.items()][:_ATTRIBUTES])
        is_fifo = self.name.endswith(".fifo")
        group = {"MessageGroupId": message.group or message.id, "MessageDeduplicationId": message.id}
        with translated(self.source, _refusal):
            self._client.send_message(
                QueueUrl=self.url,
                MessageBody=message.body,
                MessageAttributes=attributes,
                **(group if is_fifo else {}),
            )


def _message(found: Mapping[str, Any]) -> Message:
    system = found.get("Attributes", {})
    return message_of(
        found["MessageId"], found["ReceiptHandle"], found["Body"], system, found.get("MessageAttributes", {})
    )


def message_of(
    id_: str, receipt: str, body: str, system: Mapping[str, str], attributes: Mapping[str, Mapping[str, Any]]
) -> Message:
    """A message of its parts as SQS names them."""
    milliseconds = int(system["SentTimestamp"])
    return Message(
        id=id_,
        receipt=receipt,
        body=body,
        sent_at=datetime.fromtimestamp(milliseconds // 1000, UTC) + timedelta(milliseconds=milliseconds % 1000),
        receives=int(system.get("ApproximateReceiveCount", 1)),
        group=system.get("MessageGroupId", ""),
        deduplication_id=system.get("MessageDeduplicationId", ""),
        sequence=system.get("SequenceNumber", ""),
        attributes={name: _attribute(each) for name, each in attributes.items()},
    )


def _attribute(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """An attribute by the names of the API; events of Lambda write them in other letters, and bytes as base64."""
    kind = found.get("DataType", found.get("dataType", "String"))
    text = found.get("StringValue", found.get("stringValue"))
    if text is not None:
        return {"DataType": kind, "StringValue": text}
    binary = found.get("BinaryValue", found.get("binaryValue", b""))
    return {"DataType": kind, "BinaryValue": base64.b64decode(binary) if isinstance(binary, str) else binary}


def _refusal(source: str, code: str, text: str, status: int) -> SourceError | QueueFull:
    if code == _OVER_LIMIT:
        return QueueFull(source)
    if code in _BUSY or status >= _SERVER_ERROR:
        reason = f"it is busy or restarting ({code}, {status})"
        return SourceUnavailable(source, reason, cure="run it again when the queue is well")
    if code in {"NonExistentQueue", "QueueDoesNotExist"}:
        return SourceRefused(source, "there is no such queue", cure="correct the feed's queue and region")
    return SourceRefused(source, f"it refused: {text or code}", cure="correct the feed or the credentials")
