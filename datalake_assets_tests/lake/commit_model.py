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

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import greenlet
import numpy as np

from datalake_assets.core import manifest as manifest_module
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.position import OffsetsPosition, WindowPosition, first_seen, offset_bounds
from datalake_assets.errors import CommitConflict, CorruptLake, LakeError, ObjectNotFound
from datalake_assets.lake.commit import Change, PartitionLog, Planned
from datalake_assets_tests.lake.commit_ledger import FOLDER, MANIFEST, Broken, Ledger, Rows, require, rows_in
from datalake_assets_tests.lake.simulated_store import START, Faults, SimulatedStore

__all__ = ["Broken", "History", "Worker", "check_inputs"]

EPOCH = 1
NAP_BEFORE = 4  # times as often as elsewhere, workers fall asleep before one of these
HARMFUL_WHEN_LATE = {"publish", "link", "samefile", "unlink", "has_staged", "head"}
READS = 4  # how often a worker reads anew after a conflict


@dataclass(slots=True)
class Worker:
    """A simulated process."""

    name: str
    thread: greenlet.greenlet
    next_step: str = ""
    asleep_until: int = 0


def check_inputs(inputs: set[str], base: Manifest) -> None:
    """What a compactor asks of each base that it is tried on."""
    if not inputs <= {file.name for file in base.files}:
        raise CommitConflict(FOLDER, "an input of the compaction is gone")


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


def append(history: History) -> None:
    """Lands what the source has beyond the position, and some rows that it had before."""
    for _ in range(READS):
        position = history.log().load().manifest.position or OffsetsPosition()
        rows = _read(history, position)
        partitions, offsets = np.array([row[0] for row in rows], int), np.array([row[1] for row in rows], int)
        new = first_seen({}, partitions, offsets) & position.new_rows(EPOCH, partitions, offsets)
        if not new.any():
            return
        bounds = offset_bounds(partitions[new], offsets[new])

        def plan(base: Manifest, bounds: dict[int, tuple[int, int]] = bounds) -> Planned:
            now = base.position or OffsetsPosition()
            if not now.admits(EPOCH, {partition: low for partition, (low, _) in bounds.items()}):
                raise CommitConflict(FOLDER, "another writer landed these rows")
            return Planned(now.advanced(EPOCH, {partition: high for partition, (_, high) in bounds.items()}))

        fresh = list(zip(partitions[new].tolist(), offsets[new].tolist(), strict=True))
        if history.commit(history.stage(fresh, "append", plan)):
            return
    raise CommitConflict(FOLDER, "others were always faster")


def _read(history: History, position: OffsetsPosition) -> list[tuple[int, int]]:
    """In offset order within each source partition, with repetitions, and from a little before the position."""
    rng, queues = history.rng, []
    for partition, end in history.ends.items():
        start = max(0, min(end, position.floor(partition, EPOCH)) - rng.randrange(3))
        numbers = list(range(start, end))
        if numbers and rng.random() < 0.3:
            again = rng.randrange(len(numbers))
            numbers[again:again] = numbers[max(0, again - 2) : again]
        queues.append([(partition, number) for number in numbers])
    rows = []
    while any(queues):
        queue = rng.choice([queue for queue in queues if queue])
        rows.append(queue.pop(0))
    return rows


def compact(history: History) -> None:
    """Rewrites some of the files."""
    for _ in range(READS):
        files = history.log().load().manifest.files
        if len(files) < 2:
            return
        inputs = {file.name for file in history.rng.sample(files, history.rng.randrange(2, len(files) + 1))}
        rows: list[tuple[int, int]] = []
        try:
            for name in sorted(inputs):
                rows += rows_in(history.store.get(f"{FOLDER}/{name}")[0])
        except ObjectNotFound:
            continue

        def plan(base: Manifest, inputs: set[str] = inputs) -> Planned:
            check_inputs(inputs, base)
            return Planned(remove=tuple(sorted(inputs)))

        if history.commit(history.stage(rows, "compact", plan)):
            return


def replace(history: History) -> None:
    """Lands the whole source anew, in place of all that is there."""
    rows = sorted(history.source())
    ends = {partition: end for partition, end in history.ends.items() if end}

    def plan(base: Manifest) -> Planned | None:
        now = base.position or OffsetsPosition()
        mine = OffsetsPosition().advanced(EPOCH, {partition: end - 1 for partition, end in ends.items()})
        if any(mine.next_offsets.get(partition, (0, 0)) < at for partition, at in now.next_offsets.items()):
            return None
        return Planned(mine, remove=tuple(file.name for file in base.files))

    if rows:
        history.commit(history.stage(rows, "replace", plan))


def pull(history: History) -> None:
    """Lands what a window's source has now; it may have had more or less before."""
    as_of = history.store.now()
    rows = sorted(history.source())
    if history.rng.random() < 0.2:
        rows = rows[::2]
    history.ledger.pulls[as_of] = frozenset(rows)
    position = WindowPosition(START, START, as_of, len(rows), "0" * 16)

    def plan(base: Manifest) -> Planned | None:
        if base.position is not None and base.position.as_of >= as_of:
            return None
        return Planned(position, remove=tuple(file.name for file in base.files))

    history.commit(history.stage(rows, "replace", plan))


def delete(history: History) -> None:
    """Retention: nothing is left but the manifest."""

    def plan(base: Manifest) -> Planned | None:
        return Planned(remove=tuple(file.name for file in base.files), deleted=True) if base.files else None

    history.commit(Change(history.new_id(), "delete", (), plan))


def sweep(history: History) -> None:
    """Takes staged files for leftovers, whose they may be."""
    for upload in history.store.list_staged(FOLDER):
        if history.rng.random() < 0.5:
            history.store.discard_stale(upload)


def repair(history: History) -> None:
    """Finishes or undoes what others began."""
    log = history.log()
    log.settle(log.load())


OFFSETS_WORKERS = {append: 5.0, compact: 3.0, replace: 1.0, delete: 0.4, sweep: 0.8, repair: 1.0}
WINDOW_WORKERS = {pull: 4.0, compact: 3.0, delete: 0.4, sweep: 0.8, repair: 1.0}
