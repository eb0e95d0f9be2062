"""Answers that a well server never gives, or gives rarely: what is complete, what is not, and what rows become."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest

from datalake_assets.core.batches import ReadRequest
from datalake_assets.core.partitions import TimeWindow
from datalake_assets.errors import IncompleteResponse, InvalidFeed, SchemaChanged, SourceRefused
from datalake_assets.sources.ksqldb.columns import SOURCE_KEY
from datalake_assets.sources.ksqldb.failures import ATTEMPTS
from datalake_assets.sources.ksqldb.source import KsqlDB
from datalake_assets_tests.sources.ksqldb.answers import ALL, HEADER, TABLE, feed, landed, serving, sql_of, values
from datalake_assets_tests.sources.ksqldb.scripted_server import STREAMED, Answer, description, document, rows

pytestmark = pytest.mark.usefixtures("no_waits")


def test_stream_pull_lands_rowtime_last() -> None:
    with serving(rows(HEADER, [1, "a", 1_736_899_200_000])) as server:
        batches = landed(server, feed())
    assert batches[0].rows.schema.names == ["id", "t", "rowtime"]
    assert batches[0].rows.schema.field("rowtime").type == pa.timestamp("ms", "UTC")
    assert values(batches) == [{"id": 1, "t": "a", "rowtime": dt.datetime(2025, 1, 15, tzinfo=dt.UTC)}]
    assert sql_of(server) == ["SELECT `ID`, `T`, ROWTIME FROM `S`;"]


def test_line_separators_inside_strings_are_data() -> None:
    text = "a\u2028b\u0085c\u2029d"
    with serving(rows(HEADER, [1, text, 0], [2, "x", 0])) as server:
        assert [row["t"] for row in values(landed(server, feed()))] == [text, "x"]


def test_chunk_boundaries_mean_nothing() -> None:
    whole = b"".join(rows(HEADER, [1, "ä", 0], [2, "b", 0]).body)
    with serving(Answer([whole[i : i + 1] for i in range(len(whole))], content_type=STREAMED)) as server:
        assert [row["t"] for row in values(landed(server, feed()))] == ["ä", "b"]


def test_window_is_asked_for_in_the_rows_own_time() -> None:
    window = TimeWindow(dt.datetime(2025, 1, 15, tzinfo=dt.UTC), dt.datetime(2025, 1, 16, tzinfo=dt.UTC))
    with serving(rows(HEADER)) as server:
        landed(server, feed(), ReadRequest(window=window))
    assert sql_of(server) == [
        "SELECT `ID`, `T`, ROWTIME FROM `S` WHERE ROWTIME >= 1736899200000 AND ROWTIME < 1736985600000;"
    ]


@pytest.mark.parametrize(
    ("kind", "literals"),
    [
        ("TIMESTAMP", ("'2025-01-15T00:00:00.000'", "'2025-01-16T00:00:00.000'")),
        ("BIGINT", ("1736899200000", "1736985600000")),
    ],
)
def test_window_is_asked_for_in_the_time_column(kind: str, literals: tuple[str, str]) -> None:
    window = TimeWindow(dt.datetime(2025, 1, 15, tzinfo=dt.UTC), dt.datetime(2025, 1, 16, tzinfo=dt.UTC))
    value = "2025-01-15T10:00:00.000" if kind == "TIMESTAMP" else 1_736_935_200_000
    with serving(rows(f"`At` {kind}", [value], [None]), described=description("S", At=kind)) as server:
        batches = landed(server, feed(time_column="at"), ReadRequest(window=window))
    start, end = literals
    within = f"`At` >= {start} AND `At` < {end}"
    assert sql_of(server) == [f"SELECT `At` FROM `S` WHERE ({within} OR `At` IS NULL);"]  # noqa: S608
    assert values(batches) == [{"at": dt.datetime(2025, 1, 15, 10, tzinfo=dt.UTC)}, {"at": None}]


def test_time_column_must_exist() -> None:
    with serving(rows(HEADER)) as server, pytest.raises(InvalidFeed, match="time_column 'at' is no column of S: id, t"):
        landed(server, feed(time_column="at"))


def test_time_column_must_be_a_time() -> None:
    answer = rows("`ID` INTEGER, `T` STRING")
    with serving(answer) as server, pytest.raises(InvalidFeed, match="'t' is string; it must be a TIMESTAMP"):
        landed(server, feed(time_column="t"))


def test_columns_are_renamed() -> None:
    with serving(rows(HEADER, [1, "a", 0])) as server:
        batches = landed(server, feed(rename={"T": "text", "ROWTIME": "arrived"}))
    assert batches[0].rows.schema.names == ["id", "text", "arrived"]


@pytest.mark.parametrize(
    "end",
    [
        b"]",
        b'{"finalMessage":"Query Completed"}',
        b'{"finalMessage":"Limit Reached"}]',
        b"",
        b'{"row":{"colu',
        b'{"errorMessage":{"@type":"generic_error","error_code":50000,"message":"boom"}}]',
    ],
)
def test_stream_pull_without_a_proper_end_is_incomplete(end: bytes) -> None:
    with serving(rows(HEADER, [1, "a", 0], end=end)) as server, pytest.raises(IncompleteResponse) as raised:
        landed(server, feed())
    assert raised.value.source == f"{server.url} S"


def test_broken_answer_is_asked_for_again_before_rows_were_used() -> None:
    good, bad = rows(HEADER, [1, "a", 0]), rows(HEADER, [1, "a", 0], end=b"")
    answers = iter([bad, bad, good])
    with serving(lambda _: next(answers)) as server:
        assert len(values(landed(server, feed()))) == 1
    assert len(sql_of(server)) == 3


def test_broken_answer_is_not_asked_for_again_after_rows_were_used() -> None:
    text = "x" * 1000
    many = [[number, text, 0] for number in range(10_000)]  # more than one block
    with serving(rows(HEADER, *many, end=b"")) as server:
        source = KsqlDB(server.url)
        batches = iter(source.read(feed(), ALL))
        assert next(batches).rows.num_rows > 0
        with pytest.raises(IncompleteResponse, match="broke off"):
            list(batches)
        source.close()
    assert len(sql_of(server)) == 1


def test_retries_are_bounded() -> None:
    with serving(rows(HEADER, end=b"")) as server, pytest.raises(IncompleteResponse):
        landed(server, feed())
    assert len(sql_of(server)) == ATTEMPTS


def test_table_is_complete_with_its_closing_bracket() -> None:
    with serving(rows("`ID` INTEGER KEY, `N` BIGINT", [1, 2], end=b"]"), described=TABLE) as server:
        batches = landed(server, feed("table"))
        assert values(batches) == [{"id": 1, "n": 2}]
    assert sql_of(server) == ["SELECT * FROM `S`;"]
    assert batches[0].source_offsets is None
    keys = [field.name for field in batches[0].rows.schema if SOURCE_KEY in field.metadata]
    assert keys == ["id"]


def test_stream_pull_that_is_given_up_is_ended_at_the_server() -> None:
    with serving(rows(HEADER, [1, "a", 0])) as server:
        source = KsqlDB(server.url)
        assert source.read(feed(), ALL).schema.names == ["id", "t", "rowtime"]
        source.check(feed())
        source.close()
    assert server.paths().count("/close-query") == 2


def test_empty_table_has_a_schema_and_no_batches() -> None:
    answer = Answer([b'[{"header":{"queryId":"q","schema":"`ID` INTEGER KEY"}}]'], content_type=STREAMED)
    with serving(answer, described=TABLE) as server:
        source = KsqlDB(server.url)
        batches = source.read(feed("table"), ALL)
        assert batches.schema.names == ["id"]
        assert batches.time_column is None
        assert list(batches) == []
        source.close()
    assert len(sql_of(server)) == 1  # the schema's query served the iteration


@pytest.mark.parametrize("end", [b"", b'{"errorMessage":{"error_code":50000,"message":"boom"}}]'])
def test_table_without_a_proper_end_is_incomplete(end: bytes) -> None:
    with serving(rows("`ID` INTEGER KEY", [1], end=end), described=TABLE) as server, pytest.raises(IncompleteResponse):
        landed(server, feed("table"))


def test_columns_that_changed_after_the_schema_was_read_are_refused() -> None:
    answers = iter([rows("`ID` INTEGER KEY", end=b"]"), rows("`ID` BIGINT KEY", end=b"]")])
    with serving(lambda _: next(answers), described=TABLE) as server:
        source = KsqlDB(server.url)
        batches = source.read(feed("table"), ALL)
        assert list(batches) == []
        with pytest.raises(SchemaChanged, match="changed while it was being read"):
            list(batches)
        source.close()


def test_source_table_with_header_columns_is_refused() -> None:
    fields = [
        {"name": "K", "schema": {"type": "INTEGER"}, "type": "KEY"},
        {"name": "H", "schema": {"type": "BYTES"}, "type": "HEADER", "headerKey": "abc"},
    ]
    entity = {"name": "S", "type": "TABLE", "fields": fields, "statement": "CREATE SOURCE TABLE S (…);"}
    described = document([{"@type": "sourceDescription", "sourceDescription": entity}])
    with serving(rows("`K` INTEGER KEY"), described=described) as server:
        with pytest.raises(SourceRefused, match="columns from record headers"):
            landed(server, feed("table"))
        assert sql_of(server) == []


def test_feed_of_the_wrong_kind_is_refused() -> None:
    with serving(rows(HEADER)) as server, pytest.raises(SourceRefused, match="it is a stream, not a table"):
        landed(server, feed("table"))


@pytest.mark.parametrize(("mode", "columns"), [("pull", None), ("offsets", ("A", "B"))])
def test_stream_pull_from_an_old_server_is_refused(mode: str, columns: tuple[str, str] | None) -> None:
    with serving(rows(HEADER), version="0.24.0") as server:
        with pytest.raises(SourceRefused, match=r"ksqlDB 0.24.0 ends pull .* upgrade to 0.25.1"):
            landed(server, feed(mode=mode, offset_columns=columns))
        assert sql_of(server) == []


def test_table_from_an_old_server_is_read_over_query() -> None:
    answer = rows("`ID` INTEGER KEY", [1], end=b"\n]")  # such servers ended `},\n]`
    with serving(answer, described=TABLE, version="0.23.1") as server:
        assert values(landed(server, feed("table"))) == [{"id": 1}]
    assert server.paths()[-1] == "/query"


def test_rejected_row_of_a_table_is_known_by_its_text() -> None:
    answer = rows("`ID` INTEGER KEY", [1], ["one"], [3], end=b"]")
    with serving(answer, described=TABLE) as server:
        [batch] = landed(server, feed("table"))
    assert [row.position.split("@")[0] for row in batch.rejected] == ["line:2"]
    assert batch.rows.to_pylist() == [{"id": 1}, {"id": 3}]
