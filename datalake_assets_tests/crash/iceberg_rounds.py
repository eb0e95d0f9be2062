"""Rounds of an Iceberg table whose writers and keepers are killed: no row lost or doubled, each snapshot readable."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pyarrow.fs as pafs
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.iceberg_upkeep import APPENDED, append, opened_catalog, upkeep
from datalake_assets_tests.lake.iceberg.iceberg_tables import (
    SCHEMA,
    UNPARTITIONED,
    data_paths,
    delete_rows,
    ids,
    rows,
)

__all__ = ["WAYS", "IcebergRounds"]

KILLED = -signal.SIGKILL
#: What is killed, and at which operations of it.
STEPS = {
    "append": ("write", "commit"),
    "compact": ("write", "commit"),
    "expire": ("delete", "commit"),
    "orphans": ("delete",),
}
WAYS = tuple(STEPS)
#: Rounds that one table lives through.
LIFE = 4


class IcebergRounds:
    """Kills appends of the write API, compactions, expiries and removals of orphans, one after another.

    Args:
        folder: Below it, catalogs with one table each are made.
        forker: Runs what is killed; it has `iceberg_upkeep` at hand.
        seed: Decides what is killed, and where.
        rest: Properties of a REST catalog that has the tables instead.
        ways: What is killed.

    Attributes:
        steps: What there is to be killed at.
        hits: Kills by operation.
        moments: Kills by moment.
        happened: Kills and completions by kind of work.
    """

    def __init__(
        self,
        folder: str,
        forker: Forker,
        *,
        endpoint: str | None = None,
        seed: int = 0,
        rest: Mapping[str, str] | None = None,
        ways: Sequence[str] = WAYS,
    ) -> None:
        self._folder, self._forker, self._rng = Path(folder), forker, random.Random(seed)
        self._rest, self._ways = rest, ways
        self._number = self._next = 0
        self._name = "n.t"
        self._rows: Counter[int] = Counter()
        self._seen: dict[int, list[int]] = {}
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.steps = tuple(dict.fromkeys(step for way in ways for step in STEPS[way]))

    def close(self) -> None:
        """Nothing is open."""

    def prepare(self) -> None:
        """Nothing need be learned beforehand."""

    def round(self) -> str:
        """One round; returns what it was."""
        place = self._folder / f"iceberg{self._number // LIFE}"
        place.mkdir(parents=True, exist_ok=True)
        what, moment = self._rng.choice(self._ways), self._rng.choice(("before", "after"))
        step, number = self._rng.choice(STEPS[what]), self._rng.choice((1, 1, 2, 3, 4))
        number = 1 if step == "commit" else number
        said = f"{what}, {moment} {step} {number}"
        with opened_catalog(str(place), self._rest) as catalog:
            if self._number % LIFE == 0:
                self._begin(catalog)
            table = catalog.load_table(self._name)
            self._fill(table)
            self._check(table, f"{said}, before")
            if what == "orphans":
                self._leave_orphans(place)
            first = self._next
            if what == "append":
                self._next += APPENDED
            self._kill(place, what, first, step=step, number=number, moment=moment)
            table.refresh()
            self._check_snapshots(table, said)
            if what == "append":
                self._append_again(table, first, said)
            else:
                self._check(table, said)
                upkeep(table, what)
            self._check(table, f"{said}, and once more")
            if what == "orphans":
                self._check_files(table)
        self._number += 1
        return said

    def _begin(self, catalog: Catalog) -> None:
        """A new table."""
        self._rows, self._seen = Counter(), {}
        catalog.create_namespace_if_not_exists("n")
        self._name = f"n.t{uuid4().hex}"
        catalog.create_table(self._name, SCHEMA, partition_spec=UNPARTITIONED)

    def _fill(self, table: Table) -> None:
        for _ in range(self._rng.randint(1, 3)):
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

    def _leave_orphans(self, place: Path) -> None:
        """A write and a compaction die before they commit, and nobody repeats them: their files are nobody's."""
        task = {"folder": str(place), "rest": self._rest, "name": self._name, "log": str(place / "log")}
        for what in ("append", "append", "compact"):
            point = {"step": "commit", "number": 1, "moment": "before"}
            if self._forker.run("keep_up", **task, **point, what=what, first=self._next) not in (KILLED, 0):
                raise CrashError(f"{what} failed, which was to leave files behind")
            self._next += APPENDED

    def _kill(self, place: Path, what: str, first: int, **point: str | int) -> None:
        log = place / "log"
        log.unlink(missing_ok=True)
        task = {"folder": str(place), "rest": self._rest, "name": self._name, "what": what, "first": first}
        code = self._forker.run("keep_up", **task, **point, log=str(log))
        if code == KILLED and log.exists():
            self.hits[log.read_text()] += 1
            self.moments[str(point["moment"])] += 1
            self.happened[f"{what} killed"] += 1
        elif code == 0:
            self.happened[f"{what} ended"] += 1
        else:
            raise CrashError(f"{what} ended with code {code}")

    def _append_again(self, table: Table, first: int, said: str) -> None:
        """All of a killed append is there or nothing; sent again under its key it is there once, whatever came between.

        A compaction may have merged its files, and an expiry may have taken its snapshot away.
        """
        new = Counter(range(first, first + APPENDED))
        found = Counter(ids(table))
        if found not in (self._rows, self._rows + new):
            raise CrashError(f"{said}: part of an append, {found - self._rows} of {new}")
        self.happened["append had been committed"] += found != self._rows
        for between in self._rng.sample(("compact", "expire"), self._rng.randint(0, 2)):
            upkeep(table, between)
        known = Counter(ids(table))
        if known != found:
            raise CrashError(f"{said}: what came between changed rows")
        append(table, first)
        table.refresh()
        self._rows += new

    def _check(self, table: Table, said: str) -> None:
        found = Counter(ids(table))
        if found != self._rows:
            raise CrashError(f"{said}: lost {self._rows - found}, doubled {found - self._rows}")

    def _check_snapshots(self, table: Table, said: str) -> None:
        for snapshot in table.snapshots():
            found = ids(table, snapshot.snapshot_id)
            if self._seen.setdefault(snapshot.snapshot_id, found) != found:
                raise CrashError(f"{said}: snapshot {snapshot.snapshot_id} reads as something else")

    def _check_files(self, table: Table) -> None:
        """After orphans are gone, only what is named is there; metadata files that left the log are orphans, too."""
        named = {table.metadata_location, *(each.metadata_file for each in table.metadata.metadata_log)}
        named |= {each.manifest_list for each in table.snapshots()}
        named |= set(table.inspect.all_manifests()["path"].to_pylist())
        named |= set(table.inspect.all_files()["file_path"].to_pylist())
        unnamed = _files(table) - named
        if unnamed:
            raise CrashError(f"nothing names {sorted(unnamed)}, and nobody has deleted it")


def _files(table: Table) -> set[str]:
    """All files below the table's location; a store may list folders as objects without a suffix."""
    scheme, _, path = table.location().partition("://")
    filesystem = table.io.fs_by_scheme(scheme, path.partition("/")[0] if scheme != "file" else "")  # type: ignore[attr-defined]
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    return {f"{scheme}://{each.path}" for each in found if each.type == pafs.FileType.File and "." in each.base_name}
