"""Rows sent on to search servers: what a store of documents is to do; what deliveries make of busy and absent ones."""

from __future__ import annotations

import json
import ssl
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
import trustme

from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.sinks.base import DocumentStore
from datalake_assets.sinks.delivery import dead_letters, deliver, forget_delivered, sink_lag
from datalake_assets.sinks.kinds import sink_kind
from datalake_assets.sinks.opensearch.index_template import mapping
from datalake_assets.sinks.opensearch.opensearch_model import OpenSearchSettings
from datalake_assets.testing.document_stores import DocumentStoreContract
from datalake_assets_tests.crash.sink_rounds import act
from datalake_assets_tests.sinks.search_server import SearchServer

pytestmark = pytest.mark.xdist_group("search")


def feed_of(name: str, **sink: object) -> Feed:
    source = {"type": "kafka", "topic": "t", "fields": {"n": "long"}}
    document = {"name": name, "kind": "stream", "source": source, "time_column": "at"}
    return parse_feed(json.dumps({**document, "sinks": [{"type": "opensearch", **sink}]}))


def store_of(server: SearchServer, folder: Path, **sink: object) -> DocumentStore:
    feed = feed_of(f"f{uuid.uuid4().hex[:8]}", **sink)
    settings = OpenSearchSettings(opensearch_url=server.url, opensearch_retry_s=5)
    return sink_kind("opensearch").open(open_store(str(folder)), feed, feed.sinks[0], settings)


class TestOpenSearch(DocumentStoreContract):
    @pytest.fixture(params=["partition", "feed"])
    def documents(self, request, osmem, tmp_path) -> Iterator[DocumentStore]:
        store = store_of(osmem, tmp_path, by=request.param)
        yield store
        store.close()


class TestElasticsearch(DocumentStoreContract):
    @pytest.fixture(params=["partition", "rollover"])
    def documents(self, request, noida, tmp_path) -> Iterator[DocumentStore]:
        store = store_of(noida, tmp_path, by=request.param, rollover={"max_docs": 1})
        yield store
        store.close()


#: What servers say of each document when nothing can be written to its index.
REFUSALS = {
    "blocked": {
        "status": 403,
        "error": {
            "type": "cluster_block_exception",
            "reason": "blocked by: [FORBIDDEN/8/index write (api)] the index itself",
        },
    },
    "closed": {"status": 400, "error": {"type": "index_closed_exception", "reason": "closed: the index itself"}},
    "missing": {
        "status": 404,
        "error": {"type": "index_not_found_exception", "reason": "no such index: the index itself"},
    },
}


class Proxy:
    """A server in front of another that answers some bulk requests as a busy one does."""

    def __init__(self, url: str, *, tls: trustme.LeafCert | None = None) -> None:
        self.faults: list[str] = []
        self.scrolls_to_lose = 0
        self.bulks: list[int] = []
        proxy = self

        class _Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy.faults.pop(0) if "_bulk" in self.path and proxy.faults else ""
                status, answer = proxy.answer(url, self, body, fault)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _pass  # noqa: N815  http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.configure_cert(context)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, url: str, request: BaseHTTPRequestHandler, body: bytes, fault: str) -> tuple[int, bytes]:
        headers = {
            name: request.headers[name] for name in ("Content-Type", "Content-Encoding") if name in request.headers
        }
        if "_search/scroll" in request.path and request.command != "DELETE" and self.scrolls_to_lose:
            self.scrolls_to_lose -= 1
            return 404, json.dumps({"error": {"type": "search_phase_execution_exception"}, "status": 404}).encode()
        if fault == "busy":
            return 429, b'{"error":{"type":"es_rejected_execution_exception"},"status":429}'
        answer = httpx.request(request.command, url + request.path, content=body, headers=headers, timeout=60)
        content = answer.content
        if fault == "half":
            document = answer.json()
            for item in document["items"][::2]:
                item["index"] |= {"status": 429, "error": {"type": "es_rejected_execution_exception"}}
            content = json.dumps(document).encode()
        if fault in REFUSALS:
            document = answer.json()
            for item in document["items"]:
                item["index"] |= REFUSALS[fault]
            content = json.dumps(document).encode()
        if fault == "lost":
            return 503, b"{}"
        return answer.status_code, content

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def rows(start: int, end: int) -> list[list[object]]:
    return [[number, number / 4, number % 3, number] for number in range(start, end)]


def changed(lake: Path, what: str, some: list[list[object]] = []) -> None:  # noqa: B006  never changed
    act(lake=str(lake), url="", feed="numbered", what=what, rows=some, name="", number=0, moment="")


@pytest.fixture
def numbered(tmp_path) -> Iterator[tuple[Path, Feed]]:
    """A lake whose feed has rows, and indices of its own."""
    from datalake_assets_tests.crash.sink_rounds import feed_of as declared  # noqa: PLC0415

    feed = declared("numbered")
    sink = feed.sinks[0].model_copy(update={"prefix": f"{uuid.uuid4().hex[:8]}-"})
    changed(tmp_path, "land", rows(0, 100))
    return tmp_path, feed.model_copy(update={"sinks": (sink,)})


def sent(lake: Path, feed: Feed, url: str, *, retry_s: float = 5):
    (report,) = deliver(open_store(str(lake)), feed, OpenSearchSettings(opensearch_url=url, opensearch_retry_s=retry_s))
    return report


def found(server: SearchServer, feed: Feed) -> list[int]:
    return sorted(each["n"] for each in server.documents(f"{feed.sinks[0].prefix}{feed.name}"))


def test_a_busy_server_gets_each_row_once(numbered, osmem):
    lake, feed = numbered
    proxy = Proxy(osmem.url)
    proxy.faults = ["busy", "half", "half", "lost", "", "half"]
    try:
        report = sent(lake, feed, proxy.url, retry_s=30)
    finally:
        proxy.close()
    assert (report.sent, report.refused, report.error, proxy.faults) == (100, 0, "", [])
    assert found(osmem, feed) == list(range(100))


def test_a_sink_that_is_away_keeps_nothing_from_landing_and_gets_all_later(numbered, osmem):
    lake, feed = numbered
    report = sent(lake, feed, "http://127.0.0.1:9", retry_s=0.1)
    assert "cannot be reached" in report.error
    assert report.lag_rows == 100
    changed(lake, "land", rows(100, 150))
    changed(lake, "merge")
    assert sink_lag(open_store(str(lake)), feed, feed.sinks[0]).lag_rows == 150
    assert sent(lake, feed, osmem.url).sent == 150
    changed(lake, "merge")
    assert sent(lake, feed, osmem.url).sent == 0
    assert sink_lag(open_store(str(lake)), feed, feed.sinks[0]).lag_rows == 0
    assert found(osmem, feed) == list(range(150))


def test_what_a_sink_has_lost_is_sent_again_and_rows_that_are_deleted_leave_it(numbered, osmem):
    lake, feed = numbered
    sent(lake, feed, osmem.url)
    httpx.delete(f"{osmem.url}/{feed.sinks[0].prefix}numbered-2026-11-01").raise_for_status()
    assert len(found(osmem, feed)) < 100
    store = open_store(str(lake))
    assert forget_delivered(store, feed, "opensearch") == 3
    assert sent(lake, feed, osmem.url).sent == 100
    changed(lake, "delete", [[7]])
    report = sent(lake, feed, osmem.url)
    assert (report.sent, report.removed) == (0, 1)
    assert found(osmem, feed) == [number for number in range(100) if number != 7]


def test_a_sink_that_gets_another_prefix_gets_all_rows_there(numbered, osmem):
    lake, feed = numbered
    assert sent(lake, feed, osmem.url).sent == 100
    assert sent(lake, feed, osmem.url).sent == 0
    sink = feed.sinks[0].model_copy(update={"prefix": f"{uuid.uuid4().hex[:8]}-"})
    moved = feed.model_copy(update={"sinks": (sink,)})
    assert sink_lag(open_store(str(lake)), moved, sink).lag_rows == 100
    assert sent(lake, moved, osmem.url).sent == 100
    assert found(osmem, moved) == list(range(100))
    assert sent(lake, moved, osmem.url).sent == 0


def test_a_sink_that_gets_other_indices_has_all_rows_there_and_each_once(numbered, osmem):
    lake, feed = numbered
    assert sent(lake, feed, osmem.url).sent == 100
    one = feed.model_copy(update={"sinks": (feed.sinks[0].model_copy(update={"by": "feed"}),)})
    report = sent(lake, one, osmem.url)
    assert (report.sent, report.removed) == (100, 100)
    assert found(osmem, one) == list(range(100))
    base = f"{one.sinks[0].prefix}{one.name}"
    assert {each["_index"] for each in osmem.documents(base)} == {f"{base}-all"}


def test_refused_documents_are_dead_letters_that_can_be_sent_again(numbered, osmem):
    lake, feed = numbered
    changed(lake, "land", [[100, None, 0, 100], [101, 1.0, 0, 101]])
    report = sent(lake, feed, osmem.url)
    assert (report.sent, report.refused) == (101, 1)
    store = open_store(str(lake))
    (letter,) = dead_letters(store, feed, "opensearch")
    assert (letter.position, json.loads(letter.raw)["n"]) == ("0-100", 100)
    assert "price" in letter.reason
    assert sink_lag(store, feed, feed.sinks[0]).refused == 1
    forget_delivered(store, feed, "opensearch")
    assert dead_letters(store, feed, "opensearch") == []
    assert sent(lake, feed, osmem.url).refused == 1
    changed(lake, "delete", [[0]])  # and with its row its dead letter
    assert sent(lake, feed, osmem.url).removed == 1
    assert dead_letters(store, feed, "opensearch") == []
    assert sink_lag(store, feed, feed.sinks[0]).refused == 0
    assert found(osmem, feed) == [*range(1, 100), 101]


def test_an_index_that_cannot_be_written_makes_no_dead_letters(numbered, osmem):
    lake, feed = numbered
    proxy = Proxy(osmem.url)
    try:
        for fault in ("blocked", "closed", "missing"):
            proxy.faults = ["", fault]
            report = sent(lake, feed, proxy.url)
            assert (report.refused, report.lag_rows > 0) == (0, True)
            assert "the index itself" in report.error
    finally:
        proxy.close()
    assert dead_letters(open_store(str(lake)), feed, "opensearch") == []
    assert sent(lake, feed, osmem.url).error == ""
    assert found(osmem, feed) == list(range(100))


def test_documents_of_deleted_rows_leave_though_nothing_is_remembered_of_them(numbered, osmem):
    lake, feed = numbered
    sent(lake, feed, osmem.url)
    changed(lake, "delete", [[7]])
    forget_delivered(open_store(str(lake)), feed, "opensearch")
    report = sent(lake, feed, osmem.url)
    assert (report.sent, report.removed) == (99, 1)
    assert found(osmem, feed) == [number for number in range(100) if number != 7]


def test_a_search_that_is_lost_midway_is_not_taken_for_an_empty_index(numbered, osmem):
    lake, feed = numbered
    sent(lake, feed, osmem.url)
    changed(lake, "delete", [[7]])
    proxy = Proxy(osmem.url)
    proxy.scrolls_to_lose = 1
    try:
        report = sent(lake, feed, proxy.url, retry_s=30)
    finally:
        proxy.close()
    assert (report.sent, report.removed, report.error, proxy.scrolls_to_lose) == (0, 1, "", 0)
    assert found(osmem, feed) == [number for number in range(100) if number != 7]


def test_what_is_sent_anew_lies_in_the_newest_index_alone(numbered, noida):
    lake, feed = numbered
    sink = feed.sinks[0]
    limits = sink.rollover.model_copy(update={"max_docs": 1})
    feed = feed.model_copy(update={"sinks": (sink.model_copy(update={"by": "rollover", "rollover": limits}),)})
    sent(lake, feed, noida.url)
    forget_delivered(open_store(str(lake)), feed, "opensearch")
    assert sent(lake, feed, noida.url).sent == 100
    assert found(noida, feed) == list(range(100))


def test_rows_that_are_known_by_their_content_are_sent_anew(tmp_path, osmem):
    from datalake_assets_tests.crash.sink_rounds import feed_of as declared  # noqa: PLC0415

    feed = declared("plain")
    feed = feed.model_copy(update={"sinks": (feed.sinks[0].model_copy(update={"prefix": f"{uuid.uuid4().hex[:8]}-"}),)})
    act(lake=str(tmp_path), url="", feed="plain", what="land", rows=rows(0, 30), name="", number=0, moment="")
    assert sent(tmp_path, feed, osmem.url).sent == 30
    forget_delivered(open_store(str(tmp_path)), feed, "opensearch")
    assert sent(tmp_path, feed, osmem.url).sent == 30
    assert found(osmem, feed) == list(range(30))


def test_a_feed_that_cannot_be_read_is_told_and_ends_no_other_ones_delivery(numbered, osmem):
    lake, feed = numbered
    for file in lake.rglob("*.parquet"):
        file.write_bytes(b"PAR1 of old")
    assert sent(lake, feed, osmem.url).error
    store = open_store(str(lake))
    sent(lake, feed, "http://127.0.0.1:9", retry_s=0.1)
    progress = next(each.key for each in store.list("sinks") if "/position/" in each.key)
    (lake / progress).write_bytes(b"{")
    assert "begins anew" in sent(lake, feed, osmem.url).error
    assert sink_lag(store, feed, feed.sinks[0]).lag_rows == 100


def test_indices_of_another_lake_are_left_alone(numbered, osmem, tmp_path_factory):
    lake, feed = numbered
    sent(lake, feed, osmem.url)
    other = tmp_path_factory.mktemp("other")
    changed(other, "land", rows(500, 510))
    assert "give the sink another prefix" in sent(other, feed, osmem.url).error
    assert found(osmem, feed) == list(range(100))


def test_fields_have_the_types_of_their_columns():
    schema = pa.schema(
        [
            ("id", pa.int32()),
            ("paid", pa.decimal128(10, 2)),
            ("at", pa.timestamp("us", "UTC")),
            ("note", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("who", pa.struct([("age", pa.int64())])),
            ("more", pa.map_(pa.string(), pa.int64())),
        ]
    )
    found = mapping(schema, text=["note", "id"])
    kinds = {name: each["type"] for name, each in found.items()}
    assert kinds == {
        "id": "long",
        "paid": "double",
        "at": "date",
        "note": "text",
        "tags": "keyword",
        "who": "object",
        "more": "object",
        "datalake_partition": "keyword",
    }
    assert found["who"]["properties"]["age"] == {"type": "long"}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"kind": "table", "source": {"object": "X"}, "sinks": [{"type": "opensearch"}]}, "rows of streams"),
        ({"sinks": [{"type": "opensearch"}, {"type": "opensearch"}]}, "two have one name"),
        ({"sinks": [{"type": "fax"}]}, "there is no sink of type 'fax'"),
        ({"sinks": [{"type": "opensearch", "password": "x"}]}, "password"),
        ({"sinks": [{"type": "opensearch", "prefix": "_no"}]}, "prefix"),
    ],
)
def test_a_feed_whose_sinks_cannot_work_is_refused(document, words):
    stream = {"name": "x", "kind": "stream", "source": {"type": "kafka", "topic": "t"}}
    with pytest.raises(InvalidFeed, match=words):
        parse_feed(json.dumps({**stream, **document}))


def test_a_server_with_a_certificate_that_nobody_trusts_is_refused(numbered, osmem, tmp_path_factory):
    lake, feed = numbered
    authority = trustme.CA()
    proxy = Proxy(osmem.url, tls=authority.issue_cert("127.0.0.1"))
    file = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    try:
        report = sent(lake, feed, proxy.url, retry_s=30)
        assert "set DATALAKE_OPENSEARCH_CA_FILE" in report.error
        settings = OpenSearchSettings(opensearch_url=proxy.url, opensearch_ca_file=str(file))
        assert deliver(open_store(str(lake)), feed, settings)[0].sent == 100
    finally:
        proxy.close()


def test_settings_without_a_server_are_named(numbered):
    lake, feed = numbered
    assert "set DATALAKE_OPENSEARCH_URL" in sent(lake, feed, "").error
    assert "write http(s)://host:port" in sent(lake, feed, "http://[search").error
    with pytest.raises(ConfigError, match="settings of their own"):
        sink_kind("opensearch").open(
            open_store(str(lake)),
            feed,
            feed.sinks[0],
            OpenSearchSettings(opensearch_url="http://user:secret@search:9200"),
        )
