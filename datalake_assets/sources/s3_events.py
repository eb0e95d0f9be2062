"""S3 event notifications: which objects the messages of a queue name.

S3 tells of new objects in three ways, and each writes an object's key differently: straight to a queue or a topic (keys
are encoded as in a URL's query, with ``+`` for a space), through a topic of SNS (the same, in an envelope), and through
EventBridge (keys as they are).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

__all__ = ["NamedObject", "named_objects"]


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An object that a notification names.

    Attributes:
        bucket: Its bucket.
        key: Its key, decoded.
        size_bytes: Its size; None where the notification has none, as of a deletion.
        etag: Its ETag, without quotes; empty where there is none.
        version: Its version in a bucket that keeps versions; empty where there is none.
        sequencer: Orders events of one key: the later one is the greater as a hexadecimal number, once both are filled
            up with zeros on the right (S3 User Guide, "Event message structure"). Empty where there is none.
        is_removed: Whether the object was deleted, and not made.
        at: When it happened; None where the notification does not say.
    """

    bucket: str
    key: str
    size_bytes: int | None = None
    etag: str = ""
    version: str = ""
    sequencer: str = ""
    is_removed: bool = False
    at: datetime | None = None


def named_objects(body: str | bytes) -> tuple[NamedObject, ...]:
    """The objects that a message names, in its order; none for the message that S3 sends to test a queue.

    Args:
        body: The message's body: of a notification by S3, as it is or wrapped by SNS, or of an event by EventBridge.

    Raises:
        ValueError: It is none of these.
    """
    try:
        return tuple(_named(json.loads(body)))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no notification of S3: {type(error).__name__} {error}") from error


def _named(document: Mapping[str, Any]) -> Iterator[NamedObject]:
    if document.get("Type") == "Notification" and "Message" in document:
        yield from _named(json.loads(document["Message"]))
    elif document.get("Event") == "s3:TestEvent":
        return
    elif document.get("source") == "aws.s3" and "detail" in document:
        yield from _of_event_bridge(document)
    else:
        for record in document["Records"]:
            if record.get("eventSource", "aws:s3") != "aws:s3":
                raise ValueError(f"it is a notification of {record['eventSource']}, not of S3")
            yield _of_record(record)


def _of_record(record: Mapping[str, Any]) -> NamedObject:
    found = record["s3"]["object"]
    return NamedObject(
        bucket=record["s3"]["bucket"]["name"],
        key=unquote_plus(found["key"]),
        size_bytes=found.get("size"),
        etag=str(found.get("eTag", "")).strip('"'),
        version=str(found.get("versionId") or ""),
        sequencer=str(found.get("sequencer", "")),
        is_removed="ObjectRemoved" in record["eventName"] or "LifecycleExpiration" in record["eventName"],
        at=_time(record.get("eventTime")),
    )


#: What EventBridge calls events that bring an object, and that take one away; others, of tags for instance, name none.
_MADE, _REMOVED = frozenset({"Object Created", "Object Restore Completed"}), frozenset({"Object Deleted"})


def _of_event_bridge(document: Mapping[str, Any]) -> Iterator[NamedObject]:
    kind, detail = document["detail-type"], document["detail"]
    found = detail["object"]
    if kind not in _MADE | _REMOVED:
        return
    yield NamedObject(
        bucket=detail["bucket"]["name"],
        key=found["key"],
        size_bytes=found.get("size"),
        etag=str(found.get("etag", "")).strip('"'),
        version=str(found.get("version-id") or ""),
        sequencer=str(found.get("sequencer", "")),
        is_removed=kind in _REMOVED,
        at=_time(document.get("time")),
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
