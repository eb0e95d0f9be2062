"""One schedule per feed that asks for one: it catches up with the source, as ``datalake export`` does."""

import dagster as dg

from datalake_assets.config import Feed
from datalake_assets.defs.checks.on_write import on_write_check_keys
from datalake_assets.defs.failures import failures_named
from datalake_assets.defs.feeds.runner import FeedRunner, partition_tags
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.quiet import known_dagster_warnings_ignored

__all__ = ["feed_schedule", "next_run"]


def feed_schedule(runner: FeedRunner, feed: Feed) -> dg.ScheduleDefinition:
    """The schedule of a feed; its cron line is read in UTC. On, unless somebody turned it off in the UI."""

    @dg.schedule(
        name=f"export_{feed.kind}_{feed.name}",
        cron_schedule=feed.schedule or "",
        target=dg.AssetSelection.assets(asset_key(feed)),
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Catches up {feed.path} with its source.",
    )
    def export_feed(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        return next_run(runner, context.instance, feed)

    return export_feed


def next_run(runner: FeedRunner, instance: dg.DagsterInstance, feed: Feed) -> dg.RunRequest:
    """The run that catches a feed up; for a table this allocates its next version."""
    with failures_named(feed), known_dagster_warnings_ignored():
        keys = runner.plan(instance, feed.name)
    return dg.RunRequest(
        asset_selection=[asset_key(feed)], asset_check_keys=on_write_check_keys(feed), tags=partition_tags(keys)
    )
