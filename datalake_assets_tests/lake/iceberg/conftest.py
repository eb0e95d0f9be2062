"""Iceberg tables in a catalog of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyiceberg.catalog.sql import SqlCatalog

from datalake_assets.demo.s3_server import S3Server
from datalake_assets_tests.lake.iceberg.iceberg_tables import sqlite_catalog
from datalake_assets_tests.operations.shared_catalogs import ready_rest_catalog


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqlCatalog]:
    """An empty catalog in SQLite, its warehouse beside it."""
    with sqlite_catalog(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="session")
def rest_server(s3_server: S3Server) -> S3Server:
    """The S3 server once its REST catalog has a warehouse, whichever test comes first."""
    ready_rest_catalog(s3_server)
    return s3_server
