"""Every table keeps the contract of its roles: streams by offsets and by windows, tables, assets, adopted folders."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.batches import Batches, ReadRequest
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import AssetSource, FeedKind
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.frames import frame_batches
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table
from datalake_assets.policies import Retention
from datalake_assets.testing.deletions import DeletionContract, NoDeletionContract
from datalake_assets.testing.tables import (
    FORCE,
    AppendContract,
    CompactionContract,
    ExportedCase,
    FilesContract,
    NotExportedContract,
    ReplaceContract,
    TableCase,
    TableReaderContract,
    VersionsContract,
    rows_of,
)
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder
from datalake_assets_tests.lake.feeds import stream_feed, table_feed

DAYS = ("2025-01-01", "2025-01-02")


class FeedCase(ExportedCase):
    """A feed of files in the lake's own folders."""

    def __init__(self, store: Store, feed: Feed) -> None:
        self._store, self.feed = store, feed

    def open(self) -> LakeTable:
        return open_table(self._store, self.feed)

    @property
    def store(self) -> Store:
        return self._store

    data_store = store

    @property
    def data_root(self) -> str:
        return FeedFolder(self._store, self.feed).data_root


class WindowCase(FeedCase):
    """A stream whose days are pulled as a whole."""

    plans = DAYS


class VersionsCase(FeedCase):
    """A table."""

    time_column = None
    absent_key = "v9"


class AssetCase(FeedCase):
    """What an asset returns for two days."""

    plans = DAYS

    def batches(self, ids: Sequence[int], request: ReadRequest) -> Batches:
        frame = pa.Table.from_batches([rows_of(ids)])
        return frame_batches(frame, asset="orders", time_column=self.time_column)


class AssetVersionsCase(AssetCase):
    """What an asset without partitions returns."""

    plans = None
    time_column = None
    absent_key = "v9"


class AdoptedCase(TableCase):
    """A folder of somebody else's files."""

    absent_key = "day=9"

    def __init__(self, store: Store, folder: AdoptedFolder) -> None:
        self._store, self._folder, self._written = store, folder, 0
        pq.write_table(pa.Table.from_batches([rows_of([])]), sink := pa.BufferOutputStream())
        self._feed: Feed | None = None
        self._nothing = sink.getvalue().to_pybytes()

    def open(self) -> LakeTable:
        if self._feed is None:
            self._folder.put("day=1/nothing.parquet", self._nothing)  # a folder without data cannot be adopted
            self._feed = adopt(self._store, self._folder.uri, "clicks").feed
            self._folder.delete("day=1/nothing.parquet")
            open_table(self._store, self._feed).look_again()
        return open_table(self._store, self._feed)

    def write(self, ids: Sequence[int]) -> None:
        for day in sorted({number // 24 for number in ids}):
            self._written += 1
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_batches([rows_of([each for each in ids if each // 24 == day])]), sink)
            self._folder.put(f"day={day + 1}/{self._written:04}.parquet", sink.getvalue().to_pybytes())
        self.open().look_again()

    @property
    def store(self) -> Store:
        return self._store

    @property
    def data_store(self) -> Store:
        return self._folder.store

    @property
    def data_root(self) -> str:
        return self._folder.name


class TestOffsetsStream(TableReaderContract, AppendContract, CompactionContract, DeletionContract, FilesContract):
    @pytest.fixture
    def case(self, store: Store) -> FeedCase:
        return FeedCase(store, stream_feed())


class TestWindowStream(TableReaderContract, ReplaceContract, DeletionContract, FilesContract):
    @pytest.fixture
    def case(self, local_store: Store) -> WindowCase:
        return WindowCase(local_store, stream_feed("pull"))


class TestTable(TableReaderContract, VersionsContract, DeletionContract, FilesContract):
    @pytest.fixture
    def case(self, local_store: Store) -> VersionsCase:
        return VersionsCase(local_store, table_feed(retention={"versions": 2}))


class TestAssetStream(TableReaderContract, ReplaceContract, DeletionContract, FilesContract):
    @pytest.fixture
    def case(self, local_store: Store) -> AssetCase:
        source = AssetSource(asset="orders")
        return AssetCase(local_store, Feed(name="o", kind=FeedKind.STREAM, source=source, start="2025-01-01"))


class TestAssetTable(TableReaderContract, VersionsContract, DeletionContract, FilesContract):
    @pytest.fixture
    def case(self, local_store: Store) -> AssetVersionsCase:
        source, kept = AssetSource(asset="orders"), Retention(versions=2)
        return AssetVersionsCase(local_store, Feed(name="o", kind=FeedKind.TABLE, source=source, retention=kept))


class TestAdoptedFolder(
    TableReaderContract, NotExportedContract, CompactionContract, NoDeletionContract, FilesContract
):
    @pytest.fixture
    def case(self, store: Store, folder: AdoptedFolder) -> AdoptedCase:
        return AdoptedCase(store, folder)

    def begin(self, case: AdoptedCase) -> None:
        self.key = case.scatter(range(24), files=6)

    def change(self, case: AdoptedCase) -> None:
        """Nobody exports to it: what we commit are merges."""
        case.open().compact(self.key, FORCE)
