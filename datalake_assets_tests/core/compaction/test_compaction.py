"""Which files of a partition are merged, split or left alone, and why, by examples."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import msgspec
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest, rules_of
from datalake_assets.core.files import DataFile, data_file_name
from datalake_assets.feed import Feed
from datalake_assets.policies import CompactionPolicy, ParquetFormat
from datalake_assets.settings import Environment
from datalake_assets_tests.core.plans import (
    DEVELOPMENT,
    GIB,
    KIB,
    MIB,
    NOW,
    PRODUCTION,
    file_of,
    files_of,
    grouped,
    plan_of,
    reasons,
    sizes_grouped,
)


def feed_of(**fields: object) -> Feed:
    source = {"type": "ksqldb", "object": "PAYMENTS"}
    return Feed.model_validate(
        {"name": "payments", "kind": "stream", "source": source, "start": date(2025, 1, 1), **fields}
    )


@pytest.mark.parametrize(
    ("environment", "min_files"),
    [(Environment.DEVELOPMENT, 3), (Environment.STAGING, 15), (Environment.PRODUCTION, 20)],
)
def test_rules_of_takes_the_minimum_of_files_from_the_environment(environment, min_files):
    assert rules_of(feed_of(), CompactionRequest(environment)).min_files == min_files


def test_rules_of_prefers_the_policy_over_the_environment():
    feed = feed_of(compaction=CompactionPolicy(min_files=7))
    assert rules_of(feed, CompactionRequest(Environment.PRODUCTION)).min_files == 7


def test_rules_of_resolves_the_defaults_of_a_feed():
    assert rules_of(feed_of(), CompactionRequest(Environment.PRODUCTION)) == PRODUCTION


def test_rules_of_prefers_the_request_over_the_policy():
    feed = feed_of(compaction=CompactionPolicy(max_files=50, split_above=1.5))
    rules = rules_of(feed, CompactionRequest(force=True, target_file_bytes=100 * MIB, max_files=9))
    assert (rules.target_file_bytes, rules.max_files, rules.split_above_bytes) == (100 * MIB, 9, 150 * MIB)
    assert rules.force


@pytest.mark.parametrize(
    ("small", "target", "expected"), [(64, 128, 64), (64, 64, 64), (64, 63, 31.5), (64, 10, 5), (0, 10, 0)]
)
def test_rules_of_halves_a_target_that_is_below_the_threshold_of_small_files(small, target, expected):
    feed = feed_of(small_file_bytes=small * MIB)
    request = CompactionRequest(target_file_bytes=target * MIB)
    assert rules_of(feed, request).small_file_bytes == expected * MIB
    feed = feed_of(small_file_bytes=small * MIB, format=ParquetFormat(target_file_size_bytes=target * MIB))
    assert rules_of(feed, CompactionRequest()).small_file_bytes == expected * MIB


def test_open_partition_waits_for_its_minimum_of_small_files():
    plan = plan_of(files_of(*[MIB] * 19, 100 * MIB))
    assert plan.groups == ()
    assert reasons(plan) == {"only 19 small files, 20 are needed", "is 100 MiB: not below 64 MiB"}


def test_open_partition_merges_a_tier_once_it_is_full_and_leaves_the_others():
    plan = plan_of(files_of(*[100 * KIB] * 8, *[MIB] * 5, *[10 * MIB] * 7))
    assert grouped(plan) == [[f"f{number:05}" for number in range(8)]]
    assert plan.groups[0].reason == "8 files of 800 KiB become one: size tiers with 8 or more files are merged"
    assert reasons(plan) == {
        "tier of 512 KiB to 4 MiB has 6 files, 8 are needed",
        "tier of 4 MiB to 32 MiB has 7 files, 8 are needed",
    }


def test_open_partition_merges_at_once_what_the_result_of_a_merge_would_fill():
    plan = plan_of(files_of(*[100 * KIB] * 8, *[MIB] * 7, *[10 * MIB] * 7))
    assert [len(group.files) for group in plan.groups] == [22]


def test_open_partition_leaves_files_that_are_not_small():
    plan = plan_of(files_of(*[MIB] * 20, 64 * MIB, round(120.25 * MIB)))
    assert [len(group.files) for group in plan.groups] == [20]
    assert [left.reason for left in plan.left_alone] == [
        "is 64 MiB: not below 64 MiB",
        "is 120.2 MiB: not below 64 MiB",
    ]


def test_open_partition_fills_files_up_to_the_target_only():
    plan = plan_of(files_of(*[30 * MIB] * 20))
    assert [len(group.files) for group in plan.groups] == [4, 4, 4, 4, 4]


def test_open_partition_says_when_no_two_files_of_a_tier_fit_together():
    plan = plan_of(files_of(*[60 * MIB] * 20), replace(PRODUCTION, target_file_bytes=100 * MIB))
    assert plan.groups == ()
    assert reasons(plan) == {"is 60 MiB: no other file of its tier fits beside it within 100 MiB"}


def test_development_merges_three_files():
    assert [len(group.files) for group in plan_of(files_of(MIB, MIB, MIB), DEVELOPMENT).groups] == [3]
    plan = plan_of(files_of(MIB, MIB), DEVELOPMENT)
    assert reasons(plan) == {"only 2 small files, 3 are needed"}


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([1, 1], [[1, 1]]),
        ([10] * 30, [[10] * 12, [10] * 12, [10] * 6]),
        ([100, 1, 27], [[100, 1, 27]]),
        ([100, 100, 10, 10], [[100, 10, 10]]),  # small ones first, then into what room is left
        ([100, 100, 28, 28], [[100, 28], [100, 28]]),  # more is rewritten for a file less
        ([100, 100, 100, 10, 10, 10], [[100, 10], [100, 10, 10]]),
        ([64, 64, 127], [[64, 64]]),
        ([128, 128], []),
        ([100, 100], []),
        ([100], []),
        ([70, 30, 60, 90, 60], [[70, 30], [60, 60]]),
        ([40, 70, 88, 58], [[40, 88], [70, 58]]),  # neighbours in time would leave three
        ([], []),
    ],
)
def test_closed_partition_ends_as_few_files_as_its_bytes_allow(sizes, groups):
    plan = plan_of(files_of(*[size * MIB for size in sizes]), closed=True)
    assert sorted(map(sorted, sizes_grouped(plan))) == sorted(map(sorted, groups))


def test_closed_partition_keeps_neighbours_in_time_together():
    plan = plan_of(files_of(*[size * MIB for size in (40, 20, 60, 50, 30, 40, 10, 70, 40)]), closed=True)
    assert sizes_grouped(plan) == [[40, 20, 60], [50, 30, 40], [10, 70, 40]]


def test_neighbours_are_those_in_time_also_once_some_are_merged():
    minutes = {0: 40, 1: 40, 2: 40, **dict.fromkeys(range(10, 18), 5), 20: 40, 21: 40, 22: 40, 23: 40}
    plan = plan_of([file_of(minute, size * MIB) for minute, size in minutes.items()], replace(PRODUCTION, min_files=8))
    assert sizes_grouped(plan) == [[40, 40, 40], [5] * 8 + [40, 40], [40, 40]]


def test_group_is_in_the_order_of_time_then_name():
    late, early = file_of(9, MIB), file_of(1, MIB)
    twin, timeless = msgspec.structs.replace(early, name="e"), DataFile("z", 1, MIB)
    assert grouped(plan_of([late, early, twin, timeless], closed=True)) == [["z", "e", "f00001", "f00009"]]


def test_closed_partition_says_why_files_are_alone():
    assert reasons(plan_of(files_of(MIB), closed=True)) == {"is 1 MiB: no other file to merge it with"}
    assert reasons(plan_of(files_of(100 * MIB, 100 * MIB), closed=True)) == {
        "is 100 MiB: no other file fits beside it within 128 MiB"
    }


def test_file_is_split_when_it_is_far_above_the_target():
    plan = plan_of(files_of(300 * MIB, 256 * MIB))
    assert grouped(plan) == [["f00000"]]
    assert plan.groups[0].reason == "is 300 MiB: split into 3 files of at most 128 MiB"
    assert reasons(plan) == {"is 256 MiB: above 128 MiB and split only above 256 MiB"}
    assert (plan.estimate.files_after, plan.estimate.requests_saved) == (4, -4)


def test_file_is_never_split_when_the_policy_says_so():
    plan = plan_of(files_of(300 * MIB), replace(PRODUCTION, split_above_bytes=0), closed=True)
    assert reasons(plan) == {"is 300 MiB: above 128 MiB and never split"}


def test_file_of_target_size_is_not_split_whatever_the_policy():
    rules = replace(PRODUCTION, split_above_bytes=MIB)
    assert plan_of(files_of(128 * MIB), rules).groups == ()
    assert len(plan_of(files_of(128 * MIB + 1), rules).groups) == 1


def test_young_files_are_left_alone():
    rules = replace(DEVELOPMENT, min_file_age=timedelta(minutes=10))
    old, young, recorded, unknown = (
        DataFile(data_file_name("data", NOW - timedelta(minutes=10), "a"), 1, MIB),
        DataFile(data_file_name("data", NOW - timedelta(minutes=3), "b"), 1, MIB),
        DataFile("part-0.parquet", 1, MIB, written_at=NOW - timedelta(seconds=45)),
        DataFile("part-1.parquet", 1, MIB),
    )
    plan = plan_of([old, young, recorded, unknown], rules, closed=True)
    assert grouped(plan) == [[old.name, unknown.name]]
    assert {left.name: left.reason for left in plan.left_alone} == {
        young.name: "is 3 min old: younger than 10 min",
        recorded.name: "is 45 s old: younger than 10 min",
    }


def test_partition_is_left_alone_until_it_was_quiet_for_long_enough():
    files, rules = files_of(MIB, MIB, MIB), replace(DEVELOPMENT, min_partition_age=timedelta(hours=3))
    plan = plan_of(files, rules, closed=True, last_commit=NOW - timedelta(hours=2))
    assert plan.groups == ()
    assert reasons(plan) == {"the partition changed 2 h ago, 3 h are needed"}
    assert plan_of(files, rules, closed=True, last_commit=NOW - timedelta(hours=3)).groups
    assert plan_of(files, rules, closed=True, last_commit=None).groups


def test_excluded_files_stay_with_the_reason_given():
    plan = plan_of(files_of(MIB, MIB, MIB), closed=True, excluded={"f00001": "is damaged", "gone": "is elsewhere"})
    assert grouped(plan) == [["f00000", "f00002"]]
    assert [(left.name, left.reason) for left in plan.left_alone] == [("f00001", "is damaged")]


def test_only_excluded_files_are_unusable():
    plan = plan_of(files_of(MIB, MIB, 300 * MIB), closed=True, excluded={"f00001": "is damaged"})

    assert {each.name: each.unusable for each in plan.left_alone}["f00001"] is True
    assert sum(each.unusable for each in plan.left_alone) == 1


def test_limit_of_files_cuts_a_group_and_the_next_run_does_the_rest():
    plan = plan_of(files_of(*[MIB] * 25), replace(PRODUCTION, max_files=15))
    assert grouped(plan) == [[f"f{number:05}" for number in range(15)]]
    assert reasons(plan) == {"left for the next run: one takes at most 15 files and 64 GiB"}


def test_limit_of_bytes_takes_what_saves_most_files_first():
    sizes = [60 * MIB, 60 * MIB, 8 * MIB, *[16 * MIB] * 8]
    plan = plan_of(files_of(*sizes), replace(PRODUCTION, max_bytes=200 * MIB), closed=True)
    assert sizes_grouped(plan) == [[16] * 8]
    assert reasons(plan) == {"left for the next run: one takes at most 10,000 files and 200 MiB"}


def test_limit_never_leaves_a_group_of_one_file():
    plan = plan_of(files_of(*[60 * MIB] * 4), replace(PRODUCTION, max_files=3), closed=True)
    assert [len(group.files) for group in plan.groups] == [2]


def test_large_file_is_not_rewritten_for_one_small_one():
    rules = replace(PRODUCTION, target_file_bytes=4 * GIB)
    plan = plan_of(files_of(3 * GIB, MIB), rules, closed=True)
    assert plan.groups == ()
    assert reasons(plan) == {"not worth it: rewriting 3 GiB for 1 file less costs more than readers save in 12 months"}
    assert plan_of(files_of(3 * GIB, *[MIB] * 50), rules, closed=True).groups
    assert plan_of(files_of(3 * GIB, MIB), replace(rules, force=True), closed=True).groups


def test_everything_is_worth_it_at_the_default_target():
    assert len(plan_of(files_of(127 * MIB, MIB), closed=True).groups) == 1


def test_estimate_adds_up_what_readers_save_and_the_rewrite_costs():
    estimate = plan_of(files_of(*[100 * KIB] * 1001), closed=True).estimate
    assert (estimate.files_before, estimate.files_after) == (1001, 1)
    assert estimate.bytes_rewritten == 1001 * 100 * KIB
    assert estimate.requests_saved == 1000 * 2 + 1  # two GETs a file, and a page of LIST
    scans, footers = 30 * (2000 * 0.0004 + 0.005) / 1000, 1000 * 4096 * 0.023 / 1e9
    assert estimate.dollars_saved_per_month == pytest.approx(scans + footers)
    requests, cpu = (2002 * 0.0004 + (5 + 13) * 0.005) / 1000, estimate.bytes_rewritten / 73e6 * 0.04048 / 3600
    assert estimate.dollars_cost == pytest.approx(requests + cpu)


def test_estimate_of_a_plan_that_does_nothing_is_nothing():
    estimate = plan_of(files_of(MIB)).estimate
    assert (estimate.files_before, estimate.files_after, estimate.bytes_rewritten, estimate.requests_saved) == (
        1,
        1,
        0,
        0,
    )
    assert estimate.dollars_saved_per_month == estimate.dollars_cost == 0


def test_force_merges_whatever_can_be_merged():
    rules = replace(PRODUCTION, force=True, min_file_age=timedelta(days=1), min_partition_age=timedelta(days=1))
    files = [msgspec.structs.replace(file, written_at=NOW) for file in files_of(MIB, 70 * MIB, 300 * MIB)]
    plan = plan_of(files, rules, last_commit=NOW)
    assert sizes_grouped(plan) == [[1, 70], [300]]
    assert plan.groups[0].reason == "2 files of 71 MiB become one: forced"


def test_force_keeps_excluded_files_and_the_limits():
    rules = replace(PRODUCTION, force=True, max_files=2)
    plan = plan_of(files_of(MIB, MIB, MIB, MIB), rules, excluded={"f00000": "is damaged"})
    assert grouped(plan) == [["f00001", "f00002"]]
