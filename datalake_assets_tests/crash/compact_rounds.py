"""Rounds of compaction: a compactor is killed while others append to its partition, and every row is counted."""

from __future__ import annotations

import random
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from datalake_assets.lake import inspection
from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.compacted_lake import NEVER, WAYS, CompactedLake, Process, Way
from datalake_assets_tests.crash.killing import MOMENTS, KillPoint
from datalake_assets_tests.crash.small_files import require

__all__ = ["COMPACTION_STEPS", "CompactRounds"]

KILLED = -signal.SIGKILL
#: Rounds that one lake lives through.
LIFE = 6
#: Small files that there are at least when a compaction begins.
FILLED = 7
#: What a compaction must be killed at; S3 has nothing to sync.
COMPACTION_STEPS = ("stage", "prepare", "publish", "sync", "commit", "delete", "sweep")
NAP_S = 0.2


class CompactRounds:
    """Kills compactions, one after another.

    Args:
        lakes: Below this URI, lakes are made.
        forker: Runs them, and the appends.
        endpoint: Of the S3 server.
        seed: Decides everything that the machine's speed doesn't.
        ways: Of compacting.

    Attributes:
        steps: The protocol steps that this kind of store has.
        hits: Kills by protocol step.
        moments: Kills by moment.
        happened: What else there was.
    """

    def __init__(
        self, lakes: str, forker: Forker, *, endpoint: str | None = None, seed: int = 0, ways: Sequence[Way] = WAYS
    ) -> None:
        self._lakes, self._forker, self._endpoint, self._rng = lakes, forker, endpoint, random.Random(seed)
        self._ways = ways
        self._folder = tempfile.TemporaryDirectory()
        self._number = self._lake_number = 0
        self._lake: CompactedLake | None = None
        self._writes: dict[str, Counter[str]] = {}  # of an undisturbed compaction, by step
        self._appends: Counter[str] = Counter()  # of undisturbed appends
        self.steps = tuple(step for step in COMPACTION_STEPS if step != "sync" or endpoint is None)
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()

    def close(self) -> None:
        """Forgets what it learned; the lakes stay."""
        self._folder.cleanup()

    def prepare(self) -> None:
        """Learns from undisturbed compactions, on disk, which writes there are."""
        for number, way in enumerate(self._ways):
            folder = Path(self._folder.name) / f"way{number}"
            lake = CompactedLake(f"{folder}.lake", None, folder)
            self._appends = Counter(self._fill(lake))
            steps = self._retry(lake, way)
            self._writes[way.name] = Counter(step for step in steps if step in self.steps)
            require(self._writes[way.name]["commit"], f"{way.name}: nothing was compacted")
            lake.partition.check_settled()

    def round(self) -> str:
        """One round; returns what it was."""
        self._number += 1
        lake, way = self._present(), self._rng.choice(self._ways)
        point = self._point(way)
        said = f"{way.name}, {point.moment} {point.step} {point.number}"
        try:
            self._fill(lake)
            self._live(lake, way, point)
            self._end(lake)
        except CrashError as error:
            raise CrashError(f"{said}, round {lake.rounds + 1} of {lake.uri}: {error}") from error
        return said

    def _present(self) -> CompactedLake:
        if self._lake is None or self._lake.rounds >= LIFE:
            self._lake_number += 1
            name = f"compact{self._lake_number}"
            self._lake = CompactedLake(f"{self._lakes}/{name}", self._endpoint, Path(self._folder.name) / name)
        return self._lake

    def _point(self, way: Way) -> KillPoint:
        """A write of the step that was hit least so far, or of any step."""
        steps = sorted(self._writes[way.name], key=lambda step: (self.hits[step], step))
        step = steps[0] if self._rng.random() < 0.7 else self._rng.choice(steps)
        return self._draw(step, self._writes[way.name][step], (*MOMENTS, "asleep"))

    def _draw(self, step: str, writes: int, moments: tuple[Any, ...]) -> KillPoint:
        return KillPoint(step, self._rng.randrange(writes) + 1, self._rng.choice(moments), self._rng.randrange(1 << 30))

    def _fill(self, lake: CompactedLake) -> list[str]:
        """Small files, so that there is something to compact."""
        appender = lake.append(self._forker, limit=self._rng.randrange(FILLED, FILLED + 4), pause_s=0)
        require(appender.end() == 0, "undisturbed appends failed")
        return appender.steps()

    def _live(self, lake: CompactedLake, way: Way, point: KillPoint) -> None:
        """A compactor is killed, or falls asleep; the lake is looked at, recovered, and looked at again."""
        appender = self._append(lake)
        compactor = self._kill(lake, way, point)
        frozen = self._look(lake, appender)
        if self._rng.random() < 0.2 and compactor is None:
            compactor = self._kill(lake, way, self._point(way))
            lake.check()
        if appender is None and compactor is None and self._rng.random() < 0.3:
            self._sweep(lake)
        self._recover(lake, way)
        lake.check()
        if compactor is not None:
            self._wake(compactor)
        if frozen is not None:
            frozen.join()
        if appender is not None and self._stop(lake, appender) == KILLED:
            self.happened["appenders killed"] += 1
            lake.check()
            self._recover(lake, way)
        lake.partition.check_settled()

    def _append(self, lake: CompactedLake) -> Process | None:
        """An appender for as long as it takes, or until it is killed, too; or none, and others have to recover."""
        luck, point = self._rng.random(), NEVER
        if luck < 0.2:
            self.happened["without appender"] += 1
            return None
        if luck < 0.5:
            step = self._rng.choice(sorted(self._appends))
            point = self._draw(step, self._appends[step], MOMENTS)
        return lake.append(self._forker, point=point)

    def _kill(self, lake: CompactedLake, way: Way, point: KillPoint) -> Process | None:
        """Compacts until it is killed; or asleep, then it is returned."""
        compactor = lake.compact(self._forker, way, point=point)
        if compactor.is_asleep():
            self._hit(compactor.steps())
            return compactor
        code = compactor.end()
        require(code in {0, KILLED}, f"a compaction failed with exit code {code}; its traceback is above")
        if code == KILLED:
            self._hit(compactor.steps())
        else:
            self.happened["survived"] += 1
        return None

    def _hit(self, steps: list[str]) -> None:
        """Where it was killed; where the answer was lost or the timer set, that is some writes before the end."""
        blow = next(line for line in reversed(steps) if line.endswith((*MOMENTS, "asleep")))
        step, moment = blow.rsplit(" ", 1)
        self.hits[step] += 1
        self.moments[moment] += 1

    def _look(self, lake: CompactedLake, appender: Process | None) -> threading.Timer | None:
        """Before anybody recovers: an appender would, so sometimes it is stopped, and woken amid the recovery."""
        timer = None
        if appender is not None and self._rng.random() < 0.5:
            appender.send(signal.SIGSTOP)
            timer = threading.Timer(NAP_S, appender.send, [signal.SIGCONT])
        try:
            manifest = lake.partition.folder.log(lake.partition.key).load().manifest
            self.happened["seen prepared"] += manifest.pending is not None
            self.happened["seen unswept"] += bool(manifest.garbage)
            lake.check()
        finally:
            if timer is not None:
                timer.start()
        return timer

    def _sweep(self, lake: CompactedLake) -> None:
        """As if it were days later: what is staged is swept, prepared or not."""
        self.happened["swept first"] += 1
        for upload in list(lake.store.list_staged("")):
            lake.store.discard_stale(upload)

    def _recover(self, lake: CompactedLake, way: Way) -> None:
        """In turn by a repair and by another compaction."""
        if self._number % 2:
            self._retry(lake, way)
        else:
            self._repair(lake)

    def _repair(self, lake: CompactedLake) -> None:
        for _ in range(100):
            repaired = lake.partition.table.repair()
            self.happened += Counter(finished=repaired.finished, undone=repaired.undone)
            if not repaired.waiting:
                return
            self.happened["repair waited"] += 1
        raise CrashError(f"repair waits: {repaired.waiting}")

    def _retry(self, lake: CompactedLake, way: Way) -> list[str]:
        compactor = lake.compact(self._forker, way)
        require(compactor.end() == 0, "the retry of the compaction failed; its traceback is above")
        steps = compactor.steps()
        self.happened["several files in a commit"] += ("publish", "publish") in pairwise(steps)
        self.happened["several commits"] += steps.count("prepare") > 1
        return steps

    def _wake(self, compactor: Process) -> None:
        """What it was about to do has been done or undone by others; it has to see that."""
        compactor.send(signal.SIGCONT)
        require(compactor.end() == 0, "a compaction that overslept failed; its traceback is above")
        self.happened["overslept"] += 1

    def _stop(self, lake: CompactedLake, appender: Process) -> int:
        lake.stop()
        code = appender.end()
        require(code in {0, KILLED}, f"an append failed with exit code {code}; its traceback is above")
        self.happened["appends"] += sum(step == "commit" for step in appender.steps())
        return code

    def _end(self, lake: CompactedLake) -> None:
        """Leftovers are swept once they are old, and nothing else."""
        lake.rounds += 1
        if lake.rounds == LIFE:
            self.happened.update({f"compacted by {kernel or 'nothing'}": n for kernel, n in lake.kernels().items()})
        if lake.rounds < LIFE and self._rng.random() < 0.7:
            return
        self._repair(lake)
        lake.partition.check_summary()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inspection, "STALE", timedelta(days=-1))
            self._repair(lake)
        lake.partition.check_no_leftovers()
        lake.partition.check_settled()
