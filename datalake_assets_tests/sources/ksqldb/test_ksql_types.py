from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.sources.ksqldb.sql_types import (
    Column,
    KsqlArray,
    KsqlDecimal,
    KsqlMap,
    KsqlScalar,
    KsqlSchemaError,
    KsqlStruct,
    parse_columns,
    parse_delimited_columns,
    parse_type,
)

STRING, INTEGER, BYTES = KsqlScalar("STRING"), KsqlScalar("INTEGER"), KsqlScalar("BYTES")


def test_parse_columns_reads_the_header_of_the_wire_document():
    text = "`ID` INTEGER KEY, `D` DECIMAL(4, 2), `A` ARRAY<STRING>, `M` MAP<STRING, INTEGER>, `S` STRUCT<`F1` STRING>"
    assert parse_columns(text) == (
        Column("ID", INTEGER, key=True),
        Column("D", KsqlDecimal(4, 2)),
        Column("A", KsqlArray(STRING)),
        Column("M", KsqlMap(STRING, INTEGER)),
        Column("S", KsqlStruct((("F1", STRING),))),
    )


def test_parse_columns_reads_header_columns():
    entries = KsqlArray(KsqlStruct((("KEY", STRING), ("VALUE", BYTES))))
    assert parse_columns("`H` ARRAY<STRUCT<`KEY` STRING, `VALUE` BYTES>> HEADERS, `V` BYTES HEADER('it''s')") == (
        Column("H", entries, header=True),
        Column("V", BYTES, header=True),
    )


def test_parse_columns_reads_nothing_from_an_empty_text():
    assert parse_columns(" ") == ()


@pytest.mark.parametrize(
    "name", ["BOOLEAN", "INTEGER", "BIGINT", "DOUBLE", "STRING", "BYTES", "TIMESTAMP", "DATE", "TIME"]
)
def test_parse_type_reads_every_scalar(name):
    assert parse_type(name) == KsqlScalar(name)


@pytest.mark.parametrize(("alias", "name"), [("INT", "INTEGER"), ("VARCHAR", "STRING"), ("bigint", "BIGINT")])
def test_parse_type_resolves_aliases(alias, name):
    assert parse_type(alias) == KsqlScalar(name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("`a` FOO", "near 'FOO': expected a type"),
        ("`a", "near '`a': expected a name"),
        ("`a` DECIMAL(4)", "near ')': expected ','"),
        ("`a` INT,", "at its end: expected a column name"),
        ("`a` INT INT", "near 'INT': expected ',' or the end"),
        ("`a` ARRAY<INT", "at its end: expected '>'"),
        ("`a` MAP<INT>", "near '>': expected ','"),
        ("`a` BYTES HEADER(abc)", "near 'abc)': expected the header's name"),
        ("`a` DECIMAL(x, 2)", "near 'x, 2)': expected a number"),
        ("`a` %", "expected a name, a type or punctuation"),
    ],
)
def test_parse_columns_says_where_it_stopped(text, complaint):
    with pytest.raises(KsqlSchemaError) as caught:
        parse_columns(text)
    assert complaint in str(caught.value)
    assert caught.value.text == text


def test_parse_delimited_columns_takes_names_raw():
    assert parse_delimited_columns(["a`b", "S"], ["BIGINT", "STRUCT<`x``y` STRING>"]) == (
        Column("a`b", KsqlScalar("BIGINT")),
        Column("S", KsqlStruct((("x`y", STRING),))),
    )


def test_parse_delimited_columns_refuses_lists_of_different_length():
    with pytest.raises(KsqlSchemaError, match="2 types, found 1"):
        parse_delimited_columns(["A", "B"], ["BIGINT"])


names = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=8)
scalars = st.sampled_from(["BOOLEAN", "INTEGER", "BIGINT", "DOUBLE", "STRING", "BYTES", "TIMESTAMP", "DATE", "TIME"])
types = st.recursive(
    st.one_of(scalars.map(KsqlScalar), st.builds(KsqlDecimal, st.integers(1, 60), st.integers(0, 60))),
    lambda inner: st.one_of(
        st.builds(KsqlArray, inner),
        st.builds(KsqlMap, inner, inner),
        st.lists(st.tuples(names, inner), max_size=3).map(tuple).map(KsqlStruct),
    ),
    max_leaves=8,
)


@given(st.lists(st.tuples(names, types, st.sampled_from(["", " KEY", " HEADERS", " HEADER('k')"])), max_size=5))
def test_parse_columns_reads_back_every_type_that_can_be_written(specified):
    text = ", ".join(f"`{name.replace('`', '``')}` {kind}{suffix}" for name, kind, suffix in specified)
    assert parse_columns(text) == tuple(
        Column(name, kind, suffix == " KEY", suffix.startswith(" HEADER")) for name, kind, suffix in specified
    )


@given(st.text(alphabet="`'<>(), AINTKEYMPSRUC12", max_size=30))
def test_parse_columns_never_fails_otherwise_than_as_documented(text):
    with contextlib.suppress(KsqlSchemaError):
        parse_columns(text)
