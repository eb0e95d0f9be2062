"""How a write becomes one snapshot of an Iceberg table, exactly once, whoever else commits meanwhile.

The data files are written first, then one commit in the catalog makes all of them visible. Between the two, an object
in the lake (``control/<feed>/commits/<id>.json``) lists the files, so that those of a process that died are found and
deleted, and nobody has to guess by their age.

A process that is only slow must not lose its files under its hands. Whoever undoes a commit therefore first marks that
object, then commits an empty snapshot, and only then looks whether the commit was made after all. A catalog accepts a
commit only on the snapshot that it was built on: what was built before the empty snapshot is refused, and what is built
after it has seen the mark, since a writer loads the table first and looks for the mark second (ADR 022).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update import RemoveSnapshotRefUpdate, SetPropertiesUpdate

from datalake_assets.core.item_ids import IdsPosition
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import version_number
from datalake_assets.core.position import OffsetsPosition, Position, SnapshotPosition, WindowPosition
from datalake_assets.errors import (
    AmbiguousWrite,
    CommitConflict,
    ConfigError,
    CorruptLake,
    LakeError,
    TransientStoreError,
    UploadGone,
)
from datalake_assets.lake.commit import Change, Planned
from datalake_assets.lake.iceberg.catalog_commits import check_format, commit_updates
from datalake_assets.lake.iceberg.commit_records import (
    CommitDocument,
    CommitRecord,
    TablePlace,
    condemned,
    discard,
    unfinished_commits,
)
from datalake_assets.lake.iceberg.data_files import data_file_of
from datalake_assets.lake.iceberg.iceberg_catalogs import talking
from datalake_assets.lake.iceberg.iceberg_views import (
    COMMIT,
    KIND,
    PARTITIONS,
    PAST,
    POSITION,
    REMOVED,
    RUN,
    WINDOWS,
    TableView,
    position_as_said,
)
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.parquet.keys import FIELD_ID

__all__ = ["commit_together", "undo_interrupted"]

logger = logging.getLogger(__name__)

#: Attempts at one commit; each lost one means that another writer got further.
ATTEMPTS: Final = 20
#: Requests under way at once.
THREADS: Final = 8
#: Positions of pulled partitions that are kept; one that is forgotten is pulled and replaced again, by equal rows.
MAX_WINDOWS: Final = 1000

UNDONE: Final = "a repair took this commit for one that was interrupted"
_OPERATIONS: Final = {
    "append": Operation.APPEND,
    "replay": Operation.APPEND,
    "merge": Operation.OVERWRITE,
    "replace": Operation.OVERWRITE,
    "snapshot": Operation.OVERWRITE,
    "compact": Operation.REPLACE,
    "erase": Operation.OVERWRITE,
    "convert": Operation.OVERWRITE,
}


@dataclass(frozen=True, slots=True)
class _Work:
    """What one commit is made of, by partition."""

    changes: Mapping[str, Change]

    @property
    def first(self) -> Change:
        """The one that names the commit."""
        return next(iter(self.changes.values()))

    @property
    def staged(self) -> list[StagedFile]:
        """All files."""
        return [staged for change in self.changes.values() for staged, _ in change.files]

    def staged_but(self, planned: Mapping[str, Planned]) -> list[StagedFile]:
        """The files of partitions that need not change after all."""
        return [staged for key, change in self.changes.items() if key not in planned for staged, _ in change.files]


def commit_together(folder: TablePlace, changes: Mapping[str, Change]) -> TableView:
    """Commits all changes as one snapshot; returns the table after it.

    Raises:
        CommitConflict: Another writer got there first, and a change cannot be made on what it left.
        LakeError: The store or the catalog failed. What may have been committed stays; a repair settles it.
    """
    work = _Work(changes)
    view = folder.seen()
    try:
        if view.table is not None:
            check_format(view.table)
        if work.first.kind in {"append", "replay", "merge"}:
            view.check_not_rolled_back()
        planned = _planned(work, view)
    except BaseException:
        discard(folder.data_store, work.staged)
        raise
    if not planned:
        discard(folder.data_store, work.staged)
        return view
    if work.first.kind == "delete":
        return _remove_version(folder, next(iter(planned)), folder.view())
    record = CommitRecord.begin(folder, work.first.commit_id, work.staged)
    try:
        _publish(folder.data_store, work.staged)
    except LakeError:
        record.give_up(folder, work.staged)
        raise
    return _attempts(folder, work, record, view, planned)


def _attempts(
    folder: TablePlace, work: _Work, record: CommitRecord, view: TableView, planned: Mapping[str, Planned]
) -> TableView:
    try:
        footers = _footers(folder.data_store, work.staged)
    except OSError as error:
        if not record.is_condemned(folder):
            raise
        record.give_up(folder, work.staged)
        raise CommitConflict(folder.feed.path, UNDONE) from error
    for attempt in range(ATTEMPTS):
        table = _table(view)
        with record.given_up_on_errors(folder, work.staged):
            change = _change(folder, work, planned, view, footers)
        try:
            with talking(folder.store):
                branch = _branch(folder, work, view)
                commit_change(table, change, manifests=folder.reader(table), branch=branch)
        except CommitConflict as error:
            logger.debug("commit %s tried again: %s", work.first.commit_id, error)
            if attempt == ATTEMPTS - 1:
                record.give_up(folder, work.staged)
                raise
        else:
            break
        view = folder.view()
        if view.is_committed(work.first.commit_id):
            table = _table(view)
            break
        planned = _replanned(folder, work, record, view)
        if not planned:
            return view
    record.end(folder, unused=work.staged_but(planned))
    after = folder.view_of(table)
    logger.info("committed %s of %s: %d files", work.first.kind, folder.feed.path, len(work.staged))
    return after


def _replanned(folder: TablePlace, work: _Work, record: CommitRecord, view: TableView) -> Mapping[str, Planned]:
    """The plan on another base; without one, or with an error, the files are of no use."""
    planned: Mapping[str, Planned] = {}
    try:
        if record.is_condemned(folder):
            raise CommitConflict(folder.feed.path, UNDONE)
        planned = _planned(work, view)
    finally:
        if not planned:
            record.give_up(folder, work.staged)
    return planned


def _planned(work: _Work, view: TableView) -> dict[str, Planned]:
    found = {}
    for key, change in work.changes.items():
        planned = change.plan(view.manifest(key))
        if planned is not None:
            found[key] = planned
    return found


def _table(view: TableView) -> Table:
    if view.table is None:
        raise CorruptLake("catalog", "the Iceberg table was dropped while it was being written")
    return view.table


def _change(
    folder: TablePlace,
    work: _Work,
    planned: Mapping[str, Planned],
    view: TableView,
    footers: Mapping[str, pq.FileMetaData],
) -> TableChange:
    """The snapshot that a plan makes of a table."""
    change, properties = work.first, _properties(view, planned)
    said = {COMMIT: change.commit_id, KIND: change.kind, RUN: change.run_id}
    if POSITION in properties:
        said[POSITION] = position_as_said(properties[POSITION])
    done = {key: _done(folder, view.manifest(key), work.changes[key], each) for key, each in planned.items()}
    said[PARTITIONS] = json.dumps(done, separators=(",", ":"))
    past = {key: msgspec.to_builtins(each.follows.history) for key, each in planned.items() if each.follows}
    if past:
        said[PAST] = json.dumps(past, separators=(",", ":"))
    is_new_version = change.kind == "snapshot" or (folder.by is None and change.kind == "convert")
    removed = view.head_paths() if is_new_version else _removed(view, planned)
    first = next(iter(planned))
    is_of_version = folder.by is None and change.kind == "erase"
    if is_of_version:  # its tag goes on to the new snapshot: what keeps the version must not keep those rows
        said[POSITION] = _position_text(view, first)
    added = [
        _line(folder, view, (key, file.part), staged=staged, footer=footers[staged.key])
        for key in planned
        for staged, file in work.changes[key].files
    ]
    return TableChange(
        operation=_operation(change.kind, added=bool(added), removed=bool(removed)),
        added=added,
        removed=removed,
        summary=said,
        set_properties=properties,
        tag=first if is_new_version or is_of_version else "",
        moves_branch=view.is_read_from_head(first) if is_of_version else not _is_late(planned, view),
    )


def _operation(kind: str, *, added: bool, removed: bool) -> Operation:
    """Iceberg's word for what a commit of a kind does (table specification, "Snapshots")."""
    operation = _OPERATIONS[kind]
    if operation is Operation.OVERWRITE and not removed:
        return Operation.APPEND
    return Operation.DELETE if kind == "erase" and not added else operation


def _position_text(view: TableView, key: str) -> str:
    position = view.manifest(key).position
    if position is None:
        raise CorruptLake("catalog", f"the snapshot of version {key} does not say how much of its source it is")
    return json.dumps(position.to_json(), separators=(",", ":"))


def _branch(folder: TablePlace, work: _Work, view: TableView) -> str:
    """What a commit is built on: the main branch, or the tag of a version that is not the newest."""
    key = next(iter(work.changes))
    is_past = folder.by is None and work.first.kind == "erase" and not view.is_read_from_head(key)
    return key if is_past else MAIN_BRANCH


def _is_late(planned: Mapping[str, Planned], view: TableView) -> bool:
    """Whether this is a version whose pull began before that of another one that is there already."""
    newest = view.newest_as_of()
    pulled = [each.position.as_of for each in planned.values() if isinstance(each.position, SnapshotPosition)]
    return newest is not None and any(each < newest for each in pulled)


def _removed(view: TableView, planned: Mapping[str, Planned]) -> list[str]:
    found = []
    for key, each in planned.items():
        paths = view.paths(key) if each.remove else {}
        found += [paths[name] for name in each.remove]
    return found


def _line(
    folder: TablePlace, view: TableView, at: tuple[str, str], *, staged: StagedFile, footer: pq.FileMetaData
) -> IcebergFile:
    """A file for a manifest; ``at`` are the key of its partition, and its part."""
    table = _table(view)
    if footer.num_rows and not at[1] and view.has_parts_alone:
        raise CorruptLake(staged.key, "it was written without the values that its table keeps files apart by")
    spec_id, partition = view.partition_of(*at)
    path = folder.uri_of(staged.key, table)
    ids = {field.name: field.field_id for field in table.schema().fields}
    for field in footer.schema.to_arrow_schema():
        own = (field.metadata or {}).get(FIELD_ID)
        if field.name not in ids or (own is not None and int(own) != ids[field.name]):
            raise ConfigError(f"{path}: column {field.name!r} is not the table's: another engine changed that")
    return data_file_of(
        path,
        footer,
        staged.size_bytes,
        schema=table.schema(),
        properties=table.properties,
        spec_id=spec_id,
        partition=partition,
    )


def _done(folder: TablePlace, base: Manifest, change: Change, planned: Planned) -> dict[str, str | int]:
    """What a commit does to a partition, and how it is after it: the fields of a history's line."""
    added = [file for _, file in change.files]
    gone = set(planned.remove)
    after = [file for file in base.files if file.name not in gone] + added
    small_below = folder.feed.small_file_bytes
    return {
        "commit_id": change.commit_id,
        "rows": sum(file.rows for file in added),
        "files_added": len(added),
        "files_removed": len(gone),
        "files": len(after),
        "small_files": sum(file.size_bytes < small_below for file in after),
        "size_bytes": sum(file.size_bytes for file in after),
        "total_rows": sum(file.rows for file in after),
    }


def _properties(view: TableView, planned: Mapping[str, Planned]) -> dict[str, str]:
    """The table's properties that say how much of the source there is after a commit."""
    positions = {key: each.position for key, each in planned.items() if each.position is not None}
    windows = {key: each.to_json() for key, each in positions.items() if isinstance(each, WindowPosition)}
    if windows:
        known = {**view.windows, **windows}
        newest = sorted(known, key=lambda key: (known[key]["as_of"], key))[-MAX_WINDOWS:]
        return {WINDOWS: json.dumps({key: known[key] for key in sorted(newest)}, separators=(",", ":"))}
    shared = _shared(list(positions.values()))
    return {} if shared is None else {POSITION: json.dumps(shared.to_json(), separators=(",", ":"))}


def _shared(positions: Sequence[Position]) -> OffsetsPosition | SnapshotPosition | IdsPosition | None:
    """The position of all partitions of one commit, which each of them was planned with."""
    first = positions[0] if positions else None
    if any(each != first for each in positions):
        raise CorruptLake("position", "the partitions of one commit were planned with several positions")
    return first if isinstance(first, OffsetsPosition | SnapshotPosition | IdsPosition) else None


def _remove_version(folder: TablePlace, key: str, view: TableView) -> TableView:
    """Takes a version's tag away, with the mark that it was removed; its files go when its snapshots do."""
    number = version_number(key)
    for _ in range(ATTEMPTS):
        table = _table(view)
        updates: list[Any] = [SetPropertiesUpdate(updates={f"{REMOVED}{key}": ""})]
        if number in view.versions:
            updates.append(RemoveSnapshotRefUpdate(ref_name=key))
        with contextlib.suppress(CommitConflict), talking(folder.store):
            commit_updates(table, updates, (), is_there=lambda: f"{REMOVED}{key}" in table.properties)  # noqa: B023  called at once
            break
        view = folder.view()
        if view.manifest(key).deleted:
            break
    return folder.expire_versions(folder.view())


def _publish(store: Store, staged: Sequence[StagedFile]) -> None:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="publish") as pool:
        list(pool.map(lambda each: _publish_one(store, each), staged))
    store.sync(each.key for each in staged)


def _publish_one(store: Store, staged: StagedFile) -> None:
    try:
        store.publish(staged)
    except (UploadGone, AmbiguousWrite, TransientStoreError):
        info = store.head(staged.key)
        if info is None or info.size_bytes != staged.size_bytes:
            raise


def _footers(store: Store, staged: Sequence[StagedFile]) -> dict[str, pq.FileMetaData]:
    files = store.filesystem()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="footers") as pool:
        read = pool.map(lambda each: pq.read_metadata(store.path(each.key), filesystem=files), staged)
        return dict(zip([each.key for each in staged], read, strict=True))


def undo_interrupted(folder: TablePlace) -> tuple[int, int]:
    """Settles commits that were interrupted: those that were made lost nothing but their end, others are undone.

    Returns:
        How many had been made, and how many were undone.
    """
    made = undone = 0
    for key, _ in list(unfinished_commits(folder)):
        document = condemned(folder, key)
        if document is None:
            continue
        if _was_made(folder, document):
            made += 1
        else:
            discard(folder.data_store, document.staged)
            folder.data_store.delete(each.key for each in document.staged)
            undone += 1
            logger.warning("commit %s of %s was undone", document.commit_id, folder.feed.path)
        folder.store.delete([key])
    return made, undone


def _was_made(folder: TablePlace, document: CommitDocument) -> bool:
    """Whether a commit is in the table; if it is not, it cannot get there any more."""
    for _ in range(ATTEMPTS):
        view = folder.view()
        if view.table is None:
            raise ConfigError(
                f"the catalog has no table of feed {folder.feed.name!r}, and a commit to it is not settled:"
                " is DATALAKE_ICEBERG_CATALOG, or its namespace, the one that it was written with?"
            )
        if _is_there(folder, view, document):
            return True
        change = TableChange(Operation.APPEND, summary={KIND: "fence", COMMIT: folder.new_id()})
        with contextlib.suppress(CommitConflict), talking(folder.store):
            commit_change(view.table, change, manifests=folder.reader(view.table))
            return _is_there(
                folder, folder.view_of(view.table), document
            )  # as the fence left it: who reads may be late
    raise TransientStoreError(folder.feed.path, "other writers kept committing while one was being undone")


def _is_there(folder: TablePlace, view: TableView, document: CommitDocument) -> bool:
    if view.is_committed(document.commit_id):
        return True
    named = view.named_files()  # the snapshot may have expired, and its files live on in later ones
    return any(folder.path_below(each.key) in named for each in document.staged)
