"""What the report says of dropped files: each by itself, and all of a feed."""

from __future__ import annotations

from datetime import timedelta

import orjson
import pytest

from datalake_assets.core.report.findings import build_report
from datalake_assets.feed import Feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.statistics import lake_statistics
from datalake_assets.lake.store.base import Store
from datalake_assets.report.documents import json_text
from datalake_assets_tests.lake.feeds import stream_feed
from datalake_assets_tests.sources.files.dropping import DROPPED, Dropping, files_feed


@pytest.fixture
def feed(tmp_path, local_store: Store) -> Feed:
    (tmp_path / "drop").mkdir()
    source = {"columns": {"id": "int64"}}
    return FeedRegistry(local_store).add(files_feed(str(tmp_path / "drop"), source=source))


def told(store: Store, *feeds: Feed):
    report = build_report(lake_statistics(store, feeds), lake=store.uri, at=store.now())
    return [each["dropped_files"] for each in orjson.loads(json_text(report))["feeds"]]


def test_report_says_of_each_file_rows_bytes_seconds_and_ratio(tmp_path, local_store, feed):
    dropping = Dropping(local_store, tmp_path / "drop", feed)
    texts = {"a.csv": "id\n1\n2\nx\n", "b.csv": "id\n3\n"}
    for days, (name, text) in enumerate(texts.items()):
        dropping.drop(name, text, at=DROPPED + timedelta(days=days))
    dropping.drop("bad.csv", "", at=DROPPED + timedelta(days=5))
    dropping.export()

    (files,) = told(local_store, feed)

    newest = {each["name"]: each for each in files.pop("newest")}
    assert list(newest) == ["bad.csv", "b.csv", "a.csv"]
    assert newest["bad.csv"]["refused"]
    assert [newest["a.csv"][name] for name in ("rows", "rejected", "size_bytes", "refused")] == [3, 1, 9, None]
    assert (files["landed"], files["refused"], files["rows"], files["rejected"]) == (2, 1, 4, 1)
    assert files["size_bytes"] == sum(map(len, texts.values()))
    assert files["seconds"] > 0
    kept = sum(path.stat().st_size for path in (tmp_path / "lake" / "streams").rglob("*.parquet"))
    assert sum(each["kept_bytes"] for each in newest.values()) == pytest.approx(kept, abs=2)
    assert files["ratio"] == pytest.approx(files["size_bytes"] / kept, abs=0.01)


def test_feeds_of_other_sources_have_no_dropped_files(local_store, feed):
    assert told(local_store, feed, stream_feed()) == [None, None]
