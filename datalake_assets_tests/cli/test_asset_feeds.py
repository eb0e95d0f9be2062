"""Feeds that assets of other projects write, on the command line: seen like any other, and never exported."""

from __future__ import annotations

import json

import dagster as dg
import pyarrow as pa
import pytest

from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.storage.asset_feeds import declare
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import AssetSource, FeedKind
from datalake_assets.lake.frames import frame_batches
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import Settings

ORDERS = Feed(name="orders", kind=FeedKind.STREAM, source=AssetSource(asset="shop/orders"), start="2026-01-01")


@pytest.fixture
def orders(lake_store):
    """Declared and written, as its asset would."""
    table = open_table(lake_store, declare(lake_store, ORDERS))
    for day in ("2026-01-01", "2026-01-02"):
        batches = frame_batches(pa.table({"id": [1, 2]}), asset="shop/orders")
        table.write(batches, partitions=[day], run_id="run")
    return table


def test_it_is_listed_reported_queried_and_verified(run, orders):
    assert "orders  stream  shop/orders  its asset  day" in run("feeds", "list").stdout
    assert json.loads(run("feeds", "show", "orders").stdout)["source"] == {"type": "asset", "asset": "shop/orders"}
    assert run("feeds", "check").stdout == "orders: ok\n"
    assert json.loads(run("sql", "--json", "select count(*) as n from orders").stdout) == [{"n": 4}]
    assert run("verify", "--deep").exit_code == 0
    assert run("repair").exit_code == 0
    (reported,) = json.loads(run("report", "--format", "json").stdout)["feeds"]
    assert (reported["feed"], reported["rows"], reported["files"]) == ("orders", 4, 2)
    assert run("compact", "orders", "--dry-run").exit_code == 0


def test_it_is_not_exported(run, orders):
    told = run("export", "--stream", "orders")
    assert told.exit_code == 1
    assert told.stderr == (
        "Error: feed 'orders' is written by the Dagster asset 'shop/orders': nothing is exported to it; materialize"
        " that, in its own project\n"
    )
    assert "has only adopted folders and feeds of assets" in run("export", "--all").stderr


def test_it_is_not_added_by_hand(run, lake, tmp_path):
    document = tmp_path / "orders.json"
    document.write_text(ORDERS.model_dump_json())

    told = run("feeds", "add", "--file", str(document))

    assert told.exit_code == 1
    assert "is added when its asset 'shop/orders' is first materialized" in told.stderr


def test_it_cannot_have_a_schedule():
    with pytest.raises(ValueError, match="an asset is run by its own project, so its feed has no schedule"):
        Feed(name="orders", kind="stream", source=AssetSource(asset="orders"), schedule="@daily")


def test_query_of_one_without_rows_says_what_to_materialize(run, lake_store):
    declare(lake_store, ORDERS)

    assert "feed 'orders' has no data yet; materialize asset 'shop/orders'" in run("sql", "select * from orders").stderr


def test_our_own_code_location_leaves_it_to_its_project(orders, lake):
    definitions = build_definitions(Settings(lake=str(lake)))

    keys = definitions.resolve_asset_graph().get_all_asset_keys()
    assert dg.AssetKey(["shop", "orders"]) not in keys
    assert dg.AssetKey(["streams", "orders"]) not in keys
