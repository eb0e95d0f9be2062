"""What assets of other people's projects return, and what they take: frames into the lake, and out of it again."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from datalake_assets.config import Feed, FeedKind
from datalake_assets.core.batches import Batches
from datalake_assets.core.frames import FramesByKey
from datalake_assets.defs.failures import failures_named
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.storage.asset_feeds import declared_feed, declared_name
from datalake_assets.defs.storage.landing import FeedRead, RunLog, land
from datalake_assets.errors import ConfigError, FeedNotFound
from datalake_assets.sources.frames import frame_batches

__all__ = ["feed_of_asset", "land_output"]


def land_output(
    lake: Lake, spec: dg.AssetSpec, output: Any, run_log: RunLog, *, partitions: Sequence[str] | None, run_id: str
) -> None:
    """Writes what an asset returned for the partitions of a run, which its rows replace; or as a table's new version.

    Args:
        lake: The lake.
        spec: The asset.
        output: A frame, or a dict of frames by partition key; see `frame_batches`.
        run_log: Where the run tells what it does.
        partitions: The run's partitions; None if the asset has none.
        run_id: The Dagster run.

    Raises:
        dagster.Failure: The output cannot be landed; nothing of the partition at fault was committed.
    """
    with failures_named(f"asset {spec.key.to_user_string()}"):
        from datalake_assets.lake.declarations import declare  # noqa: PLC0415  definitions load without stores

        declared = declared_feed(spec)
        if declared.kind is FeedKind.FOLDER:
            raise ConfigError(
                f"asset {declared.asset!r}: its metadata 'dagster/uri' says that something else writes its files, and"
                " it returned rows; remove the metadata, or return nothing ('-> None')"
            )
        batches = _batches(declared, output, partitions)
        feed = declare(lake.store, declared)
        table = lake.table(feed)
        keys = table.plan(partitions).partitions
    read = FeedRead(feed, table, batches, keys, allow_shrink=True, environment=lake.settings.env)
    land(read, run_log, run_id=run_id, lake_uri=lake.uri)


def feed_of_asset(lake: Lake, key: dg.AssetKey, metadata: Mapping[str, Any]) -> Feed:
    """The feed that an asset's data are in: one that the asset writes, or one of ours.

    Args:
        lake: The lake.
        key: The asset.
        metadata: Of its definition, as far as it is known here.

    Raises:
        FeedNotFound: The lake has none yet, or has archived it.
        ConfigError: The feed of that name is another asset's.
    """
    name = declared_name(key, metadata)
    for each in dict.fromkeys((name, key.path[-1])):
        try:
            feed = lake.registry.get(each)
        except FeedNotFound as error:
            if error.archived:
                raise
            continue
        if asset_key(feed) == key:
            return feed
    raise ConfigError(
        f"asset {key.to_user_string()!r} is not in the lake {lake.uri}; materialize it first, with the same lake"
    )


def _batches(feed: Feed, output: Any, partitions: Sequence[str] | None) -> Batches:
    asset, time_column = feed.asset or "", feed.time_column if partitions else None
    if not isinstance(output, dict):
        return frame_batches(output, asset=asset, time_column=time_column)
    if partitions is None:
        raise ConfigError(f"asset {asset!r} returned a dict and has no partitions; return one frame")
    missing, others = sorted(set(partitions) - set(output)), sorted(set(map(str, output)) - set(partitions))
    if missing or others:
        parts = [("lacks", missing), ("has others:", others)]
        told = " and ".join(f"{what} {', '.join(keys[:5])}" for what, keys in parts if keys)
        raise ConfigError(
            f"asset {asset!r} returned a dict that {told}; return one frame for each partition of the run, an empty one"
            " for a partition without rows"
        )
    return FramesByKey({key: frame_batches(output[key], asset=asset, time_column=time_column) for key in partitions})
