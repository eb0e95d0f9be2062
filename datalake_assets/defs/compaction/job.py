"""Compaction in Dagster: the job that compacts partitions, and what the UI shows of every compaction.

A compaction is an observation, never a materialization: the rows are the same as before, so nothing downstream is to
run again, and the feed is no fresher.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

import dagster as dg
from pydantic import Field

from datalake_assets.core.compaction.compaction_report import CompactionReport
from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRequest, LeftAlone
from datalake_assets.core.compaction.run_groups import MAX_PARTITIONS
from datalake_assets.core.partitions import PartitionBy, key_of
from datalake_assets.core.wording import size_text
from datalake_assets.defs.checks.at_rest import size_evaluations
from datalake_assets.defs.metadata import (
    PARTITION_ERRORS,
    aimed,
    asset_key,
    compaction_metadata,
    event_partition,
)
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import UNFINISHED, tag_run
from datalake_assets.defs.runtime import PASSING, failures_named, isolated
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.feed_compaction import (
    Compacted,
    by_reason,
    compact_partitions,
    missing_partitions,
    request_of,
    unusable,
)
from datalake_assets.settings import Settings

__all__ = [
    "COMPACTOR_POOL",
    "COMPACT_OP",
    "COMPACT_PARTITION",
    "FEED_TAG",
    "CompactConfig",
    "CompactionLog",
    "OpLog",
    "compact_feed",
    "compact_partition_job",
    "observation",
    "partitions_at_work",
]

COMPACT_PARTITION = "compact_partition"
#: The job's one op, below which a run's configuration is.
COMPACT_OP = "compact"
#: On compaction runs: the path of the feed, which is in the run's configuration and so nowhere to filter by.
FEED_TAG = "datalake/feed"
#: Dagster fixes pools when it loads the job, and the feed is in the run's configuration: so one pool for all feeds,
#: apart from the writers'. Its limit is how many compactions run at once; exactness never rests on it.
COMPACTOR_POOL = "lake/compact"
#: Of runs that have not ended, those that still wait included.
_NOT_ENDED = [dg.DagsterRunStatus.QUEUED, *UNFINISHED]
_MAX_TARGET_MB = 4096

_DESCRIPTION = """\
Merges the small files of some partitions of a feed into few large ones with the same rows.

Name the feed and 1 to 100 of its partitions in the Launchpad, below `ops.compact.config`:

    feed: transaction_stream
    partitions: ["2025-01-15", "2025-01-16"]

`force: true` merges however few and young the files are; `target_file_size_mb` and `max_files` stand in for the
feed's own figures. Each compacted partition gets an observation on the feed's asset. It is safe beside exports and
other compactions, and can be repeated: what is compacted already is left alone.
"""


class CompactConfig(dg.Config):
    """Which partitions are compacted, and how.

    Attributes:
        feed: Name of an active feed; read from the registry when the run starts.
        partitions: 1 to 100 partition keys.
        force: Merge however few and young the files are.
        target_file_size_mb: Size of the files to make, in MiB; None for the feed's.
        max_files: Input files of a partition at the most; None for the feed's.
    """

    feed: str = Field(description="Name of the feed, like transaction_stream.")
    partitions: list[str] = Field(
        description="1 to 100 partition keys: days like 2025-01-15, months, hours, or a table's versions like v4."
    )
    force: bool = Field(default=False, description="Merge however few and however young the files are.")
    target_file_size_mb: int | None = Field(
        default=None, description="Size of the files to make, 1 to 4096 MiB; default: the feed's."
    )
    max_files: int | None = Field(
        default=None, description="Merge at most so many files of a partition, at least 2; default: the feed's policy."
    )

    def request(self, settings: Settings) -> CompactionRequest:
        """What is asked for.

        Raises:
            ConfigError: A figure is out of bounds.
        """
        if not 1 <= len(self.partitions) <= MAX_PARTITIONS:
            raise ConfigError(f"partitions: name 1 to {MAX_PARTITIONS}, not {len(self.partitions)}")
        target, most = self.target_file_size_mb, self.max_files
        if target is not None and not 1 <= target <= _MAX_TARGET_MB:
            raise ConfigError(f"target_file_size_mb: give 1 to {_MAX_TARGET_MB}, not {target}")
        if most is not None and most < 2:  # noqa: PLR2004  one file is no merge
            raise ConfigError(f"max_files: give 2 or more, not {most}")
        return request_of(settings, force=self.force, target_file_size_mb=target, max_files=most)


class CompactionLog(Protocol):
    """Where a compaction reports what it does."""

    @property
    def instance(self) -> dg.DagsterInstance:
        """Dagster's instance, which holds what earlier compactions reported."""

    def info(self, line: str) -> None:
        """Logs a line."""

    def warning(self, line: str) -> None:
        """Logs a line that a person should read."""

    def observed(self, event: dg.AssetObservation | dg.AssetCheckEvaluation) -> None:
        """Records that a partition was compacted, or what a check says of it now."""


def compact_partition_job(lake: Lake, feeds: Sequence[Feed]) -> dg.JobDefinition:
    """The job that compacts partitions of one feed.

    Args:
        lake: The lake; its registry is asked for the feed when a run starts.
        feeds: The feeds that there are now; the Launchpad's example is about the first.
    """

    @dg.op(name=COMPACT_OP, pool=COMPACTOR_POOL, description=_DESCRIPTION)
    def compact(context: dg.OpExecutionContext, config: CompactConfig) -> None:
        tag_run(context.instance, context.run)
        with failures_named(config.feed):
            feed = lake.registry.get(config.feed)
        context.instance.add_run_tags(context.run.run_id, {FEED_TAG: feed.path})
        done = compact_feed(lake, feed, config, OpLog(context), run_id=context.run.run_id)
        context.add_output_metadata({"datalake/compaction": dg.MetadataValue.md(summary(done))})
        raise_for_failed(done)

    @dg.job(
        name=COMPACT_PARTITION,
        description=_DESCRIPTION,
        config={"ops": {COMPACT_OP: {"config": example(feeds, datetime.now(UTC))}}},
        executor_def=dg.in_process_executor,
    )
    def compact_partition() -> None:
        compact()

    return compact_partition


def partitions_at_work(instance: dg.DagsterInstance, feed: Feed) -> frozenset[str]:
    """The partitions of a feed that runs of this job are about which have not ended, whoever asked for them.

    A run that somebody launched by hand is known from its first step on.
    """
    wanted = dg.RunsFilter(job_name=COMPACT_PARTITION, statuses=_NOT_ENDED, tags={FEED_TAG: feed.path})
    keys: set[str] = set()
    for run in instance.get_runs(wanted):
        config: Any = run.run_config
        keys.update(config.get("ops", {}).get(COMPACT_OP, {}).get("config", {}).get("partitions", ()))
    return frozenset(keys)


def compact_feed(
    lake: Lake, feed: Feed, config: CompactConfig, run_log: CompactionLog, *, run_id: str
) -> list[Compacted]:
    """Compacts partitions one after another; one that fails doesn't stop the others.

    Raises:
        dagster.Failure: Figures are out of bounds, or the lake cannot be read.
    """
    with failures_named(feed):
        request = config.request(lake.settings)
        table = lake.table(feed)
        missing = missing_partitions(table, config.partitions)
    done = [Compacted(key, error=error) for key, error in missing.items()]
    compacted = compact_partitions(
        partial(lake.table, feed),
        [*dict.fromkeys(each for each in config.partitions if each not in missing)],
        request,
        run_id=run_id,
        on_plan=lambda key, plan: _log_plan(feed, key, run_log, plan),
    )
    with closing(compacted):
        for each in compacted:
            done.append(each)
            _log_outcome(lake, feed, each, run_log)
    # what was merged is merged: another partition, which a folder's checks are about too, may be damaged
    with isolated(run_log.warning, about=f"{feed.path}: checks could not be evaluated"):
        healths = [each.report.health for each in done if each.report is not None]
        for event in aimed(run_log.instance, size_evaluations(run_log.instance, lake, feed, healths)):
            run_log.observed(event)
    return done


def observation(feed: Feed, report: CompactionReport, *, lake_uri: str) -> dg.AssetObservation:
    """The observation by which Dagster shows the compaction of a partition."""
    return dg.AssetObservation(
        asset_key(feed),
        partition=event_partition(feed, report.key),
        description=f"compacted: {report.text}" if report.kernel else "nothing to compact",
        metadata=compaction_metadata(feed, report, lake_uri=lake_uri),
    )


def example(feeds: Sequence[Feed], now: datetime) -> dict[str, Any]:
    """What the Launchpad shows before anything is typed: yesterday's partition of the first stream, or so."""
    streams = [feed for feed in feeds if feed.kind is FeedKind.STREAM]
    tables = [feed for feed in feeds if feed.kind is FeedKind.TABLE]
    name, key = "transaction_stream", key_of(now - timedelta(days=1), PartitionBy.DAY)
    if streams:
        name, key = streams[0].name, key_of(now - timedelta(days=1), PartitionBy(streams[0].partition_by))
    elif tables:
        name, key = tables[0].name, "v1"
    return {"feed": name, "partitions": [key], "force": False}


def summary(done: Sequence[Compacted]) -> str:
    """A table of what became of each partition, in Markdown."""
    head = "| partition | files | size | rows | kernel | seconds | left alone | result |"
    return "\n".join([head, "|---|---|---|---:|---|---:|---:|---|", *(_row(each) for each in done)])


def raise_for_failed(done: Sequence[Compacted]) -> None:
    """Ends the run as failed if a partition failed; a retry helps if it may help one of them.

    Raises:
        dagster.Failure: It names the partitions with their errors.
    """
    errors = [(each.key, each.error) for each in done if each.error is not None]
    if errors:
        lines = "; ".join(f"{key}: {error}" for key, error in errors)
        raise dg.Failure(
            f"{len(errors)} of {len(done)} partitions failed: {lines}",
            metadata={
                "datalake/compaction": dg.MetadataValue.md(summary(done)),
                PARTITION_ERRORS: dg.MetadataValue.json({key: str(error) for key, error in errors}),
            },
            allow_retries=any(isinstance(error, PASSING) for _, error in errors),
        )


class OpLog:
    """A run's log, by way of the op's context."""

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._context = context

    @property
    def instance(self) -> dg.DagsterInstance:
        """Implements `CompactionLog`."""
        return self._context.instance

    def info(self, line: str) -> None:
        """Implements `CompactionLog`."""
        self._context.log.info(line)

    def warning(self, line: str) -> None:
        """Implements `CompactionLog`."""
        self._context.log.warning(line)

    def observed(self, event: dg.AssetObservation | dg.AssetCheckEvaluation) -> None:
        """Implements `CompactionLog`."""
        self._context.log_event(event)  # type: ignore[arg-type]  # it takes check evaluations too, pinned by a test


def _log_plan(feed: Feed, key: str, run_log: CompactionLog, plan: CompactionPlan) -> None:
    run_log.info(f"{feed.path} {key}: {_plan_text(plan)}")


def _plan_text(plan: CompactionPlan) -> str:
    if not plan.groups:
        return f"nothing to compact in {plan.estimate.files_before:,} files"
    estimate = plan.estimate
    head = (
        f"{estimate.files_before:,} files to {estimate.files_after:,}, {size_text(estimate.bytes_rewritten)} to"
        f" rewrite, saves {estimate.requests_saved:,} requests per scan"
    )
    groups = (f"{len(group.files):,} files, {size_text(group.size_bytes)}: {group.reason}" for group in plan.groups)
    return "\n".join([head, *groups])


def _log_outcome(lake: Lake, feed: Feed, one: Compacted, run_log: CompactionLog) -> None:
    if one.error is not None:
        run_log.warning(f"{feed.path} {one.key}: {one.error}")
    if one.report is None:
        return
    run_log.info(f"{feed.path} {one.key}: {one.report.text if one.changed else 'nothing was merged'}")
    for line in _left_alone(one.report.skipped):
        run_log.info(f"{feed.path} {one.key}: left alone: {line}")
    for line in _left_alone(one.report.detours):
        run_log.info(f"{feed.path} {one.key}: decoded, not merged page by page: {line}")
    for each in unusable(one.report.skipped):
        run_log.warning(f"{feed.path} {one.key}: {each.name}: {each.reason}")
    run_log.observed(observation(feed, one.report, lake_uri=lake.uri))


def _left_alone(files: Sequence[LeftAlone]) -> Iterable[str]:
    for reason, names in by_reason(files).items():
        yield f"{names[0] if len(names) == 1 else f'{len(names):,} files, like {names[0]}'}: {reason}"


def _row(one: Compacted) -> str:
    report = one.report
    if report is None:
        return f"| {one.key} | | | | | | | {one.error} |"
    result = str(one.error or ("compacted" if one.changed else "nothing to compact"))
    return (
        f"| {one.key} | {report.files_before:,} → {report.files_after:,}"
        f" | {size_text(report.bytes_before)} → {size_text(report.bytes_after)} | {report.rows:,}"
        f" | {report.way} | {report.compaction_time_ms / 1000:.1f} | {len(report.skipped):,} | {result} |"
    )
