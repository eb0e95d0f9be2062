"""What an Iceberg table no longer needs: old snapshots with the files that only they name, orphans, small manifests.

pyiceberg takes snapshots out of the metadata and deletes no file. Here the metadata is changed first, and then deleted
what the new metadata does not lead to; who is stopped in between leaves orphans, which are removed later. Nothing is
deleted that lies outside the table's own folders, or that anything retained names.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.fs as pafs
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRef, SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update import (
    AssertRefSnapshotId,
    AssertTableUUID,
    RemovePartitionStatisticsUpdate,
    RemoveSnapshotsUpdate,
    RemoveStatisticsUpdate,
    TableRequirement,
    TableUpdate,
)
from pyiceberg.utils.properties import property_as_bool

from datalake_assets.errors import ConfigError, CorruptLake, LakeError
from datalake_assets.lake.iceberg.catalog_commits import check_format, commit_updates, delete_quietly, table_text
from datalake_assets.lake.iceberg.manifests import Manifests, entries_of, manifests_of
from datalake_assets.lake.iceberg.object_reads import LeanIO
from datalake_assets.lake.iceberg.transactions import ENTRIES_PER_MANIFEST, TableChange, commit_change

__all__ = ["Expiry", "Orphan", "Orphans", "expire_snapshots", "remove_orphans", "rewrite_manifests"]

logger = logging.getLogger(__name__)

#: Younger files may belong to a commit that is under way (Iceberg's own default is three days).
YOUNGEST_ORPHAN = timedelta(hours=24)
#: What an Iceberg table is made of; nothing else is ever taken for an orphan.
_SUFFIXES = (".parquet", ".orc", ".avro", ".puffin", ".stats", ".metadata.json", ".metadata.json.gz")
#: Schemes that are names of one store.
_SAME = {"s3a": "s3", "s3n": "s3", "": "file"}
#: Manifests are rewritten if there are so many times as many as there need be.
MANIFESTS_TOO_MANY = 4


@dataclass(frozen=True, slots=True)
class Expiry:
    """What an expiry did, or would do.

    Attributes:
        snapshots: Ids of the snapshots that are gone.
        retained: How many are left.
        files: Paths of the files that only those named.
        foreign: Paths of such files outside the table's folders, which stay.
    """

    snapshots: tuple[int, ...] = ()
    retained: int = 0
    files: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


def expire_snapshots(
    table: Table, *, older_than: datetime, keep_last: int = 1, now: datetime | None = None, dry_run: bool = False
) -> Expiry:
    """Expires old snapshots and deletes the files that only they name.

    Kept are: what a tag names; the newest snapshots of each branch, as many as ``keep_last`` or the branch itself says;
    and whatever is younger than ``older_than``, or than the branch itself says.

    Args:
        table: The table; it is loaded again, and knows the result afterwards.
        older_than: Snapshots of before may go.
        keep_last: Snapshots of each branch that stay in any case; at least 1.
        now: Counts what a branch says of ages; by default the clock.
        dry_run: Only tell.

    Raises:
        CommitConflict: A branch or tag was moved meanwhile; nothing was changed.
        AmbiguousWrite: The catalog's answer was lost; no file was deleted.
        LakeError: The table forbids it (``gc.enabled``), or its format is too new.
    """
    if keep_last < 1:
        raise ConfigError(f"keep_last is {keep_last}: at least one snapshot of a branch stays")
    table.refresh()
    check_format(table)
    _check_gc(table)
    metadata = table.metadata
    retained = _retained(metadata, older_than, keep_last, now or datetime.now(UTC))
    gone = [snapshot for snapshot in metadata.snapshots if snapshot.snapshot_id not in retained]
    if gone and not dry_run:
        _commit(table, metadata, {snapshot.snapshot_id for snapshot in gone})
    left = [snapshot for snapshot in table.metadata.snapshots if not dry_run or snapshot.snapshot_id in retained]
    files, foreign = _only_of(table, metadata, gone, left) if gone else ((), ())
    if not dry_run:
        delete_quietly(table.io, files)
        logger.info("%s: %s snapshots expired, %s files deleted", table_text(table), len(gone), len(files))
    return Expiry(tuple(snapshot.snapshot_id for snapshot in gone), len(left), files, foreign)


def _check_gc(table: Table) -> None:
    if not property_as_bool(table.properties, "gc.enabled", True):
        raise LakeError(
            table_text(table),
            "its property gc.enabled forbids to delete files: other tables may share them",
            cure="set it to true if none does",
        )


def _retained(metadata: TableMetadata, older_than: datetime, keep_last: int, now: datetime) -> set[int]:
    by_id = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
    cutoff_ms = round(older_than.timestamp() * 1000)
    named: set[int] = set()
    kept: set[int] = set()
    for ref in metadata.refs.values():
        kept.add(ref.snapshot_id)
        if ref.snapshot_ref_type == SnapshotRefType.BRANCH:
            line = list(_ancestors(ref.snapshot_id, by_id))
            named |= {snapshot.snapshot_id for snapshot in line}
            kept |= _retained_of_branch(ref, line, cutoff_ms, keep_last, now)
    # what no branch has (staged, or rolled back) goes by its age
    return kept | {id_ for id_, snapshot in by_id.items() if id_ not in named and snapshot.timestamp_ms >= cutoff_ms}


def _retained_of_branch(
    ref: SnapshotRef, line: Iterable[Snapshot], cutoff_ms: int, keep_last: int, now: datetime
) -> set[int]:
    if ref.max_snapshot_age_ms is not None:
        cutoff_ms = round(now.timestamp() * 1000) - ref.max_snapshot_age_ms
    at_least = max(keep_last, ref.min_snapshots_to_keep or 0)
    kept: set[int] = set()
    for snapshot in line:
        if len(kept) >= at_least and snapshot.timestamp_ms < cutoff_ms:
            break
        kept.add(snapshot.snapshot_id)
    return kept


def _ancestors(snapshot_id: int | None, by_id: dict[int, Snapshot]) -> Iterator[Snapshot]:
    while snapshot_id is not None and snapshot_id in by_id:
        yield by_id[snapshot_id]
        snapshot_id = by_id[snapshot_id].parent_snapshot_id


class _NoOtherRefs(AssertTableUUID):
    """No branch or tag was made meanwhile: a removal of its snapshot would remove it. Servers know no such demand."""

    refs: tuple[str, ...]

    def validate(self, base_metadata: TableMetadata | None) -> None:  # type: ignore[override]  # not pydantic's
        """Raises `CommitFailedException` if there is one."""
        super().validate(base_metadata)
        if base_metadata is not None and (others := set(base_metadata.refs) - set(self.refs)):
            raise CommitFailedException(f"branch or tag {min(others)} was made meanwhile")


def _commit(table: Table, metadata: TableMetadata, gone: set[int]) -> None:
    """Takes snapshots out, if all branches and tags are where they were."""
    updates: list[TableUpdate] = [
        RemoveStatisticsUpdate(snapshot_id=each.snapshot_id) for each in metadata.statistics if each.snapshot_id in gone
    ]
    updates += [
        RemovePartitionStatisticsUpdate(snapshot_id=each.snapshot_id)
        for each in metadata.partition_statistics
        if each.snapshot_id in gone
    ]
    updates.append(RemoveSnapshotsUpdate(snapshot_ids=sorted(gone)))
    requirements: list[TableRequirement] = [
        AssertRefSnapshotId(ref=name, snapshot_id=ref.snapshot_id) for name, ref in metadata.refs.items()
    ]
    if not isinstance(table.catalog, RestCatalog):
        requirements.append(_NoOtherRefs(uuid=metadata.table_uuid, refs=tuple(metadata.refs)))

    def is_there() -> bool:
        return not gone & {snapshot.snapshot_id for snapshot in table.metadata.snapshots}

    commit_updates(table, updates, requirements, is_there=is_there)


def _only_of(
    table: Table, before: TableMetadata, gone: Iterable[Snapshot], left: Iterable[Snapshot]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths that only the snapshots that are gone name: those in the table's folders, and others."""
    ids, files = {snapshot.snapshot_id for snapshot in gone}, LeanIO(table.io)
    lists = {snapshot.manifest_list for snapshot in left}
    manifests = {each.manifest_path: each for snapshot in left for each in _manifests(table.io, snapshot)}
    suspects: dict[str, ManifestFile] = {}
    found: set[str] = set()
    for snapshot in gone:
        if snapshot.manifest_list not in lists:
            found.add(snapshot.manifest_list)
        for each in _manifests(table.io, snapshot):
            if each.manifest_path not in manifests:
                suspects[each.manifest_path] = each
    found |= suspects.keys()
    for manifest in suspects.values():
        found |= {entry.data_file.file_path for entry in entries_of(manifest, files, discard_deleted=False)}
    for manifest in manifests.values():
        if not found:
            break
        found -= {entry.data_file.file_path for entry in entries_of(manifest, files)}
    statistics = (*before.statistics, *before.partition_statistics)
    found |= {each.statistics_path for each in statistics if each.snapshot_id in ids}
    found -= {each.statistics_path for each in statistics if each.snapshot_id not in ids}
    own = _Folders(table)
    mine = {path for path in found if own.holds(path)}
    return tuple(sorted(mine)), tuple(sorted(found - mine))


def _manifests(io: FileIO, snapshot: Snapshot) -> list[ManifestFile]:
    return manifests_of(snapshot, LeanIO(io))


def _key(location: str) -> str:
    """A location in the spelling that locations are compared in."""
    scheme, colon, rest = location.partition("://")
    if not colon:
        scheme, rest = "file", location.removeprefix("file:")
    return f"{_SAME.get(scheme, scheme)}://{posixpath.normpath('/' + rest.lstrip('/')) if scheme == 'file' else rest}"


class _Folders:
    """The folders that a table keeps its files in."""

    def __init__(self, table: Table) -> None:
        stated = (
            table.location(),
            table.properties.get(TableProperties.WRITE_DATA_PATH),
            table.properties.get(TableProperties.WRITE_METADATA_PATH),
        )
        roots = {_key(each.rstrip("/")) for each in stated if each}
        self.roots = sorted(root for root in roots if not any(root != o and root.startswith(f"{o}/") for o in roots))

    def holds(self, path: str) -> bool:
        """Whether a file is in one of them."""
        key = _key(path)
        return any(key.startswith(f"{root}/") for root in self.roots)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A file that nothing names."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Orphans:
    """What a removal of orphans found.

    Attributes:
        removed: Files that nothing names, old enough; deleted unless it was a dry run.
        younger: How many others there are, which may belong to a commit under way.
        listed: How many files there are.
    """

    removed: tuple[Orphan, ...] = field(default=())
    younger: int = 0
    listed: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of what was removed."""
        return sum(each.size_bytes for each in self.removed)


def remove_orphans(
    table: Table,
    *,
    older_than: datetime,
    now: datetime,
    dry_run: bool = False,
    under_way: Callable[[], Iterable[str]] = tuple,
    only: Callable[[str], bool] = lambda _: True,
) -> Orphans:
    """Deletes files in the table's folders that neither a retained snapshot nor the log of metadata files names.

    The folders are listed first, and what is named is read afterwards, so that what is committed meanwhile is named.

    Args:
        table: The table; it is loaded again.
        older_than: Files that were changed since stay; at least a day before ``now``.
        now: The time.
        dry_run: Only tell.
        under_way: Gives files of commits that are under way, whatever their age; asked for after the listing, so that
            it knows all that the listing has.
        only: Which files may go at all, by their paths.

    Raises:
        ConfigError: Files that are a day old or younger were to go.
        CorruptLake: Files that the table names were not listed: paths are spelt differently, or files are missing; or
            another table lies in the folders. Nothing was deleted.
        LakeError: The table forbids it, or its folders cannot be listed.
    """
    if now - older_than < YOUNGEST_ORPHAN:
        raise ConfigError("orphans must be a day old at least: younger files may belong to a commit under way")
    table.refresh()
    _check_gc(table)
    before = _named(table)
    listed = {_key(path): (path, size, changed) for path, size, changed in _listing(table)}
    spared = {_key(path) for path in under_way()}
    table.refresh()
    named = _named(table)
    own = _Folders(table)
    unseen = sorted(path for key, path in named.items() if key in before and own.holds(path) and key not in listed)
    if unseen:
        reason = f"{unseen[0]} and {len(unseen) - 1} more files are named, and not listed; nothing was deleted"
        raise CorruptLake(table_text(table), reason)
    unnamed = [
        each for key, each in listed.items() if key not in named and key not in spared and key.endswith(_SUFFIXES)
    ]
    _check_no_other_table(table, [path for path, _, _ in unnamed])
    old = sorted((path, size) for path, size, changed in unnamed if changed < older_than and only(path))
    if not dry_run:
        delete_quietly(table.io, [path for path, _ in old])
        logger.info("%s: %s orphans deleted", table_text(table), len(old))
    return Orphans(tuple(Orphan(path, size) for path, size in old), len(unnamed) - len(old), len(listed))


def _named(table: Table) -> dict[str, str]:
    """All files that the table's present metadata leads to, in the spelling for comparisons, and as they are named."""
    metadata, files = table.metadata, LeanIO(table.io)
    found = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    found |= {each.statistics_path for each in (*metadata.statistics, *metadata.partition_statistics)}
    manifests: dict[str, ManifestFile] = {}
    for snapshot in metadata.snapshots:
        found.add(snapshot.manifest_list)
        manifests |= {each.manifest_path: each for each in _manifests(table.io, snapshot)}
    found |= manifests.keys()
    for manifest in manifests.values():
        found |= {entry.data_file.file_path for entry in entries_of(manifest, files)}
    return {_key(path): path for path in found}


def _check_no_other_table(table: Table, unnamed: Iterable[str]) -> None:
    metadata_folder = _key(table.properties.get(TableProperties.WRITE_METADATA_PATH, f"{table.location()}/metadata"))
    for path in unnamed:
        is_metadata = "metadata.json" in posixpath.basename(path)
        if is_metadata and posixpath.dirname(_key(path)) != metadata_folder:
            raise CorruptLake(table_text(table), f"another table lies in its folder: {path}; nothing was deleted")


def _listing(table: Table) -> Iterator[tuple[str, int, datetime]]:
    """Path, size and time of change of each file in the table's folders."""
    for root in _Folders(table).roots:
        yield from _listed(table.io, root)


def _listed(io: FileIO, root: str) -> Iterator[tuple[str, int, datetime]]:
    scheme, _, rest = root.partition("://")
    if isinstance(io, PyArrowFileIO):
        _, netloc, path = io.parse_location(root, io.properties)
        filesystem = io.fs_by_scheme(scheme, netloc)
        for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True)):
            if info.type == pafs.FileType.File:
                yield f"{scheme}://{info.path}", info.size, info.mtime.astimezone(UTC)
        return
    get_fs: Any = getattr(io, "get_fs", None)
    if get_fs is None:
        raise LakeError(root, f"{type(io).__name__} cannot list files", cure="use pyiceberg's Arrow or fsspec FileIO")
    for path, info in get_fs(scheme).find(rest, detail=True).items():
        yield f"{scheme}://{path}", info["size"], _changed(info)


def _changed(info: dict[str, Any]) -> datetime:
    stated = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(stated, datetime):
        return stated.astimezone(UTC)
    return datetime.fromtimestamp(float(stated), UTC) if stated is not None else datetime.now(UTC)


def rewrite_manifests(table: Table, *, manifests: Manifests | None = None) -> tuple[int, int] | None:
    """Rewrites the manifests of the newest snapshot by partition, if there are many more than there need be.

    Returns:
        How many there were and are; None if it would not pay.

    Raises:
        CommitConflict: Another writer came first; nothing was changed.
    """
    table.refresh()
    reader = manifests or Manifests(table.io)
    listed = reader.of(table.current_snapshot())
    files = sum((each.added_files_count or 0) + (each.existing_files_count or 0) for each in listed)
    kinds = len({(each.partition_spec_id, each.content) for each in listed})
    if len(listed) < MANIFESTS_TOO_MANY * (kinds + files // ENTRIES_PER_MANIFEST):
        return None
    commit_change(table, TableChange(Operation.REPLACE, cluster_manifests=True), manifests=reader)
    return len(listed), len(reader.of(table.current_snapshot()))
