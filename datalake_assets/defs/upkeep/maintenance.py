"""Nightly maintenance: feeds are repaired, compacted where nobody else did, and in part compared with a listing.

It sweeps what sensors may have missed, so that nothing rests on every event having been seen.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial

import dagster as dg
from pydantic import Field

from datalake_assets.core.compaction.run_groups import MAX_PARTITIONS
from datalake_assets.defs.compaction.job import (
    COMPACTOR_POOL,
    CompactConfig,
    CompactionLog,
    OpLog,
    compact_feed,
    partitions_at_work,
)
from datalake_assets.defs.compaction_events import unusable_files
from datalake_assets.defs.feeds.assets import add_versions
from datalake_assets.defs.feeds.folders import keep_partitions, observations, remarks
from datalake_assets.defs.metadata import asset_key, versions_name
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import repair_runs, tag_run
from datalake_assets.defs.runtime import failures_named, isolated
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.feed_compaction import Compacted, request_of
from datalake_assets.lake.table import Difference, LakeTable, Reconciliation, Repair

__all__ = [
    "MAINTAIN_OP",
    "MAINTENANCE",
    "NIGHTLY_MAINTENANCE",
    "Maintained",
    "Maintenance",
    "MaintenanceConfig",
    "maintenance_job",
    "nightly_maintenance",
]

MAINTENANCE = "maintenance"
#: The job's one op, below which a run's configuration is; Dagster wants another name for it than the job's.
MAINTAIN_OP = "maintain"
NIGHTLY_MAINTENANCE = "nightly_maintenance"
#: Differences of a feed that the log names one by one.
NAMED = 100

_DESCRIPTION = """\
Keeps the lake in order, feed by feed; one that fails stops no other. It finishes interrupted commits, sweeps what they
left, applies retention, lets old snapshots of Iceberg tables expire, takes over what others changed in adopted folders,
compacts what is closed or was skipped, and compares a slice of each feed's partitions with a listing, another one each
night. It deletes no file that no manifest ever named, but for those in an Iceberg table's own folders that are three
days old.
"""


class MaintenanceConfig(dg.Config):
    """What is done.

    Attributes:
        feeds: Names of feeds; none means all active ones.
        compact: Compact what has something to merge; feeds whose policy says so are left alone all the same.
        compact_hours: No compaction begins after so many hours.
        verify_partitions: Partitions of each feed that are compared with a listing.
    """

    feeds: list[str] = Field(default=[], description="Names of feeds; none means all.")
    compact: bool = Field(default=True, description="Compact what has something to merge.")
    compact_hours: float = Field(default=6.0, description="Begin no compaction after so many hours.")
    verify_partitions: int = Field(
        default=1_000,
        description="Partitions of each feed to compare with a listing: another slice each night; 0 for none.",
    )


@dataclass(slots=True)
class Maintained:
    """What was done to a feed.

    Attributes:
        feed: The feed's path.
        repair: What was finished and swept.
        removed: Versions that retention removed.
        compacted: What became of the partitions that had something to merge.
        compared: Partitions that were compared with a listing.
        found: What was not as the manifests say.
        problems: Why something could not be done.
    """

    feed: str
    repair: Repair = field(default_factory=Repair)
    removed: tuple[str, ...] = ()
    compacted: list[Compacted] = field(default_factory=list)
    compared: int = 0
    found: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def count(self, *kinds: str) -> int:
        """Differences of some kinds."""
        return sum(each.what in kinds for each in self.found)


def maintenance_job(lake: Lake) -> dg.JobDefinition:
    """The job; it fails at the end if something could not be done."""

    # the pool bounds how much memory compactions take together; this job may be one of them
    @dg.op(name=MAINTAIN_OP, pool=COMPACTOR_POOL, description=_DESCRIPTION)
    def maintain(context: dg.OpExecutionContext, config: MaintenanceConfig) -> None:
        tag_run(context.instance, context.run)
        work = Maintenance(lake, context.instance, OpLog(context), run_id=context.run.run_id)
        done = work.run(config, today=datetime.now(UTC).date())
        context.add_output_metadata({"datalake/maintenance": dg.MetadataValue.md(summary(done))})
        raise_for_problems(done)

    @dg.job(name=MAINTENANCE, description=_DESCRIPTION, executor_def=dg.in_process_executor)
    def maintenance() -> None:
        maintain()

    return maintenance


def nightly_maintenance(job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """The job at 02:00 UTC every night. On, unless somebody turned it off in the UI."""
    return dg.ScheduleDefinition(
        name=NIGHTLY_MAINTENANCE,
        job=job,
        cron_schedule="0 2 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Keeps the lake in order, every night.",
    )


class Maintenance:
    """One night's work.

    Args:
        lake: The lake.
        instance: Dagster's instance.
        run_log: Where it tells what it does.
        run_id: The run.
    """

    def __init__(self, lake: Lake, instance: dg.DagsterInstance, run_log: CompactionLog, *, run_id: str) -> None:
        self._lake, self._instance, self._log, self._run_id = lake, instance, run_log, run_id

    def run(self, config: MaintenanceConfig, *, today: date) -> list[Maintained]:
        """Brings the feeds in order one after another, and then compacts them, which takes long.

        Raises:
            dagster.Failure: There is no such feed, or the registry cannot be read.
        """
        repair_runs(self._instance)
        self._sweep()
        until = time.monotonic() + 3600 * config.compact_hours
        feeds = {feed.path: feed for feed in self._feeds(config.feeds)}
        done = {path: self._in_order(feed, config, today) for path, feed in feeds.items()}
        for path, feed in feeds.items() if config.compact else ():
            self._attempt(done[path], partial(self._compact, done[path], feed, until))
        return list(done.values())

    def _feeds(self, names: Sequence[str]) -> list[Feed]:
        with failures_named("feeds"):
            if names:
                return [self._lake.registry.get(name) for name in names]
            listing = self._lake.registry.list()
        for problem in listing.problems:
            self._log.warning(f"{problem.file} is skipped: {problem.reason}")
        return list(listing.feeds)

    def _sweep(self) -> None:
        from datalake_assets.lake.inspection import sweep_temporary  # noqa: PLC0415  loads stores

        store = self._lake.store
        swept = sweep_temporary(store, now=store.now())
        if swept:
            self._log.info(f"{swept:,} temporary files of processes that were killed were deleted")

    def _in_order(self, feed: Feed, config: MaintenanceConfig, today: date) -> Maintained:
        done = Maintained(feed.path)
        self._attempt(done, partial(self._repair, done, feed))
        self._attempt(done, partial(self._expire, feed))
        self._attempt(done, partial(self._compare, done, feed, config.verify_partitions, today))
        self._log.info(
            f"{feed.path}: {done.repair.finished:,} commits finished, {done.repair.undone:,} undone,"
            f" {done.repair.swept:,} leftovers swept, {done.compared:,} partitions compared,"
            f" {len(done.found):,} differences"
        )
        return done

    def _attempt(self, done: Maintained, step: Callable[[], None]) -> None:
        """One step; if it fails, the others are done all the same."""
        before = len(done.problems)
        with isolated(done.problems.append):
            step()
        for line in done.problems[before:]:
            self._log.warning(f"{done.feed}: {line}")

    def _repair(self, done: Maintained, feed: Feed) -> None:
        table = self._lake.table(feed)
        before = table.partitions() if feed.kind is FeedKind.TABLE else ()
        done.repair = table.repair(run_id=self._run_id)
        if feed.kind is FeedKind.TABLE:
            done.removed = self._keep_versions(feed, table, before)
        if not table.is_written_by_us:
            self._tell_of_others(feed, done.repair.found)
        for line in done.repair.waiting:
            self._log.warning(f"waiting: {line}")

    def _expire(self, feed: Feed) -> None:
        """Lets go of past states; what they had is not among the files that are compared afterwards."""
        gone = self._lake.table(feed).expire()
        if gone.snapshots or gone.orphans:
            self._log.info(
                f"{feed.path}: {gone.snapshots:,} snapshots expired, {gone.files:,} files of theirs and"
                f" {gone.orphans:,} that nothing named were deleted"
            )

    def _tell_of_others(self, feed: Feed, found: Reconciliation) -> None:
        """Tells Dagster what others changed in an adopted folder, as a click on "Observe" would."""
        if feed.asset is None:  # the partitions of an asset in somebody's own project are that project's
            new = keep_partitions(self._instance, feed, found)
            for event in observations(feed, found, new, lake_uri=self._lake.uri):
                self._log.observed(event)
        for line in remarks(found):
            self._log.warning(f"{feed.path}: {line}")

    def _keep_versions(self, feed: Feed, table: LakeTable, before: Sequence[str]) -> tuple[str, ...]:
        """Keeps Dagster's partitions in step with the table's versions; returns those that retention has removed."""
        now = table.partitions()
        if feed.asset is None:
            add_versions(self._instance, feed, now)
            known = self._instance.get_dynamic_partitions(versions_name(feed))
            # one that was never committed may be the run's that is going on
            for key in table.removed(sorted(set(known).difference(now))):
                self._instance.delete_dynamic_partition(versions_name(feed), key)
        return tuple(sorted(set(before).difference(now)))

    def _compare(self, done: Maintained, feed: Feed, size: int, today: date) -> None:
        """Compares the slice of the day with a listing; an adopted folder has just been listed as a whole."""
        from datalake_assets.lake.inspection import differences, slice_of  # noqa: PLC0415  loads stores

        table = self._lake.table(feed)
        if not table.is_written_by_us:
            return
        keys = slice_of(table.partitions(), day=today.toordinal(), size=size)
        done.found = list(differences(lambda: self._lake.table(feed), keys))
        done.compared = len(keys)
        for line in _named(done.found):
            self._log.warning(f"{feed.path}: {line}")
        if keys:
            self._log.observed(dg.AssetObservation(asset_key(feed), metadata=comparison_metadata(done)))

    def _compact(self, done: Maintained, feed: Feed, until: float) -> None:
        from datalake_assets.lake.inspection import in_need  # noqa: PLC0415  loads stores

        if not feed.compaction.enabled:
            return
        keys, errors = in_need(
            lambda: self._lake.table(feed),
            self._lake.table(feed).partitions(),
            request_of(self._lake.settings),
            unusable=lambda key: unusable_files(self._instance, asset_key(feed), key),
        )
        done.compacted += [Compacted(key, error=error) for key, error in errors.items()]
        at_work = partitions_at_work(self._instance, feed)
        keys = [key for key in keys if key not in at_work]
        for start in range(0, len(keys), MAX_PARTITIONS):
            if time.monotonic() >= until:
                self._log.warning(
                    f"{feed.path}: no time left for {len(keys) - start:,} partitions that need compaction"
                )
                return
            chosen = CompactConfig(feed=feed.name, partitions=keys[start : start + MAX_PARTITIONS])
            done.compacted += compact_feed(self._lake, feed, chosen, self._log, run_id=self._run_id)


def comparison_metadata(done: Maintained) -> dict[str, dg.MetadataValue]:
    """How many files are not as the manifests say; numbers that plot over the nights, mostly as 0."""
    figures = {
        "datalake/partitions_compared": done.compared,
        "datalake/files_missing": done.count("missing"),
        "datalake/files_wrong_size": done.count("size"),
        "datalake/files_unknown": done.count("unknown file"),
        "datalake/manifests_unreadable": done.count("manifest"),
    }
    return {name: dg.MetadataValue.int(value) for name, value in figures.items()}


def summary(done: Iterable[Maintained]) -> str:
    """A table of what was done to each feed, in Markdown."""
    columns = [
        "feed", "commits finished", "undone", "leftovers swept", "versions removed", "folders taken over",
        "partitions compacted", "files before → after", "compared", "missing", "wrong size", "unknown", "result",
    ]  # fmt: skip
    head = f"| {' | '.join(columns)} |"
    return "\n".join([head, f"|---|{'---:|' * (len(columns) - 2)}---|", *(_row(each) for each in done)])


def raise_for_problems(done: Sequence[Maintained]) -> None:
    """Ends the run as failed if something could not be done; what a comparison found is no failure of the run.

    Raises:
        dagster.Failure: It names the feeds with their problems.
    """
    lines = [f"{each.feed}: {problem}" for each in done for problem in _problems(each)]
    if lines:
        failed = len({line.partition(": ")[0] for line in lines})
        raise dg.Failure(
            f"{failed} of {len(done)} feeds were not maintained as a whole: {'; '.join(lines[:NAMED])}",
            metadata={"datalake/maintenance": dg.MetadataValue.md(summary(done))},
            allow_retries=False,
        )


def _problems(done: Maintained) -> Iterator[str]:
    yield from done.problems
    yield from (f"{each.key}: {each.error}" for each in done.compacted if each.error is not None)


def _remark(done: Maintained) -> str:
    """What a person should look into, though all was done."""
    waiting, found = len(done.repair.waiting), len(done.found)
    parts = [f"{waiting:,} partitions wait"] if waiting else []
    return "; ".join([*parts, *([f"{found:,} differences"] if found else [])])


def _named(found: Sequence[Difference]) -> Iterator[str]:
    for each in found[:NAMED]:
        yield f"{each.what}: {each.name}: {each.detail}"
    if len(found) > NAMED:
        yield f"{len(found) - NAMED:,} more; 'datalake verify' names them all"


def _row(done: Maintained) -> str:
    changed = [each.report for each in done.compacted if each.report is not None and each.changed]
    before, after = sum(each.files_before for each in changed), sum(each.files_after for each in changed)
    problems = list(_problems(done))
    cells = [
        done.feed,
        f"{done.repair.finished:,}",
        f"{done.repair.undone:,}",
        f"{done.repair.swept:,}",
        f"{len(done.removed):,}",
        f"{done.repair.reconciled:,}",
        f"{len(changed):,}",
        f"{before:,} → {after:,}" if changed else "",
        f"{done.compared:,}",
        f"{done.count('missing'):,}",
        f"{done.count('size'):,}",
        f"{done.count('unknown file'):,}",
        "; ".join(problems[:3]).replace("|", "\\|") or _remark(done) or "ok",
    ]
    return f"| {' | '.join(cells)} |"
