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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.rest.auth import AuthManagerAdapter
from requests import PreparedRequest, Response, Session
from requests.exceptions import ReadTimeout, Timeout
from sqlalchemy import Engine, event

from datalake_assets import exchanges
from datalake_assets.database_connections import connected_in_time, socket_of
from datalake_assets.exchanges import bound_answers, bounded, hang_up, tell_connections
from datalake_assets.network import aws_session

__all__ = ["BoundedRestCatalog", "bound_database", "bounded_dynamodb", "bounded_glue"]

#: Seconds for a connection, for the next bytes of an answer, and for an exchange as a whole.
CONNECT_S, SILENT_S, WHOLE_S = 5.0, 60.0, exchanges.WHOLE_S
#: pyiceberg's property of a session of botocore.
_BOTOCORE = "botocore_session"
#: What the drivers of databases call the second.
_SILENT: dict[str, tuple[str, ...]] = {
    "pymysql": ("read_timeout", "write_timeout"),
    "mysqldb": ("read_timeout", "write_timeout"),
    "pg8000": ("timeout",),
}


class BoundedRestCatalog(RestCatalog):
    """A REST catalog that has a time to answer in, its server of tokens likewise.

    Raises:
        requests.exceptions.RequestException: It took longer, of every method.
    """

    #: Until when it counts as silent.
    _silent_until = 0.0

    def _create_session(self) -> Session:
        """As upstream, but that who is asked for tokens by other connections has a time to answer in, too."""
        session: Session = super()._create_session()
        if isinstance(session.auth, AuthManagerAdapter):
            session.auth = _BoundedAuth(session.auth, partial(self._in_time, f"who has the tokens for {self.uri}"))
        return session

    def _config_headers(self, session: Session) -> None:
        """Bounds a session that is new: tokens are asked for by it before upstream hands it on."""
        tell_connections()
        session.send = partial(self._sent, session.send)  # type: ignore[method-assign]  # adapters come later
        super()._config_headers(session)

    def _sent(self, send: Any, request: PreparedRequest, **options: Any) -> Response:
        """What `requests.Session.send` gives, in time; at once where it was silent just now."""
        if not options.get("timeout"):
            options["timeout"] = CONNECT_S, SILENT_S
        with self._in_time(str(request.url).partition("?")[0]):
            response: Response = send(request, **options)
        return response

    @contextmanager
    def _in_time(self, whom: str) -> Iterator[None]:
        """An exchange that has an end; none at all where it was silent just now.

        Raises:
            ReadTimeout: It lasted longer.
        """
        began = time.monotonic()
        if began < self._silent_until:
            raise ReadTimeout(f"{whom} was silent a moment ago, and is not asked again yet")
        try:
            with bounded(WHOLE_S) as exchange:
                yield
        except (Timeout, TimeoutError) as error:
            ended = time.monotonic()
            self._silent_until = 2 * ended - began  # believed for as long as it took
            if exchange.is_late:
                raise ReadTimeout(f"{exchange.reason} of {whom}") from error
            raise


class _BoundedAuth(AuthManagerAdapter):
    """What asks for a token before a request is sent; pyiceberg's own has no time-out."""

    def __init__(self, auth: AuthManagerAdapter, in_time: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(auth.auth_manager)
        self._in_time = in_time

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        with self._in_time():
            signed: PreparedRequest = super().__call__(request)
        return signed


def bounded_glue(name: str, properties: dict[str, Any]) -> Catalog:
    """A catalog in AWS Glue, whose answers are waited for as those of all services of AWS."""
    from pyiceberg.catalog.glue import GlueCatalog  # noqa: PLC0415  a tenth of a second, for those who need it

    return _bounded_aws(GlueCatalog, name, properties)


def bounded_dynamodb(name: str, properties: dict[str, Any]) -> Catalog:
    """A catalog in Amazon DynamoDB, likewise."""
    from pyiceberg.catalog.dynamodb import DynamoDbCatalog  # noqa: PLC0415  a tenth of a second, for those who need it

    return _bounded_aws(DynamoDbCatalog, name, properties)


def _bounded_aws(kind: type[Catalog], name: str, properties: dict[str, Any]) -> Catalog:
    from botocore.config import Config  # noqa: PLC0415  a tenth of a second, for those who need it

    given = properties.get(_BOTOCORE)
    session = given or aws_session()
    session.set_default_client_config(Config(connect_timeout=CONNECT_S, read_timeout=SILENT_S))
    bound_answers(session, WHOLE_S)
    catalog = kind(name, **{**properties, _BOTOCORE: session})
    if given is None:  # what is left goes to clients of files
        del catalog.properties[_BOTOCORE]
    return catalog


def bound_database(engine: Engine) -> None:
    """Gives a database a time to answer in; SQLite's file has a patience of its own."""
    if engine.dialect.name == "sqlite":
        return
    named = _SILENT.get(engine.dialect.driver, ())

    def limit(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        for name in named:
            options.setdefault(name, max(1, round(SILENT_S)))

    def begin(connection: Any, record: Any, _proxy: object) -> None:
        record.info[bound_database] = timer = threading.Timer(WHOLE_S, _shut_down_database, (connection,))
        timer.daemon = True
        timer.start()

    def end(_connection: Any, record: Any) -> None:
        record.info.pop(bound_database).cancel()

    event.listen(engine, "do_connect", limit)
    event.listen(engine, "do_connect", connected_in_time(engine.dialect.driver, CONNECT_S, WHOLE_S))
    event.listen(engine, "checkout", begin)
    event.listen(engine, "checkin", end)


def _shut_down_database(connection: Any) -> None:
    """Ends the waits for a connection whose driver tells its socket, as libpq's and pymysql; others have time-outs."""
    hang_up(socket_of(connection))
    with suppress(AttributeError, OSError), socket.socket(fileno=connection.fileno()) as found:
        try:
            found.shutdown(socket.SHUT_RDWR)
        finally:
            found.detach()  # it is the driver's
