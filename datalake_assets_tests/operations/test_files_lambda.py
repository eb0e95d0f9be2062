"""Dropped objects land through Lambda as through an export: by the real runtime client, on the real S3 server."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from datalake_assets.errors import LakeUnavailable
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.operations import files_lambda
from datalake_assets.settings import load_settings
from datalake_assets_tests.operations.lambda_runtime import LambdaFunction
from datalake_assets_tests.sources.files.dropping import Dropping, files_feed

pytestmark = pytest.mark.s3


def record(bucket: str, key: str, name: str = "ObjectCreated:Put") -> dict[str, Any]:
    return {
        "eventSource": "aws:s3",
        "eventName": name,
        "eventTime": "2025-03-01T12:00:00.000Z",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key.replace(" ", "+"), "size": 1, "sequencer": "1"}},
    }


def wrapped(event: dict[str, Any], how: str) -> dict[str, Any]:
    """The event as Lambda gives it of a queue or a topic."""
    if how == "sqs":
        return {"Records": [{"eventSource": "aws:sqs", "body": json.dumps(event)}]}
    if how == "sns":
        return {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": json.dumps(event)}}]}
    return event


def test_objects_land_once_however_they_are_told_of(s3_server, s3_lake, s3_environment, tmp_path):
    bucket, _, prefix = s3_lake.removeprefix("s3://").partition("/")
    lake, place = f"{s3_lake}-lake", f"{prefix}/drop"
    store = open_store(lake, s3=S3Access(endpoint=s3_server.endpoint))
    feed = files_feed(f"s3://{bucket}/{place}")
    FeedRegistry(store).add(feed)
    client = boto3.Session().client("s3", endpoint_url=s3_server.endpoint)

    def put(name: str, body: str) -> str:
        client.put_object(Bucket=bucket, Key=f"{place}/{name}", Body=body.encode())
        return f"{place}/{name}"

    environment = {**os.environ, "DATALAKE_LAKE": lake}
    with LambdaFunction("datalake_assets.operations.files_lambda.handler", environment) as function:
        event = {"Records": [record(bucket, put("a b.csv", "id\n1\n")), record(bucket, "elsewhere/c.csv")]}
        began = time.monotonic()
        answer, failed = function.invoke(event)
        print(f"cold start: {time.monotonic() - began:.2f} s")
        assert (answer, failed) == ({"feeds": {"s": {"rows_added": 1, "rows_quarantined": 0}}, "ignored": 1}, False)
        for number, how in enumerate(("s3", "sqs", "sns"), 2):
            again = record(bucket, put(f"{number}.csv", f"id\n{number}\n"))
            told = wrapped({"Records": [*event["Records"][:1], again]}, how)
            began = time.monotonic()
            assert function.invoke(told)[0]["feeds"]["s"]["rows_added"] == 1
            print(f"warm: {time.monotonic() - began:.3f} s")
        removed = {"Records": [record(bucket, f"{place}/2.csv", "ObjectRemoved:Delete")]}
        assert function.invoke(removed) == ({"feeds": {}, "ignored": 0}, False)
        assert function.invoke({"Records": [record(bucket, put("bad.csv", ""))]})[0]["feeds"]["s"] == {
            "rows_added": 0,
            "rows_quarantined": 1,
        }
        _, failed = function.invoke({"what": "else"})
        assert failed
    assert Dropping(store, tmp_path, feed).rows("id", "source_file") == [
        (1, "a b.csv"),
        (2, "2.csv"),
        (3, "3.csv"),
        (4, "4.csv"),
    ]


@pytest.mark.parametrize("error", [LakeUnavailable("lake", "full"), KeyError("nobody foresaw it")])
def test_a_feed_that_fails_and_a_message_of_somebody_else_stop_no_other_feed(tmp_path, monkeypatch, error):
    for name in ("a", "b"):
        FeedRegistry(open_store(str(tmp_path))).add(files_feed("s3://bucket/drop", name=name))
    lander = files_lambda._Lander(load_settings(lake=str(tmp_path)))
    landed: list[tuple[str, ...]] = []

    def land(_: object, feed: Any, names: tuple[str, ...], __: str) -> dict[str, int]:
        if feed.name == "a":
            raise error
        landed.append(names)
        return {"rows_added": 1, "rows_quarantined": 0}

    monkeypatch.setattr(files_lambda, "_lander", lambda: lander)
    monkeypatch.setattr(files_lambda._Lander, "_landed", land)
    told = wrapped({"Records": [record("bucket", "drop/x.csv")]}, "sqs")
    told["Records"].append({"eventSource": "aws:sqs", "body": "no notification"})
    with pytest.raises(type(error)):
        files_lambda.handler(told, SimpleNamespace(aws_request_id="r"))
    assert landed == [("x.csv",)]
