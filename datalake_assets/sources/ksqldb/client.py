"""ksqlDB's REST interface over HTTP/1.1: requests, credentials, TLS; answers come as raw bytes.

Answers are streamed in whatever chunks arrive: splitting lines in the HTTP library costs several times the transfer,
and splits at characters that ksqlDB sends inside of strings.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx
from pydantic import SecretStr

from datalake_assets.errors import (
    ConfigError,
    DatalakeError,
    SourceRefused,
    SourceUnavailable,
)
from datalake_assets.network import route_to
from datalake_assets.sources.ksqldb.answer import KsqlAnswer, Limits, hang_up, received
from datalake_assets.sources.ksqldb.failures import (
    TransientFailure,
    failed_answer,
    failed_exchange,
    one_line,
    retried,
)

__all__ = ["KsqlClient", "Properties", "ServerVersion"]

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
            with self._head_in_time(source, request):
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
                url, body, limit_s = (
                    self.url + "/close-query",
                    {"queryId": query_id},
                    min(self.timeout_s, _CLOSE_TIMEOUT_S),
                )
                request = self._http.build_request("POST", url, json=body, timeout=limit_s)
                with self._head_in_time(self.source(), request, limit_s=limit_s):
                    response = self._http.send(request, stream=True)
                with contextlib.closing(response):  # an answer that is read leaves its connection usable
                    self._beginning(response, self.source(), limit_s=limit_s)
        except (DatalakeError, TransientFailure) as error:
            logger.debug("could not close query %s: %s", query_id, error)

    @contextlib.contextmanager
    def _head_in_time(self, source: str, request: httpx.Request, *, limit_s: float | None = None) -> Iterator[None]:
        """Hangs up if the head of an answer takes too long: httpx waits for each of its bytes by itself.

        Raises:
            TransientFailure: It took too long.
        """
        limit_s = self._connect_s + self.timeout_s if limit_s is None else limit_s
        streams, is_late = self._streams, threading.Event()

        def trace(event: str, info: Mapping[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                streams.append(info["return_value"])

        def give_up() -> None:
            is_late.set()
            for stream in tuple(streams):  # nobody tells which of them: other answers are asked for again
                hang_up(stream)

        request.extensions["trace"] = trace
        timer = threading.Timer(limit_s, give_up)
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
                content = b"".join(received(response, source, limits))
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise _stranger(source) from None

    def _beginning(self, response: httpx.Response, source: str, *, limit_s: float | None = None) -> bytes:
        """Reads as much of an answer as an error's can be long."""
        body = b""
        for piece in received(response, source, Limits(total_s=limit_s or self.timeout_s)):
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
