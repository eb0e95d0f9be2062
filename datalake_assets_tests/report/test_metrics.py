"""The report as metrics: read back by Prometheus's own parser, and taken by CloudWatch as moto serves it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from prometheus_client.parser import text_string_to_metric_families

from datalake_assets.core.report.findings import build_report
from datalake_assets.lake.statistics import lake_statistics
from datalake_assets.report.metrics import cloudwatch_text, prometheus_text
from datalake_assets_tests.lake.feeds import stream_feed
from datalake_assets_tests.lake.many_files import append
from datalake_assets_tests.operations.shared_catalogs import glue_server as moto_server

NOW = datetime(2025, 1, 10, tzinfo=UTC)
LAKE = 's3://bü"cket/la\\ke'


@pytest.fixture
def report(local_store):
    """A stream of three days with four small files each, whose rows are late, and a queue that was never read."""
    late = stream_feed(freshness={"max_event_age": "P1D"})
    append(local_store, late, times=4)
    queue = stream_feed(name="q", checks={"small_files": {"warn": 7}})
    return build_report(lake_statistics(local_store, [late, queue]), lake=LAKE, at=NOW)


def test_prometheus_reads_every_figure_with_its_feed(report):
    families = {each.name: each for each in text_string_to_metric_families(prometheus_text(report, {"q": 120}))}

    def values(name):
        return {each.labels["feed"]: each.value for each in families[f"datalake_{name}"].samples}

    statistics = report.feeds[0].statistics
    assert values("small_files") == {"s": 12.0, "q": 0.0}
    assert values("small_files_in_worst_partition") == {"s": 4.0, "q": 0.0}
    assert values("size_bytes")["s"] == statistics.size_bytes > 0
    assert values("queue_depth") == {"q": 120.0}
    assert values("newest_row_age_seconds") == {"s": (NOW - statistics.newest_row).total_seconds()}
    assert values("monthly_cost_dollars")["s"] == pytest.approx(report.feeds[0].cost.dollars)
    (sample,) = families["datalake_report_timestamp_seconds"].samples
    assert (sample.labels["lake"], sample.value) == (LAKE, NOW.timestamp())
    assert all(family.type == "gauge" and family.documentation for family in families.values())


def test_cloudwatch_takes_metrics_alarms_and_dashboard_as_they_are_printed(report, monkeypatch):
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    topic = "arn:aws:sns:eu-west-1:123456789012:lake"
    document = json.loads(cloudwatch_text(report, {"q": 120}, region="eu-west-1", topic=topic))

    with moto_server() as url:
        cloudwatch = boto3.client("cloudwatch", region_name="eu-west-1", endpoint_url=url)
        for each in document["metrics"]:
            cloudwatch.put_metric_data(**each)
        for each in document["alarms"]:
            cloudwatch.put_metric_alarm(**each)
        cloudwatch.put_dashboard(**document["dashboard"])
        alarms = cloudwatch.describe_alarms()["MetricAlarms"]
        listed = cloudwatch.list_metrics(Namespace="Datalake")["Metrics"]
        stored = cloudwatch.get_dashboard(DashboardName=document["dashboard"]["DashboardName"])
        cloudwatch.close()

    limits = {each["AlarmName"].removeprefix('datalake s3://b?"cket/la\\ke '): each["Threshold"] for each in alarms}
    assert limits == {
        "streams/s SmallFilesInWorstPartition": 100.0,
        "streams/s QuarantinedRows": 0.0,
        "streams/s NewestRowAge": timedelta(days=1).total_seconds(),
        "streams/q QueueDepth": 100.0,
        "streams/q SmallFilesInWorstPartition": 7.0,
        "streams/q QuarantinedRows": 0.0,
        "lake MonthlyCost": 10.0,
    }
    assert {each["AlarmActions"][0] for each in alarms} == {topic}
    # each alarm watches a metric that is sent, with the same dimensions
    sent = {(each["MetricName"], json.dumps(each["Dimensions"])) for each in listed}
    watched = {(each["MetricName"], json.dumps(each["Dimensions"])) for each in alarms}
    assert watched - sent == set()
    widgets = json.loads(stored["DashboardBody"])["widgets"]
    assert len(widgets) == 6
    assert all('Lake="s3://b?\\"cket/la\\ke"' in each["properties"]["metrics"][0][0]["expression"] for each in widgets)


def test_cost_limit_is_the_users_and_alarms_of_two_lakes_have_names_of_their_own(report):
    one = json.loads(cloudwatch_text(report, {}, region="eu-west-1", cost_limit=2.5))
    other = build_report(report.statistics, lake="s3://other/" + "x" * 300, at=NOW)
    two = json.loads(cloudwatch_text(other, {}, region="eu-west-1"))

    assert [each["Threshold"] for each in one["alarms"] if each["MetricName"] == "MonthlyCost"] == [2.5]
    names = [each["AlarmName"] for document in (one, two) for each in document["alarms"]]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 255
    assert one["dashboard"]["DashboardName"] != two["dashboard"]["DashboardName"]
    assert "QueueDepth" not in {each["MetricName"] for each in one["alarms"]}
