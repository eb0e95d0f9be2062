"""The sensor that compacts what needs it: it reads what changed since its last tick, plans that, and asks for runs.

It never lists the lake. A tick costs a query or two per feed, one request per partition that changed, and nothing per
partition that did not; the rules are `datalake_assets.core.compaction.watch`'s.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import dagster as dg
from msgspec.structs import replace

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.compaction.run_groups import MAX_PARTITIONS, Wanted, chosen_runs, estimated_run, run_bytes
from datalake_assets.core.compaction.watch import (
    FeedWatch,
    Report,
    RunOutcome,
    WatchedPlan,
    ended,
    grouped,
    heard,
    looked,
    request,
)
from datalake_assets.core.compaction.watch_state import WatchState, bounded, state_from_json, state_to_json
from datalake_assets.defs.compaction.job import COMPACT_OP, FEED_TAG, partitions_at_work
from datalake_assets.defs.compaction_events import PAGE, EventReader, end_of, unusable_files
from datalake_assets.defs.launchers import compaction_tags
from datalake_assets.defs.metadata import asset_key, compaction_report_metadata, event_partition
from datalake_assets.defs.runtime import PASSING, isolated
from datalake_assets.errors import DatalakeError, LakeUnavailable, unforeseen_text
from datalake_assets.feed import Feed
from datalake_assets.lake.feed_compaction import request_of
from datalake_assets.lake.table import LakeTable
from datalake_assets.policies import MIB
from datalake_assets.settings import Settings

__all__ = ["COMPACTION_SENSOR", "CompactionWatcher", "WatchedLake", "compaction_sensor"]

logger = logging.getLogger(__name__)

COMPACTION_SENSOR = "compaction_sensor"
INTERVAL_S = 30
#: Seconds that a tick takes at the most; Dagster ends one after 60, and what is left over is the next tick's.
BUDGET_S = 15.0
#: Partitions to plan, of all feeds: with more, no more events are read. It keeps the cursor small.
ENOUGH = 2_000
#: Runs that were asked for and have not ended, of all feeds. Dagster's queue says how many of them go on at a time.
MAX_RUNS = 20
#: Partitions of these runs; the cursor names each.
MAX_AT_ONCE = 1_000
#: Seconds of a tick that a feed has at least, if there are any left.
_SHARE_S = 1.0
#: Partitions are planned until there is this many times what can be asked for: so the best of them come first.
_AHEAD = 2

_DESCRIPTION = """\
Compacts the partitions that need it by their feed's policy, as they change: it looks at what was written since its last
tick, and asks for runs of `compact_partition`, each of partitions of one feed with about so many bytes to merge as
`DATALAKE_RUN_MB` says; what saves most for what it costs comes first. Partitions that cannot be compacted are reported
once, as an observation on the feed's asset. Off until somebody turns it on here; the first ticks go through all that
was ever written.
"""


class WatchedLake(Protocol):
    """What the sensor needs of a lake."""

    @property
    def settings(self) -> Settings:
        """The installation's settings."""

    def table(self, feed: Feed) -> LakeTable:
        """A feed's data."""


def compaction_sensor(
    lake: WatchedLake,
    feeds: Sequence[Feed],
    *,
    job: dg.JobDefinition,
    name: str = COMPACTION_SENSOR,
    key_of: Callable[[Feed], dg.AssetKey] = asset_key,
    interval_s: int = INTERVAL_S,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
) -> dg.SensorDefinition:
    """The sensor.

    Args:
        lake: Where the feeds' data are.
        feeds: The feeds to watch; those whose policy says so are left alone.
        job: The job that compacts, made by `compact_partition_job`.
        name: The sensor's.
        key_of: Gives the asset whose events report a feed's changes.
        interval_s: Seconds between two ticks.
        default_status: Whether it runs before anybody turns it on.
    """
    watcher = CompactionWatcher(lake, feeds, key_of=key_of)

    @dg.sensor(
        name=name,
        job=job,
        minimum_interval_seconds=interval_s,
        default_status=default_status,
        description=_DESCRIPTION,
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return watcher.tick(context.instance, context.cursor, warn=context.log.warning)

    return watch


class CompactionWatcher:
    """What the sensor does at each tick.

    Args:
        lake: Where the feeds' data are.
        feeds: The feeds to watch.
        key_of: Gives the asset whose events report a feed's changes.
        budget_s: Seconds that a tick takes at the most.
    """

    def __init__(
        self,
        lake: WatchedLake,
        feeds: Sequence[Feed],
        *,
        key_of: Callable[[Feed], dg.AssetKey] = asset_key,
        budget_s: float = BUDGET_S,
    ) -> None:
        self._lake, self._key_of, self._budget_s = lake, key_of, budget_s
        self._feeds = {feed.path: feed for feed in feeds if feed.compaction.enabled}
        self._disabled = {feed.path for feed in feeds if not feed.compaction.enabled}

    def tick(
        self,
        instance: dg.DagsterInstance,
        cursor: str | None,
        *,
        warn: Callable[[str], None],
        now: float | None = None,
    ) -> dg.SensorResult:
        """One tick; a feed that cannot be read stops no other.

        Args:
            instance: Dagster's instance.
            cursor: What the last tick returned; anything that cannot be read counts as none.
            warn: Called with a line on what a person should know.
            now: Seconds since 1970; None for this machine's clock.
        """
        now = float(round(time.time() if now is None else now))
        before = state_from_json(cursor)
        shared = _Shared(self._lake, instance, now, time.monotonic() + self._budget_s, self._page, _running(before))
        ticks = self._visits(before, shared, warn)
        requests = self._requests(ticks, shared)
        idle = {path: watch for path, watch in before.feeds.items() if path in self._disabled}
        feeds = {**idle, **{path: each.watch for path, each in sorted(ticks.items())}}
        state, dropped = bounded(WatchState(feeds, before.turn + 1), now)
        if dropped:
            warn(f"{dropped:,} partitions that are too young now are left to the nightly maintenance")
        reports = [self._observed(each.feed, report) for each in ticks.values() for report in each.reports]
        return dg.SensorResult(
            run_requests=requests,
            asset_events=reports,
            cursor=state_to_json(state),
            skip_reason=None
            if requests
            else _why_nothing(state, now, reports, behind=any(each.behind for each in ticks.values())),
        )

    def _visits(self, before: WatchState, shared: "_Shared", warn: Callable[[str], None]) -> "dict[str, _FeedTick]":
        """Looks at every feed, as far as time allows; each has its share of what is left."""
        paths, ends_at = self._order(before.turn), shared.deadline
        ticks = {}
        for place, path in enumerate(paths):
            left_s = ends_at - time.monotonic()
            shared.deadline = min(ends_at, time.monotonic() + max(_SHARE_S, left_s / (len(paths) - place)))
            ticks[path] = self._visit(path, before, shared, warn)
        return ticks

    def _requests(self, ticks: "dict[str, _FeedTick]", shared: "_Shared") -> list[dg.RunRequest]:
        """One run for each group of partitions that there is room for."""
        chosen = chosen_runs(
            {path: each.groups for path, each in ticks.items()},
            busy={path for path, each in ticks.items() if each.watch.requested},
            runs=MAX_RUNS - shared.running,
            partitions=MAX_AT_ONCE - sum(len(each.watch.in_flight) for each in ticks.values()),
        )
        return [ticks[path].ask(group) for path, group in chosen]

    def _order(self, turn: int) -> list[str]:
        """Every feed is the first in turn, since the time may not last for all."""
        paths = sorted(self._feeds)
        first = turn % len(paths) if paths else 0
        return paths[first:] + paths[:first]

    @property
    def _page(self) -> int:
        """Events of a feed that are read at once, and partitions of one that are to be planned."""
        return max(50, min(PAGE, ENOUGH // max(1, len(self._feeds))))

    def _visit(self, path: str, state: WatchState, shared: "_Shared", warn: Callable[[str], None]) -> "_FeedTick":
        feed = self._feeds[path]
        watch = state.feeds.get(path, FeedWatch())
        if not watch.began:
            watch = replace(watch, began=shared.now)
        one = _FeedTick(feed, self._key_of(feed), shared, watch)
        with isolated(warn, about=f"{path} is looked at again at the next tick"):
            one.run()
        return one

    def _observed(self, feed: Feed, report: Report) -> dg.AssetObservation:
        return dg.AssetObservation(
            self._key_of(feed),
            partition=event_partition(feed, report.key),
            description=report.text,
            metadata=compaction_report_metadata(report),
        )


@dataclass(slots=True)
class _Shared:
    """What the feeds of a tick have in common.

    Attributes:
        lake: Where their data are.
        instance: Dagster's instance.
        now: Seconds since 1970.
        deadline: When the tick has to end, by the monotonic clock.
        page: Events of a feed that are read at once.
        running: Runs that were asked for and have not ended.
    """

    lake: WatchedLake
    instance: dg.DagsterInstance
    now: float
    deadline: float
    page: int
    running: int

    @property
    def late(self) -> bool:
        """Whether the rest is the next tick's."""
        return time.monotonic() >= self.deadline


@dataclass(slots=True)
class _FeedTick:
    """One feed within one tick; what is known so far survives an error."""

    feed: Feed
    asset: dg.AssetKey
    shared: _Shared
    watch: FeedWatch
    reports: list[Report] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    wanted_bytes: int = 0
    behind: bool = False

    def run(self) -> None:
        """Settles, reads, plans, and asks."""
        if self.shared.late:
            self.behind = True
            return
        self._settle()
        self.behind = not self._read()
        if self.shared.running >= MAX_RUNS:
            return
        self._look()
        while self.behind and not self.shared.late and not self._has_enough:
            self.behind = not self._read()
            self._look()

    @property
    def groups(self) -> list[tuple[Wanted, ...]]:
        """The runs that the feed should have, in their order; partitions that runs of others are about are in none."""
        if not self.wanted:
            return []
        at_work = partitions_at_work(self.shared.instance, self.feed)
        wanted = [each for each in self.wanted if each.key not in at_work]
        return grouped(self.watch, wanted, max_bytes=self._run_bytes, now=self.shared.now)

    def ask(self, group: Sequence[Wanted]) -> dg.RunRequest:
        """Asks for the run of a group."""
        self.watch, made = request(self.watch, group, feed=self.feed.path)
        settings = self.shared.lake.settings
        memory_bytes = request_of(settings).memory_bytes
        estimate = estimated_run(group, pace=self.watch.pace, memory_bytes=memory_bytes)
        config: dict[str, Any] = {"feed": self.feed.name, "partitions": list(made.files)}
        return dg.RunRequest(
            run_key=made.run_key,
            run_config={"ops": {COMPACT_OP: {"config": config}}},
            tags={FEED_TAG: self.feed.path, **compaction_tags(settings, self.feed, estimate)},
        )

    @property
    def _run_bytes(self) -> int:
        return run_bytes(self.feed.runs.max_bytes or self.shared.lake.settings.run_mb * MIB, self.watch.pace)

    @property
    def _has_enough(self) -> bool:
        runs = _AHEAD * (MAX_RUNS - self.shared.running)
        partitions = min(runs * MAX_PARTITIONS, _AHEAD * MAX_AT_ONCE)
        return len(self.wanted) >= partitions or self.wanted_bytes >= runs * self._run_bytes

    def _settle(self) -> None:
        for run in self.watch.requested:
            end = end_of(self.shared.instance, run.run_key)
            if end.outcome is not RunOutcome.RUNNING:
                now = ended(self.watch, run.run_key, end.outcome, end.errors, work_s=end.work_s)
                self.watch = heard(now, (), flawed=end.flawed)
                self.shared.running -= 1

    def _read(self) -> bool:
        """Reads events as long as there is room for what they name; says whether it came to their end."""
        shared = self.shared
        by_others = not shared.lake.table(self.feed).is_written_by_us
        reader = EventReader(shared.instance, self.asset, by_others=by_others, page=shared.page)
        while self._has_room:
            page = reader.observed_after(self.watch.observed)
            self.watch = replace(heard(self.watch, page.changed, flawed=page.flawed), observed=page.last_id)
            if page.is_last:
                break
        while self._has_room:
            page = reader.materialized_after(self.watch.materialized)
            self.watch = replace(heard(self.watch, page.changed), materialized=page.last_id)
            if page.is_last:
                return True
        return False

    @property
    def _has_room(self) -> bool:
        # what is wanted is due until the request is made
        waiting = self.watch.waiting(self.shared.now) - len(self.wanted)
        return not self.shared.late and waiting < self.shared.page

    def _look(self) -> None:
        """Plans what is due, until there is more than enough for a tick or time is up."""
        wanted = {each.key for each in self.wanted}
        ready = [key for key in self.watch.ready(self.shared.now) if key not in wanted]
        if not ready:
            return
        table, asked = self.shared.lake.table(self.feed), request_of(self.shared.lake.settings)
        for key in ready:
            if self.shared.late or self._has_enough:
                break
            look = self._plan(table, key, asked)
            self.watch, one, reports = looked(self.watch, look, now=self.shared.now)
            self.reports += reports
            if one is not None:
                self.wanted.append(one)
                self.wanted_bytes += one.size_bytes

    def _plan(self, table: LakeTable, key: str, asked: CompactionRequest) -> WatchedPlan:
        known = self.watch.past.get(key)
        unusable = unusable_files(self.shared.instance, self.asset, key) if known and known.flawed else {}
        try:
            plan = table.compaction_plan(key, asked, excluded=unusable)
        except (*PASSING, LakeUnavailable):  # it is the lake's, not this partition's
            raise
        except DatalakeError as error:
            return WatchedPlan(key, error=str(error))
        except Exception as error:  # it would be the first to be planned at each tick, and the last
            logger.exception("no plan of %s %s", self.feed.path, key)
            return WatchedPlan(key, error=unforeseen_text(error))
        return WatchedPlan.of(key, plan, unusable=unusable)


def _running(state: WatchState) -> int:
    return sum(len(watch.requested) for watch in state.feeds.values())


def _why_nothing(state: WatchState, now: float, reports: Sequence[dg.AssetObservation], *, behind: bool) -> str:
    """What a tick that asks for no run says in the UI."""
    running = [f"{path}: {_runs(len(watch.requested))}" for path, watch in state.feeds.items() if watch.requested]
    ready = sum(len(watch.ready(now)) for watch in state.feeds.values())
    later = sum(at > now for watch in state.feeds.values() for at in watch.due.values())
    parts = [f"{_partitions(len(reports))} cannot be compacted as a whole: see the observations"] if reports else []
    parts += [", ".join(running)] if running else []
    parts += [f"{_partitions(ready)} to look at in the next tick"] if ready else []
    parts += ["the next tick reads on in the event log"] if behind else []
    parts += [f"{_partitions(later)} to look at later: too young, or to be tried again"] if later else []
    return "; ".join(parts) or "nothing to compact"


def _runs(count: int) -> str:
    return "a compaction goes on" if count == 1 else f"{count:,} compactions go on, or wait"


def _partitions(count: int) -> str:
    return "1 partition" if count == 1 else f"{count:,} partitions"
