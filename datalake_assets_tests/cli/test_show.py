"""How values look: aligned, escaped, exact."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from datalake_assets.cli.output import as_csv, as_table, one_line, print_json
from datalake_assets.core.wording import plain


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


TABLES = [
    (("name", "n", "rows"), [("日本", 1, "1,000"), ("é", 22, None), ("plain", None, "20")]),
    (("a", "bb"), []),
    (("[bold]x[/bold]", "y"), [("[red]not markup[/red] :smile:", 1.5), ("a\nb\x1b[2J", None)]),
    (("text",), [("two words here",), ("",), (None,)]),
]


@pytest.mark.parametrize(("columns", "rows"), TABLES)
def test_as_table_looks_the_same_on_a_terminal_that_is_wide_enough(columns, rows):
    assert as_table(columns, rows, width=80) == as_table(columns, rows)


def test_as_table_folds_texts_to_the_width_of_a_terminal_and_no_numbers():
    rows = [("streams/" + "x" * 30, "1,000,000", "日本語" * 5), ("short", "1", "")]
    assert as_table(("feed", "rows", "note"), rows, width=40).splitlines() == [
        "feed               rows  note",
        "────────────  ─────────  ───────────────",
        "streams/xxxx  1,000,000  日本語日本語日",
        "xxxxxxxxxxxx             本語日本語日本",
        "xxxxxxxxxxxx             語",
        "xx",
        "short                 1",
    ]


@pytest.mark.parametrize("width", [1, 10, 30])
def test_as_table_is_as_wide_as_it_gets_where_nothing_can_be_folded(width):
    rows = [("a name that is long", 1_000_000_000, "another text")]
    assert as_table(("feed", "rows", "note"), rows, width=width) == as_table(("feed", "rows", "note"), rows)


@given(
    st.lists(st.tuples(st.text(max_size=30), st.integers(-(10**6), 10**6), st.text(max_size=30)), max_size=5),
    st.integers(40, 90),
)
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(rows, width):
    table = as_table(("one", "n", "two"), rows, width=width)
    plain = as_table(("one", "n", "two"), rows)
    assert all(cell_len(line) <= width for line in table.splitlines())
    assert sorted(re.sub(r"[\s─]", "", table)) == sorted(re.sub(r"[\s─]", "", plain))


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
    assert as_csv([("a", "b"), ("x,y", None), ('"', {"k": 1})]) == 'a,b\n"x,y",\n"""","{""k"": 1}"\n'


def test_one_line():
    assert one_line("  a\n\n  b\x1b  ") == "a b\\x1b"
