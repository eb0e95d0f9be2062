"""``datalake delete``: shows first, deletes with ``--yes``, and says what still holds the rows."""

from __future__ import annotations

import json

import dagster as dg
import pytest

from datalake_assets.core.batches import RejectedRow
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.cli.told import dagster_told
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.hive_tables import export, ids

UNDECIDED = "beside the table: 1 row cannot be told to match or not: look with 'datalake quarantine show s'"


@pytest.fixture
def clicks(lake_store, registry: FeedRegistry):
    """A stream of 30 rows in two files on two days, and one row that could not be decoded."""
    feed = registry.add(stream_feed())
    table = open_table(lake_store, feed)
    export(table, stream_of(numbered(range(10))))
    export(table, stream_of(numbered(range(10, 30), rejected=[RejectedRow(b"?", "not a row", "0:99")])))
    return table


def test_nothing_is_deleted_until_it_is_said(run, clicks):
    result = run("delete", "s", "--where", "id < 3 OR id = 25")
    lines = result.stdout.splitlines()
    assert (result.exit_code, result.stderr, ids(clicks)) == (0, "", list(range(30)))
    assert lines[0].startswith("streams/s 2025-01-01: 3 of 24 rows, in 1 of 2 files, ")
    assert lines[1].startswith("  data_")
    assert lines[1].endswith(".parquet: 3 rows")
    assert lines[-2:] == [
        "streams/s: 4 of 30 rows in 2 of 2 partitions match; --yes deletes them",
        UNDECIDED,
    ]


def test_rows_are_deleted_in_all_partitions_or_in_those_named(run, clicks):
    result = run("delete", "s", "--where", "id % 24 = 1", "--partition", "2025-01-02", "--yes")
    assert result.stdout.splitlines()[2:] == [
        "streams/s: 1 of 6 rows in 1 of 1 partition deleted",
        UNDECIDED,
        "an export does not land them again, unless the source is read anew from its beginning (--new-epoch)",
    ]
    assert ids(clicks) == [number for number in range(30) if number != 25]
    run("delete", "s", "--where", "id % 24 = 1", "--range", "2025-01-01..2025-01-02", "--yes")
    assert ids(clicks) == [number for number in range(30) if number not in {1, 25}]
    again = run("delete", "s", "--where", "id % 24 = 1", "--yes")
    assert "streams/s: 0 of 28 rows in 0 of 2 partitions deleted" in again.stdout


def test_json_has_every_partition_and_file(run, clicks):
    before = json.loads(run("delete", "s", "--where", "id = 3", "--json").stdout)
    document = json.loads(run("delete", "s", "--where", "id = 3", "--yes", "--json").stdout)
    assert (before["deleted"], before["rows_matching"], before["rows_deleted"]) == (False, 1, 0)
    assert (document["deleted"], document["rows_matching"], document["rows_deleted"]) == (True, 1, 1)
    first, second = document["partitions"]
    assert (first["partition"], list(first["matching"].values()), second["matching"]) == ("2025-01-01", [1], {})
    assert document["quarantine"] == {"matching": 0, "undecided": 1, "deleted": 0}
    assert "failed" not in document


def test_what_cannot_be_is_refused_in_one_line(run, clicks, registry):
    for arguments, code, message in (
        (["s", "--where", "id"], 1, "the condition cannot be used: it is no condition but a value of type BIGINT"),
        (["s", "--where", "id = 1", "--partition", "2025-03-01"], 1, "has no partition '2025-03-01'"),
        (["s", "--where", "id = 1", "--range", "2025-03-01..2025-03-02"], 1, "has no partitions in"),
        (["nobody", "--where", "id = 1"], 1, "nobody"),
        (["s"], 2, "--where"),
        (["s", "--where", "true", "--partition", "2025-01-01", "--range", "a..b"], 2, "not both"),
    ):
        result = run("delete", *arguments, "--yes")
        assert (result.exit_code, message in result.stderr, result.stdout) == (code, True, "")
    registry.add(table_feed())
    assert "tables/t: 0 of 0 rows in 0 of 0 partitions" in run("delete", "t", "--where", "id = 1").stdout
    assert ids(clicks) == list(range(30))


def test_past_snapshots_of_an_iceberg_table_are_named_and_dropped(run, lake_store, registry):
    table = open_table(lake_store, registry.add(table_feed(format={"type": "iceberg"})))
    for count in (5, 6):
        export(table, table_of(count))
    shown = run("delete", "t", "--where", "id = 3", "--yes")
    assert "past snapshots hold these rows until the night after 7 days" in shown.stdout
    assert "the next version has what the source has then" in shown.stdout
    dropped = run("delete", "t", "--where", "id = 4", "--yes", "--now")
    assert "past snapshots dropped" in dropped.stdout
    assert (ids(table, partitions=["v1"]), ids(table, partitions=["v2"])) == ([0, 1, 2], [0, 1, 2, 5])
    seen = {number for key in table.partitions() for number in ids(table, partitions=[key])}
    assert seen == {0, 1, 2, 5}


def test_rows_in_quarantine_go_if_that_is_wanted(run, lake_store, registry):
    table = open_table(lake_store, registry.add(stream_feed(start="2025-01-02")))
    export(table, stream_of(numbered(range(30))))
    shown = run("delete", "s", "--where", "id IN (3, 26)")
    assert "beside the table: 1 row matches, and stays; --quarantine --yes deletes them" in shown.stdout
    run("delete", "s", "--where", "id IN (3, 26)", "--yes")
    assert len(list(table.quarantined())) == 24
    gone = run("delete", "s", "--where", "id IN (3, 26)", "--yes", "--quarantine")
    assert "beside the table: 1 row deleted" in gone.stdout
    assert len(list(table.quarantined())) == 23
    assert ids(table) == [24, 25, 27, 28, 29]


def test_rows_of_a_feed_that_landed_none_are_said_to_be_undecided(run, lake_store, registry):
    """Nobody knows its columns yet."""
    table = open_table(lake_store, registry.add(stream_feed(start="2025-01-02")))
    export(table, stream_of(numbered(range(3))))
    shown = run("delete", "s", "--where", "id = 1", "--yes", "--quarantine")
    assert "beside the table: 3 rows cannot be told to match or not" in shown.stdout


def test_dagster_is_told_what_was_deleted_and_what_a_feed_is_kept_as(run, clicks, lake):
    run("delete", "s", "--where", "id < 3", "--yes")
    run("delete", "s", "--where", "id < 3", "--yes")  # nothing more
    assert run("feeds", "convert", "s", "--to", "iceberg").exit_code == 0
    with dagster_told(lake) as instance:
        (deleted,) = instance.fetch_materializations(dg.AssetKey(["streams", "s"]), limit=9).records
        (kept_as,) = instance.fetch_observations(dg.AssetKey(["streams", "s"]), limit=9).records
    told = {name: value.value for name, value in deleted.asset_materialization.metadata.items()}
    assert deleted.partition_key == "2025-01-01"
    assert deleted.asset_materialization.description == "3 of 24 rows deleted"
    assert (told["datalake/rows_deleted"], told["dagster/partition_row_count"], told["dagster/row_count"]) == (
        3,
        21,
        27,
    )
    told = {name: value.value for name, value in kept_as.asset_observation.metadata.items()}
    assert kept_as.asset_observation.description == "converted to iceberg: 2 partitions, 27 rows"
    assert (kept_as.partition_key, told["datalake/format"], told["dagster/row_count"]) == (None, "iceberg", 27)
    assert told["dagster/uri"] == f"{lake}/streams/s.iceberg"


def test_a_past_version_that_lost_rows_does_not_look_like_the_present_one(run, lake, lake_store, registry):
    table = open_table(lake_store, registry.add(table_feed()))
    for rows in (3, 4):
        export(table, table_of(rows))
    run("delete", "t", "--where", "id = 1", "--partition", "v1", "--yes")
    with dagster_told(lake) as instance:
        assert instance.fetch_materializations(dg.AssetKey(["tables", "t"]), limit=9).records == []
        (record,) = instance.fetch_observations(dg.AssetKey(["tables", "t"]), limit=9).records
    assert (record.partition_key, record.asset_observation.description) == ("v1", "1 of 3 rows deleted")
