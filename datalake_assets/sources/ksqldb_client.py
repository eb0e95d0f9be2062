"""ksqlDB's REST interface over HTTP/1.1: requests, credentials, TLS, bounded retries; answers as raw bytes.

Answers are streamed in whatever chunks arrive: splitting lines in the HTTP library costs several times the transfer,
and splits at characters that ksqlDB sends inside of strings.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import httpx
from pydantic import SecretStr

from datalake_assets.errors import ConfigError, DatalakeError, SourceRefused
from datalake_assets.sources.ksqldb_errors import (
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
_LONGEST_ERROR_BYTES = 64 * 1024
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


class KsqlAnswer:
    """The open answer to a query; close it, or read it to its end."""

    def __init__(self, source: str, response: httpx.Response) -> None:
        self.source = source
        self._response = response

    def chunks(self) -> Iterator[bytes]:
        """Streams the raw bytes, once.

        Raises:
            TransientFailure: The answer broke off.
        """
        with failed_exchange(self.source, receiving=True):
            yield from self._response.iter_bytes()

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
        password: Likewise.
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
        self._http = httpx.Client(
            auth=httpx.BasicAuth(user, secret or "") if user else None,
            verify=_trust(ca_file) if parsed.scheme == "https" else False,  # loading authorities takes 0.1 s
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
            response = self._http.send(request, stream=True)
            if response.status_code != httpx.codes.OK:
                with contextlib.closing(response):
                    failed_answer(source, response.status_code, _beginning(response))
        return KsqlAnswer(source, response)

    def close_query(self, query_id: str) -> None:
        """Ends a running query at the server, if it can; failures are only logged."""
        if self._http.is_closed:  # a read that was given up is closed late, by the garbage collector
            return
        try:
            with failed_exchange(self.source()):
                self._http.post(self.url + "/close-query", json={"queryId": query_id}, timeout=_CLOSE_TIMEOUT_S)
        except (DatalakeError, TransientFailure) as error:
            logger.debug("could not close query %s: %s", query_id, error)

    def _json(self, method: str, path: str, source: str, body: object = None) -> Any:
        with failed_exchange(source), self._http.stream(method, self.url + path, json=body) as response:
            if response.status_code != httpx.codes.OK:
                failed_answer(source, response.status_code, _beginning(response))
            content = response.read()
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise _stranger(source) from None


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        parsed = httpx.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError(f"{one_line(url)!r} is not the URL of a ksqlDB server; write it like 'http://localhost:8088'")
    return parsed


def _trust(ca_file: str | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"DATALAKE_KSQLDB_CA_FILE: {ca_file!r} is not a readable PEM file") from error


def _beginning(response: httpx.Response) -> bytes:
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > _LONGEST_ERROR_BYTES:
            break
    return body


def _stranger(source: str) -> SourceRefused:
    return SourceRefused(source, "not a ksqlDB server: its answer is not ksqlDB's", cure="correct DATALAKE_KSQLDB_URL")
