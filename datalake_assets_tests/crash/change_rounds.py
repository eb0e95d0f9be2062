"""Rounds of what changes files that are there: deletions of rows, conversions, compactions of tables of others.

Each round does one piece of work in a process that kills itself, at a drawn change of the lake or, where the work is a
library's own, after a drawn time; then looks, does the work once more, and looks again. What is right is known by a
list of numbers; in the end pyarrow, pyiceberg or deltalake read it, each as somebody else would.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import deltalake
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io.pyarrow import PyArrowFileIO

from datalake_assets.core.batches import InMemoryBatches
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import ConfigError
from datalake_assets.lake.adopted.adoption import adopt_at
from datalake_assets.lake.conversion import convert, drop_former
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.merge_rounds import OPERATIONS, die_at
from datalake_assets_tests.lake.feeds import SCHEMA, numbered, stream_feed
from datalake_assets_tests.lake.hive_tables import export, folder_ids
from datalake_assets_tests.lake.iceberg.iceberg_feeds import ids_seen
from datalake_assets_tests.lake.iceberg.iceberg_tables import create, data_paths, delete_rows, rows, sqlite_catalog
from datalake_assets_tests.lake.iceberg.iceberg_tables import ids as ids_of

__all__ = ["CHANGES", "ChangeRounds", "change"]

CHANGES = ("delete", "convert", "adopted iceberg", "adopted delta")
KILLED = -signal.SIGKILL
FORMS = ("parquet", "iceberg")
FORCE = CompactionRequest(force=True)
#: Rounds that one lake lives through.
LIFE = 4
#: What changes a lake, its catalog, or a table of others.
ALL_OPERATIONS: tuple[tuple[type, str], ...] = (*OPERATIONS, (PyArrowFileIO, "new_output"), (PyArrowFileIO, "delete"))
#: Seconds that a compaction of a table of others takes, most of them within a library, or in no operation.
COMPACTION_S = {"adopted iceberg": 0.5, "adopted delta": 0.3}


def change(*, lake: str, what: str, given: str, number: int, moment: str, after_s: float, log: str) -> None:
    """Does one piece of work; dies before or after its ``number``-th operation (0: never), or after some seconds."""
    if after_s:
        threading.Thread(
            target=lambda: (time.sleep(after_s), os.kill(os.getpid(), signal.SIGKILL)), daemon=True
        ).start()
    die_at(number, moment, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), operations=ALL_OPERATIONS)
    WORK[what](open_store(lake), given)


def _die_after(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def _delete(store: Store, where: str) -> None:
    table = _table(store)
    for key in table.partitions():
        if table.deletion_plan(key, where).matching:
            table.delete_rows(key, where)


def _convert(store: Store, to: str) -> None:
    registry = FeedRegistry(store)
    feed = registry.get("s")
    if to == "drop":
        drop_former(store, feed, registry.convert)
    else:
        convert(store, feed, to, source_schema=lambda: SCHEMA, switch=registry.convert)


def _compact(store: Store, _: str) -> None:
    table = _table(store)
    for key in table.partitions():
        table.compact(key, FORCE)


WORK: dict[str, Callable[[Store, str], None]] = {
    "delete": _delete,
    "convert": _convert,
    "adopted iceberg": _compact,
    "adopted delta": _compact,
}


def _table(store: Store) -> LakeTable:
    return open_table(store, FeedRegistry(store).get("s"))


class ChangeRounds:
    """Kills deletions, conversions and compactions of adopted tables, in turn.

    Args:
        lakes: Below this folder, lakes are made.
        forker: Runs what is killed; it has `change` at hand.
        endpoint: None: all of it is on disk.
        seed: Decides what is killed, and where.
        ways: What is killed.

    Attributes:
        steps: What there is to be killed at.
        hits: Kills by operation.
        moments: Kills by moment.
        happened: Kills and completions by kind of work.
    """

    steps = ("create", "swap", "publish", "delete", "stage", "commit_table")

    def __init__(
        self,
        lakes: str,
        forker: Forker,
        *,
        endpoint: str | None = None,
        seed: int = 0,
        ways: Sequence[str] = CHANGES,
    ) -> None:
        if endpoint is not None:
            raise ValueError("these rounds are on disk alone")
        self._lakes, self._forker, self._rng, self._ways = Path(lakes), forker, random.Random(seed), ways
        self._number = self._logs = 0
        self._lived: dict[str, _Lake] = {}
        self._operations: dict[str, list[str]] = {}
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()

    def close(self) -> None:
        """Nothing is open."""

    def prepare(self) -> None:
        """Nothing need be learned beforehand."""

    def round(self) -> str:
        """One round; returns what it was."""
        way = self._ways[self._number % len(self._ways)]
        lake = self._lived.get(way)
        if lake is None or lake.rounds >= LIFE:
            folder = self._lakes / f"{way.replace(' ', '_')}{self._number}"
            lake = self._lived[way] = LAKES[way](folder, self._rng)
        self._number += 1
        lake.rounds += 1
        said = [way]
        try:
            given = lake.begin()
            for _ in range(self._rng.choice((1, 1, 2))):
                if not lake.is_done(given):
                    said.append(self._kill(lake, way, given))
                    lake.look(given, may_be_done=True)
            self._finish(lake, way, given)
            lake.look(given, may_be_done=False)
        except CrashError as error:
            raise CrashError(f"{', '.join(said)}, lake {lake.store.uri}: {error}") from error
        return ", ".join(said)

    def _kill(self, lake: _Lake, way: str, given: str) -> str:
        known = self._operations.get(f"{way} {given}" if way == "convert" else way) or ["swap"] * 4
        step = min(sorted(set(known)), key=lambda each: (self.hits[each], self._rng.random()))
        number = self._rng.choice([place for place, each in enumerate(known, start=1) if each == step])
        moment = self._rng.choice(("before", "after"))
        is_timed = way in COMPACTION_S and self._rng.random() < 0.7
        after_s = self._rng.uniform(0.01, COMPACTION_S[way]) if is_timed else 0.0
        code, names = self._run(lake, way, given, number=0 if after_s else number, moment=moment, after_s=after_s)
        if code == KILLED:
            last = "any time" if after_s else names[-1]
            self.hits[last] += 1
            self.moments["during" if after_s else moment] += 1
            self.happened[f"{way} killed"] += 1
            return f"killed {moment} {last}"
        if code:
            raise CrashError(f"it failed with {code}; its traceback is above")
        self.happened[f"{way} survived"] += 1
        return "survived"

    def _finish(self, lake: _Lake, way: str, given: str) -> None:
        """Does it once more, to its end."""
        if not lake.is_done(given) and self._run(lake, way, given)[0]:
            raise CrashError("done once more it failed; its traceback is above")

    def _run(
        self, lake: _Lake, way: str, given: str, *, number: int = 0, moment: str = "before", after_s: float = 0.0
    ) -> tuple[int, list[str]]:
        self._logs += 1
        log = self._lakes / f"log{self._logs}"
        arguments = {"lake": lake.store.uri, "what": way, "given": given, "number": number, "moment": moment}
        code = self._forker.run("change", **arguments, after_s=after_s, log=str(log))
        names = log.read_text().split() if log.exists() else []
        kind = f"{way} {given}" if way == "convert" else way
        if not code and len(names) > len(self._operations.get(kind, ())):
            self._operations[kind] = names
        return code, names


class _Lake:
    """A lake with one feed, and the numbers that its rows should have."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        (folder / "lake").mkdir(parents=True)
        self.folder, self.rng, self.rounds = folder, rng, 0
        self.store = open_store(str(folder / "lake"))
        self.ids: set[int] = set()
        self.next = 0

    def begin(self) -> str:
        """Lands something more; gives what is to be done."""
        raise NotImplementedError

    def look(self, given: str, *, may_be_done: bool) -> None:
        """Compares rows with the numbers.

        Raises:
            CrashError: A row is lost, or there twice.
        """
        raise NotImplementedError

    def is_done(self, given: str) -> bool:
        """Whether the lake says that the work was done, and refuses to do it again."""
        return False

    def compare(self, found: Sequence[int], wanted: set[int], who: str) -> None:
        """Raises `CrashError` unless each wanted number is there once."""
        counts = Counter(found)
        if counts != Counter(wanted):
            lost, more = Counter(wanted) - counts, counts - Counter(wanted)
            raise CrashError(f"{who}: lost {sorted(lost)[:9]}, doubled or too many {sorted(more)[:9]}")


class _Exported(_Lake):
    """A stream's lake."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        self.form = rng.choice(FORMS)
        FeedRegistry(self.store).add(stream_feed(format={"type": self.form}))

    def land(self) -> None:
        """Some exports, of rows of several days."""
        for _ in range(self.rng.randint(1, 3)):
            count = self.rng.randint(5, 40)
            batch = numbered(range(self.next, self.next + count))
            export(_table(self.store), InMemoryBatches((batch,), "rowtime"))  # type: ignore[arg-type]  # of any format
            self.ids |= set(range(self.next, self.next + count))
            self.next += count

    def seen(self) -> list[int]:
        """The rows, as the feed's readers get them."""
        return [int(each) for each in _table(self.store).scan().read_all()["id"].to_pylist()]

    def seen_by_others(self) -> list[int]:
        """The rows, as pyarrow or pyiceberg gets them that knows nothing of manifests."""
        feed = FeedRegistry(self.store).get("s")
        if feed.format.type == "iceberg":
            return ids_seen(self.store)
        return folder_ids(self.store, feed.data_path)

    def verify(self) -> None:
        """Raises `CrashError` where the lake is not as its manifests say, once everything is done."""
        table = _table(self.store)
        table.repair()
        if found := list(table.verify(deep=True)):
            raise CrashError(f"verify finds {found[:3]}")


class _Deleted(_Exported):
    def begin(self) -> str:
        self.land()
        divisor = self.rng.randint(2, 9)
        return f"id % {divisor} = {self.rng.randrange(divisor)}"

    def look(self, given: str, *, may_be_done: bool) -> None:
        divisor, rest = int(given.split()[2]), int(given.split()[4])
        gone = {each for each in self.ids if each % divisor == rest}
        found = self.seen()
        if may_be_done:  # each partition is as before, or as it should be
            by_day: dict[int, set[int]] = {}
            for each in self.ids:
                by_day.setdefault(each // 24, set()).add(each)
            wanted = {
                each
                for numbers in by_day.values()
                for each in (numbers if gone & numbers & set(found) else numbers - gone)
            }
            self.compare(found, wanted, "a reader")
            return
        self.ids -= gone
        self.compare(found, self.ids, "a reader")
        self.verify()
        self.compare(self.seen_by_others(), self.ids, "another's reader")
        landed = InMemoryBatches((numbered(range(self.next)),), "rowtime")
        if export(_table(self.store), landed).rows_added:  # type: ignore[arg-type]  # of any format
            raise CrashError("an export landed deleted rows again")


class _Converted(_Exported):
    def begin(self) -> str:
        feed = FeedRegistry(self.store).get("s")
        if feed.format.former is not None:
            return "drop"
        self.land()
        return next(form for form in FORMS if form != feed.format.type)

    def is_done(self, given: str) -> bool:
        feed = FeedRegistry(self.store).get("s")
        return feed.format.former is None if given == "drop" else feed.format.type == given

    def look(self, given: str, *, may_be_done: bool) -> None:
        self.compare(self.seen(), self.ids, "a reader")
        if may_be_done:
            self._write_beside()
            return
        if not self.is_done(given):
            raise CrashError(f"the feed is not converted: {given}")
        self.verify()
        self.compare(self.seen_by_others(), self.ids, "another's reader")

    def _write_beside(self) -> None:
        """An export is refused, or lands its rows once."""
        batch = numbered(range(self.next + 2))
        try:
            added = export(_table(self.store), InMemoryBatches((batch,), "rowtime")).rows_added  # type: ignore[arg-type]  # of any format
        except ConfigError:
            return
        if added != 2:
            raise CrashError(f"an export of two new rows landed {added}")
        self.ids |= {self.next, self.next + 1}
        self.next += 2


class _AdoptedIceberg(_Lake):
    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        with sqlite_catalog(folder) as catalog:
            create(catalog)
            self._append(catalog)
        adopt_at(self.store, "iceberg:n.t", "s", time_column="ts", catalog=f"sqlite:///{folder}/catalog.db")

    def _append(self, catalog: SqlCatalog) -> None:
        table = catalog.load_table("n.t")
        for _ in range(self.rng.randint(2, 4)):
            table.append(rows(self.next, 6))
            self.ids |= set(range(self.next, self.next + 6))
            self.next += 6
        if self.rng.random() < 0.5:
            path = self.rng.choice(sorted(data_paths(table)))
            file = next(task.file for task in table.scan().plan_files() if task.file.file_path == path)
            delete_rows(table, positions=[(path, 0)], partition=file)
            self.ids &= set(ids_of(table))

    def begin(self) -> str:
        with sqlite_catalog(self.folder) as catalog:
            self._append(catalog)
        return ""

    def look(self, given: str, *, may_be_done: bool) -> None:
        with sqlite_catalog(self.folder) as catalog:
            table = catalog.load_table("n.t")
            self.compare(ids_of(table), self.ids, "pyiceberg")
            if may_be_done:
                return
            files = Counter(str(task.file.partition) for task in table.scan().plan_files())
            if any(count > 1 for count in files.values()):
                raise CrashError(f"partitions have {sorted(files.values())} files")
        ours = _table(self.store)
        self.compare([int(each) for each in ours.scan().read_all()["id"].to_pylist()], self.ids, "a reader")
        if found := list(ours.verify(deep=True)):
            raise CrashError(f"verify finds {found[:3]}")


class _AdoptedDelta(_Lake):
    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        self._place = str(folder / "theirs")
        self._append()
        adopt_at(self.store, self._place, "s", time_column="ts")

    def _append(self) -> None:
        for _ in range(self.rng.randint(2, 4)):
            numbers = list(range(self.next, self.next + 6))
            times = [datetime(2026, 1, 1 + number % 2, tzinfo=UTC) + timedelta(seconds=number) for number in numbers]
            columns = {"id": numbers, "ts": pa.array(times, pa.timestamp("us", "UTC")), "day": [n % 2 for n in numbers]}
            deltalake.write_deltalake(self._place, pa.table(columns), partition_by=["day"], mode="append")
            self.ids |= set(numbers)
            self.next += 6

    def begin(self) -> str:
        self._append()
        return ""

    def look(self, given: str, *, may_be_done: bool) -> None:
        theirs = deltalake.DeltaTable(self._place)
        self.compare(theirs.to_pyarrow_table()["id"].to_pylist(), self.ids, "deltalake")
        if may_be_done:
            return
        if len(theirs.file_uris()) > 2:
            raise CrashError(f"two partitions have {len(theirs.file_uris())} files")
        ours = _table(self.store)
        self.compare([int(each) for each in ours.scan().read_all()["id"].to_pylist()], self.ids, "a reader")


LAKES: dict[str, type[_Lake]] = {
    "delete": _Deleted,
    "convert": _Converted,
    "adopted iceberg": _AdoptedIceberg,
    "adopted delta": _AdoptedDelta,
}
