"""What is read of JSON lines is what the file says."""

from __future__ import annotations

from decimal import Decimal
from functools import partial

import pyarrow as pa

from datalake_assets.sources.files import csv_records
from datalake_assets.sources.files.csv_records import blocks
from datalake_assets.sources.files.file_reading import ReadingOptions, opened
from datalake_assets_tests.sources.files.dropping import contents, read


def test_json_values_keep_every_digit():
    types, rows, bad = read(
        '{"a": 1, "b": 0.10, "c": "007", "d": {"x": 1}}\n{"a": null, "b": 12345678901234567.8, "e": true}\nno\n[1]\n',
        "a.json",
    )
    assert types == {"a": "int64", "b": "decimal128(38, 2)", "c": "string", "d": "string", "e": "bool"}
    assert rows == [
        (1, Decimal("0.10"), "007", '{"x": 1}', None),
        (None, Decimal("12345678901234567.80"), None, None, True),
    ]
    assert [line for line, _ in bad] == [3, 4]


def test_texts_of_json_are_no_numbers_and_no_truths_later():
    file = opened("a.json", contents(b'{"n":1,"t":"1"}\n{"n":"2"}\n{"b":"true"}\n{"n":"","t":7}\n'), ReadingOptions())
    (parsed,) = file.rows({"n": pa.int64(), "t": pa.string(), "b": pa.bool_()})
    assert [each["n"] for each in parsed.rows.to_pylist()] == [1, None]
    assert [each.line for each in parsed.bad] == [2, 3]


def test_json_that_is_none_is_bad_by_line_and_stops_nothing():
    lines = ['{"a":"ü"}', b'{"a":"\xff"}', b'{"a":["\xff"]}', '{"a":1,"b":2,"a":3}', '{"a":' + "[" * 9999, '{"a":"z"}']
    data = b"\n".join(each if isinstance(each, bytes) else each.encode() for each in lines)
    _, rows, bad = read(data, "a.json")
    assert rows == [("ü",), ("z",)]
    assert [line for line, _ in bad] == [2, 3, 4, 5]
    assert "member 'a' twice" in bad[2][1]


def test_json_lines_are_bounded(monkeypatch):
    monkeypatch.setattr(csv_records, "MAX_RECORD_BYTES", 1000)
    small = partial(blocks, size=100)
    monkeypatch.setattr("datalake_assets.sources.files.json_records.blocks", small)
    file = opened("a.json", contents(b'{"a":1}\n{"a":"' + b"x" * 5000 + b'"}\n{"a":2}\n'), ReadingOptions())
    parsed = list(file.rows({"a": pa.string()}))
    assert [each.rows.num_rows for each in parsed] == [1, 0]
    assert [(each.line, "rest of the file was not read" in each.reason) for each in parsed[1].bad] == [(2, True)]
