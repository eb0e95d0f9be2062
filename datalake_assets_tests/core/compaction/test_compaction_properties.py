"""What holds of every plan: each file once, never overfilled, in the order of time, and an end."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRules
from datalake_assets.core.files import DataFile
from datalake_assets_tests.core.plans import DAY, GIB, KIB, MIB, files_of, plan_of

NO_LIMITS = {"max_files": 10**9, "max_bytes": 1 << 60}
sizes = st.one_of(
    st.integers(0, 200 * KIB),
    st.integers(0, 4 * MIB),
    st.integers(0, 300 * MIB),
    st.sampled_from([100 * KIB, MIB, 60 * MIB, 64 * MIB, 128 * MIB]),
)
minutes = st.none() | st.integers(0, 60)  # often equal


@st.composite
def partitions(draw, sizes=sizes, minutes=minutes):
    made = draw(st.lists(st.tuples(sizes, minutes), max_size=80))
    times = [None if minute is None else DAY + timedelta(minutes=minute) for _, minute in made]
    return [
        DataFile(f"f{number:05}", 1, size, begin, begin)
        for number, ((size, _), begin) in enumerate(zip(made, times, strict=True))
    ]


rulings = st.builds(
    CompactionRules,
    target_file_bytes=st.sampled_from([128 * MIB, 100 * MIB, 64 * MIB, 512 * MIB]),
    small_file_bytes=st.sampled_from([0, MIB, 32 * MIB, 64 * MIB]),
    min_files=st.sampled_from([2, 3, 8, 20]),
    max_files=st.sampled_from([2, 7, 10_000]),
    max_bytes=st.sampled_from([MIB, 200 * MIB, 64 * GIB]),
    fan_in=st.sampled_from([2, 4, 8, 16]),
    split_above_bytes=st.sampled_from([0, 256 * MIB]),
    min_file_age=st.sampled_from([timedelta(0), timedelta(minutes=10)]),
    min_partition_age=st.just(timedelta(0)),
    force=st.booleans(),
)


def applied(files: list[DataFile], plan: CompactionPlan, share: float, names: count) -> list[DataFile]:
    """The partition after the plan: each group is one file of ``share`` of what was predicted."""
    gone = {file.name for group in plan.groups for file in group.files}
    merged = [
        DataFile(
            f"g{next(names):05}",
            sum(file.rows for file in group.files),
            int(group.size_bytes * share),
            min((file.min_time for file in group.files if file.min_time), default=None),
            max((file.max_time for file in group.files if file.max_time), default=None),
        )
        for group in plan.groups
    ]
    return [file for file in files if file.name not in gone] + merged


@given(partitions(), rulings, st.booleans(), st.data())
def test_plan_takes_each_file_once_or_says_why_not(files, rules, closed, data):
    names = [file.name for file in files]
    excluded = dict.fromkeys(data.draw(st.lists(st.sampled_from(names)) if names else st.just([])), "is damaged")
    plan = plan_of(files, rules, closed=closed, excluded=excluded)
    used = [file.name for group in plan.groups for file in group.files]
    left = [left.name for left in plan.left_alone]
    assert sorted(used + left) == sorted(names)
    assert excluded.keys() <= set(left)
    assert all(left.reason for left in plan.left_alone)


@given(partitions(), rulings, st.booleans())
def test_plan_never_overfills_and_keeps_its_limits(files, rules, closed):
    plan = plan_of(files, rules, closed=closed)
    for group in plan.groups:
        if len(group.files) > 1:
            assert group.size_bytes <= rules.target_file_bytes
        else:
            assert group.size_bytes > rules.split_above_bytes > 0
    assert sum(len(group.files) for group in plan.groups) <= rules.max_files
    assert plan.estimate.bytes_rewritten <= rules.max_bytes


@given(partitions(), rulings, st.booleans())
def test_plan_is_in_the_order_of_time(files, rules, closed):
    plan = plan_of(files, rules, closed=closed)
    never = datetime.min.replace(tzinfo=UTC)
    keys = [[(file.min_time or never, file.name) for file in group.files] for group in plan.groups]
    assert all(each == sorted(each) for each in keys)
    assert keys == sorted(keys)


@given(partitions(), rulings, st.booleans(), st.randoms(use_true_random=False))
def test_plan_is_the_same_whatever_the_order_of_the_files(files, rules, closed, random):
    shuffled = random.sample(files, len(files))
    assert plan_of(shuffled, rules, closed=closed) == plan_of(files, rules, closed=closed)


@settings(max_examples=300)
@given(partitions(), rulings, st.booleans())
def test_plan_is_a_fixed_point(files, rules, closed):
    rules = replace(rules, split_above_bytes=0, **NO_LIMITS)
    after = applied(files, plan_of(files, rules, closed=closed), 1.0, count())
    assert plan_of(after, rules, closed=closed).groups == ()


@given(partitions(st.integers(0, 5 * GIB), st.integers(0, 60)), rulings)
def test_plan_is_a_fixed_point_also_where_merges_are_not_worth_it(files, rules):
    rules = replace(rules, target_file_bytes=4 * GIB, split_above_bytes=0, **NO_LIMITS)
    after = applied(files, plan_of(files, rules, closed=True), 1.0, count())
    assert plan_of(after, rules, closed=True).groups == ()


@given(partitions(), rulings, st.booleans(), st.lists(st.floats(0.5, 1.0), min_size=1))
def test_plans_come_to_an_end_when_files_turn_out_smaller(files, rules, closed, shares):
    rules, names = replace(rules, split_above_bytes=0), count()
    for share in (shares[turn % len(shares)] for turn in count()):
        plan = plan_of(files, rules, closed=closed)
        if not plan.groups:
            break
        after = applied(files, plan, share, names)
        assert len(after) == plan.estimate.files_after < len(files)
        files = after


@given(partitions(), rulings)
def test_closed_partition_has_no_two_files_left_that_fit_into_one(files, rules):
    rules = replace(rules, split_above_bytes=0, force=False, **NO_LIMITS)
    plan = plan_of(files, rules, closed=True)
    after = sorted(file.size_bytes for file in applied(files, plan, 1.0, count()))
    assert len(after) < 2 or after[0] + after[1] > rules.target_file_bytes


@given(partitions(st.integers(0, 300 * MIB)), rulings, st.booleans())
def test_force_leaves_as_few_files_as_a_closed_partition_has(files, rules, closed):
    rules = replace(rules, **NO_LIMITS)
    forced = plan_of(files, replace(rules, force=True), closed=closed)
    assert forced.estimate.files_after == plan_of(files, replace(rules, force=False), closed=True).estimate.files_after


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("size_bytes", [100 * KIB, 10 * MIB, 70 * MIB])
def test_ten_thousand_files_are_planned_in_no_time(size_bytes, closed):
    files = files_of(*[size_bytes + number for number in range(10_000)])
    began = time.process_time()
    plan_of(files, closed=closed)
    assert time.process_time() - began < 1
