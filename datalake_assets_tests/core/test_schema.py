from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.schema import (
    DISCARDING,
    SOURCE_NAME,
    conform,
    evolve,
    fitted,
    lake_name,
    schema_from_json,
    schema_to_json,
)
from datalake_assets.errors import InvalidFeed, SchemaChanged
from datalake_assets.sources.ksqldb.columns import arrow_schema
from datalake_assets.sources.ksqldb.sql_types import parse_columns


def schema_of(text, rename=None):
    return arrow_schema(parse_columns(text), feed="orders", rename=rename)


@pytest.mark.parametrize(
    ("sql", "arrow"),
    [
        ("BOOLEAN", pa.bool_()),
        ("INTEGER", pa.int32()),
        ("BIGINT", pa.int64()),
        ("DOUBLE", pa.float64()),
        ("STRING", pa.string()),
        ("BYTES", pa.binary()),
        ("TIMESTAMP", pa.timestamp("ms", "UTC")),
        ("DATE", pa.date32()),
        ("TIME", pa.time32("ms")),
        ("DECIMAL(38, 38)", pa.decimal128(38, 38)),
        ("DECIMAL(39, 2)", pa.decimal256(39, 2)),
        ("ARRAY<MAP<STRING, BIGINT>>", pa.list_(pa.map_(pa.string(), pa.int64()))),
        ("STRUCT<`F` DATE>", pa.struct([pa.field("f", pa.date32())])),
    ],
)
def test_arrow_schema_maps_every_type(sql, arrow):
    assert schema_of(f"`C` {sql}").field("c").type == arrow


def test_arrow_schema_keeps_the_sources_name_in_the_metadata():
    field = schema_of("`OrderId` STRUCT<`LineNo` BIGINT>").field(0)
    assert field.name == lake_name("OrderId") == "orderid"
    assert field.metadata[SOURCE_NAME] == b"OrderId"
    assert field.type.field(0).metadata[SOURCE_NAME] == b"LineNo"


def test_arrow_schema_renames():
    schema = schema_of("`YEAR` INTEGER, `ID` BIGINT", {"YEAR": "model_year"})
    assert schema.names == ["model_year", "id"]
    assert schema.field(0).metadata[SOURCE_NAME] == b"YEAR"


@pytest.mark.parametrize(
    ("text", "rename", "reason"),
    [
        ("`YEAR` INTEGER", None, "column 'YEAR' is named like a partition key; rename it in the feed"),
        ("`version` INTEGER", None, "column 'version' is named like a partition key; rename it in the feed"),
        ("`a` INT, `A` INT", None, "columns 'a' and 'A' are both 'a' in the lake; rename one in the feed"),
        ("`a` INT, `b` INT", {"b": "a"}, "columns 'a' and 'b' are both 'a' in the lake; rename one in the feed"),
        ("`a` INT", {"a": "B"}, "column 'a' is renamed to 'B'; use a lower-case name"),
        ("`a` INT", {"a": "hour"}, "column 'a' is named like a partition key; rename it in the feed"),
        ("`a` DECIMAL(77, 2)", None, "DECIMAL(77, 2) does not fit into Parquet (76 digits); cast it in the source"),
        ("`a` STRUCT<`x` INT, `X` INT>", None, "STRUCT fields ['x', 'x'] clash in lower case"),
        ("`a` STRUCT<>", None, "a STRUCT without fields"),
    ],
)
def test_arrow_schema_refuses_what_the_lake_cannot_hold(text, rename, reason):
    with pytest.raises(InvalidFeed) as caught:
        schema_of(text, rename)
    assert reason in str(caught.value)
    assert "'orders'" in str(caught.value)


FROZEN = pa.schema([pa.field("id", pa.int32(), nullable=False), ("name", pa.string()), ("at", pa.date32())])


def test_evolve_ignores_order_and_metadata():
    incoming = pa.schema([FROZEN.field(2), FROZEN.field(1).with_metadata({"a": "b"}), FROZEN.field(0)])
    assert evolve(FROZEN, incoming, policy="freeze", source="s").equals(FROZEN, check_metadata=True)


def test_evolve_lists_every_difference_in_one_line_when_frozen():
    incoming = pa.schema([("id", pa.int64()), ("at", pa.date32()), ("size", pa.float64())])
    with pytest.raises(SchemaChanged) as caught:
        evolve(FROZEN, incoming, policy="freeze", source="http://k/ORDERS")
    assert str(caught.value).startswith(
        "http://k/ORDERS: the schema changed: added size double; removed name; changed id int32 not null -> int64; "
    )


@pytest.mark.parametrize("incoming", [FROZEN.append(pa.field("x", pa.int8())), FROZEN.remove(1)])
def test_evolve_refuses_any_difference_when_frozen(incoming):
    with pytest.raises(SchemaChanged, match="schema_policy"):
        evolve(FROZEN, incoming, policy="freeze", source="s")


@pytest.mark.parametrize("policy", ["freeze", "evolve"])
def test_evolve_refuses_a_new_column_that_differs_only_in_case(policy):
    incoming = FROZEN.append(pa.field(FROZEN.names[0].upper(), pa.int8()))
    with pytest.raises(SchemaChanged, match=r"are one name to most readers; spell it as before"):
        evolve(FROZEN, incoming, policy=policy, source="s")


def test_evolve_appends_new_columns_as_nullable_and_keeps_vanished_ones():
    incoming = pa.schema([FROZEN.field(0), pa.field("new", pa.int8(), nullable=False)])
    assert evolve(FROZEN, incoming, policy="evolve", source="s") == FROZEN.append(pa.field("new", pa.int8()))


@pytest.mark.parametrize(
    "incoming",
    [
        pa.schema([pa.field("id", pa.int64(), nullable=False), FROZEN.field(1), FROZEN.field(2)]),
        pa.schema([FROZEN.field(1), FROZEN.field(2)]),
    ],
    ids=["wider type", "a required column vanished"],
)
def test_evolve_refuses_what_would_change_old_files(incoming):
    with pytest.raises(SchemaChanged):
        evolve(FROZEN, incoming, policy="evolve", source="s")


def test_conform_orders_and_fills_columns():
    batch = pa.RecordBatch.from_pydict({"name": ["a", None], "id": pa.array([1, 2], pa.int32())})
    assert conform(batch, FROZEN).equals(
        pa.RecordBatch.from_arrays(
            [pa.array([1, 2], pa.int32()), pa.array(["a", None]), pa.nulls(2, pa.date32())], schema=FROZEN
        )
    )


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"id": pa.array([1], pa.int32()), "other": [1]}, "not in the feed's schema"),
        ({"id": pa.array([1], pa.int64())}, "column id is int64"),
        ({"name": ["a"]}, "lacks id"),
    ],
)
def test_conform_refuses_what_evolve_would_have_refused(columns, complaint):
    with pytest.raises(ValueError, match=complaint):
        conform(pa.RecordBatch.from_pydict(columns), FROZEN)


def test_schema_json_round_trip_keeps_metadata():
    schema = schema_of("`Id` INTEGER, `S` STRUCT<`F` DECIMAL(4, 2)>").with_metadata({"k": "v"})
    assert schema_from_json(schema_to_json(schema)).equals(schema, check_metadata=True)


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!"])
def test_schema_from_json_refuses_other_texts(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the text is pyarrow's
        schema_from_json(text)


@pytest.mark.parametrize("policy", sorted(DISCARDING))
def test_evolve_keeps_the_contract_whatever_comes_where_misfits_are_discarded(policy):
    incoming = pa.schema([("ID", pa.int8()), ("name", pa.int64())])
    assert evolve(FROZEN, incoming, policy=policy, source="s") is FROZEN


#: Types of values that are compared with what they were, each with a strategy of values at its edges.
_INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]
_EDGES = st.sampled_from([sign * (2**bits) + more for sign in (-1, 1) for bits in range(65) for more in (-1, 0, 1)])
_FLOATS = st.one_of(st.floats(), st.floats(width=32), st.integers(-(2**25), 2**25).map(float))


def _bits(value: object) -> object:
    """Equal for what is the same value: -0.0 is another than 0.0, and any nan is one."""
    return repr(float(value)) if isinstance(value, float) else value


@given(st.lists(st.one_of(st.none(), _EDGES), max_size=9), st.sampled_from(_INTEGERS), st.sampled_from(_INTEGERS))
def test_fitted_integers_are_the_same_or_misfits(values, given_type, wanted):
    low, high = integer_range(given_type)
    values = [each if each is not None and low <= each <= high else None for each in values]
    found = fitted(pa.record_batch([pa.array(values, given_type)], ["x"]), pa.schema([("x", wanted)]))
    low, high = integer_range(wanted)
    expected = [each if each is not None and low <= each <= high else None for each in values]
    assert found.rows["x"].to_pylist() == expected
    assert found.unfit.tolist() == [kept != each for kept, each in zip(expected, values, strict=True)]


def integer_range(kind: pa.DataType) -> tuple[int, int]:
    size = kind.bit_width
    return (-(2 ** (size - 1)), 2 ** (size - 1) - 1) if pa.types.is_signed_integer(kind) else (0, 2**size - 1)


@given(st.lists(st.one_of(st.none(), _FLOATS), max_size=9), st.sampled_from([pa.float16(), pa.float32(), pa.float64()]))
def test_fitted_floats_are_the_same_or_misfits(values, wanted):
    found = fitted(pa.record_batch([pa.array(values, pa.float64())], ["x"]), pa.schema([("x", wanted)]))
    for value, kept, unfit in zip(values, found.rows["x"].to_pylist(), found.unfit.tolist(), strict=True):
        back = None if kept is None else float(kept)
        assert unfit == (_bits(back) != _bits(value))
        assert not unfit or kept is None


@given(st.lists(st.one_of(st.none(), _EDGES), max_size=9), st.sampled_from([pa.float32(), pa.float64()]))
def test_fitted_integers_become_floats_only_if_they_are_whole_there(values, wanted):
    values = [each if each is not None and -(2**63) <= each < 2**63 else None for each in values]
    found = fitted(pa.record_batch([pa.array(values, pa.int64())], ["x"]), pa.schema([("x", wanted)]))
    for value, kept, unfit in zip(values, found.rows["x"].to_pylist(), found.unfit.tolist(), strict=True):
        assert unfit == (value is not None and kept is None)
        assert kept is None or int(kept) == value


_NARROW = pa.struct([("a", pa.float32()), ("b", pa.int64())])


@pytest.mark.parametrize(
    ("value", "of", "wanted", "kept"),
    [
        ("7", pa.string(), pa.int64(), None),
        (7, pa.int64(), pa.string(), None),
        (True, pa.bool_(), pa.int8(), None),
        (1.0, pa.float64(), pa.int64(), None),
        (b"ab", pa.binary(), pa.string(), None),
        (b"ab", pa.binary(2), pa.binary(), b"ab"),
        ("ab", pa.large_string(), pa.string(), "ab"),
        ("ab", pa.dictionary(pa.int8(), pa.string()), pa.string(), "ab"),
        (Decimal("1.50"), pa.decimal128(9, 2), pa.decimal128(3, 1), Decimal("1.5")),
        (Decimal("1.55"), pa.decimal128(9, 2), pa.decimal128(3, 1), None),
        (Decimal("1000.0"), pa.decimal128(9, 2), pa.decimal128(3, 1), None),
        (datetime(2025, 1, 1), pa.timestamp("us"), pa.timestamp("us", "UTC"), None),  # noqa: DTZ001  a naive time
        (datetime(2025, 1, 1, tzinfo=UTC), pa.timestamp("ns", "Asia/Tokyo"), pa.timestamp("s", "UTC"), ...),
        (datetime(2025, 1, 1, 0, 0, 0, 1, tzinfo=UTC), pa.timestamp("us", "UTC"), pa.timestamp("ms", "UTC"), None),
        (date(2025, 1, 1), pa.date64(), pa.date32(), date(2025, 1, 1)),
        (date(2025, 1, 1), pa.date32(), pa.timestamp("us"), None),
        ([1, None], pa.list_(pa.int8()), pa.list_(pa.int32()), [1, None]),
        ([1, 2**40], pa.list_(pa.int64()), pa.list_(pa.int32()), None),
        ({"a": 1}, pa.struct([("a", pa.int8())]), pa.struct([("a", pa.int64())]), {"a": 1}),
        ({"a": 1}, pa.struct([("a", pa.int8())]), pa.struct([("a", pa.int8()), ("b", pa.int8())]), None),
        ([("k", 1)], pa.map_(pa.string(), pa.int8()), pa.map_(pa.string(), pa.int64()), [("k", 1)]),
        (None, pa.null(), pa.struct([("a", pa.int8())]), ...),
        (1.5, pa.float16(), pa.float32(), 1.5),
        (1.5, pa.float16(), pa.int32(), None),
        ([1.5, None], pa.list_(pa.float16()), pa.large_list(pa.float64()), [1.5, None]),
        ([1.5, math.nan], pa.list_(pa.float32()), pa.list_(pa.float64()), ...),
        ({"a": math.nan, "b": 1}, pa.struct([("a", pa.float64()), ("b", pa.int8())]), _NARROW, ...),
        ({"a": 0.1, "b": 1}, pa.struct([("a", pa.float64()), ("b", pa.int8())]), _NARROW, None),
        ([("k", math.nan)], pa.map_(pa.string(), pa.float32()), pa.map_(pa.string(), pa.float64()), ...),
        ([("k", 0.1)], pa.map_(pa.string(), pa.float64()), pa.map_(pa.string(), pa.float32()), None),
        ("ab", pa.string(), pa.dictionary(pa.int8(), pa.string()), "ab"),
        ("ab", pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string()), "ab"),
        (7, pa.dictionary(pa.int8(), pa.int64()), pa.decimal128(20, 0), Decimal(7)),
        (2**64 - 1, pa.uint64(), pa.decimal128(20, 0), Decimal(2**64 - 1)),
        (-(2**63), pa.int64(), pa.decimal128(20, 1), Decimal(-(2**63))),
        (10**18, pa.int64(), pa.decimal128(19, 2), None),
        (10**18, pa.int64(), pa.decimal256(60, 2), Decimal(10**18)),
        ([2**64 - 1, None], pa.list_(pa.uint64()), pa.list_(pa.decimal128(20, 0)), [Decimal(2**64 - 1), None]),
        (Decimal(7), pa.decimal128(20, 0), pa.int64(), None),
        ([1, 2], pa.list_(pa.int8(), 2), pa.list_(pa.int64()), [1, 2]),
        ([1], pa.list_(pa.int8()), pa.list_(pa.int8(), 2), None),
        (b"abc", pa.binary(), pa.binary(2), None),
    ],
    ids=str,
)
def test_fitted_values_are_what_they_were_or_misfits(value, of, wanted, kept):
    """Beside another value and a null, which must not change what becomes of it."""
    column = pa.array([value, None, value], of)
    found = fitted(pa.record_batch([column], ["x"]), pa.schema([("x", wanted)]))
    kept = value if kept is ... else kept
    values = found.rows["x"].to_pylist()
    assert values == [kept, None, kept] or "nan" in repr(values) == repr([kept, None, kept])
    assert found.unfit.tolist() == [kept is None and value is not None, False, kept is None and value is not None]
    assert found.rows.schema == pa.schema([("x", wanted)])


def test_fitted_nests_what_is_not_a_number_and_what_does_not_fit_apart():
    values = [[1.0, math.nan], None, [], [0.1], [math.nan, 0.1], [2.0]]
    column = pa.array([[], *values], pa.list_(pa.float64())).slice(1)
    found = fitted(pa.record_batch([column], ["x"]), pa.schema([("x", pa.list_(pa.float32()))]))
    assert repr(found.rows["x"].to_pylist()) == repr([[1.0, math.nan], None, [], None, None, [2.0]])
    assert found.unfit.tolist() == [False, False, False, True, True, False]


def test_fitted_finds_values_too_many_for_a_dictionary():
    values = pa.array([str(number) for number in range(300)])
    found = fitted(pa.record_batch([values], ["x"]), pa.schema([("x", pa.dictionary(pa.int8(), pa.string()))]))
    assert found.unfit.all()
    assert found.rows["x"].null_count == 300


def test_fitted_tells_the_few_that_do_not_fit_from_the_many():
    values = pa.array([[each] if each % 1000 else [2**40] for each in range(1, 4001)], pa.list_(pa.int64()))
    found = fitted(pa.record_batch([values], ["x"]), pa.schema([("x", pa.list_(pa.int32()))]))
    assert [index + 1 for index, unfit in enumerate(found.unfit) if unfit] == [1000, 2000, 3000, 4000]
    assert found.rows["x"].null_count == 4


def test_fitted_gives_each_row_its_reasons_and_says_which_cannot_be_landed():
    batch = pa.record_batch(
        {"id": pa.array([1, None, 2**40], pa.int64()), "at": ["x", None, None], "new": [1, None, None]}
    )
    found = fitted(batch, FROZEN, needed="name")
    assert [found.reason(row) for row in range(3)] == [
        "column 'at': a value of type string does not fit date32[day]; column 'new' is not in the feed's schema",
        "column 'id' is never null in the feed's schema, and has no value",
        "column 'id': a value of type int64 does not fit int32",
    ]
    assert found.refused("discard_row").tolist() == [True, True, True]
    assert found.refused("discard_value").tolist() == [False, True, True]
    assert fitted(batch, FROZEN, needed="at").refused("discard_value").tolist() == [True, True, True]
    assert found.foreign.names == ["id", "at", "new"]
