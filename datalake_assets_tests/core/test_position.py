from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.position import (
    OffsetsPosition,
    SnapshotPosition,
    WindowPosition,
    first_seen,
    offset_bounds,
    position_from_json,
)
from datalake_assets.errors import CorruptLake

NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)
EPOCH = 1
BEYOND_ALL = np.iinfo(np.int64).max

rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), max_size=20)
next_offsets = st.dictionaries(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 8)))


def columns(pairs):
    return np.array([row[0] for row in pairs], np.int64), np.array([row[1] for row in pairs], np.int64)


@pytest.mark.parametrize(
    "position",
    [
        None,
        OffsetsPosition(),
        OffsetsPosition({10: (0, 2**62), 2: (3, 0)}),
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
        ({0: (EPOCH, 5)}, EPOCH - 1, BEYOND_ALL),
    ],
)
def test_floor_is_the_first_offset_that_the_lake_lacks(at, epoch, floor):
    assert OffsetsPosition(at).floor(0, epoch) == floor


@given(next_offsets, rows)
def test_new_rows_are_those_that_a_slow_model_lets_in(at, pairs):
    position = OffsetsPosition(at)
    expected = []
    for partition, offset in pairs:
        epoch, wanted = at.get(partition, (0, 0))
        expected.append(epoch < EPOCH or (epoch == EPOCH and offset >= wanted))
    assert position.new_rows(EPOCH, *columns(pairs)).tolist() == expected


@given(next_offsets, rows)
def test_rows_that_were_landed_are_never_new_again(at, pairs):
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


@given(rows)
def test_first_seen_is_what_a_running_maximum_says(pairs):
    highest, model, expected = {1: 3}, {1: 3}, []
    for partition, offset in pairs:
        expected.append(offset > model.get(partition, -1))
        model[partition] = max(offset, model.get(partition, -1))
    half = len(pairs) // 2
    masks = [first_seen(highest, *columns(part)).tolist() for part in (pairs[:half], pairs[half:])]
    assert masks[0] + masks[1] == expected
    assert highest == model


@given(rows)
def test_offset_bounds_are_lowest_and_highest_by_partition(pairs):
    expected = {}
    for partition, offset in pairs:
        low, high = expected.get(partition, (offset, offset))
        expected[partition] = (min(low, offset), max(high, offset))
    assert offset_bounds(*columns(pairs)) == expected
