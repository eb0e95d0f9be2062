"""The shop's own tests: its assets in a lake in a temporary folder."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from shop.definitions import build

YESTERDAY = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"


@pytest.fixture
def shop(tmp_path: Path) -> dg.Definitions:
    for folder in ("lake", "raw"):
        (tmp_path / folder).mkdir()
    return build(tmp_path)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield instance


def run(
    shop: dg.Definitions, instance: dg.DagsterInstance, *names: str, partition: str | None = None
) -> dict[str, bool]:
    """Materializes assets, and returns what their checks say."""
    selection = dg.AssetSelection.assets(*names)
    job = dg.Definitions.merge(shop, dg.Definitions(jobs=[dg.define_asset_job("chosen", selection)]))
    result = job.resolve_job_def("chosen").execute_in_process(instance=instance, partition_key=partition)
    return {
        f"{each.asset_key.to_user_string()} {each.check_name}": each.passed
        for each in result.get_asset_check_evaluations()
    }


def test_day_that_runs_again_has_the_same_orders(shop, instance, tmp_path):
    for _ in range(2):
        run(shop, instance, "orders", partition=YESTERDAY)

    orders = pd.read_parquet(tmp_path / "lake" / "streams" / "orders")
    assert orders["order_id"].is_unique
    assert len(orders) > 500


def test_revenue_reads_the_days_orders_and_the_newest_products(shop, instance, tmp_path):
    run(shop, instance, "products")
    run(shop, instance, "products")
    run(shop, instance, "orders", partition=YESTERDAY)

    run(shop, instance, "revenue", partition=YESTERDAY)

    revenue = pd.read_parquet(tmp_path / "lake" / "streams" / "revenue")
    assert sorted(revenue["category"]) == ["books", "games", "garden", "music"]
    assert revenue["revenue"].min() > 0


def test_checks_are_red_for_the_trackers_small_files_and_green_for_our_own(shop, instance):
    assert run(shop, instance, "clicks") == {
        "clicks file_size": False,
        "clicks small_files": False,
        "clicks freshness": True,
    }
    assert set(run(shop, instance, "orders", partition=YESTERDAY).values()) == {True}
