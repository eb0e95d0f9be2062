"""The SQL that the demo server understands, and its refusals in ksqlDB's words."""

# ruff: noqa: S608 - statements are what is tested

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.demo.ksqldb_server.generator import Generator, GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_ast import (
    ColumnRef,
    Compare,
    Describe,
    ListSources,
    Projection,
    Select,
    ShowProperties,
)
from datalake_assets.demo.ksqldb_server.ksql_errors import KsqlError
from datalake_assets.demo.ksqldb_server.ksql_parser import parse
from datalake_assets.demo.ksqldb_server.ksql_where import bounds, holds
from datalake_assets.demo.ksqldb_server.stream_data import STREAMS

CONFIG = GeneratorConfig(records=3_000, events_per_day=250)
GENERATOR = Generator(CONFIG)


def select(sql: str) -> Select:
    (statement,) = parse(sql)
    assert isinstance(statement, Select)
    return statement


def test_select_is_parsed_whole() -> None:
    sql = "select user_id AS u, `Mixed``x`, m->City FROM s -- why\n where ROWTIME >= 10 EMIT CHANGES LIMIT 3;"
    found = select(sql)
    assert found.projections == (
        Projection(ColumnRef("USER_ID", line=1, position=8), "U"),
        Projection(ColumnRef("Mixed`x", line=1, position=22), None),
        Projection(ColumnRef("M", ("CITY",), line=1, position=34), None),
    )
    assert (found.source, found.emit_changes, found.limit, found.text) == ("S", True, 3, sql)
    assert found.where == Compare(ColumnRef("ROWTIME", line=2, position=8), ">=", (10,))


def test_statements_of_one_text_are_told_apart() -> None:
    found = parse("LIST STREAMS; show tables extended;\nDESCRIBE `x` EXTENDED; SHOW PROPERTIES;")
    assert found == [
        ListSources(tables=False, extended=False, text="LIST STREAMS;"),
        ListSources(tables=True, extended=True, text="show tables extended;"),
        Describe("x", extended=True, text="DESCRIBE `x` EXTENDED;"),
        ShowProperties("SHOW PROPERTIES;"),
    ]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            "CREATE STREAM s AS SELECT * FROM t;",
            "line 1:1: Syntax Error\nCREATE is not served: this server's streams and tables are generated",
        ),
        ("XYZZY;", "line 1:1: Syntax Error\nUnknown statement 'XYZZY'"),
        ("SELEC * FROM s;", "line 1:1: Syntax Error\nUnknown statement 'SELEC'\nDid you mean 'SELECT'?"),
        ("SELECT * FROM s", "line 1:16: Syntax Error\nmissing ';' at '<EOF>'"),
        ("SELECT * FRM s;", "line 1:10: Syntax Error\nSyntax error at or near 'FRM' at line 1:10"),
        ("SELECT a FROM s\nWHERE a ! 3;", "line 2:9: Syntax Error\nSyntax error at or near '!' at line 2:9"),
        ("SELECT a FROM s WHERE a;", "line 1:24: Syntax Error\nSyntax error at or near ';' at line 1:24"),
        (
            "SELECT a FROM s WHERE (a = 1;",
            "line 1:29: Syntax Error\nSyntax error at or near \";\"\n'}', ']', or ')' is missing",
        ),
        ("SELECT a FROM s LIMIT x;", "line 1:23: Syntax Error\nSyntax error at or near 'x' at line 1:23"),
        ("SELECT from FROM s;", "line 1:8: Syntax Error\nSyntax error at or near 'from' at line 1:8"),
        ("SELECT a, FROM s;", "line 1:11: Syntax Error\nSyntax error at or near 'FROM' at line 1:11"),
    ],
)
def test_bad_sql_is_refused_with_its_place(sql: str, message: str) -> None:
    with pytest.raises(KsqlError) as refusal:
        parse(sql)
    assert (refusal.value.status, refusal.value.code, refusal.value.statement) == (400, 40001, sql)
    assert refusal.value.message == message


def rows_where(stream: str, condition: str) -> list[int]:
    found = select(f"SELECT * FROM {stream} WHERE {condition} EMIT CHANGES;")
    block = GENERATOR.block(stream, np.arange(3_000))

    def column(ref: ColumnRef):
        spec = STREAMS[stream].column(ref.name)
        assert spec is not None
        made = spec.make(block)
        for name in ref.path:
            made = made.struct_field(name)  # type: ignore[attr-defined]
        return made

    assert found.where is not None
    return np.flatnonzero(holds(found.where, column, found.text)).tolist()


USER_1, USER_2 = 9007199254741915, 9007199254741159
QUOTED = ("back\\slash\\", 'she said "hi"')


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (f"USER_ID = {USER_1}", lambda row: row["USER_ID"] == USER_1),
        (f"USER_ID IN ({USER_1}, {USER_2})", lambda row: row["USER_ID"] in {USER_1, USER_2}),
        (
            "NOT (STATUS = 'APPROVED' OR AMOUNT <= 10.5)",
            lambda row: row["STATUS"] != "APPROVED" and (row["AMOUNT"] or 0) > Decimal("10.5"),
        ),
        ("AMOUNT BETWEEN -5 AND 5", lambda row: row["AMOUNT"] is not None and -5 <= row["AMOUNT"] <= 5),
        ("MEMO IS NULL AND CARD_PRESENT = TRUE", lambda row: row["MEMO"] is None and row["CARD_PRESENT"] is True),
        ("NOT CARD_PRESENT = TRUE", lambda row: row["CARD_PRESENT"] is False),
        (f"MEMO = '{QUOTED[0]}' OR MEMO = '{QUOTED[1]}'", lambda row: row["MEMO"] in QUOTED),
        ("MEMO NOT IN ('lunch', '')", lambda row: row["MEMO"] not in {None, "lunch", ""}),
        ("0.99 < RISK_SCORE", lambda row: row["RISK_SCORE"] > 0.99),
        (
            "EVENT_TIME >= '2025-01-05' AND EVENT_TIME < '2025-01-05T12:30:00.250'",
            lambda row: "2025-01-05T00" <= row["EVENT_TIME"].isoformat() < "2025-01-05T12:30:00.250",
        ),
        (
            "ROWTIME < '2025-01-02T01:00:00.000+01:00'",
            lambda row: row["ROWTIME"].isoformat() < "2025-01-02",
        ),
        ("MERCHANT_ID > 10370", lambda row: row["MERCHANT_ID"] > 10370),
    ],
)
def test_condition_selects_what_python_would(condition: str, expected) -> None:
    rows = GENERATOR.rows("TRANSACTION_FLATTENED")
    wanted = [index for index, row in enumerate(rows) if expected(row)]
    assert wanted
    assert rows_where("TRANSACTION_FLATTENED", condition) == wanted


def test_struct_fields_can_be_compared() -> None:
    condition = "MERCHANT->MERCHANT_ID = 10000 AND MERCHANT->MEMBER_SINCE < '2019-02'"
    rows = GENERATOR.rows("TRANSACTION_STREAM")
    assert rows_where("TRANSACTION_STREAM", condition) == [
        index for index, row in enumerate(rows) if row["MERCHANT"]["MERCHANT_ID"] == 10_000
    ]


ATOMS = st.one_of(
    st.builds("ROWPARTITION = {}".format, st.integers(0, 4)),
    st.builds("ROWOFFSET {} {}".format, st.sampled_from(["=", "<", "<=", ">", ">=", "!="]), st.integers(-1, 800)),
    st.builds(
        "ROWTIME {} {}".format,
        st.sampled_from(["=", "<", "<=", ">", ">="]),
        st.integers(CONFIG.start_ms - 10, CONFIG.start_ms + 13 * 86_400_000),
    ),
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("({} AND {})".format, inner, inner),
        st.builds("({} OR {})".format, inner, inner),
        st.builds("NOT {}".format, inner),
    ),
    max_leaves=6,
)


@given(CONDITIONS)
def test_bounds_lose_no_row(condition: str) -> None:
    low, high = bounds(select(f"SELECT * FROM s WHERE {condition} EMIT CHANGES;").where, CONFIG)
    selected = rows_where("TRANSACTION_ALERTS", condition)
    assert all(low <= index < high for index in selected)


def test_bounds_are_narrow_for_a_resumed_read_and_for_a_day() -> None:
    resumed = "(ROWPARTITION = 0 AND ROWOFFSET >= 500) OR (ROWPARTITION = 1 AND ROWOFFSET > 498)"
    assert bounds(select(f"SELECT * FROM s WHERE {resumed};").where, CONFIG)[0] == 1_992
    starts = [500, 498, 700, 600]
    each = [f"(ROWPARTITION <> {number} OR ROWOFFSET >= {start})" for number, start in enumerate(starts)]
    whole = bounds(select(f"SELECT * FROM s WHERE {' AND '.join(each)};").where, CONFIG)
    assert (CONFIG.partitions, whole[0]) == (4, 498 * 4 + 1)
    assert bounds(select(f"SELECT * FROM s WHERE {' AND '.join(each[1:])};").where, CONFIG)[0] == 0
    day = "ROWTIME >= '2025-01-03' AND ROWTIME < '2025-01-04'"
    assert bounds(select(f"SELECT * FROM s WHERE {day};").where, CONFIG) == (500, 1_063)
