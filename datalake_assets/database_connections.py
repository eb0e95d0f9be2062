"""For how long a database is waited for while a connection to it is made; what a query takes is the query's own matter.

Drivers bound the wait for the network, and some not that for the server's greeting, which may never come, or drip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from datalake_assets.exchanges import bounded

__all__ = ["connected_in_time", "socket_of"]

#: Drivers that take a ``connect_timeout``; libpq takes whole seconds.
_BOUNDED_BY_NETWORK: Final = frozenset({"psycopg", "psycopg2", "pymysql", "mysqldb"})


def connected_in_time(driver: str, connect_s: float, whole_s: float) -> Callable[..., Any]:
    """What makes connections in time, for SQLAlchemy's event ``do_connect``.

    Args:
        driver: Its name of the DBAPI.
        connect_s: Seconds for a connection by the network.
        whole_s: Seconds for the greeting and whatever else precedes the first query.
    """

    def connected(dialect: Any, _record: object, arguments: Any, options: dict[str, Any]) -> Any:
        if driver in _BOUNDED_BY_NETWORK:
            options.setdefault("connect_timeout", max(1, round(connect_s)))
        if driver != "pymysql":
            return None  # as it would be without this
        connection = dialect.connect(*arguments, **options, defer_connect=True)
        try:
            with bounded(whole_s) as exchange:
                exchange.uses(lambda: socket_of(connection))
                connection.connect()
        except TimeoutError as error:
            raise dialect.loaded_dbapi.OperationalError(2013, f"timed out: {exchange.reason}") from error
        return connection

    return connected


def socket_of(connection: Any) -> Any:
    """The socket of a connection of pymysql; None of another driver's, and where there is none yet."""
    return getattr(connection, "_sock", None)
