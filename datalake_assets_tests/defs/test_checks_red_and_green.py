"""Every check is red for its reason, and green again once the reason is gone: on a lake of files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.config import Feed, Freshness, KsqlDBMode, KsqlDBSource
from datalake_assets.core.batches import RejectedRow
from datalake_assets.defs.checks.freshness import freshness_of
from datalake_assets.defs.checks.rules import rule_checks, rule_results
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.quiet import known_dagster_warnings_ignored
from datalake_assets.lake.feed_compaction import request_of
from datalake_assets.policies import (
    Checks,
    CompactionPolicy,
    Limits,
    NotNullRule,
    RangeRule,
    RegexRule,
    SqlRule,
    UniqueRule,
)
from datalake_assets_tests.defs.fakes import days_ago, stream, table
from datalake_assets_tests.defs.sent import RECENT, Sent, exporter, key

PULLED = KsqlDBSource(object="CLICKS", mode=KsqlDBMode.PULL)
HOURS = [days_ago(0) + timedelta(minutes=minute) for minute in range(6)]


class Watched:
    """A feed, its exports, and what its checks said last."""

    def __init__(self, lake, sent: Sent, instance: dg.DagsterInstance, feed: Feed) -> None:
        self.feeds, self.instance, self.feed = exporter(lake, sent, feed), instance, feed
        self.folder = Path(lake.uri) / feed.path

    def export(self, **options: object) -> None:
        self.result = self.feeds.export(self.instance, self.feed.name, quiet=True, **options)

    def check(self, name: str) -> dg.AssetCheckEvaluation:
        entries = self.instance.all_logs(self.result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        found = [entry.dagster_event.asset_check_evaluation_data for entry in entries]
        return [each for each in found if each.check_name == name][-1]

    def state(self, name: str) -> tuple[bool, str]:
        check = self.check(name)
        return check.passed, check.severity.value if not check.passed else ""

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.parquet"))


@pytest.fixture
def watched(lake, sent, instance):
    def watch(feed: Feed) -> Watched:
        return Watched(lake, sent, instance, feed)

    return watch


def test_small_files_and_file_size_are_red_until_the_partition_is_compacted(watched, sent):
    clicks = watched(stream(**RECENT))
    states = []
    for number in range(1, 4):
        sent.rows["clicks"] = HOURS[:number]
        clicks.export()
        states.append((clicks.state("small_files"), clicks.state("file_size")))

    green, red = ((True, ""), (True, "")), ((False, "WARN"), (False, "WARN"))
    assert states == [green, green, red]
    assert "compaction would leave 1" in clicks.check("small_files").description
    assert "100 % of its" in clicks.check("file_size").description

    request = request_of(clicks.feeds.lake.settings)
    clicks.feeds.lake.table(clicks.feed).compact(key(0), request)
    sent.rows["clicks"] = HOURS[:4]
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
    sent.rows["clicks"] = HOURS
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


RULES = {
    "not_null_id": (NotNullRule(column="id"), "id", None),
    "range_id": (RangeRule(column="id", min=0, max=99), "id", 100),
    "unique_id": (UniqueRule(columns=("id",), when="write"), "id", 0),
    "odd": (SqlRule(name="odd", query="SELECT * FROM data WHERE id = 77", when="write"), "id", 77),
}


@pytest.mark.parametrize("name", RULES)
def test_rule_is_red_while_a_row_breaks_it(watched, sent, name):
    rule, column, bad = RULES[name]
    clicks = watched(stream(**RECENT, checks=Checks(rules=(rule,))))
    sent.rows["clicks"] = HOURS[:3]
    clicks.export()
    assert clicks.state(name) == (True, "")
    (path,) = clicks.files
    body, rows = path.read_bytes(), pq.ParquetFile(path).read()
    values = [*rows[column].to_pylist()[:-1], bad]
    pq.write_table(rows.set_column(0, column, pa.array(values, pa.int64())), path)

    clicks.export()
    assert clicks.state(name) == (False, "ERROR")
    assert clicks.check(name).description == f"{key(0)}: 1 of 3 rows break it (33.3 %)"

    path.write_bytes(body)
    clicks.export()
    assert clicks.state(name) == (True, "")


def test_unique_across_the_feed_can_be_looked_at_within_each_export(watched, sent):
    rule = UniqueRule(columns=("id",), across="feed", when="write")
    clicks = watched(stream(**RECENT, checks=Checks(rules=(rule,))))
    sent.rows["clicks"] = [days_ago(1), days_ago(0)]
    clicks.export()
    assert clicks.state("unique_id") == (True, "")
    one, other = clicks.files
    other.write_bytes(one.read_bytes())

    clicks.export()

    assert clicks.state("unique_id") == (False, "ERROR")
    assert clicks.check("unique_id").description == "the feed: 1 of 2 rows break it (50 %)"

    clicks.export(partitions=[key(1), key(0)])  # said once, however many partitions are looked at
    assert clicks.check("unique_id").description == "the feed: 1 of 2 rows break it (50 %)"


def test_rule_warns_within_its_limits(watched, sent):
    lenient = RangeRule(column="id", max=0, limits=Limits(warn=10, error=90))
    clicks = watched(stream(**RECENT, checks=Checks(rules=(lenient,))))
    sent.rows["clicks"] = HOURS[:3]

    clicks.export()

    assert clicks.state("range_id") == (False, "WARN")


def test_regular_expression_is_red_for_the_text_that_does_not_match(watched, sent):
    """The feeds of these tests have no text: the rule's own counting is in ``lake/test_rules.py``."""
    rule = RegexRule(column="id", pattern="x")
    clicks = watched(stream(**RECENT, checks=Checks(rules=(rule,))))

    clicks.export()

    assert not clicks.result.success
    assert "rule 'regex_id'" in clicks.result.error


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


def dear(watched_feed: Watched) -> dg.AssetCheckResult:
    (result,) = rule_results(watched_feed.instance, watched_feed.feeds.lake.table(watched_feed.feed), {"unique_id"})
    event = dg.AssetCheckEvaluation(
        asset_key=asset_key(watched_feed.feed),
        check_name="unique_id",
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
    )
    watched_feed.instance.report_runless_asset_event(event)
    return result


def figure(result: dg.AssetCheckResult, name: str) -> object:
    return result.metadata[f"datalake/{name}"].value


def test_dear_rule_looks_at_what_changed_and_at_what_was_broken_before(watched, sent):
    rule = UniqueRule(columns=("id",))
    clicks = watched(stream(**RECENT, checks=Checks(rules=(rule,))))
    clicks.export()
    assert (dear(clicks).passed, figure(dear(clicks), "partitions")) == (True, 3)  # nothing changed: as before
    old = clicks.files[0]
    body = old.read_bytes()

    rows = pq.ParquetFile(old).read()
    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(2) + timedelta(hours=1), days_ago(0)]
    clicks.export()
    pq.write_table(pa.concat_tables([rows, rows]), old)
    broken = dear(clicks)
    assert (broken.passed, figure(broken, "partitions"), figure(broken, "partitions_broken")) == (False, 2, 1)

    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
    clicks.export()
    still = dear(clicks)
    assert (still.passed, figure(still, "partitions")) == (False, 2)  # today's, which changed, and the broken one

    old.write_bytes(body)
    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
    clicks.export()
    assert dear(clicks).passed


def test_dear_rules_are_a_step_that_can_be_asked_for_alone(watched, sent, instance):
    feed = stream(**RECENT, checks=Checks(rules=(UniqueRule(columns=("id",)), UniqueRule(columns=("rowtime",)))))
    clicks = watched(feed)
    sent.rows["clicks"] = [days_ago(0)] * 2
    clicks.export()
    merged = dg.Definitions.merge(clicks.feeds.definitions, dg.Definitions(asset_checks=[rule_checks(feed)]))
    wanted = {dg.AssetCheckKey(asset_key(feed), "unique_rowtime")}

    with known_dagster_warnings_ignored():
        job = merged.resolve_implicit_global_asset_job_def()
        run = job.get_subset(asset_selection=set(), asset_check_selection=wanted).execute_in_process(instance=instance)

    (result,) = run.get_asset_check_evaluations()
    assert (result.check_name, result.passed) == ("unique_rowtime", False)


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
