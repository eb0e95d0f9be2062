"""What a watcher of many partitions remembers, and what it decides: the rules of the compaction sensor, pure.

Events go in, then plans of the partitions that they name, then what became of the runs that were asked for; requests
for runs, reports and the state to remember come out. Nothing here reads a clock, a store or an event log.

A partition is *due* when it is worth planning. From there::

    due ──plan is empty──> forgotten, or due again when time alone may change the plan
     └──plan names files──> asked for, in a run with others of its feed ──run ended──> due, as "tried"
    tried ──other files, or none──> as above
      ├──same files, the run succeeded──> given up: these files cannot be merged
      └──same files, the run failed──> due again after a while, in a smaller run; given up after `ATTEMPTS`
    given up ──an event──> due: nothing happens while the files are the same
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec.structs import replace

from datalake_assets.core.compaction.plan import CompactionPlan, LeftAlone
from datalake_assets.core.compaction.run_groups import MAX_PARTITIONS, Wanted, cut_into_runs, is_full

__all__ = [
    "ATTEMPTS",
    "FeedWatch",
    "Past",
    "Report",
    "Requested",
    "RunOutcome",
    "Tried",
    "WatchedPlan",
    "ended",
    "grouped",
    "heard",
    "looked",
    "request",
]

#: Runs for the same files of a partition before it is given up.
ATTEMPTS = 5
#: Seconds until a partition whose run failed is tried again; twice as long after each further failure.
BACK_OFF_S = 60.0
#: Seconds that this wait never exceeds.
LONGEST_BACK_OFF_S = 3600.0
#: Partitions of a run by the failures of each before it: one that kills the process is found, and fails alone.
RUN_SIZES = (MAX_PARTITIONS, 10, 1)

#: Seconds after which a partition that may be tried again goes before those that never failed.
OVERDUE_S = 600.0
#: Files that a report names.
NAMED = 20
_WHY_LENGTH = 160
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Tried(StrEnum):
    """What became of a partition's files when they were last to be merged."""

    NO = ""
    SUCCEEDED = "s"
    FAILED = "f"
    GIVEN_UP = "g"


class RunOutcome(StrEnum):
    """What became of a run; one that is nowhere to be found has failed."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Past(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered of a partition.

    Attributes:
        files: Digest of the files that were last to be merged.
        tried: What became of that.
        failures: Runs that failed in a row.
        retry_at: Not before this time, in seconds since 1970; 0 if a failure has not been counted yet.
        why: Why the last run failed; empty if it did not say, or not because of this partition.
        blamed: The last run failed because of this partition, as far as anybody can tell.
        flawed: A compaction found files that no rewrite can take.
        told: Digest of the unusable files that were last reported.
        said: Digest of the failure that was last reported.
    """

    files: str = ""
    tried: Tried = Tried.NO
    failures: int = 0
    retry_at: float = 0.0
    why: str = ""
    blamed: bool = False
    flawed: bool = False
    told: str = ""
    said: str = ""


class Requested(msgspec.Struct, frozen=True, array_like=True):
    """A run of a feed that was asked for and has not been seen to end.

    Attributes:
        run_key: Dagster's key of the request; it never runs one twice.
        files: Digest of the files to merge, by partition.
        size_bytes: Of these files.
    """

    run_key: str
    files: Mapping[str, str]
    size_bytes: int = 0


class FeedWatch(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered of a feed.

    Attributes:
        materialized: Storage id of the last materialization that was read.
        observed: Storage id of the last observation that was read.
        due: Partitions to plan, with the time from when on, in seconds since 1970; 0 is at once.
        past: What is remembered of partitions that are not as they should be.
        requested: The runs that were asked for; no partition is in two of them.
        began: When this memory begins, in seconds since 1970; a part of run keys, so that Dagster does not take a
            request for an old run's after somebody wiped the memory to try again what failed.
        pace: Bytes per second that the last runs have merged; 0 if there was none yet.
    """

    materialized: int = 0
    observed: int = 0
    due: Mapping[str, float] = msgspec.field(default_factory=dict)
    past: Mapping[str, Past] = msgspec.field(default_factory=dict)
    requested: tuple[Requested, ...] = ()
    began: float = 0.0
    pace: float = 0.0

    @property
    def in_flight(self) -> frozenset[str]:
        """The partitions of the runs that were asked for."""
        return frozenset(key for each in self.requested for key in each.files)

    def waiting(self, now: float) -> int:
        """Partitions that are to be planned as soon as may be."""
        return sum(at <= now for at in self.due.values())

    def ready(self, now: float) -> list[str]:
        """The partitions to plan now, in the order of the work; none that a run is about."""
        in_flight = self.in_flight
        ready = [key for key, at in self.due.items() if at <= now and key not in in_flight]
        return sorted(ready, key=lambda key: (self._place(key, now), self.failures(key), self.due[key]))

    def _place(self, key: str, now: float) -> int:
        """What a run has just left comes first: mostly there is nothing more to do, and it can be forgotten."""
        past = self.past.get(key, Past())
        just_run = past.tried in {Tried.SUCCEEDED, Tried.FAILED} and not past.retry_at
        return 0 if just_run else 1 if self.overdue(key, now) else 2

    def overdue(self, key: str, now: float) -> bool:
        """Whether a partition may be tried again for so long that it goes before others."""
        retry_at = self.past.get(key, Past()).retry_at
        return 0 < retry_at < now - OVERDUE_S

    def failures(self, key: str) -> int:
        """Runs that failed in a row for a partition."""
        return self.past.get(key, Past()).failures

    def with_due(self, key: str, at: float | None) -> FeedWatch:
        """The watch with a partition due at a time; None makes it due no more."""
        others = {each: time for each, time in self.due.items() if each != key}
        return replace(self, due=others if at is None else {**others, key: at})

    def with_past(self, key: str, past: Past) -> FeedWatch:
        """The watch with something else remembered of a partition, as the latest."""
        others = {each: known for each, known in self.past.items() if each != key}
        return replace(self, past=others if past == Past() else {**others, key: past})


@dataclass(frozen=True, slots=True)
class WatchedPlan:
    """A plan of a partition, as far as a watcher cares; or why there is none.

    Attributes:
        key: The partition.
        files: Names of the files that the plan merges.
        again_at: When time alone may change the plan, in seconds since 1970; None for never.
        unusable: Files that no rewrite can take.
        error: Why there is no plan; empty if there is one.
        size_bytes: Bytes that the plan rewrites.
        benefit: What it saves in a month for what it costs once.
    """

    key: str
    files: tuple[str, ...] = ()
    again_at: float | None = None
    unusable: tuple[LeftAlone, ...] = ()
    error: str = ""
    size_bytes: int = 0
    benefit: float = 0.0

    @classmethod
    def of(cls, key: str, plan: CompactionPlan, *, unusable: Mapping[str, str]) -> WatchedPlan:
        """What a watcher needs of a plan in which the files of ``unusable`` were excluded, by name with the reason."""
        left = [each.name for each in plan.left_alone if each.name in unusable]
        return cls(
            key,
            files=tuple(sorted(file.name for group in plan.groups for file in group.files)),
            again_at=plan.again_at.timestamp() if plan.again_at else None,
            unusable=tuple(LeftAlone(name, unusable[name], unusable=True) for name in left),
            size_bytes=plan.estimate.bytes_rewritten,
            benefit=plan.estimate.benefit,
        )

    @property
    def digest(self) -> str:
        """Identifies the set of files to merge, or the error; empty if there is neither."""
        return _digest([self.error, *self.files]) if self.files or self.error else ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a person should know of a partition; reported once.

    Attributes:
        key: The partition.
        text: What is wrong, with the files and the reasons.
        unusable: Files that no rewrite can take.
        waiting: Files that were to be merged and cannot be.
        failures: Runs that failed.
    """

    key: str
    text: str
    unusable: int = 0
    waiting: int = 0
    failures: int = 0


def heard(watch: FeedWatch, changed: Iterable[str], *, flawed: Mapping[str, bool] = _NOTHING) -> FeedWatch:
    """The watch after events: their partitions are due.

    Args:
        watch: What was known.
        changed: Partitions whose files changed.
        flawed: Partitions that were compacted, each with whether that left files which no rewrite can take.
    """
    past = dict(watch.past)
    for key, is_flawed in flawed.items():
        known = replace(past.pop(key, Past()), flawed=is_flawed)
        if known != Past():
            past[key] = known
    news = dict.fromkeys((*changed, *(key for key, is_flawed in flawed.items() if is_flawed)))
    due = dict(watch.due)
    for key in news:
        due[key] = past.get(key, Past()).retry_at
    return replace(watch, due=due, past=past)


def ended(
    watch: FeedWatch,
    run_key: str,
    outcome: RunOutcome,
    errors: Mapping[str, str] = _NOTHING,
    *,
    work_s: float = 0.0,
) -> FeedWatch:
    """The watch after a query for a run that was asked for: once that has ended, its partitions are due.

    Args:
        watch: What was known.
        run_key: The run.
        outcome: What became of it.
        errors: A failed run's error for each partition; one without any was killed, and any partition may be the cause.
        work_s: Seconds that it has merged files; 0 if nobody knows.
    """
    run = next((each for each in watch.requested if each.run_key == run_key), None)
    if run is None or outcome is RunOutcome.RUNNING:
        return watch
    failed = outcome is RunOutcome.FAILED
    past, due = dict(watch.past), dict(watch.due)
    for key, files in run.files.items():
        known = replace(past.get(key, Past()), files=files, tried=Tried.FAILED if failed else Tried.SUCCEEDED)
        blamed = failed and (key in errors or not errors)
        past[key] = replace(
            known,
            failures=known.failures if failed else 0,
            why=errors.get(key, "")[:_WHY_LENGTH],
            blamed=blamed,
        )
        due[key] = 0.0
    others = tuple(each for each in watch.requested if each is not run)
    pace = watch.pace
    if not failed and work_s > 0 and run.size_bytes:
        measured = run.size_bytes / work_s
        pace = float(round((pace + measured) / 2 if pace else measured))
    return replace(watch, past=past, due=due, requested=others, pace=pace)


def looked(watch: FeedWatch, look: WatchedPlan, *, now: float) -> tuple[FeedWatch, Wanted | None, tuple[Report, ...]]:
    """The watch after a due partition was planned.

    Args:
        watch: What was known.
        look: What the plan says.
        now: Seconds since 1970.

    Returns:
        What is known now, the partition if a run should merge it, and what a person should know. A partition that is
        wanted stays due until `request` takes it in.
    """
    if look.again_at is not None and look.again_at <= now:  # clocks differ: not again at once
        look = dataclasses.replace(look, again_at=now + BACK_OFF_S)
    watch, flaws = _report_flaws(watch, look)
    past = watch.past.get(look.key, Past())
    if not look.digest:
        kept = Past(flawed=past.flawed, told=past.told)
        return watch.with_past(look.key, kept).with_due(look.key, look.again_at), None, flaws
    same = look.digest == past.files
    if same and past.tried is Tried.GIVEN_UP:
        return watch.with_due(look.key, look.again_at), None, flaws
    if same and past.tried is Tried.SUCCEEDED:
        text = "a compaction that succeeded left these files as they were"
        watch, given_up = _given_up(watch, look, past, f"{text}: {_listed(look.files)}")
        return watch, None, flaws + given_up
    if look.error or (past.tried is Tried.FAILED and not past.retry_at and (same or past.blamed)):
        watch, given_up = _failed(watch, look, past, now)
        return watch, None, flaws + given_up
    return watch, Wanted(look.key, look.digest, look.size_bytes, look.benefit), flaws


def grouped(watch: FeedWatch, wanted: Iterable[Wanted], *, max_bytes: int, now: float) -> list[tuple[Wanted, ...]]:
    """Cuts what is wanted into runs, in the order in which to ask for them.

    A partition that failed goes with others that did as often, and at last alone. While a run of the feed waits or goes
    on, another is asked for only if it is worth one: what changes meanwhile is gathered.

    Args:
        watch: What is known.
        wanted: The partitions, of which no run is about any.
        max_bytes: Bytes that a run rewrites, unless one partition alone has more.
        now: Seconds since 1970.
    """
    classes: dict[tuple[bool, int], list[Wanted]] = {}
    for each in wanted:
        place = (not watch.overdue(each.key, now), _size_class(watch, each.key))
        classes.setdefault(place, []).append(each)
    groups = []
    for place in sorted(classes):
        most = RUN_SIZES[place[1]]
        cut = cut_into_runs(classes[place], max_bytes=max_bytes, most=most)
        groups += [group for group in cut if not watch.requested or is_full(group, max_bytes=max_bytes, most=most)]
    return groups


def request(watch: FeedWatch, group: Sequence[Wanted], *, feed: str) -> tuple[FeedWatch, Requested]:
    """Makes one run of partitions that are wanted; they are due no more.

    Args:
        watch: What is known.
        group: The partitions of the run, one or more, of which no other run is about any.
        feed: The feed's path, which is part of the run's key.
    """
    files = {each.key: each.files for each in group}
    attempt = 1 + max(watch.failures(key) for key in files)
    digest = _digest([feed, f"{watch.began:.0f}", *sorted(f"{key}={names}" for key, names in files.items())])
    made = Requested(f"{digest}-{attempt}", files, sum(each.size_bytes for each in group))
    due = {key: at for key, at in watch.due.items() if key not in files}
    past = {key: replace(each, retry_at=0.0) if key in files else each for key, each in watch.past.items()}
    return replace(watch, due=due, past=past, requested=(*watch.requested, made)), made


def _size_class(watch: FeedWatch, key: str) -> int:
    return min(watch.failures(key), len(RUN_SIZES) - 1)


def _report_flaws(watch: FeedWatch, look: WatchedPlan) -> tuple[FeedWatch, tuple[Report, ...]]:
    """Reports files that no rewrite can take, once for each set of them."""
    past = watch.past.get(look.key, Past())
    if look.error or not (past.flawed or look.unusable):
        return watch, ()
    digest = _digest(f"{each.name}: {each.reason}" for each in look.unusable) if look.unusable else ""
    watch = watch.with_past(look.key, replace(past, flawed=bool(look.unusable), told=digest))
    if digest in {"", past.told}:
        return watch, ()
    what = _listed([f"{each.name} ({each.reason})" for each in look.unusable])
    text = f"these files cannot be compacted, and stay as they are: {what}"
    return watch, (Report(look.key, text, unusable=len(look.unusable), waiting=len(look.files)),)


def _failed(watch: FeedWatch, look: WatchedPlan, past: Past, now: float) -> tuple[FeedWatch, tuple[Report, ...]]:
    """The watch after a failure: the partition is due again after a while, or given up."""
    failures = past.failures + 1
    why = look.error or past.why or "the run failed, and did not say why"
    wait = min(BACK_OFF_S * 2 ** (failures - 1), LONGEST_BACK_OFF_S)
    counted = replace(past, files=look.digest, tried=Tried.FAILED, failures=failures, retry_at=now + wait, why="")
    if failures < ATTEMPTS:
        counted = replace(counted, why=why[:_WHY_LENGTH])
        return watch.with_past(look.key, counted).with_due(look.key, counted.retry_at), ()
    return _given_up(
        watch, look, replace(counted, retry_at=now + LONGEST_BACK_OFF_S), f"{failures} runs failed: {why}", why
    )


def _given_up(
    watch: FeedWatch, look: WatchedPlan, past: Past, text: str, why: str = ""
) -> tuple[FeedWatch, tuple[Report, ...]]:
    """Leaves a partition alone until its files change, and reports that, unless the same was reported before."""
    digest = _digest([why or text])
    given_up = replace(past, files=look.digest, tried=Tried.GIVEN_UP, said=digest)
    watch = watch.with_past(look.key, given_up).with_due(look.key, look.again_at)
    if digest == past.said:
        return watch, ()
    return watch, (Report(look.key, text, waiting=len(look.files), failures=past.failures),)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return "; ".join([*names[:NAMED], *([f"and {more:,} more"] if more > 0 else [])])


def _digest(parts: Iterable[str]) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")  # names that are no Unicode, in folders of others
    return hashlib.blake2b(text, digest_size=8).hexdigest()
