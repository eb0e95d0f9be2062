"""Keeps manifests and objects in agreement: finishes what was interrupted, and finds what differs.

It runs every night on every feed. To list everything would cost more than it is worth, so each night takes one slice
of a feed's partitions, which follows from the date alone. Nothing here deletes a data file that no manifest ever named.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from datalake_assets.core.facts import PartitionFacts
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.values import Value
from datalake_assets.core.wording import name_text
from datalake_assets.errors import CorruptLake, DatalakeError, PreconditionFailed, TransientStoreError, unforeseen_text
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.commit import PartitionLog
from datalake_assets.lake.file_identity import read_checksum
from datalake_assets.lake.layout import FeedFolder, avro_folder
from datalake_assets.lake.sealed_items import sealed_missing, sweep_sealed
from datalake_assets.lake.store.base import STAGING, ObjectInfo, Store
from datalake_assets.lake.table import Difference, LakeTable, Repair
from datalake_assets.lake.table_versions import enter_version, retain

if TYPE_CHECKING:
    import pyarrow as pa

    from datalake_assets.core.compaction.plan import CompactionRequest

__all__ = [
    "STALE",
    "content",
    "differences",
    "file_differences",
    "in_need",
    "known_names",
    "mend_versions",
    "missing_deletions",
    "missing_items",
    "repair",
    "slice_of",
    "still_true",
    "sweep_staged",
    "sweep_temporary",
    "unfinished",
    "unknown_file",
    "verify",
]

logger = logging.getLogger(__name__)

#: Staged files of this age belong to no live writer.
STALE = timedelta(days=1)
#: Manifests that are read and settled at once; S3 answers in tens of milliseconds.
THREADS = 8


def verify(folder: FeedFolder, *, deep: bool = False, partitions: Iterable[str] | None = None) -> Iterator[Difference]:
    """Compares a feed's manifests with its objects, one listing for all; yields what `LakeTable.verify` promises."""
    chosen = None if partitions is None else tuple(partitions)
    roots = [folder.data_root] if chosen is None else [folder.data_folder(key) for key in chosen]
    # listed first: a partition that is new meanwhile has its manifest before it has files
    unknown = {info.key: info for root in roots for info in folder.data_store.list(root)}
    for key in folder.partition_keys() if chosen is None else chosen:
        log = folder.log(key)
        try:
            manifest = log.load().manifest
        except CorruptLake as error:
            yield Difference(key, "manifest", log.manifest_key, error.reason)
            above = f"{log.data_folder}/"  # nobody knows which of these it names
            unknown = {name: info for name, info in unknown.items() if not name.startswith(above)}
            continue
        yield from unfinished(key, manifest, log.manifest_key)
        yield from missing_items(folder, key, manifest)
        for name in known_names(manifest) - {file.name for file in manifest.files}:
            unknown.pop(log.key_of(name), None)
        for file in manifest.files:
            name = log.key_of(file.name)
            # it may have been committed since the listing
            info = unknown.pop(name, None) or folder.data_store.head(name)
            yield from still_true(log, file, file_differences(folder, key, file, info, name, deep=deep))
    if chosen is None:
        yield from missing_deletions(folder)
    yield from _unknown(folder, sorted(unknown))


def _unknown(folder: FeedFolder, names: Sequence[str]) -> Iterator[Difference]:
    """The files that no manifest names, and that no compaction has removed since they were listed."""
    for name in names:
        if folder.data_store.head(name) is not None:
            yield unknown_file(folder, name, "in the folder and in no manifest")


def known_names(manifest: Manifest) -> set[str]:
    """The files of a partition that its manifest accounts for: committed, about to be, or still to be deleted."""
    pending = manifest.pending.publish if manifest.pending else ()
    return {
        *(file.name for file in manifest.files),
        *(each.name for each in manifest.garbage),
        *(each.file.name for each in pending),
    }


def still_true(log: PartitionLog, file: DataFile, found: Iterable[Difference]) -> Iterator[Difference]:
    """The differences of a file, unless its manifest has not named it any more since: others have merged it."""
    differing = tuple(found)
    if differing and _is_named(log, file):
        yield from differing


def _is_named(log: PartitionLog, file: DataFile) -> bool:
    try:
        return any(each.name == file.name for each in log.load().manifest.files)
    except CorruptLake:  # since a moment ago: what is wrong of its files is still to be said
        return True


def missing_items(folder: FeedFolder, key: str, manifest: Manifest) -> Iterator[Difference]:
    """Lists of landed items that are gone."""
    for name in sealed_missing(folder, key, manifest):
        yield Difference(key, "missing", name, "a list of landed items, without which nothing more can be landed")


def missing_deletions(folder: FeedFolder) -> Iterator[Difference]:
    """The list of deleted keys of a feed that is merged, if it is gone."""
    named = folder.state.load().deleted
    if named and folder.store.head(named) is None and folder.state.load().deleted == named:
        detail = "the list of deleted keys, without which no more changes can be merged"
        yield Difference("", "missing", named, detail)


def unfinished(key: str, manifest: Manifest, name: str) -> Iterator[Difference]:
    """What a manifest says that is still to be done."""
    if manifest.pending is not None:
        detail = f"commit {manifest.pending.commit_id} was interrupted; 'datalake repair' finishes it"
        yield Difference(key, "pending", name, detail)
    if manifest.garbage:
        yield Difference(key, "garbage", name, f"{len(manifest.garbage)} replaced files are still to be deleted")


def file_differences(
    folder: FeedFolder,
    key: str,
    file: DataFile,
    info: ObjectInfo | None,
    name: str,
    *,
    deep: bool,
    stated_by: str = "the manifest",
) -> Iterator[Difference]:
    """How a file differs from what is stated of it.

    Args:
        folder: The feed's corner of the lake.
        key: The partition.
        file: What is stated.
        info: What a listing has under its key; None if it is not there.
        name: Its key in the data store.
        deep: Read it whole if its size is right.
        stated_by: Who states it, for messages about the size.
    """
    if info is None:
        yield Difference(key, "missing", name, f"{file.rows} rows, {file.size_bytes} bytes")
    elif info.size_bytes != file.size_bytes:
        yield Difference(key, "size", name, f"{info.size_bytes} bytes, {stated_by} says {file.size_bytes}")
    elif deep:
        yield from content(folder, key, file, name)


def content(folder: FeedFolder, key: str, file: DataFile, name: str) -> Iterator[Difference]:
    """Reads a whole file, and compares it with what its manifest says."""
    import pyarrow as pa  # noqa: PLC0415  only who reads files whole needs what reads them

    from datalake_assets.parquet.decodable import ROW_BYTES, too_large  # noqa: PLC0415
    from datalake_assets.parquet.decoding import open_parquet, tables  # noqa: PLC0415
    from datalake_assets.parquet.failed_requests import answered  # noqa: PLC0415

    try:
        with answered(name), folder.data_store.filesystem().open_input_file(folder.data_store.path(name)) as opened:
            yield from _digest(key, file, name, opened)
            opened.seek(0)
            parquet = open_parquet(opened)
            if reason := too_large(parquet, opened, row_bytes=ROW_BYTES):
                yield Difference(key, "rows", name, f"not decoded: {reason}")
                return
            rows = sum(piece.num_rows for piece in tables(parquet, source=opened))
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Difference(key, "rows", name, f"cannot be read: {error}")
        return
    if rows != file.rows:
        yield Difference(key, "rows", name, f"{rows} rows, the manifest says {file.rows}")


def _digest(key: str, file: DataFile, name: str, opened: pa.NativeFile) -> Iterator[Difference]:
    if not file.checksum:
        return
    try:
        checksum = read_checksum(opened, like=file.checksum)
    except ValueError as error:
        yield Difference(key, "checksum", name, str(error))
        return
    if checksum != file.checksum:
        yield Difference(key, "checksum", name, "the bytes are not those that were committed")


def unknown_file(folder: FeedFolder, name: str, detail: str) -> Difference:
    """A file below the data root that nothing names, by its key in the data store."""
    below = name.removeprefix(f"{folder.data_root}/").rpartition("/")[0]
    return Difference(name_text(below), "unknown file", name_text(name), detail)


class _Settled(Value, frozen=True):
    """What became of one partition.

    Attributes:
        key: The partition.
        report: Its facts; None while the store cannot say what became of a commit.
        manifest: Its manifest, if it is a version that is not in the feed's state.
        finished: Whether an interrupted commit was finished.
        undone: Whether one was undone.
        swept: Replaced files that were deleted.
        waiting: Why nobody can decide yet; empty if it is decided.
    """

    key: str
    report: PartitionFacts | None = None
    manifest: Manifest | None = None
    finished: bool = False
    undone: bool = False
    swept: int = 0
    waiting: str = ""


def repair(folder: FeedFolder) -> Repair:
    """Finishes or undoes what was interrupted and sweeps what it left, several partitions at once. Idempotent."""
    is_table = folder.feed.kind is FeedKind.TABLE
    known = set(folder.state.load().keys) if is_table else set()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="repair") as pool:
        # manifests of a large feed do not fit into memory together: only their facts are kept
        jobs = pool.map(lambda key: _settle(folder, key, keep=is_table and key not in known), folder.partition_keys())
        done = {each.key: each for each in jobs}
    if is_table:
        found = {key: each.manifest for key, each in done.items() if each.manifest is not None}
        for key in mend_versions(folder, found):
            if key in done:
                done[key] = replace(done[key], report=None)
    waiting = tuple(each.waiting for each in done.values() if each.waiting)
    if not waiting:
        reports = [each.report for each in done.values() if each.report is not None]
        folder.summary.mend(reports, at=folder.store.now())
    return Repair(
        finished=sum(each.finished for each in done.values()),
        undone=sum(each.undone for each in done.values()),
        swept=sum(each.swept for each in done.values()) + sweep_staged(folder),
        waiting=waiting,
    )


def _settle(folder: FeedFolder, key: str, *, keep: bool) -> _Settled:
    log = folder.log(key)
    try:
        loaded = log.load()
        pending, garbage = loaded.manifest.pending, loaded.manifest.garbage
        settled = loaded.manifest if pending is None and not garbage else log.settle(loaded).manifest
    except (TransientStoreError, PreconditionFailed, CorruptLake) as error:
        return _Settled(key, waiting=f"{folder.feed.path}/{folder.partition_path(key) or key}: {error.reason}")
    finished = pending is not None and settled.committed_already(pending.commit_id)
    return _Settled(
        key,
        report=folder.report(key, settled),
        manifest=settled if keep else None,
        finished=finished,
        undone=pending is not None and not finished,
        swept=len(garbage),
    )


def mend_versions(folder: FeedFolder, manifests: Mapping[str, Manifest]) -> list[str]:
    """Enters versions that were committed and not entered into the state, and applies retention to all.

    Returns:
        The removed partition keys.
    """
    for key, manifest in manifests.items():
        enter_version(folder, key, manifest)
    return retain(folder)


def sweep_staged(folder: FeedFolder) -> int:
    """Deletes what was staged and is too old to belong to a live writer; returns the number of objects."""
    store = folder.data_store
    now = store.now()
    stale = [upload for upload in store.list_staged(folder.data_root) if now - upload.started_at > STALE]
    for upload in stale:
        store.discard_stale(upload)
    for upload in folder.store.list_staged(avro_folder(folder.feed)):
        if now - upload.started_at > STALE:
            folder.store.discard_stale(upload)
    return len(stale) + sweep_sealed(folder, older_than=STALE)


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
        except Exception as error:
            logger.exception("no plan for %s", key)
            return DatalakeError(unforeseen_text(error))

    with ThreadPoolExecutor(THREADS, thread_name_prefix="plans") as pool:
        found = dict(zip(keys, pool.map(look, keys), strict=True))
    table, needed = open_table(), []
    for key in (key for key, seen in found.items() if seen is True):
        excluded = unusable(key)
        if not excluded or table.compaction_plan(key, request, excluded=excluded).groups:
            needed.append(key)
    return needed, {key: seen for key, seen in found.items() if isinstance(seen, DatalakeError)}


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
