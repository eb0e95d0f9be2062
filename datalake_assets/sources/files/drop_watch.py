"""Which dropped files are new, without listing the world at each look.

A look lists what follows the last name that was ever seen, and goes on with a round through all names: ten thousand
at a time, from where the last look ended. So a file is found by the next look if its name is the last one, or if S3
sends a notification of it, and whatever its name and its time by the look at which the round passes it. Nothing depends
on the order of times, and nothing but where the round stands is kept between looks.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Any

from datalake_assets.errors import ConfigError
from datalake_assets.sources.files.dropped_objects import DroppedObject, DroppedObjects
from datalake_assets.sources.s3_events import named_objects
from datalake_assets.sources.sqs.sqs_model import SqsSettings

__all__ = ["Round", "look", "named_by", "notified"]

logger = logging.getLogger(__name__)

#: Objects that a look lists of the round, and of those behind the last name.
ROUND_OBJECTS, TAIL_OBJECTS = 10_000, 10_000
#: Times that a look asks a queue for notifications, ten at a time.
RECEIVES = 20


@dataclass(frozen=True, slots=True)
class Round:
    """Where looks have come to.

    Attributes:
        after: The round goes on behind this name.
        last: The last name that was ever seen.
        rounds: Rounds that were ended.
    """

    after: str = ""
    last: str = ""
    rounds: int = 0

    def to_cursor(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, cursor: str) -> Round:
        """The inverse; one that was not begun for a text that is none."""
        try:
            return cls(**json.loads(cursor))
        except (ValueError, TypeError):
            return cls()


def look(place: DroppedObjects, cursor: str, *, most: int = ROUND_OBJECTS) -> tuple[list[DroppedObject], Round]:
    """Lists what a look is to see, and where the next one goes on.

    Args:
        place: Where files are dropped.
        cursor: What the last look gave; empty for the first.
        most: Objects of the round that it lists.

    Raises:
        SourceError: The place cannot be listed.
    """
    known = Round.of(cursor)
    seen = {each.name: each for each in _some(place, known.last, TAIL_OBJECTS)} if known.last else {}
    passed = list(_some(place, known.after, most))
    seen.update((each.name, each) for each in passed)
    is_ended = len(passed) < most
    after = "" if is_ended else passed[-1].name
    last = max((known.last, *seen), key=lambda name: name.encode("utf-8", "surrogateescape"))
    return list(seen.values()), Round(after, last, known.rounds + is_ended)


def named_by(queue_url: str, place: DroppedObjects, settings: SqsSettings) -> list[DroppedObject]:
    """What the notifications in a queue name; one that cannot be asked keeps no look from seeing what it lists.

    Args:
        queue_url: The queue.
        place: Where files are dropped.
        settings: How SQS is reached.

    Raises:
        SourceError: An object could not be looked at.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  half a second, which nobody else pays

    from datalake_assets.sources.sqs.queue import QueueServer, region_of  # noqa: PLC0415  the same

    found: list[DroppedObject] = []
    try:
        with closing(QueueServer(region_of(queue_url), settings)) as server:
            for each in notified(server.client, queue_url, place):
                found.append(each)  # noqa: PERF402  those before a failure count
    except (BotoCoreError, ClientError, ConfigError) as error:
        logger.warning("queue %s could not be asked, files are found by their listing: %s", queue_url, error)
    return found


def notified(client: Any, queue_url: str, place: DroppedObjects) -> Iterator[DroppedObject]:
    """The objects that S3's notifications in a queue name, as they are by now; takes these messages off the queue.

    A message that is lost with this process loses no file: the round passes it.

    Args:
        client: boto3's of SQS.
        queue_url: The queue.
        place: Where files are dropped.

    Raises:
        SourceError: An object could not be looked at.
    """
    prefix = place.uri.partition("://")[2]
    for _ in range(RECEIVES):
        answer = client.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10)
        messages = answer.get("Messages", [])
        if not messages:
            return
        for message in messages:
            with suppress(ValueError):  # a message of somebody else's
                for named in named_objects(message["Body"]):
                    key = f"{named.bucket}/{named.key}"
                    found = place.find(key[len(prefix) :]) if key.startswith(prefix) and not named.is_removed else None
                    if found is not None:
                        yield found
        entries = [{"Id": str(number), "ReceiptHandle": each["ReceiptHandle"]} for number, each in enumerate(messages)]
        client.delete_message_batch(QueueUrl=queue_url, Entries=entries)


def _some(place: DroppedObjects, after: str, most: int) -> Iterator[DroppedObject]:
    return itertools.islice(place.list(after=after), most)
