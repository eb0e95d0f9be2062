"""A model check of adopted folders: the real `PartitionLog`, beside a writer that knows nothing of it.

The other writer adds files, overwrites them and deletes them at any moment; our workers reconcile, compact and repair,
crash and wake up late, as in `commit_model`. Every write of a file is a row of its own, so that after each step:

- L: each row that the other writer wrote last under some name, and did not delete, can be seen in the folder: where it
  was written, or in a file of ours. Nothing of his is ever lost, whatever we were doing when he wrote it.
- M: the manifest names no row twice, and never deletes what it does not name; H: it changes along its state machine.

In the end, after a repair and a reconciliation in peace, the manifest is exactly the folder, and the folder holds every
such row once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.errors import CommitConflict, ObjectNotFound, PreconditionFailed
from datalake_assets.lake.commit import Change, Loaded, PartitionLog, Planned
from datalake_assets.lake.file_identity import checksum_of
from datalake_assets_tests.lake.commit_ledger import FOLDER, MANIFEST, Ledger, require, rows_in
from datalake_assets_tests.lake.commit_model import READS, History, check_inputs, sweep
from datalake_assets_tests.lake.simulated_store import Faults

__all__ = ["AdoptedHistory"]

NAMES = [f"{FOLDER}/part-{number}" for number in range(5)]


class _AdoptedLedger(Ledger):
    """Follows the manifest only along its edges: what the rows should be, the other writer decides."""

    def follow(self, new: Manifest, store: object) -> None:
        old, self.manifest = self.manifest, new
        line = new.history[-1] if new.history else None
        if new.generation == old.generation + 1 and line is not None and line.kind == "reconcile":
            require(old.pending is None and not old.garbage, "H: reconciled over an unfinished commit")
            self.kinds["reconcile"] += 1
        elif new.generation == old.generation + 1:
            require(old.pending is not None and new.pending is None, "H: committed what was not pending")
            removed = {file.name: file.etag for file in old.files if file.name in old.pending.remove}
            require({each.name: each.etag for each in new.garbage} == removed, "H: garbage")
            self.kinds["compact"] += 1
            self.commits.add(old.pending.commit_id)
        elif new.pending is not None:
            require(old.pending is None and not old.garbage, "H: prepared over an unfinished commit")
            self.kinds["prepared"] += 1
        elif old.pending is not None:
            require(new == old.rolled_back().stamped(new.write_id), "H: roll back")
            self.kinds["rolled back"] += 1
        else:
            require(new == old.swept().stamped(new.write_id), "H: sweep")
            self.kinds["swept"] += 1


class AdoptedHistory(History):
    """One random history of an adopted folder; see `History`."""

    def __init__(self, seed: int, *, local: bool | None = None, faults: Faults | None = None) -> None:
        super().__init__(seed, local=local, faults=faults)
        self.ledger = _AdoptedLedger()
        self.store.on_drop = lambda *_: None
        self.store.power_cut = lambda: None  # type: ignore[method-assign]  # the other writer syncs nothing
        self.written = 0
        self.lives: dict[str, tuple[int, int]] = {}  # name -> the row that the other writer wrote there last

    def _hire(self) -> None:
        self.hire(self.rng.choices(list(WORKERS), list(WORKERS.values()))[0])

    def _grow(self, chance: float) -> None:
        """The other writer does something, at once and without asking."""
        if self.rng.random() >= chance:
            return
        key = self.rng.choice(NAMES)
        if key in self.store.objects and self.rng.random() < 0.3:
            self.store._place(key, None)
            del self.lives[key]
            self.counts["others' deletes"] += 1
        else:
            self.counts["others' rewrites" if key in self.store.objects else "others' files"] += 1
            self.written += 1
            self.lives[key] = (0, self.written)
            self.store._place(key, self.store._object(json.dumps([self.lives[key]]).encode()))
        self._check("the other writer")

    def _check_files(self, manifest: Manifest) -> None:
        visible = [
            row for key, each in self.store.objects.items() if key.startswith(FOLDER) for row in rows_in(each.body)
        ]
        require(set(self.lives.values()) <= set(visible), "L: a row of the other writer is lost")
        named = [row for file in manifest.files for row in self._rows_of(file)]
        require(len(named) == len(set(named)), "M: a row is there twice")
        if manifest.pending is None and not manifest.garbage:
            ours = {key for key in self.store.objects if key.startswith(f"{FOLDER}/compact")}
            require(ours <= {f"{FOLDER}/{file.name}" for file in manifest.files}, "L: visible but not committed")

    def _rows_of(self, file: DataFile) -> tuple[tuple[int, int], ...]:
        """The rows that the manifest means; none if the file is another by now."""
        there = self.store.objects.get(f"{FOLDER}/{file.name}")
        return rows_in(there.body) if there and f"head-{there.etag}" == file.etag else ()

    def _end_well(self) -> None:
        self.store.faults = Faults()
        while self.store.limbo:
            self.store.land()
            self._check("landed after the end")
        for work in (repair, reconcile, compact, reconcile):
            worker = self.hire(work)
            failed = self.counts["failed"] + self.counts["gave up"]
            while not worker.thread.dead:
                self._resume(worker)
            require(self.counts["failed"] + self.counts["gave up"] == failed, f"{work.__name__} failed in peace")
        manifest = self.ledger.manifest
        require(manifest.pending is None and not manifest.garbage, "something is left to do")
        there = {key.removeprefix(f"{FOLDER}/") for key in self.store.objects if key.startswith(f"{FOLDER}/")}
        require({file.name for file in manifest.files} == there, "the manifest is not the folder")
        rows = Counter(row for file in manifest.files for row in self._rows_of(file))
        require(all(rows[row] == 1 for row in self.lives.values()), "a row is not there once")

    def log(self) -> PartitionLog:
        """The product's own, in an adopted folder."""
        return PartitionLog(self.store, MANIFEST, FOLDER, self.new_id, data_store=self.store, guarded=True)


def settled(log: PartitionLog) -> Loaded:
    """The manifest with nothing under way."""
    return log.settle(log.load())


def list_after(history: AdoptedHistory, log: PartitionLog) -> tuple[Loaded, list[DataFile]]:
    """The settled manifest, then the listing."""
    loaded = settled(log)
    known = {file.name: file for file in loaded.manifest.files}
    files = []
    for info in history.store.list(FOLDER):
        name = info.key.removeprefix(f"{FOLDER}/")
        same = name in known and known[name].etag == info.etag
        rows = 0 if same else len(rows_in(history.store.tail(info.key, 1000, etag=info.etag)))
        files.append(known[name] if same else DataFile(name, rows, info.size_bytes, etag=info.etag))
    return loaded, files


def reconcile(history: AdoptedHistory) -> None:
    """Takes over what the other writer did."""
    log = history.log()
    for _ in range(READS):
        try:
            loaded, files = list_after(history, log)
            if set(files) != set(loaded.manifest.files):
                log.reconcile(loaded, files)
        except (PreconditionFailed, ObjectNotFound):
            history.counts["conflicts"] += 1
            continue
        return


def compact(history: AdoptedHistory) -> None:
    """Rewrites some of the files, if they still are what the manifest says."""
    files = history.log().load().manifest.files
    if len(files) < 2:
        return
    inputs = history.rng.sample(files, history.rng.randrange(2, len(files) + 1))
    names = {file.name for file in inputs}
    rows: list[tuple[int, int]] = []
    checksums: dict[str, str] = {}
    try:
        for file in inputs:
            body = history.store.tail(f"{FOLDER}/{file.name}", 100_000, etag=file.etag)
            rows += rows_in(body)
            checksums[file.name] = checksum_of(body)
    except (ObjectNotFound, PreconditionFailed):
        return

    def plan(base: Manifest) -> Planned:
        check_inputs(names, base)
        now = {file.name: file.etag for file in base.files}
        if any(now[file.name] != file.etag for file in inputs):
            raise CommitConflict(FOLDER, "an input of the compaction is another by now")
        return Planned(remove=tuple(sorted(names)), checksums=checksums)

    change: Change = history.stage(rows, "compact", plan)
    history.commit(change)


def repair(history: AdoptedHistory) -> None:
    """Finishes or undoes what others began."""
    log = history.log()
    log.settle(log.load())


WORKERS: dict[Callable[[AdoptedHistory], None], float] = {reconcile: 4.0, compact: 4.0, sweep: 0.4, repair: 1.0}
