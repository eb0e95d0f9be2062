"""Rounds of sinks: deliveries are killed at drawn steps, two at once, while rows are landed, merged and deleted.

A list says which rows there are to be. Rows of one feed carry their positions, those of the other do not, and some of
its rows are equal; a third one goes to indices that are followed by others when they are full. What sinks have in the
end is asked by plain HTTP, and the dead letters are read as files: no code of the product takes part.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets.sinks.delivery import deliver, forget_delivered
from datalake_assets.sinks.opensearch.opensearch import OpenSearchStore
from datalake_assets.sinks.opensearch.opensearch_model import OpenSearchSettings
from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.killing import KILLED, die_at
from datalake_assets_tests.sinks.search_server import SearchServer

__all__ = ["SinkRounds", "act"]

#: Where a delivery dies, and how many times one does it.
OPERATIONS = {"_bulk": 5, "swap": 4, "create": 2, "_removed": 1, "tidy": 1, "put": 1}
SELDOM = frozenset({"create", "_removed", "tidy", "put"})
WORKERS, ROWS, DAYS, UNFIT_EVERY = 2, 60, 3, 17
SCHEMA = pa.schema(
    [
        ("n", pa.int64()),
        ("price", pa.float64()),
        ("at", pa.timestamp("us", "UTC")),
        ("kafka_partition", pa.int32()),
        ("kafka_offset", pa.int64()),
    ]
)
#: Columns that the feed lands.
FEEDS = {"numbered": 5, "plain": 3, "rolled": 5}


def feed_of(name: str) -> Feed:
    """A stream by days, with a sink."""
    source: dict[str, Any] = {"type": "kafka", "topic": "t", "fields": {"n": "long"}, "positions": FEEDS[name] > 3}
    sink = {
        "type": "opensearch",
        "by": {"numbered": "partition", "plain": "feed", "rolled": "rollover"}[name],
        "rollover": {"max_docs": 2 * ROWS},
        "batch_rows": 20,
    }
    compaction = {"min_files": 2}
    document = {"name": name, "kind": "stream", "source": source, "time_column": "at", "sinks": [sink]}
    return parse_feed(json.dumps({**document, "compaction": compaction}))


def act(
    *, lake: str, url: str, feed: str, what: str, rows: list[list[Any]], name: str, number: int, moment: str
) -> None:
    """Lands, merges, deletes or delivers, or forgets; dies before or after its ``number``-th operation ``name``."""
    if name:
        owner = LocalStore if name in {"swap", "create", "put"} else OpenSearchStore
        die_at(owner, name, number=number, moment=moment)
    store, declared = open_store(lake), feed_of(feed)
    table = open_table(store, declared)
    if what == "land":
        plan = table.plan()
        batch = _batch(rows, FEEDS[feed])
        table.write(
            InMemoryBatches((batch,), "at", plan.request), partitions=plan.partitions, run_id=f"land {os.getpid()}"
        )
    elif what == "merge":
        for key in table.partitions():
            table.compact(key, CompactionRequest(force=True))
    elif what == "delete":
        for key in table.partitions():
            table.delete_rows(key, f"n % 100 = {rows[0][0]}")
    elif what == "resend":
        forget_delivered(store, declared, declared.sinks[0].label)
    else:
        settings = OpenSearchSettings(lake=lake, opensearch_url=url, opensearch_retry_s=120)
        failed = [each.error for each in deliver(store, declared, settings) if each.error]
        assert not failed, failed


def _batch(rows: list[list[Any]], columns: int) -> SourceBatch:
    numbers, prices, days, offsets = zip(*rows, strict=True)
    at = [datetime(2026, 11, 1 + day, tzinfo=UTC) for day in days]
    prices = [math.nan if each is None else each for each in prices]
    arrays = [pa.array(values, kind.type) for values, kind in zip((numbers, prices, at), SCHEMA, strict=False)]
    at_source = [pa.array([0] * len(rows), pa.int32()), pa.array(offsets, pa.int64())]
    schema = pa.schema(list(SCHEMA)[:columns])
    batch = pa.RecordBatch.from_arrays([*arrays, *at_source][:columns], schema=schema)
    return SourceBatch(batch, *at_source)


class SinkRounds:
    """Lands, delivers, kills and counts; the interface of the campaign's other rounds.

    Args:
        lakes: A folder.
        forker: Starts the processes.
        seed: Of what is drawn.
    """

    steps = tuple(name for name in OPERATIONS if name not in SELDOM)

    def __init__(self, lakes: str, forker: Forker, *, seed: int = 0, endpoint: str | None = None) -> None:
        assert endpoint is None, "the sinks' campaign works on a local lake"
        self._lake, self._forker, self._rng = f"{lakes}/sinks", forker, random.Random(seed)
        Path(self._lake).mkdir()
        self._servers = {"osmem": SearchServer("osmem").__enter__(), "noida": SearchServer("noida").__enter__()}
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self._rows: dict[str, list[list[Any]]] = {name: [] for name in FEEDS}
        self._next = dict.fromkeys(FEEDS, 0)

    def prepare(self) -> None:
        """Nothing."""

    def round(self) -> str:
        """Rows, then two deliveries at once, each with an operation to die at, while something else changes."""
        feed = self._rng.choice(list(FEEDS))
        self._land(feed)
        self._change(feed)
        children = []
        for _ in range(WORKERS):
            name, moment = self._rng.choice(list(OPERATIONS)), self._rng.choice(("before", "after"))
            number = self._rng.randint(1, OPERATIONS[name])
            children.append((self._start(feed, "deliver", name=name, number=number, moment=moment), name, moment))
        if self._rng.random() < 0.5:
            self._land(feed)
        if self._rng.random() < 0.4:
            self._run(feed, "merge", [])
            self.happened["merges"] += 1
        self._forget(feed)
        for child, name, moment in children:
            code = self._forker.wait(child)
            if code == KILLED:
                self.hits[name] += 1
                self.moments[moment] += 1
            elif code:
                raise CrashError(f"a delivery failed with {code}")
        return f"{self.hits.total()} killed, {sum(self._next.values()):,} rows landed"

    def _change(self, feed: str) -> None:
        if self._rng.random() < 0.4:
            self._run(feed, "merge", [])
            self.happened["merges"] += 1
        if self._rng.random() < 0.25:
            digit = self._rng.randrange(100)
            self._run(feed, "delete", [[digit]])
            before = len(self._rows[feed])
            self._rows[feed] = [row for row in self._rows[feed] if row[0] % 100 != digit]
            self.happened["deleted"] += before - len(self._rows[feed])
        self._forget(feed)

    def _forget(self, feed: str) -> None:
        if self._rng.random() < 0.15:
            self._run(feed, "resend", [])
            self.happened["sent anew"] += 1

    def _land(self, feed: str) -> None:
        rows = []
        for _ in range(self._rng.randint(1, ROWS)):
            offset, self._next[feed] = self._next[feed], self._next[feed] + 1
            number = offset if feed != "plain" else offset // 3  # equal rows, where nothing tells them apart
            price = None if number % UNFIT_EVERY == 0 else number / 4
            rows.append([number, price, number % DAYS, offset])
        self._run(feed, "land", rows)
        self._rows[feed] += rows

    def _run(self, feed: str, what: str, rows: list[list[Any]]) -> None:
        code = self._forker.wait(self._start(feed, what, rows))
        if code:
            raise CrashError(f"{what} failed with {code}")

    def _start(
        self, feed: str, what: str, rows: Sequence[list[Any]] = (), *, name: str = "", number: int = 0, moment: str = ""
    ) -> int:
        url = self._server(feed).url
        return self._forker.start(
            "act", lake=self._lake, url=url, feed=feed, what=what, rows=rows, name=name, number=number, moment=moment
        )

    def _server(self, feed: str) -> SearchServer:
        return self._servers["noida" if feed == "rolled" else "osmem"]

    def close(self) -> None:
        """Delivers the rest, and compares what sinks have with what was landed.

        Raises:
            CrashError: A row is missing, there twice, or there though it was deleted.
        """
        try:
            for feed in FEEDS:
                if self._rows[feed]:
                    self._run(feed, "deliver", [])
                    self._compare(feed)
        finally:
            for each in self._servers.values():
                each.__exit__()

    def _compare(self, feed: str) -> None:
        documents = self._server(feed).documents(feed)
        expected = Counter((row[0], row[1]) for row in self._rows[feed] if row[1] is not None)
        _require(f"{feed}: documents", Counter((each["n"], each["price"]) for each in documents), expected)
        ids = Counter(each["_id"] for each in documents)
        _require(f"{feed}: ids", ids, Counter(dict.fromkeys(ids, 1)))
        letters = Path(self._lake, "sinks", "streams", feed, "opensearch", "dead_letters").rglob("*.jsonl")
        lines = [json.loads(line) for file in letters for line in file.read_text().splitlines()]
        numbers = Counter(json.loads(raw)["n"] for raw in {each["position"]: each["raw"] for each in lines}.values())
        unfit = Counter(row[0] for row in self._rows[feed] if row[1] is None)
        if missing := unfit - numbers:  # of rows that were deleted since there may be letters, too
            raise CrashError(f"{feed}: no dead letter for {missing}")
        self.happened |= {f"{feed} documents": len(documents), f"{feed} indices": len({e["_index"] for e in documents})}


def _require(what: str, found: Counter[Any], expected: Counter[Any]) -> None:
    if found != expected:
        missing, more = list((expected - found).items())[:5], list((found - expected).items())[:5]
        raise CrashError(f"{what}: {found.total():,} for {expected.total():,}; missing {missing}, too many {more}")
