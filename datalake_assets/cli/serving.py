"""The embedded ksqlDB server in the foreground."""

from __future__ import annotations

import datetime as dt
import errno
import os
from collections.abc import Sequence

from datalake_assets.cli.show import say
from datalake_assets.demo.embedded import DEMO_DAYS
from datalake_assets.demo.faults import Faults, parse_fault
from datalake_assets.demo.ksql_server import KsqlServer
from datalake_assets.demo.rows import GeneratorConfig
from datalake_assets.errors import ConfigError

__all__ = ["serve_ksqldb"]


def serve_ksqldb(
    *,
    port: int,
    records: int | None,
    events_per_day: int,
    seed: int,
    start: dt.datetime | None,
    user: str | None,
    password: str | None,
    faults: Sequence[str],
) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises:
        ConfigError: The port is taken, or a fault is none.
    """
    today = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = start.replace(tzinfo=dt.UTC) if start else today - dt.timedelta(days=DEMO_DAYS)
    server = KsqlServer(
        GeneratorConfig(seed=seed, start=begin, events_per_day=events_per_day, records=records),
        port=port,
        auth=None if user is None or password is None else (user, password),
        faults=Faults([parse_fault(fault) for fault in faults]),
    )
    try:
        server.serve_forever(lambda url: say(f"export DATALAKE_KSQLDB_URL={url}"))
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO).lower()
        raise ConfigError(f"port {port}: {reason}; give another with --port") from error
