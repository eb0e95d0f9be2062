"""The search servers, once for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datalake_assets_tests.sinks.search_server import SearchServer


@pytest.fixture(scope="session")
def osmem() -> Iterator[SearchServer]:
    with SearchServer("osmem") as server:
        yield server


@pytest.fixture(scope="session")
def noida() -> Iterator[SearchServer]:
    with SearchServer("noida") as server:
        yield server
