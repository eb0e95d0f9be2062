"""Answers without end, without progress, or packed to burst: every one is given up within size and time."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import stamina

from datalake_assets.errors import IncompleteResponse, SourceRefused, SourceUnavailable
from datalake_assets.sources.ksqldb.client import KsqlClient
from datalake_assets.sources.ksqldb.failures import TransientFailure
from datalake_assets.sources.ksqldb.source import KsqlDB
from datalake_assets_tests.sources.ksqldb.answers import ALL, HEADER, STREAM, feed, landed, serving, sql_of, values
from datalake_assets_tests.sources.ksqldb.scripted_server import (
    STREAMED,
    Answer,
    Request,
    ScriptedServer,
    description,
    info,
    rows,
    scripted,
)

PULLED = feed()
#: Seconds that clients wait. Drops come fifty times as often, so that none's patience ends before on a busy machine.
PATIENCE_S = 1.0
HEAD = f'[{{"header":{{"queryId":"q1","schema":"{HEADER}"}}}},\n'.encode()
ROW = b'{"row":{"columns":[1,"x",0]}},\n'
END = b'{"finalMessage":"Query Completed"}]'
PLAIN = rows(HEADER, [1, "x", 0])


def dripping(drop: bytes, *, first: bytes = b"", every_s: float = 0.02, seconds: float = 60) -> Iterator[bytes]:
    yield first
    for _ in range(int(seconds / every_s)):
        time.sleep(every_s)
        yield drop


@pytest.fixture(autouse=True)
def _asked_twice() -> Iterator[None]:
    """Each of these waits is one until patience ends."""
    with stamina.set_testing(True, attempts=2):
        yield


def endless() -> Iterator[bytes]:
    return itertools.repeat(b'"' + b"x" * (1 << 20))


def bomb() -> Iterator[bytes]:
    """A gigabyte of blanks in a megabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    for _ in range(64):
        yield packer.compress(b" " * (16 << 20))
    yield packer.flush()


def asking(path: str, answer: Callable[[], Answer]) -> Callable[[Request], Answer]:
    """Gives that answer at a path, and the usual ones elsewhere."""
    usual = {"/info": info(), "/ksql": description("S", **STREAM)}
    return lambda request: answer() if request.path == path else usual.get(request.path, PLAIN)


def read(server: ScriptedServer, *, timeout_s: float = 20) -> list[dict[str, Any]]:
    source = KsqlDB(server.url, timeout_s=timeout_s)
    try:
        return values(source.read(PULLED, ALL))
    finally:
        source.close()


@pytest.mark.parametrize("path", ["/info", "/ksql"])
def test_documents_without_end_are_given_up(path: str) -> None:
    with scripted(asking(path, lambda: Answer(endless()))) as server, pytest.raises(SourceRefused) as raised:
        read(server)
    assert "its answer is longer than 67,108,864 bytes" in str(raised.value)


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """The most memory that Python objects took so far, in bytes."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("path", ["/info", "/ksql"])
def test_packed_documents_are_unpacked_within_limits(path: str, peak: Callable[[], int]) -> None:
    handle = asking(path, lambda: Answer(bomb(), headers={"content-encoding": "gzip"}))
    with scripted(handle) as server, pytest.raises(SourceRefused, match="its answer is longer than"):
        read(server)
    assert peak() < 200 << 20


@pytest.mark.parametrize("path", ["/info", "/ksql"])
def test_documents_that_drip_are_given_up(path: str) -> None:
    with scripted(asking(path, lambda: Answer(dripping(b"x")))) as server:
        with pytest.raises(SourceUnavailable, match=r"no whole answer within 1 s"):
            read(server, timeout_s=PATIENCE_S)
        assert server.paths().count(path) > 1


#: What a server says of itself, as bytes on the wire.
INFO = b'{"KsqlServerInfo":{"version":"0.29.0","serverStatus":"RUNNING"}}'


@contextmanager
def serving_drips(first: bytes, drop: bytes) -> Iterator[str]:
    """A server that sends bytes of an answer for ever, each before anybody's patience ends; but for ``/info``."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while (asked := connection.recv(1 << 16)).startswith(b"GET /info "):
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(INFO), INFO))
            for piece in dripping(drop, first=first) if asked else ():
                connection.sendall(piece)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("first", "drop"),
    [(b"HTTP/1.1 200 OK\r\nx: ", b"y"), (b"", b"HTTP/1.1 100 Continue\r\n\r\n")],
    ids=["headers", "interim answers"],
)
def test_a_head_that_never_ends_is_given_up(first: bytes, drop: bytes) -> None:
    with serving_drips(first, drop) as url:
        client = KsqlClient(url, timeout_s=PATIENCE_S)
        with pytest.raises(SourceUnavailable, match=r"the head of its answer did not end within 2 s"):
            client.statement("LIST STREAMS;", source="S")
        client.close()


def test_an_endless_query_whose_head_never_ends_is_given_up() -> None:
    with serving_drips(b"HTTP/1.1 200 OK\r\nx: ", b"y") as url:
        client = KsqlClient(url, timeout_s=PATIENCE_S)
        with pytest.raises(TransientFailure, match=r"the head of its answer did not end within 2 s"):
            client.query("SELECT 1;", source="S", properties={}, endless=True)
        client.close()


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
FRAMES = {
    "a chunk's extension": CHUNKED + b"5;x=",
    "one after rows": CHUNKED + b"%x\r\n%b\r\n5;x=" % (len(HEAD), HEAD),
    "a chunk's size": CHUNKED + b"0",
    "trailers": CHUNKED + b"%x\r\n%b\r\n0\r\nx: " % (len(HEAD), HEAD),
}


@pytest.mark.parametrize("first", FRAMES.values(), ids=FRAMES)
def test_frames_of_an_answer_that_drip_are_given_up(first: bytes) -> None:
    drop = b"0" if first.endswith(b"0") else b"y"
    with serving_drips(first, drop) as url:
        client = KsqlClient(url, timeout_s=PATIENCE_S)
        began = time.monotonic()
        answer = client.query("SELECT 1;", source="S", properties={})
        with answer, pytest.raises(TransientFailure, match=r"no rows within 1 s, although the connection is open"):
            list(answer.chunks())
        client.close_query("q1")
        assert time.monotonic() - began < 30  # half of what drips
        client.close()


def test_a_document_whose_frames_drip_is_given_up() -> None:
    with serving_drips(FRAMES["a chunk's extension"], b"y") as url:
        client = KsqlClient(url, timeout_s=PATIENCE_S)
        with pytest.raises(SourceUnavailable, match=r"no whole answer within 1 s"):
            client.statement("LIST STREAMS;", source="S")
        client.close()


@pytest.mark.parametrize("status", [400, 200])
def test_refusals_without_end_are_cut_short(status: int) -> None:
    with serving(lambda _: Answer(endless(), status)) as server, pytest.raises((SourceRefused, IncompleteResponse)):
        landed(server, PULLED)


@pytest.mark.parametrize("first", [HEAD, HEAD + ROW, b""], ids=["after the header", "after a row", "at once"])
def test_a_pull_without_progress_is_given_up(first: bytes) -> None:
    drops = {"blank lines": b"\n", "blanks": b" ", "a line that never ends": b"x"}
    with ThreadPoolExecutor(len(drops)) as pool:  # each waits for its attempts to be over
        given_up = {name: pool.submit(_given_up_without_progress, drop, first) for name, drop in drops.items()}
    for name, done in given_up.items():
        assert (name, done.exception()) == (name, None)


def _given_up_without_progress(drop: bytes, first: bytes) -> None:
    with serving(lambda _: Answer(dripping(drop, first=first), content_type=STREAMED)) as server:
        began = time.monotonic()
        with pytest.raises(SourceUnavailable, match=r"no rows within 1 s, although the connection is open"):
            read(server, timeout_s=PATIENCE_S)
        assert time.monotonic() - began < 30  # half of what drips
        assert len(sql_of(server)) > 1


def test_a_pull_whose_rows_come_slowly_is_read_to_its_end() -> None:
    def body() -> Iterator[bytes]:
        yield from itertools.islice(dripping(ROW, first=HEAD, every_s=0.3), 11)
        yield END

    with serving(lambda _: Answer(body(), content_type=STREAMED)) as server:
        assert len(read(server, timeout_s=2)) == 10


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate"])
def test_rows_that_come_packed_are_read(encoding: str) -> None:
    whole = HEAD + ROW * 50_000 + END
    if encoding == "deflate":
        packed = zlib.compress(whole)
    else:
        packed = gzip.compress(whole[:1000]) + gzip.compress(whole[1000:])  # gzip may come in members
    answer = Answer([packed[:7], packed[7:]], content_type=STREAMED, headers={"content-encoding": encoding})
    with serving(answer) as server:
        assert len(values(landed(server, PULLED))) == 50_000


@pytest.mark.parametrize(
    ("packed", "encoding", "error", "reason"),
    [
        (HEAD, "br", SourceRefused, "packed as 'br', which was not asked for"),
        (HEAD, "gzip, gzip", SourceRefused, "packed as 'gzip, gzip'"),
        (HEAD, "gzip", SourceRefused, "its packed answer cannot be unpacked"),
        (gzip.compress(HEAD + ROW + END)[:-9], "gzip", IncompleteResponse, "broke off"),
    ],
)
def test_packed_answers_that_are_none_are_named(
    packed: bytes, encoding: str, error: type[Exception], reason: str
) -> None:
    answer = Answer([packed], content_type=STREAMED, headers={"content-encoding": encoding})
    with serving(answer) as server, pytest.raises(error, match=reason):
        landed(server, PULLED)


def test_an_answer_to_close_query_without_end_holds_nobody_up() -> None:
    with scripted(asking("/close-query", lambda: Answer(endless()))) as server:
        client = KsqlClient(server.url, timeout_s=5)
        client.close_query("q1")
        client.close()
    assert server.paths() == ["/close-query"]
