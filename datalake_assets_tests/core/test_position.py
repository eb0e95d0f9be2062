from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.position import (
    LAST_OFFSET,
    Holes,
    OffsetsPosition,
    SnapshotPosition,
    WindowPosition,
    first_seen,
    integers,
    merged_runs,
    number_arrays,
    numbers_in,
    numbers_of,
    offset_bounds,
    position_from_json,
    row_position,
    runs_of,
    within,
)
from datalake_assets.errors import CorruptLake

NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)
EPOCH = 1
#: The largest sequence number of Kinesis has 186 bits.
LARGE = 2**186

rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), max_size=20)
next_offsets = st.dictionaries(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 8)))


def columns(pairs):
    return numbers_of(*number_arrays(pairs))


def plain(partition, offset):
    """As Kafka numbers its messages."""
    return partition, offset


def large(partition, offset):
    """As Kinesis does: shards have names, and their offsets are of more bits than any number of Arrow's."""
    return f"shardId-{partition:012}", offset * (LARGE // 8) + (LARGE % 7 if offset else 0)


numbered = pytest.mark.parametrize("number", [plain, large])


def renumbered(pairs, number):
    return [number(*pair) for pair in pairs]


def positions(at, number):
    return {number(each, 0)[0]: (epoch, number(each, offset)[1]) for each, (epoch, offset) in at.items()}


@pytest.mark.parametrize(
    "position",
    [
        None,
        OffsetsPosition(),
        OffsetsPosition({10: (0, 2**62), 2: (3, 0)}),
        OffsetsPosition({"shardId-10": (0, LARGE + 1), "2.x": (3, 0)}, {"2.x": Holes(((5, LARGE - 1),), LARGE)}),
        WindowPosition(NOON, NOON.replace(hour=13), NOON.replace(microsecond=1), 7, "00ff"),
        SnapshotPosition(NOON, 0),
    ],
)
def test_position_survives_its_json(position):
    document = json.loads(json.dumps(position.to_json() if position else None))
    assert position_from_json(document) == position


def test_offsets_are_written_in_the_order_of_their_partitions():
    assert OffsetsPosition({10: (0, 5), 2: (1, 7)}).to_json() == {
        "kind": "offsets",
        "next": {"2": [1, 7], "10": [0, 5]},
    }


def test_offsets_of_more_than_64_bits_are_texts_and_others_numbers_as_ever():
    document = OffsetsPosition({"shardId-0": (0, LARGE), 1: (0, 2**63 - 1)}, {1: Holes(((1, 2**63),), 7)}).to_json()
    assert document["next"] == {"1": [0, 2**63 - 1], "shardId-0": [0, str(LARGE)]}
    assert document["holes"] == {"1": [7, [1, str(2**63)]]}


@given(st.one_of(st.integers(0, 2**31 - 1), st.from_regex("shardId-[a-z0-9_.-]{1,20}", fullmatch=True)), st.integers(0))
def test_a_row_is_found_again_by_its_position_in_quarantine(partition, offset):
    offset %= LAST_OFFSET
    assert numbers_in(row_position(partition, offset)) == (partition, offset)
    assert numbers_in(row_position(partition, offset) + "#0a") == (partition, offset)


@pytest.mark.parametrize("position", ["row:123456", "orders.csv:12", "item#5", "[]:1", "[a]b]:1", "1:", "-1:5"])
def test_positions_of_rows_that_no_source_numbered_are_not_taken_for_numbers(position):
    assert numbers_in(position) is None


@pytest.mark.parametrize("factor", [1, LARGE])
@given(st.lists(st.integers(0, 12), max_size=15), st.lists(st.integers(0, 12), max_size=15))
def test_runs_hold_the_offsets_that_they_are_of(factor, some, others):
    some, others = ([each + (factor - 1) for each in one] for one in (some, others))
    runs = merged_runs(runs_of(integers(some)), runs_of(integers(others)))
    asked = sorted({*some, *others, *(each + 1 for each in some)})
    assert within(runs, integers(asked)).tolist() == [each in {*some, *others} for each in asked]
    assert all(after[0] > before[1] + 1 for before, after in pairwise(runs))


def test_position_of_an_unknown_kind_is_refused():
    with pytest.raises(CorruptLake, match="position of unknown kind 'message ids'"):
        position_from_json({"kind": "message ids"})


@pytest.mark.parametrize(
    ("at", "epoch", "floor"),
    [
        ({}, EPOCH, 0),
        ({0: (EPOCH, 5)}, EPOCH, 5),
        ({1: (EPOCH, 5)}, EPOCH, 0),
        ({0: (EPOCH, 5)}, EPOCH + 1, 0),
        ({0: (EPOCH, 5)}, EPOCH - 1, LAST_OFFSET),
    ],
)
def test_floor_is_the_first_offset_that_the_lake_lacks(at, epoch, floor):
    assert OffsetsPosition(at).floor(0, epoch) == floor


@numbered
@given(next_offsets, rows)
def test_new_rows_are_those_that_a_slow_model_lets_in(number, at, pairs):
    at, pairs = positions(at, number), renumbered(pairs, number)
    position = OffsetsPosition(at)
    expected = []
    for partition, offset in pairs:
        epoch, wanted = at.get(partition, (0, 0))
        expected.append(epoch < EPOCH or (epoch == EPOCH and offset >= wanted))
    assert position.new_rows(EPOCH, *columns(pairs)).tolist() == expected


@numbered
@given(next_offsets, rows)
def test_rows_that_were_landed_are_never_new_again(number, at, pairs):
    at, pairs = positions(at, number), renumbered(pairs, number)
    position, (partitions, offsets) = OffsetsPosition(at), columns(pairs)
    new = position.new_rows(EPOCH, partitions, offsets)
    bounds = offset_bounds(partitions[new], offsets[new])
    assert position.admits(EPOCH, {partition: low for partition, (low, _) in bounds.items()})
    after = position.advanced(EPOCH, {partition: high for partition, (_, high) in bounds.items()})
    assert not after.new_rows(EPOCH, partitions, offsets).any()
    lowest = {partition: low for partition, (low, _) in bounds.items()}
    assert after.admits(EPOCH, lowest) == (not lowest)


@given(next_offsets, next_offsets)
def test_a_position_never_goes_back(at, landed):
    position = OffsetsPosition(at)
    for partition, (epoch, offset) in landed.items():
        position = position.advanced(epoch, {partition: offset})
    assert all(position.next_offsets[partition] >= before for partition, before in at.items())


@numbered
@given(rows)
def test_first_seen_is_what_a_running_maximum_says(number, pairs):
    pairs = renumbered(pairs, number)
    highest, model, expected = dict([number(1, 3)]), dict([number(1, 3)]), []
    for partition, offset in pairs:
        expected.append(offset > model.get(partition, -1))
        model[partition] = max(offset, model.get(partition, -1))
    half = len(pairs) // 2
    masks = [first_seen(highest, *columns(part)).tolist() for part in (pairs[:half], pairs[half:])]
    assert masks[0] + masks[1] == expected
    assert highest == model


@numbered
@given(rows)
def test_offset_bounds_are_lowest_and_highest_by_partition(number, pairs):
    pairs = renumbered(pairs, number)
    expected = {}
    for partition, offset in pairs:
        low, high = expected.get(partition, (offset, offset))
        expected[partition] = (min(low, offset), max(high, offset))
    assert offset_bounds(*columns(pairs)) == expected
