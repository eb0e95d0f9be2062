"""Equal rows are equal to the last bit; different ones never pass."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datalake_assets.parquet.fingerprint import same_rows, same_values
from datalake_assets_tests.parquet.test_multiset import COLUMNS, N

NAN = float("nan")


@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_is_equal_to_itself_however_it_is_chunked(name):
    table = pa.table({"a": COLUMNS[name]})
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7, 1), table.slice(8)])

    assert same_rows(table, chunked)


@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_shows_a_row_that_became_another_and_rows_that_changed_places(name):
    table = pa.table({"a": COLUMNS[name]})

    assert not same_rows(table, pa.concat_tables([table.slice(1), table.slice(N - 1)]))
    assert not same_rows(table, pa.concat_tables([table.slice(1), table.slice(0, 1)]))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_floating_point_numbers_are_compared_by_their_bits(kind):
    def column(*values: float | None) -> pa.Table:
        plain = np.array([0 if value is None else value for value in values], kind.to_pandas_dtype())
        return pa.table({"a": pa.array(plain, kind, mask=np.array([value is None for value in values]))})

    assert same_rows(column(1, NAN, None), column(1, NAN, None))
    assert not same_rows(column(0.0), column(-0.0))
    assert not same_rows(column(None), column(0.0))
    assert not same_rows(column(NAN), column(None))


def test_tables_of_other_types_or_lengths_are_not_equal():
    table = pa.table({"a": [1, 2]})

    assert not same_rows(table, pa.table({"a": pa.array([1, 2], pa.int32())}))
    assert not same_rows(table, table.slice(1))
    assert not same_rows(table, table.rename_columns(["b"]))


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        (pa.struct([("x", pa.float64()), ("y", pa.string())]), lambda value: {"x": value, "y": "a"}),
        (pa.list_(pa.float32()), lambda value: [1, value, None]),
        (pa.large_list(pa.list_(pa.float64())), lambda value: [[value], [], None]),
        (pa.list_(pa.float64(), 2), lambda value: [value, 1]),
        (pa.map_(pa.string(), pa.float64()), lambda value: [("a", value), ("b", None)]),
        (pa.list_(pa.float16()), lambda value: [None if value is None else np.float16(value)]),
    ],
)
def test_numbers_within_nested_columns_are_compared_by_their_bits(kind, of):
    def table(*values: float | None, empty: object = None) -> pa.Table:
        return pa.table({"a": pa.array([empty, *map(of, values)], kind)})

    assert same_rows(table(1, NAN, None), pa.concat_tables([table(1, NAN, None).slice(0, 2), table(1, NAN, None)[2:]]))
    assert same_rows(table(NAN, 0.0).slice(1), table(NAN, 0.0).slice(1))
    assert not same_rows(table(1, 0.0), table(1, -0.0))
    assert not same_rows(table(NAN), table(-NAN))
    assert not same_rows(table(None), table(0.0))
    assert not same_rows(table(1), table(1).slice(1))
    assert not same_rows(table(1), table(1, empty=of(1)))
    assert same_values([table(0.0)], [table(0.0)])
    assert not same_values([table(0.0)], [table(-0.0)])


def test_categories_that_are_numbers_are_compared_by_their_bits():
    def table(*values: float | None) -> pa.Table:
        return pa.table({"a": pa.array(values).dictionary_encode()})

    assert same_rows(table(NAN, 0.0, None), table(NAN, 0.0, None))
    assert not same_rows(table(0.0), table(-0.0))


def test_what_cannot_be_told_this_way_is_not_said_to_be_equal():
    categories = pa.DictionaryArray.from_arrays([0, 1], ["a", "b"]), pa.DictionaryArray.from_arrays([1, 0], ["b", "a"])
    one, other = (pa.table({"a": each}) for each in categories)

    assert not same_rows(one, other)
    assert same_values([one], [other])
