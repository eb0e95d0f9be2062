"""`export_feed`, as the command line calls it: a demo lake, its embedded server, Dagster in this process."""

import datetime as dt
from collections.abc import Iterator

import dagster as dg
import pytest

from datalake_assets.defs.feeds.runner import FeedRunner, default_resources, export_feed, feed_runner
from datalake_assets.defs.resources import Lake
from datalake_assets.demo.demo_feeds import demo_feeds
from datalake_assets.demo.demo_lake import demo_stand_in, prepare_demo
from datalake_assets.errors import FeedNotFound
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import Progress
from datalake_assets.settings import Settings, load_settings


@pytest.fixture
def settings(local_store: Store) -> Iterator[Settings]:
    """A demo lake with a stream and a table, and its server."""
    demo = prepare_demo(local_store, 200)
    for feed in demo_feeds(demo.start):
        if feed.name in {"transaction_flattened", "merchant_summary"}:
            FeedRegistry(local_store).add(feed)
    with demo_stand_in(load_settings(lake=local_store.uri), local_store, {"ksqldb"}) as served:
        yield served


def test_export_feed_lands_a_stream_and_a_table_once(settings: Settings, instance: dg.DagsterInstance):
    told: list[Progress] = []

    first = export_feed(settings, "transaction_flattened", instance=instance, on_progress=told.append)
    second = export_feed(settings, "transaction_flattened", instance=instance)
    table = export_feed(settings, "merchant_summary", instance=instance)

    assert (first.error, first.rows_read, first.rows_added) == (None, 200, 200)
    assert (second.error, second.rows_added) == (None, 0)
    assert [each.key for each in table.partitions] == ["v1"]
    assert table.rows_added > 0
    assert told
    assert told[-1].rows == 200


def test_export_feed_says_that_a_feed_is_unknown_or_archived(settings: Settings, instance: dg.DagsterInstance):
    feed_runner(settings).lake.registry.archive("merchant_summary")

    with pytest.raises(FeedNotFound, match="does not exist"):
        export_feed(settings, "merchants", instance=instance)
    with pytest.raises(FeedNotFound, match="datalake feeds restore merchant_summary"):
        export_feed(settings, "merchant_summary", instance=instance)


def test_export_feed_says_when_there_is_no_source_to_read(
    settings: Settings, local_store: Store, instance: dg.DagsterInstance
):
    unserved = load_settings(lake=settings.lake)

    result = export_feed(unserved, "merchant_summary", instance=instance)

    assert (result.error or "").startswith("no ksqlDB server to read from: set DATALAKE_KSQLDB_URL")


def test_a_run_of_a_demo_lake_starts_the_server_that_the_lake_brings(
    settings: Settings, local_store: Store, instance: dg.DagsterInstance
):
    unserved = load_settings(lake=settings.lake)
    resources = default_resources(unserved, stand_in=demo_stand_in)
    runner = FeedRunner(FeedRegistry(local_store).list().feeds, Lake(unserved), resources)

    result = runner.export(instance, "merchant_summary", quiet=True)

    assert (result.error, result.rows_added > 0) == (None, True)


def test_feed_runner_is_built_once_until_the_registry_changes(settings: Settings, local_store: Store):
    first = feed_runner(settings)

    assert feed_runner(settings) is first
    FeedRegistry(local_store).add(demo_feeds(dt.date(2026, 1, 1))[0])
    assert len(feed_runner(settings).feeds) == 3
