"""Adopted tables of other formats: their own log says which files they have, and commits of their own change them.

An adopted folder's files are listed, and kept in manifests of ours, since nobody else remembers them. A table of
Iceberg or Delta remembers them itself, exactly and for every reader. So nothing of it is kept but what was last seen,
in ``control/folders/<name>/look.json``: by that another look tells what others changed, and Dagster's data versions
stay when files are only merged. Whoever reads, plans or compacts asks the table's log, and never that memory (ADR 025).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec

from datalake_assets.core.compaction.compaction_report import CompactionProgress, CompactionReport
from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRequest, CompactionRules, LeftAlone, rules_of
from datalake_assets.core.facts import FileChanges, Outlook, PartitionFacts, PlannedPartition
from datalake_assets.core.files import DataFile
from datalake_assets.core.report.figures import FeedStatistics
from datalake_assets.core.verdicts import Drift, PartitionFooters, health_of
from datalake_assets.errors import LakeError, SnapshotExpired
from datalake_assets.feed import Feed
from datalake_assets.lake.adopted.table_of_others import TableOfOthers
from datalake_assets.lake.feed_compaction import Rehearsed
from datalake_assets.lake.store.swap import change_object
from datalake_assets.lake.table import Difference, Reconciliation, Repair

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds  # imports pandas

__all__ = ["LoggedSnapshot", "LoggedTable", "Merged", "TableLook"]


class TableLook(Protocol):
    """A table at one moment; safe to be asked from several threads."""

    @property
    def version(self) -> str:
        """Which moment, as the table's log counts them; empty before the first."""

    @property
    def schema(self) -> pa.Schema:
        """Its columns."""

    @property
    def why_not_compacted(self) -> str:
        """Why it cannot be compacted here, whatever is planned; empty if it can."""

    def partitions(self) -> tuple[str, ...]:
        """Its partitions that have files, in order."""

    def files(self, key: str) -> Sequence[DataFile]:
        """A partition's files; named by their paths below the table's folder."""

    def digest(self, key: str) -> str:
        """A text that changes with a partition's files."""

    def last_write(self, key: str) -> datetime | None:
        """When rows last came or went, or somewhat later; None if the log does not go back that far."""

    def changes_since(self, version: str) -> Mapping[str, FileChanges] | None:
        """The partitions whose rows others changed since a moment; None if the log does not go back that far."""

    def plan(
        self, key: str, rules: CompactionRules, *, now: datetime, excluded: Mapping[str, str] | None = None
    ) -> CompactionPlan:
        """What a compaction would do with a partition."""

    def dataset(self, keys: Sequence[str], *, where: ds.Expression | None = None) -> ds.Dataset:
        """The rows of partitions."""

    def paths(self, keys: Sequence[str]) -> set[str]:
        """What `dataset` names its files."""

    def footers(self, key: str) -> Mapping[str, str]:
        """Opens the footers of a partition's files: by name, why one is not as the log says.

        Raises:
            FileNotFoundError: One is gone.
        """

    def verify(self, keys: Sequence[str], *, deep: bool) -> Iterator[Difference]:
        """Compares what the log says of files with what is there."""


class _Seen(msgspec.Struct, frozen=True):
    """What was seen last of a table: of each partition its data version, its digest and its number of files."""

    format: int = 1
    version: str = ""
    partitions: dict[str, tuple[str, str, int]] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, body: bytes | None) -> _Seen:
        """One that cannot be read says nothing: it is no truth, and is written anew."""
        try:
            return cls() if body is None else msgspec.json.decode(body, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return cls()


def planned_health(
    look: TableLook, feed: Feed, key: str, plan: CompactionPlan, rules: CompactionRules
) -> PlannedPartition:
    """A partition's facts, and what its policy would do with it: rewriting one file is no split, if it has deletes."""
    facts = health_of(key, look.files(key), plan, rules, last_write=look.last_write(key))
    split = [group for group in plan.groups if len(group.files) == 1 and group.size_bytes > rules.target_file_bytes]
    merged = [file.size_bytes for group in plan.groups if group not in split for file in group.files]
    outlook = Outlook(
        files_after=facts.files_after,
        files_to_merge=len(merged),
        small_bytes_to_merge=sum(size for size in merged if size < rules.small_file_bytes),
        files_to_split=len(split),
        bytes_to_split=sum(group.size_bytes for group in split),
        bytes_to_rewrite=facts.bytes_to_rewrite,
    )
    return PlannedPartition.from_facts(
        facts_of(look, feed, key),
        outlook,
        unusable=facts.unusable,
        last_write=facts.last_write,
        last_export=facts.last_write,
    )


def facts_of(look: TableLook, feed: Feed, key: str) -> PartitionFacts:
    """A partition's facts: of its files, so that rows count which are deleted and not merged away yet."""
    return PartitionFacts.of(key, look.files(key), small_below_bytes=feed.small_file_bytes, generation=1)


class LoggedSnapshot:
    """Some partitions of a table, all of one look at it; implements `TableSnapshot`.

    Args:
        feed: The feed.
        look: Looks at the table as it is by then.
        partitions: Their keys; None for all.
        seen: A look that was taken already.
    """

    def __init__(
        self,
        feed: Feed,
        look: Callable[[], TableLook],
        partitions: Sequence[str] | None,
        *,
        seen: TableLook | None = None,
    ) -> None:
        self._feed, self._take, self._taken = feed, look, seen
        self._given = None if partitions is None else tuple(partitions)

    @property
    def feed(self) -> Feed:
        """Implements `TableSnapshot`."""
        return self._feed

    @property
    def _look(self) -> TableLook:
        if self._taken is None:
            self._taken = self._take()
        return self._taken

    @property
    def keys(self) -> tuple[str, ...]:
        """Implements `TableSnapshot`."""
        return self._look.partitions() if self._given is None else self._given

    def only(self, key: str) -> LoggedSnapshot:
        """Implements `TableSnapshot`."""
        return LoggedSnapshot(self._feed, self._take, [key], seen=self._look)

    def report(self, key: str) -> PartitionFacts | None:
        """Implements `TableSnapshot`."""
        return facts_of(self._look, self._feed, key) if self._look.files(key) else None

    def health(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> PlannedPartition:
        """Implements `TableSnapshot`."""
        rules, look = rules_of(self._feed, request), self._look
        plan = look.plan(key, rules, now=datetime.now(UTC), excluded=excluded)
        return planned_health(look, self._feed, key, plan, rules)

    def footers(self, key: str) -> PartitionFooters:
        """Implements `TableSnapshot`; columns of before are no drift, since the log says which is which."""
        look = self._look
        try:
            found = look.footers(key)
        except FileNotFoundError as error:
            raise SnapshotExpired(self._feed.path, "a file was compacted or replaced during the read") from error
        files = look.files(key)
        rows = sum(file.rows for file in files if file.name not in found)
        drifts = tuple(Drift(name, reason) for name, reason in sorted(found.items()))
        return PartitionFooters(key, len(files), rows, len(look.schema), drifts)

    def dataset(self, *, where: ds.Expression | None = None) -> ds.Dataset:
        """Implements `TableSnapshot`."""
        return self._look.dataset(self.keys, where=where)

    def contents(self) -> Mapping[str, str]:
        """Implements `TableSnapshot`."""
        return {key: self._look.digest(key) for key in self.keys if self._look.files(key)}

    def has_expired(self) -> bool:
        """Implements `TableSnapshot`."""
        return not self._look.paths(self.keys) <= self._take().paths(self.keys)


@dataclass(frozen=True, slots=True)
class Merged:
    """What a compaction committed.

    Attributes:
        files: Files that it replaced.
        rows: Rows of those that it wrote.
        kernel: How, as `CompactionReport` says it.
        failed: Files that could not be merged.
        row_groups_merged: As in `CompactionReport`.
        row_groups_encoded: Likewise.
        detours: Likewise.
    """

    files: int = 0
    rows: int = 0
    kernel: str = ""
    failed: tuple[LeftAlone, ...] = ()
    row_groups_merged: int = 0
    row_groups_encoded: int = 0
    detours: tuple[LeftAlone, ...] = ()


_Look = TypeVar("_Look", bound=TableLook)


class LoggedTable(TableOfOthers, Generic[_Look]):
    """An adopted table of another format: nothing is exported to it, and its log is its only truth."""

    def take_look(self) -> _Look:
        """The table as it is now.

        Raises:
            ConfigError: It is gone, or cannot be what was adopted.
            LakeError: Its log cannot be read.
        """
        raise NotImplementedError

    @property
    def is_listed_plainly(self) -> bool:
        """Implements `LakeTable`: files of past states lie among the present ones."""
        return False

    def partitions(self) -> tuple[str, ...]:
        """Implements `LakeTable`."""
        return self.take_look().partitions()

    def snapshot(self, partitions: Sequence[str] | None = None) -> LoggedSnapshot:  # type: ignore[override]  # no manifests
        """Implements `LakeTable`."""
        return LoggedSnapshot(self.feed, self.take_look, partitions)

    def written(self, partitions: Sequence[str]) -> LoggedSnapshot:  # type: ignore[override]  # no manifests
        """Implements `LakeTable`."""
        return self.snapshot(partitions)

    def figures(self, request: CompactionRequest, *, threads: Executor | None = None) -> FeedStatistics:  # noqa: ARG002
        """Implements `LakeTable`: one look tells all."""
        look, rules, now = self.take_look(), rules_of(self.feed, request), self._folder.store.now()
        planned = [
            planned_health(look, self.feed, key, look.plan(key, rules, now=now), rules) for key in look.partitions()
        ]
        return FeedStatistics(feed=self.feed, partitions=tuple(planned))

    def compaction_plan(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> CompactionPlan:
        """Implements `LakeTable`."""
        now = self._folder.store.now()
        return self.take_look().plan(key, rules_of(self.feed, request), now=now, excluded=excluded)

    def compact(
        self,
        key: str,
        request: CompactionRequest,
        *,
        run_id: str = "",  # noqa: ARG002  the protocol's
        on_plan: Callable[[CompactionPlan], None] | None = None,
        on_progress: Callable[[CompactionProgress], None] | None = None,
    ) -> CompactionReport:
        """Implements `LakeTable`, by commits of the table's own format.

        Raises:
            ConfigError: It was adopted without the catalog that its commits need.
            FolderTaken: It is another lake's by now.
            CommitConflict: Another writer took an input away meanwhile; nothing was changed.
            LakeError: The table has what a merge would not carry over; or the catalog or the store failed: what was
                committed stays.
        """
        began, look = time.monotonic(), self.take_look()
        rules = rules_of(self.feed, request)
        plan = look.plan(key, rules, now=self._folder.store.now())
        if on_plan is not None:
            on_plan(plan)
        if reason := look.why_not_compacted:
            raise LakeError(self.feed.source.where, f"it is not compacted: {reason}", cure=self.cure(look))
        bytes_planned = sum(group.size_bytes for group in plan.groups)
        merged = self.merged(look, key, rules) if plan.groups else Merged()
        if on_progress is not None:
            on_progress(CompactionProgress(bytes_planned, bytes_planned))
        return self._report(key, request, merged, look, began)

    def merged(self, look: _Look, key: str, rules: CompactionRules) -> Merged:
        """Merges what is due of a partition, once the table is found to be this lake's still."""
        raise NotImplementedError

    def cure(self, look: _Look) -> str:  # noqa: ARG002  others tell reasons apart
        """What to do about a table that cannot be compacted."""
        return "compact it with the engine that writes it"

    def _report(
        self, key: str, request: CompactionRequest, merged: Merged, before: _Look, began: float
    ) -> CompactionReport:
        after, now = self.take_look(), self._folder.store.now()
        rules = rules_of(self.feed, CompactionRequest(environment=request.environment))
        excluded = {each.name: each.reason for each in merged.failed}
        plan = after.plan(key, rules, now=now, excluded=excluded)
        left_alone = after.plan(key, rules_of(self.feed, request), now=now).left_alone
        old, new = before.files(key), after.files(key)
        there = {file.name for file in old}
        return CompactionReport(
            key=key,
            files_before=len(old),
            files_after=len(new),
            files_compacted=merged.files,
            files_removed=len(old) - len(new),
            bytes_before=sum(file.size_bytes for file in old),
            bytes_after=sum(file.size_bytes for file in new),
            rows=merged.rows,
            kernel=merged.kernel,
            compaction_time_ms=round(1000 * (time.monotonic() - began)),
            small_files_remaining=sum(file.size_bytes < rules.small_file_bytes for file in new),
            skipped=tuple(each for each in (*left_alone, *merged.failed) if each.name in there),
            partition=facts_of(after, self.feed, key),
            health=planned_health(after, self.feed, key, plan, rules),
            failed=merged.failed,
            blocked=merged.failed,
            row_groups_merged=merged.row_groups_merged,
            row_groups_encoded=merged.row_groups_encoded,
            detours=merged.detours,
        )

    def rehearse(self, key: str, request: CompactionRequest, *, most_bytes: int) -> Rehearsed:  # noqa: ARG002
        """Implements `Rehearses`: by the plan, since a merge that fails changes nothing."""
        return Rehearsed(self.compaction_plan(key, request))

    def verify(self, *, deep: bool = False, partitions: Sequence[str] | None = None) -> Iterator[Difference]:
        """Implements `LakeTable`: files that the log names; what else lies there is the table's own business."""
        look = self.take_look()
        yield from look.verify(look.partitions() if partitions is None else tuple(partitions), deep=deep)

    def repair(self, *, run_id: str = "") -> Repair:
        """Implements `LakeTable`: an interrupted commit of such a table is none, and there is only to look again."""
        return Repair(found=self.look_again(run_id=run_id))

    def look_again(
        self,
        *,
        run_id: str = "",  # noqa: ARG002  the protocol's
        on_progress: Callable[[int, int], None] | None = None,  # noqa: ARG002
    ) -> Reconciliation:
        """Implements `LakeTable`: remembers what is there now."""
        look, done = self.take_look(), Reconciliation()

        def seen(body: bytes | None) -> bytes | None:
            nonlocal done
            before = _Seen.of(body)
            now, done = _compared(before, look, self.feed)
            return None if now == before else msgspec.json.encode(now)

        change_object(self._folder.store, f"{self._folder.control}/look.json", seen)
        if done.changed:
            changed = [done.partitions[key] for key in done.changed]
            gone = [each.key for each in changed if not each.files]
            self._folder.summary.merge([each for each in changed if each.files], removed=gone, at=None)
        return done


def _compared(before: _Seen, look: TableLook, feed: Feed) -> tuple[_Seen, Reconciliation]:
    """What is remembered of a look, and what is new about it."""
    changes = look.changes_since(before.version) if before.partitions or before.version else None
    done, partitions = Reconciliation(schema=look.schema, why_not_compacted=look.why_not_compacted), {}
    for key in look.partitions():
        files, digest = len(look.files(key)), look.digest(key)
        version, old_digest, old_files = before.partitions.get(key, (look.version, "", 0))
        is_changed = not old_digest or (key in changes if changes is not None else digest != old_digest)
        if is_changed:
            version = look.version
            done.changed.append(key)
            # where the log does not go back, all of a partition counts as exchanged
            each = FileChanges(files, old_files) if changes is None else changes.get(key, FileChanges())
            done.added, done.removed = done.added + each.added, done.removed + each.removed
        partitions[key] = (version, digest, files)
        done.partitions[key], done.versions[key] = facts_of(look, feed, key), version
    for key in before.partitions.keys() - partitions.keys():
        done.changed.append(key)
        done.removed += before.partitions[key][2] if changes is None else changes.get(key, FileChanges()).removed
        done.partitions[key] = PartitionFacts(key)
    done.changed.sort()
    return _Seen(version=look.version, partitions=partitions), done
