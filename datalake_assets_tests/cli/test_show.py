"""How values look: aligned, escaped, exact."""

from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal

import pytest

from datalake_assets.cli.output import as_csv, as_table, one_line, plain, print_json


def test_as_table_aligns_by_width_on_the_screen_and_numbers_to_the_right():
    rows = [("日本", 1, "1,000"), ("é", 22, None), ("plain", None, "20")]
    assert as_table(("name", "n", "rows"), rows).splitlines() == [
        "name    n   rows",
        "─────  ──  ─────",
        "日本    1  1,000",
        "é      22",
        "plain         20",
    ]


def test_as_table_without_rows_is_a_head():
    assert as_table(("a", "bb"), []).splitlines() == ["a  bb", "─  ──"]


def test_as_table_moves_no_cursor():
    table = as_table(("x",), [("a\nb\x1b[2J\u2028\x85",)])
    assert table.splitlines()[2] == "a\\nb\\x1b[2J\\u2028\\x85"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "True"),
        (Decimal("1.50"), "1.50"),
        (math.nan, "nan"),
        (dt.datetime(2025, 1, 2, 3, 4, 5, 6000, tzinfo=dt.UTC), "2025-01-02 03:04:05.006000+00:00"),
        (b"\x00\xff", "00ff"),
        ({"a": [1, None, Decimal("0.1")]}, '{"a": [1, null, "0.1"]}'),
    ],
)
def test_a_cell(value, text):
    assert as_table(("column",), [(value,)]).split("\n")[2].strip() == text


def test_plain_is_what_json_can_have(capsys):
    print_json({1: (math.inf, math.nan, 0.5, Decimal("12345678901234567890.123")), "b": b"\x01", "t": dt.time(1, 2)})
    assert json.loads(capsys.readouterr().out) == {
        "1": ["inf", "nan", 0.5, "12345678901234567890.123"],
        "b": "01",
        "t": "01:02:00",
    }


def test_plain_keeps_big_integers():
    assert plain(2**63) == 2**63


def test_as_csv_quotes_and_leaves_null_empty():
    assert as_csv(("a", "b"), [("x,y", None), ('"', {"k": 1})]) == 'a,b\n"x,y",\n"""","{""k"": 1}"\n'


def test_one_line():
    assert one_line("  a\n\n  b\x1b  ") == "a b\\x1b"
