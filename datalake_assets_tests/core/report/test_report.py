"""What a report concludes from figures made by hand."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from datalake_assets.core.compaction.cost import SCANS_PER_MONTH, MonthlyCost, Rewrite, estimate_of, monthly_cost
from datalake_assets.core.facts import SIZE_BUCKETS, FailedCheck, Outlook, bucket_bounds, bucket_label, bucket_of
from datalake_assets.core.feed_state import Version
from datalake_assets.core.report.figures import Quarantined
from datalake_assets.core.report.findings import DAYS_PER_MONTH, SCANS_PER_DAY, build_report
from datalake_assets.core.report.series import lake_series
from datalake_assets.core.wording import (
    counted,
    dollars_text,
    many_text,
    moment_text,
    scans_text,
    short_count,
    size_text,
)
from datalake_assets.policies import Level
from datalake_assets_tests.core.lakes import (
    MIB,
    NOON,
    commit_of,
    feed_of,
    files_of,
    partition_of,
    planned,
    statistics_of,
)


def report_of(*statistics, **options):
    return build_report(statistics, lake="/lake", at=NOON, **options)


def verdict_of(feed, *partitions, **more):
    (one,) = report_of(statistics_of(feed, *partitions, **more)).feeds
    return one.level, one.verdict


@pytest.mark.parametrize(
    ("size_bytes", "label"),
    [
        (0, "below 64 KiB"),
        (65_535, "below 64 KiB"),
        (65_536, "64 KiB to 128 KiB"),
        (131_071, "64 KiB to 128 KiB"),
        (131_072, "128 KiB to 256 KiB"),
        ((1 << 30) - 1, "512 MiB to 1 GiB"),
        (1 << 30, "1 GiB and more"),
        (1 << 40, "1 GiB and more"),
    ],
)
def test_sizes_fall_into_buckets_that_double(size_bytes, label):
    assert bucket_label(bucket_of(size_bytes)) == label


def test_buckets_leave_no_gap():
    bounds = [bucket_bounds(bucket) for bucket in range(SIZE_BUCKETS)]
    assert bounds[0][0] == 0
    assert bounds[-1] == (1 << 30, None)
    assert [high for _, high in bounds[:-1]] == [low for low, _ in bounds[1:]]


def test_a_partition_is_counted_as_it_is():
    one = partition_of(feed_of(), "2025-01-15", 10, 70_000, 80 * MIB)
    assert (one.rows, one.files, one.small_files, one.size_bytes) == (30, 3, 2, 70_010 + 80 * MIB)
    assert (one.sizes[0], one.sizes[1], one.sizes[bucket_of(80 * MIB)], sum(one.sizes)) == (1, 1, 1, 3)
    assert (one.min_time, one.max_time) == (NOON - timedelta(hours=3), NOON)
    assert (one.files_after, one.files_to_rewrite) == (1, 3)


def test_the_last_export_is_no_compaction_and_no_removal():
    history = tuple(
        commit_of(NOON + timedelta(hours=number), kind)
        for number, kind in enumerate(("append", "compact", "delete", "reconcile"))
    )
    assert partition_of(feed_of(), "k", 1, history=history).last_export == NOON
    assert partition_of(feed_of(), "k", 1, history=history[1:]).last_export is None


def test_files_that_others_brought_count_as_an_export_of_their_folder():
    history = (commit_of(NOON, "reconcile"), commit_of(NOON + timedelta(hours=1), "reconcile", files_added=0))
    assert partition_of(feed_of(kind="folder"), "k", 1, history=history).last_export == NOON


def test_costs_agree_with_the_estimate_of_a_plan():
    merge = estimate_of([Rewrite(40, 1, 40 * MIB)], files=42)
    before = monthly_cost(42, 42 * MIB)
    after = monthly_cost(merge.files_after, 42 * MIB, fewer=42 - merge.files_after)
    assert before.dollars - after.dollars == pytest.approx(merge.dollars_saved_per_month)
    assert SCANS_PER_DAY * DAYS_PER_MONTH == SCANS_PER_MONTH


def test_requests_cost_in_proportion_to_scans_and_storage_does_not():
    once, often = monthly_cost(10, MIB, scans=30), monthly_cost(10, MIB, scans=300)
    assert often.request_dollars == pytest.approx(10 * once.request_dollars)
    assert often.storage_dollars == once.storage_dollars
    assert monthly_cost(0, 0) == MonthlyCost()


def test_a_report_adds_up_its_feeds_and_partitions():
    clicks, users = feed_of(), feed_of("users", "table")
    statistics = (
        statistics_of(clicks, partition_of(clicks, "a", 1, 2, 3), partition_of(clicks, "b", 80 * MIB)),
        statistics_of(users, partition_of(users, "v1", 5)),
    )
    report = report_of(*statistics, scans_per_day=24)
    assert (report.partitions, report.rows, report.files, report.small_files) == (3, 50, 5, 4)
    assert (report.files_after, report.size_bytes) == (3, 11 + 80 * MIB)
    assert (sum(report.sizes), sum(report.small_sizes)) == (5, 4)
    assert report.small_sizes[bucket_of(80 * MIB)] == 0
    each = [monthly_cost(files, size, scans=24 * 30) for files, size in ((3, 6), (1, 80 * MIB), (1, 5))]
    assert report.cost.dollars == pytest.approx(sum(cost.dollars for cost in each))
    assert report.cost_after.dollars < report.cost.dollars


def test_a_lake_without_feeds_amounts_to_nothing():
    report = report_of()
    assert (report.partitions, report.files, report.sizes, report.cost) == (0, 0, (0,) * SIZE_BUCKETS, MonthlyCost())


def test_a_feed_with_small_files_to_merge_needs_compaction():
    feed = feed_of()
    partitions = [partition_of(feed, key, *[MIB] * 50) for key in ("a", "b")]
    level, verdict = verdict_of(feed, *partitions, partition_of(feed, "c", MIB))
    assert (level, verdict) == (
        Level.WARN,
        "needs compaction: 100 small files in 2 partitions, saves under 1 cent a month",
    )


def test_a_feed_that_is_not_compacted_by_itself_says_so():
    feed = feed_of(compaction={"enabled": False})
    assert verdict_of(feed, partition_of(feed, "a", 1, 2))[1].endswith("; it is switched off for this feed")


def test_a_feed_with_a_file_to_split_needs_compaction():
    feed = feed_of()
    split, both = partition_of(feed, "a", 600 * MIB, 1), partition_of(feed, "b", 600 * MIB, 1, 2)
    assert verdict_of(feed, split) == (Level.WARN, "needs compaction: 1 large file in 1 partition")
    assert verdict_of(feed, split, both)[1] == "needs compaction: 2 small files and 2 large files in 2 partitions"


def test_files_that_are_not_small_may_be_merged_too():
    feed = feed_of(small_file_bytes=1)
    assert verdict_of(feed, partition_of(feed, "a", 5, 6))[1].startswith("needs compaction: 2 files in 1 partition")


def test_small_files_that_cannot_be_merged_are_no_reproach():
    feed = feed_of()
    assert verdict_of(feed, partition_of(feed, "a", 1)) == (Level.OK, "healthy: 1 small file, nothing to merge")
    assert verdict_of(feed, partition_of(feed, "a", 80 * MIB)) == (Level.OK, "healthy: no small files")
    assert verdict_of(feed) == (Level.OK, "no data yet")


def test_a_feed_is_late_by_its_newest_row_and_its_newest_export():
    feed = feed_of(freshness={"max_event_age": "PT6H", "fail_event_age": "P2D", "max_commit_age": "PT1H"})
    partition = partition_of(feed, "a", 80 * MIB)

    def level_after(**age):
        (one,) = build_report([statistics_of(feed, partition)], lake="", at=NOON + timedelta(**age)).feeds
        return one.level, one.verdict

    assert level_after(minutes=59)[0] is Level.OK
    assert level_after(hours=3) == (Level.WARN, "the newest export is 3 h old, the feed allows 60 min")
    assert level_after(days=3) == (
        Level.ERROR,
        "the newest export is 3 days old, the feed allows 60 min; the newest row is 3 days old, the feed allows 2 days",
    )


def test_what_has_a_limit_and_is_not_known_is_late_unless_there_is_no_data_yet():
    feed = feed_of("users", "table", freshness={"fail_event_age": "PT6H"})
    file = msgspec.structs.replace(files_of(80 * MIB)[0], min_time=None, max_time=None)
    timeless = planned(feed, "v1", (file,), (commit_of(NOON),), Outlook(1), commits=1)
    assert verdict_of(feed, timeless) == (Level.ERROR, "the newest row is not known, the feed allows 6 h")
    assert verdict_of(feed) == (Level.OK, "no data yet")


def test_a_run_without_new_rows_counts_as_an_export():
    feed = feed_of(freshness={"max_commit_age": "PT1H"})
    old = partition_of(feed, "a", 80 * MIB, history=(commit_of(NOON - timedelta(days=9)),))
    assert verdict_of(feed, old)[0] is Level.WARN
    assert verdict_of(feed, old, last_run=NOON - timedelta(minutes=5))[0] is Level.OK


def test_quarantined_rows_and_damaged_manifests_are_told():
    feed = feed_of()
    some = Quarantined(1, 100, {"a": 2, "_unknown": 1})
    assert verdict_of(feed, quarantined=some) == (Level.WARN, "3 rows in quarantine")
    many = Quarantined(9, 1 << 40, {"a": 2}, is_exact=False)
    assert verdict_of(feed, quarantined=many)[1] == "at least 2 rows in quarantine"
    assert verdict_of(feed, problems=("a: not a manifest",)) == (
        Level.ERROR,
        "1 manifest cannot be read: run 'datalake verify clicks'",
    )


def test_the_worst_partitions_are_those_that_compaction_makes_the_most_of():
    feed = feed_of()
    partitions = [
        partition_of(feed, "lone", 1),
        partition_of(feed, "two", 1, 2),
        partition_of(feed, "ten", *[1] * 10),
        partition_of(feed, "large", 80 * MIB),
    ]
    (one,) = report_of(statistics_of(feed, *partitions)).feeds
    assert [each.key for each in one.worst()] == ["ten", "two"]


def test_history_begins_with_nothing_and_ends_with_what_there_is():
    feed = feed_of()
    hours = [NOON + timedelta(hours=number) for number in range(3)]
    a = partition_of(feed, "a", 1, history=(commit_of(hours[0], state=(2, 2, 20)), commit_of(hours[2], "compact")))
    b = partition_of(feed, "b", 1, 2, history=(commit_of(hours[1], state=(9, 9, 90)),))
    whole, (one,) = lake_series([statistics_of(feed, a, b)])
    assert whole == one
    assert one.at == tuple(hours)
    assert one.files == (2, 4, 3)  # the last commit of each left what there is now
    assert one.small_files == (2, 4, 3)
    assert one.size_bytes == (20, 23, 4)
    assert (one.partitions, one.entered_late) == (2, 0)


def test_history_that_was_forgotten_enters_with_the_first_commit_that_is_known():
    feed = feed_of()
    forgot = partition_of(feed, "a", 1, 2, history=(commit_of(NOON, state=(7, 7, 70)), commit_of(NOON)), commits=90)
    older = partition_of(feed, "b", 1, history=(commit_of(NOON - timedelta(hours=1)), commit_of(NOON)))
    whole, _ = lake_series([statistics_of(feed, forgot, older)])
    assert whole.entered_late == 2
    assert (whole.at[0], whole.files[-1]) == (NOON, 3)


def test_history_of_a_removed_partition_goes_down_to_nothing():
    feed = feed_of("users", "table")
    hour = timedelta(hours=1)
    gone = partition_of(feed, "v1", history=(commit_of(NOON, state=(1, 1, 10)), commit_of(NOON + hour, "delete")))
    whole, _ = lake_series(
        [statistics_of(feed, partition_of(feed, "v2", 5, history=(commit_of(NOON),)), emptied=(gone,))]
    )
    assert (whole.files[0], whole.files[-1], whole.size_bytes[-1]) == (1, 1, 5)
    assert max(whole.files) == 2


def test_a_long_history_is_summed_up_and_ends_the_same():
    feed = feed_of()
    history = tuple(commit_of(NOON + timedelta(minutes=number), state=(number, 1, number)) for number in range(1, 1000))
    whole, _ = lake_series([statistics_of(feed, partition_of(feed, "a", 1, 2, history=history))], points=50)
    assert len(whole.at) <= 50
    assert (whole.files[-1], whole.at[-1]) == (2, history[-1].at)
    assert list(whole.at) == sorted(whole.at)
    at_25 = next(index for index, at in enumerate(whole.at) if at >= history[500].at)
    assert whole.files[at_25] == pytest.approx(501, abs=25)


def test_series_of_an_empty_lake_are_empty():
    assert not lake_series([statistics_of()])[0]
    assert not lake_series([])[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (dollars_text(0), "$0"),
        (dollars_text(0.004), "under 1 cent"),
        (dollars_text(3.1), "$3.10"),
        (dollars_text(-3.1), "-$3.10"),
        (dollars_text(12_345.6), "$12,346"),
        (many_text(9_999_999), "9,999,999"),
        (many_text(12_340_000), "12.3 million"),
        (many_text(9_897_373_732), "9.9 billion"),
        (counted(1, "row"), "1 row"),
        (counted(1200, "row"), "1,200 rows"),
        (short_count(950), "950"),
        (short_count(1250), "1.2k"),
        (short_count(1000), "1k"),
        (short_count(12_500), "12k"),
        (short_count(3_400_000), "3.4M"),
        (size_text(0), "0 B"),
        (size_text(1023), "1,023 B"),
        (size_text(1023.96), "1 KiB"),
        (size_text(61_440), "60 KiB"),
        (size_text((1 << 20) - 1), "1 MiB"),
        (size_text(1_234_567), "1.2 MiB"),
        (size_text(300 << 40), "300 TiB"),
        (size_text(1 << 60), "1,024 PiB"),
        (moment_text(NOON), "2025-01-15 12:00"),
        (moment_text(None), ""),
        (scans_text(1), "once a day"),
        (scans_text(0.5), "0.5 times a day"),
    ],
)
def test_numbers_are_said_for_people(text, expected):
    assert text == expected


def failed(check: str, *, partition: str = "", level: str = "error", what: str = "") -> FailedCheck:
    return FailedCheck(check, level, partition, what)


def checked(feed, *partitions, checks: tuple[FailedCheck, ...] | None, **more):
    by_check = {each.check: [one for one in checks or () if one.check == each.check] for each in checks or ()}
    (one,) = report_of(
        statistics_of(feed, *partitions, **more), failed_checks=None if checks is None else {feed.name: by_check}
    ).feeds
    return one


def test_a_check_that_failed_is_a_finding_of_its_level_errors_first():
    feed = feed_of()
    checks = (failed("late", level="warn"), failed("paid", what="2025-01-15: 3 of 4 rows break it"))
    one = checked(feed, partition_of(feed, "2025-01-15", 80 * MIB), checks=checks)
    assert (one.level, one.verdict) == (
        Level.ERROR,
        "check paid failed: 2025-01-15: 3 of 4 rows break it; check late warns",
    )
    assert set(one.failed_checks or ()) == set(checks)
    warned = checked(feed, partition_of(feed, "2025-01-15", 80 * MIB), checks=checks[:1])
    assert (warned.level, warned.verdict) == (Level.WARN, "check late warns")


def test_a_check_that_failed_for_many_partitions_is_one_finding():
    feed, keys = feed_of(), [f"2025-01-{day:02}" for day in range(1, 6)]
    checks = tuple(failed("paid", partition=key, what=f"{key}: bad") for key in keys)
    one = checked(feed, *(partition_of(feed, key, 80 * MIB) for key in keys), checks=checks)
    assert one.verdict == "check paid failed: 2025-01-01: bad; 2025-01-02: bad; 2025-01-03: bad; and 2 more partitions"
    assert one.failed_checks == checks


def test_a_check_of_what_nobody_reads_any_more_is_no_finding():
    feed, users = feed_of(), feed_of("users", "table")
    gone = checked(feed, partition_of(feed, "2025-01-15", 80 * MIB), checks=(failed("paid", partition="2025-01-01"),))
    assert (gone.level, gone.failed_checks) == (Level.OK, ())
    versions = [partition_of(users, version, 80 * MIB) for version in ("v4", "v5")]
    current = Version(5, NOON, 10)
    for version, level in (("v4", Level.OK), ("v5", Level.ERROR)):
        one = checked(users, *versions, checks=(failed("paid", partition=version),), current=current)
        assert one.level is level


def test_ages_and_merged_files_are_judged_by_the_figures_of_now():
    feed = feed_of()
    stale = tuple(failed(check, level="warn") for check in ("freshness", "small_files", "file_size"))
    assert checked(feed, partition_of(feed, "2025-01-15", 80 * MIB), checks=stale).level is Level.OK
    split = checked(feed, partition_of(feed, "2025-01-15", *[MIB] * 12), checks=(failed("small_files"),))
    assert split.verdict.startswith("check small_files failed; needs compaction: 12 small files")


def test_a_report_without_history_knows_of_no_check():
    assert checked(feed_of(), checks=None).failed_checks is None
    assert checked(feed_of(), checks=()).failed_checks == ()
