"""Verify and repair: manifests against objects, interrupted commits finished, leftovers swept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.config import FeedKind
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.errors import CorruptLake, PreconditionFailed, TransientStoreError
from datalake_assets.lake.base import Difference, Repair
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store import ObjectInfo
from datalake_assets.lake.table_export import enter_version, retain
from datalake_assets.parquet.checksum import checksum_like

__all__ = ["STALE", "content", "repair", "unfinished", "verify"]

#: Staged files of this age belong to no live writer.
STALE = timedelta(days=1)
#: Bytes hashed at a time.
CHUNK_BYTES = 8 << 20


def verify(folder: FeedFolder, *, deep: bool = False, partitions: Iterable[str] | None = None) -> Iterator[Difference]:
    """Compares manifests with objects; see `LakeTable.verify`."""
    keys = folder.partition_keys() if partitions is None else tuple(partitions)
    roots = [folder.data_root] if partitions is None else [folder.data_folder(key) for key in keys]
    objects = {info.key: info for root in roots for info in folder.data_store.list(root)}
    named: set[str] = set()
    for key in keys:
        log = folder.log(key)
        try:
            manifest = log.load().manifest
        except CorruptLake as error:
            yield Difference(key, "manifest", log.manifest_key, error.reason)
            continue
        yield from unfinished(key, manifest, log.manifest_key)
        named.update(log.key_of(each.name) for each in manifest.garbage)
        if manifest.pending is not None:
            named.update(log.key_of(publish.file.name) for publish in manifest.pending.publish)
        for file in manifest.files:
            name = log.key_of(file.name)
            named.add(name)
            yield from _file(folder, key, file, objects.get(name), name, deep=deep)
    for name in sorted(set(objects) - named):
        yield Difference(_partition_of(folder, name), "unknown file", name, "in the folder and in no manifest")


def unfinished(key: str, manifest: Manifest, name: str) -> Iterator[Difference]:
    """What a manifest says that is still to be done."""
    if manifest.pending is not None:
        detail = f"commit {manifest.pending.commit_id} was interrupted; 'datalake repair' finishes it"
        yield Difference(key, "pending", name, detail)
    if manifest.garbage:
        yield Difference(key, "garbage", name, f"{len(manifest.garbage)} replaced files are still to be deleted")


def _file(
    folder: FeedFolder, key: str, file: DataFile, info: ObjectInfo | None, name: str, *, deep: bool
) -> Iterator[Difference]:
    if info is None:
        yield Difference(key, "missing", name, f"{file.rows} rows, {file.size_bytes} bytes")
    elif info.size_bytes != file.size_bytes:
        yield Difference(key, "size", name, f"{info.size_bytes} bytes, the manifest says {file.size_bytes}")
    elif deep:
        yield from content(folder, key, file, name)


def content(folder: FeedFolder, key: str, file: DataFile, name: str) -> Iterator[Difference]:
    """Reads a whole file, and compares it with what its manifest says."""
    with folder.data_store.filesystem().open_input_file(folder.data_store.path(name)) as opened:
        yield from _digest(key, file, name, opened)
        opened.seek(0)
        try:
            rows = sum(batch.num_rows for batch in pq.ParquetFile(opened).iter_batches())
        except (pa.ArrowException, OSError) as error:
            yield Difference(key, "rows", name, f"cannot be read: {error}")
            return
        if rows != file.rows:
            yield Difference(key, "rows", name, f"{rows} rows, the manifest says {file.rows}")


def _digest(key: str, file: DataFile, name: str, opened: pa.NativeFile) -> Iterator[Difference]:
    if not file.checksum:
        return
    try:
        checksum = checksum_like(file.checksum)
    except ValueError as error:
        yield Difference(key, "checksum", name, str(error))
        return
    while chunk := opened.read(CHUNK_BYTES):
        checksum.update(chunk)
    if str(checksum) != file.checksum:
        yield Difference(key, "checksum", name, "the bytes are not those that were committed")


def _partition_of(folder: FeedFolder, name: str) -> str:
    return name.removeprefix(f"{folder.data_root}/").rpartition("/")[0]


@dataclass(slots=True)
class _Counts:
    finished: int = 0
    undone: int = 0
    swept: int = 0
    waiting: list[str] = field(default_factory=list)


def repair(folder: FeedFolder) -> Repair:
    """Finishes or undoes what was interrupted and sweeps what it left; see `LakeTable.repair`. Idempotent."""
    counts = _Counts()
    manifests: dict[str, Manifest] = {}
    for key in folder.partition_keys():
        try:
            manifests[key] = _settle(folder, key, counts)
        except (TransientStoreError, PreconditionFailed, CorruptLake) as error:
            counts.waiting.append(f"{folder.feed.path}/{folder.partition_path(key)}: {error.reason}")
    if folder.feed.kind is FeedKind.TABLE:
        _mend_versions(folder, manifests)
    if not counts.waiting:
        reports = [folder.report(key, manifest) for key, manifest in manifests.items()]
        folder.summary.mend(reports, at=folder.store.now())
    _sweep_staged(folder, counts)
    return Repair(counts.finished, counts.undone, counts.swept, tuple(counts.waiting))


def _settle(folder: FeedFolder, key: str, counts: _Counts) -> Manifest:
    log = folder.log(key)
    loaded = log.load()
    pending, garbage = loaded.manifest.pending, loaded.manifest.garbage
    if pending is None and not garbage:
        return loaded.manifest
    settled = log.settle(loaded).manifest
    if pending is not None:
        done = settled.committed_already(pending.commit_id)
        counts.finished, counts.undone = counts.finished + done, counts.undone + (not done)
    counts.swept += len(garbage)
    return settled


def _mend_versions(folder: FeedFolder, manifests: dict[str, Manifest]) -> None:
    """Enters versions that were committed and not entered into the state, and applies retention to all."""
    known = set(folder.state.load().keys)
    for key, manifest in manifests.items():
        if key not in known:
            enter_version(folder, key, manifest)
    for key in retain(folder):
        manifests.pop(key, None)


def _sweep_staged(folder: FeedFolder, counts: _Counts) -> None:
    store = folder.data_store
    now = store.now()
    for upload in list(store.list_staged(folder.data_root)):
        if now - upload.started_at > STALE:
            store.discard_stale(upload)
            counts.swept += 1
