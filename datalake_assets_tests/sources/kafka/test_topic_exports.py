"""Messages of a topic land once each, whatever happens to it in between. On a real broker."""

from __future__ import annotations

import json
import time
from contextlib import closing
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, SourceBatch
from datalake_assets.errors import (
    ConfigError,
    SourceDataLost,
    SourceRecreated,
    SourceRefused,
    SourceUnavailable,
)
from datalake_assets.feed import parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.kafka import topic_reading
from datalake_assets.sources.kafka.brokers import Brokers
from datalake_assets.sources.kafka.kafka import connect
from datalake_assets.sources.kafka.kafka_model import KafkaSettings
from datalake_assets.sources.kafka.messages import KeptMessage, MessageLayout, plain_values
from datalake_assets.sources.systems import system
from datalake_assets_tests.sources.kafka.conftest import feed_of, land, landed

pytestmark = pytest.mark.xdist_group("kafka")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def numbers(some):
    return [{"n": number} for number in some]


def test_messages_land_once_with_what_kafka_says_of_them(store, kafka, topic):
    feed = feed_of(topic, fields={"n": "long not null"}, headers=True)
    topic.send(numbers(range(3)), keys=["a", None, "b"], headers=[("h", b"\x00"), ("h", None)], timestamp=1735689600123)

    assert land(store, kafka, feed).rows_added == 3
    assert land(store, kafka, feed).rows_read == 0
    topic.send([None, '{"n": 4, "m": [1]}'], keys=["b", "c"])
    assert land(store, kafka, feed).rows_added == 2

    rows = landed(store, feed, "n", "other_fields", "kafka_key", "kafka_tombstone", "kafka_partition", "kafka_offset")
    assert sorted(rows, key=lambda row: row[-1]) == [
        (0, None, "a", False, 0, 0),
        (1, None, None, False, 0, 1),
        (2, None, "b", False, 0, 2),
        (None, None, "b", True, 0, 3),
        (4, '{"m":[1]}', "c", False, 0, 4),
    ]
    headers, moments = zip(*landed(store, feed, "kafka_headers", "kafka_timestamp")[:1], strict=True)
    assert headers == ([{"name": "h", "value": b"\x00"}, {"name": "h", "value": None}],)
    assert moments[0].isoformat() == "2025-01-01T00:00:00.123000+00:00"


@pytest.mark.parametrize(("value", "expected"), [("text", ["x", "{}"]), ("binary", [b"x", b"{}"])])
def test_values_land_as_they_are(store, kafka, topic, value, expected):
    feed = feed_of(topic, value=value, key="ignore", tombstones="ignore")
    topic.send([b"x", None, b"{}"])
    assert land(store, kafka, feed).rows_added == 2
    assert landed(store, feed, "value") == expected


def test_bad_messages_wait_in_quarantine_and_hold_up_nobody(store, kafka, topic):
    feed = feed_of(topic, fields={"n": "int not null"})
    topic.send(['{"n": 1}', b"\xff\x00", '{"n": "x"}', '{"n": 4}', '{"n": 1, "n": 2}'])

    report = land(store, kafka, feed)

    assert (report.rows_added, report.rows_quarantined) == (2, 3)
    assert sorted(landed(store, feed, "n")) == [1, 4]
    assert land(store, kafka, feed).rows_read == 0


def test_what_is_written_while_it_is_read_ends_no_read_late(store, kafka, topic):
    feed = feed_of(topic)
    topic.send(["x"] * 100)
    read = iter(kafka.read(feed, open_plan(store, feed)))
    begun = [next(read), next(read)]  # the first one says where each partition begins
    topic.send(["y"] * 100)
    assert sum(batch.rows.num_rows for batch in (*begun, *read)) == 100
    assert land(store, kafka, feed).rows_added == 200


def open_plan(store, feed):
    return open_table(store, feed).plan().request


def test_transactions_land_if_they_were_committed(store, kafka, topic):
    feed = feed_of(topic)
    with topic.transaction() as aborted:
        for value in ("a", "b"):
            aborted.produce(topic.name, value, partition=0)
        aborted.flush(10)
        aborted.abort_transaction(10)
    with topic.transaction() as committed:
        committed.produce(topic.name, "c", partition=0)
        committed.commit_transaction(10)
    assert land(store, kafka, feed).rows_added == 1

    with topic.transaction() as running:
        running.produce(topic.name, "d", partition=0)
        running.flush(10)
        assert land(store, kafka, feed).rows_read == 0
        running.commit_transaction(10)
    assert land(store, kafka, feed).rows_added == 1
    assert landed(store, feed, "value") == ["c", "d"]


def test_markers_that_expired_are_no_loss(store, kafka, topic):
    feed = feed_of(topic)
    with topic.transaction() as committed:
        committed.produce(topic.name, "a", partition=0)
        committed.commit_transaction(10)
    assert land(store, kafka, feed).rows_added == 1
    topic.delete_before(2)  # the message, and the marker behind it
    assert land(store, kafka, feed).rows_read == 0
    topic.send(["b"])
    assert land(store, kafka, feed).rows_added == 1


def test_messages_that_expired_unread_are_an_alarm(store, kafka, topic):
    feed = feed_of(topic)
    topic.send(["x"] * 3)
    land(store, kafka, feed)
    topic.send(["y"] * 3)
    topic.delete_before(5)

    with pytest.raises(SourceDataLost, match="rows from offset 3 to 4 expired"):
        land(store, kafka, feed)
    assert land(store, kafka, feed, new_epoch=True).rows_added == 1
    topic.send(["z"])
    assert land(store, kafka, feed).rows_added == 1


def test_messages_that_expired_in_a_partition_which_was_empty_are_an_alarm(store, kafka, kafka_server):
    topic = kafka_server.topic(2)
    feed = feed_of(topic)
    assert land(store, kafka, feed).rows_read == 0
    topic.send(["x"])
    assert land(store, kafka, feed).rows_added == 1
    topic.send(["y"] * 3, partition=1)
    topic.delete_before(2, partition=1)

    with pytest.raises(SourceDataLost, match="partition 1: rows from offset 0 to 1 expired"):
        land(store, kafka, feed)
    assert land(store, kafka, feed, new_epoch=True).rows_added == 1
    topic.send(["z"], partition=1)
    assert land(store, kafka, feed).rows_added == 1


def test_messages_that_expired_in_a_partition_which_has_come_since_are_an_alarm(store, kafka, kafka_server):
    topic = kafka_server.topic(2)
    feed = feed_of(topic)
    topic.send(["x"] * 3, partition=1)
    topic.delete_before(2, partition=1)
    assert land(store, kafka, feed).rows_added == 1  # a feed begins with what there is
    topic.grow(3)
    topic.send(["y"] * 3, partition=2)
    topic.delete_before(1, partition=2)

    with pytest.raises(SourceDataLost, match="partition 2: rows from offset 0 to 0 expired"):
        land(store, kafka, feed)
    assert land(store, kafka, feed, new_epoch=True).rows_added == 2
    topic.send(["z"], partition=2)
    assert land(store, kafka, feed).rows_added == 1


def test_a_feed_that_reads_another_topic_is_an_alarm_though_brokers_tell_no_ids(
    store, kafka, kafka_server, monkeypatch
):
    monkeypatch.setattr(Brokers, "topic_id", lambda *_: "")
    topic, other = kafka_server.topic(), kafka_server.topic()
    topic.send(["x"] * 2)
    other.send(["y"] * 3)
    assert land(store, kafka, feed_of(topic)).rows_added == 2

    with pytest.raises(SourceRecreated, match=f"is of topic {topic.name}, and it reads topic {other.name}"):
        land(store, kafka, feed_of(other))
    assert land(store, kafka, feed_of(other), new_epoch=True).rows_added == 3
    monkeypatch.setattr(Brokers, "topic_id", lambda *_: "an-id")  # after their upgrade
    other.send(["z"])
    assert land(store, kafka, feed_of(other)).rows_added == 1
    monkeypatch.setattr(Brokers, "topic_id", lambda *_: "another-id")
    with pytest.raises(SourceRecreated, match="it was created anew"):
        land(store, kafka, feed_of(topic))


def test_a_topic_that_was_created_anew_is_an_alarm(store, kafka, kafka_server):
    topic = kafka_server.topic()
    feed = feed_of(topic)
    topic.send(["x"] * 3)
    land(store, kafka, feed)
    topic.delete()
    again = recreated(kafka_server, topic.name)
    again.send(["x", "y"])

    with pytest.raises(SourceRecreated, match="ends at offset 1, but offsets below 3 were landed"):
        land(store, kafka, feed)
    assert land(store, kafka, feed, new_epoch=True).rows_added == 2
    again.send(["z"])
    assert land(store, kafka, feed).rows_added == 1


def recreated(kafka_server, name):
    deadline = time.monotonic() + 60
    while True:
        try:
            return kafka_server.topic(name=name)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_feed_of_ksqldb_goes_on_with_the_topic_behind_it(store, kafka, topic):
    before = parse_feed('{"name": "events", "kind": "stream", "source": {"object": "EVENTS"}}')
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    schema = pa.schema([("n", pa.int64()), ("rowtime", pa.timestamp("ms", "UTC"))])
    rows = pa.RecordBatch.from_pylist([{"n": n, "rowtime": moment} for n in range(3)], schema=schema)
    read = SourceBatch(rows, pa.array([0, 0, 0], pa.int32()), pa.array([0, 1, 2]))
    table = open_table(store, before)
    table.write(InMemoryBatches((read,), "rowtime"), partitions=table.plan().partitions, run_id="ksqldb")

    topic.send(numbers(range(5)), timestamp=int(moment.timestamp() * 1000))
    rename = {"kafka_timestamp": "rowtime"}
    no_more = {"key": "ignore", "tombstones": "ignore", "undeclared": "ignore", "positions": False}
    after = feed_of(topic, fields={"n": "long"}, rename=rename, **no_more)

    report = land(store, kafka, after)

    assert (report.rows_read, report.rows_added) == (2, 2)
    assert sorted(landed(store, after, "n")) == [0, 1, 2, 3, 4]


def test_a_consumer_group_is_told_what_was_landed(store, kafka, kafka_server, topic):
    feed = feed_of(topic, group="lag")
    topic.send(["x"] * 3)
    land(store, kafka, feed)

    looked = Consumer({"bootstrap.servers": kafka_server.servers, "group.id": "lag"})
    assert looked.committed([TopicPartition(topic.name, 0)], timeout=60)[0].offset == 3
    looked.close()


def test_topics_are_listed(kafka, topic):
    assert topic.name in {each.name for each in kafka.discover()}


def test_brokers_that_are_not_there_are_an_error_in_time(store, topic):
    absent = connect(KafkaSettings(kafka_servers="127.0.0.1:1", kafka_timeout_s=1))
    with pytest.raises(SourceUnavailable, match=r"kafka://127\.0\.0\.1:1"):
        land(store, absent, feed_of(topic))


def test_a_topic_that_is_not_there_is_refused(store, kafka, topic):
    topic.name = "nothere"
    with pytest.raises(SourceRefused):
        land(store, kafka, feed_of(topic))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "set DATALAKE_KAFKA_SERVERS"),
        ({"kafka_servers": "h:1", "kafka_security": "sasl_ssl"}, "needs DATALAKE_KAFKA_USER"),
        ({"kafka_servers": "h:1", "kafka_ca_file": "/not/there.pem"}, "there is no file /not/there.pem"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        system("kafka").open(KafkaSettings(**settings))


def test_a_file_that_is_no_certificate_is_refused_and_patience_has_no_limit(tmp_path):
    pem = tmp_path / "ca.pem"
    pem.write_text("nonsense")
    settings = KafkaSettings(kafka_servers="127.0.0.1:1", kafka_security="ssl", kafka_ca_file=str(pem))
    with pytest.raises(ConfigError, match=r"ssl\.ca\.location"):
        list(connect(settings).discover())
    with Brokers(KafkaSettings(kafka_servers="127.0.0.1:1", kafka_timeout_s=3600)).connection():
        pass


@pytest.mark.parametrize("raw", [b"{}", b"[]", b'{"partition": 0, "offset": 1, "timestamp": [1, 1], "headers": []}'])
def test_a_line_of_quarantine_that_is_no_message_stays_there_alone(raw):
    feed = parse_feed(json.dumps({"name": "e", "kind": "stream", "source": SOURCE}))
    kafka = connect(KafkaSettings(kafka_servers="127.0.0.1:1"))
    good = KeptMessage.of(message(1, '{"n": 1, "at": "2026-01-01T00:00:00Z"}')).to_json()
    batch = kafka.decode(feed, [raw, good])
    assert (batch.rows.num_rows, [each.raw for each in batch.rejected]) == (1, [raw])


@pytest.mark.parametrize(
    "odd",
    [
        '{"n": 2, "at": "2026-01-02T00:00:00+01:00"}',
        '{"n": 2}',
        '{"n": 2, "at": "2026-01-02T10Z"}',
        '{"n": 2, "at" : "2026-01-02T00:00:00Z"}',
        '{"n": 2,\n"at": "2026-01-02T00:00:00Z"}',
        '{"n": 2, "at": "2026-01-02T00:00:00Z", "m": 1}',
        '{"n": 2, "n": 3, "at": "2026-01-02T00:00:00Z"}',
        '{"n": 2, "at": "2026-01-02T00:00:00.1234567Z"}',
        '{"n": 2, "at": "2026-01-02T00:00:00Z"}\n{"n": 3, "at": "2026-01-02T00:00:00Z"}',
        "",
        None,
    ],
)
def test_messages_come_to_the_same_at_once_and_one_by_one(odd):
    feed = parse_feed(json.dumps({"name": "e", "kind": "stream", "source": SOURCE}))
    layout = MessageLayout(feed, plain_values(feed.exported_from))
    values = ['{"n": 1, "at": "2026-01-01T00:00:00.5Z"}', odd, '{"n": null, "at": "2026-01-03T00:00:00Z"}']
    some = [message(number, value) for number, value in enumerate(values)]

    together = layout.batch(some)
    alone = [layout.batch([each]) for each in some]

    assert together.rows.to_pylist() == [row for each in alone for row in each.rows.to_pylist()]
    assert together.source_offsets.to_pylist() == [n for each in alone for n in each.source_offsets.to_pylist()]
    assert together.rejected == tuple(row for each in alone for row in each.rejected)


def test_a_message_that_was_sent_without_a_timestamp_has_none():
    feed = parse_feed(json.dumps({"name": "e", "kind": "stream", "source": SOURCE}))
    layout = MessageLayout(feed, plain_values(feed.exported_from))
    found = layout.batch([message(number, '{"n": 1, "at": "2026-01-01T00:00:00Z"}') for number in (-1, 0)])
    assert found.rows["kafka_timestamp"].cast(pa.int64()).to_pylist() == [None, 0]


SOURCE = {"type": "kafka", "topic": "t", "fields": {"n": "long", "at": "timestamptz"}}


def message(number, value):
    document = {"partition": 0, "offset": number, "timestamp": [1, number], "key": "k", "value": value, "headers": []}
    return KeptMessage(document)


def test_a_topic_is_followed_beyond_its_end_and_read_on_from_where_it_was(store, kafka, kafka_server):
    topic = kafka_server.topic(partitions=2)
    feed = feed_of(topic, fields={"n": "long"})
    topic.send(numbers(range(3)))
    with closing(iter(reading := kafka.follow(feed, open_plan(store, feed)))) as rows:
        given = _until(rows, 3)
        topic.send(numbers(range(3, 5)), partition=1)
        given += _until(rows, 2)
        assert next(rows).rows.num_rows == 0
    assert sorted(each["n"] for each in given) == list(range(5))
    assert reading.unfinished == ""
    start = ReadRequest(start_offsets={0: 2, 1: 1})
    with closing(iter(kafka.follow(feed, start))) as rows:
        assert sorted(each["n"] for each in _until(rows, 2)) == [2, 4]
    with pytest.raises(SourceRecreated), closing(iter(kafka.follow(feed, ReadRequest(start_offsets={0: 9})))) as rows:
        next(rows)


def test_a_topic_that_gets_partitions_is_read_anew(store, kafka, kafka_server, monkeypatch):
    monkeypatch.setattr(topic_reading, "_LOOK_S", 0.2)
    topic = kafka_server.topic(partitions=1)
    feed = feed_of(topic, fields={"n": "long"})
    with closing(iter(kafka.follow(feed, open_plan(store, feed)))) as rows:
        assert next(rows).rows.num_rows == 0
        monkeypatch.setattr(Brokers, "partitions", lambda *_: [0, 1])
        assert sum(batch.rows.num_rows for batch in rows) == 0  # it ends


def test_a_topic_that_is_created_anew_while_it_is_followed_is_an_alarm(store, kafka, topic, monkeypatch):
    monkeypatch.setattr(topic_reading, "_LOOK_S", 0.2)
    feed = feed_of(topic, fields={"n": "long"})
    ids = iter(["one", "", "one", "other", "other"])  # an id that is not told says nothing
    monkeypatch.setattr(Brokers, "topic_id", lambda *_: next(ids))
    with closing(iter(kafka.follow(feed, open_plan(store, feed)))) as rows:
        known = next(rows).source_id
        assert sum(batch.rows.num_rows for batch in rows) == 0  # it ends
    with pytest.raises(SourceRecreated, match="its id is other"):
        next(iter(kafka.follow(feed, ReadRequest(start_offsets={0: 0}, source_id=known))))
    assert not [*ids]


def _until(rows, count):
    """Rows of an endless read, until there are so many."""
    found, ends = [], time.monotonic() + 60
    while len(found) < count:
        found += next(rows).rows.to_pylist()
        assert time.monotonic() < ends
    return found
