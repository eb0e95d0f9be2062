"""Which table a feed is kept in: the only place that knows the kinds of tables there are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.report.figures import FeedStatistics
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.manifest_figures import manifest_figures
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable

__all__ = ["feed_figures", "open_table"]


def _adopted(store: Store, feed: Feed) -> LakeTable:
    from datalake_assets.lake.adopted.adopted_table import AdoptedTable  # noqa: PLC0415  see `feed_figures`

    return AdoptedTable(store, feed)


def _assets(store: Store, feed: Feed) -> LakeTable:
    from datalake_assets.lake.asset_table import AssetTable  # noqa: PLC0415  see `feed_figures`

    return AssetTable(store, feed)


def _exported(store: Store, feed: Feed) -> LakeTable:
    from datalake_assets.lake.hive import HiveTable  # noqa: PLC0415  see `feed_figures`

    return HiveTable(store, feed)


def _iceberg_table(store: Store, feed: Feed) -> LakeTable:
    """A table whose package takes a second to import, and need not be installed."""
    try:
        from datalake_assets.lake.iceberg.iceberg_table import IcebergTable  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"feed {feed.name!r} is an Iceberg table, which takes a package that is not installed ({error.name}):"
            " pip install 'datalake-assets[iceberg]'"
        ) from error
    return IcebergTable(store, feed)


#: The first one that a feed fits is its table.
_TABLES: Final[tuple[tuple[Callable[[Feed], bool], Callable[[Store, Feed], LakeTable]], ...]] = (
    (lambda feed: feed.is_adopted, _adopted),
    (lambda feed: not feed.is_exported, _assets),
    (lambda feed: feed.is_iceberg, _iceberg_table),
    (lambda _: True, _exported),
)
#: Those whose figures follow from manifests alone.
_WITH_MANIFESTS: Final = frozenset({_adopted, _assets, _exported})


def open_table(store: Store, feed: Feed) -> LakeTable:
    """The feed's data in the lake; talks to nobody yet."""
    return _kind(feed)(store, feed)


def feed_figures(
    store: Store, feed: Feed, request: CompactionRequest, *, threads: Executor | None = None
) -> FeedStatistics:
    """What `LakeTable.figures` gives, without what else tables can do: reports need not load how files are merged."""
    kind = _kind(feed)
    if kind in _WITH_MANIFESTS:
        return manifest_figures(FeedFolder(store, feed), request, threads)
    return kind(store, feed).figures(request, threads=threads)


def _kind(feed: Feed) -> Callable[[Store, Feed], LakeTable]:
    return next(table for fits, table in _TABLES if fits(feed))
