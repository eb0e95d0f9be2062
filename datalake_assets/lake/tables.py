"""Which table a feed is kept in: the only place that knows the kinds of tables there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from datalake_assets.feed import Feed
from datalake_assets.lake.adopted.adopted_table import AdoptedTable
from datalake_assets.lake.asset_table import AssetTable
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable

__all__ = ["open_table"]

#: The first one that a feed fits is its table.
_TABLES: Final[tuple[tuple[Callable[[Feed], bool], Callable[[Store, Feed], LakeTable]], ...]] = (
    (lambda feed: feed.is_adopted, AdoptedTable),
    (lambda feed: not feed.is_exported, AssetTable),
    (lambda _: True, HiveTable),
)


def open_table(store: Store, feed: Feed) -> LakeTable:
    """The feed's data in the lake; talks to nobody yet."""
    return next(table for fits, table in _TABLES if fits(feed))(store, feed)
