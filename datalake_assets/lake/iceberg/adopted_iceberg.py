"""An Apache Iceberg table that others write, as a table of the lake: read, planned, compacted and expired where it is.

A partition is what the table's own paths call it, ``ts_day=2026-01-01``; "." is a table without partitions. Its rows
are those of the newest snapshot of the main branch, with all deletes applied. Compaction is that of our own tables:
``replace`` commits, each of which holds only if what it replaces is still there.
"""

from __future__ import annotations

import re
import weakref
from collections import OrderedDict
from datetime import timedelta

from pyiceberg.table import Table, TableProperties
from pyiceberg.utils.properties import property_as_bool

from datalake_assets.core.compaction.plan import (
    CompactionRules,
    LeftAlone,
)
from datalake_assets.core.facts import Expired
from datalake_assets.core.partitions import FOLDER_ITSELF
from datalake_assets.errors import CorruptLake, LakeError
from datalake_assets.lake.adopted.logged_table import LoggedTable, Merged
from datalake_assets.lake.iceberg.iceberg_catalogs import talking
from datalake_assets.lake.iceberg.iceberg_compaction import IcebergCompaction, compact_table, rewrite_settings
from datalake_assets.lake.iceberg.iceberg_expiry import expire_snapshots, remove_orphans
from datalake_assets.lake.iceberg.iceberg_look import IcebergLook, name_in_table
from datalake_assets.lake.iceberg.iceberg_owners import check_owner, load_adopted, source_of
from datalake_assets.lake.iceberg.iceberg_planning import never_closed, why_too_new
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import Logged

__all__ = ["AdoptedIceberg"]

#: Looks that are kept at hand, of tables that have not changed since: all files of a table, a kilobyte each.
LOOKS = 8
#: Times that a table is loaded whose manifests went away while they were read: it was expired meanwhile.
ATTEMPTS = 3
#: How long snapshots stay where the table does not say: a week.
SNAPSHOTS_MS = 168 * 3_600_000
#: How old a file of ours is that nothing names before it is deleted; Iceberg's own default.
ORPHANS_AFTER = timedelta(days=3)
_OURS = re.compile(r"compacted-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-\d{5,}\.parquet")
_looks: weakref.WeakKeyDictionary[Store, OrderedDict[tuple[str, str, str], IcebergLook]] = weakref.WeakKeyDictionary()


class AdoptedIceberg(LoggedTable[IcebergLook]):
    """An adopted Iceberg table; implements `LakeTable`."""

    def take_look(self) -> IcebergLook:
        """Implements `LoggedTable`; of a table that has not changed, the look of before."""
        store, feed = self._folder.store, self.feed
        known = _looks.setdefault(store, OrderedDict())
        for _ in range(ATTEMPTS):
            table = load_adopted(store, source_of(feed))
            at = (feed.model_dump_json(), str(table.metadata.table_uuid), table.metadata_location)
            look = known.get(at)
            if look is not None:
                look.table = table  # access to its files may be lent, and end
                return look
            try:
                look = IcebergLook(table, feed)
            except FileNotFoundError:
                continue
            known[at] = look
            while len(known) > LOOKS:
                known.popitem(last=False)
            return look
        raise CorruptLake(source_of(feed).where, "its metadata names manifests that are not there")

    def logged(self) -> Logged | None:
        """Implements `TellsItsLog`."""
        source = source_of(self.feed)
        return self.take_look().logged("" if source.uri else source.catalog or self._folder.store.catalog.uri)

    def merged(self, look: IcebergLook, key: str, rules: CompactionRules) -> Merged:
        """Implements `LoggedTable`: ``replace`` commits in the table's catalog."""
        store, source = self._folder.store, source_of(self.feed)
        table = load_adopted(store, source)
        check_owner(store, self.feed, table)
        done = self._compacted(table, key, rules, look)
        failed = (LeftAlone(name_in_table(table, path), why, unusable=True) for path, why in done.failed.items())
        return Merged(
            done.files_compacted,
            done.rows,
            _kernel(done),
            tuple(failed),
            row_groups_merged=done.merged,
            row_groups_encoded=done.encoded - done.merged,
            detours=tuple(LeftAlone(name_in_table(table, path), why) for path, why in done.detours.items()),
        )

    def cure(self, look: IcebergLook) -> str:
        """Implements `LoggedTable`."""
        if why_too_new(look.table.metadata):
            return super().cure(look)
        return f"remove feed {self.feed.name!r}, and adopt 'iceberg:NAMESPACE.TABLE' with --catalog"

    def _compacted(self, table: Table, key: str, rules: CompactionRules, look: IcebergLook) -> IcebergCompaction:
        policy, closes_at, now = self.feed.compaction, look.closes_at(key), self._folder.store.now()
        is_over = closes_at is not None and closes_at <= now
        settings = rewrite_settings(
            table,
            rules,
            row_group_bytes=self.feed.format.row_group_bytes,
            verify=policy.verify,
            sort_by=policy.sort_by,
        )
        name = "" if key == FOLDER_ITSELF else key
        with talking(self._folder.store, where=source_of(self.feed).where):
            return compact_table(
                table,
                rules,
                settings,
                now=now,
                is_closed=(lambda _: True) if is_over else never_closed,
                only=lambda partition: partition == name,
            )

    def expire(self, *, all_past: bool = False) -> Expired:
        """Implements `LakeTable`: snapshots that are older than the table keeps them, with the files only they name.

        What a branch or a tag keeps stays. Files that nothing names stay, too, unless an interrupted compaction of ours
        left them: a commit of another writer may be about to name them.
        """
        if not source_of(self.feed).table:
            return Expired()
        store, now = self._folder.store, self._folder.store.now()
        table = load_adopted(store, source_of(self.feed))
        if not property_as_bool(table.properties, "gc.enabled", True) or why_too_new(table.metadata):
            return Expired()
        check_owner(store, self.feed, table)
        stays_ms = 0 if all_past else _whole(table, TableProperties.MAX_SNAPSHOT_AGE_MS, SNAPSHOTS_MS)
        age = timedelta(milliseconds=min(stays_ms, round(now.timestamp() * 1000)))  # more is for ever
        keep_last = 1 if all_past else max(1, _whole(table, TableProperties.MIN_SNAPSHOTS_TO_KEEP, 1))
        with talking(store, where=source_of(self.feed).where):
            gone = expire_snapshots(table, older_than=now - age, keep_last=keep_last, now=now)
            ours = remove_orphans(table, older_than=now - ORPHANS_AFTER, now=now, only=_is_ours)
        return Expired(len(gone.snapshots), len(gone.files), len(ours.removed))


def _whole(table: Table, name: str, default: int) -> int:
    """A property that is a number.

    Raises:
        LakeError: It is none.
    """
    stated = table.properties.get(name, str(default))
    try:
        return max(0, int(stated))
    except ValueError as error:
        reason = f"its property {name} is {stated[:40]!r}, no whole number"
        raise LakeError(".".join(table.name()), reason, cure="set it to one, or remove it") from error


def _is_ours(path: str) -> bool:
    """Whether a compaction of ours wrote a file: one that was killed before its commit leaves such."""
    return _OURS.fullmatch(path.rpartition("/")[2]) is not None


def _kernel(done: IcebergCompaction) -> str:
    if done.copied and done.encoded:
        return "mixed"
    return "concat" if done.copied else "reencode" if done.encoded else ""
