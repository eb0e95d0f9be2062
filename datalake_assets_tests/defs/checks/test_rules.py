"""Rules are red while rows break them, and green again: within exports, and as steps of their own."""

from datetime import timedelta

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.defs.checks.at_rest import rule_checks, rule_results
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.runtime import known_dagster_warnings_ignored
from datalake_assets.policies import Checks, Limits, NotNullRule, RangeRule, RegexRule, SqlRule, UniqueRule
from datalake_assets_tests.defs.checks.watched import Watched, minutes_of_today
from datalake_assets_tests.defs.fakes import days_ago, stream
from datalake_assets_tests.defs.sent import RECENT, key

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
    sent.rows["clicks"] = minutes_of_today(3)
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
    sent.rows["clicks"] = minutes_of_today(3)

    clicks.export()

    assert clicks.state("range_id") == (False, "WARN")


def test_regular_expression_is_red_for_the_text_that_does_not_match(watched, sent):
    """The feeds of these tests have no text: the rule's own counting is in ``lake/test_rules.py``."""
    rule = RegexRule(column="id", pattern="x")
    clicks = watched(stream(**RECENT, checks=Checks(rules=(rule,))))

    clicks.export()

    assert not clicks.result.success
    assert "rule 'regex_id'" in clicks.result.error


def expensive(watched_feed: Watched) -> dg.AssetCheckResult:
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


def test_expensive_rule_looks_at_what_changed_and_at_what_was_broken_before(watched, sent):
    rule = UniqueRule(columns=("id",))
    clicks = watched(stream(**RECENT, checks=Checks(rules=(rule,))))
    clicks.export()
    assert (expensive(clicks).passed, figure(expensive(clicks), "partitions")) == (True, 3)  # unchanged: as before
    old = clicks.files[0]
    body = old.read_bytes()

    rows = pq.ParquetFile(old).read()
    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(2) + timedelta(hours=1), days_ago(0)]
    clicks.export()
    pq.write_table(pa.concat_tables([rows, rows]), old)
    broken = expensive(clicks)
    assert (broken.passed, figure(broken, "partitions"), figure(broken, "partitions_broken")) == (False, 2, 1)

    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
    clicks.export()
    still = expensive(clicks)
    assert (still.passed, figure(still, "partitions")) == (False, 2)  # today's, which changed, and the broken one

    old.write_bytes(body)
    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
    clicks.export()
    assert expensive(clicks).passed


def test_expensive_rules_are_a_step_that_can_be_asked_for_alone(watched, sent, instance):
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
