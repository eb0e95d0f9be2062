"""What a Hive metastore is told of a lake, run by Spark SQL: it reads the rows of the manifests, and doubles none.

The statements are those that Athena gets, but for views, whose SQL differs.
"""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.catalog.entries import hive_type
from datalake_assets.catalog.metastore import HiveCatalog, ddl
from datalake_assets.catalog.sync import Wanted, sync_catalogs
from datalake_assets.core.batches import SourceBatch
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import Settings
from datalake_assets_tests.catalog.catalog_contract import add_view, land
from datalake_assets_tests.interop.names import needs_spark
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed


@pytest.fixture
def run(spark):
    """Runs one statement, as a person would."""
    return lambda text: [tuple(row) for row in spark.sql(text).collect()]


def synced(store, run, **options):
    feeds = FeedRegistry(store).list().feeds
    catalog = HiveCatalog(run, database="lake", lake=store.uri)
    told = sync_catalogs(Settings(lake=store.uri), store, feeds, catalogs=[catalog], **options)
    return {each.name: (each.state, each.partitions_added, each.partitions_removed) for each in told}


@needs_spark
@pytest.mark.slow
def test_spark_reads_what_the_metastore_was_told_and_nothing_twice(local_store, run, tmp_path):
    store, registry = local_store, FeedRegistry(local_store)
    stream = registry.add(stream_feed(schema_policy="evolve", description="it's \\ a feed"))
    table = registry.add(table_feed())
    land(store, stream, 1, 2, 30)
    land(store, table, 3)
    for name, values in (("k=x", [4]), ("k=it's %25", [5, 6])):
        (tmp_path / "others" / name).mkdir(parents=True)
        pq.write_table(pa.table({"v": values}), tmp_path / "others" / name / "data.parquet")
    adopt(store, str(tmp_path / "others"), "hive")
    add_view(store)

    assert synced(store, run) == {
        "s": ("created", 2, 0),
        "t": ("created", 0, 0),
        "hive": ("created", 2, 0),
        "second_day": ("created", 0, 0),
    }
    by_day = "SELECT year, month, day, count(*), sum(id) FROM lake.s GROUP BY ALL ORDER BY ALL"
    assert run(by_day) == [("2025", "01", "01", 2, 3), ("2025", "01", "02", 1, 30)]
    assert run("SELECT id, note, rowtime FROM lake.s WHERE day = '02'")[0][:2] == (30, "n30")
    assert run("SELECT k, v FROM lake.hive ORDER BY v") == [("x", 4), ("it's %", 5), ("it's %", 6)]
    assert run("SELECT * FROM lake.second_day") == [("n30", 1)]
    assert {state for state, *_ in synced(store, run).values()} == {"current"}

    run("MSCK REPAIR TABLE lake.s")  # as somebody will
    assert run(by_day) == [("2025", "01", "01", 2, 3), ("2025", "01", "02", 1, 30)]

    _land_more_columns(store, stream, [3, 60])
    land(store, table, 5)
    add_view(store, "SELECT count(*) AS n FROM s")
    told = synced(store, run)
    assert told["s"] == ("updated", 1, 0)
    assert told["t"][0] == told["second_day"][0] == "updated"
    assert run("SELECT sum(extra), count(*) FROM lake.s") == [(14, 5)]
    assert run("SELECT count(*) FROM lake.t") == [(5,)]
    assert run("SELECT * FROM lake.second_day") == [(5,)]

    _printed_statements_run_again_and_again(store, run, registry)
    registry.archive("t")
    assert synced(store, run, prune=True)["t"][0] == "dropped"
    assert open_table(store, table).scan().read_all().num_rows == 5


def _land_more_columns(store, feed, ids):
    more, table = numbered(ids), open_table(store, feed)
    rows = more.rows.append_column(pa.field("extra", pa.int32()), pa.array([7] * len(ids), pa.int32()))
    batches = stream_of(SourceBatch(rows, more.source_partitions, more.source_offsets))
    table.write(batches, partitions=table.plan().partitions, run_id="run")


def _printed_statements_run_again_and_again(store, run, registry):
    wanted = Wanted.of(store, registry.list().feeds)
    for replace in (False, False, True):
        for statement in ddl(wanted.entries, wanted.views, database="printed", replace=replace):
            run(statement)
        assert run("SELECT count(*), count(DISTINCT id) FROM printed.s") == [(5, 5)]
        assert run("SELECT count(*) FROM printed.t") == [(5,)]
        assert run("SELECT * FROM printed.second_day") == [(5,)]


KINDS = {
    pa.uint8(): "smallint",
    pa.uint64(): "decimal(20,0)",
    pa.decimal128(10, 2): "decimal(10,2)",
    pa.timestamp("us", "UTC"): "timestamp",
    pa.dictionary(pa.int32(), pa.string()): "string",
    pa.list_(pa.struct([("a", pa.int32()), ("b", pa.map_(pa.string(), pa.date32()))])): (
        "array<struct<a:int,b:map<string,date>>>"
    ),
    pa.time64("us"): None,
    pa.decimal256(50, 2): None,
    pa.float16(): None,
    pa.struct([("a b", pa.int32())]): None,
    pa.null(): None,
}


def test_types_are_those_that_hold_every_value_or_none():
    assert {kind: hive_type(kind) for kind in KINDS} == KINDS


LOADED = """
import sys, datalake_assets.catalog.sync
print([name for name in ("sqlglot", "dagster", "boto3") if name in sys.modules])
"""


def test_catalogs_load_nothing_that_they_do_not_need():
    """Most lakes are never entered anywhere: the command's help must stay quick."""
    ran = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=180)
    assert ran.stdout.strip() == "[]"
