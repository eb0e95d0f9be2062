"""Metadata that gives values their meaning stays, or keeps files apart; what speaks of one file alone is dropped."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets_tests.parquet.test_rewrite import (
    CONCAT,
    REENCODE,
    encoded,
    input_file,
    inputs,
    metadata,
    rewritten,
)

KERNELS = pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
SPARK = {"org.apache.spark.version": "3.5.1"}
OLD_CALENDAR = {**SPARK, "org.apache.spark.legacyDateTime": ""}
ZONE = "org.apache.spark.timeZone"
DATED = pa.table({"d": pa.array([0], pa.date32())})
UNDATED = pa.table({"n": [1]})


def merged(chosen, *tables):
    """Key-values of the output of as many files as fit, and why the others don't."""
    result = rewritten(inputs(*tables), chosen)
    return (dict(metadata(result).metadata) if result.outputs else None), dict(result.rejected)


def noted(table, *texts):
    return [table.replace_schema_metadata(text) for text in texts]


@KERNELS
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (OLD_CALENDAR, SPARK),
        (SPARK, OLD_CALENDAR),
        (SPARK, {}),
        (SPARK, {"org.apache.spark.version": "2.4.8"}),
        ({**SPARK, "org.apache.spark.legacyINT96": ""}, SPARK),
        (
            {**OLD_CALENDAR, "org.apache.spark.timeZone": "UTC"},
            {**OLD_CALENDAR, "org.apache.spark.timeZone": "Asia/Tokyo"},
        ),
        ({"writer.time.zone": "Europe/Berlin"}, {"writer.time.zone": "UTC"}),
        ({"writer.date.proleptic": "true"}, {}),
        ({"parquet.avro.schema": "{}"}, {"parquet.avro.schema": '{"doc": 1}'}),
        ({"iceberg.schema": "1"}, {"iceberg.schema": "2"}),
        ({"huggingface": '{"info": {"features": {"n": 1}}}'}, {"huggingface": '{"info": {"features": {"n": 2}}}'}),
    ],
)
def test_files_of_different_meaning_stay_apart(chosen, one, other):
    kept, rejected = merged(chosen, *noted(DATED, one, one, other))
    assert list(rejected) == ["f2"]
    assert one.items() <= {key.decode(): value.decode() for key, value in kept.items()}.items()
    assert "does not fit the other 2 files" in rejected["f2"]


def test_it_is_said_by_which_key_files_differ():
    (_, calendars), (_, zones) = (
        merged(REENCODE, *noted(DATED, *each))
        for each in ([SPARK, SPARK, OLD_CALENDAR], [{"writer.time.zone": "UTC"}] * 2 + [{}])
    )
    assert (
        "Spark reads their dates by different calendars: today's in some files, the old one for dates"
        in calendars["f2"]
    )
    assert "their footers have 'writer.time.zone' in some files only" in zones["f2"]


@KERNELS
def test_releases_of_spark_with_one_calendar_fit_and_the_oldest_is_named(chosen):
    texts = [{"org.apache.spark.version": version} for version in ("4.0.0", "3.5.1", "3.10.2")]
    kept, rejected = merged(chosen, *noted(DATED, *texts))
    assert (kept[b"org.apache.spark.version"], rejected) == (b"3.5.1", {})


def test_calendars_matter_only_to_dates():
    kept, rejected = merged(REENCODE, *noted(UNDATED, SPARK, OLD_CALENDAR, {}))
    assert rejected == {}
    assert b"org.apache.spark.version" not in kept
    nested = pa.table({"l": pa.array([[{"at": 0}]], pa.list_(pa.struct([("at", pa.timestamp("us"))])))})
    assert len(merged(REENCODE, *noted(nested, SPARK, SPARK, OLD_CALENDAR))[1]) == 1


@KERNELS
def test_a_fingerprint_of_huggingface_is_one_files(chosen):
    blocks = [{"info": {"features": {"n": {"_type": "ClassLabel"}}}, "fingerprint": f"{i}"} for i in range(2)]
    kept, rejected = merged(chosen, *noted(UNDATED, *({"huggingface": json.dumps(each)} for each in blocks)))
    if chosen is REENCODE:
        assert rejected == {}
        assert json.loads(kept[b"huggingface"]) == {"info": blocks[0]["info"]}


def geo(bbox=None, kinds=("Point",), **parts):
    box = {} if bbox is None else {"bbox": bbox}
    column = {"encoding": "WKB", "geometry_types": list(kinds), **box, **parts}
    return {"geo": json.dumps({"version": "1.1.0", "primary_column": "g", "columns": {"g": column}})}


POINTS = pa.table({"g": pa.array([b"1"]), "id": [1]})


@KERNELS
@pytest.mark.parametrize(
    ("one", "other", "box", "kinds"),
    [
        (geo([0, 0, 1, 1]), geo([5, -5, 6, 0], ["Polygon"]), [0, -5, 6, 1], ["Point", "Polygon"]),
        (geo([0, 0, 0, 1, 1, 1]), geo([2, 2, 2, 3, 3, 3]), [0, 0, 0, 3, 3, 3], ["Point"]),
        (geo([0, 0, 1, 1]), geo([0, 0, 0, 1, 1, 1]), None, ["Point"]),
        (geo([170, 0, -170, 1]), geo([0, 0, 1, 1]), None, ["Point"]),
        (geo([0, 0, 1, 1]), geo(None, []), None, []),
        (geo([0, 0, 1, 1]), geo([0, 0, 1, 1]), [0, 0, 1, 1], ["Point"]),
        (geo([0, 0, 1, 1]), geo([0, 0, 2, 2], edges="planar"), [0, 0, 2, 2], ["Point"]),
    ],
)
def test_extents_of_geometries_are_united_or_dropped(chosen, one, other, box, kinds):
    kept, rejected = merged(chosen, *noted(POINTS, one, other))
    column = json.loads(kept[b"geo"])["columns"]["g"]
    assert (rejected, column.get("bbox"), column["geometry_types"]) == ({}, box, kinds)


@KERNELS
@pytest.mark.parametrize(
    "other",
    [
        geo(crs={"id": 3857}),
        geo(crs=None),
        geo(edges="spherical"),
        geo(epoch=2020.5),
        geo(encoding="point"),
        {},
        {"geo": "?"},
    ],
)
def test_geometries_of_other_systems_do_not_fit(chosen, other):
    kept, rejected = merged(chosen, *noted(POINTS, geo(), geo(), other))
    assert (list(rejected), json.loads(kept[b"geo"])) == (["f2"], json.loads(geo()["geo"]))


def by_pandas(frame, **options):
    body = io.BytesIO()
    frame.to_parquet(body, **options)
    return body.getvalue()


def files(*bodies):
    return [input_file(f"f{number}", body) for number, body in enumerate(bodies)]


def read_by_pandas(result):
    return pd.read_parquet(io.BytesIO(result.outputs[0][0]))


@KERNELS
def test_ranges_of_pandas_are_dropped_and_what_else_it_says_stays(chosen):
    frames = [pd.DataFrame({"n": pd.array([i, None], "Int64")}, index=pd.RangeIndex(7, 9)) for i in range(2)]
    result = rewritten(files(*map(by_pandas, frames)), chosen)
    back = read_by_pandas(result)
    assert (str(back["n"].dtype), list(back.index)) == ("Int64", [0, 1, 2, 3])
    assert b"range" not in metadata(result).metadata[b"pandas"]


@KERNELS
def test_an_index_of_pandas_stays_one_and_keeps_apart_files_where_it_is_a_column(chosen):
    indexed = [pd.DataFrame({"n": [i]}, index=pd.Index([f"k{i}"], name="key")) for i in range(2)]
    result = rewritten(files(*map(by_pandas, [*indexed, indexed[0].reset_index()[["n", "key"]]])), chosen)
    assert list(result.rejected) == ["f2"]
    assert read_by_pandas(result).index.tolist() == ["k0", "k1"]


@KERNELS
@pytest.mark.parametrize(
    "column",
    [
        lambda i: pd.period_range("2025-01", periods=2, freq="MD"[i]),
        lambda i: pd.arrays.IntervalArray.from_breaks([0, 1, 2], closed=("left", "right")[i]),
    ],
    ids=["period", "interval"],
)
def test_extension_types_of_pandas_are_never_mixed(chosen, column):
    bodies = [by_pandas(pd.DataFrame({"c": column(i)})) for i in (0, 0, 1)]
    result = rewritten(files(*bodies), chosen)
    assert list(result.rejected) == ["f2"]
    assert str(read_by_pandas(result)["c"].dtype) == str(pd.read_parquet(io.BytesIO(bodies[0]))["c"].dtype)


@KERNELS
def test_enums_of_polars_with_other_values_are_never_mixed(chosen):
    bodies = []
    for values in (["a", "b"], ["a", "b"], ["b", "a"]):
        body = io.BytesIO()
        pl.DataFrame({"e": ["a"]}, schema={"e": pl.Enum(values)}).write_parquet(body)
        bodies.append(body.getvalue())
    result = rewritten(files(*bodies), chosen)
    assert list(result.rejected) == ["f2"]
    assert pl.read_parquet(io.BytesIO(result.outputs[0][0]))["e"].dtype == pl.Enum(["a", "b"])


def spark_rows(*columns):
    fields = [{"name": name, "type": kind, "nullable": True, "metadata": noted} for name, kind, noted in columns]
    return {"org.apache.spark.sql.parquet.row.metadata": json.dumps({"type": "struct", "fields": fields})}


def test_the_schema_that_spark_believes_names_all_columns_or_is_dropped():
    a, b = ("a", "long", {}), ("b", "string", {"__CHAR_VARCHAR_TYPE_STRING": "varchar(3)"})
    narrow = pa.table({"a": [1]}).replace_schema_metadata(spark_rows(a))
    wide = pa.table({"a": [1], "b": ["x"]}).replace_schema_metadata(spark_rows(a, b))
    plain = pa.table({"a": [1], "c": ["x"]})
    key = b"org.apache.spark.sql.parquet.row.metadata"
    kept, rejected = merged(REENCODE, narrow, wide)
    assert ([field["name"] for field in json.loads(kept[key])["fields"]], rejected) == (["a", "b"], {})
    kept, rejected = merged(REENCODE, narrow, plain)
    assert (key in kept, rejected) == (False, {})
    kept, rejected = merged(REENCODE, wide, wide, plain)
    assert "says more of them than their types" in rejected["f2"]


def test_a_length_or_a_type_of_its_own_that_spark_notes_keeps_files_apart():
    short, long = (
        pa.table({"b": ["x"]}).replace_schema_metadata(spark_rows(("b", "string", {"length": number})))
        for number in (3, 5)
    )
    assert "column 'b' has another meaning in Spark's metadata" in merged(REENCODE, short, short, long)[1]["f2"]


@KERNELS
def test_a_comment_of_spark_keeps_no_files_apart_and_the_newest_stays(chosen):
    texts = [spark_rows(("n", "long", {"comment": text})) for text in ("old", "new")]
    kept, rejected = merged(chosen, *noted(UNDATED, *texts))
    (field,) = json.loads(kept[b"org.apache.spark.sql.parquet.row.metadata"])["fields"]
    assert (rejected, field["metadata"]) == ({}, {"comment": "new"})


@pytest.mark.parametrize(
    "kinds",
    [
        ("varchar(3)", "varchar(5)"),
        ("char(3)", "string"),
        ("string collate UNICODE", "string"),
        ({"type": "array", "elementType": "varchar(3)", "containsNull": True}, "string"),
        (
            {"type": "struct", "fields": [{"name": "x", "type": "interval year", "nullable": True, "metadata": {}}]},
            "string",
        ),
    ],
)
def test_types_of_spark_that_parquet_does_not_tell_keep_files_apart(kinds):
    one, other = (pa.table({"b": ["x"]}).replace_schema_metadata(spark_rows(("b", kind, {}))) for kind in kinds)
    assert list(merged(REENCODE, one, one, other)[1]) == ["f2"]
    assert merged(REENCODE, one, one)[1] == {}


@KERNELS
def test_what_arrow_rs_keeps_within_arrows_schema_is_treated_alike(chosen):
    def within(texts):
        """A file whose key-values stand in Arrow's schema alone."""
        body = encoded(pa.table({"d": DATED["d"]}).replace_schema_metadata(texts))
        kept = pq.ParquetFile(io.BytesIO(body)).metadata.metadata
        out = io.BytesIO()
        writer = pq.ParquetWriter(out, DATED.schema, store_schema=False)
        writer.write_table(DATED)
        writer.add_key_value_metadata({"ARROW:schema": kept[b"ARROW:schema"]})
        writer.close()
        return out.getvalue()

    bodies = [
        within({"writer.time.zone": zone, "batch": batch}) for zone, batch in (("UTC", "0"), ("UTC", "1"), ("X", "0"))
    ]
    result = rewritten(files(*bodies), chosen)
    assert list(result.rejected) == ["f2"]
    kept = metadata(result).metadata
    assert (kept[b"writer.time.zone"], kept.get(b"batch")) == (b"UTC", None)


@KERNELS
def test_key_values_that_are_no_text_are_kept(chosen):
    tables = noted(UNDATED, {b"raw": b"\xff\x00"}, {b"raw": b"\xff\x00"})
    assert merged(chosen, *tables)[0][b"raw"] == b"\xff\x00"


def test_ordered_categories_are_copied_with_their_order():
    levels = pd.CategoricalDtype(["low", "mid", "high"], ordered=True)
    bodies = [
        by_pandas(pd.DataFrame({"c": pd.Series(values, dtype=levels)})) for values in (["high", "low"], ["mid", "low"])
    ]
    copied = rewritten(files(*bodies), replace(REENCODE, kernel="auto"))
    assert copied.copied == 2
    assert read_by_pandas(copied)["c"].dtype == levels
    refused = rewritten(files(*bodies), REENCODE)
    assert refused.rejected.keys() == {"f0", "f1"}
    assert "ordered categories, whose order encoding it again would lose" in refused.rejected["f0"]
