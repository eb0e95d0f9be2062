"""ksqlDB's REST interface over HTTP/1.1: requests, credentials, TLS; answers as raw bytes, within limits.

Answers are streamed in whatever chunks arrive: splitting lines in the HTTP library costs several times the transfer,
and splits at characters that ksqlDB sends inside of strings. No server is trusted to send little, or anything at all:
a document has a size and a time, rows must go on coming, and what is packed is unpacked in pieces of bounded size.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import httpx
from pydantic import SecretStr

from datalake_assets.errors import (
    ConfigError,
    DatalakeError,
    IncompleteResponse,
    SourceRefused,
    SourceUnavailable,
)
from datalake_assets.network import route_to
from datalake_assets.sources.ksqldb.failures import (
    TransientFailure,
    failed_answer,
    failed_exchange,
    one_line,
    retried,
)

__all__ = ["KsqlAnswer", "KsqlClient", "Properties", "ServerVersion"]

logger = logging.getLogger(__name__)

Properties = Mapping[str, str | int | bool]

#: ksqlDB's only format with a completion message, key marks and tombstones (ApiServerUtils, since 0.24 everywhere).
_STREAMED_ROWS = "application/vnd.ksql.v1+json"
_CONNECT_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5.0
#: httpx's own limit of connections at once.
_CONNECTIONS_KEPT = 100
_LONGEST_ERROR_BYTES = 64 * 1024
#: Descriptions and lists: a thousand objects take about a megabyte.
_LONGEST_DOCUMENT_BYTES = 64 << 20
#: What comes between two looks at the clock counts as progress if it is that much, or whole lines.
_PROGRESS_BYTES = 1024
#: Packed answers are unpacked in pieces of this size: a megabyte may hold a gigabyte.
_PIECE_BYTES = 1 << 20
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class ServerVersion:
    """A server's version, as far as it decides how to talk to it.

    Attributes:
        text: As the server says it.
    """

    text: str

    @property
    def streams_over_http1(self) -> bool:
        """Whether ``/query-stream`` serves HTTP/1.1: ksqlDB 0.24, Confluent Platform 7.2."""
        return self._at_least((0, 24, 0))

    @property
    def ends_stream_pulls(self) -> bool:
        """Whether pull queries on streams end with a completion message: ksqlDB 0.25.1 (#8554), Platform 7.2."""
        return self._at_least((0, 25, 1))

    def _at_least(self, standalone: tuple[int, int, int]) -> bool:
        match = _VERSION.match(self.text)
        if match is None:
            return True
        version = (int(match[1]), int(match[2]), int(match[3] or 0))
        return version >= (standalone if version[0] == 0 else (7, 2, 0))


@dataclass(frozen=True, slots=True)
class Limits:
    """What is put up with of one answer; None for anything.

    Attributes:
        size_bytes: Bytes of it, unpacked.
        total_s: Seconds until its end.
        silence_s: Seconds of waiting without progress: blanks, and a few bytes of a line, are none.
    """

    size_bytes: int | None = None
    total_s: float | None = None
    silence_s: float | None = None


@dataclass(slots=True)
class _Received:
    """What came of an answer so far."""

    source: str
    limits: Limits
    began: float = field(default_factory=time.monotonic)
    size_bytes: int = 0
    waited_s: float = 0.0
    pending_bytes: int = 0

    def add(self, piece: bytes) -> None:
        """Takes note of bytes.

        Raises:
            SourceRefused: There are more than can be an answer.
        """
        self.size_bytes += len(piece)
        if self.limits.size_bytes is not None and self.size_bytes > self.limits.size_bytes:
            reason = f"its answer is longer than {self.limits.size_bytes:,} bytes"
            raise SourceRefused(self.source, reason, cure="correct DATALAKE_KSQLDB_URL: is it a ksqlDB server?")
        if not piece.isspace():
            self.pending_bytes += len(piece)
            if self.pending_bytes >= _PROGRESS_BYTES or b"\n" in piece:
                self.waited_s, self.pending_bytes = 0.0, 0

    def check_time(self) -> None:
        """Looks at the clock.

        Raises:
            TransientFailure: The answer takes too long, or does not get on.
        """
        limits = self.limits
        if limits.total_s is not None and time.monotonic() - self.began > limits.total_s:
            raise self._late(f"no whole answer within {limits.total_s:g} s")
        if limits.silence_s is not None and self.waited_s > limits.silence_s:
            raise self._late(f"no rows within {limits.silence_s:g} s, although the connection is open")

    def _late(self, reason: str) -> TransientFailure:
        cure = "run it again when the server is well, or raise DATALAKE_KSQLDB_TIMEOUT_S"
        return TransientFailure(SourceUnavailable(self.source, reason, cure=cure))


def _received(response: httpx.Response, source: str, limits: Limits) -> Iterator[bytes]:
    """An answer's bytes as they come, unpacked.

    Raises:
        TransientFailure: It broke off, takes too long, or does not get on.
        SourceRefused: It is too long, or packed in a way that was not asked for.
    """
    unpacker, so_far = _unpacker(response, source), _Received(source, limits)
    chunks = response.iter_raw()
    while True:
        asked = time.monotonic()
        chunk = next(chunks, None)
        so_far.waited_s += time.monotonic() - asked
        if chunk is None:
            break
        for piece in (chunk,) if unpacker is None else unpacker.pieces(chunk):
            so_far.add(piece)
            yield piece
        so_far.check_time()
    if unpacker is not None and not unpacker.is_whole:
        raise TransientFailure(IncompleteResponse(source, "the packed answer broke off"))


def _unpacker(response: httpx.Response, source: str) -> _Unpacker | None:
    packed = response.headers.get("content-encoding", "identity").strip().lower()
    if packed in {"", "identity"}:
        return None
    if packed in {"gzip", "x-gzip", "deflate"}:
        return _Unpacker(source)
    reason = f"its answer is packed as {one_line(packed)!r}, which was not asked for"
    raise SourceRefused(source, reason, cure="have the proxy before it pass answers on as they are")


class _Unpacker:
    """Unpacks gzip or zlib, a bounded piece at a time, however much a few bytes hold."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._zlib = self._fresh()

    @staticmethod
    def _fresh() -> zlib._Decompress:
        return zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by the header

    @property
    def is_whole(self) -> bool:
        """Whether the packed data ended where they say that they do."""
        return self._zlib.eof

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """The pieces that a chunk holds.

        Raises:
            SourceRefused: It is not what it says to be.
        """
        while chunk:
            if self._zlib.eof:
                self._zlib = self._fresh()
            try:
                piece = self._zlib.decompress(chunk, _PIECE_BYTES)
            except zlib.error as error:
                raise SourceRefused(self._source, "its packed answer cannot be unpacked") from error
            chunk = self._zlib.unconsumed_tail or self._zlib.unused_data
            if piece:
                yield piece


class KsqlAnswer:
    """The open answer to a query; close it, or read it to its end.

    Args:
        source: What it is about, for errors.
        response: The answer.
        silence_s: Seconds without progress after which it is given up; None for never, as with push queries.
    """

    def __init__(self, source: str, response: httpx.Response, *, silence_s: float | None = None) -> None:
        self.source = source
        self._response, self._limits = response, Limits(silence_s=silence_s)

    def chunks(self) -> Iterator[bytes]:
        """Streams the raw bytes, once.

        Raises:
            TransientFailure: The answer broke off.
        """
        with failed_exchange(self.source, receiving=True):
            yield from _received(self._response, self.source, self._limits)

    def close(self) -> None:
        """Drops the connection unless the answer was read to its end; idempotent."""
        self._response.close()

    def abort(self) -> None:
        """Ends `chunks` in whatever thread waits for it: closing a socket wakes nobody, shutting it down does."""
        stream = self._response.extensions.get("network_stream")
        connection = stream and stream.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class KsqlClient:
    """A connection pool to one ksqlDB server; safe to use from several threads.

    Args:
        url: ``http(s)://[user:password@]host[:port][/prefix]``; credentials in it are used, and never shown.
        user: For HTTP Basic authentication; wins over the URL's.
        password: For HTTP Basic authentication; wins over the URL's.
        ca_file: PEM file of the authority that signed the server's certificate.
        timeout_s: Seconds to wait for the next bytes of an answer, and at most for a connection.
        transport: Replaces the network, in tests.

    Raises:
        ConfigError: The URL or the file cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: SecretStr | str | None = None,
        ca_file: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        parsed = _parsed(url)
        secret = password.get_secret_value() if isinstance(password, SecretStr) else password
        user, secret = user or parsed.username, secret or parsed.password
        self.url = str(parsed.copy_with(username=None, password=None, query=None, fragment=None)).rstrip("/")
        self.timeout_s, self._connect_s = timeout_s, min(timeout_s, _CONNECT_TIMEOUT_S)
        self._streams: deque[Any] = deque(maxlen=_CONNECTIONS_KEPT)
        self._http = httpx.Client(
            auth=httpx.BasicAuth(user, secret or "") if user else None,
            **_route(parsed, ca_file),
            timeout=httpx.Timeout(timeout_s, connect=self._connect_s),
            headers={"accept": "application/json", "accept-encoding": "identity"},
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"KsqlClient({self.url!r})"

    def close(self) -> None:
        """Closes all connections; idempotent."""
        self._http.close()

    def source(self, name: str = "") -> str:
        """What is read, fit for a message."""
        return f"{self.url} {name}".rstrip()

    @cached_property
    def version(self) -> ServerVersion:
        """The server's version; asked once.

        Raises:
            SourceError: It cannot be had, or this is no ksqlDB server.
        """
        info = retried(lambda: self._json("GET", "/info", self.source()))
        try:
            return ServerVersion(str(info["KsqlServerInfo"]["version"]))
        except (KeyError, TypeError, IndexError):
            raise _stranger(self.source()) from None

    def statement(self, sql: str, *, source: str) -> dict[str, Any]:
        """Runs one statement other than a query, and returns what the server says of it.

        Args:
            sql: The statement, with its semicolon.
            source: What it is about, for errors.

        Raises:
            SourceError: The server refused, failed or cannot be reached.
        """
        body = {"ksql": sql, "streamsProperties": {}}
        entities = retried(lambda: self._json("POST", "/ksql", source, body))
        if not isinstance(entities, list) or not entities or not isinstance(entities[0], dict):
            raise _stranger(source)
        return dict(entities[0])

    def query(self, sql: str, *, source: str, properties: Properties, endless: bool = False) -> KsqlAnswer:
        """Opens a query; retries are the caller's, who knows what was already used of an answer.

        Args:
            sql: The query, with its semicolon.
            source: What it reads, for errors.
            properties: Query properties, as JSON scalars.
            endless: Whether silence is no failure, as with push queries.

        Raises:
            TransientFailure: It failed; another attempt may succeed.
            SourceError: It failed for good.
        """
        if self.version.streams_over_http1:
            path, body = "/query-stream", {"sql": sql, "properties": dict(properties)}
        else:
            path, body = "/query", {"ksql": sql, "streamsProperties": dict(properties)}
        timeout = httpx.Timeout(self.timeout_s, connect=self._connect_s, read=None if endless else self.timeout_s)
        request = self._http.build_request(
            "POST", self.url + path, json=body, headers={"accept": _STREAMED_ROWS}, timeout=timeout
        )
        with failed_exchange(source):
            with contextlib.nullcontext() if endless else self._head_in_time(source, request):
                response = self._http.send(request, stream=True)
            if response.status_code != httpx.codes.OK:
                with contextlib.closing(response):
                    failed_answer(source, response.status_code, self._beginning(response, source))
        return KsqlAnswer(source, response, silence_s=None if endless else self.timeout_s)

    def close_query(self, query_id: str) -> None:
        """Ends a running query at the server, if it can; failures are only logged."""
        if self._http.is_closed:  # a read that was given up is closed late, by the garbage collector
            return
        try:
            with failed_exchange(self.source()):
                body = {"queryId": query_id}
                with self._http.stream(
                    "POST", self.url + "/close-query", json=body, timeout=_CLOSE_TIMEOUT_S
                ) as answer:
                    self._beginning(answer, self.source())  # an answer that is read leaves its connection usable
        except (DatalakeError, TransientFailure) as error:
            logger.debug("could not close query %s: %s", query_id, error)

    @contextlib.contextmanager
    def _head_in_time(self, source: str, request: httpx.Request) -> Iterator[None]:
        """Hangs up if the head of an answer takes too long: httpx waits for each of its bytes by itself.

        Raises:
            TransientFailure: It took too long.
        """
        limit_s, streams, is_late = self._connect_s + self.timeout_s, self._streams, threading.Event()

        def trace(event: str, info: Mapping[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                streams.append(info["return_value"])

        def hang_up() -> None:
            is_late.set()
            for stream in tuple(streams):  # nobody tells which of them: other answers are asked for again
                with contextlib.suppress(OSError):  # it was closed long ago
                    stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

        request.extensions["trace"] = trace
        timer = threading.Timer(limit_s, hang_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except httpx.TransportError as error:
            if not is_late.is_set():
                raise
            cure = "run it again when the server is well, or raise DATALAKE_KSQLDB_TIMEOUT_S"
            reason = f"the head of its answer did not end within {limit_s:g} s"
            raise TransientFailure(SourceUnavailable(source, reason, cure=cure)) from error
        finally:
            timer.cancel()

    def _json(self, method: str, path: str, source: str, body: object = None) -> Any:
        request = self._http.build_request(method, self.url + path, json=body)
        with failed_exchange(source):
            with self._head_in_time(source, request):
                response = self._http.send(request, stream=True)
            with contextlib.closing(response):
                if response.status_code != httpx.codes.OK:
                    failed_answer(source, response.status_code, self._beginning(response, source))
                limits = Limits(_LONGEST_DOCUMENT_BYTES, total_s=self.timeout_s)
                content = b"".join(_received(response, source, limits))
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise _stranger(source) from None

    def _beginning(self, response: httpx.Response, source: str) -> bytes:
        """Reads as much of an answer as an error's can be long."""
        body = b""
        for piece in _received(response, source, Limits(total_s=self.timeout_s)):
            body += piece
            if len(body) > _LONGEST_ERROR_BYTES:
                break
        return body


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        parsed.raw_host.decode().encode("idna")  # as the resolver does: it may have labels that are none
    except (httpx.InvalidURL, ValueError, TypeError):
        parsed = httpx.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError(f"{one_line(url)!r} is not the URL of a ksqlDB server; write it like 'http://localhost:8088'")
    return parsed


def _route(url: httpx.URL, ca_file: str | None) -> dict[str, Any]:
    """How the server is reached."""
    try:
        return route_to(str(url)).for_httpx(authorities=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"DATALAKE_KSQLDB_CA_FILE: {ca_file!r} is not a readable PEM file") from error


def _stranger(source: str) -> SourceRefused:
    return SourceRefused(source, "not a ksqlDB server: its answer is not ksqlDB's", cure="correct DATALAKE_KSQLDB_URL")
