"""Exports into a `HiveTable` and what readers of any kind then see, for tests."""

from __future__ import annotations

import pyarrow.parquet as pq

from datalake_assets.core.batches import InMemoryBatches
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import WriteReport


def export(table: HiveTable, batches: InMemoryBatches, partitions: list[str] | None = None, **options) -> WriteReport:
    plan = table.plan(partitions)
    return table.write(batches, partitions=plan.partitions, run_id="run", **options)


def ids(table: HiveTable, **options) -> list[int]:
    return sorted(table.scan(**options).read_all()["id"].to_pylist())


def listed(store: Store, folder: str) -> list[str]:
    return sorted(info.key for info in store.list(folder))


def folder_ids(store: Store, folder: str) -> list[int]:
    """What a reader sees that knows nothing of manifests."""
    files = [store.path(key) for key in listed(store, folder)]
    return sorted(i for path in files for i in pq.read_table(path, filesystem=store.filesystem())["id"].to_pylist())
