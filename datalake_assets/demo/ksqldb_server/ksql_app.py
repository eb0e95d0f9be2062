"""The server's endpoints: which request gets which answer."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from datalake_assets.demo.ksqldb_server.faults import Faults
from datalake_assets.demo.ksqldb_server.generator import Generator
from datalake_assets.demo.ksqldb_server.http1 import Headers, Request, Response
from datalake_assets.demo.ksqldb_server.ksql_admin import CLUSTER_ID, HEALTH, INFO, SERVICE_ID, entity
from datalake_assets.demo.ksqldb_server.ksql_ast import Select
from datalake_assets.demo.ksqldb_server.ksql_catalog import Catalog
from datalake_assets.demo.ksqldb_server.ksql_errors import MASKED, KsqlError, bad_request, bad_statement
from datalake_assets.demo.ksqldb_server.ksql_parser import parse
from datalake_assets.demo.ksqldb_server.ksql_query import Queries, Query
from datalake_assets.demo.ksqldb_server.ksql_stream import ResultSender
from datalake_assets.demo.ksqldb_server.wire import JSON, KSQL_V1_JSON, accepts, negotiate, row_writer

__all__ = ["KsqlApp"]

_log = logging.getLogger(__name__)
_OPEN_PATHS = ("/healthcheck", "/v1/metadata", "/v1/metadata/id")
# properties that a request may not set (ksqlDB's immutable properties)
_DENIED = frozenset({"ksql.service.id", "ksql.extension.dir", "ksql.streams.bootstrap.servers", "bootstrap.servers"})
_MAX_PUSH_QUERIES = 100  # ksqlDB's default for ksql.max.push.queries
# the codes and texts that go with an injected HTTP status
_INJECTED = {
    401: (40100, "Unauthorized"),
    403: (40300, "Forbidden"),
    429: (42900, "Host is at rate limit for pull queries. Currently set to 1.0 qps."),
    500: (50000, MASKED),
    503: (50302, "Server initializing"),
}
_SCOPE = {"path": [], "clusters": {"kafka-cluster": CLUSTER_ID, "ksql-cluster": SERVICE_ID}}


class KsqlApp:
    """Answers requests.

    Args:
        generator: The data.
        faults: What goes wrong.
        auth: User and password that HTTP Basic must give; None asks for none.
    """

    def __init__(self, generator: Generator, faults: Faults, auth: tuple[str, str] | None) -> None:
        self._generator, self._faults, self._auth = generator, faults, auth
        self._catalog = Catalog(faults)
        self._queries = Queries(generator, self._catalog)
        self._running: dict[str, ResultSender] = {}
        self._push_queries = 0
        self._routes: dict[tuple[str, str], Callable[[Request, Response], Awaitable[None]]] = {
            ("POST", "/query-stream"): self._query,
            ("POST", "/query"): self._query,
            ("POST", "/close-query"): self._close_query,
            ("POST", "/ksql"): self._ksql,
            ("POST", "/inserts-stream"): self._inserts,
        }

    async def __call__(self, request: Request, response: Response) -> None:
        """Answer one request."""
        is_query = request.path in {"/query", "/query-stream"}
        try:
            self._admit(request)
            route = self._routes.get((request.method, request.path), self._fixed)
            await route(request, response)
        except KsqlError as error:
            typeless = is_query or error.status == 401  # noqa: PLR2004 - refusals before the endpoint carry no type
            await _plain(response, error.status, error.body(), "" if typeless else JSON)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - a server answers whatever fails in it
            _log.exception("%s %s failed", request.method, request.path)
            if response.started:
                await response.cut()
            else:
                await _plain(response, 500, KsqlError(500, 50000, MASKED).body(), "" if is_query else JSON)

    async def close_queries(self) -> None:
        """End every push query as a server does that is stopped gracefully: as if it were complete."""
        pushed = [sender for sender in self._running.values() if sender.is_push]
        for sender in pushed:
            sender.closed.set()
        await asyncio.gather(*(sender.done.wait() for sender in pushed))

    def _admit(self, request: Request) -> None:
        if self._auth is not None and request.path not in _OPEN_PATHS:
            expected = base64.b64encode(":".join(self._auth).encode()).decode("ascii")
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Basic {expected}".encode()):
                raise KsqlError(401, 40100, "Unauthorized")
        status = self._faults.take("status", None) if request.method == "POST" else None
        if status is not None:
            raise _injected(int(status))

    async def _query(self, request: Request, response: Response) -> None:
        if request.http_version == "1.0":
            raise bad_request("This endpoint is only available when using HTTP1.1 or HTTP2")
        old = request.path == "/query"
        content_type = negotiate(request.headers.get("accept"), old_endpoint=old)
        if content_type is None:
            await _plain(response, 406, b"", "")
            return
        body = _json_object(request.body)
        sql = _text(body, "ksql" if old else "sql")
        properties = _properties(body, "streamsProperties" if old else "properties")
        query = self._queries.start(_one_select(sql), properties)
        status = self._faults.take("status", query.source)
        if status is not None:
            raise _injected(int(status))
        await self._send(query, ResultSender(query, row_writer(content_type, query), response, self._faults))

    async def _send(self, query: Query, sender: ResultSender) -> None:
        if query.is_push and self._push_queries >= _MAX_PUSH_QUERIES:
            raise KsqlError(400, 40003, "Maximum number of push queries exceeded")
        self._push_queries += query.is_push
        if not query.is_table_pull:
            self._running[query.query_id] = sender
        try:
            await sender.send()
        finally:
            sender.done.set()
            self._push_queries -= query.is_push
            self._running.pop(query.query_id, None)

    async def _close_query(self, request: Request, response: Response) -> None:
        query_id = _text(_json_object(request.body), "queryId")
        sender = self._running.pop(query_id, None)
        if sender is None:
            raise bad_request(f"No query with id {query_id}")
        sender.closed.set()
        await _plain(response, 200, b"", "")

    async def _inserts(self, request: Request, _response: Response) -> None:
        if request.http_version != "2":
            raise KsqlError(400, 40004, "This endpoint is only available when using HTTP2")
        raise bad_request("This server's streams are generated: nothing can be inserted")

    async def _ksql(self, request: Request, response: Response) -> None:
        if not _accepts_json(request):
            await _plain(response, 406, b"", "")
            return
        body = _json_object(request.body)
        _properties(body, "streamsProperties")
        statements = parse(_text(body, "ksql"))
        entities = [entity(statement, self._catalog, self._generator) for statement in statements]
        await _plain(response, 200, orjson.dumps(entities), JSON)

    async def _fixed(self, request: Request, response: Response) -> None:
        """The GET endpoints, whose answers hardly depend on the request."""
        if request.method in {"GET", "HEAD"}:
            if request.path == "/":
                await _plain(response, 307, b"", "", [("location", "/info")])
                return
            if request.path.startswith("/status/") and request.path.count("/") == 4:  # noqa: PLR2004 - /status/t/e/a
                raise KsqlError(404, 40400, "Command not found")
            answer = _FIXED.get(request.path)
            if answer is not None:
                accepted = _accepts_json(request)
                await _plain(response, 200 if accepted else 406, orjson.dumps(answer) if accepted else b"", JSON)
                return
        await _plain(response, 404, b"Not Found", "")


_FIXED: Mapping[str, Any] = {
    "/info": INFO,
    "/healthcheck": HEALTH,
    "/status": {"commandStatuses": {}},
    "/v1/metadata": {"scope": _SCOPE, "id": ""},
    "/v1/metadata/id": {"scope": _SCOPE, "id": CLUSTER_ID},
}


async def _plain(
    response: Response, status: int, body: bytes, content_type: str, headers: Headers | None = None
) -> None:
    listed = [*(headers or []), ("content-length", str(len(body)))]
    if content_type:
        listed.insert(0, ("content-type", content_type))
    await response.start(status, listed)
    await response.write(body)
    await response.end()


def _accepts_json(request: Request) -> bool:
    return accepts(request.headers.get("accept"), (JSON, KSQL_V1_JSON))


def _injected(status: int) -> KsqlError:
    code, message = _INJECTED.get(status, (status * 100, "Injected fault"))
    return KsqlError(status, code, message)


def _json_object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as exc:
        raise bad_request(f"Invalid JSON in request: {exc}") from exc
    if not isinstance(found, dict):
        raise bad_request("Invalid JSON in request: Cannot deserialize value: expected an object")
    return found


def _text(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str):
        raise bad_request(f"Invalid JSON in request: Missing required creator property '{field}'")
    return value


def _properties(body: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    properties = body.get(field) or {}
    if not isinstance(properties, dict):
        raise bad_request(f"Invalid JSON in request: Cannot deserialize value of '{field}'")
    for name, value in properties.items():
        if name in _DENIED:
            raise bad_request(f"Cannot override property '{name}'")
        if name.startswith("ksql.") and value in {"true", "false"}:
            raise KsqlError(500, 50000, MASKED)  # validated but not coerced: booleans must be JSON booleans
    return properties


def _one_select(sql: str) -> Select:
    statements = parse(sql)
    if len(statements) != 1:
        raise bad_statement(f"Expected exactly one KSQL statement; found {len(statements)} instead", sql)
    if not isinstance(statements[0], Select):
        raise KsqlError(400, 40001, "Only queries and PRINT statements are supported on this endpoint", statement=sql)
    return statements[0]
