"""The write API over HTTP, by a real server and a real client."""

from __future__ import annotations

import gzip
import json
import logging
import selectors
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import pytest

from datalake_assets.errors import ConfigError
from datalake_assets.operations import MAX_REQUEST_BYTES, Code, Operations, http_api
from datalake_assets.operations.access import STATUS, Tokens
from datalake_assets.operations.http_api import http_server
from datalake_assets_tests.operations.conftest import ORDERS, SCHEMA

TOKENS = {"acme": ["a" * 32, "b" * 40], "rival": ["r" * 32]}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def url(lake):
    """A server over an empty lake."""
    with Operations(str(lake)) as operations, serving(operations) as address:
        yield address


@contextmanager
def serving(operations):
    """The server as ``datalake serve ops`` runs it; gives its URL."""
    server = http_server(operations, Tokens(TOKENS))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def post(url):
    with httpx.Client(base_url=url, timeout=60) as client:

        def send(document, token=TOKENS["acme"][0], **headers):
            headers |= {} if token is None else {"Authorization": f"Bearer {token}"}
            body = json.dumps(document).encode() if isinstance(document, dict) else document
            return client.post("/v1/operations", content=body, headers=headers)

        yield send


@pytest.mark.parametrize("token", [None, "x" * 32, "a" * 31, "a" * 33, "A" * 32])
def test_request_without_a_known_token_is_refused_before_it_is_read(post, token):
    response = post(b"no JSON", token)

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "UNAUTHORIZED"


@pytest.mark.parametrize("token", TOKENS["acme"])
def test_each_token_of_a_tenant_is_taken(post, token):
    assert post({"operation": "LIST", "tenant_id": "acme"}, token).json()["ok"]


def test_token_of_one_tenant_reaches_nothing_of_another(post, lake):
    theirs = {**ORDERS, "tenant_id": "rival"}
    assert post({"operation": "CREATE_TABLE", **theirs, "schema": SCHEMA}, TOKENS["rival"][0]).status_code == 200

    for request in (
        {"operation": "DESCRIBE", **theirs},
        {"operation": "WRITE", **theirs, "records": [{"id": 1}]},
        {"operation": "LIST", "tenant_id": "rival"},
        {"operation": "CREATE_TABLE", **theirs, "table": "more", "schema": SCHEMA},
    ):
        response = post(request)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert len(list(lake.rglob("*.metadata.json"))) == 1


def test_request_is_done_and_its_failures_have_a_status(post):
    table = {**ORDERS, "table": "statuses"}
    create = {"operation": "CREATE_TABLE", **table, "schema": SCHEMA}
    write = {"operation": "WRITE", **table, "records": [{"id": 1}], "idempotency_key": "a"}

    assert post(create).json()["created"]
    assert post(create).status_code == 409
    assert post(write).json() == post(write).json()
    assert post({**write, "records": [{"id": "1"}]}).status_code == 422
    assert post({**write, "table": "nowhere"}).status_code == 404
    assert post(b"{").status_code == 400
    assert post({"operation": "QUERY", **table, "sql": "SELECT id FROM statuses"}).json()["rows"] == [[1]]


def test_every_failure_has_a_status():
    assert STATUS.keys() == set(Code)


def test_body_that_is_too_large_is_refused_without_being_kept(post):
    def parts():
        for _ in range(MAX_REQUEST_BYTES // (1 << 20) + 2):
            yield b" " * (1 << 20)

    assert post(b"x" * (MAX_REQUEST_BYTES + 1)).status_code == 413
    with httpx.Client() as client:
        stream = client.post(
            str(post(b"{}").url), content=parts(), headers={"Authorization": f"Bearer {TOKENS['acme'][0]}"}
        )
    assert stream.status_code == 413


NAMED = json.dumps({"operation": "LIST", "tenant_id": "acme", "namespace": "sales_Ã©"}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("document", "headers"),
    [
        (gzip.compress(NAMED.encode()), {"content-encoding": "gzip"}),
        (NAMED.encode(), {"content-encoding": "identity, br"}),
        (NAMED.encode("latin-1"), {"content-type": "application/json; charset=latin-1"}),  # UTF-8 of another text
        (NAMED.encode("utf-16"), {"content-type": 'application/json; Charset="UTF-16"'}),
        (NAMED.encode(), {"content-type": "application/json; charset=no-such"}),
    ],
)
def test_body_in_another_form_is_refused_as_that(post, document, headers):
    response = post(document, **headers)

    assert (response.status_code, response.json()["error"]["code"]) == (415, "UNSUPPORTED_FORM")
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-encoding": "identity"},
        {"content-type": 'application/json;charset="utf8"'},
        {"content-type": "text/plain; charset=us-ascii"},
        {"content-type": "application/x-www-form-urlencoded"},  # what curl says if it is not told otherwise
        {"expect": "100-continue"},
    ],
)
def test_document_is_taken_whole_or_in_chunks_however_its_type_is_called(post, headers):
    document = json.dumps({"operation": "LIST", "tenant_id": "acme"}).encode()
    assert post(document, **headers).json()["ok"]
    assert post(iter([document[:9], document[9:]]), **headers).json()["ok"]


def test_tenant_has_so_many_requests_under_way_and_no_more(url, post):
    head = f"POST /v1/operations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS['acme'][0]}\r\n"
    address = urlsplit(url)
    with ExitStack() as opened:
        for _ in range(8):  # whose bodies do not come
            connection = opened.enter_context(socket.create_connection((address.hostname, address.port)))
            connection.sendall(f"{head}Content-Length: 100\r\nExpect: 100-continue\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # now it is being read
        busy = post({"operation": "HEALTH"})
        assert (busy.status_code, busy.json()["error"]["code"]) == (503, "UNAVAILABLE")
        assert post({"operation": "HEALTH"}, token=TOKENS["rival"][0]).status_code == 200
    while post({"operation": "HEALTH"}).status_code == 503:  # until the server has seen them leave
        pass


def test_no_client_that_is_slow_or_silent_keeps_others_waiting_or_stays(lake, monkeypatch):
    monkeypatch.setattr(http_api, "BODY_S", http_api.HEAD_S)
    post = b"POST /v1/operations HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n"
    begun = {  # what is sent at once, and the status that is answered; more comes byte by byte
        b"": None,
        post: None,
        post + b"\r\n": 401,
        post + f"Authorization: Bearer {TOKENS['acme'][0]}\r\n\r\n".encode(): 503,
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n": 200,
    }
    with Operations(str(lake)) as operations, serving(operations) as url, ExitStack() as opened:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        slow = {}
        for sent, status in begun.items():
            connection = opened.enter_context(socket.create_connection(address))
            connection.sendall(sent)
            slow[connection] = status
        silent = [opened.enter_context(socket.create_connection(address)) for _ in range(100)]

        assert httpx.get(f"{url}/health", timeout=60).status_code == 200

        answers = dict.fromkeys(slow, b"")
        left = opened.enter_context(selectors.DefaultSelector())  # others may have used up select's numbers
        for connection in (*silent, *slow):
            left.register(connection, selectors.EVENT_READ)
        while left.get_map():  # until the server has closed them all
            for connection in [key.fileobj for key, _ in left.select(0.2)]:
                with suppress(ConnectionError):
                    if data := connection.recv(1 << 16):
                        answers[connection] = answers.get(connection, b"") + data
                        continue
                left.unregister(connection)
            for connection in [each for each in slow if each in left.get_map()]:
                with suppress(OSError):
                    connection.sendall(b"x")
        for connection, status in slow.items():
            assert answers[connection].startswith(b"" if status is None else f"HTTP/1.1 {status} ".encode())
            assert status is not None or not answers[connection]


def test_description_names_every_operation_and_loads_nothing_from_elsewhere(url):
    document = httpx.get(f"{url}/openapi.json").json()
    page = httpx.get(url).text

    body = document["paths"]["/v1/operations"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert list(body["discriminator"]["mapping"]) == [
        "CREATE_TABLE",
        "WRITE",
        "QUERY",
        "COMPACT",
        "DESCRIBE",
        "LIST",
        "HEALTH",
    ]
    for name in body["discriminator"]["mapping"]:
        assert f"<code>{name}</code>" in page
    assert "http" not in page


def test_every_field_of_the_description_is_described(url):
    schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
    undescribed = [
        f"{model}.{name}"
        for model, schema in schemas.items()
        if model.endswith("Answer") or "operation" in schema.get("properties", {})
        for name, field in schema["properties"].items()
        if name != "operation" and "description" not in field
    ]
    assert undescribed == []


def test_health_needs_no_token(url):
    assert httpx.get(f"{url}/health").json()["status"] == "healthy"


def test_no_token_and_no_record_is_logged(post, caplog):
    caplog.set_level(logging.DEBUG, "datalake_assets")
    caplog.set_level(logging.DEBUG, "uvicorn")

    post({"operation": "WRITE", **ORDERS, "records": [{"id": "private"}]})
    post(b"{}", "f" * 32)

    assert "a" * 32 not in caplog.text
    assert "f" * 32 not in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a JSON document"),
        ("[]", "not an object"),
        ('{"acme": 1}', "not an object"),
        ('{"acme": "short-secret"}', "not 32 or more"),
        ('{"Acme": "' + "s" * 32 + '"}', "cannot be a tenant"),
        ('{"acme": "' + "s" * 32 + '", "rival": "' + "s" * 32 + '"}', "have the same token"),
        ('{"acme": []}', "no token for any tenant"),
    ],
)
def test_file_of_tokens_that_is_wrong_is_refused_without_repeating_a_token(tmp_path, text, reason):
    file = tmp_path / "tokens.json"
    file.write_text(text)

    with pytest.raises(ConfigError, match=reason) as raised:
        Tokens.read(str(file))

    assert "short-secret" not in str(raised.value)
    assert "s" * 32 not in str(raised.value)
