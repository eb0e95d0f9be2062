"""The report as data: one CSV line per partition, and one JSON document with all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

import orjson

from datalake_assets.core.compaction.cost import MonthlyCost
from datalake_assets.core.facts import SIZE_BUCKETS, PlannedPartition, bucket_bounds, bucket_label
from datalake_assets.core.manifest import PastCommit
from datalake_assets.core.report.figures import FeedStatistics, Quarantined, ReadFile, ReadFiles
from datalake_assets.core.report.findings import Age, FeedReport, LakeReport
from datalake_assets.core.report.series import Series, lake_series
from datalake_assets.core.wording import csv_lines, size_text, spreadsheet_text

__all__ = ["CSV_COLUMNS", "csv_text", "json_text"]


def _bucket_column(bucket: int) -> str:
    low, high = bucket_bounds(bucket)
    text = f"from {size_text(low)}" if low else f"below {size_text(high or 0)}"
    return f"files {text}".lower().replace(" ", "_")


#: The columns of the CSV. Sizes in bytes, times in ISO 8601 (UTC), costs in US dollars per month.
CSV_COLUMNS = (
    "feed",
    "kind",
    "partition",
    "rows",
    "files",
    "small_files",
    "size_bytes",
    "min_time",
    "max_time",
    "commits",
    "last_export",
    "is_current_version",
    "quarantined_rows",
    "compactions",
    "files_compacted",
    "last_compaction",
    "files_after_compaction",
    "files_to_rewrite",
    "files_to_split",
    "bytes_to_rewrite",
    "request_cost",
    "storage_cost",
    "request_cost_after",
    "storage_cost_after",
    *map(_bucket_column, range(SIZE_BUCKETS)),
    "failed_checks",
)


def csv_text(report: LakeReport, *, raw: bool = False) -> str:
    """A line per partition, with `CSV_COLUMNS`; what isn't known is empty.

    Args:
        report: The report.
        raw: Leave names as they are, even those that a spreadsheet would take for formulas.
    """
    return csv_lines([CSV_COLUMNS, *(line for each in report.feeds for line in _lines(each, raw=raw))])


def json_text(report: LakeReport) -> str:
    """Everything, as one indented JSON document."""
    whole, feeds = lake_series(report.statistics)
    document = {
        "lake": report.lake,
        "at": report.at,
        "assumptions": {"scans_per_day": report.scans_per_day},
        "feeds": [_feed(each, series) for each, series in zip(report.feeds, feeds, strict=True)],
        "total": {
            "partitions": report.partitions,
            "rows": report.rows,
            "files": report.files,
            "small_files": report.small_files,
            "size_bytes": report.size_bytes,
            "file_sizes": report.sizes,
            "files_after_compaction": report.files_after,
            "quarantined_rows": report.quarantined,
            "quarantined_rows_is_exact": report.quarantine_is_exact,
            "monthly_cost": _cost(report.cost),
            "monthly_cost_after_compaction": _cost(report.cost_after),
            "history": _series(whole),
        },
        "file_size_buckets": [_bucket(number) for number in range(SIZE_BUCKETS)],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n"


def _lines(report: FeedReport, *, raw: bool) -> Iterator[tuple[object, ...]]:
    feed, statistics = report.feed, report.statistics
    quarantined = statistics.quarantined.rows
    current = f"v{statistics.current.number}" if statistics.current else None
    for one, cost, after in zip(statistics.partitions, report.costs, report.costs_after, strict=True):
        compactions = one.compactions
        yield (
            feed.name,
            feed.kind.value,
            one.key if raw else spreadsheet_text(one.key),  # of adopted folders: as others named them
            one.rows,
            one.files,
            one.small_files,
            one.size_bytes,
            _iso(one.min_time),
            _iso(one.max_time),
            one.generation,
            _iso(one.last_export),
            "" if current is None else str(one.key == current).lower(),
            quarantined.get(one.key, 0),
            len(compactions),
            sum(each.files_removed for each in compactions),
            _iso(compactions[-1].at) if compactions else "",
            one.files_after,
            one.files_to_rewrite,
            one.files_to_split,
            one.bytes_to_rewrite,
            *(f"{dollars:.9f}" for each in (cost, after) for dollars in (each.request_dollars, each.storage_dollars)),
            *one.sizes,
            " ".join(
                dict.fromkeys(each.check for each in report.failed_checks or () if each.partition in {"", one.key})
            ),
        )


def _checks_failed_by(report: FeedReport, key: str) -> dict[str, None]:
    """Names of the checks that a partition, or the feed as a whole, did not pass."""
    return dict.fromkeys(each.check for each in report.failed_checks or () if each.partition in {"", key})


def _iso(at: datetime | None) -> str:
    return at.isoformat() if at else ""


def _feed(report: FeedReport, series: Series) -> dict[str, Any]:
    statistics, feed = report.statistics, report.feed
    return {
        "feed": feed.name,
        "kind": feed.kind.value,
        "level": report.level.value,
        "verdict": [finding.text for finding in report.findings],
        "failed_checks": None if report.failed_checks is None else [asdict(each) for each in report.failed_checks],
        "rows": statistics.rows,
        "files": statistics.files,
        "small_files": statistics.small_files,
        "size_bytes": statistics.size_bytes,
        "file_sizes": statistics.sizes,
        "newest_row": statistics.newest_row,
        "last_export": statistics.last_export,
        "last_run": statistics.last_run,
        "freshness": [_age(age) for age in report.ages],
        "versions": [
            {"version": f"v{each.number}", "as_of": each.as_of, "rows": each.rows} for each in statistics.versions
        ],
        "current_version": f"v{statistics.current.number}" if statistics.current else None,
        "quarantine": _quarantine(statistics.quarantined),
        "dropped_files": None if statistics.read_files is None else _read_files(statistics, statistics.read_files),
        **({"sinks": [asdict(each) for each in statistics.sinks]} if statistics.sinks else {}),
        "files_after_compaction": report.files_after,
        "monthly_cost": _cost(report.cost),
        "monthly_cost_after_compaction": _cost(report.cost_after),
        "history": _series(series),
        "problems": statistics.problems,
        "partitions": [
            _partition(*three) for three in zip(statistics.partitions, report.costs, report.costs_after, strict=True)
        ],
    }


def _partition(one: PlannedPartition, cost: MonthlyCost, after: MonthlyCost) -> dict[str, Any]:
    return {
        "partition": one.key,
        "rows": one.rows,
        "files": one.files,
        "small_files": one.small_files,
        "size_bytes": one.size_bytes,
        "file_sizes": one.sizes,
        "min_time": one.min_time,
        "max_time": one.max_time,
        "commits": one.generation,
        "last_export": one.last_export,
        "compactions": [_compaction(commit) for commit in one.compactions],
        "files_after_compaction": one.files_after,
        "files_to_rewrite": one.files_to_rewrite,
        "files_to_split": one.files_to_split,
        "bytes_to_rewrite": one.bytes_to_rewrite,
        "monthly_cost": _cost(cost),
        "monthly_cost_after_compaction": _cost(after),
    }


def _compaction(commit: PastCommit) -> dict[str, Any]:
    return {
        "at": commit.at,
        "files_removed": commit.files_removed,
        "files_added": commit.files_added,
        "rows": commit.rows,
    }


def _age(age: Age) -> dict[str, Any]:
    return {
        "what": age.what,
        "at": age.at,
        "age_s": None if age.age is None else age.age.total_seconds(),
        "warn_age_s": None if age.warn is None else age.warn.total_seconds(),
        "fail_age_s": None if age.fail is None else age.fail.total_seconds(),
        "level": age.level.value,
    }


def _read_files(statistics: FeedStatistics, read: ReadFiles) -> dict[str, Any]:
    """Sums, and the files that were written last; ``kept_bytes`` is a file's share of the feed's bytes, by its rows."""
    return {
        "landed": read.landed,
        "refused": read.refused,
        "rows": read.rows,
        "rejected": read.rejected,
        "size_bytes": read.size_bytes,
        "seconds": round(read.seconds, 3),
        "ratio": _ratio(read.size_bytes, statistics.kept_bytes(read.rows - read.rejected)),
        "newest": [_read_file(statistics, each) for each in read.newest],
    }


def _read_file(statistics: FeedStatistics, one: ReadFile) -> dict[str, Any]:
    kept = 0 if one.refused else statistics.kept_bytes(one.rows - one.rejected)
    return {
        "name": one.name,
        "rows": one.rows,
        "rejected": one.rejected,
        "size_bytes": one.size_bytes,
        "kept_bytes": kept,
        "ratio": _ratio(one.size_bytes, kept),
        "seconds": round(one.seconds, 3),
        "refused": one.refused or None,
    }


def _ratio(size_bytes: int, kept_bytes: int) -> float | None:
    return round(size_bytes / kept_bytes, 2) if kept_bytes else None


def _quarantine(quarantined: Quarantined) -> dict[str, Any]:
    return {
        "objects": quarantined.objects,
        "size_bytes": quarantined.size_bytes,
        "rows": quarantined.total,
        "is_exact": quarantined.is_exact,
        "rows_by_partition": dict(quarantined.rows),
    }


def _cost(cost: MonthlyCost) -> dict[str, float]:
    return {"requests_usd": cost.request_dollars, "storage_usd": cost.storage_dollars, "usd": cost.dollars}


def _series(series: Series) -> dict[str, Any]:
    return {
        "at": series.at,
        "files": series.files,
        "small_files": series.small_files,
        "size_bytes": series.size_bytes,
        "partitions_entered_late": series.entered_late,
    }


def _bucket(number: int) -> dict[str, Any]:
    low, high = bucket_bounds(number)
    return {"from_bytes": low, "below_bytes": high, "label": bucket_label(number)}
