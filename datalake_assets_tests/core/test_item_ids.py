from __future__ import annotations

import json
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.item_ids import (
    IdsPosition,
    SealedDigests,
    SealedIds,
    checksum_of,
    digest_of,
    forgotten_at,
)
from datalake_assets.core.position import position_facts, position_from_json

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
LATER = forgotten_at(NOON + timedelta(days=1))

digests = st.text(max_size=4).map(digest_of)
blocks = st.builds(SealedIds, st.text("ab", min_size=1), st.integers(1, 9), st.integers(0, 2**33), st.text("0f"))
positions = st.builds(
    IdsPosition, st.dictionaries(digests, st.integers(0, 2**33)), st.lists(blocks, max_size=3).map(tuple)
)


@given(position=positions)
def test_is_the_same_after_json(position):
    assert position_from_json(json.loads(json.dumps(position.to_json()))) == position


def test_a_thousand_items_take_22_bytes_each_and_reports_only_say_how_many():
    position = IdsPosition().with_items({digest_of(str(n)): LATER for n in range(1000)}, now=NOON)
    assert len(json.dumps(position.to_json())) < 22_000
    assert position_facts(position) == {"kind": "ids", "items": 1000}


def test_items_are_told_apart_whatever_their_names():
    names = ["", "a", "A", "ä", "a\u0308", "a\0", "\udcff", "a" * 9999]
    assert len({digest_of(name) for name in names}) == len(names)


@pytest.mark.parametrize(("minutes", "hours"), [(0, 0), (1, 1), (60, 1), (61, 2)])
def test_times_are_rounded_up_to_hours(minutes, hours):
    assert forgotten_at(NOON + timedelta(minutes=minutes)) == (NOON + timedelta(hours=hours)).timestamp()


def test_what_cannot_come_again_is_forgotten_and_not_a_second_before():
    block = SealedIds("ids-1.bin", 5, LATER, "")
    position = IdsPosition({digest_of("a"): LATER}, (block,))
    just_before = datetime.fromtimestamp(LATER - 1, UTC)
    assert position.with_items({}, now=just_before) == position
    assert position.with_items({}, now=datetime.fromtimestamp(LATER, UTC)) == IdsPosition()


def test_objects_are_merged_when_as_many_came_again():
    sizes = (10, 25, 400)
    position = IdsPosition(sealed=tuple(SealedIds(str(size), size, LATER, "") for size in sizes))
    assert [block.items for block in position.to_merge(4)] == []
    assert [block.items for block in position.to_merge(5)] == [10, 25]
    assert [block.items for block in position.to_merge(200)] == [10, 25, 400]


def test_sealed_digests_move_out_of_the_position():
    a, b, c = map(digest_of, "abc")
    old, new = SealedIds("old", 1, LATER, ""), SealedIds("new", 2, LATER, "")
    position = IdsPosition({a: LATER, b: LATER}, (old,)).with_sealed(new, {a, c}, ["old", "gone"])
    assert position == IdsPosition({b: LATER}, (new,))


@given(items=st.sets(digests, min_size=1), damage=st.sampled_from([b"", b"x"]))
def test_objects_of_digests_are_read_back_or_refused(items, damage):
    body = SealedDigests.merged(items, ()).body
    block = SealedIds("ids-1.bin", len(items), LATER, checksum_of(body))
    assert list(SealedDigests.of(body, block)) == sorted(items)
    with pytest.raises(ValueError, match="not those that were written"):
        SealedDigests.of(body[1:] + damage, block)


@given(one=st.sets(digests), other=st.sets(digests), more=st.sets(digests))
def test_objects_are_merged_and_searched_as_sets_are(one, other, more):
    merged = SealedDigests.merged(one, [SealedDigests.merged(each, ()) for each in (other, more)])
    assert list(merged) == sorted(one | other | more)
    assert {each for each in (digest_of(text) for text in "abcdefgh") if each in merged} == {
        each for each in map(digest_of, "abcdefgh") if each in one | other | more
    }


def test_a_million_digests_take_their_sixteen_bytes_each():
    body = SealedDigests.merged((number.to_bytes(16, "big") for number in range(1_000_000)), ()).body
    tracemalloc.start()
    sealed = SealedDigests.of(body, SealedIds("ids-1.bin", 1_000_000, LATER, checksum_of(body)))
    assert (999_999).to_bytes(16, "big") in sealed
    assert (1_000_000).to_bytes(16, "big") not in sealed
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
