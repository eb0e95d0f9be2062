"""An Apache Iceberg table that others write, as a table of the lake: read, planned, compacted and expired where it is.

A partition is what the table's own paths call it, ``ts_day=2026-01-01``; "." is a table without partitions. Its rows
are those of the newest snapshot of the main branch, with all deletes applied. Compaction is that of our own tables:
``replace`` commits, each of which holds only if what it replaces is still there.
"""

from __future__ import annotations

import re
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from pyiceberg.table import Table, TableProperties
from pyiceberg.utils.properties import property_as_bool

from datalake_assets.core.compaction.plan import (
    CompactionPlan,
    CompactionRequest,
    CompactionRules,
    LeftAlone,
    rules_of,
)
from datalake_assets.core.facts import Expired
from datalake_assets.core.partitions import FOLDER_ITSELF
from datalake_assets.errors import CorruptLake, LakeError
from datalake_assets.feed import Feed
from datalake_assets.lake.adopted.logged_table import LoggedTable, facts_of, planned_health
from datalake_assets.lake.iceberg.iceberg_catalogs import talking
from datalake_assets.lake.iceberg.iceberg_compaction import IcebergCompaction, compact_table, rewrite_settings
from datalake_assets.lake.iceberg.iceberg_expiry import expire_snapshots, remove_orphans
from datalake_assets.lake.iceberg.iceberg_look import IcebergLook, name_in_table
from datalake_assets.lake.iceberg.iceberg_owners import check_owner, load_adopted, source_of
from datalake_assets.lake.iceberg.iceberg_planning import never_closed, why_too_new
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import CompactionProgress, CompactionReport

if TYPE_CHECKING:
    pass

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


class AdoptedIceberg(LoggedTable):
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

    def compact(
        self,
        key: str,
        request: CompactionRequest,
        *,
        run_id: str = "",  # noqa: ARG002  the protocol's
        on_plan: Callable[[CompactionPlan], None] | None = None,
        on_progress: Callable[[CompactionProgress], None] | None = None,
    ) -> CompactionReport:
        """Implements `LakeTable`: ``replace`` commits in the table's catalog.

        Raises:
            ConfigError: It was adopted without its catalog.
            FolderTaken: It is another lake's by now.
            LakeError: Its format is too new; or the catalog or the store failed: what was committed stays.
        """
        began, store, look = time.monotonic(), self._folder.store, self.take_look()
        rules, now = rules_of(self.feed, request), store.now()
        plan = look.plan(key, rules, now=now)
        if on_plan is not None:
            on_plan(plan)
        if reason := look.why_not_compacted:
            raise LakeError(source_of(self.feed).where, f"it is not compacted: {reason}", cure=_cure(look, self.feed))
        done, bytes_planned = IcebergCompaction(), sum(group.size_bytes for group in plan.groups)
        if plan.groups:
            table = load_adopted(store, source_of(self.feed))
            check_owner(store, self.feed, table)
            done = self._compacted(table, key, rules, look)
        if on_progress is not None:
            on_progress(CompactionProgress(bytes_planned, bytes_planned))
        return self._report(key, request, done, look, began)

    def _compacted(self, table: Table, key: str, rules: CompactionRules, look: IcebergLook) -> IcebergCompaction:
        policy, closes_at, now = self.feed.compaction, look.closes_at(key), self._folder.store.now()
        is_over = closes_at is not None and closes_at <= now
        settings = rewrite_settings(
            table,
            rules,
            row_group_bytes=self.feed.format.row_group_bytes,
            verify=policy.verify == "full",
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

    def _report(
        self, key: str, request: CompactionRequest, done: IcebergCompaction, before: IcebergLook, began: float
    ) -> CompactionReport:
        after, default = self.take_look(), CompactionRequest(environment=request.environment)
        rules = rules_of(self.feed, default)
        failed = tuple(
            LeftAlone(name_in_table(after.table, path), why, unusable=True) for path, why in done.failed.items()
        )
        plan = after.plan(
            key, rules, now=self._folder.store.now(), excluded={each.name: each.reason for each in failed}
        )
        old, new = before.files(key), after.files(key)
        there = {file.name for file in old}
        skipped = after.plan(key, rules_of(self.feed, request), now=self._folder.store.now()).left_alone
        return CompactionReport(
            key=key,
            files_before=len(old),
            files_after=len(new),
            files_compacted=done.files_compacted,
            files_removed=len(old) - len(new),
            bytes_before=sum(file.size_bytes for file in old),
            bytes_after=sum(file.size_bytes for file in new),
            rows=done.rows,
            kernel=_kernel(done),
            compaction_time_ms=round(1000 * (time.monotonic() - began)),
            small_files_remaining=sum(file.size_bytes < rules.small_file_bytes for file in new),
            skipped=tuple(each for each in (*skipped, *failed) if each.name in there),
            partition=facts_of(after, self.feed, key),
            health=planned_health(after, self.feed, key, plan, rules),
            failed=failed,
            blocked=failed,
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


def _cure(look: IcebergLook, feed: Feed) -> str:
    if why_too_new(look.table.metadata):
        return "compact it with the engine that writes it"
    return f"remove feed {feed.name!r}, and adopt 'iceberg:NAMESPACE.TABLE' with --catalog"
