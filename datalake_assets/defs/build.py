"""Settings and feeds in, Dagster definitions out: assets, and how they are exported without a person.

Feeds differ in their partitions, so that no asset job can hold them all: a job launches a run per feed, and each feed
that wants one has a schedule, which catches up with the source as ``datalake export`` does.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import dagster as dg

from datalake_assets.core.facts import ExportResult
from datalake_assets.defs.checks.at_rest import evaluate_checks_job, folder_checks, nightly_checks, rule_checks
from datalake_assets.defs.checks.on_write import has_backlog, on_write_check_keys
from datalake_assets.defs.compaction.job import compact_partition_job
from datalake_assets.defs.compaction.sensor import compaction_sensor
from datalake_assets.defs.feeds.assets import (
    ExportConfig,
    RefusedFeed,
    left_out_definitions,
    left_out_keys,
    usable_feeds,
)
from datalake_assets.defs.feeds.follow_job import follow_jobs
from datalake_assets.defs.feeds.runner import FeedRunner, default_resources, partition_tags, run_config
from datalake_assets.defs.launchers import export_tags
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import repair_runs, tag_run
from datalake_assets.defs.runtime import failures_named, isolated, known_dagster_warnings_ignored
from datalake_assets.defs.storage.mart_assets import upstream
from datalake_assets.defs.upkeep.catalog_flow import catalog_asset, catalog_sensor, keeps_catalog
from datalake_assets.defs.upkeep.maintenance import maintenance_job, nightly_maintenance
from datalake_assets.defs.upkeep.mart_sensor import mart_sensor
from datalake_assets.defs.upkeep.new_items import new_items_sensor
from datalake_assets.defs.upkeep.notify_sensor import notify_sensor
from datalake_assets.defs.upkeep.queue_depth import Connect, queue_depth_sensor
from datalake_assets.defs.upkeep.queued_events import queued_events_sensor
from datalake_assets.defs.upkeep.report_asset import lake_report_asset, lake_report_sensor
from datalake_assets.defs.upkeep.sensors import (
    dead_run_sensor,
    feed_registry_sensor,
    freshness_sensor,
    interrupted_commit_sensor,
)
from datalake_assets.defs.upkeep.sink_delivery import deliver_job, has_sinks, sink_sensor
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.registry import FeedProblem, feed_key
from datalake_assets.lake.table import IsStale
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceSystem
from datalake_assets.sources.systems import StandIn, no_stand_in
from datalake_assets.sources.systems import connect as connect_source

__all__ = [
    "EXPORT_ALL",
    "PARENT_TAG",
    "ExportAllConfig",
    "build_definitions",
    "export_all_job",
    "export_feeds",
    "feed_schedule",
    "next_run",
    "next_version_job",
    "refused_feeds",
]

logger = logging.getLogger(__name__)

EXPORT_ALL = "export_all"
#: On the runs that a run started: the id of that run.
PARENT_TAG = "datalake/started_by"


class ExportAllConfig(ExportConfig):
    """What to export.

    Attributes:
        feeds: Names of feeds; none means all active ones that are exported.
    """

    feeds: list[str] = []  # noqa: RUF012  pydantic copies defaults


def export_all_job(runner: FeedRunner) -> dg.JobDefinition:
    """The job that exports every active feed, one after another; it fails at the end if one of them did."""

    @dg.op(name="export_feeds", description="Exports the feeds one after another, each in a run of its own.")
    def export(context: dg.OpExecutionContext, config: ExportAllConfig) -> None:
        _export(context, runner, config)

    @dg.job(name=EXPORT_ALL, description="Exports every active feed.", executor_def=dg.in_process_executor)
    def export_all() -> None:
        export()

    return export_all


def next_version_job(runner: FeedRunner, feed: Feed) -> dg.JobDefinition:
    """The job that lands a table's next version: one click, where the asset asks for a version's name."""
    name = f"export_{feed.kind}_{feed.name}"

    @dg.op(name=f"{name}_version", description=f"Lands the next version of {feed.path} in a run of its own.")
    def export(context: dg.OpExecutionContext, config: ExportConfig) -> None:
        _export(context, runner, ExportAllConfig(feeds=[feed.name], **config.model_dump()))

    @dg.job(name=name, description=f"Lands the next version of {feed.path}.", executor_def=dg.in_process_executor)
    def export_table() -> None:
        export()

    return export_table


def _export(context: dg.OpExecutionContext, runner: FeedRunner, config: ExportAllConfig) -> None:
    tag_run(context.instance, context.run)
    repair_runs(context.instance)
    results = export_feeds(runner, context.instance, config, parent=context.run.run_id)
    context.add_output_metadata({"datalake/feeds": dg.MetadataValue.md(_summary(results))})
    _raise_for_failed(results)


def export_feeds(
    runner: FeedRunner, instance: dg.DagsterInstance, config: ExportAllConfig, *, parent: str
) -> list[ExportResult]:
    """Exports feeds one after another; one that fails doesn't stop the rest."""
    chosen = ExportConfig(allow_shrink=config.allow_shrink, new_epoch=config.new_epoch)
    results: list[ExportResult] = []
    for name in config.feeds or runner.exported:
        failed: list[str] = []
        with isolated(failed.append):
            results.append(runner.export(instance, name, config=chosen, tags={PARENT_TAG: parent}))
        results += [ExportResult(name, "", error=line) for line in failed]
    return results


def _raise_for_failed(results: Sequence[ExportResult]) -> None:
    failed = [result for result in results if not result.success]
    if failed:
        lines = "; ".join(f"{result.feed}: {result.error}" for result in failed)
        raise dg.Failure(f"{len(failed)} of {len(results)} feeds failed: {lines}", allow_retries=False)


def _summary(results: Sequence[ExportResult]) -> str:
    rows = [
        f"| {each.feed} | {each.rows_added:,} | {each.rows_quarantined:,} | {each.seconds:.1f} | {each.error or 'ok'} |"
        for each in results
    ]
    return "\n".join(["| feed | rows added | quarantined | seconds | result |", "|---|---:|---:|---:|---|", *rows])


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


def next_run(
    runner: FeedRunner, instance: dg.DagsterInstance, feed: Feed, *, items: Sequence[str] = ()
) -> dg.RunRequest:
    """The run that catches a feed up, or lands some items; for a table this allocates its next version."""
    with failures_named(feed), known_dagster_warnings_ignored():
        keys = runner.plan(instance, feed.name)
    return dg.RunRequest(
        asset_selection=[asset_key(feed)],
        asset_check_keys=on_write_check_keys(feed),
        tags={**export_tags(runner.lake.settings, feed), **partition_tags(keys)},
        run_config=run_config(feed, ExportConfig(items=list(items))),
    )


def build_definitions(
    settings: Settings,
    *,
    lake: Lake | None = None,
    resources: Mapping[str, Any] | None = None,
    stand_in: StandIn = no_stand_in,
) -> dg.Definitions:
    """Everything that the code location offers.

    A feed file that is not valid is skipped, and a feed that Dagster refuses is left out, with a warning in the log; an
    asset that nothing can run stands in its place, and says why. A lake that has no feeds yet gives a location without
    assets, which fills as feeds are added.

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
    connect = partial(_connected, lake, stand_in)
    usable = usable_feeds(listing.feeds, lambda feeds: _definitions(feeds, lake, used, connect))
    for each in usable.refused:
        logger.warning("%s is left out: %s", feed_key(each.feed.name), each.reason)
    # the asset of a feed that another project's asset writes is that project's to show
    refused = [each.problem for each in usable.refused if each.feed.asset is None]
    return _with_left_out(usable.definitions, (*listing.problems, *refused), lake, digest=digest)


def _with_left_out(
    definitions: dg.Definitions, problems: Sequence[FeedProblem], lake: Lake, *, digest: str
) -> dg.Definitions:
    """The definitions with what stands for the feeds that are none of them, and what reports and mends that."""
    known = {spec.key for spec in definitions.resolve_all_asset_specs()} if problems else set()
    left_out = {key: problem for key, problem in left_out_keys(problems).items() if key not in known}
    stand_ins = left_out_definitions(left_out, lake_uri=lake.uri)
    try:
        dg.Definitions.validate_loadable(stand_ins)
    except Exception:
        logger.warning("feeds that are left out are not shown as assets", exc_info=True)
        stand_ins, left_out = dg.Definitions(), {}
    watch = feed_registry_sensor(lake, loaded=digest, left_out=left_out)
    return dg.Definitions.merge(definitions, stand_ins, dg.Definitions(sensors=[watch]))


def refused_feeds(settings: Settings, feeds: Sequence[Feed]) -> tuple[RefusedFeed, ...]:
    """The feeds that a code location would leave out, and why: of what is about to be declared, or is there already."""
    lake, resources = Lake(settings), default_resources(settings)
    connect = partial(_connected, lake, no_stand_in)
    return usable_feeds(feeds, lambda some: _definitions(some, lake, resources, connect)).refused


@contextmanager
def _connected(lake: Lake, stand_in: StandIn, type_: str) -> Iterator[SourceSystem]:
    """A source outside of runs: by the settings, or by what stands in for them in this lake."""
    with stand_in(lake.settings, lake.store, {type_}) as used, connect_source(type_, used) as source:
        yield source


def _queue_depth_sensor(runner: FeedRunner, feed: Feed, connect: Connect) -> dg.SensorDefinition:
    return queue_depth_sensor(feed, connect, lambda instance: next_run(runner, instance, feed))


def has_news(feed: Feed) -> bool:
    """Whether a feed's source can be looked at for new items; a table is read whole, when somebody wants it."""
    return feed.is_exported and feed.kind is FeedKind.STREAM and bool(feed.exported_from.news_sensor)


def _new_items_sensor(runner: FeedRunner, feed: Feed, connect: Connect) -> dg.SensorDefinition:
    return new_items_sensor(
        feed,
        connect,
        lambda: runner.lake.table(feed).plan().request.landed,
        lambda instance, names: next_run(runner, instance, feed, items=names),
    )


def _mart_sensor(runner: FeedRunner, feed: Feed) -> dg.SensorDefinition:
    def is_stale() -> bool:
        table = runner.lake.table(feed)
        return isinstance(table, IsStale) and table.is_stale()

    inputs = [each.asset_key for each in upstream(feed, runner.all_feeds)]
    return mart_sensor(
        feed,
        inputs,
        is_stale=is_stale,
        blocked_by=lambda instance: runner.blocked_by(instance, feed.name),
        next_run=lambda instance: next_run(runner, instance, feed),
    )


def _definitions(feeds: Sequence[Feed], lake: Lake, resources: Mapping[str, Any], connect: Connect) -> dg.Definitions:
    runner = FeedRunner(feeds, lake, resources)
    compact, maintenance = compact_partition_job(lake, feeds), maintenance_job(lake)
    with known_dagster_warnings_ignored():
        checks = nightly_checks_of(feeds)
        tables = [next_version_job(runner, feed) for feed in runner.feeds.values() if feed.kind is FeedKind.TABLE]
        evaluations = [evaluate_checks_job(checks)] if checks else []
        deliveries = [deliver_job(feeds, lake)] if any(map(has_sinks, feeds)) else []
        automation = dg.Definitions(
            assets=[
                lake_report_asset(tuple(runner.feeds.values()), lake_uri=lake.uri),
                *([catalog_asset(tuple(runner.feeds.values()))] if keeps_catalog(lake) else []),
            ],
            asset_checks=checks,
            jobs=[
                *evaluations,
                export_all_job(runner),
                *follow_jobs(lake, feeds, connect),
                *tables,
                *deliveries,
                compact,
                maintenance,
            ],
            schedules=[
                *(feed_schedule(runner, feed) for feed in feeds if feed.schedule),
                *map(nightly_checks, evaluations),
                nightly_maintenance(maintenance),
            ],
            sensors=[
                compaction_sensor(lake, tuple(runner.feeds.values()), job=compact),
                queued_events_sensor(lake),
                dead_run_sensor(),
                interrupted_commit_sensor(runner.feeds, lake),
                freshness_sensor(runner.feeds, lake),
                lake_report_sensor(feeds),
                *([catalog_sensor(feeds)] if keeps_catalog(lake) else []),
                notify_sensor(feeds, lake.settings),
                *(sink_sensor(feeds, lake, job=job) for job in deliveries),
                *(_queue_depth_sensor(runner, feed, connect) for feed in feeds if has_backlog(feed)),
                *(_new_items_sensor(runner, feed, connect) for feed in feeds if has_news(feed)),
                *(_mart_sensor(runner, feed) for feed in feeds if feed.is_mart and feed.schedule is None),
            ],
        )
        return dg.Definitions.merge(runner.definitions, automation)


def nightly_checks_of(feeds: Sequence[Feed]) -> list[dg.AssetChecksDefinition]:
    """The checks that no export evaluates: expensive rules, and all of the adopted folders."""
    folders = [folder_checks(feed) for feed in feeds if feed.is_adopted and feed.asset is None]
    expensive = [rule_checks(feed) for feed in feeds if feed.is_exported and feed.checks.rules_on_schedule]
    return [*folders, *expensive]
