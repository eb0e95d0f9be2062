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

The compaction sensor's memory between two ticks, as text of bounded size: Dagster keeps a copy with every tick.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec.structs import replace

from datalake_assets.core.compaction.plan import CompactionPlan, LeftAlone

__all__ = [
    "ATTEMPTS",
    "MAX_PARTITIONS",
    "MEMORY",
    "WAITING",
    "FeedWatch",
    "Past",
    "Report",
    "Requested",
    "RunOutcome",
    "Tried",
    "Wanted",
    "WatchState",
    "WatchedPlan",
    "bounded",
    "ended",
    "heard",
    "looked",
    "request",
    "state_from_json",
    "state_to_json",
]

#: Partitions of one run.
MAX_PARTITIONS = 100
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
    """The one run of a feed that was asked for and has not been seen to end.

    Attributes:
        run_key: Dagster's key of the request; it never runs one twice.
        files: Digest of the files to merge, by partition.
    """

    run_key: str
    files: Mapping[str, str]


class FeedWatch(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered of a feed.

    Attributes:
        materialized: Storage id of the last materialization that was read.
        observed: Storage id of the last observation that was read.
        due: Partitions to plan, with the time from when on, in seconds since 1970; 0 is at once.
        past: What is remembered of partitions that are not as they should be.
        requested: The run that was asked for.
        began: When this memory begins, in seconds since 1970; a part of run keys, so that Dagster does not take a
            request for an old run's after somebody wiped the memory to try again what failed.
    """

    materialized: int = 0
    observed: int = 0
    due: Mapping[str, float] = msgspec.field(default_factory=dict)
    past: Mapping[str, Past] = msgspec.field(default_factory=dict)
    requested: Requested | None = None
    began: float = 0.0

    def waiting(self, now: float) -> int:
        """Partitions that are to be planned as soon as may be."""
        return sum(at <= now for at in self.due.values())

    def ready(self, now: float) -> list[str]:
        """The partitions to plan now, in the order of the work; none while a run is going on."""
        if self.requested is not None:
            return []
        ready = [key for key, at in self.due.items() if at <= now]
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
    """

    key: str
    files: tuple[str, ...] = ()
    again_at: float | None = None
    unusable: tuple[LeftAlone, ...] = ()
    error: str = ""

    @classmethod
    def of(cls, key: str, plan: CompactionPlan, *, unusable: Mapping[str, str]) -> WatchedPlan:
        """What a watcher needs of a plan in which the files of ``unusable`` were excluded, by name with the reason."""
        left = [each.name for each in plan.left_alone if each.name in unusable]
        return cls(
            key,
            files=tuple(sorted(file.name for group in plan.groups for file in group.files)),
            again_at=plan.again_at.timestamp() if plan.again_at else None,
            unusable=tuple(LeftAlone(name, unusable[name], unusable=True) for name in left),
        )

    @property
    def digest(self) -> str:
        """Identifies the set of files to merge, or the error; empty if there is neither."""
        return _digest([self.error, *self.files]) if self.files or self.error else ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A partition that a run should merge."""

    key: str
    files: str


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


def ended(watch: FeedWatch, outcome: RunOutcome, errors: Mapping[str, str] = _NOTHING) -> FeedWatch:
    """The watch after a query for the run that was asked for: once that has ended, its partitions are due.

    Args:
        watch: What was known.
        outcome: What became of the run.
        errors: A failed run's error for each partition; one without any was killed, and any partition may be the cause.
    """
    if watch.requested is None or outcome is RunOutcome.RUNNING:
        return watch
    failed = outcome is RunOutcome.FAILED
    past, due = dict(watch.past), dict(watch.due)
    for key, files in watch.requested.files.items():
        known = replace(past.get(key, Past()), files=files, tried=Tried.FAILED if failed else Tried.SUCCEEDED)
        blamed = failed and (key in errors or not errors)
        past[key] = replace(
            known,
            failures=known.failures if failed else 0,
            why=errors.get(key, "")[:_WHY_LENGTH],
            blamed=blamed,
        )
        due[key] = 0.0
    return replace(watch, past=past, due=due, requested=None)


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
    return watch, Wanted(look.key, look.digest), flaws


def request(watch: FeedWatch, wanted: Iterable[Wanted], *, feed: str, now: float) -> tuple[FeedWatch, Requested | None]:
    """Makes one run of the partitions that are wanted; what it doesn't take in stays due.

    Args:
        watch: What is known.
        wanted: In the order of the work.
        feed: The feed's path, which is part of the run's key.
        now: Seconds since 1970.
    """
    files = {each.key: each.files for each in _together(watch, list(wanted), now)}
    if not files:
        return watch, None
    attempt = 1 + max(watch.failures(key) for key in files)
    digest = _digest([feed, f"{watch.began:.0f}", *sorted(f"{key}={names}" for key, names in files.items())])
    made = Requested(f"{digest}-{attempt}", files)
    due = {key: at for key, at in watch.due.items() if key not in files}
    past = {key: replace(each, retry_at=0.0) if key in files else each for key, each in watch.past.items()}
    return replace(watch, due=due, past=past, requested=made), made


def _together(watch: FeedWatch, wanted: list[Wanted], now: float) -> list[Wanted]:
    """The partitions of one run: one that failed goes with others that did, and at last alone."""
    if not wanted:
        return []
    first = min(wanted, key=lambda each: (not watch.overdue(each.key, now), _size_class(watch, each.key)))
    chosen = _size_class(watch, first.key)
    return [each for each in wanted if _size_class(watch, each.key) == chosen][: RUN_SIZES[chosen]]


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
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


#: Version of the text; a text of another version counts as none.
VERSION = 1
#: Partitions that wait for a time; what is above is left to the nightly maintenance.
WAITING = 1_000
#: Partitions that something is remembered of; of those forgotten the same may be tried and reported once more.
MEMORY = 500


@dataclass(frozen=True, slots=True)
class WatchState:
    """All that is remembered.

    Attributes:
        feeds: By the feed's path.
        turn: Ticks so far; says which feed comes first, since a tick may not get through all.
    """

    feeds: Mapping[str, FeedWatch] = dataclasses.field(default_factory=dict)
    turn: int = 0


def bounded(state: WatchState, now: float) -> tuple[WatchState, int]:
    """Forgets what is too much to keep.

    Args:
        state: All of it.
        now: Seconds since 1970.

    Returns:
        The rest, and the number of partitions that were to be planned later and now are not.
    """
    waiting = [(at, path, key) for path, watch in state.feeds.items() for key, at in watch.due.items() if at > now]
    past = [(path, key) for path, watch in state.feeds.items() for key in watch.past if key not in _running(watch)]
    if len(waiting) <= WAITING and len(past) <= MEMORY:
        return state, 0
    late = {(path, key) for _, path, key in sorted(waiting)[WAITING:]}
    # the earliest of each feed go first, and of each feed as large a share as of all
    share = max(0, len(past) - MEMORY) / len(past) if past else 0.0
    feeds = {path: _forgetful(path, watch, late, share) for path, watch in state.feeds.items()}
    return WatchState(feeds, state.turn), len(late)


def state_to_json(state: WatchState) -> str:
    """The state as text: ASCII, whatever the names of partitions are."""
    feeds = {path: _with_whole_seconds(watch) for path, watch in state.feeds.items()}
    document = {"v": VERSION, "turn": state.turn, "feeds": msgspec.to_builtins(feeds)}
    return json.dumps(document, separators=(",", ":"))


def state_from_json(text: str | None) -> WatchState:
    """Reads it back; begins anew with a text that cannot be read, of an older release or by somebody's hand."""
    try:
        document = json.loads(text or "")  # of names that are no Unicode only `json` knows
        if document["v"] != VERSION:
            return WatchState()
        return WatchState(msgspec.convert(document["feeds"], dict[str, FeedWatch]), int(document["turn"]))
    except (ValueError, KeyError, TypeError):
        return WatchState()


def _forgetful(path: str, watch: FeedWatch, late: set[tuple[str, str]], share: float) -> FeedWatch:
    running = _running(watch)
    others = [key for key in watch.past if key not in running]
    gone = set(others[: math.ceil(share * len(others))])
    due = {key: at for key, at in watch.due.items() if (path, key) not in late}
    return replace(watch, due=due, past={key: each for key, each in watch.past.items() if key not in gone})


def _running(watch: FeedWatch) -> Mapping[str, str]:
    return watch.requested.files if watch.requested else {}


def _with_whole_seconds(watch: FeedWatch) -> FeedWatch:
    return replace(watch, due={key: math.ceil(at) for key, at in watch.due.items()})
