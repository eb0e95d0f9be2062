"""Requests, credentials, TLS, retries, and what failures mean, over real sockets."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import stamina
import trustme
from pydantic import SecretStr

from datalake_assets.errors import ConfigError, IncompleteResponse, SourceError, SourceRefused, SourceUnavailable
from datalake_assets.sources.ksqldb.client import KsqlClient, ServerVersion
from datalake_assets.sources.ksqldb.failures import failed_rows, retried, surfaced
from datalake_assets_tests.sources.ksqldb.scripted_server import Answer, always, document, error, info, scripted

MASKED = (
    "The server encountered an internal error when processing the query. "
    "Please consult the server logs for more information."
)
NO_HOST = "Error starting pull query: Unable to execute pull query. Partition 0 failed to find valid host"


pytestmark = pytest.mark.usefixtures("no_waits")


@pytest.fixture
def refused_port() -> Iterator[int]:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def ask(url: str, **arguments: object) -> dict[str, object]:
    client = KsqlClient(url, **arguments)
    try:
        return client.statement("LIST STREAMS;", source=client.source("S"))
    finally:
        client.close()


def test_statement_is_answered() -> None:
    with scripted(always(document([{"@type": "streams", "streams": []}]))) as server:
        assert ask(server.url) == {"@type": "streams", "streams": []}
    [request] = server.requests
    assert (request.method, request.path) == ("POST", "/ksql")
    assert request.body == {"ksql": "LIST STREAMS;", "streamsProperties": {}}


def test_url_prefix_is_kept() -> None:
    with scripted(always(document([{}]))) as server:
        ask(server.url + "/ksqldb/")
    assert server.paths() == ["/ksqldb/ksql"]


@pytest.mark.parametrize(
    ("answer", "attempts", "kind", "message"),
    [
        (error(42900, "Host is at rate limit for pull queries.", 429), 4, SourceUnavailable, "at rate limit"),
        (error(50302, "KSQL is not yet ready to serve requests.", 503), 4, SourceUnavailable, "not yet ready"),
        (Answer([b"<html>busy"], 503, "text/html"), 4, SourceUnavailable, "HTTP 503"),
        (error(50000, MASKED, 500), 4, SourceUnavailable, "internal error when processing the query"),
        (error(50000, "boom", 500), 1, SourceUnavailable, "the server failed: boom"),
        (error(40001, NO_HOST, 400), 4, SourceUnavailable, "failed to find valid host"),
        (error(40000, "Host is at bandwidth rate limit for pull queries.", 400), 4, SourceUnavailable, "bandwidth"),
        (error(40001, "line 1:1: Syntax\nError", 400), 1, SourceRefused, "line 1:1: Syntax Error"),
        (error(40100, "Unauthorized", 401), 1, SourceRefused, "wrong user or password"),
        (error(40300, "Forbidden", 403), 1, SourceRefused, "no access: Forbidden"),
        (Answer([b"Not Found"], 404, "text/plain"), 1, SourceRefused, "not a ksqlDB server: answered HTTP 404"),
        (Answer([b"<html>hello"], 200, "text/html"), 1, SourceRefused, "not a ksqlDB server"),
        (Answer([], 302), 1, SourceRefused, "not a ksqlDB server: answered HTTP 302"),
        (document({"hello": "world"}), 1, SourceRefused, "not a ksqlDB server"),
        (Answer([b'[{"'], cut=True), 4, SourceUnavailable, "the connection broke"),
    ],
)
def test_failed_answer_is_told_apart(answer: Answer, attempts: int, kind: type[SourceError], message: str) -> None:
    with scripted(always(answer)) as server, pytest.raises(kind, match=message) as raised:
        ask(server.url)
    assert len(server.requests) == attempts
    assert raised.value.source == f"{server.url} S"
    assert "\n" not in str(raised.value)


def test_wrong_password_names_the_settings() -> None:
    with scripted(always(error(40100, "Unauthorized", 401))) as server, pytest.raises(SourceRefused) as raised:
        ask(server.url, user="anna", password="secret-1")
    assert str(raised.value) == (
        f"{server.url} S: wrong user or password; set DATALAKE_KSQLDB_USER and DATALAKE_KSQLDB_PASSWORD"
    )


def test_retry_succeeds_when_the_server_recovers() -> None:
    answers = iter([error(50000, MASKED, 500), error(42900, "slow down", 429), document([{"ok": True}])])
    with scripted(lambda _: next(answers)) as server:
        assert ask(server.url) == {"ok": True}
    assert len(server.requests) == 3


def test_bandwidth_limit_is_retried_late(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = error(40000, "Host is at bandwidth rate limit for pull queries.", 400)
    waits: list[float] = []
    sleep, here = time.sleep, threading.current_thread()

    def waited(wait_s: float) -> None:
        waits.append(wait_s) if threading.current_thread() is here else sleep(wait_s)

    monkeypatch.setattr("time.sleep", waited)
    with scripted(always(answer)) as server, stamina.set_testing(False), pytest.raises(SourceUnavailable):
        ask(server.url)
    assert waits.count(10.0) > 1
    assert set(waits) == {10.0}


def test_unreachable_server_is_named(refused_port: int) -> None:
    with pytest.raises(SourceUnavailable) as raised:
        ask(f"http://127.0.0.1:{refused_port}")
    assert str(raised.value) == (
        f"http://127.0.0.1:{refused_port} S: connection refused; start the server, or correct DATALAKE_KSQLDB_URL"
    )


def test_unknown_host_is_named() -> None:
    with pytest.raises(SourceUnavailable, match="no such host; correct DATALAKE_KSQLDB_URL"):
        ask("http://no-such-host.invalid:8088")


def test_silent_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(SourceUnavailable, match="no answer in time"):
        ask(f"http://127.0.0.1:{mute.getsockname()[1]}", timeout_s=0.5)


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:8088", "ftp://host", "http://", "http://a:b c", 'http://u:pa"ss@', "//x"),
        *("http://a..b", "http://.:1", f"https://{'a' * 64}.example.com"),
    ],
)
def test_url_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the URL of a ksqlDB server"):
        KsqlClient(url)


def test_credentials_are_sent() -> None:
    with scripted(always(document([{}]))) as server:
        ask(server.url, user="anna", password=SecretStr("gehéim"))
    expected = httpx.BasicAuth("anna", "gehéim")._auth_header
    assert server.requests[0].headers["authorization"] == expected


def test_credentials_of_the_url_are_sent_and_arguments_win() -> None:
    with scripted(always(document([{}]))) as server:
        with_userinfo = server.url.replace("//", "//anna:p%40ss@")
        ask(with_userinfo)
        ask(with_userinfo, user="bert", password="other")
    sent = [request.headers["authorization"] for request in server.requests]
    assert sent == [httpx.BasicAuth("anna", "p@ss")._auth_header, httpx.BasicAuth("bert", "other")._auth_header]


def test_credentials_are_never_shown(refused_port: int) -> None:
    url = f"http://anna:hunter2@127.0.0.1:{refused_port}"
    client = KsqlClient(url, password="hunter2")
    with pytest.raises(SourceUnavailable) as raised:
        client.statement("LIST STREAMS;", source=client.source("S"))
    client.close()
    seen: list[object] = [raised.value, client, client.source(), client.url, vars(raised.value)]
    cause: BaseException | None = raised.value
    while cause is not None:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    assert "hunter2" not in "".join(f"{thing!s}{thing!r}" for thing in seen)
    with pytest.raises(ConfigError) as refused:
        KsqlClient("htp://anna:hunter2@host")
    assert "hunter2" not in str(refused.value)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def test_tls_with_the_authority_is_trusted(authority: trustme.CA, tls: ssl.SSLContext) -> None:
    with scripted(always(document([{}])), tls=tls) as server, authority.cert_pem.tempfile() as ca_file:
        assert ask(server.url, ca_file=ca_file) == {}


def test_tls_without_the_authority_is_refused(tls: ssl.SSLContext) -> None:
    with scripted(always(document([{}])), tls=tls) as server, pytest.raises(SourceUnavailable) as raised:
        ask(server.url)
    assert "its TLS certificate is not trusted" in str(raised.value)
    assert "DATALAKE_KSQLDB_CA_FILE" in str(raised.value)


def test_tls_to_a_plain_server_is_explained() -> None:
    with scripted(always(info())) as server, pytest.raises(SourceUnavailable, match="is it http, not https"):
        ask(server.url.replace("http:", "https:"))


@pytest.mark.parametrize("ca_file", ["/no/such/file.pem", __file__])
def test_ca_file_that_is_none_is_refused(ca_file: str) -> None:
    with pytest.raises(ConfigError, match="DATALAKE_KSQLDB_CA_FILE"):
        KsqlClient("https://localhost", ca_file=ca_file)


@pytest.mark.parametrize(
    ("version", "http1", "ends"),
    [
        ("0.21.0", False, False),
        ("0.23.1", False, False),
        ("0.24.0", True, False),
        ("0.25.1", True, True),
        ("0.29.0", True, True),
        ("7.1.5", False, False),
        ("7.2.0", True, True),
        ("v8.3.1", True, True),
        ("8.5.0-0", True, True),
        ("unknown", True, True),
    ],
)
def test_version_decides_how_to_talk(version: str, *, http1: bool, ends: bool) -> None:
    assert ServerVersion(version).streams_over_http1 is http1
    assert ServerVersion(version).ends_stream_pulls is ends


@pytest.mark.parametrize(
    ("version", "path", "body"),
    [
        ("0.29.0", "/query-stream", {"sql": "SELECT 1;", "properties": {"a": True}}),
        ("0.23.1", "/query", {"ksql": "SELECT 1;", "streamsProperties": {"a": True}}),
    ],
)
def test_query_asks_for_streamed_rows_where_the_server_has_them(version: str, path: str, body: object) -> None:
    with scripted(lambda request: info(version) if request.path == "/info" else Answer([b"[", b"]"])) as server:
        client = KsqlClient(server.url)
        for _ in range(2):
            with client.query("SELECT 1;", source="S", properties={"a": True}) as answer:
                assert b"".join(answer.chunks()) == b"[]"
        client.close()
    assert server.paths() == ["/info", path, path]
    assert server.requests[1].body == body
    assert server.requests[1].headers["accept"] == "application/vnd.ksql.v1+json"


def test_broken_answer_is_incomplete() -> None:
    with scripted(lambda request: info() if request.path == "/info" else Answer([b"[1,"], cut=True)) as server:
        client = KsqlClient(server.url)
        answer = client.query("SELECT 1;", source="S", properties={})
        with pytest.raises(IncompleteResponse, match="the connection broke"), surfaced():
            list(answer.chunks())
        client.close()


def test_close_query_ignores_failures(refused_port: int) -> None:
    client = KsqlClient(f"http://127.0.0.1:{refused_port}")
    client.close_query("q1")
    client.close()


@pytest.mark.parametrize(("message", "attempts"), [("java.lang.RuntimeException: boom", 1), (NO_HOST, 4), (MASKED, 4)])
def test_error_among_rows_is_incomplete(message: str, attempts: int) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        failed_rows("S", message)

    with pytest.raises(IncompleteResponse, match="the server gave up while sending rows"):
        retried(call)
    assert len(calls) == attempts
