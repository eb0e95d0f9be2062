"""Which table a feed is kept in, and how one that others write is taken: only here is known which kinds there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import DeltaTableSource, IcebergTableSource
from datalake_assets.lake.adopted.owners import check_ownership, release_ownership, take_ownership
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable

if TYPE_CHECKING:
    from datalake_assets.core.batches import Batches
    from datalake_assets.core.compaction.plan import CompactionRequest
    from datalake_assets.core.report.figures import FeedStatistics

__all__ = [
    "check_adopted",
    "feed_figures",
    "folder_of",
    "has_manifests",
    "open_table",
    "release_adopted",
    "stored_batches",
    "take_adopted",
]


def _adopted(store: Store, feed: Feed) -> LakeTable:
    from datalake_assets.lake.adopted.adopted_table import AdoptedTable  # noqa: PLC0415  see `feed_figures`

    return AdoptedTable(store, feed)


def _assets(store: Store, feed: Feed) -> LakeTable:
    from datalake_assets.lake.asset_table import AssetTable  # noqa: PLC0415  see `feed_figures`

    return AssetTable(store, feed)


def _exported(store: Store, feed: Feed) -> LakeTable:
    from datalake_assets.lake.hive import HiveTable  # noqa: PLC0415  see `feed_figures`

    return HiveTable(store, feed)


@contextmanager
def _needing(feed: Feed, what: str, extra: str) -> Iterator[None]:
    """Of tables whose package takes a second to import, and need not be installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"feed {feed.name!r} is {what} table, which takes a package that is not installed ({error.name}):"
            f" pip install 'datalake-assets[{extra}]'"
        ) from error


def _iceberg_table(store: Store, feed: Feed) -> LakeTable:
    with _needing(feed, "an Iceberg", "iceberg"):
        from datalake_assets.lake.iceberg.iceberg_table import IcebergTable  # noqa: PLC0415
    return IcebergTable(store, feed)


def _adopted_iceberg(store: Store, feed: Feed) -> LakeTable:
    with _needing(feed, "an Iceberg", "iceberg"):
        from datalake_assets.lake.iceberg.adopted_iceberg import AdoptedIceberg  # noqa: PLC0415
    return AdoptedIceberg(store, feed)


def _adopted_delta(store: Store, feed: Feed) -> LakeTable:
    with _needing(feed, "a Delta", "delta"):
        from datalake_assets.lake.adopted.adopted_delta import AdoptedDelta  # noqa: PLC0415
    return AdoptedDelta(store, feed)


def _mart(store: Store, feed: Feed) -> LakeTable:
    from datalake_assets.lake.marts.mart_table import MartTable  # noqa: PLC0415  see `feed_figures`

    return MartTable(store, feed, open_input=partial(open_table, store))


#: The first one that a feed fits is its table.
_TABLES: Final[tuple[tuple[Callable[[Feed], bool], Callable[[Store, Feed], LakeTable]], ...]] = (
    (lambda feed: isinstance(feed.source, IcebergTableSource), _adopted_iceberg),
    (lambda feed: isinstance(feed.source, DeltaTableSource), _adopted_delta),
    (lambda feed: feed.is_adopted, _adopted),
    (lambda feed: not feed.is_exported, _assets),
    (lambda feed: feed.is_iceberg, _iceberg_table),
    (lambda feed: feed.is_mart, _mart),
    (lambda _: True, _exported),
)
#: Those whose figures follow from manifests alone.
_WITH_MANIFESTS: Final = frozenset({_adopted, _assets, _exported, _mart})


def open_table(store: Store, feed: Feed) -> LakeTable:
    """The feed's data in the lake; talks to nobody yet."""
    return _kind(feed)(store, feed)


def folder_of(store: Store, feed: Feed) -> FeedFolder:
    """Where the parts of an exported feed lie."""
    if not feed.is_iceberg:
        return FeedFolder(store, feed)
    _iceberg_table(store, feed)  # is its package there?
    from datalake_assets.lake.iceberg.iceberg_folder import IcebergFolder  # noqa: PLC0415  likewise

    return IcebergFolder(store, feed)


def stored_batches(store: Store, feed: Feed, batches: Batches) -> Batches:
    """The batches as an exported feed's table lands them: in the types that its format has."""
    if not feed.is_iceberg:
        return batches
    _iceberg_table(store, feed)  # is its package there?
    from datalake_assets.lake.iceberg.iceberg_table import IcebergTable  # noqa: PLC0415  likewise

    return IcebergTable(store, feed).storable(batches)


def feed_figures(
    store: Store, feed: Feed, request: CompactionRequest, *, threads: Executor | None = None
) -> FeedStatistics:
    """What `LakeTable.figures` gives, without what else tables can do: reports need not load how files are merged."""
    if has_manifests(feed):
        from datalake_assets.lake.manifest_figures import manifest_figures  # noqa: PLC0415  only for figures

        return manifest_figures(FeedFolder(store, feed), request, threads)
    return open_table(store, feed).figures(request, threads=threads)


def has_manifests(feed: Feed) -> bool:
    """Whether all that is known of a feed's data lies in the lake, and nothing in a log of another format."""
    return _kind(feed) in _WITH_MANIFESTS


def _kind(feed: Feed) -> Callable[[Store, Feed], LakeTable]:
    return next(table for fits, table in _TABLES if fits(feed))


def take_adopted(store: Store, feed: Feed) -> bool:
    """Makes what others write this lake's and this feed's to keep in order; again is no change.

    Returns:
        Whether it was taken just now.

    Raises:
        FolderTaken: It is another's.
        LakeError: That cannot be written down where every lake sees it.
    """
    if not isinstance(feed.source, IcebergTableSource):
        return take_ownership(store, feed)
    with _needing(feed, "an Iceberg", "iceberg"):
        from datalake_assets.lake.iceberg.iceberg_owners import take_table  # noqa: PLC0415
    return take_table(store, feed)


def release_adopted(store: Store, feed: Feed) -> None:
    """Gives it free if it is this lake's and this feed's; idempotent."""
    if not isinstance(feed.source, IcebergTableSource):
        return release_ownership(store, feed)
    with _needing(feed, "an Iceberg", "iceberg"):
        from datalake_assets.lake.iceberg.iceberg_owners import release_table  # noqa: PLC0415
    return release_table(store, feed)


def check_adopted(store: Store, feed: Feed) -> None:
    """Raises `FolderTaken` unless it is this lake's and this feed's."""
    if not isinstance(feed.source, IcebergTableSource):
        return check_ownership(store, feed)
    with _needing(feed, "an Iceberg", "iceberg"):
        from datalake_assets.lake.iceberg.iceberg_owners import check_owner, load_adopted  # noqa: PLC0415
    return check_owner(store, feed, load_adopted(store, feed.source))
