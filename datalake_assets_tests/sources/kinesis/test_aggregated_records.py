"""Records that a producer packed into one become a row each, or wait in quarantine. On a real server."""

from __future__ import annotations

import json
from hashlib import md5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.core.batches import ReadRequest
from datalake_assets.sources.kinesis.aggregated_records import UserRecord, split
from datalake_assets_tests.sources.kinesis.conftest import feed_of, land, landed, offsets_of, quarantined
from datalake_assets_tests.sources.kinesis.kinesis_server import aggregated

pytestmark = pytest.mark.xdist_group("kinesis")


def test_records_in_one_land_each_in_the_partition_of_its_own_time(store, kinesis, stream):
    feed = feed_of(stream, feed={"time_column": "at"}, fields={"n": "long", "at": "timestamptz"})
    days = [f"2025-01-{1 + number % 3:02}T00:00:00Z" for number in range(30)]
    packed = [(f"k{number % 7}", json.dumps({"n": number, "at": day}).encode()) for number, day in enumerate(days)]
    stream.send([aggregated(packed[:10], hash_key="0"), packed[10][1], aggregated(packed[11:])])
    report = land(store, kinesis, feed)
    assert (report.rows_added, {each.rows for each in report.partitions if each.rows_added}) == (30, {10})
    assert land(store, kinesis, feed).rows_read == 0
    rows = landed(store, feed, "n", "kinesis_partition_key", "kinesis_sub_sequence_number")
    expected = [(n, "a" if n == 10 else f"k{n % 7}", n if n < 10 else max(0, n - 11)) for n in range(30)]
    assert sorted(rows) == expected


def test_a_read_begins_within_an_aggregated_record(kinesis, stream):
    stream.send(["a", aggregated([("k", b"b"), ("k", b"c"), ("k", b"d")]), "e"])
    feed = feed_of(stream)
    ((shard, offsets),) = offsets_of(kinesis, feed).items()
    assert len(offsets) == 5
    for number, start in enumerate(offsets):
        assert offsets_of(kinesis, feed, {shard: start}) == {shard: offsets[number:]}


def test_a_damaged_aggregate_waits_in_quarantine_and_lands_whole_if_the_feed_says_so(store, kinesis, stream):
    feed = feed_of(stream, value="binary")
    good = aggregated([("a", b"x"), ("b", b"y")])
    bad = good[:-1] + bytes([good[-1] ^ 1])
    stream.send([good, bad])
    report = land(store, kinesis, feed)
    assert (report.rows_added, report.rows_quarantined) == (2, 1)
    raws = [each.raw.encode() for each in quarantined(store, feed)]
    assert kinesis.decode(feed, raws).rows.num_rows == 0
    whole = feed_of(stream, value="binary", aggregated="keep")
    assert kinesis.decode(whole, raws).rows["value"].to_pylist() == [bad]
    assert [batch.rows["value"].to_pylist() for batch in kinesis.read(whole, ReadRequest())] == [[good, bad]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=9)), max_size=8), st.data())
def test_aggregates_are_taken_apart_exactly_or_not_at_all(records, data):
    packed = aggregated(records)
    assert split(packed, most=10) == [UserRecord(key, text, hash_of(key)) for key, text in records]
    explicit = split(aggregated(records, hash_key=str(2**127)), most=10)
    assert explicit == [UserRecord(*each, 2**127) for each in records]
    at = data.draw(st.integers(4, len(packed) - 1))
    damaged = packed[:at] + bytes([packed[at] ^ data.draw(st.integers(1, 255))]) + packed[at + 1 :]
    for text in (damaged, packed[:at]):
        with pytest.raises(ValueError, match="digest"):
            split(text, most=10)


def hash_of(key):
    return int(md5(key.encode(), usedforsecurity=False).hexdigest(), 16)


def test_records_packed_for_another_shard_are_put_aside_since_they_come_again(store, kinesis, kinesis_server):
    stream = kinesis_server.stream(2)
    feed = feed_of(stream)
    keys = sorted((f"k{number}" for number in range(20)), key=hash_of)
    mixed = aggregated([(keys[0], b"a"), (keys[-1], b"b")])
    stream.send([mixed, aggregated([(keys[0], b"c"), (keys[1], b"d")])], shard=stream.open_shards()[0])
    report = land(store, kinesis, feed)
    assert (report.rows_added, report.rows_quarantined) == (2, 2)
    assert landed(store, feed, "value") == ["c", "d"]
    raws = [each.raw.encode() for each in quarantined(store, feed)]
    assert kinesis.decode(feed, raws).rows.num_rows == 0
    trusting = feed_of(stream, aggregated="split_all")
    assert kinesis.decode(trusting, raws).rows["value"].to_pylist() == ["a", "b"]
    assert [batch.rows["value"].to_pylist() for batch in kinesis.read(trusting, ReadRequest())] == [
        ["a", "b", "c", "d"]
    ]


@pytest.mark.parametrize("body", [b"\x1a\x02\x08\x00", b"\x0a\x01a\x1a\x04\x08\x01\x1a\x00", b"\xff"])
def test_an_aggregate_that_makes_no_sense_is_refused_though_its_digest_is_right(body):
    with pytest.raises(ValueError, match="record"):
        split(b"\xf3\x89\x9a\xc2" + body + md5(body, usedforsecurity=False).digest(), most=10)
