"""What was encoded again has the Parquet schema that its inputs had; what cannot have it is left alone."""

from __future__ import annotations

import datetime as dt
import io
import itertools
from dataclasses import replace
from decimal import Decimal

import duckdb
import fastparquet
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.parquet.elements import encoded_schema, parsed_schema
from datalake_assets.parquet.thrift import BINARY, I32, LIST, STRUCT, CompactReader, CompactWriter, zigzag
from datalake_assets_tests.parquet.parquet_files import columns, edited
from datalake_assets_tests.parquet.test_rewrite import REENCODE, encoded, input_file, rewritten

AUTO = replace(REENCODE, kernel="auto")
AT = dt.datetime(2025, 1, 1, 12)  # noqa: DTZ001  times without a zone are what this is about
TIMESTAMP_MICROS, TIME_MICROS, ENUM, BSON, MAP_KEY_VALUE = 10, 8, 4, 20, 2


def files(*bodies):
    return [input_file(f"f{number}", body) for number, body in enumerate(bodies)]


def merged(*bodies, chosen=REENCODE):
    """The output's bytes; all files must be in it."""
    result = rewritten(files(*bodies), chosen)
    assert result.rejected == {}
    assert result.encoded or chosen is AUTO
    return result.outputs[0][0]


def footer(body):
    length = int.from_bytes(body[-8:-4], "little")
    return body[-8 - length : -8]


def schema(body):
    return encoded_schema(footer(body))


def with_elements(body, change):
    """The same file, each element of its schema changed: a function of its name and its fields."""

    def elements(fields):
        reader = CompactReader(fields[2][1])
        out = []
        for _ in range(reader.structs(LIST)):
            found = {}
            for number, kind in reader.fields():
                begin = reader.position
                reader.skip(kind)
                found[number] = (kind, reader.data[begin : reader.position])
            name = CompactReader(found[4][1]).binary(BINARY).decode()
            writer = CompactWriter()
            for number, (kind, value) in sorted(change(name, found).items()):
                writer.field(number, kind, value)
            out.append(writer.end())
        return fields | {2: (LIST, CompactWriter.list_header(STRUCT, len(out)) + b"".join(out))}

    return edited(body, file=elements)


def converted_only(column, kind):
    """A change of a column to a converted type without a logical one."""

    def change(name, fields):
        if name != column:
            return fields
        return {number: value for number, value in fields.items() if number != 10} | {6: (I32, zigzag(kind))}

    return change


def renamed(names):
    def change(name, fields):
        return fields | {4: (BINARY, CompactWriter.binary(names.get(name, name).encode()))}

    return change


def by_arrow(table, **options):
    return encoded(table, store_schema=False, **options)


UNZONED = converted_only("t", TIMESTAMP_MICROS)
TIMES = pa.table({"t": pa.array([AT, None], pa.timestamp("us", "UTC")), "x": [1, 2]})


def test_times_without_a_logical_type_mean_what_they_meant(tmp_path):
    body = with_elements(by_arrow(TIMES), UNZONED)
    out = merged(body, body)
    assert schema(out) == schema(body)
    read = [pl.read_parquet(io.BytesIO(each))["t"].dtype for each in (body, out)]
    assert read == [pl.Datetime("us", None)] * 2
    seen = []
    for each in (body, out):
        (tmp_path / "x.parquet").write_bytes(each)
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'Asia/Tokyo'")
            seen.append(connection.read_parquet(str(tmp_path / "x.parquet")).aggregate("min(t)::varchar").fetchall()[0])
    assert seen == [("2025-01-01 12:00:00",)] * 2


@pytest.mark.parametrize("kind", [ENUM, BSON])
def test_annotations_that_arrow_does_not_know_stay(kind):
    body = with_elements(by_arrow(pa.table({"e": pa.array([b"a", b"b"]), "x": [1, 2]})), converted_only("e", kind))
    assert schema(merged(body, body)) == schema(body)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (
            converted_only("t", TIMESTAMP_MICROS),
            None,
            "TIMESTAMP_MICROS without a logical type in some and TIMESTAMP in some",
        ),
        (converted_only("t", TIMESTAMP_MICROS), converted_only("x", 18), "column 't' is TIMESTAMP_MICROS without"),
    ],
)
def test_files_of_which_only_some_have_a_logical_type_stay_apart(one, other, told):
    plain = by_arrow(TIMES)
    body = with_elements(plain, one)
    result = rewritten(files(body, body, with_elements(plain, other) if other else plain), AUTO)
    assert list(result.rejected) == ["f2"]
    assert told in result.rejected["f2"]
    assert schema(result.outputs[0][0]) == schema(body)


def test_a_converted_type_that_says_the_same_as_the_logical_one_is_no_difference():
    body = by_arrow(pa.table({"s": ["x"], "x": [1]}))
    other = with_elements(body, converted_only("s", 0))
    assert pq.read_table(io.BytesIO(merged(body, other)))["s"].to_pylist() == ["x", "x"]


def test_columns_keep_their_elements_where_others_were_added():
    narrow = with_elements(by_arrow(TIMES.select(["t"])), converted_only("t", TIMESTAMP_MICROS))
    wide = with_elements(by_arrow(TIMES), converted_only("t", TIMESTAMP_MICROS))
    out = merged(narrow, wide)
    assert schema(out) == schema(wide)
    assert pl.read_parquet(io.BytesIO(out))["t"].dtype == pl.Datetime("us", None)
    assert pq.read_table(io.BytesIO(out))["x"].to_pylist() == [None, None, 1, 2]


def test_a_map_without_values_stays_one():
    keys = pa.table({"m": pa.array([[1, 2], [], None], pa.list_(pa.field("key", pa.int32(), nullable=False)))})
    body = with_elements(
        with_elements(by_arrow(keys), renamed({"list": "key_value", "element": "key"})),
        lambda name, fields: fields | {6: (I32, zigzag(1)), 10: (STRUCT, b"\x2c\0\0")} if name == "m" else fields,
    )
    body = edited(body, column=lambda fields: fields | {3: (LIST, b"\x38\x01m\x09key_value\x03key")})
    assert "(Map)" in str(pq.ParquetFile(io.BytesIO(body)).schema)
    out = merged(body, body)
    assert schema(out) == schema(body)
    assert [column.path_in_schema for column in columns(out)] == ["m.key_value.key"]
    assert len(pq.read_table(io.BytesIO(out))) == 6


LISTS = pa.table({"l": pa.array([[1, None], None, []], pa.list_(pa.int64())), "x": [1, 2, 3]})


def old_lists(table=LISTS):
    """As Spark and Hive wrote them; the pages are the same."""
    names = {"list": "bag", "element": "array", "schema": "spark_schema"}
    body = with_elements(by_arrow(table), renamed(names))
    paths = itertools.cycle([b"\x38\x01l\x03bag\x05array", *[b"\x18\x01x"] * (len(table.column_names) - 1)])
    return edited(body, column=lambda fields: fields | {3: (LIST, next(paths))})


def test_names_of_lists_and_of_the_root_stay():
    body = old_lists()
    out = merged(body, body)
    assert schema(out) == schema(body)
    assert [column.path_in_schema for column in columns(out)] == ["l.bag.array", "x"]
    for found in (pl.read_parquet(io.BytesIO(out))["l"].to_list(), pq.read_table(io.BytesIO(out))["l"].to_pylist()):
        assert found == LISTS["l"].to_pylist() * 2
    assert "spark_schema" in str(pq.ParquetFile(io.BytesIO(out)).schema)


def test_lists_of_other_names_become_those_of_the_oldest():
    body = old_lists()
    out = merged(body, by_arrow(LISTS))
    assert [column.path_in_schema for column in columns(out)] == ["l.bag.array", "x"]
    assert pq.read_table(io.BytesIO(out))["l"].to_pylist() == LISTS["l"].to_pylist() * 2


def test_repeated_fields_without_a_list_stay():
    strict = pa.list_(pa.field("element", pa.int32(), nullable=False))
    body = by_arrow(
        pa.table({"r": pa.array([[1, 2], []], strict)}, schema=pa.schema([pa.field("r", strict, nullable=False)]))
    )
    flat = parsed_schema(schema(body)).children[0].children[0].children[0]
    root = parsed_schema(schema(body))
    leaf = {**flat.fields, 3: (I32, zigzag(2)), 4: (BINARY, CompactWriter.binary(b"r"))}

    def file(fields):
        out = []
        for each in (root.fields, leaf):
            writer = CompactWriter()
            for number, (kind, value) in sorted(each.items()):
                writer.field(number, kind, value)
            out.append(writer.end())
        return fields | {2: (LIST, CompactWriter.list_header(STRUCT, 2) + b"".join(out))}

    body = edited(body, file=file, column=lambda fields: fields | {3: (LIST, b"\x18\x01r")})
    assert pq.read_table(io.BytesIO(body))["r"].to_pylist() == [[1, 2], []]
    out = merged(body, body)
    assert schema(out) == schema(body)
    assert pq.read_table(io.BytesIO(out))["r"].to_pylist() == [[1, 2], []] * 2


@pytest.mark.parametrize("as_integer", [True, False])
def test_decimals_stay_stored_as_they_were(as_integer):
    table = pa.table({"d": pa.array([Decimal("1.50"), Decimal("-2.25")], pa.decimal128(9, 2))})
    body = by_arrow(table, store_decimal_as_integer=as_integer)
    out = merged(body, body)
    assert schema(out) == schema(body)
    assert [column.statistics.min for column in columns(out)] == [Decimal("-2.25")]


def test_what_cannot_be_stored_as_it_was_is_copied_or_left_alone():
    """Decimals as integers and others of fixed length in one file: Arrow writes all one way."""
    table = pa.table(
        {"d": pa.array([Decimal("1.50")], pa.decimal128(9, 2)), "e": pa.array([Decimal("2.50")], pa.decimal128(9, 2))}
    )
    raw = pa.table({"d": table["d"], "e": pa.array([(250).to_bytes(8, "big")], pa.binary(8))})

    def decimal(name, fields):
        of_fixed = {6: (I32, zigzag(5)), 7: (I32, zigzag(2)), 8: (I32, zigzag(9))}
        return fields | of_fixed if name == "e" else fields

    body = with_elements(by_arrow(raw, store_decimal_as_integer=True), decimal)
    assert pq.read_table(io.BytesIO(body)).equals(table)
    copied = rewritten(files(body, body), AUTO)
    assert (copied.copied, schema(copied.outputs[0][0])) == (2, schema(body))
    refused = rewritten(files(body, body), REENCODE)
    assert "column 'e' is stored in a way that encoding it again would change" in refused.rejected["f0"]


def chunk_noted(body, values=b"v"):
    return edited(body, column=lambda fields: fields | {8: (LIST, b"\x1c\x18\x01k\x18\x01" + values + b"\0")})


def test_key_values_of_column_chunks_stay_where_all_agree():
    body = chunk_noted(by_arrow(TIMES))
    assert [column.metadata for column in columns(merged(body, body))] == [{b"k": b"v"}] * 2


def test_key_values_of_column_chunks_that_differ_are_copied_or_left_alone():
    bodies = [chunk_noted(by_arrow(TIMES), values) for values in (b"v", b"w")]
    refused = rewritten(files(*bodies, by_arrow(TIMES), by_arrow(TIMES)), REENCODE)
    assert list(refused.rejected) == ["f0", "f1"]
    assert "has key-values in its parts that other files have not" in refused.rejected["f0"]
    copied = rewritten(files(*bodies), replace(REENCODE, kernel="concat"))
    assert [column.metadata for column in columns(copied.outputs[0][0])][::2] == [{b"k": b"v"}, {b"k": b"w"}]


def by_duckdb(path):
    columns = "i::bigint id, i / 2 f, [i] l, map([i], ['x']) m, {'a': i} s, timestamp '2025-01-01' t, time '12:00' u"
    with duckdb.connect() as connection:
        connection.sql("from range(5) r(i)").project(f"{columns}, 1.5::decimal(9, 2) d").write_parquet(str(path))


def by_polars(path):
    frame = {"id": [1, None], "s": ["x", "y"], "l": [["a"], None], "t": [AT, None], "p": [{"a": 1}, {"a": None}]}
    pl.DataFrame(frame).with_columns(pl.col("s").cast(pl.Categorical)).write_parquet(path)


def by_fastparquet(path):
    frame = pd.DataFrame({"id": [1, 2], "s": ["x", None], "t": pd.to_datetime([AT, AT]), "b": [True, False]})
    fastparquet.write(str(path), frame, write_index=False)


def by_old_pyarrow(path):
    options = {"version": "1.0", "use_compliant_nested_type": False, "store_schema": False}
    pq.write_table(pa.table({"l": LISTS["l"], "t": pa.array([AT] * 3, pa.timestamp("ms"))}), path, **options)


@pytest.mark.parametrize("write", [by_duckdb, by_polars, by_fastparquet, by_old_pyarrow])
def test_files_of_other_writers_keep_their_schema_and_their_metadata(write, tmp_path):
    path = tmp_path / "one.parquet"
    write(path)
    body = path.read_bytes()
    out = merged(body, body)
    assert schema(out) == schema(body)
    before, after = (pq.ParquetFile(io.BytesIO(each)).metadata.metadata or {} for each in (body, out))
    assert {key: value for key, value in after.items() if not key.startswith((b"datalake.", b"pandas"))} == {
        key: value for key, value in before.items() if key != b"pandas"
    }
    assert pq.read_table(io.BytesIO(out)).equals(pa.concat_tables([pq.read_table(io.BytesIO(body))] * 2))


FLAT = [pa.int32(), pa.string(), pa.timestamp("us"), pa.decimal128(9, 2), pa.float32(), pa.bool_()]


def structs(kinds):
    return pa.struct([(f"f{number}", kind) for number, kind in enumerate(kinds)])


KINDS = st.recursive(
    st.sampled_from(FLAT),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        st.builds(pa.map_, st.just(pa.string()), inner),
        st.lists(inner, min_size=1, max_size=3).map(structs),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=4), st.permutations(["array", "item", "x"]))
def test_any_schema_stays_byte_for_byte(kinds, names):
    table = pa.table([pa.nulls(3, kind) for kind in kinds], names=[f"c{number}" for number in range(len(kinds))])
    body = with_elements(by_arrow(table), renamed({"list": names[0], "element": names[1]}))
    paths = _paths(parsed_schema(schema(body)))
    body = edited(body, column=lambda fields: fields | {3: (LIST, next(paths))})
    out = merged(body, body)
    assert schema(out) == schema(body)
    assert pq.read_table(io.BytesIO(out)).num_rows == 6


def _paths(element, above=()):
    for child in element.children:
        names = (*above, child.name)
        if child.children:
            yield from _paths(child, names)
        else:
            yield CompactWriter.list_header(BINARY, len(names)) + b"".join(map(CompactWriter.binary, names))
