"""What must be true of an installation once it has been left alone for a while."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.batches import ReadRequest
from datalake_assets.defs.runs import PID_TAG
from datalake_assets.defs.runtime import open_instance
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.hive import HiveTable
from datalake_assets.settings import load_settings
from datalake_assets.sources.systems import connect
from datalake_assets_tests.chaos.installation import Installation
from datalake_assets_tests.chaos.traffic import UNFINISHED

__all__ = ["ChaosError", "Held", "check_rows", "held", "own_failures", "settle", "still_stuck"]

#: The second where DuckDB was at work.
_INTERRUPTED = {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}
_KEYS = {"year", "month", "day", "version"}


class ChaosError(AssertionError):
    """The installation did not get over it."""


@dataclass(frozen=True, slots=True)
class Held:
    """What an installation's history says is going on.

    Attributes:
        unfinished: Runs that have not ended: status by run id.
        slots: By pool, the runs that hold its slots.
        waiting: By pool, how many steps wait for it.
    """

    unfinished: dict[str, str]
    slots: dict[str, list[str]]
    waiting: dict[str, int]

    @property
    def nothing(self) -> bool:
        """Whether nothing goes on and nothing is held."""
        return not (self.unfinished or self.slots or self.waiting)


def held(instance: dg.DagsterInstance) -> Held:
    """Looks at runs and pools."""
    statuses = [dg.DagsterRunStatus[name] for name in UNFINISHED]
    runs = {run.run_id: run.status.value for run in instance.get_runs(dg.RunsFilter(statuses=statuses))}
    log = instance.event_log_storage
    pools = {pool: log.get_concurrency_info(pool) for pool in sorted(log.get_concurrency_keys())}
    return Held(
        runs,
        {pool: [slot.run_id for slot in info.claimed_slots] for pool, info in pools.items() if info.claimed_slots},
        {pool: len(info.pending_steps) for pool, info in pools.items() if info.pending_steps},
    )


def settle(installation: Installation, *, within_s: float) -> tuple[float, Held]:
    """Leaves the installation alone until nothing goes on, or the time is over; how long that was, and what is left."""
    began = time.monotonic()
    with installation.in_this_process(), open_instance() as instance:
        while True:
            installation.restart_missing()
            left = held(instance)
            seconds = time.monotonic() - began
            if left.nothing or seconds > within_s:
                return seconds, left
            time.sleep(1.0)


def still_stuck(installation: Installation, *, within_s: float) -> set[str]:
    """Runs that nobody works on, or that have ended and hold slots, each time that one looks."""
    until = time.monotonic() + within_s
    stuck = _stuck(installation)
    while stuck and time.monotonic() < until:
        time.sleep(1.0)
        stuck &= _stuck(installation)
    return stuck


def _stuck(installation: Installation) -> set[str]:
    with installation.in_this_process(), open_instance() as instance:
        left = held(instance)
        runs = [instance.get_run_by_id(run_id) for run_id in left.unfinished]
    pids = {str(process.pid) for process in installation.workers()}
    # queued ones are the daemon's
    mine = {run.run_id for run in runs if run and (run.status.value == "QUEUED" or run.tags.get(PID_TAG) in pids)}
    holders = {run_id for slots in left.slots.values() for run_id in slots}
    return set(left.unfinished) - mine | holders - set(left.unfinished)


def own_failures(installation: Installation) -> list[str]:
    """What runs said that failed by themselves, and not because somebody was killed.

    A code server whose daemon or web server is gone ends, and interrupts the runs that it started.
    """
    found = []
    with installation.in_this_process(), open_instance() as instance:
        for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])):
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
                failure = entry.get_dagster_event().step_failure_data
                if failure.error and failure.error.cls_name in _INTERRUPTED:
                    continue
                told = failure.user_failure_data
                error = failure.error.to_string() if failure.error else "?"
                found.append(f"{run.run_id[:8]} {run.job_name}: {told.description if told else error}")
    return found


def check_rows(installation: Installation, *, final: bool) -> dict[str, int]:
    """Compares the lake with its source, row by row; how many rows there are of each feed.

    Args:
        installation: The installation.
        final: Everything has been exported since the last row arrived; else rows may still be missing.

    Raises:
        ChaosError: A row is missing, is there twice, or never was at the source.
    """
    store, counts = installation.store, {}
    with connect("ksqldb", load_settings(ksqldb_url=installation.environment["DATALAKE_KSQLDB_URL"])) as source:
        for name, feed in installation.feeds.items():
            batches = source.read(feed, ReadRequest())
            truth = _counted(pa.Table.from_batches([batch.rows for batch in batches]))
            table = HiveTable(store, feed)
            scanned = _counted(table.scan().read_all())
            _compare(feed, "a reader of the manifests", scanned, truth, final=final)
            if final and feed.kind is FeedKind.STREAM:
                _compare(feed, "a lister", _listed(installation, feed), truth, final=True)
            counts[name] = scanned.total()
    return counts


def _compare(feed: Feed, who: str, rows: Counter[str], truth: Counter[str], *, final: bool) -> None:
    missing, extra = truth - rows, rows - truth
    if final and missing:
        raise ChaosError(f"{feed.path}: {who} misses {missing.total()} rows of {truth.total()}")
    # a table's rows change as its source goes on: only its newest version is the truth's
    if extra and (final or feed.kind is FeedKind.STREAM):
        raise ChaosError(f"{feed.path}: {who} sees {extra.total()} rows too many of {truth.total()}")


def _listed(installation: Installation, feed: Feed) -> Counter[str]:
    rows: Counter[str] = Counter()
    for path in sorted((installation.lake / feed.path).rglob("*")):
        if path.is_file():
            rows += _counted(pq.read_table(path, partitioning=None))
    return rows


def _counted(table: pa.Table) -> Counter[str]:
    kept = table.drop_columns([name for name in table.column_names if name in _KEYS])
    return Counter(repr(sorted(row.items())) for row in kept.to_pylist())
