from __future__ import annotations

import pyarrow as pa
import pytest

from datalake_assets.parquet.inputs import OpenInput
from datalake_assets.parquet.schemas import Incompatible, conform_table, names_apart_by_case, shape_of, unify_schemas
from datalake_assets.parquet.segments import model_of
from datalake_assets.parquet.writer import ParquetSettings
from datalake_assets_tests.parquet.parquet_files import footer, parquet
from datalake_assets_tests.parquet.test_rewrite import inputs


def unified(*kinds):
    return unify_schemas([pa.schema([("a", kind)]) for kind in kinds]).field("a").type


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.int8(), pa.int64()),
        (pa.uint8(), pa.uint32(), pa.uint32()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.null(), pa.string(), pa.string()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.large_binary(), pa.binary(), pa.large_binary()),
        (pa.string(), pa.string_view(), pa.string()),
        (pa.binary_view(), pa.large_binary(), pa.large_binary()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.string()),
        (pa.decimal128(9, 2), pa.decimal128(18, 2), pa.decimal128(18, 2)),
        (pa.decimal256(10, 2), pa.decimal128(20, 2), pa.decimal256(20, 2)),
        (pa.decimal128(5, 2), pa.decimal32(9, 2), pa.decimal128(9, 2)),
        (pa.timestamp("ms", "UTC"), pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC")),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (pa.map_(pa.string(), pa.int32()), pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.int64())),
    ],
)
def test_a_column_gets_the_safe_superset_of_its_types(older, newer, expected):
    assert unified(older, newer).equals(expected)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (pa.int64(), pa.string()),
        (pa.int64(), pa.uint64()),
        (pa.int64(), pa.float64()),
        (pa.decimal128(9, 2), pa.decimal128(9, 3)),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.timestamp("ns"), pa.timestamp("us")),
        (pa.string(), pa.binary()),
        (pa.list_(pa.int64()), pa.int64()),
        (pa.date32(), pa.timestamp("ms")),
    ],
)
def test_types_without_a_safe_superset_do_not_fit(older, newer):
    with pytest.raises(Incompatible, match=r"column 'a' is .* in some files and .* in others"):
        unified(older, newer)


def test_columns_keep_the_oldest_order_and_later_ones_follow():
    schema = unify_schemas(
        [pa.schema([("b", pa.int64()), ("a", pa.int64())]), pa.schema([("c", pa.string()), ("a", pa.int64())])]
    )
    assert schema.names == ["b", "a", "c"]


def test_a_column_that_one_file_lacks_becomes_nullable():
    required = pa.field("a", pa.int64(), nullable=False)
    schema = unify_schemas([pa.schema([required]), pa.schema([required, pa.field("b", pa.int64(), nullable=False)])])
    assert (schema.field("a").nullable, schema.field("b").nullable) == (False, True)
    assert unify_schemas([pa.schema([required]), pa.schema([])]).field("a").nullable


def test_the_newest_description_stays_and_field_ids_must_agree():
    def schema(number, note):
        return pa.schema([pa.field("a", pa.int64(), metadata={"PARQUET:field_id": number, "description": note})])

    merged = unify_schemas([schema("1", "old"), schema("1", "new")])
    assert merged.field("a").metadata == {b"PARQUET:field_id": b"1", b"description": b"new"}
    with pytest.raises(Incompatible, match="column 'a' has field ids 1 and 2"):
        unify_schemas([schema("1", ""), schema("2", "")])


@pytest.mark.parametrize(
    "key", ["ARROW:extension:metadata", "ARROW:extension:name", "_PL_ENUM_VALUES2", "unit", "anything"]
)
def test_a_column_whose_values_mean_something_else_does_not_fit(key):
    def schema(text, *, inner):
        field = pa.field("a", pa.int64(), metadata={key: text})
        return pa.schema([pa.field("s", pa.struct([field])) if inner else field])

    for inner in (False, True):
        with pytest.raises(Incompatible, match=rf"column 'a' has '{key}' 'm' in some files and 'km' in others"):
            unify_schemas([schema("m", inner=inner), schema("km", inner=inner)])
        if key.startswith("ARROW:extension:"):  # as where Arrow knows the type
            with pytest.raises(Incompatible):
                unify_schemas([schema("m", inner=inner), schema("km", inner=inner)], reading=True)
        else:
            assert unify_schemas([schema("m", inner=inner), schema("km", inner=inner)], reading=True).names


def test_a_column_that_says_more_in_some_files_does_not_fit_unless_it_is_a_note():
    def schema(**texts):
        return pa.schema([pa.field("a", pa.int64(), metadata=texts)])

    with pytest.raises(Incompatible, match="column 'a' has 'crs' in some files only"):
        unify_schemas([schema(), schema(crs="x")])
    assert unify_schemas([schema(), schema(unit="m", title="A")]).field("a").metadata == {b"unit": b"m", b"title": b"A"}
    nothing = pa.schema([pa.field("a", pa.null())])
    assert unify_schemas([nothing, schema(crs="x")]).field("a").metadata == {b"crs": b"x"}


LOWER, UPPER = (pa.struct([(name, pa.int8())]) for name in "xX")


@pytest.mark.parametrize(
    ("older", "newer", "where"),
    [
        ([("ID", pa.int64())], [("id", pa.int64())], "names 'ID' and 'id'"),
        (
            [("s", pa.struct([("A", pa.int8())]))],
            [("s", pa.struct([("a", pa.int8())]))],
            "fields of column 's' 'A' and 'a'",
        ),
        (
            [("l", pa.list_(pa.struct([("x", pa.int8())])))],
            [("l", pa.list_(pa.struct([("X", pa.int8())])))],
            "'X' and 'x'",
        ),
        ([("ä", pa.int64())], [("Ä", pa.int64())], "'Ä' and 'ä'"),
    ],
)
def test_names_that_differ_only_in_case_do_not_fit(older, newer, where):
    with pytest.raises(Incompatible, match=f"{where} differ only in case"):
        unify_schemas([pa.schema(older), pa.schema(newer)])


def test_names_of_different_levels_may_differ_only_in_case():
    nested = pa.schema([("id", pa.int64()), ("s", pa.struct([("ID", pa.int64())]))])
    assert names_apart_by_case(nested) is None
    assert unify_schemas([nested, pa.schema([("id", pa.int32())])]).names == ["id", "s"]


def test_two_columns_of_one_name_do_not_fit():
    twice = pa.schema([("a", pa.int64()), ("a", pa.int64())])
    with pytest.raises(Incompatible, match="share a name"):
        unify_schemas([twice, pa.schema([("a", pa.int64())])])


def test_rows_are_conformed_by_name_without_loss():
    inner = pa.struct([("x", pa.int32())])
    wider = pa.struct([("y", pa.string()), ("x", pa.int64())])
    older = pa.table({"s": pa.array([{"x": 1}, None], inner), "n": pa.nulls(2), "a": pa.array([1, 2], pa.int32())})
    newer = pa.table({"a": pa.array([3], pa.int64()), "s": pa.array([{"y": "why", "x": 2}], wider), "n": ["text"]})
    schema = unify_schemas([older.schema, newer.schema])
    assert [row for table in (older, newer) for row in conform_table(table, schema).to_pylist()] == [
        {"s": {"x": 1, "y": None}, "n": None, "a": 1},
        {"s": None, "n": None, "a": 2},
        {"s": {"x": 2, "y": "why"}, "n": "text", "a": 3},
    ]


PLAIN = pa.table({"c": pa.array(["a", "b"]).dictionary_encode()})


@pytest.mark.parametrize(
    "other",
    [
        PLAIN,
        PLAIN.replace_schema_metadata({"k": "v"}),
        PLAIN.cast(pa.schema([pa.field("c", PLAIN["c"].type, metadata={"unit": "m"})])),
        PLAIN.cast(pa.schema([pa.field("c", PLAIN["c"].type, nullable=False)])),
        pa.table({"c": pa.DictionaryArray.from_arrays(pa.array([0]), pa.array(["a"]), ordered=True)}),
        pa.table({"c": pa.array(["a"])}),
        pa.table({"C": PLAIN["c"]}),
    ],
    ids=["the same", "key-values", "a field's metadata", "not null", "ordered", "text", "name"],
)
def test_shape_of_a_file_is_its_own_whatever_the_file_before(other):
    before, source = (OpenInput(each) for each in inputs(PLAIN, other))
    like = shape_of(before, copied=False)

    shape = shape_of(source, copied=False, like=like)

    assert shape == shape_of(source, copied=False)
    assert shape.schema.equals(shape_of(source, copied=False).schema, check_metadata=True)
    assert (shape.known is like.known) == (other is PLAIN)


@pytest.mark.parametrize(
    ("other", "settings"),
    [
        (pa.table({"a": [1]}), ParquetSettings(compression="zstd")),
        (pa.table({"b": [1]}), ParquetSettings()),
        (pa.table({"a": pa.array([1], pa.int32())}), ParquetSettings()),
        (pa.table({"a": [1]}, schema=pa.schema([pa.field("a", pa.int64(), nullable=False)])), ParquetSettings()),
        (pa.table({"a": [1]}, schema=pa.schema([pa.field("a", pa.int64(), metadata={"k": "v"})])), ParquetSettings()),
    ],
)
def test_model_of_a_shape_is_its_own_whatever_was_asked_for_before(other, settings):
    shapes = [shape_of(OpenInput(each), copied=False) for each in inputs(pa.table({"a": [1]}), other)]
    first = model_of(shapes[0], ParquetSettings())
    assert model_of(shapes[0], ParquetSettings()) is first, "it is made once"

    model = model_of(shapes[1], settings)

    assert model is not first
    assert model.footer.schema_key == schema_key_of(other)


def schema_key_of(table):
    """The schema key of a file that pyarrow makes of a table."""
    return footer(parquet(table)).schema_key
