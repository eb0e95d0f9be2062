"""From a partition's key to its path and back, for every kind of feed."""

from __future__ import annotations

import pytest

from datalake_assets.core.partitions import hive_pairs, partition_by, partition_key, partition_path
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, FolderSource
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource

STREAM = Feed(name="s", kind=FeedKind.STREAM, source=KsqlDBSource(object="S"))
TABLE = Feed(name="t", kind=FeedKind.TABLE, source=KsqlDBSource(object="T"))
FOLDER = Feed(name="f", kind=FeedKind.FOLDER, source=FolderSource(uri="/data/f"))


@pytest.mark.parametrize(
    ("feed", "key", "path"),
    [
        (STREAM, "2025-01-15", "year=2025/month=01/day=15"),
        (TABLE, "v4", "version=v4"),
        (FOLDER, "year=2025/month=01", "year=2025/month=01"),
        (FOLDER, "region=eu/2024", "region=eu/2024"),
        (FOLDER, ".", ""),
    ],
)
def test_path_and_key_are_inverse(feed, key, path):
    assert partition_path(feed, key) == path
    assert partition_key(feed, path) == key


def test_partitions_of_streams_alone_are_times():
    assert [partition_by(feed) for feed in (STREAM, TABLE, FOLDER)] == ["day", None, None]


@pytest.mark.parametrize(
    ("path", "pairs"),
    [
        ("", []),
        ("region=eu/2024", [("region", "eu")]),
        ("a=1/b=x=y", [("a", "1"), ("b", "x=y")]),
        ("=x/y", []),
        ("k=", [("k", "")]),
    ],
)
def test_hive_pairs(path, pairs):
    assert hive_pairs(path) == pairs
