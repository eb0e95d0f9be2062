"""The server's front: every way to speak HTTP to it, and clients that leave."""

# ruff: noqa: S608 - statements are what is tested

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events
import httpx
import ksqldb
import pytest
import trustme

from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer

V1_JSON = "application/vnd.ksql.v1+json"
PUSH = b'{"sql":"SELECT ROWOFFSET FROM USER_EVENTS EMIT CHANGES;","properties":{"auto.offset.reset":"earliest"}}'


@pytest.fixture(scope="module")
def server() -> Iterator[KsqlServer]:
    with KsqlServer(GeneratorConfig(records=20_000, events_per_day=2_000)) as running:
        yield running


@pytest.fixture
def raw(server: KsqlServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


@pytest.fixture
def collected() -> Iterator[None]:
    """Frees what the public client leaks (it never closes its connections) before another test is blamed for it."""
    yield
    gc.collect()


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_public_client_reads_over_prior_knowledge(server: KsqlServer) -> None:
    client = ksqldb.KSQLdbClient(server.url)
    header, *rows = client.query_sync("SELECT TRANSACTION_ID, AMOUNT FROM TRANSACTION_STREAM LIMIT 500;")
    assert header["columnNames"] == ["TRANSACTION_ID", "AMOUNT"]
    assert len(rows) == 500
    assert rows[0] == ["tx-000000000000", 297.11]
    assert client.ksql("LIST STREAMS;")[0]["@type"] == "streams"
    assert client.get_properties()[0]["name"] == "ksql.service.id"
    assert client.close_query("nobody's") is False


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_public_client_pushes_until_it_closes_the_query(server: KsqlServer) -> None:
    client = ksqldb.KSQLdbClient(server.url)

    async def read() -> list[object]:
        lines: list[object] = []
        properties = {"auto.offset.reset": "earliest"}
        sql = "SELECT ROWOFFSET FROM TRANSACTION_ALERTS EMIT CHANGES;"
        async for line in client.query_async(sql, stream_properties=properties):
            lines.append(line)
            if len(lines) == 1:
                assert await asyncio.to_thread(client.close_query, line["queryId"])
        return lines

    # the rows that were on their way still arrive, then the answer ends cleanly
    assert len(asyncio.run(read())) <= 20_001


def test_reason_phrase_is_sent_and_absolute_target_is_understood(server: KsqlServer, raw: socket.socket) -> None:
    target = f"http://127.0.0.1:{server.port}/info"
    raw.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = until_closed(raw)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"KsqlServerInfo"' in answer


def test_requests_on_one_connection_are_answered_in_turn_when_sent_at_once(raw: socket.socket) -> None:
    one = b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n"
    raw.sendall(one + one + b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = until_closed(raw)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert b"HTTP/1.1 404 Not Found\r\n" in answer


def test_preface_may_arrive_byte_by_byte(raw: socket.socket) -> None:
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"POST /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n":
        raw.sendall(bytes([byte]))
    assert until_closed(raw).startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_nonsense_is_a_bad_request(raw: socket.socket) -> None:
    raw.sendall(b"nonsense\r\n\r\n")
    assert until_closed(raw).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_old_http_is_refused_for_queries(raw: socket.socket) -> None:
    raw.sendall(b"POST /query-stream HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(PUSH) + PUSH)
    answer = until_closed(raw)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"This endpoint is only available when using HTTP1.1 or HTTP2" in answer


def test_inserts_need_http2(server: KsqlServer) -> None:
    answer = httpx.post(f"{server.url}/inserts-stream", content=b'{"target":"S"}\n')
    assert (answer.status_code, answer.json()["error_code"]) == (400, 40004)


def test_continue_is_sent_to_clients_that_wait_for_it(raw: socket.socket) -> None:
    body = b'{"ksql":"LIST STREAMS;"}'
    head = b"POST /ksql HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    raw.sendall(head % len(body))
    assert raw.recv(65_536).startswith(b"HTTP/1.1 100")
    raw.sendall(body)
    assert until_closed(raw).startswith(b"HTTP/1.1 200 OK\r\n")


def test_query_is_upgraded_to_http2(raw: socket.socket) -> None:
    body = b'{"sql":"SELECT * FROM USER_EVENTS LIMIT 4000;"}'
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    settings = client.initiate_upgrade_connection()
    assert settings is not None
    head = (
        b"POST /query-stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"Accept: application/vnd.ksql.v1+json\r\nHTTP2-Settings: %s\r\nContent-Length: %d\r\n\r\n"
    )
    raw.sendall(head % (settings, len(body)) + body + client.data_to_send())
    received = raw.recv(65_536)
    assert received.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    while b"\r\n\r\n" not in received:
        received += raw.recv(65_536)
    data, status = received.partition(b"\r\n\r\n")[2], b""
    answer, ended = bytearray(), False
    while not ended:
        for event in client.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                status = dict(event.headers)[b":status"]
            elif isinstance(event, h2.events.DataReceived):
                answer += event.data or b""
                client.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                ended = True
        raw.sendall(client.data_to_send())
        data = b"" if ended else raw.recv(65_536)
    assert status == b"200"
    assert answer.count(b'{"row":') == 4_000
    assert answer.endswith(b'{"finalMessage":"Limit Reached"}]')


def test_queries_share_one_http2_connection(server: KsqlServer) -> None:
    async def read() -> list[bytes]:
        async with httpx.AsyncClient(base_url=server.url, http1=False, http2=True, timeout=60) as client:
            sqls = [f"SELECT * FROM TRANSACTION_FLATTENED LIMIT {rows};" for rows in (1, 5_000, 20_000)]
            asked = [client.post("/query-stream", json={"sql": sql}, headers={"accept": V1_JSON}) for sql in sqls]
            return [answer.content for answer in await asyncio.gather(*asked)]

    assert [body.count(b'{"row":') for body in asyncio.run(read())] == [1, 5_000, 20_000]


@pytest.mark.parametrize("http2", [False, True])
def test_server_makes_no_more_than_its_client_takes(http2: bool) -> None:  # noqa: FBT001 - a parameter
    sql = "SELECT * FROM TRANSACTION_STREAM;"
    with (
        KsqlServer(GeneratorConfig(records=120_000, events_per_day=9_000)) as server,
        httpx.Client(base_url=server.url, http1=not http2, http2=http2, timeout=60) as client,
        client.stream("POST", "/query-stream", json={"sql": sql}, headers={"accept": V1_JSON}) as answer,
    ):
        parts = answer.iter_bytes()
        rows = next(parts).count(b"\n")
        with httpx.Client(base_url=server.url) as other:
            # between blocks others are served, so after so many requests an unhindered query would be over
            for _ in range(60):
                assert other.get("/healthcheck").status_code == 200
        (sender,) = server._app._running.values()
        assert sender._sent < 100_000
        assert rows + sum(part.count(b"\n") for part in parts) == 120_001


@pytest.mark.parametrize("http2", [False, True])
def test_query_ends_when_its_client_leaves(server: KsqlServer, http2: bool) -> None:  # noqa: FBT001 - a parameter
    for _ in range(3):
        with (
            httpx.Client(base_url=server.url, http1=not http2, http2=http2) as client,
            client.stream("POST", "/query-stream", content=PUSH, headers={"accept": V1_JSON}) as answer,
        ):
            query_id = next(answer.iter_bytes()).split(b'"')[5].decode()
        # it is gone, at the latest, once the server has noticed: it then has no query of this id
        refused = False
        while not refused:
            refused = httpx.post(f"{server.url}/close-query", json={"queryId": query_id}).status_code == 400
    assert httpx.get(f"{server.url}/healthcheck").status_code == 200


def test_hundred_push_queries_are_the_most(server: KsqlServer) -> None:
    async def open_all() -> httpx.Response:
        latest = {"sql": "SELECT ROWOFFSET FROM USER_EVENTS EMIT CHANGES;"}
        # a connection carries at most 100 streams
        first, second = (httpx.AsyncClient(base_url=server.url, http1=False, http2=True, timeout=60) for _ in "12")
        async with first, second:
            for client, queries in ((first, 60), (second, 40)):
                for _ in range(queries):
                    await client.send(client.build_request("POST", "/query-stream", json=latest), stream=True)
            return await second.post("/query-stream", json=latest)

    refused = asyncio.run(open_all())
    assert (refused.status_code, refused.json()["error_code"]) == (400, 40003)
    assert refused.json()["message"] == "Maximum number of push queries exceeded"


def test_password_is_asked_for_except_by_health_and_metadata() -> None:
    with (
        KsqlServer(GeneratorConfig(records=1), auth=("anna", "geheim")) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        refused = client.post("/query-stream", json={"sql": "SELECT * FROM USER_EVENTS;"})
        assert refused.status_code == 401
        assert refused.content == b'{"@type":"generic_error","error_code":40100,"message":"Unauthorized"}'
        assert client.get("/info", auth=("anna", "falsch")).status_code == 401
        assert client.get("/info", auth=("anna", "geheim")).status_code == 200
        for path in ("/healthcheck", "/v1/metadata", "/v1/metadata/id"):
            assert client.get(path).status_code == 200


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("http2", [False, True])
def test_tls_negotiates_the_version(authority: trustme.CA, http2: bool) -> None:  # noqa: FBT001 - a parameter
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with (
        KsqlServer(GeneratorConfig(records=9_000), ssl_context=context) as server,
        httpx.Client(base_url=server.url, verify=trusting, http2=http2) as client,
    ):
        assert server.url.startswith("https://")
        answer = client.post("/query-stream", json={"sql": "SELECT * FROM USER_EVENTS;"}, headers={"accept": V1_JSON})
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert answer.content.count(b'{"row":') == 9_000


def test_graceful_stop_ends_push_queries_as_if_they_were_complete() -> None:
    server = KsqlServer(GeneratorConfig(records=10))
    with httpx.Client() as client:
        with server:
            url = f"{server.url}/query-stream"
            request = client.build_request("POST", url, content=PUSH, headers={"accept": V1_JSON})
            answer = client.send(request, stream=True)
            parts = answer.iter_bytes()
            received = next(parts)
        received += b"".join(parts)
        answer.close()
    assert received.endswith(b'{"finalMessage":"Query Completed"}]')


@pytest.mark.parametrize("http2", [False, True])
def test_server_stops_although_a_client_takes_nothing(http2: bool) -> None:  # noqa: FBT001 - a parameter
    server = KsqlServer(GeneratorConfig(records=200_000, events_per_day=9_000))
    body = {"sql": "SELECT * FROM USER_EVENTS;"}
    with httpx.Client(http1=not http2, http2=http2, timeout=60) as client:
        with server:
            request = client.build_request("POST", f"{server.url}/query-stream", json=body)
            answer = client.send(request, stream=True)
            parts = answer.iter_bytes()
            next(parts)
        with pytest.raises(httpx.HTTPError):
            list(parts)
        answer.close()


def test_upgrade_with_unreadable_settings_is_dropped(raw: socket.socket) -> None:
    raw.sendall(
        b"GET /info HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: x\r\n\r\n"
    )
    assert until_closed(raw).startswith(b"HTTP/1.1 101 ")


def test_upgrade_is_answered_to_the_letter_as_netty_does(raw: socket.socket) -> None:
    """The Python client hyper compares these values without regard to what HTTP says of their case."""
    raw.sendall(
        b"GET /info HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: x\r\n\r\n"
    )
    head = until_closed(raw).partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert sorted(head[1:]) == [b"connection: upgrade", b"upgrade: h2c"]


def test_port_that_is_taken_is_reported(server: KsqlServer) -> None:
    with pytest.raises(OSError, match="address already in use"), KsqlServer(GeneratorConfig(), port=server.port):
        pass
