"""Checks of feeds: whether the rows that a partition promises are in its files, and whether a feed is up to date."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from datalake_assets.config import Feed, FeedKind, Freshness
from datalake_assets.core.partitions import version_number
from datalake_assets.defs.failures import failures_named
from datalake_assets.defs.landing import FeedRead
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.quiet import known_dagster_warnings_ignored
from datalake_assets.errors import SnapshotExpired
from datalake_assets.lake.base import LakeTable

__all__ = [
    "FRESHNESS",
    "ROW_COUNT",
    "RowCount",
    "check_specs",
    "count_rows",
    "evaluate_checks",
    "freshness_result",
    "newest_commit",
    "newest_event",
]

ROW_COUNT = "row_count"
FRESHNESS = "freshness"

#: A partition of more files than this is not opened file by file within the run that wrote to it.
MAX_FOOTERS = 500
#: A table that loses more of its rows than this from one version to the next gets a warning.
MAX_DROP_PERCENT = 10.0
#: Another writer or a compaction may come between reading the manifest and reading the files.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class RowCount:
    """The rows of one partition, counted twice.

    Attributes:
        key: Partition key.
        promised: Rows by the manifest.
        found: Rows by the footers of the Parquet files; None if there are too many files to open.
        previous: A table: rows of the version before; None if there is none.
    """

    key: str
    promised: int
    found: int | None
    previous: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the files hold what the manifest says."""
        return self.found is None or self.found == self.promised

    @property
    def change_percent(self) -> float | None:
        """Rows gained since the previous version; None without one."""
        return None if not self.previous else 100.0 * (self.promised - self.previous) / self.previous

    @property
    def dropped(self) -> bool:
        """Whether the table lost a suspicious part of its rows."""
        return self.change_percent is not None and self.change_percent < -MAX_DROP_PERCENT


def check_specs(feed: Feed, partitions: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """The checks that a feed's asset evaluates itself after each write: cheap, and no steps of their own.

    ``row_count`` is per partition; ``freshness`` is about the feed as a whole, and `sensors.freshness_sensor` goes on
    evaluating it while nothing runs.
    """
    with known_dagster_warnings_ignored():
        return [
            dg.AssetCheckSpec(
                ROW_COUNT,
                asset=asset_key(feed),
                description="The partition's files hold the rows that its manifest promises; a table keeps its rows.",
                partitions_def=partitions,
            ),
            dg.AssetCheckSpec(
                FRESHNESS,
                asset=asset_key(feed),
                description="The newest commit and the newest row are no older than the feed allows.",
            ),
        ]


def count_rows(read: FeedRead) -> tuple[RowCount, ...]:
    """Counts the rows of the partitions that a write changed, and of the only partition of a run, changed or not."""
    reports = (*read.selected, *read.beyond)
    changed = [each for each in reports if each.files_added or each.rows_added or len(reports) == 1]
    with failures_named(read.feed):
        return tuple(_count(read.table, each.key) for each in changed)


def evaluate_checks(context: dg.AssetExecutionContext, read: FeedRead) -> Iterator[dg.AssetCheckResult]:
    """Reports both checks; ``row_count`` for each partition of a range (as events), and for the run as a whole."""
    counts = count_rows(read)
    if read.beyond or len(read.partitions) > 1:
        for each in counts:
            context.log_event(_evaluation(read.feed, each))
    yield _result(read.feed, counts)
    yield _freshness_now(read, datetime.now(UTC))


def freshness_result(
    policy: Freshness, *, commit: datetime | None, event: datetime | None, now: datetime
) -> dg.AssetCheckResult:
    """Compares ages with a policy; without one the ages are reported and the check passes."""
    metadata: dict[str, float | str] = {}
    late = []
    for name, at, limit in (("commit", commit, policy.max_commit_age), ("event", event, policy.max_event_age)):
        age = None if at is None else now - at
        if age is not None:
            metadata[f"datalake/{name}_age_s"] = round(age.total_seconds(), 3)
        if limit is not None:
            metadata[f"datalake/max_{name}_age_s"] = limit.total_seconds()
            if age is None or age > limit:
                late.append(f"the newest {name} is {_readable(age)} old, the feed allows {_readable(limit)}")
    return dg.AssetCheckResult(
        check_name=FRESHNESS,
        passed=not late,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=metadata,
        description="; ".join(late) or None,
    )


def newest_commit(instance: dg.DagsterInstance, feed: Feed) -> datetime | None:
    """When the feed was last exported, with new rows or without; by Dagster's event log."""
    entry = instance.get_latest_materialization_event(asset_key(feed))
    return None if entry is None else datetime.fromtimestamp(entry.timestamp, UTC)


def newest_event(table: LakeTable) -> datetime | None:
    """The newest row of a stream, by its time column; None for a table and for an empty stream."""
    if table.feed.kind is FeedKind.TABLE:
        return None
    for key in reversed(table.partitions()):
        report = table.report(key)
        if report is not None and report.max_time is not None:
            return report.max_time
    return None


def _freshness_now(read: FeedRead, now: datetime) -> dg.AssetCheckResult:
    with failures_named(read.feed):
        newest = newest_event(read.table) if read.feed.freshness.max_event_age else None
    newest = newest or max((each.max_time for each in read.selected if each.max_time), default=None)
    return freshness_result(read.feed.freshness, commit=now, event=newest, now=now)


def _count(table: LakeTable, key: str) -> RowCount:
    previous = _previous_rows(table, key)
    count = RowCount(key, 0, None, previous)
    for _ in range(_ATTEMPTS):
        report = table.report(key)
        if report is None:
            return RowCount(key, 0, 0, previous)
        try:
            found = _rows_in_files(table, key) if report.files <= MAX_FOOTERS else None
        except SnapshotExpired:
            continue
        count = RowCount(key, report.rows, found, previous)
        if count.exact:
            break
    return count


def _rows_in_files(table: LakeTable, key: str) -> int:
    """Adds up the rows of the partition's files; no column is read, so the footers are enough."""
    return sum(batch.num_rows for batch in table.scan(columns=[], partitions=[key]))


def _previous_rows(table: LakeTable, key: str) -> int | None:
    if table.feed.kind is FeedKind.STREAM:
        return None
    older = [each for each in table.partitions() if version_number(each) < version_number(key)]
    report = table.report(older[-1]) if older else None
    return None if report is None else report.rows


def _evaluation(feed: Feed, count: RowCount) -> dg.AssetCheckEvaluation:
    result = _result(feed, [count])
    return dg.AssetCheckEvaluation(
        asset_key=asset_key(feed),
        check_name=ROW_COUNT,
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
        partition=count.key,
    )


def _result(feed: Feed, counts: Sequence[RowCount]) -> dg.AssetCheckResult:
    wrong = [each for each in counts if not each.exact]
    dropped = [each for each in counts if each.dropped]
    metadata: dict[str, float] = {
        "datalake/partitions": len(counts),
        "datalake/rows_promised": sum(each.promised for each in counts),
        "datalake/rows_found": sum(each.promised if each.found is None else each.found for each in counts),
        "datalake/partitions_not_opened": sum(each.found is None for each in counts),
    }
    if len(counts) == 1 and counts[0].previous is not None:
        metadata["datalake/rows_previous"] = counts[0].previous
        metadata["datalake/change_percent"] = round(counts[0].change_percent or 0.0, 3)
    return dg.AssetCheckResult(
        check_name=ROW_COUNT,
        asset_key=asset_key(feed),
        passed=not wrong and not dropped,
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata=metadata,
        description="; ".join(_complaints(feed, wrong, dropped)) or None,
    )


def _complaints(feed: Feed, wrong: Iterable[RowCount], dropped: Iterable[RowCount]) -> Iterator[str]:
    for each in wrong:
        yield (
            f"{each.key}: the manifest promises {each.promised:,} rows and the files hold {each.found:,};"
            f" run 'datalake verify {feed.name}'"
        )
    for each in dropped:
        yield f"{each.key} has {each.promised:,} rows, the version before had {each.previous:,}"


def _readable(age: timedelta | None) -> str:
    return "infinitely" if age is None else str(timedelta(seconds=round(age.total_seconds())))
