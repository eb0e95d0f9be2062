"""An SQS server of its own: fauxqs, a pinned package of npm's, in a process of its own on loopback.

It keeps visibility, receive counts, redrive policies, groups and deduplication as SQS does (moto loses messages under
several threads).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datalake_assets_tests.node_servers import AwsServer


class SqsServer(AwsServer):
    """The server, while the context is open; it ends with this process, however that ends."""

    def __init__(self) -> None:
        super().__init__("sqs")

    def queue(self, *, fifo: bool = False, name: str = "", **attributes: str) -> TestQueue:
        """A new queue, of a name that no other has, or of this one."""
        name = name or f"q{uuid.uuid4().hex[:12]}{'.fifo' if fifo else ''}"
        settings = {**({"FifoQueue": "true"} if fifo else {}), **attributes}
        url = self.client.create_queue(QueueName=name, Attributes=settings)["QueueUrl"]
        return TestQueue(self.client, url)


class TestQueue:
    """A queue as its senders and its owner see it: by boto3 alone."""

    __test__ = False

    def __init__(self, client: Any, url: str) -> None:
        self.client, self.url, self.name = client, url, url.rpartition("/")[2]

    def send(self, bodies: Iterable[Any], *, groups: Sequence[str] = (), **more: Any) -> list[str]:
        """Sends bodies, texts or what JSON is made of, and returns their messages' ids, in order."""
        entries = [
            {
                "Id": str(number),
                "MessageBody": body if isinstance(body, str) else json.dumps(body),
                **({"MessageGroupId": groups[number % len(groups)]} if groups else {}),
                **more,
            }
            for number, body in enumerate(bodies)
        ]
        sent: dict[int, str] = {}
        for begin in range(0, len(entries), 10):
            answer = self.client.send_message_batch(QueueUrl=self.url, Entries=entries[begin : begin + 10])
            assert not answer.get("Failed")
            sent |= {int(each["Id"]): each["MessageId"] for each in answer["Successful"]}
        return [sent[number] for number in range(len(entries))]

    @property
    def attributes(self) -> Mapping[str, str]:
        """All that the queue says of itself."""
        found: Mapping[str, str] = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])[
            "Attributes"
        ]
        return found

    @property
    def left(self) -> tuple[int, int]:
        """Messages that can be had, and messages that somebody has."""
        found = self.attributes
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        visible, in_flight = (int(found[name]) for name in names)
        return visible, in_flight

    def receive(self, most: int = 10) -> list[dict[str, Any]]:
        """Receives messages as another consumer would."""
        answer = self.client.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=most, MessageAttributeNames=["All"], AttributeNames=["All"]
        )
        return list(answer.get("Messages", ()))
