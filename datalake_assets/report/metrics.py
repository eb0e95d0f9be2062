"""The report as metrics: for Prometheus as text, for CloudWatch as requests, with alarms and a dashboard.

A metric that nobody knows is left out: no number stands for it. Nothing is sent from here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datalake_assets.core.report.findings import FeedReport, LakeReport
from datalake_assets.feed import Feed

__all__ = ["COST_LIMIT", "NAMESPACE", "SMALL_FILES_LIMIT", "cloudwatch_text", "prometheus_text"]

NAMESPACE = "Datalake"
#: Dollars a month on S3 that an alarm is raised above, where nobody says otherwise.
COST_LIMIT = 10.0
#: Small files of one partition that an alarm is raised above, where the feed's check has no limit.
SMALL_FILES_LIMIT = 100
#: CloudWatch limits: metrics of one PutMetricData, characters of an alarm's name and of a dimension's value.
_AT_ONCE, _NAME, _VALUE = 1000, 255, 1024
#: Seconds of one evaluation; a report every five minutes, or less often, is enough.
_PERIOD_S = 300


@dataclass(frozen=True, slots=True)
class _Metric:
    """One figure of feeds, or of the lake.

    Attributes:
        name: Its name in Prometheus, after ``datalake_``; with its unit.
        cloud_name: Its name in CloudWatch.
        unit: CloudWatch's.
        told: What it is, for a person.
        of_feed: Gives it of a feed; None if it is not known.
    """

    name: str
    cloud_name: str
    unit: str
    told: str
    of_feed: Callable[[FeedReport], float | None]


def _age(what: str) -> Callable[[FeedReport], float | None]:
    def age_s(feed: FeedReport) -> float | None:
        found = next((each.age for each in feed.ages if each.what == what), None)
        return None if found is None else found.total_seconds()

    return age_s


_METRICS = (
    _Metric("rows", "Rows", "Count", "Rows.", lambda each: each.statistics.rows),
    _Metric("files", "Files", "Count", "Data files.", lambda each: each.statistics.files),
    _Metric("small_files", "SmallFiles", "Count", "Small data files.", lambda each: each.statistics.small_files),
    _Metric(
        "small_files_in_worst_partition",
        "SmallFilesInWorstPartition",
        "Count",
        "Small data files of the partition that has most.",
        lambda each: max((one.small_files for one in each.statistics.partitions), default=0),
    ),
    _Metric(
        "files_to_compact",
        "FilesToCompact",
        "Count",
        "Data files that a compaction would merge or split.",
        lambda each: sum(one.files_to_rewrite for one in each.statistics.partitions),
    ),
    _Metric("size_bytes", "Size", "Bytes", "Size of the data files.", lambda each: each.statistics.size_bytes),
    _Metric(
        "quarantined_rows",
        "QuarantinedRows",
        "Count",
        "Rows that could not be landed; at least so many.",
        lambda each: each.statistics.quarantined.total,
    ),
    _Metric("newest_row_age_seconds", "NewestRowAge", "Seconds", "Age of the newest row.", _age("row")),
    _Metric("newest_export_age_seconds", "NewestExportAge", "Seconds", "Age of the last export.", _age("export")),
    _Metric(
        "monthly_cost_dollars",
        "MonthlyCost",
        "None",
        "Estimated cost on S3 in US dollars a month.",
        lambda each: each.cost.dollars,
    ),
    _Metric(
        "monthly_cost_after_compaction_dollars",
        "MonthlyCostAfterCompaction",
        "None",
        "Estimated cost on S3 after a compaction.",
        lambda each: each.cost_after.dollars,
    ),
)
_QUEUE = _Metric("queue_depth", "QueueDepth", "Count", "Messages that wait at the source.", lambda _: None)
_SINKS = _Metric("sink_lag_rows", "SinkLag", "Count", "Rows that sinks do not have yet.", lambda _: None)
_COSTS = ("MonthlyCost", "MonthlyCostAfterCompaction")


def prometheus_text(report: LakeReport, depths: Mapping[str, int]) -> str:
    """The report in Prometheus's text format (Prometheus documentation, "Exposition formats").

    Args:
        report: The report.
        depths: What waits at the sources that can tell, by the feed's name.
    """
    lines: list[str] = []
    for metric, found in _gauges(report, depths):
        name = f"datalake_{metric.name}"
        lines += [f"# HELP {name} {metric.told}", f"# TYPE {name} gauge"]
        for feed, value in found:
            labels = {"lake": report.lake, "feed": feed.name, "kind": feed.kind.value}
            told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            lines.append(f"{name}{{{told}}} {value!r}")
    name, lake = "datalake_report_timestamp_seconds", f'{{lake="{_escaped(report.lake)}"}}'
    lines += [f"# HELP {name} When the figures were gathered.", f"# TYPE {name} gauge"]
    return "\n".join([*lines, f"{name}{lake} {report.at.timestamp()!r}"]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _gauges(report: LakeReport, depths: Mapping[str, int]) -> Iterator[tuple[_Metric, list[tuple[Feed, float]]]]:
    """Each metric with the feeds of which it is known."""
    for metric in _METRICS:
        told = [(each.feed, metric.of_feed(each)) for each in report.feeds if not each.statistics.unreadable]
        yield metric, [(feed, float(value)) for feed, value in told if value is not None]
    waiting = [(each.feed, depths.get(each.feed.name)) for each in report.feeds]
    yield _QUEUE, [(feed, float(depth)) for feed, depth in waiting if depth is not None]
    sent = [each for each in report.feeds if each.statistics.sinks]
    if sent:
        yield _SINKS, [(each.feed, float(sum(sink.rows for sink in each.statistics.sinks))) for each in sent]


def cloudwatch_text(
    report: LakeReport,
    depths: Mapping[str, int],
    *,
    region: str,
    cost_limit: float = COST_LIMIT,
    topic: str = "",
) -> str:
    """What CloudWatch is to be asked, as one JSON document: arguments of its API, name by name.

    ``metrics`` are requests of PutMetricData, ``alarms`` of PutMetricAlarm, ``dashboard`` is one of PutDashboard. Names
    of alarms and of the dashboard have the lake in them, so that lakes of one account do not get into each other's way.

    Args:
        report: The report.
        depths: What waits at the sources that can tell, by the feed's name.
        region: Where the metrics are, for the dashboard.
        cost_limit: Dollars a month above which there is an alarm.
        topic: ARN of the topic of SNS that alarms are told to; empty for none.
    """
    data = [*_data(report, depths)]
    batches = [
        {"Namespace": NAMESPACE, "MetricData": data[start : start + _AT_ONCE]}
        for start in range(0, len(data), _AT_ONCE)
    ]
    alarms = [*_alarms(report, depths, cost_limit=cost_limit)]
    for each in alarms if topic else ():
        each["AlarmActions"], each["OKActions"] = [topic], [topic]
    document = {"metrics": batches, "alarms": alarms, "dashboard": _dashboard(report, region)}
    return json.dumps(document, indent=2) + "\n"


def _dimensions(lake: str, feed: Feed | None) -> list[dict[str, str]]:
    named = [("Lake", lake), *([("Feed", feed.path)] if feed is not None else [])]
    return [{"Name": name, "Value": _ascii(value)[-_VALUE:]} for name, value in named]


def _ascii(text: str) -> str:
    """CloudWatch takes nothing else in the value of a dimension."""
    return "".join(each if each.isascii() and each.isprintable() else "?" for each in text)


def _data(report: LakeReport, depths: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    at = report.at.isoformat()
    for metric, found in _gauges(report, depths):
        told = {"MetricName": metric.cloud_name, "Timestamp": at, "Unit": metric.unit}
        for feed, value in found:
            yield {**told, "Dimensions": _dimensions(report.lake, feed), "Value": value}
    for name, cost in zip(_COSTS, (report.cost, report.cost_after), strict=True):
        told = {"MetricName": name, "Timestamp": at, "Unit": "None"}
        yield {**told, "Dimensions": _dimensions(report.lake, None), "Value": cost.dollars}


def _alarms(report: LakeReport, depths: Mapping[str, int], *, cost_limit: float) -> Iterator[dict[str, Any]]:
    for each in report.feeds:
        feed, checks = each.feed, each.feed.checks
        if feed.name in depths:
            limit = _first(checks.queue_depth.error, checks.queue_depth.warn, 100.0)
            yield _alarm(report, feed, "QueueDepth", limit, "Messages wait: export more often, or in larger batches.")
        limit = _first(checks.small_files.error, checks.small_files.warn, float(SMALL_FILES_LIMIT))
        yield _alarm(report, feed, "SmallFilesInWorstPartition", limit, "A partition has many small files.")
        yield _alarm(report, feed, "QuarantinedRows", 0.0, "Rows could not be landed: datalake quarantine list.")
        for age, name in zip(each.ages, ("NewestExportAge", "NewestRowAge"), strict=True):
            if (oldest := age.fail or age.warn) is not None:
                told = f"The newest {age.what} is older than the feed allows, or nobody reports any more."
                yield {
                    **_alarm(report, feed, name, oldest.total_seconds(), told),
                    "TreatMissingData": "breaching",
                }
    told = f"The lake is estimated to cost more than {cost_limit:g} US dollars a month on S3."
    yield _alarm(report, None, "MonthlyCost", cost_limit, told)


def _first(*limits: float | None) -> float:
    return next(each for each in limits if each is not None)


def _alarm(report: LakeReport, feed: Feed | None, metric: str, limit: float, told: str) -> dict[str, Any]:
    return {
        "AlarmName": _alarm_name(report.lake, feed, metric),
        "AlarmDescription": told,
        "Namespace": NAMESPACE,
        "MetricName": metric,
        "Dimensions": _dimensions(report.lake, feed),
        "Statistic": "Maximum",
        "Period": _PERIOD_S,
        "EvaluationPeriods": 1,
        "Threshold": limit,
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "missing",
    }


def _alarm_name(lake: str, feed: Feed | None, metric: str) -> str:
    name = f"datalake {_ascii(lake)} {feed.path if feed is not None else 'lake'} {metric}"
    return name if len(name) <= _NAME else f"{name[: _NAME - 17]} {_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _dashboard(report: LakeReport, region: str) -> dict[str, str]:
    """A dashboard whose graphs search for feeds, so that new ones show by themselves."""
    graphs = [
        ("Queue depth", "QueueDepth"),
        ("Small files", "SmallFiles"),
        ("Age of the newest row", "NewestRowAge"),
        ("Age of the last export", "NewestExportAge"),
        ("Rows in quarantine", "QuarantinedRows"),
        ("Estimated cost on S3, US dollars a month", "MonthlyCost"),
    ]
    widgets = [_graph(report.lake, region, place, *graph) for place, graph in enumerate(graphs)]
    name = f"datalake-{re.sub('[^0-9A-Za-z_-]+', '-', report.lake).strip('-')[-80:]}-{_digest(report.lake)}"
    return {"DashboardName": name, "DashboardBody": json.dumps({"widgets": widgets})}


def _graph(lake: str, region: str, place: int, title: str, metric: str) -> dict[str, Any]:
    value = _ascii(lake)[-_VALUE:].replace('"', '\\"')
    search = f"SEARCH('{{{NAMESPACE},Lake,Feed}} MetricName=\"{metric}\" Lake=\"{value}\"', 'Maximum', {_PERIOD_S})"
    return {
        "type": "metric",
        "x": 12 * (place % 2),
        "y": 6 * (place // 2),
        "width": 12,
        "height": 6,
        "properties": {
            "title": title,
            "region": region,
            "view": "timeSeries",
            "metrics": [[{"expression": search, "id": f"e{place}", "label": ""}]],
        },
    }
