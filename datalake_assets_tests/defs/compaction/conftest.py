"""A daemon that ticks when a test says so, and a stream that has something to compact."""

from __future__ import annotations

import dagster as dg
import pytest

from datalake_assets.defs.compaction.job import compact_partition_job
from datalake_assets.defs.compaction.sensor import CompactionWatcher
from datalake_assets.defs.resources import Lake
from datalake_assets.feed import Feed
from datalake_assets.lake.store.base import Store
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.compaction.daemon import Daemon, Open, added, materialized
from datalake_assets_tests.lake.many_files import DAYS, append


@pytest.fixture
def daemon(local_store: Store, instance: dg.DagsterInstance) -> Open:
    """A daemon for some feeds of the local lake."""
    lake = Lake(Settings(lake=local_store.uri))

    def open_daemon(*feeds: Feed, **options: float) -> Daemon:
        return Daemon(instance, CompactionWatcher(lake, feeds, **options), compact_partition_job(lake, feeds))

    return open_daemon


@pytest.fixture
def feed(local_store: Store, instance: dg.DagsterInstance) -> Feed:
    """The stream ``s``: three days of four small files, each materialized four times."""
    one = added(local_store)
    append(local_store, one, times=4)
    for _ in range(4):
        materialized(instance, one, *DAYS)
    return one
