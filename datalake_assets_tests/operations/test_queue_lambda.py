"""Messages land through Lambda as through an export: by the real runtime client, on a real queue."""

from __future__ import annotations

import json
import time

import pytest

from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.operations.lambda_runtime import LambdaFunction
from datalake_assets_tests.sources.sqs.conftest import bodies, feed_of, landed

pytestmark = pytest.mark.xdist_group("sqs")


@pytest.fixture(scope="module")
def place(sqs_server, tmp_path_factory):
    """A queue, its feed in a lake, and the function over both."""
    queue, lake = sqs_server.queue(), tmp_path_factory.mktemp("lake")
    store, feed = open_store(str(lake)), feed_of(queue, max_receives=2, visibility_s=1)
    FeedRegistry(store).add(feed)
    environment = {**sqs_server.environment(), "DATALAKE_LAKE": str(lake)}
    with LambdaFunction("datalake_assets.operations.queue_lambda.handler", environment) as function:
        yield queue, store, feed, function


def event_of(queue, messages):
    """What Lambda gives for messages that it received."""
    return {
        "Records": [
            {
                "messageId": each["MessageId"],
                "receiptHandle": each["ReceiptHandle"],
                "body": each["Body"],
                "attributes": each["Attributes"],
                "messageAttributes": {},
                "md5OfBody": each["MD5OfBody"],
                "eventSource": "aws:sqs",
                "eventSourceARN": queue.attributes["QueueArn"],
                "awsRegion": "us-east-1",
            }
            for each in messages
        ]
    }


def test_messages_land_once_and_poison_comes_again_until_it_is_given_up(place):
    queue, store, feed, function = place
    queue.send([*bodies(range(8)), "not JSON"])
    messages = queue.receive(10)
    (bad,) = [each["MessageId"] for each in messages if each["Body"] == "not JSON"]
    event = event_of(queue, messages)

    began = time.monotonic()
    answers = [function.invoke(event)]
    print(f"cold start: {time.monotonic() - began:.2f} s")
    began = time.monotonic()
    answers.append(function.invoke(event))  # Lambda gives a batch again whose answer it has not got
    print(f"warm: {time.monotonic() - began:.3f} s")

    assert answers == [({"batchItemFailures": [{"itemIdentifier": bad}]}, False)] * 2
    assert sorted(landed(store, feed)) == list(range(8))
    assert {row.position for _, row in open_table(store, feed).quarantined()} == {bad}
    for each in event["Records"]:
        each["attributes"] = {**each["attributes"], "ApproximateReceiveCount": "2"}
    assert function.invoke(event) == ({"batchItemFailures": []}, False)


def test_what_an_export_landed_is_known_to_the_function(place, sqs_server):
    queue, store, feed, function = place
    queue.send(bodies(range(100, 103)))
    messages = queue.receive(3)
    event = event_of(queue, messages)
    event["Records"] += event["Records"][:1]  # and one that is there twice
    assert function.invoke(event) == ({"batchItemFailures": []}, False)
    assert [number for number in landed(store, feed) if number >= 100] == [100, 101, 102]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"eventSource": "aws:sns"}, "this function takes events of SQS, not of 'aws:sns'"),
        ({"eventSourceARN": "arn:aws:sqs:us-east-1:0:other"}, "no feed reads arn:aws:sqs:us-east-1:0:other"),
    ],
)
def test_events_of_others_fail_the_function_so_that_nothing_is_deleted(place, change, reason):
    queue, _, _, function = place
    record = {
        "messageId": "m",
        "receiptHandle": "r",
        "body": "{}",
        "attributes": {"SentTimestamp": "1", "ApproximateReceiveCount": "1"},
        "eventSource": "aws:sqs",
        "eventSourceARN": queue.attributes["QueueArn"],
        **change,
    }
    answer, failed = function.invoke({"Records": [record]})
    assert failed
    assert reason in json.dumps(answer)
