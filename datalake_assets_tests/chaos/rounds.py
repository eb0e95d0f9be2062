"""Minutes of chaos, the calm after it, and what must have come of it."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from datalake_assets_tests.browser.graphql import eventually
from datalake_assets_tests.chaos.afterwards import ChaosError, Held, check_rows, own_failures, settle, still_stuck
from datalake_assets_tests.chaos.installation import SERVICES, Installation
from datalake_assets_tests.chaos.traffic import GrowingSource, Traffic

__all__ = ["Chaos"]

RECORDS = 300
SENSOR = "compaction_sensor"
#: Dagster fails a run that did not start within 180 s (see dagster.yaml), and looks every two minutes.
SETTLE_S = 330.0
#: Seconds from one kill to the next, from one launch to the next, and between new rows.
_KILL_S, _LAUNCH_S, _ROWS_S = (2.0, 6.0), (0.5, 3.0), (1.0, 4.0)
#: Until one looks again for a victim that was not there.
_SOON_S = 0.3
#: Schedule and sensor go on: a run that was launched just now has no process yet, but not for long.
_PATIENCE_S = 60.0
_VICTIMS = (*("worker",) * 4, *("command",) * 2, *SERVICES)


class Chaos:
    """An installation that is not left alone.

    Args:
        folder: Empty; gets all of it.
        seed: Decides what happens when.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self.kills: Counter[str] = Counter()
        self._victim = ""

    def run(self, *, seconds: float) -> Iterator[str]:
        """Makes chaos for so long, and checks what came of it; lines for a person.

        Raises:
            ChaosError: The installation did not get over it.
        """
        source = GrowingSource(RECORDS)
        with source.server as server:
            self._in = Installation(self._folder, ksqldb_url=server.url, start=source.start)
            self._traffic = Traffic(self._in, source, self._rng)
            self._in.answer("export", "--all")
            with self._in:
                yield from self._run(source, seconds=seconds)

    def _run(self, source: GrowingSource, *, seconds: float) -> Iterator[str]:
        self._traffic.turn_on(SENSOR)
        began = time.monotonic()
        self._make_chaos(began + seconds)
        yield f"{time.monotonic() - began:.0f} s of chaos with {source.records} rows in each stream"
        yield f"killed: {_figures(self.kills)}"
        yield f"happened: {_figures(self._traffic.happened)}"
        yield from sorted(set(self._traffic.refused))
        yield from self._calm_down()
        yield from self._go_on()

    def _make_chaos(self, until: float) -> None:
        due = {"kill": _KILL_S, "launch": _LAUNCH_S, "rows": _ROWS_S}
        actions = {"kill": self._kill, "launch": self._traffic.launch, "rows": self._traffic.add_rows}
        at = {name: time.monotonic() + self._rng.uniform(*between) for name, between in due.items()}
        while time.monotonic() < until:
            self._in.restart_missing()
            for name in [name for name, when in at.items() if when <= time.monotonic()]:
                actions[name]()
                pause_s = _SOON_S if name == "kill" and self._victim else self._rng.uniform(*due[name])
                at[name] = time.monotonic() + pause_s
            time.sleep(0.1)

    def _kill(self) -> None:
        """Kills somebody of a kind; if there is nobody, whoever comes next of that kind."""
        self._victim = self._victim or self._rng.choice(_VICTIMS)
        if self._victim in SERVICES:
            self._in.kill(self._victim)
        else:
            there = self._in.workers() if self._victim == "worker" else self._traffic.commands
            if not there:
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                self._rng.choice(list(there)).kill()
        self.kills[self._victim] += 1
        self._victim = ""

    def _calm_down(self) -> Iterator[str]:
        """Nobody is killed any more: everything ends, by itself or by ``datalake repair``."""
        try:
            self._traffic.finish(within_s=SETTLE_S)
        except subprocess.TimeoutExpired as error:
            raise ChaosError(f"still waiting: {error}") from error
        seconds, left = settle(self._in, within_s=SETTLE_S)
        yield f"calm after {seconds:.0f} s: {_left(left)}"
        failures = own_failures(self._in)
        if failures:
            raise ChaosError(f"runs that nobody killed failed: {failures}")
        check_rows(self._in, final=False)
        repaired = self._in.answer("repair")
        done = Counter(
            {what: sum(each[what] for each in repaired["feeds"]) for what in ("finished", "undone", "swept")}
        )
        yield f"repair: {len(repaired['dead_runs'])} dead runs failed; commits and leftovers: {_figures(done)}"
        stuck = still_stuck(self._in, within_s=_PATIENCE_S)
        if stuck:
            raise ChaosError(f"nobody works on these runs, or they have ended and hold slots: {stuck}")

    def _go_on(self) -> Iterator[str]:
        """As if nothing had happened: what has to be done is done."""
        self._in.answer("export", "--all")
        code, printed = self._in.datalake("verify", "--deep")
        if code:
            raise ChaosError(f"verify: {printed}")
        rows = check_rows(self._in, final=True)
        yield f"rows, each once: {_figures(Counter(rows))}"
        self._traffic.add_rows()
        known = {run["runId"] for run in self._in.api.runs()}
        self._traffic.launch_export()
        self._traffic.launch_compaction()
        ended = eventually(lambda: self._ended(known), "a new export and a new compaction end", within_s=120)
        if set(ended) != {"SUCCESS"}:
            raise ChaosError(f"afterwards runs end with {ended}")
        self._in.answer("compact", "transaction_stream", "--force")
        self._in.answer("export", "--all")
        rows = check_rows(self._in, final=True)
        code, printed = self._in.datalake("verify", "--deep")
        if code:
            raise ChaosError(f"verify: {printed}")
        _, left = settle(self._in, within_s=60)
        if not left.nothing:
            raise ChaosError(f"after everything: {left}")
        yield f"then exported and compacted: {_figures(Counter(rows))}"
        yield f"runs: {_figures(Counter(run['status'] for run in self._in.api.runs()))}"

    def _ended(self, known: set[str]) -> list[str]:
        new = [run["status"] for run in self._in.api.runs() if run["runId"] not in known]
        return new if len(new) > 1 and all(status in {"SUCCESS", "FAILURE", "CANCELED"} for status in new) else []


def _left(left: Held) -> str:
    if left.nothing:
        return "no run unfinished, no slot held"
    return f"{len(left.unfinished)} unfinished {left.unfinished}, slots {left.slots}, waiting {left.waiting}"


def _figures(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "nothing"
