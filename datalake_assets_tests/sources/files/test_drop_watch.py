"""Looks at a place see each file, whatever its name, and list no more than a part of what there is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.core.batches import ReadRequest
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.files.drop_watch import Round, look, notified
from datalake_assets.sources.files.dropped_objects import DroppedObject, is_drop
from datalake_assets.sources.systems import connect
from datalake_assets_tests.sources.files.dropping import DROPPED, Dropping, files_feed


class Listed:
    """A place of names alone, as S3 lists them."""

    uri, are_whole = "s3://bucket/drop/", True

    def __init__(self, names: list[str]) -> None:
        self.names, self.requests = names, Counter[str]()

    def list(self, *, after: str = "") -> Iterator[DroppedObject]:
        for name in sorted(self.names, key=str.encode):
            if name.encode() > after.encode():
                self.requests["objects"] += 1
                yield DroppedObject(name, 1, DROPPED, "v")

    def find(self, name: str) -> DroppedObject | None:
        return DroppedObject(name, 1, DROPPED, "v") if name in self.names else None


NAMES = st.text("abcdé/0", min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(NAMES, unique=True, max_size=20), st.lists(NAMES, unique=True, max_size=5), st.integers(1, 7))
def test_every_file_is_seen_within_a_round_after_it_came(before, later, most):
    place, cursor = Listed(before), ""
    for _ in range(3):
        _, after = look(place, cursor, most=most)
        cursor = after.to_cursor()
    place.names = sorted({*before, *later})
    seen: set[str] = set()
    for _ in range(2 * (len(place.names) // most + 2)):
        found, after = look(place, cursor, most=most)
        cursor = after.to_cursor()
        seen |= {each.name for each in found}
    assert seen == set(place.names)


def test_a_file_of_the_last_name_is_seen_at_once_and_little_is_listed():
    place = Listed([f"{number:06}" for number in range(3000)])
    cursor = Round(after="000500", last="002999").to_cursor()
    place.names.append("003000")
    found, after = look(place, cursor, most=100)
    assert "003000" in {each.name for each in found}
    assert place.requests["objects"] <= 102
    assert (after.after, after.last, after.rounds) == ("000600", "003000", 0)


@pytest.mark.parametrize("cursor", ["", "x", "{}", "[1]", '{"other": 1}'])
def test_a_cursor_that_is_none_begins_anew(cursor):
    assert look(Listed(["a"]), cursor)[1] == Round("", "a", 1)


class Queue:
    """What of SQS a look needs."""

    def __init__(self, bodies: list[str]) -> None:
        self.waiting = {str(number): body for number, body in enumerate(bodies)}

    def receive_message(self, **_: Any) -> dict[str, Any]:
        return {"Messages": [{"Body": body, "ReceiptHandle": id_} for id_, body in list(self.waiting.items())[:10]]}

    def delete_message_batch(self, *, Entries: list[dict[str, str]], **_: Any) -> None:  # noqa: N803  boto3's
        for each in Entries:
            del self.waiting[each["ReceiptHandle"]]


def event(bucket: str, key: str, name: str = "ObjectCreated:Put") -> str:
    record = {
        "eventSource": "aws:s3",
        "eventName": name,
        "eventTime": "2025-03-01T12:00:00.000Z",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 1, "eTag": "e", "sequencer": "1"}},
    }
    return json.dumps({"Records": [record]})


def test_notifications_name_files_that_are_there_and_are_taken_off_the_queue():
    queue = Queue(
        [
            *(event("bucket", f"drop/{number}.csv") for number in range(25)),
            event("bucket", "drop/gone.csv"),
            event("bucket", "drop/0.csv", "ObjectRemoved:Delete"),
            event("other", "drop/1.csv"),
            event("bucket", "elsewhere/2.csv"),
            "no notification",
        ]
    )
    place = Listed([f"{number}.csv" for number in range(30)])
    assert sorted(each.name for each in notified(queue, "url", place)) == sorted(f"{n}.csv" for n in range(25))  # type: ignore[arg-type]
    assert queue.waiting == {}


def test_news_are_the_files_that_are_not_landed(tmp_path, local_store):
    folder = tmp_path / "drop"
    folder.mkdir()
    dropping = Dropping(local_store, folder, files_feed(str(folder), source={"pattern": "*.csv"}))
    dropping.drop("a.csv", "id\n1\n")
    dropping.export()
    dropping.drop("b.csv", "id\n2\n", at=DROPPED - timedelta(days=99))
    dropping.drop("c.txt", "id\n3\n")
    landed = open_table(local_store, dropping.feed).plan().request.landed
    assert landed is not None
    with connect("files", load_settings()) as source:
        news = source.news(dropping.feed, landed, "")  # type: ignore[attr-defined]  it tells news
        assert (news.items, news.looked_at) == (("b.csv",), 3)
        batches = source.read(dropping.feed, ReadRequest(landed=landed, items=news.items))
        table = open_table(local_store, dropping.feed)
        table.write(batches, partitions=table.plan().partitions, run_id="r")
        assert source.news(dropping.feed, landed, news.cursor).items == ()  # type: ignore[attr-defined]
    assert dropping.rows("id") == [(1,), (2,)]


def test_a_queue_that_cannot_be_asked_keeps_no_file_from_being_found(tmp_path, local_store, monkeypatch, caplog):
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:1")
    monkeypatch.setattr("datalake_assets.sources.sqs.queue.ATTEMPTS", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    url = "https://sqs.eu-north-1.amazonaws.com/1/q"
    (tmp_path / "drop").mkdir()
    dropping = Dropping(
        local_store, tmp_path / "drop", files_feed(str(tmp_path / "drop"), source={"events_queue": url})
    )
    dropping.drop("a.csv", "id\n1\n")
    landed = open_table(local_store, dropping.feed).plan().request.landed
    assert landed is not None
    with connect("files", load_settings()) as source:
        news = source.news(dropping.feed, landed, "")  # type: ignore[attr-defined]  it tells news
    assert news.items == ("a.csv",)
    assert "could not be asked" in caplog.text


@pytest.mark.xdist_group("sqs")
def test_a_queue_is_asked_by_the_settings_of_queues(tmp_path, local_store, monkeypatch, sqs_server):
    for name, value in sqs_server.environment().items():
        monkeypatch.setenv(name, value)
    queue = sqs_server.queue()
    queue.send([json.dumps({"Records": []})])
    (tmp_path / "drop").mkdir()
    feed = files_feed(str(tmp_path / "drop"), source={"events_queue": queue.url})
    landed = open_table(local_store, feed).plan().request.landed
    assert landed is not None
    with connect("files", load_settings()) as source:
        source.news(feed, landed, "")  # type: ignore[attr-defined]  it tells news
    assert queue.left == (0, 0)


def test_names_of_what_is_not_finished_are_no_drops():
    good = ["a.csv", "x/b.csv", "-.csv"]
    bad = [".a.csv", "_a.csv", "x/.b", "_tmp/a.csv", "a/"]
    assert [name for name in (*good, *bad) if is_drop(name)] == good
    assert is_drop("x/b.csv", "x/*.csv")
    assert not is_drop("y/b.csv", "x/*.csv")
