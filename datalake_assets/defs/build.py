"""Settings and feeds in, Dagster definitions out."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from datalake_assets.defs.checks.adopted import folder_checks
from datalake_assets.defs.checks.nightly import evaluate_checks_job, nightly_checks, rule_checks
from datalake_assets.defs.compaction.job import compact_partition_job
from datalake_assets.defs.compaction.sensor import compaction_sensor
from datalake_assets.defs.feeds.declared import RefusedFeed, usable_feeds
from datalake_assets.defs.feeds.jobs import export_all_job, feed_schedule, next_version_job
from datalake_assets.defs.feeds.runner import FeedRunner, default_resources
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runtime import known_dagster_warnings_ignored
from datalake_assets.defs.upkeep.maintenance import maintenance_job, nightly_maintenance
from datalake_assets.defs.upkeep.report_asset import lake_report_asset, lake_report_sensor
from datalake_assets.defs.upkeep.sensors import (
    dead_run_sensor,
    feed_registry_sensor,
    freshness_sensor,
    interrupted_commit_sensor,
)
from datalake_assets.feed import Feed, FeedKind
from datalake_assets.lake.registry import feed_key
from datalake_assets.settings import Settings
from datalake_assets.sources.systems import StandIn, no_stand_in

__all__ = ["build_definitions", "refused_feeds"]

logger = logging.getLogger(__name__)


def build_definitions(
    settings: Settings,
    *,
    lake: Lake | None = None,
    resources: Mapping[str, Any] | None = None,
    stand_in: StandIn = no_stand_in,
) -> dg.Definitions:
    """Everything that the code location offers.

    A feed file that is not valid is skipped, and a feed that Dagster refuses is left out, with a warning in the log. A
    lake that has no feeds yet gives a location without assets, which fills as feeds are added.

    Args:
        settings: The installation.
        lake: The lake, if not the one of the settings.
        resources: ``lake`` and one resource per kind of source, if not those of the settings.
        stand_in: Brings the sources of lakes that have their own.

    Raises:
        LakeError: The lake cannot be read. Dagster shows the message in place of the location; an empty location
            would look as if the feeds were gone.
    """
    lake = lake or Lake(settings)
    digest = lake.registry.digest()  # before the listing: what changes in between is seen by the sensor
    listing = lake.registry.list()
    for problem in listing.problems:
        logger.warning("%s is skipped: %s", problem.file, problem.reason)
    used = resources or default_resources(settings, stand_in=stand_in)
    usable = usable_feeds(listing.feeds, lambda feeds: _definitions(feeds, lake, used, digest=digest))
    for each in usable.refused:
        logger.warning("%s is left out: %s", feed_key(each.feed.name), each.reason)
    return usable.definitions


def refused_feeds(settings: Settings, feeds: Sequence[Feed]) -> tuple[RefusedFeed, ...]:
    """The feeds that a code location would leave out, and why: of what is about to be declared, or is there already."""
    lake, resources = Lake(settings), default_resources(settings)
    return usable_feeds(feeds, lambda some: _definitions(some, lake, resources, digest="")).refused


def _definitions(feeds: Sequence[Feed], lake: Lake, resources: Mapping[str, Any], *, digest: str) -> dg.Definitions:
    runner = FeedRunner(feeds, lake, resources)
    compact, maintenance = compact_partition_job(lake, feeds), maintenance_job(lake)
    with known_dagster_warnings_ignored():
        checks = nightly_checks_of(feeds)
        tables = [next_version_job(runner, feed) for feed in runner.feeds.values() if feed.kind is FeedKind.TABLE]
        evaluations = [evaluate_checks_job(checks)] if checks else []
        automation = dg.Definitions(
            assets=[lake_report_asset(tuple(runner.feeds.values()), lake_uri=lake.uri)],
            asset_checks=checks,
            jobs=[*evaluations, export_all_job(runner), *tables, compact, maintenance],
            schedules=[
                *(feed_schedule(runner, feed) for feed in feeds if feed.schedule),
                *map(nightly_checks, evaluations),
                nightly_maintenance(maintenance),
            ],
            sensors=[
                feed_registry_sensor(lake, loaded=digest),
                compaction_sensor(lake, tuple(runner.feeds.values()), job=compact),
                dead_run_sensor(),
                interrupted_commit_sensor(runner.feeds, lake),
                freshness_sensor(runner.feeds, lake),
                lake_report_sensor(feeds),
            ],
        )
        return dg.Definitions.merge(runner.definitions, automation)


def nightly_checks_of(feeds: Sequence[Feed]) -> list[dg.AssetChecksDefinition]:
    """The checks that no export evaluates: expensive rules, and all of the adopted folders."""
    folders = [folder_checks(feed) for feed in feeds if feed.is_adopted and feed.asset is None]
    expensive = [rule_checks(feed) for feed in feeds if feed.is_exported and feed.checks.rules_on_schedule]
    return [*folders, *expensive]
