"""The embedded ksqlDB server in a process of its own, so that its work is not counted as the client's."""

from __future__ import annotations

import sys

from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer

__all__ = ["main"]


def main(rows: int, events_per_day: int) -> None:
    """Serves streams of exactly so many rows until stdin ends; prints the URL."""
    with KsqlServer(GeneratorConfig(records=rows, events_per_day=events_per_day)) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
