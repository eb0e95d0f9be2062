"""Rounds of a Kafka topic: exports are killed at drawn steps, two at once, while messages go on to be written.

Now and then one of the two follows the topic for a moment, as `datalake run` does.

Some messages are of transactions, some of which are aborted, and some cannot be decoded. A list says what was sent.
What stands in the end is read by pyarrow and by the json module from the plain files: no code of the product takes
part.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pyarrow.parquet as pq

from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.kafka.kafka import Kafka
from datalake_assets.sources.kafka.kafka_model import KafkaSettings
from datalake_assets_tests.crash.checks import CrashError, require_equal
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.followers import follow_for
from datalake_assets_tests.crash.killing import KILLED, die_at
from datalake_assets_tests.sources.kafka.kafka_server import KafkaServer

__all__ = ["TopicRounds", "export_topic"]

#: What changes the lake, and how many times an export of some partitions does it.
OPERATIONS = {"stage": 3, "create": 2, "swap": 8, "put": 1, "publish": 3, "delete": 2}
SELDOM = frozenset({"create", "put", "delete"})
PARTITIONS, WORKERS, SENT, POISON_EVERY = 3, 2, 60, 40
#: In every so many rounds, one of the two follows the topic for some seconds.
FOLLOW_EVERY, FOLLOW_S = 3, 2.0


def feed_of(topic: str) -> Feed:
    """A stream of a topic by the time of the message's own, over three months."""
    source = {"type": "kafka", "topic": topic, "fields": {"n": "long not null", "at": "timestamptz not null"}}
    document = {"name": "topic", "kind": "stream", "source": source, "time_column": "at", "partition_by": "month"}
    return parse_feed(json.dumps(document))


def export_topic(
    *, lake: str, servers: str, topic: str, name: str, number: int, moment: str, follow_s: float = 0.0
) -> None:
    """One export that dies before or after its ``number``-th operation ``name``; 0 for never.

    Args:
        follow_s: Follow the topic instead, so many seconds, as `datalake run` does.
    """
    if name:
        die_at(LocalStore, name, number=number, moment=moment)
    store, settings = open_store(lake), KafkaSettings(kafka_servers=servers)
    if follow_s:
        follow_for(follow_s, "topic", store, lambda: closing(Kafka(settings)))
        return
    table, kafka = open_table(store, feed_of(topic)), Kafka(settings)
    plan = table.plan()
    table.write(kafka.read(table.feed, plan.request), partitions=plan.partitions, run_id=f"export {os.getpid()}")


class TopicRounds:
    """Sends, kills and counts; the interface of the campaign's other rounds.

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
        server: KafkaServer | None = None,
        endpoint: str | None = None,
    ) -> None:
        assert endpoint is None, "the topic's campaign works on a local lake"
        self._lake, self._forker, self._rng = f"{lakes}/topic", forker, random.Random(seed)
        Path(self._lake).mkdir()
        self._own = ExitStack()
        self._server = server or self._own.enter_context(KafkaServer())
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self._good: Counter[int] = Counter()
        self._poison: Counter[str] = Counter()
        self._sent = self._rounds = 0

    def prepare(self) -> None:
        """Makes the topic."""
        self._topic = self._server.topic(PARTITIONS)
        FeedRegistry(open_store(self._lake)).add(feed_of(self._topic.name))

    def round(self) -> str:
        """Messages, then two exports at once, each with an operation to die at, then more messages."""
        self._send()
        follows, self._rounds = self._rounds % FOLLOW_EVERY == 0, self._rounds + 1
        self.happened["followers"] += follows
        children = [
            (self._start(*point, follow_s=FOLLOW_S if follows and not turn else 0.0), point[0], point[2])
            for turn, point in enumerate(self._points())
        ]
        self._send()
        for child, name, moment in children:
            code = self._forker.wait(child)
            if code == KILLED:
                self.hits[name] += 1
                self.moments[moment] += 1
            elif code:
                raise CrashError(f"an export failed with {code}")
        return f"{self.hits.total()} killed, {self._sent:,} messages sent"

    def _points(self) -> list[tuple[str, int, str]]:
        names = self._rng.choices(list(OPERATIONS), k=WORKERS)
        return [(name, self._rng.randint(1, OPERATIONS[name]), self._rng.choice(("before", "after"))) for name in names]

    def _start(self, name: str, number: int, moment: str, *, follow_s: float = 0.0) -> int:
        return self._forker.start(
            "export_topic",
            lake=self._lake,
            servers=self._server.servers,
            topic=self._topic.name,
            name=name,
            number=number,
            moment=moment,
            follow_s=follow_s,
        )

    def _send(self) -> None:
        """Some messages to each partition: plain ones, and those of a transaction that ends as it is drawn."""
        for partition in range(PARTITIONS):
            plain = [self._body() for _ in range(self._rng.randint(0, SENT))]
            self._topic.send(plain, partition=partition)
            self._count(plain)
        if self._rng.random() < 0.3:
            is_aborted = self._rng.random() < 0.5
            some = [self._body() for _ in range(5)]
            with self._topic.transaction() as producer:
                for each in some:
                    producer.produce(self._topic.name, each, partition=self._rng.randrange(PARTITIONS))
                producer.flush(30)
                (producer.abort_transaction if is_aborted else producer.commit_transaction)(30)
            self.happened["aborted" if is_aborted else "transactions"] += 1
            if not is_aborted:
                self._count(some)

    def _body(self) -> str:
        number, self._sent = self._sent, self._sent + 1
        if number % POISON_EVERY == 0:
            return f'{{"n": "{number}", "at": 0}}'
        return json.dumps({"n": number, "at": f"2026-{1 + number % 3:02}-{1 + number % 28:02}T00:00:00Z"})

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
            CrashError: A message is missing, or there twice.
        """
        try:
            assert self._forker.wait(self._start("", 0, "")) == 0
            self._compare()
        finally:
            self._own.close()

    def _compare(self) -> None:
        files = sorted(Path(self._lake, "streams", "topic").rglob("*.parquet"))
        landed: Counter[int] = Counter()
        for file in files:
            landed.update(pq.read_table(file, columns=["n"], partitioning=None)["n"].to_pylist())
        require_equal("messages in the lake", landed, self._good)
        lines = [
            json.loads(line)
            for file in Path(self._lake, "quarantine", "streams", "topic").rglob("*.jsonl")
            for line in file.read_text().splitlines()
        ]
        by_position = {each["position"]: json.loads(each["raw"])["value"] for each in lines}
        require_equal("messages in quarantine", Counter(by_position.values()), self._poison)
        self.happened |= Counter(landed=landed.total(), quarantined=len(by_position), files=len(files))
