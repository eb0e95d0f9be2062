"""Every check of an export is red for its reason, and green again once the reason is gone: on a lake of files."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.batches import RejectedRow
from datalake_assets.defs.checks.on_write import freshness_of
from datalake_assets.defs.metadata import asset_key
from datalake_assets.lake.feed_compaction import request_of
from datalake_assets.policies import Checks, CompactionPolicy, Freshness, Limits, NotNullRule
from datalake_assets_tests.defs.checks.watched import PULLED, minutes_of_today
from datalake_assets_tests.defs.fakes import days_ago, stream, table
from datalake_assets_tests.defs.sent import RECENT, key


def test_small_files_and_file_size_are_red_until_the_partition_is_compacted(watched, sent):
    clicks = watched(stream(**RECENT))
    states = []
    for number in range(1, 4):
        sent.rows["clicks"] = minutes_of_today(number)
        clicks.export()
        states.append((clicks.state("small_files"), clicks.state("file_size")))

    green, red = ((True, ""), (True, "")), ((False, "WARN"), (False, "WARN"))
    assert states == [green, green, red]
    assert "compaction would leave 1" in clicks.check("small_files").description
    assert "100 % of its" in clicks.check("file_size").description

    request = request_of(clicks.feeds.lake.settings)
    clicks.feeds.lake.table(clicks.feed).compact(key(0), request)
    sent.rows["clicks"] = minutes_of_today(4)
    clicks.export()
    assert (clicks.state("small_files"), clicks.state("file_size")) == green


def test_partition_that_is_red_leaves_the_runs_own_partition_green(watched, sent, instance):
    clicks = watched(stream(**RECENT))
    for number in range(1, 4):
        sent.rows["clicks"] = [days_ago(1)] * number
        clicks.export()

    entries = instance.all_logs(clicks.result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in entries]
    assert {each.partition: each.passed for each in found if each.check_name == "small_files"} == {
        key(1): False,
        key(0): True,
    }


def test_blocking_check_judges_all_that_the_run_wrote(watched, sent):
    limits = Checks(small_files=Limits(error=0), blocking=("small_files",))
    clicks = watched(stream(**RECENT, checks=limits))
    sent.rows["clicks"] = [days_ago(1)]

    clicks.export()

    assert clicks.state("small_files") == (False, "ERROR")
    assert clicks.check("small_files").partition == key(0)  # which has no rows, but is what Dagster waits for


def test_file_size_is_red_while_a_file_is_too_large(watched, sent):
    sent.rows["clicks"] = minutes_of_today(6)
    feed = stream(**RECENT)
    watched(feed).export()
    size = watched(feed).files[0].stat().st_size

    def looked_at(split_above: float) -> dg.AssetCheckEvaluation:
        format_ = feed.format.model_copy(update={"target_file_size_bytes": size // 2})
        policy = CompactionPolicy(split_above=split_above)
        again = watched(feed.model_copy(update={"format": format_, "compaction": policy}))
        again.export()
        return again.check("file_size")

    assert not looked_at(1.5).passed
    assert "compaction would split" in looked_at(1.5).description
    assert looked_at(3).passed


def test_freshness_of_events_is_red_until_newer_rows_come(watched, sent):
    clicks = watched(
        stream(**RECENT, freshness=Freshness(max_event_age=timedelta(days=2), fail_event_age=timedelta(4)))
    )
    states = []
    for days in (5, 3, 0):
        sent.rows["clicks"] = [*([] if days == 5 else sent.rows["clicks"]), days_ago(days)]
        clicks.export()
        states.append(clicks.state("freshness"))

    assert states == [(False, "ERROR"), (False, "WARN"), (True, "")]


def test_row_count_is_red_while_a_files_rows_are_not_those_of_the_manifest(watched):
    clicks = watched(stream(**RECENT))
    clicks.export()
    path = clicks.files[-1]
    body = path.read_bytes()
    rows = pq.ParquetFile(path).read()
    pq.write_table(pa.concat_tables([rows, rows]), path)

    clicks.export()
    assert clicks.state("row_count") == (False, "ERROR")
    assert "the manifest promises 1 rows and the files hold 2" in clicks.check("row_count").description

    path.write_bytes(body)
    clicks.export()
    assert clicks.state("row_count") == (True, "")


def test_row_count_compares_with_what_the_source_delivered(watched):
    clicks = watched(stream(**RECENT, source=PULLED))

    clicks.export(partitions=[key(2), key(1), key(0)])

    figures = {name: value.value for name, value in clicks.check("row_count").metadata.items()}
    assert (figures["datalake/rows_of_source"], figures["datalake/rows_landed"]) == (3, 3)


def test_row_count_of_a_table_is_red_when_it_shrank_and_green_when_it_is_stable_again(watched, sent):
    users = watched(table(checks=Checks(row_drop_percent=Limits(warn=10, error=40))))
    states = []
    for count in (20, 17, 5, 5):
        sent.rows["users"] = [days_ago(0)] * count
        users.export()
        states.append(users.state("row_count"))

    assert states == [(True, ""), (False, "WARN"), (False, "ERROR"), (True, "")]


def test_schema_is_red_while_a_file_lacks_a_column(watched):
    clicks = watched(stream(**RECENT))
    clicks.export()
    path = clicks.files[-1]
    body = path.read_bytes()
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["id"]), path)

    clicks.export()
    assert clicks.state("schema") == (False, "ERROR")
    assert clicks.check("schema").description == f"{key(0)}: {path.name} has no column 'id'"

    path.write_bytes(body)
    clicks.export()
    assert clicks.state("schema") == (True, "")


def test_schema_is_red_when_a_damaged_file_cannot_be_read_and_the_export_goes_on(watched):
    clicks = watched(stream(**RECENT))
    clicks.export()
    clicks.files[-1].write_bytes(b"PAR1")

    clicks.export()

    assert clicks.result.success
    assert clicks.state("schema") == (False, "ERROR")
    assert clicks.state("row_count") == (False, "ERROR")


def test_schema_is_red_once_the_sources_columns_changed_and_green_after_they_are_back(watched, sent, instance):
    clicks = watched(stream(**RECENT))
    clicks.export()
    name = dg.AssetCheckKey(asset_key(clicks.feed), "schema")

    def latest() -> dg.AssetCheckEvaluation:
        record = instance.get_latest_asset_check_evaluation_record(name)
        return record.event.dagster_event.asset_check_evaluation_data

    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
    sent.id_type = pa.string()
    clicks.export()
    assert not clicks.result.success
    assert (latest().passed, latest().severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "id" in latest().description

    sent.id_type = pa.int64()
    clicks.export()
    assert clicks.result.success
    assert latest().passed


def test_schema_warns_of_values_that_did_not_fit_the_contract_and_names_them(watched, sent):
    clicks = watched(stream(**RECENT, schema_policy="discard_value"))
    clicks.export()
    assert clicks.state("schema") == (True, "")
    rows = len(sent.rows["clicks"])

    sent.extra = True
    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
    clicks.export()

    assert clicks.state("schema") == (False, "WARN")
    assert "column 'extra' is not in the feed's schema: 1" in clicks.check("schema").description
    figures = {name: value.value for name, value in clicks.check("schema").metadata.items()}
    assert (figures["datalake/values_misfit"], figures["datalake/values_discarded"]) == (1, 1)
    told = clicks.instance.get_latest_materialization_event(asset_key(clicks.feed)).asset_materialization
    assert told.metadata["datalake/misfits"].value == {"column 'extra' is not in the feed's schema": 1}
    assert told.metadata["datalake/values_discarded"].value == 1
    assert clicks.feeds.lake.table(clicks.feed).scan().read_all().num_rows == rows + 1

    sent.extra = False
    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
    clicks.export()
    assert clicks.state("schema") == (True, "")


def test_quarantine_is_red_while_exports_put_rows_aside(watched, sent):
    clicks = watched(stream(**RECENT))
    sent.rejected = (RejectedRow(b"{", "no JSON", "offset 9"),)
    clicks.export()
    assert clicks.state("quarantine") == (False, "ERROR")
    assert "1 of 4 rows could not be landed" in clicks.check("quarantine").description

    sent.rejected = ()
    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
    clicks.export()
    assert clicks.state("quarantine") == (True, "")


def test_blocking_check_keeps_downstream_assets_from_running_when_it_fails(watched, sent, instance):
    rule = NotNullRule(column="id")
    clicks = watched(stream(**RECENT, checks=Checks(rules=(rule,), blocking=("not_null_id",))))
    clicks.export()
    path = clicks.files[-1]
    rows = pq.ParquetFile(path).read()
    pq.write_table(rows.set_column(0, "id", pa.nulls(rows.num_rows, pa.int64())), path)
    ran = []

    @dg.asset(deps=[asset_key(clicks.feed)])
    def downstream() -> None:
        ran.append(True)

    definitions = dg.Definitions.merge(clicks.feeds.definitions, dg.Definitions(assets=[downstream]))
    job = definitions.resolve_implicit_global_asset_job_def()
    run = job.execute_in_process(
        instance=instance,
        partition_key=key(0),
        raise_on_error=False,
        asset_selection=[asset_key(clicks.feed), downstream.key],
    )

    assert not run.success
    assert not ran


def test_filling_in_old_partitions_does_not_make_a_feed_fresh(watched, instance):
    policy = Freshness(max_commit_age=timedelta(hours=1))
    clicks = watched(stream(**RECENT, source=PULLED, freshness=policy))
    lake_table = clicks.feeds.lake.table(clicks.feed)
    assert freshness_of(instance, lake_table, now=datetime.now(UTC)) is None  # never exported: nothing to say

    clicks.export(partitions=[key(4), key(3)])
    assert freshness_of(instance, lake_table, now=datetime.now(UTC)).level == "warn"

    clicks.export(partitions=[key(0)])
    assert freshness_of(instance, lake_table, now=datetime.now(UTC)).passed
    assert not freshness_of(instance, lake_table, now=datetime.now(UTC) + timedelta(hours=2)).passed
