"""Rounds of a Kinesis stream: exports are killed at drawn steps, two at once, while records go on to come.

Meanwhile shards are split and merged. Some records are packed into one, as the Kinesis Producer Library does, and some
cannot be decoded. A list says what was sent. What stands in the end is read by pyarrow and by the json module from the
plain files: no code of the product takes part.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pyarrow.parquet as pq

from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.kinesis.kinesis import Kinesis
from datalake_assets.sources.kinesis.kinesis_model import KinesisSettings
from datalake_assets.sources.kinesis.streams import Stream
from datalake_assets_tests.crash.checks import CrashError, require_equal
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.followers import follow_for
from datalake_assets_tests.crash.killing import KILLED, die_at
from datalake_assets_tests.sources.kinesis.kinesis_server import KinesisServer, aggregated

__all__ = ["ShardRounds", "export_stream"]

#: What changes the lake, and how many times an export of some partitions does it; and what is asked of the stream.
OPERATIONS = {"stage": 3, "create": 2, "swap": 8, "put": 1, "publish": 3, "delete": 2, "records": 6, "shards": 2}
ASKED = frozenset({"records", "shards"})
SELDOM = frozenset({"create", "put", "delete"})
SHARDS, WORKERS, SENT, POISON_EVERY = 4, 2, 40, 40
#: Every so many rounds a shard is split, or two are merged, while exports are under way.
RESHARD_EVERY = 4
#: In every so many rounds, one of the two follows the stream for some seconds.
FOLLOW_EVERY, FOLLOW_S = 3, 2.0


def feed_of(stream: str) -> Feed:
    """A stream by the time of the record's own, over three months."""
    fields = {"n": "long not null", "at": "timestamptz not null", "key": "string"}
    source = {"type": "kinesis", "stream": stream, "fields": fields}
    document = {"name": "shards", "kind": "stream", "source": source, "time_column": "at", "partition_by": "month"}
    return parse_feed(json.dumps(document))


def export_stream(
    *, lake: str, url: str, stream: str, name: str, number: int, moment: str, follow_s: float = 0.0
) -> None:
    """One export that dies before or after its ``number``-th operation ``name``; 0 for never.

    Args:
        follow_s: Follow the stream instead, so many seconds, as `datalake run` does.
    """
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    if name:
        die_at(Stream if name in ASKED else LocalStore, name, number=number, moment=moment)
    store, settings = open_store(lake), KinesisSettings(kinesis_endpoint=url, kinesis_region="us-east-1")
    if follow_s:
        follow_for(follow_s, "shards", store, lambda: closing(Kinesis(settings)))
        return
    table, kinesis = open_table(store, feed_of(stream)), Kinesis(settings)
    plan = table.plan()
    table.write(kinesis.read(table.feed, plan.request), partitions=plan.partitions, run_id=f"export {os.getpid()}")


class ShardRounds:
    """Sends, splits, merges, kills and counts; the interface of the campaign's other rounds.

    Args:
        lakes: A folder.
        forker: Starts the exports.
        seed: Of what is drawn.
        server: One that others use too; by default one of its own.
    """

    steps = tuple(name for name in OPERATIONS if name not in SELDOM)

    def __init__(
        self,
        lakes: str,
        forker: Forker,
        *,
        seed: int = 0,
        server: KinesisServer | None = None,
        endpoint: str | None = None,
    ) -> None:
        assert endpoint is None, "the stream's campaign works on a local lake"
        self._lake, self._forker, self._rng = f"{lakes}/shards", forker, random.Random(seed)
        Path(self._lake).mkdir()
        self._own = ExitStack()
        self._server = server or self._own.enter_context(KinesisServer())
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self._good: Counter[int] = Counter()
        self._poison: Counter[str] = Counter()
        self._rounds = self._sent = 0

    def prepare(self) -> None:
        """Makes the stream."""
        self._stream = self._server.stream(SHARDS)
        FeedRegistry(open_store(self._lake)).add(feed_of(self._stream.name))

    def round(self) -> str:
        """Two exports at once, each with an operation to die at, while records come, and now and then a reshard."""
        self._send()
        follows = self._rounds % FOLLOW_EVERY == 0
        points = self._points()
        children = [
            (self._start(*point, follow_s=FOLLOW_S if follows and not turn else 0.0), point[0], point[2])
            for turn, point in enumerate(points)
        ]
        self.happened["followers"] += follows
        producing = threading.Thread(target=self._send)
        producing.start()
        self._rounds += 1
        if self._rounds % RESHARD_EVERY == 0:
            self._reshard()
        producing.join()
        self._send()
        for child, name, moment in children:
            code = self._forker.wait(child)
            if code == KILLED:
                self.hits[name] += 1
                self.moments[moment] += 1
            elif code:
                raise CrashError(f"an export failed with {code}")
        return f"{self.hits.total()} killed, {self._sent:,} records sent, {len(self._stream.shards())} shards"

    def _points(self) -> list[tuple[str, int, str]]:
        names = self._rng.choices(list(OPERATIONS), k=WORKERS)
        return [(name, self._rng.randint(1, OPERATIONS[name]), self._rng.choice(("before", "after"))) for name in names]

    def _start(self, name: str, number: int, moment: str, *, follow_s: float = 0.0) -> int:
        return self._forker.start(
            "export_stream",
            lake=self._lake,
            url=self._server.url,
            stream=self._stream.name,
            name=name,
            number=number,
            moment=moment,
            follow_s=follow_s,
        )

    def _reshard(self) -> None:
        """A split and a merge in turn, so that there are about as many shards as before."""
        shards = self._stream.open_shards()
        at = random.Random(self._rounds).randrange(len(shards) - 1)  # `_send` draws meanwhile
        if len(shards) > SHARDS:
            self._stream.merge(shards[at], shards[at + 1])
            self.happened["merges"] += 1
        else:
            self._stream.split(shards[at])
            self.happened["splits"] += 1

    def _send(self) -> None:
        """Records of many keys, some of them packed into one."""
        bodies = [self._body() for _ in range(self._rng.randint(1, SENT))]
        self._stream.send(bodies, keys=[f"k{self._rng.randrange(1000)}" for _ in bodies])
        self._count(bodies)
        packed = [self._body() for _ in range(self._rng.randint(1, SENT))]
        to = str(self._rng.randrange(2**128))
        keyed = [(f"k{number}", body.encode()) for number, body in enumerate(packed)]
        self._stream.send([aggregated(keyed, hash_key=to)], hash_key=to)
        self._count(packed)
        self.happened["aggregates"] += 1

    def _body(self) -> str:
        number, self._sent = self._sent, self._sent + 1
        if number % POISON_EVERY == 0:
            return f'{{"n": "{number}", "at": 0}}'
        at = f"2026-{1 + number % 3:02}-{1 + number % 28:02}T00:00:00Z"
        return json.dumps({"n": number, "at": at, "key": "x"})

    def _count(self, bodies: list[str]) -> None:
        for each in bodies:
            number = json.loads(each)["n"]
            if isinstance(number, str):
                self._poison[each] += 1
            else:
                self._good[number] += 1

    def close(self) -> None:
        """Lands the rest, and compares what stands with what was sent.

        Raises:
            CrashError: A record is missing, or there twice.
        """
        try:
            assert self._forker.wait(self._start("", 0, "")) == 0
            self._compare()
        finally:
            self._own.close()

    def _compare(self) -> None:
        files = sorted(Path(self._lake, "streams", "shards").rglob("*.parquet"))
        landed: Counter[int] = Counter()
        places: Counter[tuple[str, str, int]] = Counter()
        columns = ["n", "kinesis_shard_id", "kinesis_sequence_number", "kinesis_sub_sequence_number"]
        for file in files:
            rows = pq.read_table(file, columns=columns, partitioning=None)
            landed.update(rows["n"].to_pylist())
            places.update(zip(*(rows[name].to_pylist() for name in columns[1:]), strict=True))
        require_equal("records in the lake", landed, self._good)
        require_equal("places in the stream", places, Counter(dict.fromkeys(places, 1)))
        lines = [
            json.loads(line)
            for file in Path(self._lake, "quarantine", "streams", "shards").rglob("*.jsonl")
            for line in file.read_text().splitlines()
        ]
        by_position = {each["position"]: json.loads(each["raw"])["data"] for each in lines}
        require_equal("records in quarantine", Counter(by_position.values()), self._poison)
        shards = len({shard for shard, _, _ in places})
        self.happened |= Counter(
            landed=landed.total(), quarantined=len(by_position), files=len(files), shards_with_records=shards
        )
