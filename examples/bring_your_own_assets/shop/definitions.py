"""The shop's code location: its assets, and what a lake adds to them."""

import os
from datetime import timedelta
from pathlib import Path

import dagster as dg

from datalake_assets.defs import (
    LakeResource,
    ParquetLakeIOManager,
    build_compaction_sensor,
    build_file_size_checks,
    build_freshness_checks,
)
from datalake_assets.policies import CompactionPolicy
from datalake_assets.settings import Settings
from shop.assets import clicks_in, orders, products, revenue


def build(home: Path) -> dg.Definitions:
    """The definitions of a shop whose data are below ``home``: ``lake``, and the tracker's ``raw/clicks``."""
    lake = LakeResource(settings=Settings(lake=str(home / "lake")))
    policy = CompactionPolicy(min_files=5)
    clicks = clicks_in(home / "raw" / "clicks")
    assets = [orders, products, revenue, clicks]
    return dg.Definitions(
        assets=assets,
        asset_checks=[
            *build_file_size_checks(assets, lake=lake, policy=policy),
            *build_freshness_checks([orders, clicks], lake=lake, max_event_age=timedelta(hours=36)),
            *build_freshness_checks([products], lake=lake, max_commit_age=timedelta(days=8)),
        ],
        sensors=[
            build_compaction_sensor(assets, lake=lake, policy=policy, default_status=dg.DefaultSensorStatus.RUNNING)
        ],
        resources={"lake": ParquetLakeIOManager(lake=lake)},
        executor=dg.in_process_executor,
    )


defs = build(Path(os.environ.get("SHOP_HOME", ".")).resolve())
