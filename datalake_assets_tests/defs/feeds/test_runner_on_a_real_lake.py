"""The same exports on a lake of files: Dagster's numbers are the lake's, and rows land once."""

from datetime import timedelta

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.defs.feeds.assets import ExportConfig
from datalake_assets.defs.feeds.runner import UNKNOWN_RUN, FeedRunner, partitions_of_a_run
from datalake_assets.defs.resources import Lake
from datalake_assets.policies import MIB, Checks, Freshness, NotNullRule, Retention
from datalake_assets.sources.ksqldb.declaration import KsqlDBMode, KsqlDBSource
from datalake_assets_tests.defs.fakes import days_ago, stream, table
from datalake_assets_tests.defs.sent import RECENT, exporter, key

PULL = {**RECENT, "source": KsqlDBSource(object="PULLED", mode=KsqlDBMode.PULL)}


def count(lake, path: str) -> int:
    return pq.read_table(f"{lake.uri}/{path}").num_rows


@pytest.mark.parametrize("changes", [RECENT, PULL], ids=["offsets", "pull"])
def test_rows_land_once_however_often_and_in_whatever_ranges_they_are_exported(lake, sent, instance, changes):
    feeds = exporter(lake, sent, stream(**changes))
    ranges = [None, None, [key(1)], [key(2), key(1), key(0)], None]

    results = [feeds.export(instance, "clicks", partitions=keys, quiet=True) for keys in ranges]

    assert [result.error for result in results] == [None] * 5
    assert [result.rows_added for result in results] == [3, 0, 0, 0, 0]
    assert count(lake, "streams/clicks") == 3


def test_dagster_and_the_lake_agree_on_every_partition(lake, sent, instance):
    feeds = exporter(lake, sent, stream(**PULL))

    result = feeds.export(instance, "clicks", partitions=[key(2), key(1), key(0)], quiet=True)

    reports = [feeds.lake.table(stream(**PULL)).report(each.key) for each in result.partitions]
    assert [(each.key, each.rows, each.files, each.size_bytes) for each in result.partitions] == [
        (each.key, each.rows, each.files, each.size_bytes) for each in reports
    ]
    checks = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    assert all(entry.dagster_event.asset_check_evaluation_data.passed for entry in checks)
    assert len(checks) == 18  # four checks of three partitions each and of the run, freshness and quarantine


def test_backfill_of_pulled_windows_is_cut_into_runs_by_their_bytes_where_a_launcher_is_named(lake, sent, instance):
    feed = stream(**PULL)
    feeds = exporter(lake, sent, feed)
    launched = Lake(lake.settings.model_copy(update={"run_launcher": "celery", "run_mb": 1}))
    assert partitions_of_a_run(launched, feed) == UNKNOWN_RUN
    feeds.export(instance, "clicks", partitions=[key(2), key(1), key(0)], quiet=True)

    sizes = [feeds.lake.table(feed).report(key(day)).size_bytes for day in range(3)]
    found = partitions_of_a_run(launched, feed)
    assert found * sum(sizes) / 3 <= MIB < (found + 1) * sum(sizes) / 3
    assert partitions_of_a_run(launched, stream(**PULL, runs={"partitions": 7})) == 7
    assert partitions_of_a_run(launched, stream(**PULL, runs={"max_bytes": 4 * MIB})) == 4 * MIB * 3 // sum(sizes)
    asset = FeedRunner([feed], launched, feeds._resources)._asset(feed)
    assert asset.backfill_policy == dg.BackfillPolicy.multi_run(found)


def test_backfill_stays_one_run_where_nobody_asks_for_more_or_rows_are_numbered(lake):
    launched = Lake(lake.settings.model_copy(update={"run_launcher": "celery"}))
    assert partitions_of_a_run(lake, stream(**PULL)) is None
    assert partitions_of_a_run(lake, stream(**PULL, runs={"partitions": 7})) == 7
    assert partitions_of_a_run(launched, stream(**RECENT)) is None
    assert partitions_of_a_run(launched, table()) is None


def test_versions_of_a_table_come_and_go_with_retention(lake, sent, instance):
    feeds = exporter(lake, sent, table(retention=Retention(versions=2)))

    for _ in range(3):
        result = feeds.export(instance, "users", quiet=True)
        assert result.error is None

    assert instance.get_dynamic_partitions("tables/users") == ["v2", "v3"]
    assert feeds.lake.table(table()).partitions() == ("v2", "v3")
    again = feeds.export(instance, "users", partitions=["v2"], quiet=True)
    gone = feeds.export(instance, "users", partitions=["v1"], quiet=True)
    assert (again.success, again.rows_added) == (True, 0)
    assert gone.error == "v1 of table 'users' was removed by retention"


def test_source_that_shrank_is_refused_until_a_person_allows_it(lake, sent, instance):
    feeds = exporter(lake, sent, stream(**PULL))
    feeds.export(instance, "clicks", quiet=True)
    sent.rows["clicks"] = sent.rows["clicks"][:2]

    refused = feeds.export(instance, "clicks", partitions=[key(0)], quiet=True)
    allowed = feeds.export(instance, "clicks", partitions=[key(0)], config=ExportConfig(allow_shrink=True), quiet=True)

    assert "--allow-shrink" in refused.error
    assert (allowed.success, allowed.rows_added) == (True, -1)


def test_downstream_asset_reads_what_was_committed(lake, sent, instance):
    feeds = exporter(lake, sent, stream())
    feeds.lake.registry.add(stream())
    feeds.export(instance, "clicks", quiet=True)

    @dg.asset(ins={"clicks": dg.AssetIn(["streams", "clicks"])})
    def total(clicks: pa.Table) -> int:
        return clicks.num_rows

    definitions = dg.Definitions.merge(feeds.definitions, dg.Definitions(assets=[total]))
    job = definitions.resolve_implicit_global_asset_job_def()
    with pytest.warns(DeprecationWarning, match="dagster_run"):
        result = job.execute_in_process(instance=instance, asset_selection=[total.key])

    assert result.output_for_node("total") == 3


def materialized(instance: dg.DagsterInstance) -> dict[str, dict[str, object]]:
    """By partition of `streams/clicks`, the numbers of its newest materialization."""
    records = instance.fetch_materializations(dg.AssetKey(["streams", "clicks"]), limit=100, ascending=True).records
    return {
        each.partition_key: {name: value.value for name, value in each.asset_materialization.metadata.items()}
        for each in records
    }


def test_each_materialization_tells_of_the_whole_stream_too(lake, sent, instance):
    feeds = exporter(lake, sent, stream(**RECENT))

    feeds.export(instance, "clicks", quiet=True)

    found = materialized(instance)
    assert len(found) == 3
    for each in found.values():
        assert (each["dagster/row_count"], each["datalake/feed_files"], each["datalake/feed_partitions"]) == (3, 3, 3)
        assert each["dagster/size_bytes"] > 0
    assert [each["dagster/partition_row_count"] for each in found.values()] == [1, 1, 1]


def test_empty_partition_has_no_figures_that_a_plot_would_fall_to(lake, sent, instance):
    feeds = exporter(lake, sent, stream(**RECENT))
    sent.rows["clicks"] = [days_ago(2), days_ago(1)]

    result = feeds.export(instance, "clicks", partitions=[key(2), key(1), key(0)], quiet=True)

    today = materialized(instance)[key(0)]
    assert (today["dagster/partition_row_count"], today["dagster/row_count"]) == (0, 2)
    assert not today.keys() & {"datalake/files", "datalake/small_files", "datalake/size_bytes"}
    checks = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in checks]
    assert {each.partition for each in found if each.metadata} == {None, key(2), key(1)}
    assert {each.passed for each in found if each.partition == key(0)} == {True}  # without them Dagster says "Skipped"
    alone = feeds.export(instance, "clicks", partitions=[key(0)], quiet=True)
    checks = instance.all_logs(alone.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in checks]
    assert {each.check_name for each in found if each.metadata} == {"freshness", "quarantine"}


def test_days_without_rows_are_not_missing(lake, sent, instance):
    feeds = exporter(lake, sent, stream(start=days_ago(9).date()))
    sent.rows["clicks"] = [days_ago(9), days_ago(6)]

    result = feeds.export(instance, "clicks", quiet=True)

    found = materialized(instance)
    assert sorted(found) == [key(days) for days in range(9, -1, -1)]
    assert [found[key(days)]["dagster/partition_row_count"] for days in (9, 8, 7, 6, 5, 0)] == [1, 0, 0, 1, 0, 0]
    assert {each["dagster/row_count"] for each in found.values()} == {2}
    assert all("dagster/column_schema" in each for each in found.values())
    assert {each.key for each in result.partitions} >= {key(9), key(6), key(0)}
    assert key(8) not in {each.key for each in result.partitions}
    again = feeds.export(instance, "clicks", quiet=True)
    assert again.success
    assert len(materialized(instance)) == 10


def test_checks_of_an_export_read_each_manifest_once(lake, sent, instance, counted):
    """Rules, sizes, footers and freshness go by one look; the export itself takes two: to begin with, and to commit."""
    rules = Checks(rules=(NotNullRule(column="id"),))
    fresh = Freshness(max_event_age=timedelta(days=9))
    feeds = exporter(lake, sent, stream(**RECENT, checks=rules, freshness=fresh))
    counted.clear()

    result = feeds.export(instance, "clicks", partitions=[key(2), key(1), key(0)], quiet=True)

    assert (result.error, len(counted.loads)) == (None, 3)
    assert max(counted.loads.values()) <= 3


@pytest.mark.parametrize(
    "feed",
    [stream(**RECENT), stream(**PULL), table(retention=Retention(versions=2))],
    ids=["offsets", "pull", "table"],
)
def test_an_export_reads_each_manifest_once_its_checks_among_it(lake, sent, instance, counted, feed):
    feeds = exporter(lake, sent, feed)
    for row in (sent.rows[feed.name][-1], None):
        counted.clear()
        result = feeds.export(instance, feed.name, quiet=True)
        assert result.error is None
        assert result.rows_added
        assert set(counted.loads.values()) == {1}, counted.loads
        sent.rows[feed.name] = [*sent.rows[feed.name], row]
