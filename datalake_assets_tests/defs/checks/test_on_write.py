"""Checks: what they compare, and what Dagster records of them."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pyarrow as pa

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.facts import PartitionFacts
from datalake_assets.core.verdicts import PartitionFooters, RowCount
from datalake_assets.defs.checks.on_write import look_at, newest_event
from datalake_assets.defs.metadata import asset_key
from datalake_assets.errors import SnapshotExpired
from datalake_assets.policies import Freshness
from datalake_assets_tests.defs.fakes import MemoryLake, MemoryTable, days_ago, rows, runner, stream, table


def evaluations(instance: dg.DagsterInstance, run_id: str, name: str) -> list[dg.AssetCheckEvaluation]:
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in entries]
    return [each for each in found if each.check_name == name]


def metadata(evaluation: dg.AssetCheckEvaluation) -> dict[str, object]:
    return {name.removeprefix("datalake/"): value.value for name, value in evaluation.metadata.items()}


def key(days: int) -> str:
    return f"{days_ago(days):%Y-%m-%d}"


def test_row_count_passes_when_the_files_hold_what_the_manifest_promises(lake: MemoryLake, instance):
    lake.sent["clicks"] = [days_ago(0)] * 3

    result = runner(lake, stream()).export(instance, "clicks", quiet=True)

    (check,) = evaluations(instance, result.run_id, "row_count")
    assert (check.passed, check.partition) == (True, key(0))
    assert metadata(check) == {
        "partitions": 1,
        "rows_promised": 3,
        "rows_found": 3,
        "partitions_not_opened": 0,
        "rows_of_source": 3,
        "rows_landed": 3,
    }


def test_row_count_fails_when_the_files_hold_other_rows(lake: MemoryLake, instance):
    lake.sent["clicks"] = [days_ago(0)] * 3
    lake.memory(stream()).files_hold[key(0)] = 6

    result = runner(lake, stream()).export(instance, "clicks", quiet=True)

    (check,) = evaluations(instance, result.run_id, "row_count")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert check.description == (
        f"{key(0)}: the manifest promises 3 rows and the files hold 6; run 'datalake verify clicks'"
    )
    assert result.success  # the rows are committed; the check says that something is wrong with them


class WatchedTable(MemoryTable):
    """Counts looks at manifests and at footers; at the look ``gone`` its files have just been replaced."""

    reports = opened = gone = 0

    def report(self, key: str) -> PartitionFacts | None:
        self.reports += 1
        return super().report(key)

    def footers(self, key: str) -> PartitionFooters:
        self.opened += 1
        if self.opened == self.gone:
            raise SnapshotExpired("streams/clicks", "a file was compacted")
        return super().footers(key)


def two_files() -> WatchedTable:
    return WatchedTable(stream(), data={key(0): pa.Table.from_batches([rows(days_ago(0))] * 2)}, small={key(0): 2})


def test_row_count_goes_by_the_manifest_that_the_sizes_were_judged_by(instance):
    looked = two_files()
    assert look_at(instance, looked, looked.snapshot([key(0)]), CompactionRequest(), broken={}).count == RowCount(
        key(0), 2, 2
    )
    assert (looked.reports, looked.opened) == (0, 1)


def test_row_count_looks_again_when_files_are_replaced_meanwhile(instance):
    looked = two_files()
    looked.gone = 1
    assert look_at(instance, looked, looked.snapshot([key(0)]), CompactionRequest(), broken={}).count == RowCount(
        key(0), 2, 2
    )
    assert (looked.reports, looked.opened) == (1, 2)


def test_row_count_of_a_range_is_recorded_for_each_partition_and_for_the_run(lake: MemoryLake, instance):
    lake.sent["clicks"] = [days_ago(2), days_ago(1)]

    result = runner(lake, stream()).export(instance, "clicks", partitions=[key(2), key(1)], quiet=True)

    checks = evaluations(instance, result.run_id, "row_count")
    assert [(check.partition, metadata(check)["rows_promised"]) for check in checks] == [
        (key(2), 1),
        (key(1), 1),
        (None, 2),
    ]


def test_row_count_warns_when_a_table_loses_more_than_a_tenth_of_its_rows(lake: MemoryLake, instance):
    feeds = runner(lake, table())
    checks = []

    for sent in (20, 19, 10):
        lake.sent["users"] = [days_ago(0)] * sent
        run = feeds.export(instance, "users", quiet=True)
        checks += evaluations(instance, run.run_id, "row_count")

    assert [check.passed for check in checks] == [True, True, False]
    assert metadata(checks[1])["change_percent"] == -5.0
    assert metadata(checks[2])["rows_previous"] == 19
    assert checks[2].severity is dg.AssetCheckSeverity.WARN
    assert checks[2].description == "v3 has 10 rows, the version before had 19"


def test_freshness_is_evaluated_by_an_export(lake: MemoryLake, instance):
    feed = stream(freshness=Freshness(max_event_age=timedelta(days=2)))
    lake.sent["clicks"] = [days_ago(9)]

    result = runner(lake, feed).export(instance, "clicks", quiet=True)

    (check,) = evaluations(instance, result.run_id, "freshness")
    assert (check.passed, check.partition) == (False, None)
    assert check.asset_key == asset_key(feed)


def test_newest_event_skips_partitions_without_rows():
    data = MemoryTable(stream())
    data.data["2026-01-01"] = data.data["2026-01-02"] = None
    newest = datetime(2026, 1, 1, 5, tzinfo=UTC)
    data.data["2026-01-01"] = pa.Table.from_batches([rows(newest)])
    data.data["2026-01-02"] = data.data["2026-01-01"].slice(1)

    assert newest_event(data) == newest
    assert newest_event(MemoryTable(stream())) is None
    assert newest_event(MemoryTable(table())) is None
