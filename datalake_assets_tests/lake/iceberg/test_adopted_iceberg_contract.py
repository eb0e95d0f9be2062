"""An Iceberg table that others write keeps the contract of tables, in a SQLite catalog and the real REST catalog."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
import stamina
from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import RESTError
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform
from pyiceberg.types import LongType, NestedField, TimestamptzType

from datalake_assets.lake.adopted.adoption import adopt_at
from datalake_assets.lake.iceberg import iceberg_compaction
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.table_cases import Died
from datalake_assets.testing.tables import (
    DAY,
    FORCE,
    CompactionContract,
    FilesContract,
    NotExportedContract,
    TableCase,
    TableReaderContract,
    ids_of,
    rows_of,
)
from datalake_assets_tests.lake.iceberg.iceberg_tables import (
    url_of,
)

STRANGE = Schema(NestedField(1, "id", LongType()), NestedField(2, "rowtime", TimestamptzType()))
BY_DAY = PartitionSpec(PartitionField(2, 1000, DayTransform(), "day"))


class AdoptedCase(TableCase):
    """A table that somebody else writes by day."""

    absent_key = "day=2025-03-01"

    def __init__(self, lake: Store, catalog: Callable[[], Table], address: str = "iceberg:n.t", at: str = "") -> None:
        self._lake, self._load, self._address, self._at = lake, catalog, address, at

    def open(self) -> LakeTable:
        return open_table(self._lake, adopt_at(self._lake, self._address, "t", catalog=self._at).feed)

    def write(self, ids: Sequence[int]) -> None:
        if ids:
            wanted = pa.schema([("id", pa.int64()), ("rowtime", pa.timestamp("us", "UTC"))])
            self._load().append(pa.Table.from_batches([rows_of(ids)]).cast(wanted))

    def take_away(self) -> None:
        self._load().delete("id >= 0")

    @property
    def store(self) -> Store:
        return self._lake

    @property
    def data_store(self) -> Store:
        return open_store(urlsplit(self._load().location()).path, s3=self._lake.s3)

    data_root = "data"


class TestAdoptedTable(TableReaderContract, NotExportedContract, CompactionContract, FilesContract):
    @pytest.fixture
    def case(self, local_store: Store, catalog: SqlCatalog, tmp_path: Path) -> AdoptedCase:
        catalog.create_table("n.t", STRANGE, partition_spec=BY_DAY)
        return AdoptedCase(local_store, lambda: catalog.load_table("n.t"), at=url_of(tmp_path))

    def test_a_purged_table_has_neither_rows_nor_memory(self, case: AdoptedCase) -> None:
        """The rows are their writer's; what we remember of them goes."""
        case.write(range(30))
        assert case.open().purge() > 0
        assert open_table(case.store, case.open().feed).purge() > 0
        assert ids_of(case.open()) == list(range(30))

    def test_repair_finishes_or_undoes_what_a_dead_process_had_begun(
        self, case: AdoptedCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A commit is in the catalog or nowhere: after a death before it, what was written is no part of the table."""
        key, table = case.scatter(range(DAY), files=6), case.open()

        def die(*_: object, **__: object) -> None:
            raise Died

        with monkeypatch.context() as patch:
            patch.setattr(iceberg_compaction, "commit_change", die)
            with pytest.raises(Died):
                table.compact(key, FORCE)
        assert (case.open().repair().undone, ids_of(case.open())) == (0, list(range(DAY)))
        assert list(case.open().verify(deep=True)) == []
        assert case.open().compact(key, FORCE).files_after == 1
        assert ids_of(case.open()) == list(range(DAY))


@pytest.mark.s3
class TestRestCatalog(CompactionContract):
    """The real REST catalog, and files on S3."""

    @pytest.fixture
    def case(self, rest_server, s3_lake: str) -> AdoptedCase:
        s3 = S3Access(
            endpoint=rest_server.endpoint,
            region="us-east-1",
            access_key=rest_server.access_key,
            secret_key=rest_server.secret_key,
        )
        access = CatalogAccess(
            uri=rest_server.iceberg_endpoint,
            warehouse="s3://warehouse",
            credential=f"{rest_server.access_key}:{rest_server.secret_key}",
        )
        namespace = f"others{uuid.uuid4().hex}"
        strange = load_catalog(
            "strange",
            type="rest",
            uri=access.uri,
            warehouse=access.warehouse,
            credential=access.credential,
            **{
                "oauth2-server-uri": f"{access.uri}/v1/oauth/tokens",
                "s3.endpoint": rest_server.endpoint,
                "s3.region": "us-east-1",
                "s3.access-key-id": rest_server.access_key,
                "s3.secret-access-key": rest_server.secret_key,
            },
        )
        # its warehouse may be a moment later than its buckets
        for attempt in stamina.retry_context(on=RESTError, attempts=None, wait_initial=0.1, wait_max=0.5, timeout=120):
            with attempt:
                strange.create_namespace_if_not_exists(namespace)
        strange.create_table(f"{namespace}.t", STRANGE, partition_spec=BY_DAY)
        lake = open_store(s3_lake, s3=s3, catalog=access)
        return AdoptedCase(lake, lambda: strange.load_table(f"{namespace}.t"), f"iceberg:{namespace}.t")

    # what S3 and the catalog can change is in the others
    test_a_plan_changes_nothing = None
    test_a_rehearsal_foresees_the_compaction_and_changes_nothing = None
    test_health_that_a_compaction_reports_is_what_a_snapshot_says = None
    test_scans_are_exact_while_files_are_merged = None
