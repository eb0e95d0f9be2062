"""A scripted ksqlDB server's answers, and what a feed that reads them lands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from datalake_assets.core.batches import ReadRequest, SourceBatch
from datalake_assets.feed import Feed
from datalake_assets.sources.ksqldb.source import KsqlDB
from datalake_assets_tests.sources.ksqldb.scripted_server import (
    Answer,
    Request,
    ScriptedServer,
    description,
    info,
    scripted,
)

STREAM = {"ID": "INTEGER", "T": "STRING"}
HEADER = "`ID` INTEGER, `T` STRING, `ROWTIME` BIGINT"
NUMBERED = f"{HEADER}, `ROWPARTITION` INTEGER, `ROWOFFSET` BIGINT"
ALL = ReadRequest()
#: Silence that ends a push query: so long that a busy machine makes none of it, however slowly rows come.
IDLE_S = 1.0
TABLE = description("S", "TABLE", ID="INTEGER")


def feed(kind: str = "stream", **source: Any) -> Feed:
    own = {name: source.pop(name) for name in ("time_column",) if name in source}
    document = {"object": "S", "mode": "pull", "idle_s": IDLE_S, **source}
    return Feed(name="s", kind=kind, source=document, **own)


def serving(query: Answer | Callable[[Request], Answer], *, described: Answer | None = None, version: str = "0.29.0"):
    def handle(request: Request) -> Answer:
        if request.path == "/info":
            return info(version)
        if request.path == "/ksql":
            return described or description("S", **STREAM)
        if request.path == "/close-query":
            return Answer()
        return query(request) if callable(query) else query

    return scripted(handle)


def landed(server: ScriptedServer, read: Feed, request: ReadRequest = ALL) -> list[SourceBatch]:
    source = KsqlDB(server.url, timeout_s=5)
    try:
        return list(source.read(read, request))
    finally:
        source.close()


def values(batches: Iterable[SourceBatch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.rows.to_pylist()]


def sql_of(server: ScriptedServer) -> list[str]:
    queries = (request.body for request in server.requests if request.path in {"/query-stream", "/query"})
    return [body.get("sql") or body.get("ksql") for body in queries]
