"""What is done to every feed at night: what was interrupted is finished, and a part of it is compared with a listing.

A listing of everything would cost more than it tells, so that each night takes one slice of a feed's partitions; which
one follows from the date alone. Nothing here deletes a data file that no manifest ever named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

from datalake_assets.config import Feed, FeedKind
from datalake_assets.core.compaction import CompactionRequest
from datalake_assets.errors import DatalakeError
from datalake_assets.lake.base import Difference, LakeTable
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store import STAGING, Store

__all__ = ["STALE", "differences", "in_need", "removed_versions", "slice_of", "sweep_temporary"]

#: Temporary files of this age belong to no living process.
STALE = timedelta(days=1)
#: Partitions that are looked at at once.
THREADS = 8
#: Of the differences that `LakeTable.verify` finds, those that repair does not mend.
_LASTING = {"missing", "size", "unknown file", "manifest", "changed", "new file", "unreadable"}


def slice_of(keys: Sequence[str], *, day: int, size: int) -> tuple[str, ...]:
    """The partitions whose turn it is: each comes once in as many days as there are slices.

    Args:
        keys: All partitions, sorted.
        day: The day's number, such as ``date.toordinal()``.
        size: Partitions of a slice at the most; 0 for no slice at all.
    """
    if not keys or size < 1:
        return ()
    slices = -(-len(keys) // size)
    turn = day % slices
    return tuple(keys[turn * len(keys) // slices : (turn + 1) * len(keys) // slices])


def differences(open_table: Callable[[], LakeTable], keys: Sequence[str]) -> Iterator[Difference]:
    """What is not as the manifests of some partitions say, at two looks in a row: writers may go on meanwhile.

    Args:
        open_table: Opens the feed's table; called in several threads.
        keys: The partitions; a listing of each one's folder, and a request for its manifest.
    """
    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
        for found in pool.map(lambda key: _lasting(open_table(), key), keys):
            yield from found


def in_need(
    open_table: Callable[[], LakeTable],
    keys: Sequence[str],
    request: CompactionRequest,
    *,
    unusable: Callable[[str], Mapping[str, str]],
) -> tuple[list[str], Mapping[str, DatalakeError]]:
    """The partitions that have something to merge, and those whose manifest cannot be read with the reason.

    Args:
        open_table: Opens the feed's table; called in several threads.
        keys: All partitions.
        request: What is asked for.
        unusable: The files of a partition that its last compaction could not take; asked only of those that seem to
            have something to merge.
    """

    def look(key: str) -> DatalakeError | bool:
        try:
            return bool(open_table().compaction_plan(key, request).groups)
        except DatalakeError as error:
            return error

    with ThreadPoolExecutor(THREADS, thread_name_prefix="plans") as pool:
        found = dict(zip(keys, pool.map(look, keys), strict=True))
    table, needed = open_table(), []
    for key in (key for key, seen in found.items() if seen is True):
        excluded = unusable(key)
        if not excluded or table.compaction_plan(key, request, excluded=excluded).groups:
            needed.append(key)
    return needed, {key: seen for key, seen in found.items() if isinstance(seen, DatalakeError)}


def removed_versions(store: Store, feed: Feed, keys: Iterable[str]) -> tuple[str, ...]:
    """Those of a table's versions that retention has removed; a version that was never committed is none of them."""
    if feed.kind is not FeedKind.TABLE:
        return ()
    folder = FeedFolder(store, feed)
    return tuple(key for key in keys if folder.log(key).load().manifest.deleted)


def sweep_temporary(store: Store, *, now: datetime) -> int:
    """Deletes what processes that were killed left of control objects in a local lake; data files are never there.

    Returns:
        The number of files; 0 for a lake in S3, where there are none.
    """
    if "://" in store.uri:
        return 0
    scratch = Path(store.path("")) / STAGING
    leftovers = [*scratch.glob("tmp/*"), *scratch.glob("probe-*")]
    return sum(_swept(file, now) for file in leftovers)


def _swept(file: Path, now: datetime) -> bool:
    with contextlib.suppress(FileNotFoundError):  # its process lives, and has just renamed it
        if file.is_file() and now.timestamp() - file.stat().st_mtime > STALE.total_seconds():
            file.unlink()
            return True
    return False


def _lasting(table: LakeTable, key: str) -> list[Difference]:
    found = [each for each in table.verify(partitions=[key]) if each.what in _LASTING]
    if not found:
        return []
    again = set(table.verify(partitions=[key]))
    return [each for each in found if each in again]
