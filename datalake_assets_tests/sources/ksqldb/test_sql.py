"""The SQL that is sent."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.partitions import TimeWindow
from datalake_assets.sources.ksqldb.reading import position_of
from datalake_assets.sources.ksqldb.statements import at_or_after, before, epoch_ms, in_window, quoted, select

NUMBERING = ("P", "O")


def test_names_are_quoted_but_for_pseudo_columns() -> None:
    assert [quoted(name) for name in ("A", "a b", "x`y", "ROWTIME", "rowtime", "WINDOWSTART")] == [
        "`A`",
        "`a b`",
        "`x``y`",
        "ROWTIME",
        "`rowtime`",
        "WINDOWSTART",
    ]


def test_select_joins_conditions() -> None:
    assert select(["*"], "S") == "SELECT * FROM `S`;"
    assert select(["A", "ROWTIME"], "S", where=["", "x", "", "y"]) == "SELECT `A`, ROWTIME FROM `S` WHERE x AND y;"
    assert select(["A"], "S", where=["x"], push=True) == "SELECT `A` FROM `S` WHERE x EMIT CHANGES;"


def test_positions_bound_known_partitions_only() -> None:
    assert at_or_after(NUMBERING, {}, nullable=False) == ""
    assert at_or_after(NUMBERING, {1: 5, 0: 2}, nullable=False) == "(`P` <> 0 OR `O` >= 2) AND (`P` <> 1 OR `O` >= 5)"
    assert at_or_after(NUMBERING, {0: 2}, nullable=True) == "(`P` IS NULL OR `O` IS NULL OR `P` <> 0 OR `O` >= 2)"
    assert before(NUMBERING, {1: 5, 0: 2}) == "((`P` = 0 AND `O` < 2) OR (`P` = 1 AND `O` < 5))"


def test_window_has_no_condition_when_there_is_none() -> None:
    assert in_window("ROWTIME", None, as_text=False) == ""


@given(st.datetimes(dt.datetime(1600, 1, 1), dt.datetime(9000, 1, 1), timezones=st.just(dt.UTC)))  # noqa: DTZ001
def test_epoch_ms_is_the_first_millisecond_not_before(time: dt.datetime) -> None:
    milliseconds = epoch_ms(time)
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=milliseconds)
    assert time <= moment < time + dt.timedelta(milliseconds=1)


def test_window_of_another_zone_is_written_in_utc() -> None:
    zone = dt.timezone(dt.timedelta(hours=2))
    window = TimeWindow(dt.datetime(2025, 1, 1, 2, tzinfo=zone), dt.datetime(2025, 1, 2, 2, tzinfo=zone))
    assert in_window("T", window, as_text=True) == (
        "(`T` >= '2025-01-01T00:00:00.000' AND `T` < '2025-01-02T00:00:00.000' OR `T` IS NULL)"
    )


@pytest.mark.parametrize(
    ("raw", "position"),
    [
        (b'{"row":{"columns":["x",3,7]}}', (3, 7)),
        (b'["x",3,9223372036854775807]', (3, 2**63 - 1)),
        (b'["x","y",3,7]', None),
        (b'{"row":{"columns":["\xff",3,7]}}', None),
        (b'{"row":{"columns":["x",3,"7"]}}', None),
        (b'{"row":{"columns":["x",true,7]}}', None),
        (b'{"row":{"columns":["x",-1,7]}}', None),
        (b'{"row":{"columns":["x",3,9223372036854775808]}}', None),
        (b'{"row":{"columns":[7]}}', None),
        (b'{"row":{}}', None),
        (b"}{", None),
        (b"null", None),
    ],
)
def test_position_of_a_bad_row_is_made_out(raw: bytes, position: tuple[int, int] | None) -> None:
    assert position_of(raw, 3) == position


@given(st.binary())
def test_position_of_anything_is_a_position_or_nothing(raw: bytes) -> None:
    position = position_of(raw, 3)
    assert position is None or (0 <= position[0] < 2**31 and 0 <= position[1] < 2**63)
