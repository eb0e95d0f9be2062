"""A model check of the product's commit protocol: the real `PartitionLog`, many workers, a store where all goes wrong.

Each worker runs the product's synchronous code in a greenlet, and every step of a store operation is a scheduling
point. So any interleaving, any crash (never resumed) and any zombie (resumed much later) can happen, and after every
single step the invariants are checked:

- M: the files that the manifest names exist, and hold exactly the source's rows that the position speaks of, each once.
- L: who lists the folder misses none of them; with nothing pending and no garbage, the folder holds just these files.
- H: the manifest changes only along its state machine; generation and position never go back; each line of the history
  is true, and no commit is made twice.
- R: no commit is undone unless one of its files was really lost.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import greenlet

from datalake_assets.core import manifest as manifest_module
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.errors import CommitConflict, CorruptLake, LakeError
from datalake_assets.lake.commit import Change, PartitionLog, Planned
from datalake_assets_tests.lake.commit_ledger import FOLDER, MANIFEST, Broken, Ledger, Rows, require, rows_in
from datalake_assets_tests.lake.commit_model_workers import (
    OFFSETS_WORKERS,
    READS,
    WINDOW_WORKERS,
    append,
    check_inputs,
    compact,
    pull,
    repair,
    sweep,
)
from datalake_assets_tests.lake.simulated_store import Faults, SimulatedStore

__all__ = ["READS", "Broken", "History", "Worker", "check_inputs", "quiet", "sweep"]

NAP_BEFORE = 4  # times as often as elsewhere, workers fall asleep before one of these
HARMFUL_WHEN_LATE = {"publish", "link", "samefile", "unlink", "has_staged", "head"}


@dataclass(slots=True)
class Worker:
    """A simulated process."""

    name: str
    thread: greenlet.greenlet
    next_step: str = ""
    asleep_until: int = 0


class History:
    """One random history: workers come, work, crash and wake up late, on one partition.

    Args:
        seed: Decides everything,
        local: but the store's semantics, if given,
        faults: and how often it fails, if given.
    """

    def __init__(self, seed: int, *, local: bool | None = None, faults: Faults | None = None) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        rng = self.rng
        self.windows = rng.random() < 0.2
        self._faults = faults
        self.store = SimulatedStore(rng, local=rng.random() < 0.4 if local is None else local)
        self.store.pause = self._pause
        self.ledger = Ledger()
        self.store.on_drop = self.ledger.drop
        self.ends = {0: 0, 1: 0}
        self.counts: Counter[str] = Counter()
        self._ids = itertools.count()
        self._main = greenlet.getcurrent()
        self._closed = False
        self._checked = -1
        self.workers: list[Worker] = []
        self.dead: list[Worker] = []

    def run(self) -> Counter[str]:
        """Lives through it; returns what happened, by name.

        Raises:
            Broken: An invariant did not hold; the message has the seed.
        """
        history_kept = manifest_module.HISTORY
        manifest_module.HISTORY = self.rng.choice([history_kept, history_kept, 1])
        try:
            self._live()
            self._wake_zombies()
            self._end_well()
        except Broken as error:
            raise Broken(f"seed {self.seed}, step {self.store.operations}: {error}") from error
        finally:
            self._close()
            manifest_module.HISTORY = history_kept
        return self.counts + self.ledger.kinds + Counter(operations=self.store.operations)

    def _pause(self, what: str) -> None:
        if greenlet.getcurrent() is self._main:
            return
        if not self._closed:
            self._main.switch(what)
        if self._closed:
            raise greenlet.GreenletExit

    def _close(self) -> None:
        """Ends the greenlets; what their handlers still try to do to the store is refused."""
        self._closed = True
        for worker in [*self.workers, *self.dead]:
            worker.thread.throw(greenlet.GreenletExit)

    def _live(self) -> None:
        rng, store = self.rng, self.store
        store.faults = self._faults or Faults.drawn(rng, local=store.local)
        crashes, naps = rng.choice([0.003, 0.02, 0.05]), rng.choice([0, 0.01, 0.05])
        for step in range(rng.randrange(60, 450)):
            self._grow(0.15)
            if rng.random() < 0.05:
                store.land()
                self._check()
            if store.local and rng.random() < 0.002:
                self._cut_power()
            if len(self.workers) < 4 and rng.random() < 0.3:
                self._hire()
            awake = [worker for worker in self.workers if worker.asleep_until <= step]
            if not awake:
                continue
            worker = rng.choice(awake)
            if rng.random() < crashes:
                self._bury(worker, "crashes")
            elif rng.random() < naps * (NAP_BEFORE if worker.next_step in HARMFUL_WHEN_LATE else 1):
                worker.asleep_until = step + rng.randrange(20, 300)
                self.counts["naps"] += 1
            else:
                self._resume(worker)

    def _grow(self, chance: float) -> None:
        if self.rng.random() < chance:
            self.ends[self.rng.randrange(2)] += self.rng.randrange(1, 4)

    def _cut_power(self) -> None:
        for worker in list(self.workers):
            self._bury(worker, "power cuts")
        self.store.power_cut()
        self._check()

    def _bury(self, worker: Worker, cause: str) -> None:
        self.workers.remove(worker)
        self.dead.append(worker)
        self.counts[cause] += 1
        if worker.name == "compact":
            self.counts[f"compact {cause} at {worker.next_step or 'the start'}"] += 1

    def _hire(self) -> None:
        kinds = WINDOW_WORKERS if self.windows else OFFSETS_WORKERS
        self.hire(self.rng.choices(list(kinds), list(kinds.values()))[0])

    def hire(self, work: Callable[[History], None]) -> Worker:
        """Starts a worker; it does nothing before it is resumed."""
        worker = Worker(work.__name__, greenlet.greenlet(lambda: work(self)))
        self.workers.append(worker)
        return worker

    def _resume(self, worker: Worker) -> None:
        """Runs a worker up to its next scheduling point: one step of one operation."""
        try:
            worker.next_step = worker.thread.switch()
        except CorruptLake as error:
            raise Broken(f"{worker.name} was told that the lake is corrupt: {error}") from error
        except CommitConflict:
            self.counts["gave up"] += 1
        except LakeError:
            self.counts["failed"] += 1
        if worker.thread.dead and worker in self.workers:
            self.workers.remove(worker)
        self._check(worker.name)

    def _wake_zombies(self) -> None:
        self.rng.shuffle(self.workers)
        for worker in list(self.workers):
            for _ in range(400):
                if worker.thread.dead:
                    break
                self._resume(worker)

    def _end_well(self) -> None:
        """Without faults everybody gets done, whatever happened before."""
        self.store.faults = Faults()
        self.ends = {partition: end + 1 for partition, end in self.ends.items()}
        for work in (repair, pull, compact) if self.windows else (repair, append, compact):
            worker = self.hire(work)
            failed = self.counts["failed"] + self.counts["gave up"]
            while not worker.thread.dead:
                self._resume(worker)
            require(self.counts["failed"] + self.counts["gave up"] == failed, f"{work.__name__} failed in peace")
        while self.store.limbo:
            self.store.land()
            self._check("landed after the end")
        manifest = self.ledger.manifest
        require(manifest.pending is None and not manifest.garbage, "something is left to do")
        if self.windows:
            require(manifest.position.as_of == max(self.ledger.pulls), "the last pull is not in the lake")
        else:
            ends = {partition: end for partition, (_, end) in manifest.position.next_offsets.items()}
            require(ends == self.ends, "the last rows are not in the lake")

    def _check(self, who: str = "the world") -> None:
        if self.store.changes == self._checked:
            return
        self._checked = self.store.changes
        ledger, objects = self.ledger, self.store.objects
        try:
            stored = objects.get(MANIFEST)
            if stored and stored.etag != ledger.etag:
                ledger.etag = stored.etag
                ledger.follow(Manifest.from_bytes(stored.body, where=MANIFEST), self.store)
            require(stored is not None or not ledger.etag, "H: the manifest is gone")
            self._check_files(ledger.manifest)
        except Broken as error:
            raise Broken(f"{error} (after {who})") from error

    def _check_files(self, manifest: Manifest) -> None:
        objects = self.store.objects
        named = {f"{FOLDER}/{file.name}" for file in manifest.files}
        require(named <= objects.keys(), "M: a committed file is gone")
        rows = [row for key in named for row in rows_in(objects[key].body)]
        expected = self.ledger.expected()
        require(len(rows) == len(expected) and frozenset(rows) == expected, "M: rows")
        require(len(rows) == manifest.rows, "M: count of rows")
        visible = {key for key in objects if key.startswith(f"{FOLDER}/")}
        # by now each committed file is known to be visible, so a lister misses none of its rows
        if manifest.pending is None and not manifest.garbage:
            require(visible == named, "L: visible but not committed")

    def log(self) -> PartitionLog:
        """The product's own."""
        return PartitionLog(self.store, MANIFEST, FOLDER, self.new_id)

    def new_id(self) -> str:
        """A fresh text."""
        return f"id{next(self._ids)}"

    def source(self) -> Rows:
        """All rows of the source, as it is now."""
        return frozenset((partition, offset) for partition, end in self.ends.items() for offset in range(end))

    def stage(self, rows: list[tuple[int, int]], kind: str, plan: Callable[[Manifest], Planned | None]) -> Change:
        """Stages rows in up to three files."""
        commit_id, count = self.new_id(), self.rng.randrange(1, 4)
        files = []
        for number in range(count):
            chunk = rows[number::count]
            if not chunk and rows:
                continue
            name = f"{kind}-{commit_id}-{number}"
            with self.store.stage(f"{FOLDER}/{name}") as writer:
                writer.write(json.dumps(chunk).encode())
                staged = writer.finish()
            files.append((staged, DataFile(name, len(chunk), staged.size_bytes)))
        return Change(commit_id, kind, tuple(files), plan)

    def commit(self, change: Change) -> bool:
        """Commits; a conflict is told by the answer."""
        try:
            _, done = self.log().commit(change)
        except CommitConflict:
            self.counts["conflicts"] += 1
            return False
        self._check("commit")
        require(not done or change.commit_id in self.ledger.commits, "said to be committed, but is not")
        return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Logs nothing while the block runs."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
