"""How a backlog is cut into runs: by bytes, best first, and every feed gets its turn."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.compaction.run_groups import (
    MAX_PARTITIONS,
    Wanted,
    chosen_runs,
    cut_into_runs,
    estimated_run,
    run_bytes,
)

MIB = 1 << 20
WANTED = st.lists(
    st.builds(Wanted, st.text(max_size=3), st.just("d"), st.integers(0, 500), st.floats(-9, 9)),
    unique_by=lambda each: each.key,
    max_size=40,
)


def groups_of(benefit: float, *sizes: int) -> list[tuple[Wanted, ...]]:
    return [(Wanted(f"k{number}", "d", size, benefit),) for number, size in enumerate(sizes)]


@given(WANTED, st.integers(1, 1_000), st.integers(1, 10), st.randoms())
def test_every_partition_is_in_one_run_and_no_run_is_too_large_unless_a_partition_is(wanted, max_bytes, most, random):
    groups = cut_into_runs(wanted, max_bytes=max_bytes, most=most)
    assert Counter(each for group in groups for each in group) == Counter(wanted)
    for group in groups:
        assert 1 <= len(group) <= most
        assert len(group) == 1 or sum(each.size_bytes for each in group) <= max_bytes
    benefits = [each.benefit for group in groups for each in group]
    assert benefits == sorted(benefits, reverse=True)
    shuffled = random.sample(wanted, len(wanted))
    assert cut_into_runs(shuffled, max_bytes=max_bytes, most=most) == groups


def test_runs_are_filled_up_to_their_bytes():
    wanted = [Wanted(f"k{number}", "d", 30) for number in range(10)]
    assert [len(group) for group in cut_into_runs(wanted, max_bytes=100)] == [3, 3, 3, 1]
    assert len(cut_into_runs([Wanted(str(key), "d") for key in range(MAX_PARTITIONS + 1)], max_bytes=100)) == 2


def test_every_feed_gets_a_run_before_one_gets_a_second_and_then_the_best_do():
    groups = {"a": groups_of(1, 1, 1, 1), "b": groups_of(9, 1, 1), "busy": groups_of(5, 1)}
    chosen = chosen_runs(groups, busy={"busy"}, runs=5, partitions=100)
    assert [feed for feed, _ in chosen] == ["a", "b", "b", "busy", "a"]


def test_no_more_is_asked_for_than_there_is_room_for():
    groups = {"a": [tuple(Wanted(f"k{number}", "d") for number in range(60))] * 3}
    assert len(chosen_runs(groups, busy=(), runs=2, partitions=1_000)) == 2
    assert len(chosen_runs(groups, busy=(), runs=9, partitions=130)) == 2
    assert chosen_runs(groups, busy=(), runs=0, partitions=1_000) == []
    assert chosen_runs({"a": []}, busy=(), runs=1, partitions=1) == []


def test_feed_that_is_merged_slowly_has_smaller_runs():
    assert run_bytes(8_192 * MIB, 0) == run_bytes(8_192 * MIB, 500 * MIB) == 8_192 * MIB
    assert run_bytes(8_192 * MIB, 2 * MIB) == 1_800 * MIB
    assert run_bytes(100 * MIB, 0.0001) == 1


def test_estimate_follows_from_what_the_feeds_runs_have_merged_per_second():
    group = [Wanted("k", "d", 4_000 * MIB), Wanted("l", "d", 1_000 * MIB)]
    slow, unknown = (estimated_run(group, pace=pace, memory_bytes=400 * MIB) for pace in (10 * MIB, 0))
    assert (slow.size_bytes, slow.work_s) == (5_000 * MIB, 500)
    assert 60 < unknown.work_s < 80
    assert (slow.cores, slow.memory_bytes) == (1, 912 * MIB)
    assert estimated_run(group * 8, pace=0, memory_bytes=0).cores == 2
    assert estimated_run(group * 100, pace=0, memory_bytes=0).cores == 4
