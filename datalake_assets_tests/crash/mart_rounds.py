"""Rounds of marts: inputs change while processes that make the marts are killed.

What stands in the end is read by pyarrow from the plain files, and compared with sums of the rows that were put in:
neither the product's SQL nor its reading takes part in it.
"""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.feed import Feed
from datalake_assets.feed_sources import AssetSource, MartSource
from datalake_assets.lake.frames import frame_batches
from datalake_assets.lake.marts.mart_reading import LakeSystem
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.killing import KILLED, die_at

__all__ = ["MartRounds", "make_marts"]

#: What changes the lake, and how many times making both marts does it.
OPERATIONS: dict[str, int] = {"stage": 4, "swap": 12, "publish": 4, "delete": 4}
DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")
WORKERS = 2
FEEDS = (
    Feed(name="orders", kind="stream", source=AssetSource(asset="orders"), start="2026-01-01"),
    Feed(
        name="sums",
        kind="stream",
        source=MartSource(query="SELECT item, sum(amount)::BIGINT AS total FROM orders GROUP BY ALL"),
        start="2026-01-01",
    ),
    Feed(
        name="items",
        kind="table",
        source=MartSource(query="SELECT item, sum(total)::BIGINT AS total FROM sums GROUP BY ALL"),
    ),
)


def make_marts(*, lake: str, name: str, number: int, moment: str) -> None:
    """Makes both marts by a process that dies at its ``number``-th operation ``name``; 0 for never."""
    if name:
        die_at(LocalStore, name, number=number, moment=moment)
    store = open_store(lake)
    for feed in FEEDS[1:]:
        table = open_table(store, feed)
        plan = table.plan()
        batches = LakeSystem(store).read(feed, plan.request)
        table.write(batches, partitions=plan.partitions, run_id=f"run {os.getpid()}")


class MartRounds:
    """Changes orders, kills and compares.

    Args:
        lakes: A folder.
        forker: Starts the processes.
        seed: Of what is drawn.
    """

    #: Those of which enough are killed in a full campaign.
    steps = tuple(OPERATIONS)

    def __init__(self, lakes: str, forker: Forker, *, seed: int = 0, endpoint: str | None = None) -> None:
        assert endpoint is None, "the campaign of marts works on a local lake"
        self._lake, self._forker, self._rng = f"{lakes}/marts", forker, random.Random(seed)
        self._orders: dict[str, list[tuple[int, int]]] = {day: [] for day in DAYS}
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()

    def prepare(self) -> None:
        """Makes the lake, with some orders."""
        Path(self._lake).mkdir()
        registry = FeedRegistry(open_store(self._lake))
        for feed in FEEDS:
            registry.add(feed)
        for day in DAYS:
            self._change(day)

    def round(self) -> str:
        """Orders of some days change, and two processes that make the marts are killed; then the rest is made."""
        for day in self._rng.sample(DAYS, self._rng.randint(1, 2)):
            self._change(day)
        points = [self._point() for _ in range(WORKERS)]
        children = [self._start(*point) for point in points]
        for child, (name, _, moment) in zip(children, points, strict=True):
            if self._forker.wait(child) == KILLED:
                self.hits[name] += 1
                self.moments[moment] += 1
        assert self._forker.wait(self._start("", 0, "")) == 0, "marts that nobody kills fail"
        self._compare()
        return f"{self.hits.total()} killed"

    def close(self) -> None:
        """Does nothing more: each round compared."""

    def _change(self, day: str) -> None:
        rows = [(self._rng.randrange(3), self._rng.randrange(100)) for _ in range(self._rng.randint(0, 6))]
        table = open_table(open_store(self._lake), FEEDS[0])
        frame = pa.table({"item": pa.array([a for a, _ in rows], pa.int64()), "amount": [b for _, b in rows]})
        frame = frame.cast(pa.schema([("item", pa.int64()), ("amount", pa.int64())]))
        table.write(frame_batches(frame, asset="orders"), partitions=[day], run_id="change")
        self._orders[day] = rows

    def _point(self) -> tuple[str, int, str]:
        name, most = self._rng.choice(list(OPERATIONS.items()))
        return name, self._rng.randint(1, most), self._rng.choice(("before", "after"))

    def _start(self, name: str, number: int, moment: str) -> int:
        return self._forker.start("make_marts", lake=self._lake, name=name, number=number, moment=moment)

    def _compare(self) -> None:
        by_day: dict[tuple[str, int], int] = defaultdict(int)
        by_item: dict[int, int] = defaultdict(int)
        for day, rows in self._orders.items():
            for item, amount in rows:
                by_day[f"day={day[-2:]}", item] += amount
                by_item[item] += amount
        folder = Path(self._lake, "marts")
        sums = [(file.parent.name, *row) for file in (folder / "sums").rglob("*.parquet") for row in _rows(file)]
        newest = max((folder / "items").iterdir(), key=lambda each: int(each.name.removeprefix("version=v")))
        items = [row for file in newest.rglob("*.parquet") for row in _rows(file)]
        if sorted(sums) != sorted((*key, total) for key, total in by_day.items()):
            raise CrashError(f"sums: {sorted(sums)}, not {sorted(by_day.items())}")
        if sorted(items) != sorted(by_item.items()):
            raise CrashError(f"items: {sorted(items)}, not {sorted(by_item.items())}")
        self.happened["compared"] += 1


def _rows(file: Path) -> list[tuple[int, int]]:
    read = pq.read_table(file, columns=["item", "total"], partitioning=None)
    return list(zip(*(column.to_pylist() for column in read.columns), strict=True))
