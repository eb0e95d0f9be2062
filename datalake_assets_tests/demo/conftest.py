"""A demo server of a thousand records, and clients over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets_tests.demo.ksqldb_server.wire import CONFIG


@pytest.fixture(scope="module")
def server() -> Iterator[KsqlServer]:
    with KsqlServer(CONFIG) as running:
        yield running


@pytest.fixture(scope="module", params=[1, 2])
def client(server: KsqlServer, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, http1=request.param == 1, http2=request.param == 2) as made:
        made.headers.pop("accept")
        yield made
