"""Verdicts on partitions: when they warn, when they fail, and what they say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from datalake_assets.core.compaction.plan import CompactionRequest, plan_compaction, rules_of
from datalake_assets.core.facts import PlannedPartition
from datalake_assets.core.files import DataFile
from datalake_assets.core.partitions import PartitionBy
from datalake_assets.core.verdicts import (
    Delivery,
    Drift,
    PartitionFooters,
    RowCount,
    counts_as_fresh,
    file_size_verdict,
    fresh_partitions,
    freshness_verdict,
    health_of,
    quarantine_verdict,
    row_count_verdict,
    schema_verdict,
    small_files_verdict,
)
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.policies import MIB, Checks, CompactionPolicy, Freshness, Level, Limits
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource

NOW = datetime(2026, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
CHECKS = Checks()


def health(*sizes_mib: float, closed: bool = False, **policy: object) -> PlannedPartition:
    feed = Feed(name="s", kind=FeedKind.STREAM, source=KsqlDBSource(object="S"), compaction=CompactionPolicy(**policy))
    files = [DataFile(f"f{number}.parquet", 10, int(size * MIB)) for number, size in enumerate(sizes_mib)]
    rules = rules_of(feed, CompactionRequest())
    return health_of("2026-05-01", files, plan_compaction(files, rules, now=NOW, closed=closed), rules)


def test_health_counts_small_files_and_those_that_the_policy_would_merge():
    found = health(1, 1, 1, 100)

    assert (found.files, found.rows, found.size_bytes) == (4, 40, 103 * MIB)
    assert (found.small_files, found.small_bytes) == (3, 3 * MIB)
    assert (found.files_to_merge, found.small_bytes_to_merge, found.files_after) == (3, 3 * MIB, 2)


def test_lone_small_file_is_counted_and_not_held_against_the_partition():
    found = health(1)

    assert file_size_verdict([found], CHECKS).passed
    assert small_files_verdict([found], CHECKS).passed
    assert file_size_verdict([found], CHECKS).figures["small_bytes_percent"] == 100
    assert file_size_verdict([found], CHECKS).figures["mergeable_bytes_percent"] == 0


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (health(1, 1, 1), Level.WARN),  # all of its bytes
        (health(1, 1, 1, 127), Level.OK),  # 2 % of them
        (health(1, 1), Level.OK),  # too few to merge
        (health(1, 1, closed=True), Level.WARN),
        (health(1000), Level.WARN),  # to be split
        (health(1000, split_above=0), Level.OK),
    ],
)
def test_file_size_warns_of_bytes_in_files_that_compaction_would_rewrite(found, level):
    assert file_size_verdict([found], CHECKS).level is level


def test_file_size_is_an_error_above_the_feeds_own_limit():
    strict = Checks(small_bytes_percent=Limits(warn=10, error=50))

    assert file_size_verdict([health(20, 20, 20, 100)], strict).level is Level.WARN
    assert file_size_verdict([health(1, 1, 1)], strict).level is Level.ERROR


def test_small_files_says_which_partitions_and_what_compaction_would_make_of_them():
    verdict = small_files_verdict([health(1, 1, 1, 100), health(1)], CHECKS)

    assert verdict.level is Level.WARN
    assert verdict.lines == ("2026-05-01: 4 files, 3 of them small; compaction would leave 2",)
    assert verdict.figures["partitions_to_compact"] == 1
    assert verdict.figures["small_files"] == 4


def test_small_files_is_an_error_above_the_feeds_own_limit_though_nothing_can_be_merged():
    verdict = small_files_verdict([health(1, 1)], Checks(small_files=Limits(error=1)))

    assert verdict.level is Level.ERROR
    assert verdict.lines == ("2026-05-01: 2 files, 2 of them small; the feed allows 1",)


def test_verdict_names_a_few_partitions_and_counts_the_others():
    verdict = small_files_verdict([health(1, 1, 1)] * 8, CHECKS)

    assert len(verdict.lines) == 6
    assert verdict.lines[-1] == "and 3 more"


def test_schema_names_the_files_with_other_columns():
    drifted = PartitionFooters("k", 2, 10, 3, (Drift("f.parquet", "has no column 'x'"),))

    assert schema_verdict([PartitionFooters("k", 2, 10, 3)]).passed
    assert schema_verdict([drifted]).level is Level.ERROR
    assert schema_verdict([drifted]).lines == ("k: f.parquet has no column 'x'",)


@pytest.mark.parametrize(
    ("read", "quarantined", "level"),
    [(0, 0, Level.OK), (100, 0, Level.OK), (100, 1, Level.WARN), (100, 6, Level.ERROR)],
)
def test_quarantine_judges_the_share_of_rows(read, quarantined, level):
    verdict = quarantine_verdict(rows_read=read, rows_quarantined=quarantined, checks=CHECKS, where="there")

    assert verdict.level is level
    assert all("there" in line for line in verdict.lines)


@pytest.mark.parametrize(
    ("policy", "commit", "event", "level", "complaints"),
    [
        (Freshness(), None, None, Level.OK, ()),
        (Freshness(), NOW - 99 * HOUR, None, Level.OK, ()),
        (Freshness(max_commit_age=HOUR), NOW - HOUR, None, Level.OK, ()),
        (
            Freshness(max_commit_age=HOUR),
            NOW - 2 * HOUR,
            None,
            Level.WARN,
            ("the newest commit is 2:00:00 old, the feed allows 1:00:00",),
        ),
        (
            Freshness(max_event_age=HOUR, fail_event_age=2 * HOUR),
            NOW,
            NOW - 3 * HOUR,
            Level.ERROR,
            ("the newest commit is 0:00:00 old", "the newest event is 3:00:00 old, the feed allows 2:00:00"),
        ),
        (
            Freshness(max_event_age=HOUR),
            NOW,
            None,
            Level.WARN,
            ("the newest commit is 0:00:00 old", "the newest event is not known, the feed allows 1:00:00"),
        ),
        (
            Freshness(max_commit_age=HOUR, max_event_age=24 * HOUR),
            NOW - 2 * HOUR,
            NOW - 3 * HOUR,
            Level.WARN,
            ("the newest commit is 2:00:00 old, the feed allows 1:00:00", "the newest event is 3:00:00 old"),
        ),
    ],
)
def test_freshness_compares_ages_with_what_the_feed_allows(policy, commit, event, level, complaints):
    verdict = freshness_verdict(policy, commit=commit, event=event, now=NOW)

    assert (verdict.level, verdict.lines) == (level, complaints)


def test_freshness_reports_ages_as_numbers_without_a_policy():
    verdict = freshness_verdict(Freshness(), commit=NOW - HOUR, event=NOW - 2 * HOUR, now=NOW)

    assert verdict.figures == {"commit_age_hours": 1.0, "event_age_hours": 2.0}


@pytest.mark.parametrize(
    ("key", "fresh"), [("2026-05-01", True), ("2026-04-30", True), ("2026-04-29", False), ("2026-05-02", False)]
)
def test_only_exports_of_the_current_and_the_last_partition_make_a_feed_fresh(key, fresh):
    assert counts_as_fresh(PartitionBy.DAY, key, at=NOW + HOUR) is fresh


def test_fresh_partitions_reach_back_as_far_as_the_policy():
    assert fresh_partitions(PartitionBy.DAY, Freshness(), now=NOW) == ("2026-04-30", "2026-05-01")
    assert len(fresh_partitions(PartitionBy.HOUR, Freshness(max_commit_age=5 * HOUR), now=NOW)) == 7
    assert len(fresh_partitions(PartitionBy.HOUR, Freshness(max_commit_age=timedelta(days=90)), now=NOW)) == 100


def test_row_count_does_not_open_the_files_of_a_partition_that_has_too_many():
    verdict = row_count_verdict([RowCount("k", promised=5, found=None)], CHECKS, feed="s")

    assert verdict.passed
    assert verdict.figures["partitions_not_opened"] == 1


def test_row_count_is_an_error_when_rows_of_the_source_are_nowhere():
    lost = Delivery(read=10, quarantined=1, known=2, landed=6)

    verdict = row_count_verdict([], CHECKS, feed="s", delivery=lost)

    assert verdict.level is Level.ERROR
    assert verdict.lines == ("the source delivered 7 rows that the lake should have, and 6 are in it",)
    assert row_count_verdict([], CHECKS, feed="s", delivery=Delivery(10, 1, 2, 7)).passed


@pytest.mark.parametrize(
    ("previous", "level"), [(100, Level.OK), (111, Level.OK), (112, Level.WARN), (300, Level.ERROR)]
)
def test_row_count_judges_how_many_rows_a_table_lost(previous, level):
    checks = Checks(row_drop_percent=Limits(warn=10, error=50))

    assert row_count_verdict([RowCount("v2", 100, 100, previous)], checks, feed="t").level is level
