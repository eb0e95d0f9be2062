"""The embedded source of growing streams, in a process of its own, so that its work is not counted as ours."""

from __future__ import annotations

import datetime as dt
import sys

from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig, Pace
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer

__all__ = ["main"]


def main(rate: int, broken_every: int) -> None:
    """Serves streams that begin now until stdin ends; prints the URL, and when they began, in seconds since 1970."""
    now = dt.datetime.now(dt.UTC)
    start = now.replace(hour=0, minute=0, second=0, microsecond=0) - dt.timedelta(days=2)
    pace = Pace(1, now, rate * 86_400, punctual=True, broken_every=broken_every)
    with KsqlServer(GeneratorConfig(start=start, events_per_day=1, paces=(pace,))) as server:
        print(server.url, now.timestamp(), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
