"""Checks and a compaction sensor for the assets of anybody's project, by the same rules as those of our own feeds."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import dagster as dg

from datalake_assets.core.compaction.watch import FeedWatch, heard
from datalake_assets.core.compaction.watch_state import WatchState, state_from_json, state_to_json
from datalake_assets.core.facts import PlannedPartition
from datalake_assets.core.partitions import PartitionBy, window_of
from datalake_assets.core.verdicts import FILE_SIZE, FRESHNESS, SMALL_FILES, Verdict, freshness_verdict
from datalake_assets.defs.checks.at_rest import folder_verdicts, healths_of
from datalake_assets.defs.checks.on_write import DESCRIPTIONS, newest_commit, newest_event, size_verdicts
from datalake_assets.defs.compaction.job import compact_partition_job
from datalake_assets.defs.compaction.sensor import COMPACTION_SENSOR, INTERVAL_S, CompactionWatcher
from datalake_assets.defs.metadata import aimed, asset_key, check_evaluation, check_result
from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.defs.runtime import failures_named, isolated, known_dagster_warnings_ignored
from datalake_assets.defs.storage.asset_feeds import AssetLike, DeclaredAsset, declared_assets
from datalake_assets.errors import ConfigError, DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.policies import Checks, CompactionPolicy, Freshness, Limits

__all__ = ["build_compaction_sensor", "build_file_size_checks", "build_freshness_checks"]

#: Up to this many partitions each have their evaluations recorded by a check that looks at all of them; above, those
#: that did not pass.
ALL_TOLD = 1_000

Result: TypeAlias = dg.AssetCheckResult


def build_file_size_checks(
    assets: Iterable[AssetLike],
    *,
    lake: LakeResource,
    policy: CompactionPolicy | None = None,
    small_bytes_percent: Limits | None = None,
    oversize_bytes_percent: Limits | None = None,
    small_files: Limits | None = None,
    blocking: bool = False,
) -> list[dg.AssetChecksDefinition]:
    """Checks ``file_size`` and ``small_files`` for each asset: do the bytes lie in files of a good size?

    Both are about the partitions of the run that they are part of. Executed by themselves they look at all partitions.
    What is small is the feed's ``small_file_bytes`` (64 MiB unless the asset's metadata says otherwise), and what is
    too many what compaction would merge.

    Args:
        assets: Assets that `ParquetLakeIOManager` stores, and assets whose ``dagster/uri`` names a folder of Parquet
            files that something else writes.
        lake: The lake.
        policy: When small files are to be merged; give the sensor the same. None for what the lake has registered.
        small_bytes_percent: Share of a partition's bytes in small files that compaction would merge; by default the
            check warns above 50.
        oversize_bytes_percent: Share of its bytes in files that compaction would split; by default it warns above 0.
        small_files: Small files of a partition. Whatever it is, the check warns while compaction would merge some.
        blocking: Whether an error (not a warning) keeps downstream assets of the same run from running.

    Raises:
        ConfigError: An asset cannot be a feed of a lake; says why.
    """
    given = {
        "small_bytes_percent": small_bytes_percent,
        "oversize_bytes_percent": oversize_bytes_percent,
        "small_files": small_files,
    }
    limits = {name: limit for name, limit in given.items() if limit is not None}
    checks = Checks.model_validate(limits) if limits else None
    declared = declared_assets(assets, compaction=policy, checks=checks)
    return [_file_size_checks(each, lake, blocking=blocking) for each in declared]


def build_freshness_checks(
    assets: Iterable[AssetLike],
    *,
    lake: LakeResource,
    max_event_age: timedelta | None = None,
    max_commit_age: timedelta | None = None,
    fail_event_age: timedelta | None = None,
    fail_commit_age: timedelta | None = None,
) -> list[dg.AssetChecksDefinition]:
    """A check ``freshness`` for each asset: are its newest row, and its newest commit, new enough?

    Filling in old partitions makes no asset fresh, and neither does compaction. The newest row is found by the asset's
    time column (metadata ``datalake/time_column``); an asset with partitions and without one is taken to be complete up
    to the end of its newest partition that has rows. At least one age is to be given.

    Args:
        assets: The assets, as `build_file_size_checks` takes them.
        lake: The lake.
        max_event_age: Age of the newest row above which the check warns.
        max_commit_age: Age of the newest commit, of the current partition or the one before it, above which it warns.
        fail_event_age: Age of the newest row above which the check is an error.
        fail_commit_age: Age of the newest commit above which the check is an error.

    Raises:
        ConfigError: No age was given, an asset cannot be a feed, or its rows have no times.
    """
    policy = Freshness(
        max_event_age=max_event_age,
        max_commit_age=max_commit_age,
        fail_event_age=fail_event_age,
        fail_commit_age=fail_commit_age,
    )
    if not policy.is_watched:
        raise ConfigError("build_freshness_checks: give an age, like max_commit_age=timedelta(hours=26)")
    declared = declared_assets(assets, freshness=policy)
    for each in declared:
        if (max_event_age or fail_event_age) and not _has_times(each.feed):
            raise ConfigError(
                f"asset {each.feed.asset!r}: its rows have no times, so max_event_age cannot be judged; give"
                " max_commit_age instead" + _cure(each.feed)
            )
    return [_freshness_check(each, lake) for each in declared]


def _has_times(feed: Feed) -> bool:
    return feed.kind is FeedKind.STREAM or (feed.is_adopted and feed.time_column is not None)


def _cure(feed: Feed) -> str:
    return ", or its metadata 'datalake/time_column'" if feed.is_adopted else ""


def _file_size_checks(asset: DeclaredAsset, lake: LakeResource, *, blocking: bool) -> dg.AssetChecksDefinition:
    by_partition = asset.feed.kind is FeedKind.STREAM
    with known_dagster_warnings_ignored():
        specs = [
            dg.AssetCheckSpec(
                name,
                asset=asset.spec.key,
                description=DESCRIPTIONS[name],
                blocking=blocking,
                partitions_def=asset.spec.partitions_def if by_partition else None,
            )
            for name in (FILE_SIZE, SMALL_FILES)
        ]

    @dg.multi_asset_check(specs=specs, name=f"file_sizes_of_{asset.feed.name}", can_subset=True)
    def evaluate(context: dg.AssetCheckExecutionContext) -> Iterator[Result]:
        names = sorted(each.name for each in context.selected_asset_check_keys)
        sizes = _sizes(context.instance, lake.open(), asset.feed, _run_keys(context) if by_partition else None)
        for event in aimed(context.instance, sizes.events(names, by_partition=by_partition)):
            _log(context, event)
        yield from sizes.results(names, by_partition=by_partition)

    return evaluate


def _freshness_check(asset: DeclaredAsset, lake: LakeResource) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset.spec.key, name=FRESHNESS, description=DESCRIPTIONS[FRESHNESS])
    def freshness(context: dg.AssetCheckExecutionContext) -> Result:
        with failures_named(asset.feed):
            verdict = _freshness(context.instance, lake.open(), asset.feed, now=datetime.now(UTC))
        return check_result(FRESHNESS, verdict, asset_key=asset.spec.key)

    return freshness


def _run_keys(context: dg.AssetCheckExecutionContext) -> Sequence[str] | None:
    """The partitions of the run; None if it has none, as where a person executes the check by itself."""
    return context.partition_keys if context.has_partition_key or context.has_partition_key_range else None


def _log(context: dg.AssetCheckExecutionContext, event: dg.AssetCheckEvaluation) -> None:
    context.op_execution_context.log_event(event)  # type: ignore[arg-type]  # it takes them, and its annotation lags


def _sizes(instance: dg.DagsterInstance, lake: Lake, declared: Feed, keys: Sequence[str] | None) -> "_Sizes":
    with failures_named(declared):
        feed = _look(lake, declared)
        found = [] if feed is None else healths_of(instance, lake, feed, keys)
    seen = {each.key for each in found}
    empty = [PlannedPartition(key) for key in keys or () if key not in seen]
    return _Sizes(feed or declared, keys, (*found, *empty))


def _look(lake: Lake, declared: Feed) -> Feed | None:
    """The feed as it is registered; None if there is nothing in it yet. A folder is listed anew."""
    from datalake_assets.defs.storage.asset_feeds import registered  # noqa: PLC0415  definitions load without stores

    feed = registered(lake.store, declared)
    if feed is not None:
        lake.table(feed).look_again()
    return feed


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How the partitions of a run are, or all of them.

    Attributes:
        feed: The feed.
        keys: The run's partitions; None for all.
        partitions: How they are.
    """

    feed: Feed
    keys: Sequence[str] | None
    partitions: tuple[PlannedPartition, ...]

    def events(self, names: Sequence[str], *, by_partition: bool) -> Iterator[dg.AssetCheckEvaluation]:
        """An event for each partition, where there is more than one; and for all, where Dagster takes no result.

        It takes none of a check with partitions from a run that has none.
        """
        if not by_partition or (self.keys is not None and len(self.keys) == 1):
            return
        for each in self.partitions:
            for name, one in size_verdicts(self.feed, [each]).items():
                if name in names and (len(self.partitions) <= ALL_TOLD or not one.passed):
                    yield check_evaluation(name, one, asset_key=asset_key(self.feed), partition=each.key)
        if self.keys is None:
            for name in names:
                yield check_evaluation(name, self._verdicts[name], asset_key=asset_key(self.feed))

    def results(self, names: Sequence[str], *, by_partition: bool) -> Iterator[Result]:
        """The results of the run as a whole."""
        if not by_partition or self.keys is not None:
            for name in names:
                yield check_result(name, self._verdicts[name], asset_key=asset_key(self.feed))

    @property
    def _verdicts(self) -> dict[str, Verdict]:
        return size_verdicts(self.feed, self.partitions)


def _freshness(instance: dg.DagsterInstance, lake: Lake, declared: Feed, *, now: datetime) -> Verdict:
    feed = _look(lake, declared)
    if feed is None:
        return freshness_verdict(declared.freshness, commit=None, event=None, now=now)
    if not lake.table(feed).is_written_by_us:
        return folder_verdicts(feed, healths_of(instance, lake, feed), now=now)[FRESHNESS]
    commit = newest_commit(instance, feed, now=now)
    return freshness_verdict(feed.freshness, commit=commit, event=_newest_event(lake, feed, now=now), now=now)


def _newest_event(lake: Lake, feed: Feed, *, now: datetime) -> datetime | None:
    """The newest row's time; without a time column the end of the newest partition with rows, if that has come."""
    table = lake.table(feed)
    if feed.time_column is not None or feed.kind is not FeedKind.STREAM:
        return newest_event(table)
    for key in reversed(table.partitions()):
        report = table.report(key)
        if report is not None and report.rows:
            return min(now, window_of(key, PartitionBy(feed.partition_by)).end)
    return None


#: Seconds after which a folder is listed again, though no event reported a change.
LOOK_EVERY_S = 300.0

_DESCRIPTION = """\
Compacts the partitions of assets that need it by their policy, as they change: it looks at what was written since its
last tick, and asks for runs of `compact_partition`. A partition that cannot be compacted is reported once, as an
observation on its asset. Folders that something else writes are listed every few minutes, too.
"""


def build_compaction_sensor(
    assets: Iterable[AssetLike],
    *,
    lake: LakeResource,
    policy: CompactionPolicy | None = None,
    name: str = COMPACTION_SENSOR,
    minimum_interval_seconds: int = INTERVAL_S,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
) -> dg.SensorDefinition:
    """A sensor that has the small files of assets merged, by a job that it brings along.

    A tick costs a few requests for each asset and each partition that changed, and nothing for others: it reads
    Dagster's event log, not the lake. A compaction changes no rows, so it materializes nothing: it is an observation on
    the asset, and nothing downstream runs again.

    Args:
        assets: Assets that `ParquetLakeIOManager` stores, and assets whose ``dagster/uri`` names a folder of Parquet
            files that something else writes; such a folder is adopted at the first tick that finds files in it.
        lake: The lake.
        policy: When and how small files are merged; it is registered with the assets' feeds. None for what the lake has
            registered, or for the defaults.
        name: The sensor's. The job is called ``compact_partition``, so a project has one such sensor for each lake, and
            one lake.
        minimum_interval_seconds: Between two ticks.
        default_status: Whether it runs before anybody turns it on.

    Raises:
        ConfigError: An asset cannot be a feed of a lake; says why.
    """
    feeds = [each.feed for each in declared_assets(assets, compaction=policy)]
    opened = lake.open()
    watcher = _AssetWatcher(opened, feeds)

    @dg.sensor(
        name=name,
        job=compact_partition_job(opened, feeds),
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=_DESCRIPTION,
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return watcher.tick(context.instance, context.cursor, warn=context.log.warning)

    return watch


@dataclass(slots=True)
class _AssetWatcher:
    """What the sensor does at each tick: brings the registry and the folders up to date, then watches as ours does.

    Attributes:
        lake: The lake.
        declared: The feeds that the assets declare.
        looked_at: When each folder was listed last, by this process's clock.
        known: The feeds as they are registered, by name.
        digest: Of the registry that they are from.
    """

    lake: Lake
    declared: Sequence[Feed]
    looked_at: dict[str, float] = field(default_factory=dict)
    known: dict[str, Feed] = field(default_factory=dict)
    digest: str | None = None

    def tick(self, instance: dg.DagsterInstance, cursor: str | None, *, warn: Callable[[str], None]) -> dg.SensorResult:
        """One tick; an asset that cannot be read stops no other."""
        state = state_from_json(cursor)
        self._forget_if_changed()
        feeds = []
        for each in self.declared:
            feed, watch = (each if each.path in state.feeds else None), None
            with isolated(warn, about=f"asset {each.asset!r} is looked at again at the next tick"):
                feed, watch = self._look(instance, each, state.feeds.get(each.path))
            if watch is not None:
                state = WatchState({**state.feeds, each.path: watch}, state.turn)
            feeds += [feed] if feed is not None else []
        return CompactionWatcher(self.lake, feeds).tick(instance, state_to_json(state), warn=warn)

    def _look(
        self, instance: dg.DagsterInstance, declared: Feed, known: FeedWatch | None
    ) -> tuple[Feed | None, FeedWatch | None]:
        """The feed as it is registered, and its watch if an event reported a change of a folder."""
        feed = self._registered(declared)
        if feed is None or not feed.is_adopted or not self._is_due(instance, feed, known):
            return feed, None
        changed = self._changed(feed)
        keys = changed if known is not None else self.lake.table(feed).partitions()
        self.looked_at[feed.path] = time.monotonic()
        return feed, heard(known or FeedWatch(), keys)

    def _forget_if_changed(self) -> None:
        """One listing stands for the requests that all feeds would take, as long as nobody changes any."""
        try:
            digest = self.lake.registry.digest()
        except DatalakeError:  # each feed says so itself
            digest = None
        if digest is None or digest != self.digest:
            self.known.clear()
        self.digest = digest

    def _registered(self, declared: Feed) -> Feed | None:
        from datalake_assets.defs.storage.asset_feeds import registered  # noqa: PLC0415  definitions load without stores

        if declared.name not in self.known:
            feed = registered(self.lake.store, declared)
            if feed is None:
                return None
            self.known[declared.name] = feed
        return self.known[declared.name]

    def _is_due(self, instance: dg.DagsterInstance, feed: Feed, known: FeedWatch | None) -> bool:
        if time.monotonic() - self.looked_at.get(feed.path, float("-inf")) >= LOOK_EVERY_S or known is None:
            return True
        newest = instance.fetch_materializations(asset_key(feed), limit=1).records
        return bool(newest) and newest[0].storage_id > known.materialized

    def _changed(self, feed: Feed) -> list[str]:
        return self.lake.table(feed).look_again().changed
