"""The compaction sensor for the assets of anybody's project: the same watcher as ours, over what these assets write."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import dagster as dg

from datalake_assets.config import Feed, FeedKind
from datalake_assets.core.compaction_cursor import WatchState, state_from_json, state_to_json
from datalake_assets.core.compaction_watch import FeedWatch, heard
from datalake_assets.defs.compaction.job import compact_partition_job
from datalake_assets.defs.compaction.sensor import COMPACTION_SENSOR, INTERVAL_S, CompactionWatcher
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.defs.storage.asset_feeds import AssetLike, declared_assets
from datalake_assets.errors import DatalakeError
from datalake_assets.policies import CompactionPolicy

__all__ = ["build_compaction_sensor"]

#: Seconds after which a folder is listed again, though nobody said that it changed.
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
        """One tick; an asset that cannot be looked at stops no other."""
        state = state_from_json(cursor)
        self._forget_if_changed()
        feeds = []
        for each in self.declared:
            try:
                feed, watch = self._look(instance, each, state.feeds.get(each.path))
            except DatalakeError as error:
                warn(f"asset {each.asset!r} is looked at again at the next tick: {error}")
                feed, watch = (each if each.path in state.feeds else None), None
            if watch is not None:
                state = WatchState({**state.feeds, each.path: watch}, state.turn)
            feeds += [feed] if feed is not None else []
        return CompactionWatcher(self.lake, feeds).tick(instance, state_to_json(state), warn=warn)

    def _look(
        self, instance: dg.DagsterInstance, declared: Feed, known: FeedWatch | None
    ) -> tuple[Feed | None, FeedWatch | None]:
        """The feed as it is registered, and its watch if something was heard of a folder."""
        feed = self._registered(declared)
        if feed is None or feed.kind is not FeedKind.FOLDER or not self._is_due(instance, feed, known):
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
        from datalake_assets.lake.declarations import registered  # noqa: PLC0415  definitions load without stores

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
        from datalake_assets.lake.folder_table import FolderTable  # noqa: PLC0415  definitions load without stores

        return FolderTable(self.lake.store, feed).reconcile().changed
