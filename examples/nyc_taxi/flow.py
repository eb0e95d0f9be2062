"""The whole flow, once: extract, validate, transform, partition, load, test, notify. Again, only what is new is done.

``python flow.py`` makes data if there are none. For the TLC's own files put these into a folder, and name it by
``--data``.
"""

from __future__ import annotations

import argparse
import os
import string
import sys
import time
from datetime import datetime
from pathlib import Path

from datalake_assets.catalog.views import View, ViewRegistry
from datalake_assets.cli.session import prepare_home
from datalake_assets.errors import FeedExists
from datalake_assets.feed import parse_feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.settings import Settings, load_settings

HERE = Path(__file__).parent
BUSIEST = """
SELECT pickup_borough, pickup_zone, sum(trips) AS trips, sum(revenue) AS revenue
FROM zone_revenue
GROUP BY pickup_borough, pickup_zone
"""


def extract(folder: Path, *, first: datetime, months: int, per_month: int) -> None:
    """Makes trips, unless there are some."""
    if any(folder.glob("yellow_tripdata_*.csv")):
        return
    from trips import generate

    generate(folder, first=first, months=months, per_month=per_month)


def declare(settings: Settings, folder: Path) -> list[str]:
    """Adds the feeds that the lake does not have yet; returns the names of all, in the order of the flow."""
    registry, names = FeedRegistry(open_store(settings.lake)), []
    for name in ("yellow_trips", "taxi_zones", "trips_enriched", "trips_rejected", "zone_revenue"):
        text = (HERE / "feeds" / f"{name}.json").read_text(encoding="utf-8")
        feed = parse_feed(string.Template(text).safe_substitute(DATA=str(folder)), name=name)
        names.append(feed.name)
        try:
            registry.add(feed)
        except FeedExists:
            continue
    return names


def run(settings: Settings, names: list[str]) -> bool:
    """Exports the feeds, enters them into the catalog, validates and tells, by Dagster; whether all went well."""
    import dagster as dg
    from definitions import definitions_of

    from datalake_assets.catalog.sync import sync_catalogs
    from datalake_assets.defs.feeds.runner import export_feed
    from datalake_assets.defs.runtime import known_dagster_warnings_ignored, open_instance

    store = open_store(settings.lake)
    with open_instance() as instance:
        for name in names:
            result = export_feed(settings, name, instance=instance)
            failed = sorted({check.check for check in result.checks if check.level == "error"})
            told = result.error or (f"failed: {', '.join(failed)}" if failed else "ok")
            counts = f"{result.rows_added:>+9,} rows, {result.rows_quarantined:>5,} in quarantine"
            print(f"{name:16}{counts}, {result.seconds:5.1f} s   {told}", flush=True)
            if result.error or failed:
                return False
        feeds = FeedRegistry(store).list().feeds
        ViewRegistry(store).put(View(name="busiest_zones", query=BUSIEST), feeds)
        for outcome in sync_catalogs(settings, store, feeds):
            print(f"catalog {outcome.catalog}: {outcome.name} {outcome.state}")
        with known_dagster_warnings_ignored():
            definitions = definitions_of(settings)
            job = definitions.resolve_implicit_global_asset_job_def()
            keys = [dg.AssetKey(["taxi", "validation"]), dg.AssetKey(["taxi", "news"])]
            quiet = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
            ended = job.execute_in_process(
                instance=instance, run_config=quiet, asset_selection=keys, raise_on_error=False
            )
        for check in ended.get_asset_check_evaluations():
            print(f"check {check.check_name}: {'passed' if check.passed else 'FAILED'}")
        return ended.success


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--lake", type=Path, default=HERE / "lake")
    parser.add_argument("--first", type=datetime.fromisoformat, default=datetime(2024, 1, 1), help="of what is made")
    parser.add_argument("--months", type=int, default=12)
    parser.add_argument("--per-month", type=int, default=10_000)
    chosen = parser.parse_args()
    began = time.monotonic()
    data, lake = chosen.data.resolve(), chosen.lake.resolve()
    lake.mkdir(parents=True, exist_ok=True)
    os.environ["DATALAKE_LAKE"] = str(lake)
    os.environ.setdefault("DAGSTER_HOME", str(lake.parent / ".dagster"))
    prepare_home()
    settings = load_settings()
    extract(data, first=chosen.first, months=chosen.months, per_month=chosen.per_month)
    is_well = run(settings, declare(settings, data))
    print(f"{'done' if is_well else 'FAILED'} in {time.monotonic() - began:.1f} s")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
