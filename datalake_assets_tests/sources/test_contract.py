"""The contract of sources, run by each source in each way in which it can be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest

from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.settings import load_settings
from datalake_assets.sources.base import SourceSystem
from datalake_assets.sources.systems import connect, registered
from datalake_assets.testing.sources import SourceContract
from datalake_assets_tests.sources.kafka.kafka_server import KafkaServer
from datalake_assets_tests.sources.kinesis.kinesis_server import KinesisServer, aggregated
from datalake_assets_tests.sources.sql.database_servers import MariaDb, Postgres
from datalake_assets_tests.sources.sqs.sqs_server import SqsServer, TestQueue
from datalake_assets_tests.sources.toy import TOY


class TestToy(SourceContract):
    @pytest.fixture
    def source(self) -> Iterator[SourceSystem]:
        with registered(TOY), connect("toy", load_settings()) as source:
            yield source

    @pytest.fixture
    def feed(self, source: SourceSystem) -> Feed:
        return Feed(name="ticks", kind=FeedKind.STREAM, source={"type": "toy", "clock": "tower"})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    with KsqlServer(GeneratorConfig(start=start, records=300, events_per_day=100)) as server:
        yield server.url


class _KsqlDB(SourceContract):
    document: ClassVar[dict[str, object]]
    kind = FeedKind.STREAM

    @pytest.fixture
    def source(self, url: str) -> Iterator[SourceSystem]:
        with connect("ksqldb", load_settings(ksqldb_url=url)) as source:
            yield source

    @pytest.fixture
    def feed(self) -> Feed:
        return Feed(name="s", kind=self.kind, source={"idle_s": 1, **self.document})  # type: ignore[arg-type]

    @pytest.fixture
    def missing(self) -> Feed:
        return Feed(name="s", kind=self.kind, source={**self.document, "object": "NOT_THERE"})  # type: ignore[arg-type]


class TestKsqlDBPushed(_KsqlDB):
    document: ClassVar[dict[str, object]] = {"object": "TRANSACTION_STREAM"}


class TestKsqlDBPulledOffsets(_KsqlDB):
    document: ClassVar[dict[str, object]] = {
        "object": "TRANSACTION_FLATTENED",
        "offset_columns": ("SRC_PART", "SRC_OFF"),
    }


class TestKsqlDBWindows(_KsqlDB):
    document: ClassVar[dict[str, object]] = {"object": "TRANSACTION_ALERTS", "mode": "pull"}


class TestKsqlDBTables(_KsqlDB):
    document: ClassVar[dict[str, object]] = {"object": "MERCHANT_SUMMARY"}
    kind = FeedKind.TABLE


class _Sqs(SourceContract):
    fifo: ClassVar[bool] = False

    @pytest.fixture
    def queue(self, sqs_server: SqsServer, monkeypatch: pytest.MonkeyPatch) -> TestQueue:
        for name, value in sqs_server.environment().items():
            monkeypatch.setenv(name, value)
        queue = sqs_server.queue(fifo=self.fifo)
        for number in range(3):
            more = {"groups": [f"g{number}"], "MessageDeduplicationId": str(number)} if self.fifo else {}
            queue.send([{"n": number}], **more)
        return queue

    @pytest.fixture
    def source(self, queue: TestQueue) -> Iterator[SourceSystem]:
        with connect("sqs", load_settings()) as source:
            yield source

    @pytest.fixture
    def feed(self, queue: TestQueue) -> Feed:
        document = {"type": "sqs", "queue": queue.name, "fields": {"n": "long"}, "idle_s": 1}
        return Feed(name="s", kind=FeedKind.STREAM, source=document)  # type: ignore[arg-type]

    @pytest.fixture
    def missing(self, feed: Feed) -> Feed:
        return Feed(name="s", kind=FeedKind.STREAM, source={"type": "sqs", "queue": "nothere"})  # type: ignore[arg-type]


@pytest.mark.xdist_group("sqs")
class TestSqs(_Sqs):
    pass


@pytest.mark.xdist_group("sqs")
class TestSqsFifo(_Sqs):
    fifo = True


@pytest.fixture(scope="module")
def topic(kafka_server: KafkaServer) -> str:
    topic = kafka_server.topic(2)
    topic.send([{"n": n} for n in range(5)], keys=["a"] * 5)
    topic.send([{"n": n} for n in range(3)], partition=1)
    return topic.name


@pytest.mark.xdist_group("kafka")
class TestKafka(SourceContract):
    @pytest.fixture
    def source(self, kafka_server: KafkaServer) -> Iterator[SourceSystem]:
        with connect("kafka", load_settings(kafka_servers=kafka_server.servers, kafka_timeout_s=10)) as source:
            yield source

    @pytest.fixture
    def feed(self, topic: str) -> Feed:
        document = {"type": "kafka", "topic": topic, "fields": {"n": "long"}}
        return Feed(name="s", kind=FeedKind.STREAM, source=document)  # type: ignore[arg-type]

    @pytest.fixture
    def missing(self) -> Feed:
        return Feed(name="s", kind=FeedKind.STREAM, source={"type": "kafka", "topic": "nothere"})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def kinesis_stream(kinesis_server: KinesisServer) -> str:
    stream = kinesis_server.stream(2)
    first, second = stream.open_shards()
    stream.send([{"n": n} for n in range(5)], shard=first)
    records = [("a", b'{"n": 6}'), ("b", b'{"n": 7}'), ("a", b'{"n": 8}')]
    stream.send([aggregated(records, hash_key=stream.hash_key(second))], shard=second)
    return stream.name


@pytest.mark.xdist_group("kinesis")
class TestKinesis(SourceContract):
    @pytest.fixture
    def source(self, kinesis_server: KinesisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceSystem]:
        for name, value in kinesis_server.environment().items():
            monkeypatch.setenv(name, value)
        with connect("kinesis", load_settings()) as source:
            yield source

    @pytest.fixture
    def feed(self, kinesis_stream: str) -> Feed:
        document = {"type": "kinesis", "stream": kinesis_stream, "fields": {"n": "long"}}
        return Feed(name="s", kind=FeedKind.STREAM, source=document)  # type: ignore[arg-type]

    @pytest.fixture
    def missing(self) -> Feed:
        return Feed(name="s", kind=FeedKind.STREAM, source={"type": "kinesis", "stream": "nothere"})  # type: ignore[arg-type]


class _Files(SourceContract):
    kind = FeedKind.STREAM

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "a.csv").write_text("id,name\n1,x\n2,y\n")
        (tmp_path / "b.json").write_text('{"id": 3, "name": "z"}\n')
        return tmp_path

    @pytest.fixture
    def source(self, folder: Path) -> Iterator[SourceSystem]:
        with connect("files", load_settings()) as source:
            yield source

    @pytest.fixture
    def feed(self, folder: Path) -> Feed:
        document = {"type": "files", "location": str(folder), "min_age_s": 0}
        return Feed(name="s", kind=self.kind, source=document)  # type: ignore[arg-type]

    @pytest.fixture
    def missing(self, folder: Path) -> Feed:
        document = {"type": "files", "location": str(folder / "not there")}
        return Feed(name="s", kind=self.kind, source=document)  # type: ignore[arg-type]


class TestFiles(_Files):
    pass


class TestFilesAsTable(_Files):
    kind = FeedKind.TABLE


class _Sql(SourceContract):
    """Three rows of a second each, the last of them some days ago; the second has no number."""

    document: ClassVar[dict[str, object]] = {"object": "orders"}
    more: ClassVar[dict[str, object]] = {}
    kind = FeedKind.STREAM

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def source(self, url: str) -> Iterator[SourceSystem]:
        with connect("sql", load_settings(sql_url=url)) as source:
            yield source

    @pytest.fixture
    def feed(self) -> Feed:
        return Feed(name="s", kind=self.kind, source={"type": "sql", **self.document}, **self.more)  # type: ignore[arg-type]

    @pytest.fixture
    def missing(self) -> Feed:
        document = {"type": "sql", **self.document, "object": "nowhere", "query": ""}
        return Feed(name="s", kind=self.kind, source=document, **self.more)  # type: ignore[arg-type]


ORDERS = """CREATE TABLE orders (id BIGINT PRIMARY KEY, at {moment} NOT NULL, amount DECIMAL(10, 2), note TEXT);
INSERT INTO orders VALUES (1, '2025-01-01 10:00:00', 1.10, 'a'), (2, '2025-01-01 10:00:01', NULL, 'b'),
(7, '2025-01-03 00:00:00', 3.30, NULL);"""


class _Sqlite(_Sql):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        connection = sqlite3.connect(tmp_path / "shop.db")
        connection.executescript(ORDERS.format(moment="TIMESTAMP"))
        connection.close()
        return f"sqlite:///{tmp_path / 'shop.db'}"


class TestSqliteByNumber(_Sqlite):
    document: ClassVar[dict[str, object]] = {"object": "orders", "cursor": "id"}
    more: ClassVar[dict[str, object]] = {"time_column": "at"}


class TestSqliteWindows(_Sqlite):
    document: ClassVar[dict[str, object]] = {"object": "orders"}
    more: ClassVar[dict[str, object]] = {"time_column": "at"}


class TestSqliteTables(_Sqlite):
    kind = FeedKind.TABLE


@pytest.fixture(scope="module")
def postgres_url(postgres: Postgres) -> str:
    database = postgres.database()
    postgres.run(database, ORDERS.format(moment="TIMESTAMPTZ"))
    return postgres.url(database)


@pytest.fixture(scope="module")
def mariadb_url(mariadb: MariaDb) -> str:
    database = mariadb.database()
    mariadb.run(database, ORDERS.format(moment="DATETIME"))
    return mariadb.url(database)


class _Postgres(_Sql):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url


@pytest.mark.xdist_group("databases")
class TestPostgresByTime(_Postgres):
    document: ClassVar[dict[str, object]] = {"object": "orders", "cursor": "at"}


@pytest.mark.xdist_group("databases")
class TestPostgresQueryByNumber(_Postgres):
    document: ClassVar[dict[str, object]] = {"query": "SELECT id, at, amount * 2 AS twice FROM orders;", "cursor": "id"}
    more: ClassVar[dict[str, object]] = {"time_column": "at"}

    @pytest.fixture
    def feed(self) -> Feed:
        document = {"type": "sql", **self.document, "columns": {"twice": "decimal(12, 2)"}}
        return Feed(name="s", kind=self.kind, source=document, time_column="at")  # type: ignore[arg-type]

    @pytest.fixture
    def missing(self) -> Feed:
        document = {"type": "sql", "query": "SELECT 1 AS id FROM nowhere", "cursor": "id"}
        return Feed(name="s", kind=self.kind, source=document, time_column="id")  # type: ignore[arg-type]


@pytest.mark.xdist_group("databases")
class TestPostgresTables(_Postgres):
    kind = FeedKind.TABLE


@pytest.mark.xdist_group("databases")
class TestMariaDbByTime(_Sql):
    document: ClassVar[dict[str, object]] = {"object": "orders", "cursor": "at", "lag": 0}

    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url


class _Dlt(SourceContract):
    kind = FeedKind.STREAM
    module = "datalake_assets_tests.sources.dlt.paged_resources"

    @pytest.fixture
    def source(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceSystem]:
        monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
        with connect("dlt", load_settings(dlt_modules=self.module)) as source:
            yield source

    def _feed(self, factory: str) -> Feed:
        document = {
            "type": "dlt",
            "factory": f"{self.module}:{factory}",
            "arguments": {"url": "same"},
            "columns": {"at": "timestamptz"},
        }
        more = {"time_column": "at"} if self.kind is FeedKind.STREAM else {}
        return Feed(name="s", kind=self.kind, source=document, **more)  # type: ignore[arg-type]

    @pytest.fixture
    def feed(self) -> Feed:
        return self._feed("counted")

    @pytest.fixture
    def missing(self) -> Feed:
        return self._feed("nothing")


class TestDlt(_Dlt):
    pass


class TestDltAsTable(_Dlt):
    kind = FeedKind.TABLE
