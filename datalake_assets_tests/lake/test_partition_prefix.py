"""Streams whose folders are named by a prefix of the feed's own, for readers that know the columns by such names."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.partitions import partition_columns, partition_key, partition_path
from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.feed_sources import AssetSource
from datalake_assets.lake.conversion import convert
from datalake_assets.lake.frames import frame_batches
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.sql_session import open_answer
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed

PICKUP = stream_feed(partition_prefix="pickup_", partition_by="month")


def test_folders_have_the_prefix_and_every_reader_sees_it_as_columns(local_store):
    feed = FeedRegistry(local_store).add(PICKUP)
    table = open_table(local_store, feed)
    for ids in ([0, 1], [2, 24 * 31]):
        table.write(stream_of(numbered(ids)), partitions=["2025-01"], run_id="run")
    table.compact("2025-01", CompactionRequest(force=True))

    plain = ds.dataset(local_store.path("streams/s"), partitioning="hive").to_table()
    found = zip(*(plain[name].to_pylist() for name in ("id", "pickup_year", "pickup_month")), strict=True)
    assert sorted(found) == [(0, 2025, 1), (1, 2025, 1), (2, 2025, 1), (744, 2025, 2)]
    assert table.partitions() == ("2025-01", "2025-02")
    assert not list(table.verify(deep=True))
    where = ds.field("pickup_month") == 2
    assert table.scan(columns=["id"], where=where).read_all()["id"].to_pylist() == [744]
    with open_answer(local_store, [feed], "SELECT id, typeof(pickup_month) FROM s WHERE pickup_month = 2") as answer:
        assert [row for batch in answer.batches for row in batch] == [(744, "INTEGER")]
    assert table.snapshot(["2025-01"]).footers("2025-01").drifts == ()


def test_path_and_key_are_inverse():
    assert partition_columns(PICKUP) == ("pickup_year", "pickup_month")
    assert partition_columns(table_feed()) == ("version",)
    assert partition_path(PICKUP, "2025-01") == "pickup_year=2025/pickup_month=01"
    assert partition_key(PICKUP, "pickup_year=2025/pickup_month=01") == "2025-01"
    for other in ("year=2025/month=01", "pickup_year=2025/month=01", "pickup_year=2025"):
        assert partition_key(PICKUP, other) is None


@pytest.mark.parametrize(
    "change", [{"kind": "table"}, {"format": "iceberg"}, {"partition_prefix": "Pickup"}, {"partition_prefix": "pickup"}]
)
def test_prefixes_are_for_plain_streams_and_end_in_an_underscore(change):
    document = {**PICKUP.model_dump(mode="json"), **change}
    with pytest.raises(InvalidFeed, match="partition_prefix"):
        parse_feed(json.dumps(document))


def test_the_prefix_is_for_life_and_the_feed_stays_in_its_folders(local_store):
    registry = FeedRegistry(local_store)
    feed = registry.add(PICKUP)

    with pytest.raises(InvalidFeed, match="partition_prefix, and to be a mart or none, are for life"):
        registry.update(feed.model_copy(update={"partition_prefix": ""}), expected_revision=1)
    with pytest.raises(ConfigError, match="has a partition_prefix, which is for plain folders"):
        convert(local_store, feed, "iceberg", source_schema=lambda: None, switch=registry.convert)


def test_a_column_that_the_paths_would_hide_is_refused(local_store):
    feed = Feed(name="trips", kind="stream", source=AssetSource(asset="trips"), partition_prefix="pickup_")
    frame = frame_batches(pa.table({"pickup_year": [1]}), asset="trips")
    with pytest.raises(InvalidFeed, match="column 'pickup_year' is named like a partition key"):
        open_table(local_store, feed).write(frame, partitions=["2025-01-01"], run_id="run")
