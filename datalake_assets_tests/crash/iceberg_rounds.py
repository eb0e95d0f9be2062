"""Rounds of upkeep of an Iceberg table that is killed: no row is lost or doubled, each snapshot is readable."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pyiceberg.table import Table

from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.iceberg_upkeep import upkeep
from datalake_assets_tests.lake.iceberg.iceberg_tables import (
    UNPARTITIONED,
    create,
    data_paths,
    delete_rows,
    files_on_disk,
    ids,
    rows,
    sqlite_catalog,
)

__all__ = ["IcebergRounds"]

KILLED = -signal.SIGKILL
WAYS = ("compact", "compact", "expire", "orphans")
#: Rounds that one table lives through.
LIFE = 8


class IcebergRounds:
    """Kills compactions, expiries and removals of orphans, one after another.

    Args:
        folder: Below it, catalogs with one table each are made.
        forker: Runs what is killed; it has `iceberg_upkeep` at hand.
        seed: Decides what is killed, and where.

    Attributes:
        steps: What there is to be killed at.
        hits: Kills by operation.
        moments: Kills by moment.
        happened: Kills and completions by kind of work.
    """

    steps = ("write", "delete", "commit")

    def __init__(self, folder: str, forker: Forker, *, endpoint: str | None = None, seed: int = 0) -> None:
        self._folder, self._forker, self._rng = Path(folder), forker, random.Random(seed)
        self._number = self._next = 0
        self._rows: Counter[int] = Counter()
        self._seen: dict[int, list[int]] = {}
        self._operations: dict[str, list[str]] = {}  # what the last undisturbed one had
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()

    def close(self) -> None:
        """Nothing is open."""

    def prepare(self) -> None:
        """Nothing need be learned beforehand: each round tells how many operations the next one has."""

    def round(self) -> str:
        """One round; returns what it was."""
        place = self._folder / f"iceberg{self._number // LIFE}"
        place.mkdir(parents=True, exist_ok=True)
        what, moment = self._rng.choice(WAYS), self._rng.choice(("before", "after"))
        number = self._drawn(self._operations.get(what, [*self.steps] * 3))
        said = f"{what}, {moment} operation {number}"
        with sqlite_catalog(place) as catalog:
            if self._number % LIFE == 0:
                self._rows, self._seen = Counter(), {}
                create(catalog, spec=UNPARTITIONED)
            table = catalog.load_table("n.t")
            self._fill(table)
            self._check(table, f"{said}, before")
            self._kill(place, what, moment, number)
            table.refresh()
            self._check(table, said)
            upkeep(table, what)
            self._check(table, f"{said}, and once more")
            if what == "orphans":
                self._check_files(table)
        self._number += 1
        return said

    def _drawn(self, operations: Sequence[str]) -> int:
        """One of them, as often of each kind."""
        step = self._rng.choice(sorted(set(operations)))
        return self._rng.choice([place for place, each in enumerate(operations, start=1) if each == step])

    def _fill(self, table: Table) -> None:
        for _ in range(self._rng.randint(2, 4)):
            table.append(rows(self._next, 3))
            self._rows.update(range(self._next, self._next + 3))
            self._next += 3
            self._seen[table.current_snapshot().snapshot_id] = ids(table)  # type: ignore[union-attr]
        if self._rng.random() < 0.5:
            delete_rows(table, positions=[(self._rng.choice(sorted(data_paths(table))), 0)])
            left = Counter(ids(table))
            if len(self._rows - left) > 1 or left - self._rows:
                raise CrashError("a delete took more than one row")
            self._rows = left
            self._seen[table.current_snapshot().snapshot_id] = ids(table)  # type: ignore[union-attr]

    def _kill(self, place: Path, what: str, moment: str, number: int) -> None:
        log = place / "log"
        log.unlink(missing_ok=True)
        code = self._forker.run("keep_up", folder=str(place), what=what, number=number, moment=moment, log=str(log))
        steps = log.read_text().split() if log.exists() else []
        if code == KILLED:
            self.hits[steps[-1]] += 1
            self.moments[moment] += 1
            self.happened[f"{what} killed"] += 1
        elif code == 0:
            self._operations[what] = steps or [*self.steps]
            self.happened[f"{what} ended"] += 1
        else:
            raise CrashError(f"{what} ended with code {code}")

    def _check(self, table: Table, said: str) -> None:
        found = Counter(ids(table))
        if found != self._rows:
            raise CrashError(f"{said}: lost {self._rows - found}, doubled {found - self._rows}")
        for snapshot in table.snapshots():
            known = self._seen.setdefault(snapshot.snapshot_id, ids(table))
            if ids(table, snapshot.snapshot_id) != known:
                raise CrashError(f"{said}: snapshot {snapshot.snapshot_id} reads as something else")

    def _check_files(self, table: Table) -> None:
        """After orphans are gone, only what is named is there; metadata files that left the log are orphans, too."""
        named = {table.metadata_location, *(each.metadata_file for each in table.metadata.metadata_log)}
        named |= {each.manifest_list for each in table.snapshots()}
        named |= set(table.inspect.all_manifests()["path"].to_pylist())
        named |= set(table.inspect.all_files()["file_path"].to_pylist())
        unnamed = {f"file://{path}" for path in files_on_disk(table)} - named
        if unnamed:
            raise CrashError(f"nothing names {sorted(unnamed)}, and nobody has deleted it")
