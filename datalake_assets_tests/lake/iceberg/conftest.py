"""Iceberg tables in a catalog of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyiceberg.catalog.sql import SqlCatalog

from datalake_assets_tests.lake.iceberg.iceberg_tables import sqlite_catalog


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqlCatalog]:
    """An empty catalog in SQLite, its warehouse beside it."""
    with sqlite_catalog(tmp_path) as opened:
        yield opened
