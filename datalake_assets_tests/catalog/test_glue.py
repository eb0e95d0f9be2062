"""Glue and Athena, as moto serves them: calls are checked, and what they leave. SQL is not: Spark runs it elsewhere."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import boto3
import pyarrow.dataset as ds
import pytest

from datalake_assets.catalog.entries import Entry, entry_of
from datalake_assets.catalog.glue import GlueCatalog, GlueSettings
from datalake_assets.catalog.sync import CATALOGS, sync_catalogs
from datalake_assets.errors import ConfigError
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.settings import Settings
from datalake_assets_tests.catalog.catalog_contract import CatalogContract, add_view, land
from datalake_assets_tests.lake.feeds import stream_feed
from datalake_assets_tests.operations.shared_catalogs import glue_server
from datalake_assets_tests.processes.warm_processes import FORKED

pytestmark = [pytest.mark.s3, pytest.mark.xdist_group("glue")]


@pytest.fixture(scope="module")
def moto():
    with glue_server() as url:
        yield url


@pytest.fixture
def store(s3_store, moto, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", moto)
    monkeypatch.setenv("AWS_ENDPOINT_URL_ATHENA", moto)
    return s3_store


@pytest.fixture
def database(store) -> str:
    return database_of(store)


def database_of(store) -> str:
    return f"lake_{store.uri.rpartition('/')[2]}"


@pytest.fixture
def glue(moto, store):
    return boto3.client("glue", endpoint_url=moto, region_name="us-east-1")


def client(store):
    return boto3.client("glue", region_name="us-east-1")


class TestGlueCatalog(CatalogContract):
    def opened(self, store, **options):
        return GlueCatalog(GlueSettings(database_of(store), **options), lake=store.uri)

    def columns(self, store, name):
        table = client(store).get_table(DatabaseName=database_of(store), Name=name)["Table"]
        return [each["Name"] for each in (*table["StorageDescriptor"]["Columns"], *table.get("PartitionKeys", ()))]

    def counts(self, store, name):
        """Rows of the files below each partition's address, or below the table's: what an engine would list."""
        found = client(store).get_partitions(DatabaseName=database_of(store), TableName=name)["Partitions"]
        table = client(store).get_table(DatabaseName=database_of(store), Name=name)["Table"]
        places = [each["StorageDescriptor"]["Location"] for each in sorted(found, key=lambda each: each["Values"])]
        return [self._rows(store, place) for place in places or [table["StorageDescriptor"]["Location"]]]

    def _rows(self, store, place):
        return ds.dataset(
            store.path(place.removeprefix(f"{store.uri}/").rstrip("/")), filesystem=store.filesystem()
        ).count_rows()

    def foreign(self, store, name):
        glue, database = client(store), database_of(store)
        glue.create_database(DatabaseInput={"Name": database})
        storage = {"Columns": [{"Name": "somebodys", "Type": "int"}], "Location": "s3://b/x"}
        glue.create_table(DatabaseName=database, TableInput={"Name": name, "StorageDescriptor": storage})


def synced(store, **options):
    feeds = FeedRegistry(store).list().feeds
    catalog = GlueCatalog(GlueSettings(database_of(store), **options), lake=store.uri)
    return sync_catalogs(Settings(lake=store.uri), store, feeds, catalogs=[catalog])


@pytest.fixture
def feed(store):
    return FeedRegistry(store).add(stream_feed())


def test_table_says_what_athena_needs_to_read_it(store, feed, glue, database):
    land(store, feed, 1, 30)
    synced(store)

    table = glue.get_table(DatabaseName=database, Name="s")["Table"]
    assert table["TableType"] == "EXTERNAL_TABLE"
    assert table["PartitionKeys"] == [{"Name": name, "Type": "string"} for name in ("year", "month", "day")]
    storage = table["StorageDescriptor"]
    assert {each["Name"]: each["Type"] for each in storage["Columns"]} == {
        "id": "bigint",
        "note": "string",
        "rowtime": "timestamp",
    }
    assert storage["SerdeInfo"]["SerializationLibrary"].endswith("ParquetHiveSerDe")
    (first, second) = sorted(
        (each["Values"], each["StorageDescriptor"]["Location"])
        for each in glue.get_partitions(DatabaseName=database, TableName="s")["Partitions"]
    )
    assert first == (["2025", "01", "01"], f"{store.uri}/streams/s/year=2025/month=01/day=01/")
    assert second[0] == ["2025", "01", "02"]


def test_partition_that_others_entered_as_numbers_is_not_entered_again(store, feed, glue, database):
    land(store, feed, 1)
    synced(store)
    glue.delete_partition(DatabaseName=database, TableName="s", PartitionValues=["2025", "01", "01"])
    place = f"{store.uri}/streams/s/year=2025/month=01/day=01/"
    storage = {"Columns": [], "Location": place}
    glue.create_partition(
        DatabaseName=database,
        TableName="s",
        PartitionInput={"Values": ["2025", "1", "1"], "StorageDescriptor": storage},
    )

    assert [each.state for each in synced(store)] == ["current"]
    assert [each["Values"] for each in glue.get_partitions(DatabaseName=database, TableName="s")["Partitions"]] == [
        ["2025", "1", "1"]
    ]


def test_partitions_that_are_no_more_are_taken_out_and_moved_ones_get_their_address(store, feed, glue, database):
    land(store, feed, 1, 30)
    synced(store)
    storage = {"Columns": [], "Location": "s3://elsewhere/x/"}
    gone = {"Values": ["2020", "01", "01"], "StorageDescriptor": storage}
    moved = {"Values": ["2025", "01", "02"], "StorageDescriptor": storage}
    glue.create_partition(DatabaseName=database, TableName="s", PartitionInput=gone)
    glue.update_partition(
        DatabaseName=database, TableName="s", PartitionValueList=moved["Values"], PartitionInput=moved
    )

    (told,) = synced(store)

    assert (told.state, told.partitions_added, told.partitions_removed, told.partitions_moved) == ("updated", 0, 1, 1)
    places = {
        each["StorageDescriptor"]["Location"]
        for each in glue.get_partitions(DatabaseName=database, TableName="s")["Partitions"]
    }
    assert places == {f"{store.uri}/streams/s/year=2025/month=01/day={day}/" for day in ("01", "02")}


def test_many_partitions_are_entered_in_requests_of_a_hundred(store, feed):
    land(store, feed, 1)
    synced(store)
    entry = entry_of(store, feed)
    assert isinstance(entry, Entry)
    days = {("2025", f"{n // 28 + 1:02}", f"{n % 28 + 1:02}"): f"{entry.location}/{n}" for n in range(230)}
    catalog = GlueCatalog(GlueSettings(database_of(store)), lake=store.uri)

    told = catalog.update(replace(entry, partitions=days))

    assert (told.partitions_added, told.partitions_moved) == (229, 1)
    assert not catalog.needs(replace(entry, partitions=days))


def test_projected_partitions_are_told_and_none_is_entered(store, feed, glue, database):
    land(store, feed, 1, 24 * 370)
    synced(store)

    (told,) = synced(store, is_projected=True)

    assert (told.state, told.partitions_removed) == ("updated", 2)
    parameters = glue.get_table(DatabaseName=database, Name="s")["Table"]["Parameters"]
    assert parameters["projection.year.range"] == "2025,2027"
    assert (parameters["projection.month.range"], parameters["projection.month.digits"]) == ("1,12", "2")
    template = f"{store.uri}/streams/s/year=${{year}}/month=${{month}}/day=${{day}}/"
    assert parameters["storage.location.template"] == template
    assert [each.state for each in synced(store, is_projected=True)] == ["current"]
    (back,) = synced(store)
    assert (back.state, back.partitions_added) == ("updated", 2)
    assert "projection.enabled" not in glue.get_table(DatabaseName=database, Name="s")["Table"]["Parameters"]


def test_projection_knows_columns_by_their_prefix(store, glue, database):
    trips = FeedRegistry(store).add(stream_feed(name="trips", partition_by="month", partition_prefix="pickup_"))
    land(store, trips, 1)
    synced(store, is_projected=True)

    parameters = glue.get_table(DatabaseName=database, Name="trips")["Table"]["Parameters"]
    assert parameters["projection.pickup_year.range"] == "2025,2026"
    assert parameters["projection.pickup_month.digits"] == "2"
    assert parameters["storage.location.template"].endswith("/pickup_year=${pickup_year}/pickup_month=${pickup_month}/")


def test_parameters_of_others_stay(store, feed, glue, database):
    land(store, feed, 1)
    synced(store)
    table = glue.get_table(DatabaseName=database, Name="s")["Table"]
    told = {name: table[name] for name in ("Name", "TableType", "PartitionKeys", "StorageDescriptor")}
    told["Parameters"] = {**table["Parameters"], "theirs": "1"}
    told["StorageDescriptor"]["Columns"] = told["StorageDescriptor"]["Columns"][:1]
    glue.update_table(DatabaseName=database, TableInput=told)

    assert [each.state for each in synced(store)] == ["updated"]
    table = glue.get_table(DatabaseName=database, Name="s")["Table"]
    assert table["Parameters"]["theirs"] == "1"
    assert len(table["StorageDescriptor"]["Columns"]) == 3


def test_view_is_made_by_athena_once(store, feed, glue, database, moto):
    """moto runs no SQL and makes no view; the test makes what Athena would have made."""
    land(store, feed, 30)
    add_view(store)
    assert [each.state for each in synced(store)] == ["created", "created"]
    (statement,) = statements_of(moto, database)
    view_of = f"SELECT note, COUNT(*) AS n FROM \"{database}\".s WHERE day = '02' GROUP BY note"  # noqa: S608  not run
    assert statement == f'CREATE OR REPLACE VIEW "second_day" AS {view_of}'
    view = {"Name": "second_day", "TableType": "VIRTUAL_VIEW", "ViewOriginalText": "/* Presto View: e30= */"}
    owned = {"presto_view": "true", "datalake.lake": store.uri}
    glue.create_table(DatabaseName=database, TableInput={**view, "Parameters": owned})

    assert [each.state for each in synced(store)] == ["current", "updated"]
    assert [each.state for each in synced(store)] == ["current", "current"]
    assert len(statements_of(moto, database)) == 2
    table = glue.get_table(DatabaseName=database, Name="second_day")["Table"]
    assert table["ViewOriginalText"] == view["ViewOriginalText"]


def statements_of(moto: str, database: str) -> list[str]:
    athena = boto3.client("athena", endpoint_url=moto, region_name="us-east-1")
    found = [
        athena.get_query_execution(QueryExecutionId=each)
        for each in athena.list_query_executions()["QueryExecutionIds"]
    ]
    executions = [each["QueryExecution"] for each in found]
    return [each["Query"] for each in executions if each["QueryExecutionContext"]["Database"] == database]


def test_local_lake_is_refused(tmp_path):
    (tmp_path / "lake").mkdir()
    store = open_store(str(tmp_path / "lake"))

    with pytest.raises(ConfigError, match="lakes in S3"):
        CATALOGS["glue"](Settings(lake=store.uri), store)


KILLED = """
import os, signal, sys
from botocore.httpsession import URLLib3Session
from datalake_assets.catalog.glue import GlueCatalog, GlueSettings
from datalake_assets.catalog.sync import sync_catalogs
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.settings import Settings

lake, s3, moto, database, last = sys.argv[1:]
send, seen = URLLib3Session.send, []

def send_and_die(self, request):
    answer = send(self, request)
    seen.append(request) if request.url.startswith(moto) else None
    if len(seen) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)  # it was done, and nobody knows
    return answer

URLLib3Session.send = send_and_die
store = open_store(lake, s3=S3Access(endpoint=s3))
catalog = GlueCatalog(GlueSettings(database), lake=store.uri)
sync_catalogs(Settings(lake=lake), store, FeedRegistry(store).list().feeds, catalogs=[catalog])
"""


def test_sync_that_is_killed_after_a_request_is_ended_by_the_next_one(store, feed, moto, glue, s3_server):
    """Killed once the database, then the table, then the partitions are there, and their sync does not know it."""
    database = database_of(store)
    land(store, feed, 1, 30)
    for last in ("2", "3", "4"):
        ran = subprocess.run(
            [sys.executable, "-c", FORKED + KILLED, store.uri, s3_server.endpoint, moto, database, last],
            capture_output=True,
            check=False,
            timeout=240,
        )
        assert ran.returncode == -signal.SIGKILL, ran.stderr

    synced(store)

    assert [each.state for each in synced(store)] == ["current"]
    found = glue.get_partitions(DatabaseName=database, TableName="s")["Partitions"]
    assert sorted(each["Values"][2] for each in found) == ["01", "02"]
    assert len(glue.get_tables(DatabaseName=database)["TableList"]) == 1
