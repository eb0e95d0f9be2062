"""Whoever is talked to, and says a byte now and then without an end, is given up, as who says nothing is."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dlt
import pyarrow as pa
import pytest
import requests
import stamina
from botocore.exceptions import ReadTimeoutError

from datalake_assets import exchanges, network
from datalake_assets.defs.upkeep import sensors
from datalake_assets.errors import SourceError, SourceUnavailable
from datalake_assets.feed import parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.network import aws_session
from datalake_assets.notify import channels
from datalake_assets.notify.channels import EmailChannel, SnsChannel, WebhookChannel
from datalake_assets.notify.incidents import Message
from datalake_assets.sinks.opensearch import opensearch
from datalake_assets.sinks.opensearch.opensearch_model import OpenSearchSettings
from datalake_assets.sources import aws_clients
from datalake_assets.sources.aws_clients import AwsClients
from datalake_assets.sources.dlt import extraction
from datalake_assets.sources.dlt.dlt_declaration import DltSource
from datalake_assets.sources.kafka import schema_registry
from datalake_assets.sources.kafka.kafka_model import KafkaSettings
from datalake_assets.sources.sql.sqlalchemy_database import SqlAlchemyDatabase
from datalake_assets_tests.silent_server import HELD_S, Behaviour, dripping, server, silent

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-a: "
BODY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{"
HTTP = pytest.mark.parametrize("begin", [HEAD, BODY], ids=["a head that drips", "a body that drips"])
MESSAGE = Message("run s", "failure", "streams/s failed", "text", "")


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    with stamina.set_testing(True, attempts=1):
        yield


@contextmanager
def dripped(begin: bytes, behaviour: Behaviour | None = None) -> Iterator[int]:
    """The port of a server that drips; what is done with it has to be over long before it is."""
    with server(behaviour or dripping(begin)) as port:
        began = time.monotonic()
        yield port
        assert time.monotonic() - began < HELD_S / 2


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)


@HTTP
def test_webhook_that_drips_is_given_up(monkeypatch, begin):
    monkeypatch.setattr(channels, "_WHOLE_S", 0.4)
    with dripped(begin) as port, pytest.raises(SourceUnavailable, match=r"the webhook at 127.0.0.1"):
        WebhookChannel(f"http://127.0.0.1:{port}/").send(MESSAGE)


@pytest.mark.parametrize("begin", [b"220-", b"220 here\r\n250-"], ids=["greeting", "answer"])
def test_mail_server_that_drips_is_given_up(monkeypatch, begin):
    monkeypatch.setattr(channels, "_WHOLE_S", 0.4)
    with dripped(begin) as port, pytest.raises(SourceUnavailable, match=r"the mail server 127.0.0.1"):
        EmailChannel(f"smtp://127.0.0.1:{port}", ["a@example.com"], sender="b@example.com").send(MESSAGE)


@HTTP
def test_web_server_that_drips_is_given_up(monkeypatch, begin):
    monkeypatch.setattr(sensors, "_RELOAD_WHOLE_S", 0.4)
    with dripped(begin) as port:
        told = sensors.reload_location(f"http://127.0.0.1:{port}", "lake")
        assert told == f"no reload by the web server at 127.0.0.1:{port}: TimeoutError"


def bounded_answers(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    monkeypatch.setattr(module, "bound_answers", lambda events, *_: exchanges.bound_answers(events, 0.4))


@HTTP
@pytest.mark.usefixtures("aws")
def test_topic_of_sns_that_drips_is_given_up(monkeypatch, begin):
    bounded_answers(monkeypatch, network)
    with dripped(begin) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(SourceUnavailable, match="SNS topic lake: ReadTimeoutError"):
            SnsChannel("arn:aws:sns:eu-west-1:123456789012:lake").send(MESSAGE)


@HTTP
@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(("service", "ask"), [("kinesis", "list_streams"), ("sqs", "list_queues")])
def test_stream_or_queue_that_drips_is_given_up(monkeypatch, begin, service, ask):
    bounded_answers(monkeypatch, aws_clients)
    with dripped(begin) as port:
        client = AwsClients(service, "us-east-1", f"http://127.0.0.1:{port}").client()
        with pytest.raises(ReadTimeoutError, match=r"Read timeout on endpoint URL.*no whole answer within 0.4 s"):
            getattr(client, ask)()
        client.close()


@pytest.mark.usefixtures("aws")
def test_answers_that_end_in_time_are_given(monkeypatch):
    """What upstream promises of its events: that the second follows the first, whatever comes."""
    body = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: 2\r\n\r\n{}"
    session = aws_session()
    exchanges.bound_answers(session, 5)

    def answer(connection: socket.socket, _over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(body)

    with server(answer) as port:
        client = session.create_client("sqs", region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{port}")
        assert client.list_queues()["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert exchanges._own.exchange is None
        client.close()


@HTTP
def test_search_server_that_drips_is_given_up(tmp_path, begin):
    feed = parse_feed(
        b'{"name":"s","kind":"stream","source":{"type":"ksqldb","object":"S"},"sinks":[{"type":"opensearch"}]}'
    )
    with dripped(begin) as port:
        settings = OpenSearchSettings(
            opensearch_url=f"http://127.0.0.1:{port}", opensearch_timeout_s=0.1, opensearch_retry_s=0.1
        )
        store = opensearch.connect(open_store(str(tmp_path)), feed, feed.sinks[0], settings)
        with pytest.raises(SourceUnavailable, match="does not answer in time"):
            store.prepare(pa.schema([("id", pa.int64())]))
        store.close()


@HTTP
def test_schema_registry_that_drips_is_given_up(monkeypatch, begin):
    monkeypatch.setattr(schema_registry, "_WHOLE_S", 0.4)
    with dripped(begin) as port:
        settings = KafkaSettings(kafka_timeout_s=0.2, kafka_registry_url=f"http://127.0.0.1:{port}")
        with pytest.raises(SourceUnavailable, match=r"no whole answer within 0.4 s"):
            schema_registry.Registry(settings).versions("s-value", None)


@pytest.mark.parametrize("behaviour", [silent, dripping(b"\x40\x1f\x00\x00\x0a")], ids=["silent", "dripping"])
def test_mysql_without_a_whole_greeting_is_given_up(behaviour):
    with dripped(b"", behaviour) as port:
        database = SqlAlchemyDatabase("shop", url=f"mysql+pymysql://u@127.0.0.1:{port}/d", timeout_s=0.4)
        with pytest.raises(SourceUnavailable, match="shop"):
            list(database.tables())
        database.close()


@HTTP
def test_api_that_drips_is_given_up(monkeypatch, begin):
    monkeypatch.setattr(extraction, "ANSWER_S", 0.4)
    monkeypatch.setattr(exchanges._others, "whole_s", None)
    source = DltSource(type="dlt", factory=f"{__name__}:pages", arguments={"port": 0})
    with dripped(begin) as port, pytest.raises(SourceError):
        extraction.extracted(source.model_copy(update={"arguments": {"port": port}}), [__name__], {})


def pages(port: int) -> object:
    """A resource of an API."""

    @dlt.resource
    def rows() -> Iterator[object]:
        yield requests.get(f"http://127.0.0.1:{port}/", timeout=60).json()

    return rows
