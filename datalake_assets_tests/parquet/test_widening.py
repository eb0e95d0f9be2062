"""Columns of which files differ in a type that may be widened: they are merged, and the others keep their elements."""

from __future__ import annotations

import datetime as dt
import io
import itertools
from dataclasses import replace
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.elements import parsed_schema
from datalake_assets_tests.parquet.test_elements import (
    AT,
    AUTO,
    TIMESTAMP_MICROS,
    by_arrow,
    converted_only,
    files,
    merged,
    schema,
    with_elements,
)
from datalake_assets_tests.parquet.test_rewrite import REENCODE, encoded, rewritten

TIMESTAMP_MILLIS, INT_8, DECIMAL = 9, 15, 5
NUMBERS, TEXTS, BYTES = [1, 2, None], ["a", "b", None], [b"a", b"b", None]
DIGITS = [Decimal("1.50"), Decimal("-2.25"), None]
TIMES = [AT, AT + dt.timedelta(milliseconds=1), None]

#: Types of which each becomes any later one of its row, and values of all of them.
WIDER = [
    ([pa.int8(), pa.int16(), pa.int32(), pa.int64()], NUMBERS),
    ([pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()], NUMBERS),
    ([pa.float16(), pa.float32(), pa.float64()], [1.5, -2.0, None]),
    ([pa.string(), pa.large_string()], TEXTS),
    ([pa.dictionary(pa.int32(), pa.string()), pa.string()], TEXTS),
    ([pa.binary(), pa.large_binary()], BYTES),
    ([pa.decimal128(4, 2), pa.decimal128(9, 2), pa.decimal128(12, 2), pa.decimal128(18, 2)], DIGITS),
    ([pa.decimal128(20, 2), pa.decimal128(21, 2), pa.decimal256(21, 2), pa.decimal256(40, 2)], DIGITS),
    ([pa.timestamp("ms"), pa.timestamp("us")], TIMES),
    ([pa.timestamp("ms", "UTC"), pa.timestamp("us", "UTC")], TIMES),
    ([pa.timestamp("ms", "Europe/Berlin"), pa.timestamp("us", "Europe/Berlin")], TIMES),
    ([pa.null(), pa.timestamp("ms")], [None] * 3),
]
PAIRS = [(one, other, values) for kinds, values in WIDER for one, other in itertools.combinations(kinds, 2)]

#: How a column holds a type, and each value.
NESTED = {
    "column": (lambda kind: kind, lambda value: value),
    "list": (pa.list_, lambda value: [value]),
    "large list": (pa.large_list, lambda value: [value, None]),
    "fixed list": (lambda kind: pa.list_(kind, 1), lambda value: [value]),
    "map": (lambda kind: pa.map_(pa.string(), kind), lambda value: [("k", value)]),
    "struct": (lambda kind: pa.struct([("x", kind), ("y", pa.int16())]), lambda value: {"x": value, "y": 1}),
    "structs": (lambda kind: pa.list_(pa.struct([("x", kind)])), lambda value: [{"x": value}]),
}

#: Columns on which all files agree; of `t` Arrow writes other elements than these files have.
AGREED = pa.table(
    {
        "t": pa.array([AT, None, AT], pa.timestamp("us", "UTC")),
        "small": pa.array([1, 2, 3], pa.int8()),
        "m": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32())),
        "sorted": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32(), keys_sorted=True)),
        "l": pa.array([[{"x": 1}], None, []], pa.list_(pa.struct([pa.field("x", pa.int16(), nullable=False)]))),
    }
)


def beside_agreed(column, field=None, **options):
    """A file of the columns on which all agree, and this one."""
    return all_beside_agreed([(field or pa.field("c", column.type), column)], **options)


def all_beside_agreed(columns, **options):
    """A file of the columns on which all agree, and these: fields and values."""
    table = AGREED
    for field, column in columns:
        table = table.append_column(field, column)
    return with_elements(encoded(table, **options), converted_only("t", TIMESTAMP_MICROS))


def elements(body):
    return parsed_schema(schema(body)).children


def column_of(kind, values, nested="column"):
    make, put = NESTED[nested]
    found = [put(value) for value in values]
    if pa.types.is_dictionary(kind):  # pyarrow makes no nested ones of values
        return pa.array(found, make(kind.value_type)).cast(make(kind))
    return pa.array(found, make(kind))


def by_narrower(bodies):
    return [pytest.param(*pair, id=name) for pair, name in zip(bodies, ("narrower first", "wider first"), strict=True)]


@pytest.mark.parametrize("places", by_narrower([((0, 1),), ((1, 0),)]))
@pytest.mark.parametrize(("narrow", "wide", "values"), PAIRS, ids=str)
def test_files_of_two_types_become_one_of_the_wider(narrow, wide, values, places):
    """However a column holds them: one file has them all, and each is looked at for itself."""
    columns = [{nested: column_of(kind, values, nested) for nested in NESTED} for kind in (narrow, wide)]
    bodies = [all_beside_agreed(each.items(), store_decimal_as_integer=True) for each in columns]
    out = merged(*(bodies[place] for place in places))
    read = pq.read_table(io.BytesIO(out))
    for nested, column in columns[1].items():
        assert (nested, read.schema.field(nested).type) == (nested, column.type)
        assert read[nested].to_pylist() == 2 * column.to_pylist()
    assert read.drop_columns(list(NESTED)).equals(pa.concat_tables([AGREED] * 2))
    agreed = len(AGREED.schema)
    assert elements(out)[:agreed] == elements(bodies[0])[:agreed] == elements(bodies[1])[:agreed]
    assert elements(out)[agreed:] == elements(bodies[1])[agreed:]


@pytest.mark.parametrize("places", by_narrower([((0, 1),), ((1, 0),)]))
@pytest.mark.parametrize("nested", ["column", "list", "struct", "map"])
def test_files_of_old_timestamps_keep_having_no_logical_type(nested, places):
    bodies = [
        with_elements(by_arrow(pa.table({"c": column_of(pa.timestamp(unit, "UTC"), TIMES, nested)})), change)
        for unit, kind in (("ms", TIMESTAMP_MILLIS), ("us", TIMESTAMP_MICROS))
        for change in [converted_only({"list": "element", "struct": "x", "map": "value"}.get(nested, "c"), kind)]
    ]
    out = merged(*(bodies[place] for place in places))
    assert elements(out) == elements(bodies[1])
    assert pl.read_parquet(io.BytesIO(out)).schema == pl.read_parquet(io.BytesIO(bodies[1])).schema
    assert pq.read_table(io.BytesIO(out))["c"].to_pylist() == 2 * pq.read_table(io.BytesIO(bodies[1]))["c"].to_pylist()


@pytest.mark.parametrize(
    ("kinds", "converted"), [((pa.int8(), pa.int16()), INT_8), ((pa.decimal128(20, 2), pa.decimal128(21, 2)), DECIMAL)]
)
def test_types_that_are_converted_ones_alone_are_widened_too(kinds, converted):
    values = NUMBERS if converted == INT_8 else DIGITS
    bodies = [
        with_elements(by_arrow(pa.table({"c": pa.array(values, kind)})), converted_only("c", converted + number))
        for number, kind in zip((0, int(converted == INT_8)), kinds, strict=True)
    ]
    for pair in (bodies, bodies[::-1]):
        read = pq.read_table(io.BytesIO(merged(*pair)))
        assert (read.schema.field("c").type, read["c"].to_pylist()) == (kinds[1], 2 * values)


@pytest.mark.parametrize("places", [(0, 1), (1, 0)], ids=["required first", "nullable first"])
@pytest.mark.parametrize("nested", NESTED)
def test_required_and_nullable_columns_become_nullable(nested, places):
    required, nullable = (column_of(pa.int16(), values, nested) for values in ([1, 2, 3], NUMBERS))
    bodies = [
        beside_agreed(required, pa.field("c", required.type, nullable=False)),
        beside_agreed(nullable, pa.field("c", nullable.type)),
    ]
    out = merged(*(bodies[place] for place in places))
    assert elements(out) == elements(bodies[1])
    values = [value for place in places for value in (required, nullable)[place].to_pylist()]
    assert pq.read_table(io.BytesIO(out))["c"].to_pylist() == values


@pytest.mark.parametrize("places", [(0, 1), (1, 0)], ids=["item first", "element first"])
def test_lists_of_two_types_have_the_names_of_the_oldest(places):
    kinds = [pa.list_(pa.field("item", pa.timestamp("ms"))), pa.list_(pa.field("element", pa.timestamp("us")))]
    columns = [pa.array([[AT], None, []], kind) for kind in kinds]
    bodies = [beside_agreed(columns[0], use_compliant_nested_type=False), beside_agreed(columns[1])]
    out = merged(*(bodies[place] for place in places))
    read = pq.read_table(io.BytesIO(out))
    assert read["c"].to_pylist() == 2 * columns[1].to_pylist()
    assert read.schema.field("c").type.value_type == pa.timestamp("us")
    assert elements(out)[:-1] == elements(bodies[places[0]])[:-1]
    assert read.schema.field("c").type.value_field.name == ("item", "element")[places[0]]


@pytest.mark.parametrize("chosen", [AUTO, REENCODE, replace(REENCODE, sort_by=("id",))], ids=repr)
@pytest.mark.parametrize("zone", [None, "UTC"])
@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_milliseconds_that_no_microsecond_tells_leave_their_file_alone(place, nested, zone, chosen):
    usual, fine, beyond = (
        pa.table({"id": [1, 2], "c": column_of(pa.timestamp(unit, zone), [value, 0], nested)})
        for unit, value in (("ms", 1), ("us", 2000), ("ms", 2**62))
    )
    tables = [usual, fine]
    tables.insert(place, beyond)
    result = rewritten(files(*map(encoded, tables)), chosen)
    assert list(result.rejected) == [f"f{place}"]
    assert "its values do not fit the other files' columns: column 'c': Casting" in result.rejected[f"f{place}"]
    assert "out of bounds timestamp" in result.rejected[f"f{place}"]
    read = pq.read_table(io.BytesIO(result.outputs[0][0]))
    assert read.schema.field("c").type == fine.schema.field("c").type
    assert read.num_rows == 4
