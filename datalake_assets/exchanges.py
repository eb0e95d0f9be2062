"""For how long an exchange with another machine may last, whatever it sends meanwhile.

Clients wait for each byte by itself: a server that says one now and then is never late, and holds a thread, and what
waits for that thread, for as long as it likes. So an exchange has an end, at which its connections are shut down. That
ends a wait in whichever thread; to close them would not.

Which connections an exchange uses is told by the connections. Those of urllib3, by which requests and opensearch-py
talk, do so from `tell_connections` on; those of dlt, too, which uses requests.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

__all__ = [
    "TIMES_SILENT",
    "WHOLE_S",
    "Exchange",
    "HttpxConnections",
    "bound_answers",
    "bound_others",
    "bounded",
    "hang_up",
    "tell_connections",
]

#: Seconds for an exchange of a request and an answer of moderate size.
WHOLE_S = 120.0
#: How much longer an answer may take as a whole than its next bytes, where a person says how long these may take.
TIMES_SILENT = 4
#: httpx's own limit of connections at once.
_CONNECTIONS_KEPT = 100


class Exchange:
    """One exchange of one thread, from now on until its end.

    Args:
        whole_s: Seconds that it may last.

    Attributes:
        began: When, by the monotonic clock.
    """

    def __init__(self, whole_s: float) -> None:
        self.began = time.monotonic()
        self._whole_s, self._uses = whole_s, list[Callable[[], Any]]()
        self._late, self._outer = threading.Event(), _own.exchange
        self._timer = threading.Timer(whole_s, self._give_up)
        self._timer.daemon = True
        _own.exchange = self
        self._timer.start()

    @property
    def is_late(self) -> bool:
        """Whether it lasted too long, and was ended."""
        return self._late.is_set()

    @property
    def reason(self) -> str:
        """Why it was ended, for a person."""
        return f"no whole answer within {self._whole_s:g} s"

    def uses(self, socket_of: Callable[[], Any]) -> None:
        """Takes note of a connection, by what gives its socket, or None."""
        self._uses.append(socket_of)
        if self.is_late:
            hang_up(socket_of())

    def end(self) -> None:
        """Ends it; what is late by then is so for good."""
        self._timer.cancel()
        if _own.exchange is self:
            _own.exchange = self._outer

    def _give_up(self) -> None:
        self._late.set()
        for socket_of in tuple(self._uses):
            hang_up(socket_of())


class _Own(threading.local):
    """The exchange of this thread; None outside of one."""

    exchange: Exchange | None = None


_own = _Own()


@contextmanager
def bounded(whole_s: float) -> Iterator[Exchange]:
    """An exchange of this thread that has an end.

    Args:
        whole_s: Seconds that it may last.

    Raises:
        TimeoutError: It lasted longer. What it gave or raised by then is worth nothing: a head that ends too early is
            taken for a whole one by Python's own client.
    """
    exchange = Exchange(whole_s)
    try:
        yield exchange
    except Exception as error:
        if exchange.is_late:
            raise TimeoutError(exchange.reason) from error
        raise
    finally:
        exchange.end()
    if exchange.is_late:
        raise TimeoutError(exchange.reason)


def hang_up(connection: Any) -> None:
    """Ends what waits for a socket, in whichever thread."""
    if connection is not None:
        with contextlib.suppress(OSError):  # it was closed meanwhile
            connection.shutdown(socket.SHUT_RDWR)


class _Telling:
    """A connection of urllib3 that tells an exchange of its thread that it is in use."""

    sock: Any
    _timer: threading.Timer | None = None

    def connect(self) -> None:
        """As urllib3's; a proxy may drip, too."""
        self._tell()
        super().connect()  # type: ignore[misc]  # of whatever it is mixed with

    def request(self, *arguments: Any, **options: Any) -> Any:
        """As urllib3's; a connection may be older than the exchange."""
        self._tell()
        return super().request(*arguments, **options)  # type: ignore[misc]

    def close(self) -> None:
        """As urllib3's."""
        if self._timer is not None:
            self._timer.cancel()
        super().close()  # type: ignore[misc]

    def _tell(self) -> None:
        if self._timer is not None:  # of the answer before, which is read
            self._timer.cancel()
            self._timer = None
        if _own.exchange is not None:
            _own.exchange.uses(lambda: self.sock)
        elif _others.whole_s is not None:
            self._timer = threading.Timer(_others.whole_s, lambda: hang_up(self.sock))
            self._timer.daemon = True
            self._timer.start()


class _Others:
    """What exchanges of urllib3 may last that have no end of their own; None for anything."""

    whole_s: float | None = None


_others = _Others()


def bound_others(whole_s: float) -> None:
    """Gives an end to all exchanges by urllib3 in this process that nobody bounds: those of people's own code, by dlt.

    What waits for one that lasts longer gets an error of a connection that broke off, as of any other.
    """
    tell_connections()
    _others.whole_s = whole_s


class HttpxConnections:
    """The connections of a client of httpx, which does not say which of them an exchange uses: any may be hung up."""

    def __init__(self) -> None:
        self._streams: deque[Any] = deque(maxlen=_CONNECTIONS_KEPT)

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Takes note of new ones: for the extension ``trace`` of a request."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._streams.append(info["return_value"])
            if _own.exchange is not None:
                _own.exchange.uses(partial(info["return_value"].get_extra_info, "socket"))

    def begin(self, request: Any) -> None:
        """Takes note of the connections of a request: for the client's hook of requests.

        Raises:
            TimeoutError: The exchange that it would be of is late, and has to end.
        """
        if _own.exchange is not None and _own.exchange.is_late:
            raise TimeoutError(_own.exchange.reason)
        request.extensions["trace"] = self.trace

    @contextmanager
    def bounded(self, whole_s: float) -> Iterator[None]:
        """As `bounded`."""
        with bounded(whole_s) as exchange:
            for stream in tuple(self._streams):
                exchange.uses(partial(stream.get_extra_info, "socket"))
            yield


@functools.cache
def tell_connections() -> None:
    """Has all connections that urllib3 makes from now on tell the exchanges that they are used by; once is enough."""
    from urllib3 import connectionpool  # noqa: PLC0415  for those who need it

    _mixed(connectionpool.HTTPConnectionPool)
    _mixed(connectionpool.HTTPSConnectionPool)


class _Events(Protocol):
    """What takes hooks."""

    def register(self, event_name: str, handler: Any, unique_id: str | None = None) -> None: ...


@functools.cache
def _tell_connections_of_aws() -> None:
    from botocore import awsrequest  # noqa: PLC0415  a tenth of a second, for those who need it

    _mixed(awsrequest.AWSHTTPConnectionPool)
    _mixed(awsrequest.AWSHTTPSConnectionPool)


def _mixed(pool: Any) -> None:
    """Replaces what a pool makes its connections of, as urllib3 has it for those who want others."""
    pool.ConnectionCls = type(pool.ConnectionCls.__name__, (_Telling, pool.ConnectionCls), {})


def bound_answers(events: _Events, whole_s: float = WHOLE_S) -> None:
    """Gives each exchange of a client of botocore, or of those that a session makes, an end: not for those of files.

    They raise botocore's ``ReadTimeoutError`` then, and try again what fails otherwise only within that time.

    Args:
        events: The session, or the client's events.
        whole_s: Seconds that an exchange may last, and after which none follows one that broke off.
    """
    from botocore.exceptions import ReadTimeoutError  # noqa: PLC0415  a tenth of a second, for those who need it

    _tell_connections_of_aws()
    began = threading.local()

    def begin(request: Any, **_: Any) -> None:
        began.exchange, began.url = Exchange(whole_s), str(request.url).partition("?")[0]

    def received(**_: Any) -> None:
        """Before what came is parsed, which may be half of an answer."""
        exchange = getattr(began, "exchange", None)
        if exchange is not None:
            exchange.end()
            if exchange.is_late:
                raise ReadTimeoutError(endpoint_url=f"{began.url} ({exchange.reason})")

    def end(*, context: dict[str, Any], exception: Exception | None, **_: Any) -> None:
        exchange, began.exchange = getattr(began, "exchange", None), None
        if exchange is None:
            return
        exchange.end()
        first = context.setdefault("datalake_began", exchange.began)  # of all attempts of a call
        if exchange.is_late:
            raise ReadTimeoutError(endpoint_url=f"{began.url} ({exchange.reason})")
        if exception is not None and time.monotonic() - first > whole_s:
            raise exception

    hooks: dict[str, Any] = {"before-send": begin, "before-parse": received, "response-received": end}
    for event, hook in hooks.items():
        events.register(event, hook, unique_id=f"datalake {event}")
