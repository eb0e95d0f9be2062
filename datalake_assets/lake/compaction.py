"""Compaction of a partition: plan, rewrite, commit, until nothing is left to merge.

Each group of files is one commit of its own, so that an interruption loses the work on a group or two. Appends go on
meanwhile: a commit conflicts only if one of its inputs is gone. After a pass the plan is made again on what came out;
what it finds then are files of large row groups, which are copied, not encoded a second time.

What merges files, with Arrow and numpy, is loaded by the first group: where nothing is due, it would be most of the
work.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import starmap
from typing import TYPE_CHECKING, Protocol

import msgspec

from datalake_assets.core.compaction.compaction_report import CompactionProgress, CompactionReport, TaskFigures
from datalake_assets.core.compaction.plan import (
    CompactionGroup,
    CompactionPlan,
    CompactionRequest,
    CompactionRules,
    LeftAlone,
    rules_of,
)
from datalake_assets.core.facts import PlannedPartition
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.values import Value
from datalake_assets.engines import open_engine
from datalake_assets.engines.base import Engine, Task
from datalake_assets.errors import CommitConflict
from datalake_assets.lake.commit import Change, Loaded, PartitionLog, Planned
from datalake_assets.lake.compaction_plans import partition_health, plan_of
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store import PortableStore
from datalake_assets.lake.store.base import StagedFile
from datalake_assets.tracing import span

if TYPE_CHECKING:
    from datalake_assets.lake.compaction_jobs import RewriteJob, RewriteResult
    from datalake_assets.parquet.rewrite import Rewritten
    from datalake_assets.parquet.rewrite_settings import RewriteSettings

__all__ = [
    "Compaction",
    "Guard",
    "as_inputs",
    "compact",
    "footer_of",
]

logger = logging.getLogger(__name__)


#: Plans made in a row; each finds less than the one before.
PASSES = 5


class Guard(Protocol):
    """Who may object to a compaction: what it raises ends that, and nothing of a commit that was not made stays."""

    def before_rewrite(self) -> None:
        """Files are about to be rewritten."""

    def before_commit(self) -> None:
        """A commit is about to be prepared."""


def compact(
    folder: FeedFolder,
    key: str,
    request: CompactionRequest,
    *,
    run_id: str = "",
    base: Loaded | None = None,
    excluded: Mapping[str, str] | None = None,
    guard: Guard | None = None,
    on_plan: Callable[[CompactionPlan], None] | None = None,
    on_progress: Callable[[CompactionProgress], None] | None = None,
) -> CompactionReport:
    """Merges a partition's small files group by group, each in a commit of its own; does `LakeTable.compact`'s work.

    Args:
        folder: The feed.
        key: The partition.
        request: What is asked for.
        run_id: The Dagster run; empty if there is none.
        base: The settled manifest, if somebody has just read it.
        excluded: Files that must stay as they are, by name, with the reason.
        guard: Asked before files are rewritten, and before each commit.
        on_plan: Called with the plan before the work begins.
        on_progress: Called with what is done so far.
    """
    folder.probe()
    work = Compaction(folder, key, request, run_id, on_progress, excluded=excluded, guard=guard)
    with span("compact", feed=folder.feed.path, partition=key):
        return work.run(base, on_plan=on_plan)


@dataclass(slots=True)
class _Tally:
    """What was done so far."""

    files_compacted: int = 0
    files_written: int = 0
    bytes_read: int = 0
    rows: int = 0
    copied: int = 0
    encoded: int = 0
    merged: int = 0
    detours: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    tasks: list[TaskFigures] = field(default_factory=list)

    @property
    def kernel(self) -> str:
        if self.copied and self.encoded:
            return "mixed"
        return "concat" if self.copied else "reencode" if self.encoded else ""


class _Work(Value, frozen=True):
    """A group that was rewritten and is not committed yet."""

    group: CompactionGroup
    commit_id: str
    done: Rewritten[StagedFile] | None
    failed: frozenset[str] = frozenset()
    checksums: Mapping[str, str] = msgspec.field(default_factory=dict)


class Compaction:
    """The compaction of one partition; arguments as for `compact`."""

    def __init__(
        self,
        folder: FeedFolder,
        key: str,
        request: CompactionRequest,
        run_id: str,
        on_progress: Callable[[CompactionProgress], None] | None,
        *,
        excluded: Mapping[str, str] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._folder, self._key, self._request, self._run_id = folder, key, request, run_id
        self._guard, self._on_progress = guard, on_progress
        self._log: PartitionLog = folder.log(key)
        self._rules = rules_of(folder.feed, request)
        self._kept = dict(excluded or {})
        self._tally = _Tally(excluded=dict(self._kept))
        self._planned_bytes = self._done_bytes = 0
        self._telling = threading.Lock()

    def run(self, base: Loaded | None, *, on_plan: Callable[[CompactionPlan], None] | None = None) -> CompactionReport:
        """Plans, rewrites and commits until a plan is empty or the run's limits are reached."""
        began = time.monotonic()
        self._loaded = base or self._settled()
        before, mine = self._loaded.manifest, {file.name for file in self._loaded.manifest.files}
        for number in range(PASSES):
            manifest = self._loaded.manifest
            # what is appended meanwhile is the next run's: a fast writer would keep this one busy for ever
            mine_now = replace(manifest, files=tuple(file for file in manifest.files if file.name in mine))
            plan = plan_of(self._folder, self._key, mine_now, self._limits(), self._tally.excluded)
            if on_plan is not None and not number:
                on_plan(plan)
            if not plan.groups:
                break
            if self._guard is not None:
                self._guard.before_rewrite()
            self._planned_bytes += sum(group.size_bytes for group in plan.groups)
            with closing(self._rewritten(plan.groups, manifest)) as rewritten:
                for work in rewritten:
                    self._commit(work)
            mine |= self._tally.made
        return self._report(before, began)

    def _limits(self) -> CompactionRules:
        """The rules, with what is left of the run's limits."""
        return replace(
            self._rules,
            max_files=self._rules.max_files - self._tally.files_compacted,
            max_bytes=self._rules.max_bytes - self._tally.bytes_read,
        )

    def _settled(self) -> Loaded:
        return self._log.settle(self._log.load())

    def _rewritten(self, groups: Sequence[CompactionGroup], manifest: Manifest) -> Generator[_Work]:
        """Rewrites groups, several at once as the engine allows, and hands each on as it is done."""
        from datalake_assets.lake.compaction_jobs import check_shared  # noqa: PLC0415  see the module
        from datalake_assets.parquet.decodable import ROW_GROUPS_HELD  # noqa: PLC0415

        feed, engine = self._folder.feed, self._engine()
        thread_bytes = ROW_GROUPS_HELD * feed.format.row_group_bytes
        share = engine.share(len(groups), memory_bytes=self._request.memory_bytes, thread_bytes=thread_bytes)
        settings = self._settings(share.threads)
        jobs = [self._job(group, manifest, settings) for group in groups]
        what = f"{feed.path} {self._key}"
        tasks = [Task(job.run, f"{what}: rewrite {len(job.files)} files", job.memory_bytes) for job in jobs]
        reported = [0] * len(jobs)

        def report(index: int, done_bytes: int) -> None:
            self._report_progress(done_bytes - reported[index])
            reported[index] = done_bytes

        def drop(result: RewriteResult) -> None:
            jobs[0].discard(result.done)

        with closing(engine.run(tasks, share, on_progress=report, drop=drop)) as results:
            for each in results:
                job, result = jobs[each.index], each.result
                if engine.is_remote:
                    check_shared(job, result, engine=engine.name, worker=each.figures.worker)
                    report(each.index, job.size_bytes)
                    self._tally.tasks.append(each.figures)
                yield _Work(groups[each.index], job.commit_id, result.done, result.failed, result.checksums)

    def _settings(self, workers: int) -> RewriteSettings:
        from datalake_assets.parquet.decodable import ROW_GROUPS_HELD  # noqa: PLC0415  see the module
        from datalake_assets.parquet.rewrite_settings import RewriteSettings  # noqa: PLC0415
        from datalake_assets.parquet.writer import ParquetSettings  # noqa: PLC0415

        feed = self._folder.feed
        return RewriteSettings(
            parquet=ParquetSettings(
                compression=feed.format.compression,
                profile=feed.format.profile,
                target_file_bytes=self._rules.target_file_bytes,
                row_group_bytes=feed.format.row_group_bytes,
            ),
            kernel=feed.compaction.kernel,
            verify=feed.compaction.verify,
            time_column=feed.row_time,
            sort_by=feed.compaction.sort_by,
            workers=workers,
            row_bytes=self._request.memory_bytes // ROW_GROUPS_HELD,
        )

    def _engine(self) -> Engine:
        return open_engine(self._request.engine)

    def _job(self, group: CompactionGroup, manifest: Manifest, settings: RewriteSettings) -> RewriteJob:
        from datalake_assets.lake.compaction_jobs import RewriteJob  # noqa: PLC0415  see the module

        folder, commit_id = self._folder, self._folder.new_id()
        return RewriteJob(
            store=PortableStore(folder.data_store),
            folder=self._log.data_folder,
            files=group.files,
            keys=tuple(self._log.key_of(file.name) for file in group.files),
            settings=settings,
            commit_id=commit_id,
            metadata=footer_of(folder, manifest, commit_id=commit_id, run_id=self._run_id),
            at=folder.store.now(),
            new_id=folder.new_id,
            adopted=folder.is_adopted,
            may_copy=settings.kernel != "reencode" and settings.verify == "rows" and not settings.sort_by,
            made=frozenset(self._tally.made.intersection(file.name for file in group.files)),
        )

    def _discard(self, done: Rewritten[StagedFile]) -> None:
        for staged, _ in done.outputs:
            self._folder.data_store.discard_staged(staged)

    def _commit(self, work: _Work) -> None:
        if work.done is None:  # merged by somebody else: what did they make of it?
            self._loaded = self._settled()
            return
        self._tally.excluded |= work.done.rejected
        self._tally.failed |= work.failed
        if not work.done.outputs:
            return
        if reason := work.done.gains_nothing:
            self._discard(work.done)
            self._tally.excluded |= dict.fromkeys(work.done.rewritten, reason)
            return
        self._ask_guard(work.done)
        rewritten = set(work.done.rewritten)
        inputs = {file.name: file for file in work.group.files if file.name in rewritten}

        def planned(base: Manifest) -> Planned:
            there = {file.name: file for file in base.files}
            if any(there.get(name) != file for name, file in inputs.items()):
                raise CommitConflict(self._log.data_folder, "a file to merge was replaced meanwhile")
            checksums = {name: checksum for name, checksum in work.checksums.items() if name in inputs}
            return Planned(remove=tuple(inputs), checksums=checksums)

        files = tuple((staged, as_inputs(file, inputs.values())) for staged, file in work.done.outputs)
        try:
            change = Change(work.commit_id, "compact", files, planned, self._run_id)
            self._loaded, _ = self._log.commit(change, base=self._loaded)
        except CommitConflict as error:
            logger.info("merged in vain: %s", error)
            self._loaded = self._settled()
            return
        self._tally.files_compacted += len(inputs)
        self._tally.files_written += len(files)
        self._tally.made |= {file.name for _, file in files}
        self._tally.bytes_read += sum(file.size_bytes for file in inputs.values())
        self._tally.rows += sum(file.rows for file in inputs.values())
        self._tally.copied += work.done.copied
        self._tally.encoded += work.done.encoded
        self._tally.merged += work.done.merged
        self._tally.detours |= work.done.detours

    def _ask_guard(self, done: Rewritten[StagedFile]) -> None:
        try:
            if self._guard is not None:
                self._guard.before_commit()
        except BaseException:
            self._discard(done)
            raise

    def _report_progress(self, more_bytes: int) -> None:
        with self._telling:  # groups are rewritten in threads
            self._done_bytes += more_bytes
            if self._on_progress is not None:
                self._on_progress(CompactionProgress(min(self._done_bytes, self._planned_bytes), self._planned_bytes))

    def _report(self, before: Manifest, began: float) -> CompactionReport:
        tally, after = self._tally, self._loaded.manifest
        partition = self._folder.report(self._key, after, before=before)
        plan = plan_of(self._folder, self._key, after, self._rules, tally.excluded)
        known, blocked = {file.name for file in before.files}, self._blocked(before)
        if tally.files_compacted:
            self._folder.summary.merge([partition], removed=(), at=None)
        return CompactionReport(
            key=self._key,
            files_before=len(before.files),
            files_after=len(after.files),
            files_compacted=tally.files_compacted,
            files_removed=tally.files_compacted - tally.files_written,
            bytes_before=sum(file.size_bytes for file in before.files),
            bytes_after=sum(file.size_bytes for file in after.files),
            rows=tally.rows,
            kernel=tally.kernel,
            compaction_time_ms=round(1000 * (time.monotonic() - began)),
            small_files_remaining=partition.small_files,
            skipped=tuple(each for each in plan.left_alone if each.name in known),
            partition=partition,
            health=self._health(after, plan),
            failed=tuple(each for each in plan.left_alone if each.name in tally.failed),
            blocked=tuple(each for each in plan.left_alone if each.name in blocked),
            row_groups_merged=tally.merged,
            row_groups_encoded=tally.encoded - tally.merged,
            detours=tuple(starmap(LeftAlone, tally.detours.items())),
            tasks=tuple(tally.tasks),
        )

    def _blocked(self, before: Manifest) -> set[str]:
        """The files that were due and could not be merged: tried in vain, or marked, and due but for that."""
        tried = self._tally.excluded.keys() - self._kept.keys()
        marked = {file.name for file in before.files if file.kept_as_is}
        if not marked:
            return set(tried)
        files = tuple(msgspec.structs.replace(file, left_out="", damaged="") for file in before.files)
        plan = plan_of(self._folder, self._key, replace(before, files=files), self._rules, self._kept)
        return tried | (marked & {file.name for group in plan.groups for file in group.files})

    def _health(self, after: Manifest, plan: CompactionPlan) -> PlannedPartition:
        """The partition's health by the feed's policy, whatever was asked for this time."""
        policy = rules_of(self._folder.feed, CompactionRequest(environment=self._request.environment))
        if policy != self._rules:
            plan = plan_of(self._folder, self._key, after, policy, self._tally.excluded)
        return partition_health(self._key, after, plan, policy)


def footer_of(folder: FeedFolder, manifest: Manifest, *, commit_id: str, run_id: str) -> dict[str, str]:
    """What such a file says of itself; its rows are among those that the partition's position stands for."""
    return {
        "datalake.feed": folder.feed.name,
        "datalake.commit_id": commit_id,
        "datalake.run_id": run_id,
        "datalake.position": json.dumps(manifest.position.to_json() if manifest.position else {}),
    }


def as_inputs(file: DataFile, inputs: Collection[DataFile]) -> DataFile:
    """An output is of its inputs' part; where its statistics say nothing of its times, theirs enclose them."""
    (part,) = {each.part for each in inputs}
    return msgspec.structs.replace(
        file,
        part=part,
        min_time=file.min_time or min((each.min_time for each in inputs if each.min_time), default=None),
        max_time=file.max_time or max((each.max_time for each in inputs if each.max_time), default=None),
    )
