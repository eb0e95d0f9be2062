"""Objects of digests of landed items, which positions name: where they lie, which are gone, which nobody names.

A check of a lake asks that of every partition, and need not load how items are landed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

from datalake_assets.core.item_ids import IdsPosition
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import key_of
from datalake_assets.feed_sources import PositionKind
from datalake_assets.lake.layout import FeedFolder

__all__ = ["PREFIX", "SUFFIX", "any_key", "place_of", "sealed_keys", "sealed_missing", "sweep_sealed"]

# The name of an object of digests.
PREFIX, SUFFIX = "ids-", ".bin"


def sealed_missing(folder: FeedFolder, key: str, manifest: Manifest) -> Iterator[str]:
    """Keys of those that are not there."""
    return (name for name in sealed_keys(folder, key, manifest) if folder.store.head(name) is None)


def any_key(folder: FeedFolder) -> str:
    """A partition of a table that has one position for all, which is there without partitions, too.

    It is what is left of a table whose rows another engine deleted.
    """
    if folder.by is None:
        raise AssertionError
    return key_of(folder.store.now(), folder.by)


def sweep_sealed(folder: FeedFolder, *, older_than: timedelta) -> int:
    """Deletes objects of digests that no manifest names and that are older than any live writer; returns their number.

    To be called after staged files of that age were deleted: a writer that wakes up then can commit nothing any more.
    """
    if not folder.feed.is_exported or folder.feed.position_kind is not PositionKind.IDS:
        return 0
    from datalake_assets.lake import item_ledger  # noqa: PLC0415  loads Arrow

    now = folder.store.now()
    ends = ((PREFIX, SUFFIX), (item_ledger.PREFIX, item_ledger.SUFFIX))
    found = {
        each.key
        for each in folder.store.list(folder.control)
        if _is_named(each.key, ends) and now - each.modified_at > older_than
    }
    if found:
        for key in (any_key(folder),) if folder.commits_at_once else folder.partition_keys():
            found.difference_update(sealed_keys(folder, key, folder.log(key).load().manifest))
        found.difference_update(item_ledger.ItemLedger(folder).objects())
        folder.store.delete(found)
    return len(found)


def _is_named(key: str, ends: Iterable[tuple[str, str]]) -> bool:
    name = key.rpartition("/")[2]
    return any(name.startswith(prefix) and name.endswith(suffix) for prefix, suffix in ends)


def sealed_keys(folder: FeedFolder, key: str, manifest: Manifest) -> Iterator[str]:
    """Keys of the objects of digests that a partition's manifest names, in the lake."""
    under_way = manifest.pending.position if manifest.pending else None
    for position in (manifest.position, under_way):
        if isinstance(position, IdsPosition):
            for block in position.sealed:
                yield f"{place_of(folder, key)}/{block.name}"


def place_of(folder: FeedFolder, key: str) -> str:
    """Where the objects of digests lie: with the manifest; where partitions share one position, with the feed's."""
    return folder.control if folder.commits_at_once else folder.log(key).manifest_key.rpartition("/")[0]
