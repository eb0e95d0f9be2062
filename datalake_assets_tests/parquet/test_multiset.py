from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.parquet.fingerprint import Multiset, MultisetHasher
from datalake_assets_tests.parquet.parquet_files import rows

N = 50
COLUMNS = {
    "int": pa.array(range(N)),
    "unsigned": pa.array(range(N), pa.uint64()),
    "float": pa.array([i / 3 for i in range(N)]),
    "half": pa.array(np.arange(N).astype("float16")),
    "text": pa.array([f"t{i}" for i in range(N)]),
    "large_text": pa.array([f"t{i}" for i in range(N)], pa.large_string()),
    "binary": pa.array([b"%d" % i for i in range(N)]),
    "fixed": pa.array([b"%04d" % i for i in range(N)], pa.binary(4)),
    "bool_and_int": pa.array([{"b": i % 2 == 0, "i": i} for i in range(N)]),
    "dictionary": pa.array([f"d{i}" for i in range(N)]).dictionary_encode(),
    "date": pa.array([dt.date(2025, 1, 1) + dt.timedelta(i) for i in range(N)]),
    "date64": pa.array([dt.date(2025, 1, 1) + dt.timedelta(i) for i in range(N)], pa.date64()),
    "time": pa.array(range(N), pa.time64("ns")),
    "seconds": pa.array(range(N), pa.time32("s")),
    "timestamp_ns": pa.array(range(N), pa.timestamp("ns", "UTC")),
    "nested_ns": pa.array([[i] for i in range(N)], pa.list_(pa.timestamp("ns"))),
    "duration": pa.array(range(N), pa.duration("ns")),
    "decimal": pa.array([Decimal(i) / 100 for i in range(N)], pa.decimal128(38, 3)),
    "wide_decimal": pa.array([Decimal(i) for i in range(N)], pa.decimal256(60, 2)),
    "list": pa.array([[i, None] for i in range(N)]),
    "map": pa.array([[("k", i)] for i in range(N)], pa.map_(pa.string(), pa.int64())),
}


def multiset(table):
    return MultisetHasher(table.schema).of(table)


@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_is_hashed_without_regard_to_order_and_split(name):
    table = pa.table({"a": COLUMNS[name]})
    hasher, whole = MultisetHasher(table.schema), multiset(table)
    assert hasher.of(table.take(pa.array(range(N - 1, -1, -1)))) == whole
    assert hasher.of(table.slice(0, 7)) + hasher.of(table.slice(7)) == whole


@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_shows_a_row_that_became_another(name):
    table = pa.table({"a": COLUMNS[name]})
    changed = pa.concat_tables([table.slice(1), table.slice(N - 1)])
    hasher = MultisetHasher(table.schema)
    assert hasher.of(changed).rows == N
    assert hasher.of(changed) != hasher.of(table)


def test_values_that_moved_to_another_row_show():
    one = pa.table({"a": [1, 2], "b": ["x", "y"]})
    other = pa.table({"a": [1, 2], "b": ["y", "x"]})
    assert multiset(one) != multiset(other)


def test_a_null_is_neither_zero_nor_empty():
    kinds = {pa.int64(): 0, pa.string(): ""}
    for kind, empty in kinds.items():
        null, value = (pa.table({"a": pa.array([each], kind)}) for each in (None, empty))
        assert multiset(null) != multiset(value)


def test_no_rows_are_an_empty_multiset():
    assert multiset(pa.table({"a": pa.array([], pa.int64())})) == Multiset()


def test_equal_multisets_are_those_of_permuted_rows_alone():
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    hasher, key = MultisetHasher(schema), repr

    def multiset(rows):
        return hasher.of(pa.Table.from_pylist([{"a": a, "b": b} for a, b in rows], schema))

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from(["", "a", None])), max_size=8), st.data())
    def check(rows, data):
        other = data.draw(
            st.one_of(st.permutations(rows), st.lists(st.sampled_from(rows), max_size=8) if rows else st.just([]))
        )
        assert (multiset(rows) == multiset(other)) == (sorted(rows, key=key) == sorted(other, key=key))

    check()
    hasher.close()


def test_structs_in_lists_that_are_parts_of_longer_arrays_are_hashed():
    whole = rows(0, 120)
    some = pa.concat_tables([whole.slice(7, 50), whole.slice(70, 11)])
    hasher = MultisetHasher(whole.schema)
    taken = whole.take(pa.array([*range(7, 57), *range(70, 81)]))
    assert hasher.of(some) == hasher.of(taken)
    hasher.close()
