"""The write API over an empty lake, and a reader of its tables that shares nothing with it but pyiceberg."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table

from datalake_assets.operations import Operations

Ask = Callable[..., dict[str, Any]]

#: A table that most tests write to.
ORDERS = {"tenant_id": "acme", "namespace": "sales", "table": "orders"}
SCHEMA = [{"name": "id", "type": "long", "required": True}, {"name": "note", "type": "string"}]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """An empty lake."""
    folder = tmp_path / "lake"
    folder.mkdir()
    return folder


@pytest.fixture
def operations(lake: Path) -> Iterator[Operations]:
    """The write API over it."""
    with Operations(str(lake)) as opened:
        yield opened


@pytest.fixture
def ask(operations: Operations) -> Ask:
    """Asks for an operation by its fields; the answer as a JSON document."""

    def answer(operation: str, **fields: Any) -> dict[str, Any]:
        return operations.answer({"operation": operation, **fields}).to_json()

    return answer


@pytest.fixture
def orders(ask: Ask) -> dict[str, str]:
    """The names of a table of two columns that was just created."""
    assert ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)["created"]
    return ORDERS


def catalog_of(lake: Path, tenant: str) -> SqlCatalog:
    """A tenant's catalog, to be closed."""
    return SqlCatalog("datalake", uri=f"sqlite:///{lake}/tenants/{tenant}/catalog.sqlite")


@pytest.fixture
def stored(lake: Path) -> Iterator[Callable[..., Table]]:
    """Opens a table by its tenant's catalog, as any engine would."""
    catalogs = []

    def opened(tenant: str = "acme", namespace: str = "sales", table: str = "orders") -> Table:
        catalog = catalog_of(lake, tenant)
        catalogs.append(catalog)
        return catalog.load_table((namespace, table))

    yield opened
    for catalog in catalogs:
        with closing(catalog):
            pass


@pytest.fixture
def stored_ids(stored: Callable[..., Table]) -> Callable[[], list[int]]:
    """The ids in the table of orders, sorted."""

    def read() -> list[int]:
        rows: pa.Table = stored().scan().to_arrow()
        return sorted(rows["id"].to_pylist())

    return read


def files_below(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
