"""Statements sent to the demo server as clients send them."""

from __future__ import annotations

import re
from typing import Any

import httpx

from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig

DELIMITED = "application/vnd.ksqlapi.delimited.v1"
V1_JSON = "application/vnd.ksql.v1+json"
CONFIG = GeneratorConfig(records=1_000)
EARLIEST = {"auto.offset.reset": "earliest"}


def ask(client: httpx.Client, sql: str, accept: str | None = V1_JSON, **properties: Any) -> httpx.Response:
    headers = {} if accept is None else {"accept": accept}
    return client.post("/query-stream", json={"sql": sql, "properties": EARLIEST | properties}, headers=headers)


def without_id(body: bytes) -> bytes:
    return re.sub(rb'"queryId":"[^"]+"', b'"queryId":"X"', body)
