"""The same exports on a lake of files: Dagster's numbers are the lake's, and rows land once."""

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.defs.feeds.assets import ExportConfig
from datalake_assets.feed import KsqlDBMode, KsqlDBSource
from datalake_assets.policies import Retention
from datalake_assets_tests.defs.fakes import stream, table
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
