"""CSV: read back as it was, and nothing that runs."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.wording import csv_lines, spreadsheet_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2)))
def test_csv_lines_is_read_back_as_it_was(rows):
    assert list(csv.reader(io.StringIO(csv_lines(rows), newline=""))) == rows


def test_csv_lines_quotes_a_lone_carriage_return_and_ends_lines_plainly():
    assert csv_lines([("a\rb", 1, None), ("c", -1, "d")]) == '"a\rb",1,\nc,-1,d\n'


@given(st.sampled_from(["", "=", "+", "-", "@", "\t", "\r", "'", "'=", "''@"]), TEXTS)
def test_spreadsheet_text_is_no_formula_and_loses_nothing(start, text):
    cell = spreadsheet_text(start + text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert cell == start + text or cell == f"'{start}{text}"
    # a reader who takes one quote away wherever a formula follows quotes has the text again
    is_marked = cell.startswith("'") and spreadsheet_text(cell) != cell
    assert (cell[1:] if is_marked else cell) == start + text


@pytest.mark.parametrize("text", ["", "plain", "'", "'quoted'", "1-1", " =1", "a=b"])
def test_spreadsheet_text_leaves_other_text_alone(text):
    assert spreadsheet_text(text) == text
