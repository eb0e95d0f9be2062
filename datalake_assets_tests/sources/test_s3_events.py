"""Notifications of S3 name objects, whichever way they came."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from datalake_assets.sources.s3_events import NamedObject, named_objects

RECORD = {
    "eventVersion": "2.1",
    "eventSource": "aws:s3",
    "eventTime": "2026-11-29T10:00:00.123Z",
    "eventName": "ObjectCreated:Put",
    "s3": {
        "bucket": {"name": "drop"},
        "object": {
            "key": "in/a+b%2Bc%20%C3%A4.csv",
            "size": 7,
            "eTag": "0123",
            "versionId": "v1",
            "sequencer": "0055AED6DCD90281E5",
        },
    },
}
AT = datetime(2026, 11, 29, 10, 0, 0, 123_000, UTC)
NAMED = NamedObject("drop", "in/a b+c ä.csv", 7, "0123", "v1", "0055AED6DCD90281E5", at=AT)


def notification(*records):
    return json.dumps({"Records": list(records)})


def event_bridge(kind):
    found = {"key": "in/a b+c%20ä.csv", "size": 7, "etag": "0123", "version-id": "v1", "sequencer": "00"}
    detail = {"bucket": {"name": "drop"}, "object": found}
    document = {"source": "aws.s3", "detail-type": kind, "detail": detail, "time": "2026-11-29T10:00:00Z"}
    return json.dumps(document)


def test_notifications_name_objects_by_their_decoded_keys():
    removed = {**RECORD, "eventName": "ObjectRemoved:Delete", "s3": {**RECORD["s3"], "object": {"key": "x"}}}

    first, second = named_objects(notification(RECORD, removed).encode())

    assert first == NAMED
    assert (second.key, second.size_bytes, second.is_removed) == ("x", None, True)


def test_notifications_by_way_of_a_topic_are_unwrapped():
    body = json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": notification(RECORD)})

    assert named_objects(body) == (NAMED,)


def test_events_by_way_of_event_bridge_name_keys_as_they_are():
    (made,) = named_objects(event_bridge("Object Created"))
    (removed,) = named_objects(event_bridge("Object Deleted"))

    assert (made.key, made.etag, made.version, made.is_removed) == ("in/a b+c%20ä.csv", "0123", "v1", False)
    assert removed.is_removed
    assert named_objects(event_bridge("Object Tags Added")) == ()


def test_the_message_that_tests_a_queue_names_none():
    assert named_objects(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "drop"})) == ()


@pytest.mark.parametrize("body", ["", "[]", "{}", "17", '{"Records": [{}]}', notification({"eventSource": "aws:ses"})])
def test_what_is_no_notification_is_refused(body):
    with pytest.raises(ValueError):  # noqa: PT011  JSON's own among them
        named_objects(body)
