"""Fingerprints: independent of order and encoding, sensitive to every value."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.parquet.fingerprint import row_hashes

TYPES = {
    pa.bool_(): st.booleans(),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(max_size=20),
    pa.binary(): st.binary(max_size=20),
    pa.decimal128(30, 4): st.decimals(
        allow_nan=False, allow_infinity=False, places=4, min_value=-(10**20), max_value=10**20
    ),
    pa.timestamp("ms", "UTC"): st.datetimes(min_value=dt.datetime(1900, 1, 1)).map(  # noqa: DTZ001  # made aware below
        lambda moment: moment.replace(microsecond=0, tzinfo=dt.UTC)
    ),
    pa.list_(pa.string()): st.lists(st.none() | st.text(max_size=5), max_size=4),
    pa.map_(pa.string(), pa.int32()): st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=3).map(
        lambda pairs: list(pairs.items())
    ),
    pa.struct([("a", pa.int32()), ("b", pa.string())]): st.fixed_dictionaries(
        {"a": st.none() | st.integers(0, 9), "b": st.text(max_size=5)}
    ),
}


@st.composite
def columns(draw: st.DrawFn) -> pa.Array:
    kind = draw(st.sampled_from(list(TYPES)))
    return pa.array(draw(st.lists(st.none() | TYPES[kind], min_size=1, max_size=12)), kind)


def hashes(array: pa.Array) -> np.ndarray:
    return row_hashes(pa.record_batch([array], names=["c"]))


@given(columns(), st.randoms())
def test_row_hashes_follow_their_rows_when_rows_are_moved(array, random):
    order = list(range(len(array)))
    random.shuffle(order)
    assert (hashes(array.take(pa.array(order))) == hashes(array)[order]).all()


@given(columns(), st.data())
def test_row_hashes_of_a_slice_are_the_slice_of_the_row_hashes(array, data):
    start = data.draw(st.integers(0, len(array)))
    assert (hashes(array.slice(start)) == hashes(array)[start:]).all()


@given(columns())
def test_row_hashes_are_equal_exactly_where_rows_are(array):
    found = hashes(array)
    values = [repr(value) for value in array.to_pylist()]
    for i in range(len(values)):
        for j in range(i):
            assert (found[i] == found[j]) == (values[i] == values[j])


def test_row_hashes_do_not_depend_on_the_order_of_columns():
    a, b = pa.array([1, 2]), pa.array(["x", "y"])
    assert (
        row_hashes(pa.record_batch([a, b], names=["a", "b"])) == row_hashes(pa.record_batch([b, a], names=["b", "a"]))
    ).all()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["ab", "c"], ["a", "bc"]),
        ([b"\0"], [b"\0\0"]),
        ([Decimal("1.10")], [Decimal("1.11")]),
        ([None], [0]),
        ([[1], [2]], [[1, 2], []]),
    ],
)
def test_row_hashes_tell_apart_what_is_nearly_equal(left, right):
    assert hashes(pa.array(left)).tolist() != hashes(pa.array(right)).tolist()


def test_row_hashes_do_not_depend_on_dictionary_encoding():
    plain = pa.array(["a", "b", "a", None])
    assert (hashes(plain.dictionary_encode()) == hashes(plain)).all()
