"""Exports into a `HiveTable` and what readers of any kind then see, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pyarrow.parquet as pq

from datalake_assets.core.batches import InMemoryBatches
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.layout import FeedFolder
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


@contextmanager
def between_commits(others: Callable[[], object]) -> Iterator[None]:
    """Has another writer come when the next one has committed its first partition, and no other yet."""
    commit, waiting = FeedFolder.commit, [others]

    def interrupted(folder: FeedFolder, *args, **options):
        for done in commit(folder, *args, **options):
            if waiting:
                waiting.pop()()
            yield done

    with patch.object(FeedFolder, "commit", interrupted):
        yield
    assert not waiting
