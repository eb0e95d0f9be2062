"""ksqlDB's REST interface over HTTP/1.1: requests, credentials, TLS, bounded retries; answers as raw bytes.

Answers are streamed in whatever chunks arrive: splitting lines in the HTTP library costs several times the transfer,
and splits at characters that ksqlDB sends inside of strings.

What a ksqlDB server's failures mean: which error, for whom, and whether asking again can help.

ksqlDB reuses codes: a busy server answers 429, 503, a masked 500 or, before 8.0.1, a 400 that looks like bad SQL. All
of that is told apart here, once, so that retries and messages agree.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, Self, TypeVar

import httpx
import stamina
from pydantic import SecretStr

from datalake_assets.errors import (
    ConfigError,
    DatalakeError,
    IncompleteResponse,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)

__all__ = [
    "KsqlAnswer",
    "KsqlClient",
    "Properties",
    "ServerVersion",
    "TransientFailure",
    "failed_answer",
    "failed_exchange",
    "failed_rows",
    "one_line",
    "retried",
    "surfaced",
]

_T = TypeVar("_T")

ATTEMPTS = 4
RETRY_BUDGET_S = 30.0
#: The hourly bandwidth budget of pull queries refills slowly; asking again at once is refused again.
_LATE_S = 10.0
#: HTTP statuses of a server, or of a proxy before it, that is busy or restarting.
_BUSY = frozenset({429, 502, 503, 504})
# ksqlDB, ServerUtils / PullQueryExecutor / RateLimiter: the texts that tell these cases apart
_MASKED = "internal error when processing the query"
_NO_HOST = "Unable to execute pull query"
_BANDWIDTH = "bandwidth rate limit"
_LONGEST_MESSAGE = 400
_USERINFO = re.compile(r"//[^/\s@]*@")

_CREDENTIALS = "set DATALAKE_KSQLDB_USER and DATALAKE_KSQLDB_PASSWORD"
_URL = "correct DATALAKE_KSQLDB_URL"
_WELL = "nothing was committed; run it again when the server is well"


class TransientFailure(Exception):
    """A failure that another attempt may not meet; never leaves this package.

    Args:
        error: What callers get if it stays.
        wait_s: Seconds to wait before the next attempt; None leaves it to the back-off.
    """

    def __init__(self, error: SourceError, *, wait_s: float | None = None) -> None:
        self.error, self.wait_s = error, wait_s
        super().__init__(str(error))


def _backoff(error: Exception) -> bool | float:
    if isinstance(error, TransientFailure):
        return True if error.wait_s is None else error.wait_s
    return False


def retried(call: Callable[[], _T]) -> _T:
    """Calls until it succeeds, fails for good, or the bounded attempts are used up.

    Raises:
        SourceError: The last failure.
    """
    with surfaced():
        for attempt in stamina.retry_context(on=_backoff, attempts=ATTEMPTS, timeout=RETRY_BUDGET_S):
            with attempt:
                return call()
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def surfaced() -> Iterator[None]:
    """Raises a transient failure as the error that it stands for."""
    try:
        yield
    except TransientFailure as failure:
        raise failure.error from failure.__cause__


def one_line(text: str) -> str:
    """A foreign message on one line, bounded, with no credentials of an URL in it."""
    line = _USERINFO.sub("//", " ".join(text.split()))
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 1] + "…"


def failed_answer(source: str, status: int, body: bytes) -> NoReturn:
    """Raises what an answer other than 200 means.

    Raises:
        TransientFailure: Asking again may help.
        SourceRefused: The server refused, or is none of ksqlDB's.
        SourceUnavailable: It failed.
    """
    code, message = _error_of(body)
    if status in _BUSY:
        what = message or f"answered HTTP {status}"
        raise TransientFailure(SourceUnavailable(source, f"the server is busy: {what}", cure=_WELL))
    if status == httpx.codes.UNAUTHORIZED:
        raise SourceRefused(source, "wrong user or password", cure=_CREDENTIALS)
    if status == httpx.codes.FORBIDDEN:
        reason = f"wrong user or password, or no access: {message or 'HTTP 403'}"
        raise SourceRefused(source, reason, cure=f"{_CREDENTIALS}, or grant this user access")
    if not code:
        raise _not_ksqldb(source, status)
    if status < httpx.codes.INTERNAL_SERVER_ERROR:
        _refused(source, code, message)
    error = SourceUnavailable(source, f"the server failed: {message}", cure=_WELL)
    if _MASKED in message:
        raise TransientFailure(error)
    raise error


def _not_ksqldb(source: str, status: int) -> SourceError:
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return SourceUnavailable(source, f"answered HTTP {status}", cure=_WELL)
    return SourceRefused(source, f"not a ksqlDB server: answered HTTP {status}", cure=_URL)


def _refused(source: str, code: int, message: str) -> NoReturn:
    if _NO_HOST in message:
        raise TransientFailure(SourceUnavailable(source, message, cure=_WELL))
    if _BANDWIDTH in message:
        raise TransientFailure(SourceUnavailable(source, message, cure=_WELL), wait_s=_LATE_S)
    raise SourceRefused(source, message or f"error {code}")


def failed_rows(source: str, message: str) -> NoReturn:
    """Raises what an error that came among the rows means: the answer is incomplete, whatever the reason.

    Raises:
        TransientFailure: Asking again from the start may help.
        IncompleteResponse: It would not.
    """
    message = one_line(message)
    error = IncompleteResponse(source, f"the server gave up while sending rows: {message}")
    if any(text in message for text in (_MASKED, _NO_HOST, "rate limit")):
        raise TransientFailure(error)
    raise error


def _error_of(body: bytes) -> tuple[int, str]:
    """Code and message of ksqlDB's error document; ``(0, "")`` if it is none."""
    try:
        document = json.loads(body)
        return int(document["error_code"]), one_line(str(document.get("message") or ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0, ""


@contextmanager
def failed_exchange(source: str, *, receiving: bool = False) -> Iterator[None]:
    """Translates what httpx raises.

    Args:
        source: What is asked.
        receiving: Whether rows were under way, so that a break leaves an incomplete answer.
    """
    try:
        yield
    except httpx.InvalidURL as error:
        raise SourceRefused(source, "not a usable URL", cure=_URL) from error
    except httpx.TransportError as error:
        raise _broken(source, error, receiving=receiving) from error
    except httpx.StreamError as error:  # closed under our feet
        raise IncompleteResponse(source, "the answer was closed before it ended") from error


def _broken(source: str, error: httpx.TransportError, *, receiving: bool) -> DatalakeError | TransientFailure:
    match error:
        case httpx.UnsupportedProtocol():
            return SourceRefused(source, "not a usable URL", cure=_URL)
        case httpx.ConnectTimeout():
            return TransientFailure(SourceUnavailable(source, "no connection in time", cure=f"{_WELL}, or {_URL}"))
        case httpx.ConnectError():
            return _unconnected(source, error)
        case httpx.TimeoutException():
            cure = f"{_WELL}, or raise DATALAKE_KSQLDB_TIMEOUT_S"
            return TransientFailure(SourceUnavailable(source, "no answer in time", cure=cure))
        case _ if receiving:
            return TransientFailure(IncompleteResponse(source, "the connection broke before the answer was complete"))
        case _:
            reason = "the connection broke before an answer came, or it is no HTTP server"
            return TransientFailure(SourceUnavailable(source, reason, cure=f"{_WELL}, or {_URL}"))


def _unconnected(source: str, error: httpx.ConnectError) -> DatalakeError | TransientFailure:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"its TLS certificate is not trusted: {one_line(cause.verify_message)}"
            return SourceUnavailable(source, reason, cure="set DATALAKE_KSQLDB_CA_FILE to its authority's PEM file")
        if isinstance(cause, ssl.SSLError):
            reason = f"no TLS connection: {one_line(cause.reason or 'handshake failed')}"
            return SourceUnavailable(source, reason, cure=f"{_URL}: is it http, not https?")
        if isinstance(cause, socket.gaierror):
            return TransientFailure(SourceUnavailable(source, "no such host", cure=_URL))
    reason = "connection refused" if "refused" in str(error).lower() else "cannot connect"
    return TransientFailure(SourceUnavailable(source, reason, cure=f"start the server, or {_URL}"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
