"""Rounds of a broker whose topics lie in S3: it is killed while a producer goes on and `datalake run` lands the topic.

Tansu is killed, with SIGKILL, and started again; now and then `datalake run` is, too. The producer is a plain one, so
that a message whose answer was lost is sent again and is in the topic twice. What is right is what an independent
consumer reads of the topic in the end: the lake has to have each of its offsets once, with the same message, and the
topic has to have every message that was acknowledged. Files are read by pyarrow: no code of the product takes part.

With an idempotent producer this broker loses messages that it acknowledged (nisshi-io/nisshi#742): with
``--idempotent`` they are counted, and the lake still has to have what the topic has.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.feed import parse_feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets_tests.crash.checks import CrashError, require_equal
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.sources.kafka.tansu import Tansu

__all__ = ["BrokerRounds"]

TOPIC, PARTITIONS = "events", 3
#: Messages a second, about, and how long the broker is left alone.
RATE, LONGEST_LIFE_S = 500, 2.0
#: In every so many rounds on average, who lands is killed, too.
LANDER_EVERY = 4
PATIENCE_S = 60.0


class _Sender:
    """Sends numbered messages until it is told to end; knows which were acknowledged, and at which offsets.

    Args:
        servers: Where to.
        is_idempotent: Whether the producer numbers its batches, so that none is taken twice.
    """

    def __init__(self, servers: str, *, is_idempotent: bool) -> None:
        configuration: dict[str, Any] = {
            "bootstrap.servers": servers,
            "acks": "all",
            "enable.idempotence": is_idempotent,
            "linger.ms": 10,
            "message.timeout.ms": int(PATIENCE_S * 1000),
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
        self._producer = Producer(configuration)
        self.acknowledged: dict[int, tuple[int, int]] = {}
        self.refused = self._sent = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(10 / RATE):
            for _ in range(10):
                self.send(self._sent % PARTITIONS)
            self._producer.poll(0)

    def send(self, partition: int) -> None:
        """Sends the next message."""
        number, self._sent = self._sent, self._sent + 1
        body = json.dumps({"n": number})
        self._producer.produce(TOPIC, body, partition=partition, on_delivery=lambda *told: self._note(number, *told))

    def _note(self, number: int, error: KafkaError | None, message: Any) -> None:
        if error is None:  # the broker tells no offset of what it says it had already
            offset = message.offset()
            self.acknowledged[number] = (message.partition(), -1 if offset is None else offset)
        else:
            self.refused += 1

    def ends(self) -> dict[int, int]:
        """By partition, one more than the highest offset that was acknowledged."""
        ends = dict.fromkeys(range(PARTITIONS), 0)
        for partition, offset in list(self.acknowledged.values()):
            ends[partition] = max(ends[partition], offset + 1)
        return ends

    def stop(self) -> None:
        """Ends, and waits for all answers. Last comes one message for each partition, a batch of its own.

        What the broker tells of a partition's end is right after such a batch, if none is of the same second.
        """
        self._ending.set()
        self._thread.join()
        assert self._producer.flush(PATIENCE_S) == 0
        time.sleep(1.5)
        for partition in range(PARTITIONS):
            self.send(partition)
            assert self._producer.flush(PATIENCE_S) == 0


class BrokerRounds:
    """Kills and counts; the interface of the campaign's other rounds.

    Args:
        lakes: A folder.
        forker: Is not used: what is killed are servers and commands.
        seed: Of what is drawn.
        kills: How often the broker is killed.
        is_idempotent: As of the sender.
    """

    steps = ("broker",)

    def __init__(
        self,
        lakes: str,
        forker: Forker | None,
        *,
        seed: int = 0,
        endpoint: str | None = None,
        kills: int = 10,
        is_idempotent: bool = False,
    ) -> None:
        assert endpoint is None, "the broker's campaign works on a local lake"
        self._lake, self._rng, self.rounds = Path(lakes) / "broker", random.Random(seed), kills
        self._lake.mkdir()
        self._is_idempotent = is_idempotent
        self._folder = tempfile.TemporaryDirectory(prefix="broker-")
        self._s3 = S3Server(Path(self._folder.name) / "s3", grace_s=1).__enter__()
        self._broker = Tansu(self._s3).__enter__()
        own = {name: value for name, value in os.environ.items() if not name.startswith(("DATALAKE_", "DAGSTER_"))}
        home = {"DATALAKE_LAKE": str(self._lake), "DAGSTER_HOME": f"{self._folder.name}/dagster"}
        self._environment = own | self._broker.environment() | home
        self._is_well = False
        self._lander: subprocess.Popen[bytes] | None = None
        self._log = Path(self._folder.name) / "commands.log"
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()

    def prepare(self) -> None:
        """Makes the topic and the feed; begins to send and to land."""
        self._broker.create(TOPIC, PARTITIONS)
        source = {"type": "kafka", "topic": TOPIC, "fields": {"n": "long not null"}}
        feed = {"name": TOPIC, "kind": "stream", "source": source, "batch": {"max_age": "PT0.5S"}}
        FeedRegistry(open_store(str(self._lake))).add(parse_feed(json.dumps(feed)))
        self._sender = _Sender(self._broker.servers, is_idempotent=self._is_idempotent)
        self._lander = self._command("run", TOPIC)
        ends = time.monotonic() + 2 * PATIENCE_S
        while not self._files():
            assert time.monotonic() < ends, self._log.read_text()
            time.sleep(0.2)
        self._is_well = True

    def _files(self) -> list[Path]:
        return sorted((self._lake / "streams" / TOPIC).rglob("*.parquet"))

    def _command(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "datalake_assets.cli", *arguments]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def _end_lander(self, by: signal.Signals) -> int:
        if self._lander is None:
            return 0
        self._lander.send_signal(by)
        return self._lander.wait(2 * PATIENCE_S)

    def _ended(self, command: subprocess.Popen[bytes]) -> None:
        """Waits for the end of a command, which has to be well."""
        if command.wait(2 * PATIENCE_S):
            raise CrashError(f"a command ended with {command.returncode}: {self._log.read_text()[-2000:]}")

    def round(self) -> str:
        """The broker works for a moment, dies, and comes back; who lands goes on, or dies too."""
        time.sleep(self._rng.uniform(0.2, LONGEST_LIFE_S))
        self._is_well = False
        self._broker.kill()
        self.hits["broker"] += 1
        if self._rng.randrange(LANDER_EVERY) == 0:
            self._end_lander(signal.SIGKILL)
            self.happened["who lands killed"] += 1
            self._lander = self._command("run", TOPIC)
        time.sleep(self._rng.uniform(0.0, 1.0))
        acknowledged = self._sender.ends()
        self._broker.start()
        self._look(acknowledged)
        self._is_well = True
        return f"{self.hits.total()} killed, {len(self._sender.acknowledged):,} messages acknowledged"

    def _look(self, acknowledged: dict[int, int]) -> None:
        """What the broker tells of ends, beside what it acknowledged; by a client of its own."""
        client = Consumer({"bootstrap.servers": self._broker.servers, "group.id": "look", "log_level": 0})
        try:
            for partition, end in acknowledged.items():
                told = client.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=PATIENCE_S)
                self.happened["ends listed"] += 1
                self.happened["ends listed below what was acknowledged"] += bool(told and told[1] < end)
        finally:
            client.close()

    def close(self) -> None:
        """Lands the rest, and compares what stands with the topic, and that with what was acknowledged.

        Raises:
            CrashError: A message is missing, or there twice.
        """
        try:
            if not self._is_well:  # something else was raised
                return
            self._sender.stop()
            if code := self._end_lander(signal.SIGTERM):
                raise CrashError(f"datalake run ended with {code}: {self._log.read_text()[-2000:]}")
            self._ended(self._command("export", "--stream", TOPIC))
            told = self._log.read_text()
            if any(alarm in told for alarm in ("created anew", "landed already", "expired")):
                raise CrashError(f"a false alarm: {told[-2000:]}")
            self._compare()
        finally:
            self._end_lander(signal.SIGKILL)
            self._broker.__exit__()
            self._s3.stop()
            self._folder.cleanup()

    def _compare(self) -> None:
        topic = self._read_topic()
        landed: Counter[tuple[int, int, int]] = Counter()
        columns = ["kafka_partition", "kafka_offset", "n"]
        files = self._files()
        for file in files:
            rows = pq.read_table(file, columns=columns, partitioning=None)
            landed.update(zip(*(rows[name].to_pylist() for name in columns), strict=True))
        require_equal("messages in the lake", landed, Counter(topic))
        numbers = Counter(number for _, _, number in topic)
        lost = [number for number in self._sender.acknowledged if number not in numbers]
        if lost and not self._is_idempotent:
            raise CrashError(f"the broker lost {len(lost):,} messages that it acknowledged: {lost[:5]}")
        self.happened |= Counter(
            {
                "acknowledged": len(self._sender.acknowledged),
                "not acknowledged": self._sender.refused,
                "acknowledged and lost by the broker": len(lost),
                "in the topic": len(topic),
                "of them sent again by the producer": numbers.total() - len(numbers),
                "landed": landed.total(),
                "files": len(files),
            }
        )

    def _read_topic(self) -> list[tuple[int, int, int]]:
        """All that a plain consumer reads of the topic: partition, offset and number."""
        ends = self._sender.ends()
        consumer = Consumer({"bootstrap.servers": self._broker.servers, "group.id": "all", "enable.auto.commit": False})
        found: list[tuple[int, int, int]] = []
        try:
            consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in ends])
            reached = dict.fromkeys(ends, 0)
            patience = time.monotonic() + PATIENCE_S
            while any(reached[each] < end for each, end in ends.items()):
                if time.monotonic() > patience:
                    raise CrashError(f"the topic cannot be read up to {ends}, only to {reached}")
                for message in consumer.consume(10_000, timeout=0.5):
                    if message.error() is None:
                        partition, offset = message.partition(), message.offset()
                        reached[partition] = max(reached[partition], offset + 1)
                        found.append((partition, offset, json.loads(message.value())["n"]))
        finally:
            consumer.close()
        return found
