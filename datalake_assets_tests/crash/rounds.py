"""Rounds: an export is killed, the lake looked at, the export retried, and every row counted."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from datalake_assets.lake import inspection
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets_tests.crash.checks import (
    CrashError,
    check_after_crash,
    check_after_retry,
    check_summary,
    feed_state,
)
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.killing import MOMENTS, STEPS, KillPoint
from datalake_assets_tests.crash.scenarios import SCENARIOS, Scenario

__all__ = ["Rounds"]

KILLED = -9
#: States of the source that one lake lives through.
LIFE = 7
#: By then a table has more versions than are kept.
SETTLED = 3
#: By scenario and phase, the writes of an undisturbed export, by step.
_WRITES: dict[tuple[str, str], Counter[str]] = {}


class _Lake:
    """One scenario's present lake."""

    def __init__(self, uri: str, scenario: Scenario, endpoint: str | None) -> None:
        if "://" not in uri:
            Path(uri).mkdir()
        self.uri, self.scenario, self.endpoint = uri, scenario, endpoint
        self.store: Store = open_store(uri, s3=S3Access(endpoint=endpoint))
        self.state = 0
        self.landed = -1  # the newest state that is there for certain

    @property
    def phase(self) -> str:
        return "first" if self.state == 0 else "settled"


class Rounds:
    """Kills exports, one after another.

    Args:
        lakes: Below this URI, lakes are made.
        endpoint: Of the S3 server.
        forker: Runs them.
        seed: Decides everything that the machine's speed doesn't.

    Attributes:
        steps: The protocol steps that this kind of store has.
        hits: Kills by protocol step.
        moments: Kills by moment.
        happened: What else there was.
    """

    def __init__(self, lakes: str, forker: Forker, *, endpoint: str | None = None, seed: int = 0) -> None:
        self._lakes, self._forker, self._endpoint, self._rng = lakes, forker, endpoint, random.Random(seed)
        self._folder = tempfile.TemporaryDirectory()
        self._log_number = self._lake_number = 0
        self._present: dict[str, _Lake] = {}
        self.steps = tuple(step for step in STEPS if step != "sync" or endpoint is None)  # S3 has nothing to sync
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()

    def close(self) -> None:
        """Forgets what it learned; the lakes stay."""
        self._folder.cleanup()

    def prepare(self) -> None:
        """Learns from undisturbed exports, on disk, which writes there are, unless others of this process have."""
        if _WRITES:
            return
        learned: dict[tuple[str, str], Counter[str]] = {}
        for scenario in SCENARIOS.values():
            lake = _Lake(f"{self._folder.name}/{scenario.name}", scenario, None)
            for state in range(SETTLED + 1):
                lake.state = state
                code, steps = self._export(lake, KillPoint())
                _expect(code == 0, "an undisturbed export failed")
                learned[scenario.name, lake.phase] = Counter(step for step in steps if step in STEPS)
                lake.landed = state
            check_after_retry(lake.store, scenario, SETTLED)
            check_summary(lake.store, scenario, SETTLED)
        _WRITES.update(learned)

    def round(self) -> str:
        """One round; returns what it was."""
        lake, point = self._draw()
        said = f"{lake.scenario.name} state {lake.state}, {point}"
        try:
            self._kill(lake, point)
            if self._rng.random() < 0.2:  # and the retry, too
                self._kill(lake, self._point(lake, self._rng.choice(sorted(self._counts_of(lake)))))
            prepared = self._is_pending(lake)
            self._finish(lake, sweep=self._rng.random() < (0.4 if prepared else 0.1))
        except CrashError as error:
            raise CrashError(f"{said}, lake {lake.uri}: {error}") from error
        lake.landed = lake.state
        lake.state += 1
        return said

    def _draw(self) -> tuple[_Lake, KillPoint]:
        """A write of the step that was hit least so far, or of any step, in any of the scenarios that have it."""
        lakes = [self._lake(scenario) for scenario in SCENARIOS.values()]
        steps = sorted(
            {step for lake in lakes for step in self._counts_of(lake)}, key=lambda step: (self.hits[step], step)
        )
        step = steps[0] if self._rng.random() < 0.8 else self._rng.choice(steps)
        lake = self._rng.choice([lake for lake in lakes if step in self._counts_of(lake)])
        return lake, self._point(lake, step)

    def _counts_of(self, lake: _Lake) -> Counter[str]:
        writes = _WRITES[lake.scenario.name, lake.phase]
        return Counter({step: count for step, count in writes.items() if step in self.steps})

    def _point(self, lake: _Lake, step: str) -> KillPoint:
        number = self._rng.randrange(self._counts_of(lake)[step]) + 1
        return KillPoint(step, number, self._rng.choice(MOMENTS), self._rng.randrange(1 << 30))

    def _lake(self, scenario: Scenario) -> _Lake:
        lake = self._present.get(scenario.name)
        if lake is None or lake.state >= LIFE:
            lake = self._present[scenario.name] = self._new_lake(scenario)
        return lake

    def _new_lake(self, scenario: Scenario) -> _Lake:
        self._lake_number += 1
        return _Lake(f"{self._lakes}/{scenario.name}{self._lake_number}", scenario, self._endpoint)

    def _export(self, lake: _Lake, point: KillPoint, partitions: Any = None) -> tuple[int, list[str]]:
        """Runs an export to its end, whatever that is; returns its exit code and the steps that it logged."""
        self._log_number += 1
        log = Path(self._folder.name) / f"log{self._log_number}"
        code = self._forker.run(
            "export",
            lake=lake.uri,
            endpoint=lake.endpoint,
            scenario=lake.scenario.name,
            state=lake.state,
            partitions=partitions or lake.scenario.selected,
            point=asdict(point),
            log=str(log),
        )
        return code, log.read_text().splitlines() if log.exists() else []

    def _kill(self, lake: _Lake, point: KillPoint) -> None:
        code, steps = self._export(lake, point, self._same_version(lake))
        _expect(code in {0, KILLED}, f"an export failed with exit code {code}; its traceback is above")
        if code == KILLED:
            step, moment = steps[-1].rsplit(" ", 1) if steps[-1].endswith(MOMENTS) else self._last_blow(steps)
            self.hits[step] += 1
            self.moments[moment] += 1
        else:
            self.happened["survived"] += 1
        check_after_crash(lake.store, lake.scenario, range(max(0, lake.landed), lake.state + 1))

    @staticmethod
    def _last_blow(steps: list[str]) -> tuple[str, str]:
        """Where the answer was lost, or the timer set, some writes before the end."""
        step, moment = next(line for line in reversed(steps) if line.endswith(MOMENTS)).rsplit(" ", 1)
        return step, moment

    def _same_version(self, lake: _Lake) -> list[str] | None:
        """A table: sometimes the version that an export did not finish is tried again, as a rerun of its run would."""
        state = feed_state(lake.store, lake.scenario)
        newest = state.next_version - 1
        unfinished = newest not in {version.number for version in state.versions} and newest not in state.removing
        if lake.scenario.feed.kind == "table" and newest and unfinished and self._rng.random() < 0.5:
            return [f"v{newest}"]
        return None

    @staticmethod
    def _is_pending(lake: _Lake) -> bool:
        differences = HiveTable(lake.store, lake.scenario.feed).verify()
        return any(difference.what == "pending" for difference in differences)

    def _finish(self, lake: _Lake, *, sweep: bool) -> None:
        """Retries and repairs, in either order, and counts."""
        if sweep:
            self._sweep(lake)
        repair_first = self._rng.random() < 0.5
        if repair_first:
            self._repair(lake)
        code, _ = self._export(lake, KillPoint(), self._same_version(lake))
        _expect(code == 0, "the retry failed; its traceback is above")
        if not repair_first:
            self._repair(lake)
        check_after_retry(lake.store, lake.scenario, lake.state)
        check_summary(lake.store, lake.scenario, lake.state)
        if lake.state == LIFE - 1:
            self._end(lake)

    def _repair(self, lake: _Lake) -> None:
        repaired = HiveTable(lake.store, lake.scenario.feed).repair()
        _expect(not repaired.waiting, f"repair waits: {repaired.waiting}")
        self.happened += Counter(finished=repaired.finished, undone=repaired.undone)

    def _sweep(self, lake: _Lake) -> None:
        """As if it were days later: what is staged is swept, prepared or not."""
        self.happened["swept first"] += 1
        for upload in list(lake.store.list_staged(lake.scenario.feed.path)):
            lake.store.discard_stale(upload)

    def _end(self, lake: _Lake) -> None:
        """Without crashes all is in order; what they left is swept once it is old, and nothing else."""
        code, _ = self._export(lake, KillPoint())
        kept = len(feed_state(lake.store, lake.scenario).versions)
        _expect(code == 0 and kept <= lake.scenario.feed.retention.versions, f"{kept} versions are kept")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inspection, "STALE", timedelta(days=-1))
            HiveTable(lake.store, lake.scenario.feed).repair()
        _expect(not list(lake.store.list_staged("")), "leftovers stay")
        check_after_retry(lake.store, lake.scenario, lake.state)


def _expect(condition: object, what: str) -> None:
    if not condition:
        raise CrashError(what)
