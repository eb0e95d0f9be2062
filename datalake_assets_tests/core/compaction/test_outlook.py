"""What sums tell of a compaction is what a plan says, and they tell it of the partitions that lakes mostly have."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.compaction.plan import (
    CompactionRequest,
    CompactionRules,
    outlook_of_facts,
    outlook_of_plan,
    plan_compaction,
    rules_of,
)
from datalake_assets.core.facts import Outlook, PartitionFacts
from datalake_assets.core.files import DataFile
from datalake_assets_tests.core.lakes import MIB, NOON, feed_of, files_of

RULES = rules_of(feed_of(), CompactionRequest())
NOW = datetime(2025, 1, 15, 13, tzinfo=UTC)

sizes = st.one_of(
    st.integers(0, 2 * MIB),
    st.integers(0, 60 * MIB),
    st.integers(0, 300 * MIB),
    st.sampled_from([0, 64 * MIB, 128 * MIB]),
)
rulings = st.builds(
    CompactionRules,
    target_file_bytes=st.sampled_from([64 * MIB, 128 * MIB, 4096 * MIB]),
    small_file_bytes=st.sampled_from([0, MIB, 32 * MIB, 64 * MIB]),
    min_files=st.sampled_from([2, 3, 8]),
    max_files=st.sampled_from([2, 5, 10_000]),
    max_bytes=st.sampled_from([MIB, 100 * MIB, 1 << 36]),
    fan_in=st.sampled_from([2, 8]),
    split_above_bytes=st.sampled_from([0, 128 * MIB, 256 * MIB]),
    min_file_age=st.sampled_from([timedelta(0), timedelta(0), timedelta(minutes=10)]),
    min_partition_age=st.sampled_from([timedelta(0), timedelta(0), timedelta(hours=1)]),
    force=st.booleans(),
)


def files_written(listed: list[tuple[int, int]]) -> list[DataFile]:
    """Files of these sizes, each written so many minutes ago."""
    return [
        DataFile(f"{number}.parquet", 1, size, NOON, NOON, written_at=NOW - timedelta(minutes=age))
        for number, (size, age) in enumerate(listed)
    ]


@given(
    files=st.lists(st.tuples(sizes, st.integers(0, 20)), max_size=8).map(files_written),
    rules=rulings,
    closed=st.booleans(),
    minutes=st.none() | st.integers(0, 120),
    stuck=st.sets(st.integers(0, 7), max_size=2),
    more=st.sampled_from([0, 4 * MIB]),
)
def test_sums_tell_what_the_plan_says_or_nothing(*, files, rules, closed, minutes, stuck, more):
    last_commit = None if minutes is None else NOW - timedelta(minutes=minutes)
    excluded = {file.name: "does not fit the others" for number, file in enumerate(files) if number in stuck}
    plan = plan_compaction(files, rules, now=NOW, closed=closed, last_commit=last_commit, excluded=excluded)
    small = rules.small_file_bytes + more
    facts = PartitionFacts.of("k", files, small_below_bytes=small)
    told = outlook_of_facts(facts, rules, now=NOW, closed=closed, last_commit=last_commit, all_usable=not excluded)
    assert told in (None, outlook_of_plan(plan, small_below_bytes=small))


def told(*sizes: int, rules: CompactionRules = RULES, closed: bool = True, **more: object) -> Outlook | None:
    facts = PartitionFacts.of("k", files_of(*sizes), small_below_bytes=rules.small_file_bytes)
    return outlook_of_facts(facts, rules, now=NOW, closed=closed, **more)


@pytest.mark.parametrize("sizes", [(), (MIB,), (128 * MIB,), (100 * MIB, 120 * MIB), (128 * MIB, 128 * MIB, MIB)])
@pytest.mark.parametrize("closed", [True, False])
def test_a_compacted_partition_needs_no_plan(sizes, closed):
    assert told(*sizes, closed=closed) == Outlook(len(sizes))


def test_a_closed_partition_that_fits_into_one_file_needs_no_plan():
    assert told(MIB, 70 * MIB, 2 * MIB) == Outlook(
        1, files_to_merge=3, small_bytes_to_merge=3 * MIB, bytes_to_rewrite=73 * MIB
    )


def test_an_open_partition_with_few_small_files_needs_no_plan():
    assert told(MIB, MIB, 100 * MIB, 100 * MIB, closed=False) == Outlook(4)


def test_a_partition_that_has_just_changed_needs_no_plan():
    rules = replace(RULES, min_partition_age=timedelta(hours=2))
    assert told(MIB, MIB, 999 * MIB, rules=rules, last_commit=NOON) == Outlook(3)


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        ((100 * MIB, 100 * MIB, MIB), {}),  # the small one fits beside either
        ((300 * MIB,), {}),  # to be split
        ((MIB, MIB), {"min_file_age": timedelta(minutes=1)}),
        ((MIB, MIB), {"max_bytes": MIB}),
    ],
)
def test_what_depends_on_single_files_is_left_to_the_plan(sizes, changes):
    assert told(*sizes, rules=replace(RULES, **changes)) is None
