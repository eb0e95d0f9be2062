"""The JSON encodings, against the literals that ksqlDB's own tests and JSON mapper give."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.demo.ksqldb_server.ksql_types import (
    SqlType,
    array,
    decimal,
    encode_json,
    java_double,
    map_of,
    scalar,
    struct,
)

STRING, INTEGER = scalar("STRING"), scalar("INTEGER")
TS = dt.datetime(1999, 11, 30, 11, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, INTEGER, "null"),
        (True, scalar("BOOLEAN"), "true"),
        (9223372036854775807, scalar("BIGINT"), "9223372036854775807"),
        (Decimal("1.5"), decimal(4, 2), "1.50"),
        (
            Decimal("12345678901234567890123456789.0123456789"),
            decimal(39, 10),
            "12345678901234567890123456789.0123456789",
        ),
        (b"{", scalar("BYTES"), '"ew=="'),
        (TS, scalar("TIMESTAMP"), '"1999-11-30T11:00:00.000"'),
        (dt.date(1970, 1, 11), scalar("DATE"), '"1970-01-11"'),
        (dt.time(0, 0, 10), scalar("TIME"), '"00:00:10"'),
        (dt.time(10), scalar("TIME"), '"10:00"'),
        (dt.time(10, 0, 0, 123000), scalar("TIME"), '"10:00"'),
        ([1, None], array(INTEGER), "[1,null]"),
        ({"a": 1}, map_of(STRING, INTEGER), '{"a":1}'),
        ({7: "x"}, map_of(INTEGER, STRING), '{"7":"x"}'),
        ("é\u2028\u0085", STRING, '"é\u2028\u0085"'),
        ('"\\\n\x1f', STRING, '"\\"\\\\\\n\\u001F"'),
        ("\ud800", STRING, '"\\uD800"'),
    ],
)
def test_value_is_encoded_as_at_the_top_level(value: Any, kind: SqlType, text: str) -> None:
    assert encode_json(value, kind) == text


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (TS, scalar("TIMESTAMP"), "943959600000"),
        (dt.date(1970, 1, 11), scalar("DATE"), "10"),
        (dt.time(0, 0, 10), scalar("TIME"), "10000"),
        (Decimal("1.50"), decimal(4, 2), "1.5"),
        (Decimal("12345678901234567890.01"), decimal(30, 2), "1.2345678901234567E19"),
        ({7: "x"}, map_of(INTEGER, STRING), '[[7,"x"]]'),
        ({"k": TS}, map_of(STRING, scalar("TIMESTAMP")), '{"k":943959600000}'),
        ([TS], array(scalar("TIMESTAMP")), "[943959600000]"),
    ],
)
def test_value_is_encoded_otherwise_inside_a_struct(value: Any, kind: SqlType, text: str) -> None:
    assert encode_json({"F": value}, struct(F=kind)) == f'{{"F":{text}}}'
    assert encode_json([{"F": value}], array(struct(F=kind))) == f'[{{"F":{text}}}]'


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (11.0, "11.0"),
        (1e10, "1.0E10"),
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (0.001, "0.001"),
        (0.0001, "1.0E-4"),
        (-1.5e-7, "-1.5E-7"),
        (9999999.0, "9999999.0"),
        (10000000.0, "1.0E7"),
        (123456789.125, "1.23456789125E8"),
        (float("nan"), '"NaN"'),
        (float("inf"), '"Infinity"'),
        (float("-inf"), '"-Infinity"'),
    ],
)
def test_double_is_written_as_java_does(number: float, text: str) -> None:
    assert java_double(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_double_reads_back_as_itself(number: float) -> None:
    assert float(java_double(number)) == number


@given(st.text())
def test_string_reads_back_as_itself(text: str) -> None:
    assert json.loads(encode_json(text, STRING)) == text


def test_type_is_written_as_in_headers() -> None:
    kind = struct(F1=STRING, L=array(decimal(4, 2)), M=map_of(STRING, INTEGER))
    assert str(kind) == "STRUCT<`F1` STRING, `L` ARRAY<DECIMAL(4, 2)>, `M` MAP<STRING, INTEGER>>"
