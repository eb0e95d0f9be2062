"""Rounds of a resource of dlt: exporters are killed at drawn steps while the API that they page through grows.

The API, a process's own thread, answers one request in three with 429. What it has is compared with what pyarrow reads
from the plain files: no code of the product takes part.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.item_ledger import ItemLedger
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.dlt.dlt_declaration import DltSettings
from datalake_assets.sources.dlt.dlt_source import connect
from datalake_assets.sources.dlt.extraction import Extraction
from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.killing import KILLED, die_at
from datalake_assets_tests.sources.dlt.paging_api import PagingApi

__all__ = ["DltRounds", "export_resource"]

MODULE = "datalake_assets_tests.sources.dlt.paged_resources"
#: What is killed, and how many times an export does it at the most.
OPERATIONS: dict[tuple[type, str], int] = {
    (LocalStore, "stage"): 3,
    (LocalStore, "create"): 2,
    (LocalStore, "swap"): 8,
    (LocalStore, "publish"): 3,
    (ItemLedger, "begin"): 1,
    (ItemLedger, "end"): 1,
    (Extraction, "add"): 200,
}
#: Rows that the API gets between two rounds, at the most, and exports that may give up.
GROWTH, MOST_FAILED = 200, 5


def feed_of(url: str) -> Feed:
    """A stream of the API over three months."""
    source = f'{{"type": "dlt", "factory": "{MODULE}:events", "arguments": {{"url": "{url}"}}'
    more = '"columns": {"at": "timestamptz"}}, "time_column": "at", "partition_by": "month"'
    return parse_feed(f'{{"name": "events", "kind": "stream", "source": {source}, {more}}}')


def export_resource(*, lake: str, url: str, name: str, number: int, moment: str) -> None:
    """One export by a process that dies before or after its ``number``-th operation ``name``; 0 for never."""
    os.environ.update(RUNTIME__REQUEST_BACKOFF_FACTOR="0", RUNTIME__DLTHUB_TELEMETRY="false")
    for owner, operation in OPERATIONS:
        if f"{owner.__name__}.{operation}" == name:
            die_at(owner, operation, number=number, moment=moment)
    source = connect(DltSettings(dlt_modules=MODULE))
    table = open_table(open_store(lake), feed_of(url))
    plan = table.plan()
    table.write(source.read(table.feed, plan.request), partitions=plan.partitions, run_id=f"exporter {os.getpid()}")


class DltRounds:
    """Lets the API grow, kills and counts; the interface of the campaign's other rounds.

    Args:
        lakes: A folder.
        forker: Starts the exporters.
        seed: Of what is drawn.
    """

    steps = tuple(f"{owner.__name__}.{name}" for owner, name in OPERATIONS)

    def __init__(self, lakes: str, forker: Forker, *, seed: int = 0, endpoint: str | None = None) -> None:
        assert endpoint is None, "the campaign of dlt works on a local lake"
        self._lake, self._forker, self._rng = f"{lakes}/dlt", forker, random.Random(seed)
        Path(self._lake).mkdir()
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self._api = PagingApi().__enter__()

    def prepare(self) -> None:
        """Nothing: the API is there."""

    def round(self) -> str:
        """An exporter, sometimes two at once, with an operation to die at."""
        self._api.grow(self._rng.randint(0, GROWTH))
        points = [self._point() for _ in range(1 + (self._rng.random() < 0.3))]
        children = [self._start(*point) for point in points]
        self._api.grow(self._rng.randint(0, GROWTH))
        for child, (name, _, moment) in zip(children, points, strict=True):
            code = self._forker.wait(child)
            if code == KILLED:
                self.hits[name] += 1
                self.moments[moment] += 1
            elif code:  # the API was busy too often, or two exporters came in each other's way
                self.happened["failed"] += 1
                assert self.happened["failed"] < MOST_FAILED, "exporters fail"
            else:
                self.happened["ended"] += 1
        return f"{self.hits.total()} killed, {len(self._api.rows):,} rows at the API"

    def _point(self) -> tuple[str, int, str]:
        (owner, name), most = self._rng.choice(list(OPERATIONS.items()))
        return f"{owner.__name__}.{name}", self._rng.randint(1, most), self._rng.choice(("before", "after"))

    def _start(self, name: str, number: int, moment: str) -> int:
        return self._forker.start(
            "export_resource", lake=self._lake, url=self._api.url, name=name, number=number, moment=moment
        )

    def close(self) -> None:
        """Lands the rest, and compares what stands with what the API has.

        Raises:
            CrashError: A row is missing, or there twice.
        """
        try:
            assert self._forker.wait(self._start("", 0, "")) == 0
            files = sorted(Path(self._lake, "streams", "events").rglob("*.parquet"))
            landed: Counter[Any] = Counter()
            for file in files:
                table = pq.read_table(file, columns=["id", "price"], partitioning=None)
                landed.update(zip(table["id"].to_pylist(), table["price"].to_pylist(), strict=True))
            sent = Counter((row["id"], row["price"]) for row in self._api.rows)
            if landed != sent:
                twice = [row for row, count in landed.items() if count > 1][:5]
                raise CrashError(
                    f"{landed.total():,} rows for {sent.total():,}; missing {list(sent - landed)[:5]}, {twice}"
                )
            self.happened |= Counter(landed=landed.total(), files=len(files), requests=self._api.requests)
        finally:
            self._api.__exit__()
