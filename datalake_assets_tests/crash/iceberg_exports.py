"""Rounds on Iceberg feeds: an export is killed at a drawn operation, retried, and every row counted by pyiceberg.

``python -m datalake_assets_tests.crash.iceberg_exports FOLDER ROUNDS SEED`` forks a process for each export and for
each look, so that none has anything of another's, and prints a line per round: where it was killed.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog

from datalake_assets.feed import Feed
from datalake_assets.lake.iceberg import commit_records, iceberg_commits, iceberg_folder, iceberg_table
from datalake_assets.lake.layout import StateLog
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.summary import Summary
from datalake_assets.lake.tables import open_table
from datalake_assets.policies import ParquetFormat
from datalake_assets_tests.crash.checks import quarantined
from datalake_assets_tests.crash.scenarios import SCENARIOS, Scenario, rows_of

__all__ = ["POINTS"]

#: Where a process dies: what is called, in which place.
POINTS: dict[str, tuple[Any, str]] = {
    "create table": (iceberg_folder, "create_table"),
    "record": (commit_records.CommitRecord, "begin"),
    "publish": (LocalStore, "publish"),
    "commit": (iceberg_commits, "commit_change"),
    "catalog": (SqlCatalog, "commit_table"),
    "record's end": (commit_records.CommitRecord, "end"),
    "remove version": (iceberg_commits, "_remove_version"),
    "expire": (iceberg_folder, "delete_quietly"),
    "feed state": (StateLog, "change"),
    "summary": (Summary, "merge"),
    "undo": (iceberg_table, "undo_interrupted"),
}
#: States of the source that one lake lives through.
LIFE = 6


def _dying(place: Any, name: str, *, number: int, after: bool) -> None:
    """Has the n-th call of a function end this process, before or after it."""
    found, calls = place.__dict__[name], iter(range(1, 1 << 30))
    real: Callable[..., Any] = found.__func__ if isinstance(found, classmethod) else found

    @functools.wraps(real)
    def call(*args: Any, **options: Any) -> Any:
        last = next(calls) == number
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, classmethod(call) if isinstance(found, classmethod) else call)


def _forked(work: Callable[[], None]) -> int:
    """Does something in a process of its own; returns its exit code, negative if a signal ended it."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:  # noqa: BLE001  it is reported, and the process ends
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class _Lake:
    """A lake with one feed, and the state that its source is in."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        folder.mkdir()
        self.uri, self.scenario, self.state = str(folder), scenario, 0
        written = ParquetFormat(**(scenario.feed.format.model_dump() | {"type": "iceberg"}))
        self.feed: Feed = scenario.feed.model_copy(update={"format": written})

    def export(self, point: tuple[str, int, bool] | None = None, *, repair_first: bool = False) -> None:
        """One export, killed at a point."""
        if point is not None:
            _dying(*POINTS[point[0]], number=point[1], after=point[2])
        table = open_table(open_store(self.uri), self.feed)
        if repair_first:
            table.repair()
        plan = table.plan(self.scenario.selected)
        batches = self.scenario.batches(self.state, plan.request)
        table.write(batches, partitions=plan.partitions, run_id=f"state {self.state}")

    def repair(self) -> None:
        """As every night."""
        open_table(open_store(self.uri), self.feed).repair()

    def seen(self) -> list[Any]:
        """What another engine reads; nothing before there is a table."""
        catalog = SqlCatalog("datalake", uri=f"sqlite:///{self.uri}/control/iceberg_catalog.db")
        try:
            name = (self.feed.kind.folder, self.feed.name)
            return rows_of(catalog.load_table(name).scan().to_arrow()) if catalog.table_exists(name) else []
        finally:
            catalog.close()

    def check_after_crash(self) -> None:
        """All of a write, or nothing of it."""
        seen = self.seen()
        before = self.scenario.truth(self.state - 1) if self.state else frozenset()
        possible = (Counter(before), Counter(self.scenario.truth(self.state)))
        assert Counter(seen) in possible, f"{len(seen)} rows are there: part of a write"

    def check_after_retry(self) -> None:
        """Every row once, and nothing left over."""
        store = open_store(self.uri)
        assert Counter(self.seen()) == Counter(self.scenario.truth(self.state)), "another engine sees other rows"
        table = open_table(store, self.feed)
        assert Counter(rows_of(table.scan().read_all())) == Counter(self.scenario.truth(self.state)), "we see others"
        differences = list(table.verify(deep=True))
        assert not differences, f"verify: {differences}"
        assert quarantined(store, self.scenario) == self.scenario.quarantined(self.state), "others are in quarantine"
        document = json.loads(store.get(f"metadata/{self.feed.path}/_metadata.json")[0])
        assert document["total_records"] >= len(self.scenario.truth(self.state)), "the summary misses rows"


def _round(lake: _Lake, rng: random.Random) -> str:
    """One killed export, perhaps a killed retry, a retry, and a repair before or after it."""
    said = []
    for _ in range(1 + (rng.random() < 0.3)):
        point = (rng.choice(list(POINTS)), rng.choice([1, 1, 2, 3]), rng.random() < 0.5)
        code = _forked(functools.partial(lake.export, point, repair_first=rng.random() < 0.5))
        assert code in {0, -signal.SIGKILL}, f"exit code {code} at {point}"
        said.append(f"{point[0]} {point[1]} {'after' if point[2] else 'before'}{'' if code else ' (survived)'}")
        assert _forked(lake.check_after_crash) == 0, f"after {said}"
    works = [lake.export, lake.repair]
    rng.shuffle(works)
    for work in works:
        assert _forked(work) == 0, f"{work} after {said}"
    assert _forked(lake.check_after_retry) == 0, f"after {said}"
    return ", ".join(said)


def main(folder: str, rounds: str, seed: str) -> None:
    """Runs rounds, each on the next state of one of the feeds."""
    rng, lakes = random.Random(int(seed)), {}
    names = list(SCENARIOS)
    for number in range(int(rounds)):
        name = names[number % len(names)]
        if name not in lakes or lakes[name].state == LIFE:
            lakes[name] = _Lake(Path(folder) / f"{name}{number}", SCENARIOS[name])
        print(f"{name} state {lakes[name].state}: {_round(lakes[name], rng)}", flush=True)
        lakes[name].state += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
