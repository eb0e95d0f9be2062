"""Iceberg and Delta tables in catalogs: by their logs where an engine reads these, else by the files that they have."""

from __future__ import annotations

import subprocess
import sys
from datetime import date

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import LongType, NestedField, StringType

from datalake_assets.catalog.duckdb_file import duckdb_view
from datalake_assets.catalog.entries import entry_of
from datalake_assets.catalog.glue import GlueCatalog, GlueSettings
from datalake_assets.catalog.metastore import HiveCatalog, ddl
from datalake_assets.catalog.sync import sync_catalogs
from datalake_assets.lake.adopted.adoption import adopt_at
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import Settings
from datalake_assets_tests.catalog.catalog_contract import land
from datalake_assets_tests.lake.feeds import stream_feed, table_feed
from datalake_assets_tests.lake.iceberg.iceberg_feeds import seen_by_others
from datalake_assets_tests.lake.iceberg.iceberg_tables import add_file, sqlite_catalog, url_of
from datalake_assets_tests.operations.shared_catalogs import glue_server

ROWS = pa.table(
    {"id": [1, 2, 3], "day": [date(2026, 1, 1), date(2026, 1, 1), date(2026, 1, 2)], "of": ["01", "x", "x"]}
)
READ = """
import duckdb, sys
with duckdb.connect(sys.argv[1], read_only=True) as connection:
    print(connection.execute(sys.argv[2]).fetchall())
"""


def synced(store: Store, **options) -> dict[str, tuple[str, str]]:
    told = sync_catalogs(Settings(lake=store.uri), store, FeedRegistry(store).list().feeds, **options)
    return {each.name: (each.state, each.detail) for each in told}


def read_by_others(store: Store, query: str) -> str:
    """The answer of a process of its own, which knows nothing of us."""
    command = [sys.executable, "-c", READ, store.path("lake.duckdb"), query]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    return ran.stdout.strip() or ran.stderr


def adopted_delta(store: Store, folder) -> str:
    place = str(folder / "sales")
    write_deltalake(place, ROWS, partition_by=["day", "of"])
    adopt_at(store, place, "sales")
    return place


def test_duckdb_reads_the_rows_of_an_iceberg_feed_and_of_its_newest_version(local_store):
    registry = FeedRegistry(local_store)
    stream = registry.add(stream_feed(format="iceberg"))
    table = registry.add(table_feed(format="iceberg"))
    land(local_store, stream, 1, 2, 30)
    land(local_store, table, 3)
    assert synced(local_store) == {
        "s": ("created", "2 files as of this sync"),
        "t": ("created", "version v1, 1 files as of this sync"),
    }
    by_day = "SELECT year, month, day, count(*), sum(id) FROM s GROUP BY ALL ORDER BY ALL"
    assert read_by_others(local_store, by_day) == "[(2025, 1, 1, 2, 3), (2025, 1, 2, 1, 30)]"
    assert {each[0] for each in synced(local_store).values()} == {"current"}

    land(local_store, stream, 33, 60)
    land(local_store, table, 5)
    assert {name: each[0] for name, each in synced(local_store).items()} == {"s": "updated", "t": "updated"}
    assert read_by_others(local_store, "SELECT count(*), sum(id) FROM s") == "[(5, 126)]"
    assert read_by_others(local_store, "SELECT count(*), min(version) FROM t") == "[(5, 'v2')]"
    ours = open_table(local_store, stream).scan().read_all()
    with duckdb.connect(local_store.path("lake.duckdb"), read_only=True) as connection:
        assert [row[0] for row in connection.execute("DESCRIBE s").fetchall()] == ours.schema.names


def test_duckdb_loses_the_view_of_a_table_whose_files_cannot_be_read_plainly_any_more(local_store):
    stream = FeedRegistry(local_store).add(stream_feed(format="iceberg"))
    land(local_store, stream, 1, 2, 30)
    synced(local_store)
    with seen_by_others(local_store) as table, table.update_schema() as update:
        update.rename_column("note", "remark")
    (told,) = synced(local_store).values()
    assert told[0] == "left_out"
    assert "column 'note' was renamed" in told[1]
    assert "Catalog Error" in read_by_others(local_store, "SELECT * FROM s")


def test_duckdb_gets_no_view_of_files_without_a_column_that_their_partition_states(local_store, tmp_path):
    """Read plainly, it would be null; a scan of the table has it."""
    schema = Schema(NestedField(1, "id", LongType()), NestedField(2, "region", StringType()))
    spec = PartitionSpec(PartitionField(2, 1000, IdentityTransform(), "region"))
    with sqlite_catalog(tmp_path) as catalog:
        table = catalog.create_table("n.t", schema, partition_spec=spec)
        table.append(pa.table({"id": [1], "region": ["eu"]}))
        adopt_at(local_store, "iceberg:n.t", "sales", catalog=url_of(tmp_path))
        assert synced(local_store)["sales"][0] == "created"
        ids = pa.schema([pa.field("id", pa.int64(), metadata={"PARQUET:field_id": "1"})])
        add_file(table, pa.table({"id": [2]}, schema=ids), Record("us"), {1: 1})
    state, detail = synced(local_store)["sales"]
    assert (state, "without a column that they are partitioned by" in detail) == ("left_out", True)
    rows = open_table(local_store, FeedRegistry(local_store).get("sales")).scan().read_all().to_pylist()
    assert sorted((row["id"], row["region"]) for row in rows) == [(1, "eu"), (2, "us")]


def test_duckdb_reads_a_delta_table_with_the_types_of_its_partitions(local_store, tmp_path):
    place = adopted_delta(local_store, tmp_path)
    assert synced(local_store)["sales"][0] == "created"
    query = "SELECT id, typeof(day), day::VARCHAR, of FROM sales ORDER BY id"
    assert read_by_others(local_store, query) == str(
        [(1, "DATE", "2026-01-01", "01"), (2, "DATE", "2026-01-01", "x"), (3, "DATE", "2026-01-02", "x")]
    )
    DeltaTable(place).delete("id = 2")  # writes its file anew, and leaves the former one in its folder
    write_deltalake(place, ROWS.slice(0, 1), mode="append")
    assert synced(local_store)["sales"][0] == "updated"
    assert read_by_others(local_store, "SELECT count(*), sum(id) FROM sales") == "[(3, 5)]"


def test_hive_is_given_statements_and_no_tables(local_store, tmp_path):
    adopted_delta(local_store, tmp_path)
    stream = FeedRegistry(local_store).add(stream_feed(format="iceberg"))
    land(local_store, stream, 1)
    feeds = FeedRegistry(local_store).list().feeds
    catalog = HiveCatalog(lambda _: [], database="lake", lake=local_store.uri)
    told = sync_catalogs(Settings(lake=local_store.uri), local_store, feeds, catalogs=[catalog])
    assert {each.name: each.state for each in told} == {"s": "left_out", "sales": "left_out"}
    entries = [entry_of(local_store, feed) for feed in feeds]
    with seen_by_others(local_store) as table:
        metadata = table.metadata_location
    assert list(ddl(entries, (), database="lake"))[1:] == [
        f"CREATE TABLE IF NOT EXISTS `lake`.`sales` USING DELTA LOCATION 'file://{tmp_path}/sales'"
    ]
    assert list(ddl(entries, (), database="lake", replace=True))[1:3] == [
        "DROP TABLE IF EXISTS `lake`.`s`",
        f"CALL spark_catalog.system.register_table(table => 'lake.s', metadata_file => '{metadata}')",
    ]
    assert "DELTA" in list(ddl(entries, (), database="lake", dialect="athena"))[-1]
    assert "file://" not in duckdb_view(entries[0])


@pytest.fixture(scope="module")
def moto():
    with glue_server() as url:
        yield url


@pytest.mark.s3
@pytest.mark.xdist_group("glue")
def test_glue_is_told_where_the_logs_are(s3_store, moto, tmp_path, monkeypatch):
    import boto3  # noqa: PLC0415  its server has to be there

    store = s3_store
    monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", moto)
    others = f"{store.uri.rpartition('/')[0]}-others/{store.uri.rpartition('/')[2]}"
    catalog = SqlCatalog(
        "others", uri=f"sqlite:///{tmp_path}/others.db", warehouse=f"{others}/iceberg", **_s3_of(store)
    )
    catalog.create_namespace("x")
    iceberg = catalog.create_table("x.orders", schema=ROWS.schema)
    iceberg.append(ROWS)
    write_deltalake(f"{others}/sales", ROWS, partition_by=["day"], storage_options=_delta_of(store))
    adopt_at(store, f"{others}/sales", "sales")
    adopt_at(store, "iceberg:x.orders", "orders", catalog=f"sqlite:///{tmp_path}/others.db")
    database = f"logs_{store.uri.rpartition('/')[2]}"
    glue = boto3.client("glue", endpoint_url=moto, region_name="us-east-1")

    def sync() -> dict[str, str]:
        opened = GlueCatalog(GlueSettings(database), lake=store.uri)
        told = sync_catalogs(Settings(lake=store.uri), store, FeedRegistry(store).list().feeds, catalogs=[opened])
        return {each.name: each.state for each in told}

    def table(name: str):
        return glue.get_table(DatabaseName=database, Name=name)["Table"]

    assert sync() == {"orders": "created", "sales": "created"}
    assert sync() == {"orders": "current", "sales": "current"}
    told, _ = table("orders"), iceberg.refresh()
    assert (told["Parameters"]["table_type"], told["Parameters"]["metadata_location"]) == (
        "ICEBERG",
        iceberg.metadata_location,
    )
    assert [each["Name"] for each in told["StorageDescriptor"]["Columns"]] == ["id", "day", "of"]
    told = table("sales")
    assert (told["Parameters"]["table_type"], told["Parameters"]["spark.sql.sources.provider"]) == ("DELTA", "delta")
    assert told["StorageDescriptor"]["Location"] == f"{others}/sales/"
    assert told.get("PartitionKeys", []) == []

    iceberg.append(ROWS)
    assert sync() == {"orders": "updated", "sales": "current"}
    assert table("orders")["Parameters"]["metadata_location"] == iceberg.metadata_location
    catalog.close()


def _s3_of(store: Store) -> dict[str, str]:
    s3 = store.s3
    return {"s3.endpoint": s3.endpoint or "", "s3.region": "us-east-1"}


def _delta_of(store: Store) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": store.s3.endpoint or "", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
