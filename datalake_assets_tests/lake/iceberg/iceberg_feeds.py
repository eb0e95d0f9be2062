"""Feeds that are Iceberg tables, and what pyiceberg alone sees of them: nothing of ours reads here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table

from datalake_assets.feed import Feed
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.tables import ExportedCase


class IcebergCase(ExportedCase):
    """A feed that is an Iceberg table."""

    finishes = False

    def __init__(self, store: Store, feed: Feed) -> None:
        self._store, self.feed = store, feed

    def open(self) -> LakeTable:
        return open_table(self._store, self.feed)

    @property
    def store(self) -> Store:
        return self._store

    @property
    def data_store(self) -> Store:
        return self.open()._folder.data_store

    @property
    def data_root(self) -> str:
        return self.open()._folder.data_root


@contextmanager
def catalog_of(store: Store) -> Iterator[SqlCatalog]:
    """The catalog beside a local lake, as another engine opens it."""
    catalog = SqlCatalog("datalake", uri=f"sqlite:///{store.uri}/control/iceberg_catalog.db")
    try:
        yield catalog
    finally:
        catalog.close()


@contextmanager
def seen_by_others(store: Store, name: str = "streams.s") -> Iterator[Table]:
    """A feed's table, as another engine loads it."""
    with catalog_of(store) as catalog:
        yield catalog.load_table(name)


def ids_seen(store: Store, name: str = "streams.s", **scan: object) -> list[int]:
    """The ids that another engine reads."""
    with seen_by_others(store, name) as table:
        return sorted(table.scan(**scan).to_arrow()["id"].to_pylist())
