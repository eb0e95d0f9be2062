"""Kafka of its own: noida-db, a pinned package, in a process of its own on loopback; and a small schema registry.

The broker keeps transactions, timestamps and deletions of records as Kafka does. It is run as a binary: the package's
own script is a parent whose end leaves the broker running.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from datalake_assets_tests.ports import free_port

_STARTED_WITHIN_S = 120.0


class Broker:
    """A broker, while the context is open; dies with this process, however that ends.

    Attributes:
        servers: Where it is.
        admin: A client for its topics.
    """

    def _start(self, port: int, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Runs it, and waits until it answers."""
        self.servers = f"127.0.0.1:{port}"
        # a shell that waits for its standard input kills it when this process is gone
        self._process = subprocess.Popen(
            ["sh", "-c", '"$@" & broker=$!; read _; kill -9 $broker', "sh", *command],  # noqa: S607
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        self.admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        deadline = time.monotonic() + _STARTED_WITHIN_S
        while True:
            try:
                self.admin.list_topics(timeout=1)
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def environment(self) -> dict[str, str]:
        """What a process needs that reads it."""
        return {"DATALAKE_KAFKA_SERVERS": self.servers, "DATALAKE_KAFKA_TIMEOUT_S": "60"}

    def kill(self) -> None:
        """SIGKILL, unless that was done; it is gone when this returns."""
        if self._process.returncode is None:
            self._process.communicate(b"\n")

    def __exit__(self, *_: object) -> None:
        self.kill()


class KafkaServer(Broker):
    """noida-db."""

    def __enter__(self) -> Self:
        spec = find_spec("noida_db")
        assert spec is not None
        assert spec.origin is not None
        binary, port = Path(spec.origin).with_name("noida-db"), free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="kafka-")
        command = [str(binary), "start", "--data-dir", self._folder.name, "--only", "kafka", "--kafka-port", str(port)]
        self._start(port, command)
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._folder.cleanup()

    def topic(self, partitions: int = 1, *, name: str = "") -> TestTopic:
        """A new topic, of a name that no other has, or of this one."""
        name = name or f"t{uuid.uuid4().hex[:12]}"
        # messages of a year ago would expire at once
        new = NewTopic(name, partitions, config={"retention.ms": "-1"})
        self.admin.create_topics([new])[name].result(60)
        deadline = time.monotonic() + _STARTED_WITHIN_S
        while len(self.admin.list_topics(name, timeout=60).topics[name].partitions) < partitions:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return TestTopic(self, name)


class TestTopic:
    """A topic, and what tests do with it."""

    __test__ = False

    def __init__(self, server: KafkaServer, name: str) -> None:
        self.server, self.name = server, name
        self._producer = Producer({"bootstrap.servers": server.servers, "linger.ms": 0, "log_level": 0})

    def send(
        self,
        values: Sequence[bytes | str | Mapping[str, Any] | None],
        *,
        keys: Sequence[bytes | str | None] = (),
        partition: int = 0,
        **more: Any,
    ) -> None:
        """Sends messages to one partition, in their order, and waits until the broker has them."""
        failed: list[Any] = []
        for number, value in enumerate(values):
            sent = json.dumps(value) if isinstance(value, Mapping) else value
            key = keys[number] if keys else None
            while True:
                try:
                    self._producer.produce(
                        self.name,
                        sent,
                        key,
                        partition=partition,
                        on_delivery=lambda error, _: failed.append(error) if error else None,
                        **more,
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
        assert self._producer.flush(30) == 0
        assert not failed

    @contextmanager
    def transaction(self) -> Iterator[Producer]:
        """A producer whose transaction is under way, and is committed at the end unless it was aborted."""
        producer = Producer(
            {
                "bootstrap.servers": self.server.servers,
                "transactional.id": f"x{uuid.uuid4().hex[:8]}",
                "linger.ms": 0,
                "log_level": 0,
            }
        )
        producer.init_transactions(10)
        producer.begin_transaction()
        yield producer

    def delete_before(self, offset: int, partition: int = 0) -> None:
        """Lets messages expire."""
        at = TopicPartition(self.name, partition, offset)
        self.server.admin.delete_records([at])[at].result(60)

    def grow(self, partitions: int) -> None:
        """Gives the topic more partitions, so many in all."""
        self.server.admin.create_partitions([NewPartitions(self.name, partitions)])[self.name].result(60)
        deadline = time.monotonic() + _STARTED_WITHIN_S
        while len(self.server.admin.list_topics(self.name, timeout=60).topics[self.name].partitions) < partitions:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self._producer = Producer({"bootstrap.servers": self.server.servers, "linger.ms": 0, "log_level": 0})

    def delete(self) -> None:
        """Deletes the topic."""
        self.server.admin.delete_topics([self.name])[self.name].result(60)


class RegistryServer:
    """What Confluent's schema registry answers to those who read, on loopback; tests register with it directly."""

    def __enter__(self) -> Self:
        self.subjects: dict[str, list[int]] = {}
        self.schemas: dict[int, dict[str, Any]] = {}
        self.requests: list[str] = []
        registry = self

        class _Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.requests.append(self.path)
                status, document = registry._answer(self.path)
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def register(
        self, subject: str, schema: Any, *, kind: str = "AVRO", references: Sequence[Mapping[str, Any]] = ()
    ) -> int:
        """Adds a version to a subject; gives the schema's id."""
        number = len(self.schemas) + 1
        text = schema if isinstance(schema, str) else json.dumps(schema)
        self.schemas[number] = {"schema": text, "schemaType": kind, "references": list(references)}
        self.subjects.setdefault(subject, []).append(number)
        return number

    def _answer(self, path: str) -> tuple[int, Any]:
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if parts[:2] == ["schemas", "ids"] and int(parts[2]) in self.schemas:
            return 200, self.schemas[int(parts[2])]
        versions = self.subjects.get(parts[1], []) if parts[0] == "subjects" else []
        if versions and len(parts) == 3:
            return 200, list(range(1, len(versions) + 1))
        if versions and len(parts) == 4:
            number = versions[int(parts[3]) - 1]
            return 200, {"subject": parts[1], "version": int(parts[3]), "id": number, **self.schemas[number]}
        return 404, {"error_code": 40401, "message": "not found"}
