from __future__ import annotations

import pyarrow as pa
import pytest

from datalake_assets.core.schema import (
    SOURCE_NAME,
    conform,
    evolve,
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
