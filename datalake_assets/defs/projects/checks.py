"""Checks for the assets of anybody's project: whether their files are of a good size, and whether they are fresh.

They judge by the same rules as those of our own feeds: `datalake_assets.core.health`, `datalake_assets.core.freshness`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import dagster as dg

from datalake_assets.config import Feed, FeedKind
from datalake_assets.core.freshness import freshness_verdict
from datalake_assets.core.health import FILE_SIZE, FRESHNESS, SMALL_FILES, PartitionHealth, Verdict
from datalake_assets.core.partitions import PartitionBy, window_of
from datalake_assets.defs.check_results import aimed, check_evaluation, check_result
from datalake_assets.defs.checks.files import folder_verdicts, healths_of
from datalake_assets.defs.checks.freshness import newest_commit, newest_event
from datalake_assets.defs.checks.on_write import DESCRIPTIONS, size_verdicts
from datalake_assets.defs.failures import failures_named
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.quiet import known_dagster_warnings_ignored
from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.defs.storage.asset_feeds import AssetLike, DeclaredAsset, declared_assets
from datalake_assets.errors import ConfigError
from datalake_assets.policies import Checks, CompactionPolicy, Freshness, Limits

__all__ = ["build_file_size_checks", "build_freshness_checks"]

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

    Filling in old partitions makes no asset fresh, and neither does compaction. The newest row is told by the asset's
    time column (metadata ``datalake/time_column``); an asset with partitions and without one is taken to be complete up
    to the end of its newest partition that has rows. At least one age is to be given.

    Args:
        assets: See `build_file_size_checks`.
        lake: The lake.
        max_event_age: Age of the newest row above which the check warns.
        max_commit_age: Age of the newest commit, of the current partition or the one before it, likewise.
        fail_event_age: Age above which the check is an error.
        fail_commit_age: Likewise.

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
    return feed.kind is FeedKind.STREAM or (feed.kind is FeedKind.FOLDER and feed.time_column is not None)


def _cure(feed: Feed) -> str:
    return ", or its metadata 'datalake/time_column'" if feed.kind is FeedKind.FOLDER else ""


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
    empty = [PartitionHealth(key) for key in keys or () if key not in seen]
    return _Sizes(feed or declared, keys, (*found, *empty))


def _look(lake: Lake, declared: Feed) -> Feed | None:
    """The feed as it is registered; None if there is nothing in it yet. A folder is looked at anew."""
    from datalake_assets.lake.declarations import registered  # noqa: PLC0415  definitions load without stores
    from datalake_assets.lake.tables import look_again  # noqa: PLC0415  likewise

    feed = registered(lake.store, declared)
    if feed is not None:
        look_again(lake.table(feed))
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
    partitions: tuple[PartitionHealth, ...]

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
    if feed.kind is FeedKind.FOLDER:
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
