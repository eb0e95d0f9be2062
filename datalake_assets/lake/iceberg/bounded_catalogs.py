"""For how long a catalog is waited for: pyiceberg waits for ever, and one that is silent would hold all other feeds.

A server that takes the connection and says nothing is as good as none, and so is one that says a byte a minute. So an
exchange has a time to be over in, whoever is on the other side; after that the connection is shut down, which ends the
wait for it in whichever thread. Who finds a catalog silent has waited for all who ask soon after: a lake may have a
hundred tables there, and other feeds are not to wait for each of them.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import RestCatalog
from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from requests.exceptions import ReadTimeout, RequestException, Timeout
from requests.utils import select_proxy
from sqlalchemy import Engine, event
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from datalake_assets.network import aws_session

__all__ = ["BoundedRestCatalog", "bound_database", "bounded_glue"]

#: Seconds for a connection, for the next bytes of an answer, and for an exchange as a whole.
CONNECT_S, SILENT_S, WHOLE_S = 5.0, 60.0, 120.0
#: pyiceberg's property of a session of botocore.
_BOTOCORE = "botocore_session"
#: What the drivers of databases call the first two; libpq takes whole seconds.
_DRIVERS: dict[str, dict[str, tuple[str, ...]]] = {
    "psycopg": {"connect": ("connect_timeout",)},
    "psycopg2": {"connect": ("connect_timeout",)},
    "pymysql": {"connect": ("connect_timeout",), "silent": ("read_timeout", "write_timeout")},
    "mysqldb": {"connect": ("connect_timeout",), "silent": ("read_timeout", "write_timeout")},
    "pg8000": {"silent": ("timeout",)},
}


class BoundedRestCatalog(RestCatalog):
    """A REST catalog that has a time to answer in, its server of tokens likewise.

    Raises:
        requests.exceptions.RequestException: It took longer, of every method.
    """

    #: Until when it counts as silent.
    _silent_until = 0.0

    def _config_headers(self, session: Session) -> None:
        """Bounds a session that is new: tokens are asked for by it before upstream hands it on."""
        session.send = partial(self._sent, session, session.send)  # type: ignore[method-assign]  # adapters come later
        super()._config_headers(session)

    def _sent(self, session: Session, send: Any, request: PreparedRequest, **options: Any) -> Response:
        """What `requests.Session.send` gives, in time; at once where it was silent just now."""
        began = time.monotonic()
        if began < self._silent_until:
            raise ReadTimeout(
                f"{str(request.url).partition('?')[0]} was silent a moment ago, and is not asked again yet"
            )
        try:
            return _sent(session, send, request, **options)
        except Timeout:
            ended = time.monotonic()
            self._silent_until = 2 * ended - began  # believed for as long as it took
            raise


def bounded_glue(name: str, properties: dict[str, Any]) -> Catalog:
    """A catalog in AWS Glue, whose answers are waited for as those of all services of AWS."""
    from botocore.config import Config  # noqa: PLC0415  a tenth of a second, for those who need it
    from pyiceberg.catalog.glue import GlueCatalog  # noqa: PLC0415  likewise

    given = properties.get(_BOTOCORE)
    session = given or aws_session()
    session.set_default_client_config(Config(connect_timeout=CONNECT_S, read_timeout=SILENT_S))
    catalog = GlueCatalog(name, **{**properties, _BOTOCORE: session})
    if given is None:  # what is left goes to clients of files
        del catalog.properties[_BOTOCORE]
    return catalog


def bound_database(engine: Engine) -> None:
    """Gives a database a time to answer in; SQLite's file has a patience of its own."""
    named = _DRIVERS.get(engine.dialect.driver)
    if named is None:
        return

    def limit(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        for which, seconds in (("connect", CONNECT_S), ("silent", SILENT_S)):
            for name in named.get(which, ()):
                options.setdefault(name, max(1, round(seconds)))

    def begin(connection: Any, record: Any, _proxy: object) -> None:
        record.info[bound_database] = timer = threading.Timer(WHOLE_S, _shut_down_database, (connection,))
        timer.daemon = True
        timer.start()

    def end(_connection: Any, record: Any) -> None:
        record.info.pop(bound_database).cancel()

    event.listen(engine, "do_connect", limit)
    event.listen(engine, "checkout", begin)
    event.listen(engine, "checkin", end)


def _shut_down_database(connection: Any) -> None:
    """Ends the waits for a connection whose driver tells its socket, as those of libpq do; others have time-outs."""
    with suppress(AttributeError, OSError), socket.socket(fileno=connection.fileno()) as found:
        try:
            found.shutdown(socket.SHUT_RDWR)
        finally:
            found.detach()  # it is the driver's


class _Exchange(threading.local):
    """The connections that the exchange of this thread has used; None outside of one."""

    connections: list[HTTPConnection] | None = None


_exchange = _Exchange()


class _Noted(HTTPConnection):
    def request(self, *arguments: Any, **options: Any) -> None:
        """Says that it is in use."""
        _note(self)
        super().request(*arguments, **options)


class _NotedSecure(HTTPSConnection):
    def request(self, *arguments: Any, **options: Any) -> None:
        """Says that it is in use."""
        _note(self)
        super().request(*arguments, **options)


def _note(connection: HTTPConnection) -> None:
    if _exchange.connections is not None:
        _exchange.connections.append(connection)


class _Connections(HTTPConnectionPool):
    ConnectionCls = _Noted


class _SecureConnections(HTTPSConnectionPool):
    ConnectionCls = _NotedSecure


_POOLS = {"http": _Connections, "https": _SecureConnections}


def _sent(session: Session, send: Any, request: PreparedRequest, **options: Any) -> Response:
    """What `requests.Session.send` gives, in time."""
    if not options.get("timeout"):
        options["timeout"] = CONNECT_S, SILENT_S
    adapter = session.get_adapter(str(request.url))
    if isinstance(adapter, HTTPAdapter):
        adapter.poolmanager.pool_classes_by_scheme = _POOLS
        proxy = select_proxy(str(request.url), options.get("proxies"))
        if proxy and not proxy.startswith("socks"):
            adapter.proxy_manager_for(proxy).pool_classes_by_scheme = _POOLS
    with _hung_up_when_late(str(request.url)):
        response: Response = send(request, **options)
    return response


@contextmanager
def _hung_up_when_late(url: str) -> Iterator[None]:
    """Shuts the connections of this thread's exchange down if it takes too long, its head and its body together."""
    connections: list[HTTPConnection] = []
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        for each in connections:
            with suppress(AttributeError, OSError):  # it was closed meanwhile
                each.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(WHOLE_S, give_up)
    timer.daemon = True
    outer, _exchange.connections = _exchange.connections, connections
    timer.start()
    try:
        yield
    except (RequestException, HTTPError, OSError):
        if not is_late.is_set():
            raise
    finally:
        timer.cancel()
        _exchange.connections = outer
    if is_late.is_set():  # a head that ends too early is taken for a whole one, by Python's own client
        raise ReadTimeout(f"no whole answer of {url.partition('?')[0]} within {WHOLE_S:g} s")
