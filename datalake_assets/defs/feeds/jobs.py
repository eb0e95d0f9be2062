"""How feeds are exported without a person: a job that launches a run per feed, and a schedule per feed that wants one.

Feeds differ in their partitions, so that no asset job can hold them all. A schedule catches up with the source, as
``datalake export`` does.
"""

from collections.abc import Sequence

import dagster as dg

from datalake_assets.defs.checks.on_write import on_write_check_keys
from datalake_assets.defs.feeds.assets import ExportConfig
from datalake_assets.defs.feeds.runner import ExportResult, FeedRunner, partition_tags
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.runs import repair_runs, tag_run
from datalake_assets.defs.runtime import failures_named, known_dagster_warnings_ignored
from datalake_assets.feed import Feed

__all__ = [
    "EXPORT_ALL",
    "PARENT_TAG",
    "ExportAllConfig",
    "export_all_job",
    "export_feeds",
    "feed_schedule",
    "next_run",
    "next_version_job",
]

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
    names = config.feeds or list(runner.exported)
    return [runner.export(instance, name, config=chosen, tags={PARENT_TAG: parent}) for name in names]


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


def next_run(runner: FeedRunner, instance: dg.DagsterInstance, feed: Feed) -> dg.RunRequest:
    """The run that catches a feed up; for a table this allocates its next version."""
    with failures_named(feed), known_dagster_warnings_ignored():
        keys = runner.plan(instance, feed.name)
    return dg.RunRequest(
        asset_selection=[asset_key(feed)], asset_check_keys=on_write_check_keys(feed), tags=partition_tags(keys)
    )
