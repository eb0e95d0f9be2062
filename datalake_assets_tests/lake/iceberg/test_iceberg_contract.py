"""Feeds that are Iceberg tables keep the contract of every table; on SQLite, and by a REST catalog on S3."""

from __future__ import annotations

import uuid

import pytest

from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access
from datalake_assets.testing.deletions import DeletionContract
from datalake_assets.testing.tables import (
    DAY,
    FORCE,
    AppendContract,
    CompactionContract,
    FilesContract,
    ReplaceContract,
    TableReaderContract,
    VersionsContract,
    ids_of,
)
from datalake_assets_tests.lake.feeds import stream_feed, table_feed
from datalake_assets_tests.lake.iceberg.iceberg_feeds import IcebergCase


class WindowCase(IcebergCase):
    """A stream whose days are pulled as a whole."""

    plans = ("2025-01-01", "2025-01-02")


class VersionsCase(IcebergCase):
    """A table."""

    time_column = None
    absent_key = "v9"


class TestOffsetsStream(TableReaderContract, AppendContract, CompactionContract, DeletionContract, FilesContract):
    @pytest.fixture
    def case(self, local_store: Store) -> IcebergCase:
        return IcebergCase(local_store, stream_feed(format="iceberg"))


class TestWindowStream(ReplaceContract, DeletionContract):
    @pytest.fixture
    def case(self, local_store: Store) -> WindowCase:
        return WindowCase(local_store, stream_feed("pull", format="iceberg"))


class TestTable(TableReaderContract, VersionsContract, DeletionContract):
    @pytest.fixture
    def case(self, local_store: Store) -> VersionsCase:
        return VersionsCase(local_store, table_feed(retention={"versions": 2}, format="iceberg"))


@pytest.mark.s3
class TestRestCatalog(AppendContract, DeletionContract):
    @pytest.fixture
    def case(self, rest_server, s3_lake: str) -> IcebergCase:
        s3 = S3Access(
            endpoint=rest_server.endpoint,
            region="us-east-1",
            access_key=rest_server.access_key,
            secret_key=rest_server.secret_key,
        )
        catalog = CatalogAccess(
            uri=rest_server.iceberg_endpoint,
            warehouse="s3://warehouse",
            namespace=f"n{uuid.uuid4().hex}",
            credential=f"{rest_server.access_key}:{rest_server.secret_key}",
        )
        return IcebergCase(open_store(s3_lake, s3=s3, catalog=catalog), stream_feed(format="iceberg"))

    def test_small_files_are_merged(self, case: IcebergCase) -> None:
        key = case.scatter(range(DAY), files=3)
        report = case.open().compact(key, FORCE)
        assert (report.files_before, report.files_after, ids_of(case.open())) == (3, 1, list(range(DAY)))
        assert list(case.open().verify(deep=True)) == []

    def test_what_a_dead_process_left_is_undone(self, case: IcebergCase) -> None:
        case.write(range(3))
        with case.dying():
            case.write(range(3, 9))
        assert (case.open().repair().undone, ids_of(case.open())) == (1, [0, 1, 2])
        case.write(range(3, 9))
        assert ids_of(case.open()) == list(range(9))
        assert list(case.open().verify(deep=True)) == []


def test_feed_in_glue_is_written_read_and_purged(local_store, s3_environment):
    """Moto takes every commit, whatever it was built on: it cannot show a conflict, as AWS does."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  a second

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        properties = {
            "glue.endpoint": f"http://{host}:{port}",
            "glue.region": "us-east-1",
            "glue.access-key-id": "key",
            "glue.secret-access-key": "secret",
        }
        store = open_store(local_store.uri, catalog=CatalogAccess(uri="glue", properties=properties))
        case = IcebergCase(store, stream_feed(format="iceberg"))
        case.write(range(10))
        assert case.write(range(5, 30)).rows_known == 5
        assert ids_of(case.open()) == list(range(30))
        assert list(case.open().verify(deep=True)) == []
        assert case.open().purge() > 0
        assert case.open().partitions() == ()
    finally:
        server.stop()
