"""Which table format a feed is kept in."""

from __future__ import annotations

from datalake_assets.feed import Feed, FeedKind
from datalake_assets.lake.adopted.adopted_table import AdoptedTable
from datalake_assets.lake.asset_table import AssetTable
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable

__all__ = ["look_again", "open_table"]


def open_table(store: Store, feed: Feed) -> LakeTable:
    """The feed's data in the lake; talks to nobody yet."""
    if feed.kind is FeedKind.FOLDER:
        return AdoptedTable(store, feed)
    return HiveTable(store, feed) if feed.is_exported else AssetTable(store, feed)


def look_again(table: LakeTable) -> None:
    """Takes over what others changed in an adopted folder; there is nothing to do for other feeds."""
    if isinstance(table, AdoptedTable):
        table.reconcile()
