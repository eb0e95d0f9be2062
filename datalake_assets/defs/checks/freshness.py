"""How fresh a feed is: its newest export by Dagster's event log, its newest row by its manifests."""

from datetime import UTC, datetime

import dagster as dg

from datalake_assets.config import Feed, FeedKind
from datalake_assets.core.freshness import counts_as_fresh, fresh_partitions, freshness_verdict
from datalake_assets.core.health import Verdict
from datalake_assets.core.partitions import PartitionBy
from datalake_assets.defs.metadata import asset_key
from datalake_assets.lake.base import LakeTable

__all__ = ["freshness_of", "newest_commit", "newest_event"]

#: Materializations that are looked at, newest first: late rows of other days come between.
_LOOKED_AT = 500


def freshness_of(
    instance: dg.DagsterInstance, table: LakeTable, *, now: datetime, key: dg.AssetKey | None = None
) -> Verdict | None:
    """Judges a feed's freshness; None if it was never exported.

    Args:
        instance: Whose event log knows the exports.
        table: The feed's data.
        now: The time.
        key: Its asset; default: the one of our own code location.
    """
    feed = table.feed
    own = key or asset_key(feed)
    if instance.get_latest_materialization_event(own) is None:
        return None
    watches_rows = feed.freshness.max_event_age or feed.freshness.fail_event_age
    event = newest_event(table) if watches_rows else None
    commit = newest_commit(instance, feed, now=now, key=own)
    return freshness_verdict(feed.freshness, commit=commit, event=event, now=now)


def newest_commit(
    instance: dg.DagsterInstance, feed: Feed, *, now: datetime, key: dg.AssetKey | None = None
) -> datetime | None:
    """When the feed was last exported, with new rows or without: of a stream, its current partition or the one before.

    Returns:
        The time by Dagster's event log; None if that is too long ago to matter, or never happened.
    """
    own = key or asset_key(feed)
    if feed.kind is not FeedKind.STREAM:
        entry = instance.get_latest_materialization_event(own)
        return None if entry is None else datetime.fromtimestamp(entry.timestamp, UTC)
    by = PartitionBy(feed.partition_by)
    keys = fresh_partitions(by, feed.freshness, now=now)
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=own, asset_partitions=keys), limit=_LOOKED_AT
    )
    for record in found.records:
        at = datetime.fromtimestamp(record.timestamp, UTC)
        if record.partition_key is not None and counts_as_fresh(by, record.partition_key, at=at):
            return at
    return None


def newest_event(table: LakeTable) -> datetime | None:
    """The newest row of a stream, by its time column; None for a table, and where there is none."""
    if table.feed.kind is FeedKind.TABLE:
        return None
    for key in reversed(table.partitions()):
        report = table.report(key)
        if report is not None and report.max_time is not None:
            return report.max_time
    return None
