"""The embedded ksqlDB server in the foreground."""

from __future__ import annotations

import datetime as dt
import signal
import threading

from datalake_assets.cli.show import say
from datalake_assets.demo.embedded import DEMO_DAYS
from datalake_assets.demo.ksql_server import KsqlServer
from datalake_assets.demo.rows import GeneratorConfig

__all__ = ["serve_ksqldb", "wait_for_signal"]


def serve_ksqldb(
    *,
    port: int,
    records: int | None,
    events_per_day: int,
    seed: int,
    start: dt.datetime | None,
    user: str | None,
    password: str | None,
) -> None:
    """Serves until SIGINT or SIGTERM."""
    today = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = start.replace(tzinfo=dt.UTC) if start else today - dt.timedelta(days=DEMO_DAYS)
    config = GeneratorConfig(seed=seed, start=begin, events_per_day=events_per_day, records=records)
    with KsqlServer(config, port=port, user=user, password=password) as server:
        say(f"export DATALAKE_KSQLDB_URL={server.url}")
        wait_for_signal()


def wait_for_signal() -> None:
    """Returns on SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(0.5):  # a wait without end would not see the signal on every platform
        pass
