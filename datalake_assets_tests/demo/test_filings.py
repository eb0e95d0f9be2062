"""The demo's queue of filings: as SQS's own client sees it, over processes that come and go."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import botocore.session
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from datalake_assets.demo.demo_feeds import demo_queues
from datalake_assets.demo.demo_lake import DemoLake, demo_stand_in, prepare_demo, read_demo
from datalake_assets.demo.filings import QUEUE, QUEUE_REGION, FilingsQueue
from datalake_assets.feed import Feed
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.systems import connect

NOW = datetime(2025, 3, 2, 12, tzinfo=UTC)


def sent(count: int) -> DemoLake:
    return DemoLake(start=NOW.date(), events_per_day=10).with_filings(count, now=NOW)


class _Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now.timestamp()


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def client_of(queue: FilingsQueue):
    return botocore.session.Session().create_client(
        "sqs", region_name=QUEUE_REGION, endpoint_url=queue.url, config=Config(signature_version=UNSIGNED)
    )


def test_messages_are_hidden_given_again_and_gone_once_deleted(clock):
    demo = sent(12)
    with FilingsQueue(demo.filings, seed=7, clock=clock) as queue:
        sqs = client_of(queue)
        url = sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"]
        first = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"])["Messages"]
        rest = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
        assert (len(first), len(rest), "Messages" in sqs.receive_message(QueueUrl=url)) == (10, 2, False)
        assert first[0]["Attributes"] == {
            "SentTimestamp": str(int(NOW.timestamp() * 1000)),
            "ApproximateReceiveCount": "1",
        }
        entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(first)]
        sqs.delete_message_batch(QueueUrl=url, Entries=entries)
        hidden = {"Id": "0", "ReceiptHandle": rest[0]["ReceiptHandle"], "VisibilityTimeout": 600}
        sqs.change_message_visibility_batch(QueueUrl=url, Entries=[hidden])
        clock.now += timedelta(seconds=60)
        told = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        counts = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        assert [told[name] for name in counts] == ["1", "1"]
        (again,) = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
        assert again["MessageId"] == rest[1]["MessageId"]
        with pytest.raises(ClientError, match="QueueDoesNotExist"):
            sqs.get_queue_url(QueueName="another")
        sqs.close()
    numbers = {int(json.loads(each["Body"])["accession_number"][:10]) - 1_000_000_000 for each in first}
    assert queue.deleted == numbers


def test_every_process_has_the_same_messages_for_as_long_as_sqs_keeps_them(clock):
    demo = sent(3).without_filings([1])
    given = []
    for days in (0, 13, 14):
        clock.now = NOW + timedelta(days=days)
        with FilingsQueue(demo.filings, seed=7, deleted=demo.filings_deleted, clock=clock) as queue:
            asked = {"QueueUrl": QUEUE, "MaxNumberOfMessages": 10}
            found = queue.answer("ReceiveMessage", asked).get("Messages", [])
            given.append([(each["MessageId"], each["Body"]) for each in found])
    assert given[0] == given[1]
    assert [len(each) for each in given] == [2, 2, 0]


def test_more_filings_are_new_ones_and_documents_of_before_have_none():
    demo = sent(3)
    later = demo.with_filings(5, now=NOW + timedelta(hours=1))
    assert [(each.first, each.count) for each in later.filings] == [(0, 3), (3, 2)]
    assert later.filings[1].since == NOW
    assert later.with_filings(4, now=NOW) == later
    assert later.without_filings([0, 1]).without_filings([2, 4]).filings_deleted == ((0, 2), (4, 4))
    old = DemoLake.model_validate_json(DemoLake(start=NOW.date(), events_per_day=1).to_bytes())
    assert (old.filings, old.filings_deleted) == ((), ())


def _exported(store: Store, feed: Feed) -> tuple[int, int]:
    table = open_table(store, feed)
    with demo_stand_in(load_settings(), store, {"sqs"}) as settings, connect("sqs", settings) as source:
        plan = table.plan()
        done = table.write(source.read(feed, plan.request), partitions=plan.partitions, run_id="run")
    return done.rows_added, done.rows_read


def test_filings_are_landed_once_by_month_without_credentials(local_store, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "DATALAKE_SQS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (feed,) = demo_queues(prepare_demo(local_store, 600).start)

    assert _exported(local_store, feed) == (60, 60)
    assert _exported(local_store, feed) == (0, 0), "what was deleted is written down"
    demo = read_demo(local_store)
    assert demo is not None
    local_store.put("control/demo.json", demo.model_copy(update={"filings_deleted": ()}).to_bytes())  # as after a kill
    assert _exported(local_store, feed) == (0, 60)
    prepare_demo(local_store, 800)
    assert _exported(local_store, feed) == (20, 20)

    rows = open_table(local_store, feed).scan(columns=["accession_number", "filed_at", "year", "month"]).read_all()
    assert len(set(rows["accession_number"].to_pylist())) == rows.num_rows == 80
    assert len(open_table(local_store, feed).partitions()) >= 3
    for row in rows.to_pylist():
        assert (row["filed_at"].year, row["filed_at"].month) == (row["year"], row["month"])
