"""Exporting a feed from a command: the same assets, on the same Dagster instance, in this process."""

import atexit
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from importlib import import_module
from types import MappingProxyType
from typing import Any

import dagster as dg

from datalake_assets.core.batches import Batches
from datalake_assets.core.facts import ExportResult, FailedCheck, PartitionFacts
from datalake_assets.defs.feeds.assets import (
    IO_MANAGER_KEY,
    ExportConfig,
    RefusedFeed,
    add_versions,
    feed_asset,
    source_assets,
    usable_feeds,
)
from datalake_assets.defs.feeds.folders import folder_asset
from datalake_assets.defs.metadata import (
    NOTES,
    asset_key,
    failed_check,
    failed_checks,
)
from datalake_assets.defs.resources import Lake, LakeResource, SourceResource
from datalake_assets.defs.runs import repair_runs, repaired_meanwhile, run_job_here
from datalake_assets.defs.runtime import isolated, known_dagster_warnings_ignored, open_instance
from datalake_assets.defs.storage.io_manager import ParquetLakeIOManager, progress_told_to, reads_begun
from datalake_assets.defs.storage.mart_assets import upstream
from datalake_assets.errors import ConfigError, DatalakeError, FeedNotFound, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind
from datalake_assets.lake.marts.mart_order import made_in_order
from datalake_assets.lake.table import Progress
from datalake_assets.policies import MIB, Level
from datalake_assets.settings import Settings
from datalake_assets.sources.systems import StandIn, no_stand_in, systems

__all__ = [
    "FeedRunner",
    "export_feed",
    "feed_runner",
    "partitions_of_a_run",
    "repair_runs",
    "warm_up",
]

# Dagster's tags of a run over one partition, or over a range of them
_PARTITION = "dagster/partition"
_RANGE_START, _RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
# Dagster ends the run for good, and then reports the interrupt as if it were the step's failure
_INTERRUPTS = {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}
# what a step fails with whose blocking check did not pass
_CHECK_FAILED = "DagsterAssetCheckFailedError"
#: Modules that are loaded when they are first needed: pyarrow's datasets bring pandas, rules bring DuckDB.
_LOADED_LATE = ("datalake_assets.lake.tables", "datalake_assets.lake.scan", "datalake_assets.lake.broken_rules")
#: Partitions that a run of a backfill exports as long as nobody knows how large they are.
UNKNOWN_RUN = 30
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class FeedRunner:
    """The feeds of a lake as Dagster assets, ready to run in this process.

    Args:
        feeds: The feeds; those whose asset is in somebody's own project are left out, since that project shows it.
        lake: The lake.
        resources: Dagster's resources: ``lake``, and one per kind of source.
        refused: Other feeds, which Dagster does not take, by name.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        lake: Lake,
        resources: Mapping[str, Any],
        *,
        refused: Mapping[str, RefusedFeed] = MappingProxyType({}),
    ) -> None:
        self.feeds = {feed.name: feed for feed in feeds if feed.asset is None}
        self.all_feeds = {feed.name: feed for feed in feeds}
        self.lake, self._refused = lake, refused
        self._resources = resources

    @cached_property
    def definitions(self) -> dg.Definitions:
        """Assets, checks and resources; no schedules and no sensors."""
        with known_dagster_warnings_ignored():
            return dg.Definitions(
                assets=[*(self._asset(feed) for feed in self.feeds.values()), *source_assets(self.feeds.values())],
                resources={**self._resources, IO_MANAGER_KEY: ParquetLakeIOManager(lake=self._resources["lake"])},
                executor=dg.in_process_executor,
            )

    def _asset(self, feed: Feed) -> dg.AssetsDefinition:
        if feed.is_adopted:
            return folder_asset(feed, lake_uri=self.lake.uri)
        run_partitions = partitions_of_a_run(self.lake, feed)
        return feed_asset(feed, lake_uri=self.lake.uri, feeds=self.all_feeds, run_partitions=run_partitions)

    @property
    def exported(self) -> tuple[str, ...]:
        """Names of the feeds that are exported, marts after what they read; adopted folders are not."""
        return tuple(feed.name for feed in made_in_order([each for each in self.feeds.values() if each.is_exported]))

    def plan(self, instance: dg.DagsterInstance, name: str, partitions: Sequence[str] | None = None) -> tuple[str, ...]:
        """The partitions that a run of a feed is about, known to Dagster; None catches up, or allocates a version.

        Raises:
            FeedNotFound: There is no such feed.
            InvalidFeed: Dagster refuses it.
            ConfigError: Its partitions cannot be exported.
        """
        feed = self._feed(name)
        keys = self.lake.table(feed).plan(partitions).partitions
        add_versions(instance, feed, keys)
        return keys

    def export(
        self,
        instance: dg.DagsterInstance,
        name: str,
        *,
        partitions: Sequence[str] | None = None,
        config: ExportConfig | None = None,
        tags: Mapping[str, str] | None = None,
        quiet: bool = False,
    ) -> ExportResult:
        """Exports a feed in a run of its own, in this process; errors of this package end up in the result.

        An interrupt ends the run as failed and goes on as `KeyboardInterrupt`.

        Args:
            instance: Dagster's instance.
            name: The feed.
            partitions: Contiguous partition keys; None catches up with the source.
            config: What a person decided for this run.
            tags: More tags for the run.
            quiet: Keep Dagster from writing to the terminal; its event log gets every line all the same.
        """
        began = time.monotonic()
        keys: tuple[str, ...] = ()
        failed: list[str] = []
        with isolated(failed.append):
            if blocked := self.blocked_by(instance, name):
                raise ConfigError(
                    f"feed {name!r} is not made anew: check {blocked} fails, which blocks what is made of it;"
                    " mend the rows, or take the check out of 'blocking'"
                )
            keys = self.plan(instance, name, partitions)
        for line in failed:
            return ExportResult(name, self._kind(name), seconds=time.monotonic() - began, error=line)
        feed = self.feeds[name]
        with known_dagster_warnings_ignored():
            result = run_job_here(
                self._job,
                instance,
                asset_key=asset_key(feed),
                run_config={**run_config(feed, config or ExportConfig()), **(_QUIET if quiet else {})},
                tags={**partition_tags(keys), **(tags or {})},
            )
        return _result(result, feed, seconds=time.monotonic() - began)

    def blocked_by(self, instance: dg.DagsterInstance, name: str) -> str:
        """The check that keeps a mart from being made: a blocking one of what it reads, which fails; else empty."""
        feed = self.feeds.get(name)
        if feed is None or not feed.is_mart:
            return ""
        read = {dependency.asset_key for dependency in upstream(feed, self.all_feeds)}
        inputs = [each for each in self.all_feeds.values() if each.checks.blocking and asset_key(each) in read]
        for name_of_input, checks in failed_checks(instance, inputs).items():
            blocking = self.all_feeds[name_of_input].checks.blocking
            for check, failures in checks.items():
                if check in blocking and any(each.level == Level.ERROR.value for each in failures):
                    return f"{check} of {self.all_feeds[name_of_input].path}"
        return ""

    def build(self) -> None:
        """Builds what a run needs; each run would, and the first one does."""
        _ = self._job

    @cached_property
    def _job(self) -> dg.JobDefinition:
        with known_dagster_warnings_ignored():
            return self.definitions.resolve_implicit_global_asset_job_def()

    def _kind(self, name: str) -> str:
        known = self._refused[name].feed if name in self._refused else self.feeds.get(name)
        return known.kind.value if known else ""

    def _feed(self, name: str) -> Feed:
        if name in self._refused:
            raise InvalidFeed(name, self._refused[name].reason)
        if name not in self.feeds:
            raise FeedNotFound(name)
        return self.feeds[name]


def partitions_of_a_run(lake: Lake, feed: Feed) -> int | None:
    """How many partitions of a stream a run of a backfill should export; None for all of them.

    Only where each is pulled by itself: rows that are numbered come in their order, whatever partitions are selected.
    By their bytes only where a launcher is named: one request for the feed, in each process that loads the location.
    """
    if feed.kind is not FeedKind.STREAM or not feed.is_exported or feed.is_mart:
        return None
    if feed.position_kind is not PositionKind.WINDOW:
        return None
    if feed.runs.partitions is not None or not lake.settings.run_launcher:
        return feed.runs.partitions
    try:
        totals = lake.table(feed).totals()
    except DatalakeError:  # it says so when it is run
        totals = None
    if totals is None or not totals.partitions or not totals.size_bytes:
        return UNKNOWN_RUN
    most = feed.runs.max_bytes or lake.settings.run_mb * MIB
    return max(1, most * totals.partitions // totals.size_bytes)


def default_resources(settings: Settings, *, stand_in: StandIn = no_stand_in) -> dict[str, Any]:
    """The resources of an installation: its lake, and the systems that it reads, by their types.

    Args:
        settings: The installation.
        stand_in: Brings the sources of lakes that have their own.
    """
    lake = LakeResource(settings=settings)
    sources = {
        type_: SourceResource(type=type_, settings=settings, lake=lake, stand_in=stand_in) for type_ in systems()
    }
    return {"lake": lake, **sources}


def feed_runner(settings: Settings) -> FeedRunner:
    """The runner of a lake's active feeds, built once per process and state of the registry."""
    lake = Lake(settings)
    return _runner(settings, lake.registry.digest())


def warm_up(settings: Settings) -> None:
    """Does what the first export of a process would do besides, so that its figures are its own as the others' are."""
    for name in _LOADED_LATE:
        import_module(name)
    feed_runner(settings).build()


def export_feed(
    settings: Settings,
    name: str,
    *,
    partitions: Sequence[str] | None = None,
    allow_shrink: bool = False,
    new_epoch: bool = False,
    instance: dg.DagsterInstance | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    instead_of: Callable[[Feed, Batches], Batches] | None = None,
) -> ExportResult:
    """Runs a feed's asset in this process, so that Dagster's UI shows it like any other run.

    Args:
        settings: The installation.
        name: The feed.
        partitions: Contiguous partition keys; None catches up with the source (a table: lands its next version).
        allow_shrink: Accept that the source has fewer rows than the lake.
        new_epoch: Accept that the source was recreated or has lost rows.
        instance: Dagster's instance; default: the one of ``DAGSTER_HOME``.
        on_progress: Called with how far the write is.
        instead_of: Gives for a feed, and the read that its run would begin, one that was begun before.

    Returns:
        What came of it. A `DatalakeError` of the run becomes ``error``, and never an exception.

    Raises:
        FeedNotFound: There is no such active feed.
        LakeError: The registry cannot be read.
    """
    runner = feed_runner(settings)
    if name not in runner.feeds:
        runner.lake.registry.get(name)  # says whether it is archived or invalid
    config = ExportConfig(allow_shrink=allow_shrink, new_epoch=new_epoch)
    own = instance or _own_instance(os.environ.get("DAGSTER_HOME", ""))
    repair_runs(own)
    with progress_told_to(on_progress), reads_begun(instead_of), repaired_meanwhile(own):
        return runner.export(own, name, partitions=partitions, config=config, quiet=True)


def run_config(feed: Feed, config: ExportConfig) -> dict[str, Any]:
    """The run configuration of a feed's asset; only what differs from the defaults, to keep the UI readable."""
    chosen = {name: value for name, value in config.model_dump().items() if value}
    return {"ops": {asset_key(feed).to_python_identifier(): {"config": chosen}}} if chosen else {}


def partition_tags(keys: Sequence[str]) -> dict[str, str]:
    """Dagster's tags of a run over contiguous partitions."""
    return {_PARTITION: keys[0]} if len(keys) == 1 else {_RANGE_START: keys[0], _RANGE_END: keys[-1]}


@lru_cache(maxsize=4)
def _runner(settings: Settings, digest: str) -> FeedRunner:  # noqa: ARG001  the digest is part of the cache's key
    lake, resources = Lake(settings), default_resources(settings)
    feeds = lake.registry.list().feeds
    refused = {
        each.feed.name: each
        for each in usable_feeds(feeds, lambda some: FeedRunner(some, lake, resources).definitions).refused
    }
    return FeedRunner([feed for feed in feeds if feed.name not in refused], lake, resources, refused=refused)


@lru_cache(maxsize=1)
def _own_instance(home: str) -> dg.DagsterInstance:  # noqa: ARG001  the digest is part of the cache's key
    """The instance of ``DAGSTER_HOME``, kept open: opening it takes as long as half a run."""
    instance = open_instance()
    atexit.register(instance.dispose)
    return instance


def _result(result: dg.JobExecutionResult, feed: Feed, *, seconds: float) -> ExportResult:
    metadata = _materializations(result, feed)
    totals = next(iter(metadata.values()), {})
    is_landed = result.success or _is_blocked(result)
    return ExportResult(
        feed=feed.name,
        kind=feed.kind.value,
        run_id=result.run_id,
        partitions=tuple(_partition(key, metadata[key]) for key in sorted(metadata, key=lambda key: (len(key), key))),
        rows_read=totals.get("datalake/rows_read", 0),
        rows_quarantined=totals.get("datalake/rows_quarantined", 0),
        seconds=seconds,
        error=None if is_landed else _failure(result),
        notes=tuple(totals.get(NOTES, ())),
        checks=_failed_checks(result, feed),
    )


def _is_blocked(result: dg.JobExecutionResult) -> bool:
    """Whether a run failed by a blocking check alone: Dagster fails it after the rows were landed."""
    failures = [event.step_failure_data for event in result.filter_events(lambda event: event.is_step_failure)]
    return bool(failures) and all(each.error and each.error.cls_name == _CHECK_FAILED for each in failures)


def _failed_checks(result: dg.JobExecutionResult, feed: Feed) -> tuple[FailedCheck, ...]:
    wanted = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    evaluations = [
        event.asset_check_evaluation_data for event in result.filter_events(lambda event: event.event_type is wanted)
    ]
    found = dict.fromkeys(
        failed_check(each) for each in evaluations if each.asset_key == asset_key(feed) and not each.passed
    )
    return tuple(sorted(found, key=lambda each: each.level != Level.ERROR))


def _materializations(result: dg.JobExecutionResult, feed: Feed) -> dict[str, dict[str, Any]]:
    """Metadata of the partitions that were written, or selected; not of those that the run found to be empty."""
    events = result.filter_events(lambda event: event.is_step_materialization)
    found = [event.step_materialization_data.materialization for event in events]
    return {
        each.partition or "": {name: value.value for name, value in each.metadata.items()}
        for each in found
        if each.asset_key == asset_key(feed) and "datalake/rows_added" in each.metadata
    }


def _partition(key: str, metadata: Mapping[str, Any]) -> PartitionFacts:
    return PartitionFacts(
        key=key,
        rows=metadata["dagster/partition_row_count"],
        rows_added=metadata["datalake/rows_added"],
        files=metadata.get("datalake/files", 0),
        small_files=metadata.get("datalake/small_files", 0),
        size_bytes=metadata.get("datalake/size_bytes", 0),
    )


def _failure(result: dg.JobExecutionResult) -> str:
    """The line of the step that failed, as `defs.failures` wrote it; else what Dagster has to say."""
    for event in result.filter_events(lambda event: event.is_step_failure):
        failure = event.step_failure_data
        if failure.user_failure_data and failure.user_failure_data.description:
            return failure.user_failure_data.description
        if failure.error and failure.error.cls_name in _INTERRUPTS:
            raise KeyboardInterrupt
        if failure.error:
            return _innermost(failure.error)
    return f"run {result.run_id} did not end well; see its log in Dagster"


def _innermost(error: Any) -> str:
    """The message at the bottom of a chain of causes: Dagster wraps what it doesn't know."""
    while error.cause is not None:
        error = error.cause
    return " ".join(error.message.split())
