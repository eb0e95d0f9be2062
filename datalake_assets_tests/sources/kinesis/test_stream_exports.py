"""Records of a stream land once each, whatever happens to its shards in between. On a real server."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from botocore.stub import Stubber

from datalake_assets.continuous import following
from datalake_assets.core.batches import ReadRequest
from datalake_assets.errors import ConfigError, SourceDataLost, SourceRecreated, SourceRefused, SourceUnavailable
from datalake_assets.feed import parse_feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.kinesis import shard_reading, streams
from datalake_assets.sources.kinesis.kinesis import connect
from datalake_assets.sources.kinesis.kinesis_model import KinesisSettings
from datalake_assets.sources.kinesis.streams import Pace, Stream
from datalake_assets.sources.systems import system
from datalake_assets_tests.sources.kinesis.conftest import feed_of, land, landed, quarantined
from datalake_assets_tests.sources.kinesis.kinesis_server import aggregated

pytestmark = pytest.mark.xdist_group("kinesis")
HOUR = 3600.0


@pytest.fixture
def clock(kinesis_server):
    """Moves the server's clock, until the test is over."""
    yield kinesis_server.shift_clock
    kinesis_server.shift_clock(0)


def numbers(some):
    return [{"n": number} for number in some]


def test_records_land_once_with_what_kinesis_says_of_them(store, kinesis, stream):
    feed = feed_of(stream, fields={"n": "long not null"})
    began = datetime.now(UTC)
    stream.send(['{"n": 0}', '{"n": 1, "m": [1]}', '{"n": 2}'], keys=["a", "é", "b"])

    assert land(store, kinesis, feed).rows_added == 3
    assert land(store, kinesis, feed).rows_read == 0
    stream.send(numbers([3]), keys=["c"])
    assert land(store, kinesis, feed).rows_added == 1

    rows = landed(store, feed, "n", "other_fields", "kinesis_partition_key", "kinesis_shard_id")
    shard = "shardId-000000000000"
    assert rows == [(0, None, "a", shard), (1, '{"m":[1]}', "é", shard), (2, None, "b", shard), (3, None, "c", shard)]
    sequence, sub, arrived = zip(
        *landed(store, feed, "kinesis_sequence_number", "kinesis_sub_sequence_number", "kinesis_arrival_time"),
        strict=True,
    )
    assert [*map(int, sequence)] == sorted({*map(int, sequence)})
    assert all(2**185 < int(each) < 2**186 for each in sequence)
    assert sub == (0, 0, 0, 0)
    assert all(abs(each - began) < timedelta(minutes=5) for each in arrived)


@pytest.mark.parametrize(("value", "expected"), [("text", ["x", "{}"]), ("binary", [b"x", b"{}"])])
def test_values_land_as_they_are(store, kinesis, stream, value, expected):
    feed = feed_of(stream, value=value, key="ignore", positions=False)
    stream.send([b"x", b"{}"])
    assert land(store, kinesis, feed).rows_added == 2
    assert landed(store, feed, "value") == expected
    assert kinesis.read(feed, ReadRequest()).schema.names == ["value", "kinesis_arrival_time"]


def test_bad_records_wait_in_quarantine_and_land_once_the_feed_takes_them(store, kinesis, stream):
    feed = feed_of(stream, fields={"n": "long not null"})
    inner = aggregated([("a", b'{"n": 5}'), ("b", b'{"n": "x"}'), ("c", b'{"n": 7}')])
    stream.send(['{"n": 1}', b"\xff\x00", '{"n": "y"}', inner, '{"n": 4}'])
    report = land(store, kinesis, feed)
    assert (report.rows_added, report.rows_quarantined) == (4, 3)
    assert sorted(landed(store, feed, "n")) == [1, 4, 5, 7]
    assert land(store, kinesis, feed).rows_read == 0

    mended = parse_feed(
        json.dumps(
            feed.model_dump(mode="json") | {"source": {**feed.source.model_dump(mode="json"), "fields": {"n": "json"}}}
        )
    )
    again = kinesis.decode(mended, [each.raw.encode() for each in quarantined(store, feed)] + [b"{}", b"[]"])
    assert again.rows["n"].to_pylist() == ['"y"', '"x"']
    assert again.rows["kinesis_partition_key"].to_pylist() == ["a", "b"]
    assert again.rows["kinesis_sub_sequence_number"].to_pylist() == [0, 1]
    assert len(again.rejected) == 3


def test_rows_that_were_put_aside_are_replayed_once(store, kinesis, stream):
    feed = feed_of(stream, fields={"n": "int not null"}, key="ignore")
    stream.send(['{"n": 1}', aggregated([("a", b'{"n": 4294967296}'), ("a", b'{"n": 2}')]), '{"n": 3}'])
    assert land(store, kinesis, feed).rows_quarantined == 1
    document = feed.model_dump(mode="json")
    document["source"]["fields"] = {"n": "string"}
    other = parse_feed(json.dumps(document | {"name": "texts"}))
    assert land(store, kinesis, other).rows_quarantined == 4  # numbers are no texts
    document["source"]["fields"] = {"n": "json"}
    mended = parse_feed(json.dumps(document | {"name": "texts"}))
    table = open_table(store, mended)
    for added in (4, 0):
        batches = kinesis.read(mended, ReadRequest())
        assert table.replay(batches, lambda raws: kinesis.decode(mended, raws)).rows_added == added
    assert sorted(landed(store, mended, "n")) == ["1", "2", "3", "4294967296"]
    assert land(store, kinesis, mended).rows_read == 0


def test_shards_that_came_of_others_are_read_after_them(store, kinesis, kinesis_server):
    stream = kinesis_server.stream(2)
    feed = feed_of(stream, fields={"n": "long", "key": "string"})
    sent = Counter()

    def send():
        keys = [f"k{number}" for number in range(12)]
        stream.send([{"n": sent[key], "key": key} for key in keys], keys=keys)
        sent.update(keys)

    send()
    stream.split(stream.open_shards()[0])
    send()
    assert land(store, kinesis, feed).rows_added == 24
    send()
    stream.split(stream.open_shards()[-1])
    stream.merge(*stream.open_shards()[:2])
    send()
    stream.merge(*stream.open_shards()[:2])
    send()
    report = land(store, kinesis, feed)
    assert report.rows_added == 36
    assert land(store, kinesis, feed).rows_read == 0

    by_key = {}
    for batch in kinesis.read(feed, ReadRequest()):
        for row in batch.rows.to_pylist():
            by_key.setdefault(row["key"], []).append(row["n"])
    assert by_key == {key: list(range(5)) for key in sent}
    assert Counter(landed(store, feed, "key", "n")) == Counter((key, n) for key in sent for n in range(5))
    hint = open_table(store, feed).plan().request.start_offsets
    ended = [shard for shard in stream.shards() if shard not in stream.open_shards()]
    assert len(ended) == 6
    assert all(shard_reading.is_end(hint[each]) == (each in ended) for each in stream.shards())
    stream.send(numbers([0]))
    assert land(store, kinesis, feed).rows_added == 1


def test_a_closed_shard_waits_until_what_became_of_it_is_listed(store, kinesis, kinesis_server, monkeypatch):
    stream = kinesis_server.stream()
    feed = feed_of(stream)
    stream.send(["a"])
    stream.split(stream.open_shards()[0])
    stream.send(["b"], shard=stream.open_shards()[0])
    listed, real = [], Stream.shards

    def late(self):
        found = real(self)
        listed.append(len(found))
        return {each: shard for each, shard in found.items() if len(listed) > 3 or not shard.parents}

    monkeypatch.setattr(Stream, "shards", late)
    assert land(store, kinesis, feed).rows_added == 2
    assert len(listed) >= 4


def test_what_is_written_while_it_is_read_ends_no_read_late(store, kinesis, stream, monkeypatch):
    monkeypatch.setattr(streams, "ANSWER_RECORDS", 20)
    feed = feed_of(stream)
    stream.send(["x"] * 50)
    rows = 0
    for batch in kinesis.read(feed, ReadRequest()):
        rows += batch.rows.num_rows
        if rows < 50:
            stream.send(["y"])
    assert 50 <= rows < 60


def test_records_that_expired_unread_are_an_alarm(store, kinesis, kinesis_server, clock):
    clock(-30 * HOUR)
    stream = kinesis_server.stream()
    feed = feed_of(stream)
    stream.send(["a"])
    assert land(store, kinesis, feed).rows_added == 1
    stream.send(["lost"])
    clock(-5 * HOUR)
    stream.send(["b"])
    with pytest.raises(SourceDataLost, match="keeps them for 24 h, and shard shardId-000000000000 was read until"):
        land(store, kinesis, feed)
    assert land(store, kinesis, feed, new_epoch=True).rows_added == 1
    clock(-4 * HOUR)
    stream.send(["c"])
    assert land(store, kinesis, feed).rows_added == 1
    assert landed(store, feed, "value") == ["a", "b", "c"]


def test_a_stream_that_was_quiet_for_longer_than_it_keeps_records_is_no_alarm(store, kinesis, kinesis_server, clock):
    clock(-80 * HOUR)
    stream = kinesis_server.stream(2)
    feed = feed_of(stream)
    stream.send(["a"], shard=stream.open_shards()[0])
    assert land(store, kinesis, feed).rows_added == 1
    for hours in (-60, -40, -20):
        clock(hours * HOUR)
        assert land(store, kinesis, feed).rows_read == 0
    stream.split(stream.open_shards()[0])
    stream.send(["b", "c"], keys=["a", "b"])
    clock(-10 * HOUR)
    assert land(store, kinesis, feed).rows_added == 2


def test_a_read_that_took_too_long_goes_on_by_what_was_landed_last(store, kinesis, kinesis_server, monkeypatch):
    stream = kinesis_server.stream(2)
    feed = feed_of(stream)
    stream.send(["a"] * 30, shard=stream.open_shards()[0])
    monkeypatch.setattr(streams, "ANSWER_RECORDS", 20)
    with monkeypatch.context() as patch:
        patch.setattr(shard_reading, "LONGEST_READ_S", 0)
        report = land(store, kinesis, feed)
    assert report.rows_added == 20
    assert "not caught up" in " ".join(report.notes)
    assert land(store, kinesis, feed).rows_added == 10


def test_a_stream_that_was_created_anew_is_an_alarm(store, kinesis, stream, clock):
    feed = feed_of(stream)
    stream.send(["a", "b"])
    assert land(store, kinesis, feed).rows_added == 2
    stream.delete()
    clock(60)
    stream.create(2)
    stream.send(["c"], shard=stream.open_shards()[1])
    with pytest.raises(SourceRecreated, match="the stream was created at"):
        land(store, kinesis, feed)
    assert land(store, kinesis, feed, new_epoch=True).rows_added == 1
    assert land(store, kinesis, feed).rows_read == 0
    assert landed(store, feed, "value") == ["a", "b", "c"]


def test_another_stream_that_was_created_in_the_same_second_is_an_alarm(store, kinesis, kinesis_server):
    other, stream = kinesis_server.stream(), kinesis_server.stream()
    other.send(["lost"])
    stream.send(["a"])
    assert land(store, kinesis, feed_of(stream)).rows_added == 1
    with pytest.raises(SourceRecreated, match="is of another stream"):
        land(store, kinesis, feed_of(other))
    assert land(store, kinesis, feed_of(other), new_epoch=True).rows_added == 1


@pytest.mark.parametrize(
    "refusal",
    [
        ("GetRecords", "ProvisionedThroughputExceededException"),
        ("GetRecords", "ExpiredIteratorException"),
        ("GetShardIterator", "InternalFailure"),
        ("ListShards", "LimitExceededException"),
    ],
)
def test_what_is_refused_for_now_is_asked_again(store, kinesis, kinesis_server, stream, refusal):
    feed = feed_of(stream)
    stream.send(["a", "b"])
    kinesis_server.refuse(*refusal, 1)
    assert land(store, kinesis, feed).rows_added == 2


def test_what_is_refused_for_long_is_an_error_and_loses_nothing(store, kinesis, kinesis_server, stream, monkeypatch):
    monkeypatch.setattr(streams, "ATTEMPTS", 2)
    feed = feed_of(stream)
    stream.send(["a", "b"])
    kinesis_server.refuse("GetRecords", "ProvisionedThroughputExceededException", 2)
    with pytest.raises(SourceUnavailable, match="busy or restarting"):
        land(store, kinesis, feed)
    assert land(store, kinesis, feed).rows_added == 2


def test_a_place_that_is_no_valid_argument_is_a_refusal(store, kinesis, kinesis_server, stream):
    feed = feed_of(stream)
    stream.send(["a"])
    kinesis_server.refuse("GetRecords", "InvalidArgumentException", 1)
    with pytest.raises(SourceRefused, match="it refused"):
        land(store, kinesis, feed)
    assert land(store, kinesis, feed).rows_added == 1


def test_a_shard_is_asked_five_times_in_any_second():
    now, times = [0.0], []

    def wait(seconds):
        now[0] += seconds

    pace = Pace(clock=lambda: now[0], wait=wait)
    for number in range(40):
        pace.keep()
        times.append(now[0])
        now[0] += (0.0, 0.05, 0.3)[number % 3]
    assert all(later - earlier > 0.999 for earlier, later in zip(times, times[5:], strict=False))
    assert times[-1] < 9.0


def test_shards_and_streams_are_listed_page_by_page(kinesis, stream):
    found = kinesis._stream(feed_of(stream))
    shard = {
        "ShardId": "shardId-000000000000",
        "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "1"},
        "SequenceNumberRange": {"StartingSequenceNumber": "5"},
    }
    with Stubber(found._client) as stub:
        stub.add_response("list_shards", {"Shards": [shard], "NextToken": "t"}, {"StreamName": stream.name})
        other = shard | {"ShardId": "shardId-000000000001", "ParentShardId": shard["ShardId"]}
        stub.add_response("list_shards", {"Shards": [other]}, {"NextToken": "t"})
        assert [(each.id, each.parents) for each in found.shards().values()] == [
            ("shardId-000000000000", ()),
            ("shardId-000000000001", ("shardId-000000000000",)),
        ]
        stub.add_response("list_streams", {"StreamNames": ["a"], "HasMoreStreams": True}, {})
        stub.add_response(
            "list_streams", {"StreamNames": ["b"], "HasMoreStreams": False}, {"ExclusiveStartStreamName": "a"}
        )
        assert [each.name for each in kinesis.discover()] == ["a", "b"]


def test_a_stream_that_is_not_there_is_refused(store, kinesis, stream):
    feed = feed_of(stream).model_copy(update={"source": feed_of(stream).source.model_copy(update={"stream": "no"})})
    with pytest.raises(SourceRefused, match="correct the feed's stream and region"):
        land(store, kinesis, feed)


def test_a_server_that_is_not_there_is_an_error_in_time(store, kinesis_server, stream, monkeypatch):
    for name, value in kinesis_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(streams, "ATTEMPTS", 2)
    away = connect(KinesisSettings(kinesis_endpoint="http://127.0.0.1:9", kinesis_timeout_s=1))
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        land(store, away, feed_of(stream))


@pytest.mark.parametrize("endpoint", ["ftp://x", "http://user:secret@x"])
def test_an_endpoint_that_cannot_work_is_refused(endpoint):
    with pytest.raises(ConfigError, match="kinesis endpoint"):
        connect(KinesisSettings(kinesis_endpoint=endpoint))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"fields": {"kinesis_shard_id": "long"}}, "source.fields"),
        ({"value": "json"}, None),
        ({"value": "text", "fields": {"n": "long"}}, None),
    ],
)
def test_what_no_stream_can_be_read_by_is_refused(stream, source, problem):
    if problem is None:
        with pytest.raises(ValueError, match="declare the members"):
            system("kinesis").model(stream=stream.name, **source)
    else:
        assert problem in feed_of(stream, **source).source.problem()


def test_what_comes_is_followed_through_splits_and_merges(kinesis, kinesis_server, monkeypatch):
    stream = kinesis_server.stream(2)
    feed = feed_of(stream, fields={"n": "long"})
    followed = iter(kinesis.follow(feed, ReadRequest()))
    found, hint = [], {}

    def read_until(count):
        for batch in followed:
            found.extend(batch.rows["n"].to_pylist())
            hint.update({each: max(hint.get(each, 0), to) for each, to in batch.read_to.items()})
            if len(found) >= count:
                return

    keys = ["a", "b", "c", "d", "e", "f"]
    stream.send(numbers(range(6)), keys=keys)
    read_until(6)
    assert next(followed).rows.num_rows == 0
    stream.split(stream.open_shards()[0])
    stream.send(numbers(range(6, 12)), keys=keys)
    read_until(12)
    stream.merge(*stream.open_shards()[:2])
    stream.send(numbers(range(12, 18)), keys=keys)
    read_until(18)
    followed.close()
    assert sorted(found) == [*range(18)]
    stream.send(numbers([18]))
    rest = [batch.rows["n"].to_pylist() for batch in kinesis.read(feed, ReadRequest(start_offsets=hint))]
    assert [each for each in rest if each] == [[18]]


def test_a_stream_that_is_followed_is_known_to_be_read(kinesis, kinesis_server, clock, monkeypatch):
    clock(-60 * HOUR)
    stream = kinesis_server.stream()
    feed = feed_of(stream)
    monkeypatch.setattr(shard_reading, "_LOOK_S", 0.0)
    followed = iter(kinesis.follow(feed, ReadRequest()))
    until = shard_reading.read_until(stream.open_shards()[0])
    untils = [next(followed).read_to[until] for _ in range(5)]
    followed.close()
    now = (datetime.now(UTC) - timedelta(hours=60)).timestamp() * 1000
    assert untils == sorted(untils)
    assert untils[0] < untils[-1]
    assert abs(untils[-1] - now) < 60_000


def test_a_stream_without_records_is_known_to_be_read_while_it_is_followed(store, kinesis, stream, monkeypatch):
    monkeypatch.setattr(following, "POSITION_S", 0.0)
    feed = FeedRegistry(store).add(feed_of(stream))
    stream.send(["a"])
    assert land(store, kinesis, feed).rows_added == 1
    until = shard_reading.read_until(stream.open_shards()[0])
    before = open_table(store, feed).plan().request.start_offsets
    monkeypatch.setattr(shard_reading, "_LOOK_S", 0.0)

    class Log:
        def __getattr__(self, name):
            pytest.fail(f"{name}: there was nothing to tell")

    with following.Following(lambda: store, connect=lambda _: nullcontext(kinesis), log=Log()) as followers:
        followers.follow(feed.name)
        ends = time.monotonic() + 120
        while (now := open_table(store, feed).plan().request.start_offsets)[until] <= before[until] + 2_000:
            assert time.monotonic() < ends
            time.sleep(0.1)
            followers.check()
    assert {**now, until: 0} == {**before, until: 0}


def test_each_shard_has_to_be_vouched_for(kinesis, kinesis_server):
    stream = kinesis_server.stream(2)
    feed = feed_of(stream)
    first, second = stream.open_shards()
    stream.send(["a"], shard=first)
    hint = {}
    for batch in kinesis.read(feed, ReadRequest()):
        hint.update(batch.read_to)
    known = batch.source_id

    def rows(**late_or_gone):
        starts = {each: to for each, to in hint.items() if each not in late_or_gone.get("gone", ())}
        starts |= dict.fromkeys(map(shard_reading.read_until, late_or_gone.get("late", ())), 1)
        return sum(
            batch.rows.num_rows for batch in kinesis.read(feed, ReadRequest(start_offsets=starts, source_id=known))
        )

    assert rows() == 0
    assert rows(late=[first]) == 0  # its last record is still there
    for how in ({"late": [second]}, {"late": [first, second]}, {"gone": [second]}):
        with pytest.raises(SourceDataLost, match="records may have expired unread"):
            rows(**how)


def test_a_read_goes_on_from_wherever_it_broke_off(kinesis, kinesis_server, monkeypatch):
    stream = kinesis_server.stream(2)
    feed = feed_of(stream, fields={"n": "long"})
    first, second = stream.open_shards()
    stream.send(numbers([0]), shard=first)
    stream.send(numbers(range(1, 31)), shard=second)
    stream.merge(first, second)
    stream.send(numbers([31]))
    monkeypatch.setattr(streams, "ANSWER_RECORDS", 20)
    found, hint, seen = [], {}, set()
    for batch in kinesis.read(feed, ReadRequest()):
        found += batch.rows["n"].to_pylist()
        hint.update(batch.read_to)
        seen.add(frozenset(hint))
        request = ReadRequest(start_offsets=dict(hint), source_id=batch.source_id)
        rest = [n for later in kinesis.read(feed, request) for n in later.rows["n"].to_pylist()]
        assert sorted([*found, *rest]) == [*range(32)]
    assert len(seen) > 1  # the shard that came of both began


@pytest.mark.parametrize("has_expired", [False, True])
def test_records_that_expire_unread_while_a_stream_is_followed_are_an_alarm(
    kinesis, stream, clock, monkeypatch, has_expired
):
    monkeypatch.setattr(shard_reading, "_MARGIN", timedelta(hours=24, seconds=-1))  # one second late is late
    followed = iter(kinesis.follow(feed_of(stream), ReadRequest()))
    next(followed)
    stream.send(["a"])
    while not next(followed).rows.num_rows:
        pass
    stream.send(["lost"])
    time.sleep(1.1)
    clock(25 * HOUR if has_expired else 0)
    stream.send(["b"])
    with pytest.raises(SourceDataLost, match="fell behind") if has_expired else nullcontext():
        assert next(followed).rows["value"].to_pylist() == ["lost", "b"]
    followed.close()
