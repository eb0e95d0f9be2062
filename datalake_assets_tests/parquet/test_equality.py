"""Equal rows are equal to the last bit; different ones never pass."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datalake_assets.parquet.fingerprint import same_rows
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


def test_what_cannot_be_told_this_way_is_not_said_to_be_equal():
    nested = pa.table({"a": pa.array([[NAN]])})

    assert not same_rows(nested, nested.take([0]))
