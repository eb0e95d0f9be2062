"""What the demo server sends, byte for byte, against the literals of ksqlDB's own tests."""

# ruff: noqa: S608 - statements are what is tested

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import httpx
import pytest

from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.demo.ksqldb_server.ksql_types import encode_json
from datalake_assets.demo.ksqldb_server.stream_data import STREAMS
from datalake_assets_tests.demo.ksqldb_server.wire import CONFIG, DELIMITED, EARLIEST, V1_JSON, ask, without_id

TWO = "SELECT TRANSACTION_ID, USER_ID FROM TRANSACTION_STREAM WHERE ROWTIME >= 0{} LIMIT 2;"
TWO_ROWS = (b'"tx-000000000000",9007199254741915', b'"tx-000000000001",9007199254741159')
HEADER = b'[{"header":{"queryId":"X","schema":"`TRANSACTION_ID` STRING, `USER_ID` BIGINT"}},\n'


def test_rows_are_those_that_the_generator_knows(server: KsqlServer) -> None:
    rows = list(server.generator.rows("TRANSACTION_STREAM"))[:2]
    assert [f'"{row["TRANSACTION_ID"]}",{row["USER_ID"]}'.encode() for row in rows] == list(TWO_ROWS)


def test_push_query_with_limit_ends_with_limit_reached(client: httpx.Client) -> None:
    answer = ask(client, TWO.format(" EMIT CHANGES"))
    rows = b"".join(b'{"row":{"columns":[' + row + b"]}},\n" for row in TWO_ROWS)
    assert without_id(answer.content) == HEADER + rows + b'{"finalMessage":"Limit Reached"}]'
    assert (answer.status_code, answer.headers["content-type"]) == (200, V1_JSON)


def test_stream_pull_ends_with_query_completed(client: httpx.Client) -> None:
    answer = ask(client, "SELECT TRANSACTION_ID, USER_ID FROM TRANSACTION_STREAM WHERE USER_ID = 9007199254741915;")
    assert re.search(rb'"queryId":"transient_TRANSACTION_STREAM_\d+"', answer.content)
    body = without_id(answer.content)
    assert body.startswith(HEADER + b'{"row":{"columns":[' + TWO_ROWS[0] + b"]}},\n")
    assert body.endswith(b'},\n{"finalMessage":"Query Completed"}]')
    assert json.loads(body)


def test_stream_pull_of_no_rows_is_header_and_completion(client: httpx.Client) -> None:
    answer = ask(client, "SELECT TRANSACTION_ID, USER_ID FROM TRANSACTION_STREAM WHERE USER_ID = 1;")
    assert without_id(answer.content) == HEADER + b'{"finalMessage":"Query Completed"}]'


def test_table_pull_marks_keys_and_has_no_final_message(client: httpx.Client) -> None:
    sql = "SELECT TXN_COUNT, USER_ID FROM USER_TRANSACTION_SUMMARY WHERE USER_ID = 9007199254741915;"
    answer = ask(client, sql)
    assert re.fullmatch(
        rb'\[{"header":{"queryId":"query_\d+","schema":"`TXN_COUNT` BIGINT, `USER_ID` BIGINT KEY"}},\n'
        rb'{"row":{"columns":\[\d+,9007199254741915\]}}\]',
        answer.content,
    )


def test_table_pull_of_no_rows_is_a_header(client: httpx.Client) -> None:
    answer = ask(client, "SELECT USER_ID FROM FRAUD_SCORES WHERE USER_ID = 1;")
    assert without_id(answer.content) == b'[{"header":{"queryId":"X","schema":"`USER_ID` BIGINT KEY"}}]'


def test_delimited_answer_is_lines_without_an_end(client: httpx.Client) -> None:
    answer = ask(client, TWO.format(""), DELIMITED)
    header = b'{"queryId":"X","columnNames":["TRANSACTION_ID","USER_ID"],"columnTypes":["STRING","BIGINT"]}\n'
    assert without_id(answer.content) == header + b"".join(b"[" + row + b"]\n" for row in TWO_ROWS)
    assert answer.headers["content-type"] == DELIMITED


def test_json_answer_is_one_array(client: httpx.Client) -> None:
    answer = ask(client, TWO.format(""), "application/json")
    header = b'[{"queryId":"X","columnNames":["TRANSACTION_ID","USER_ID"],"columnTypes":["STRING","BIGINT"]}'
    assert without_id(answer.content) == header + b"".join(b",[" + row + b"]" for row in TWO_ROWS) + b"]"
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("accept", "query_stream", "query"),
    [
        (None, DELIMITED, V1_JSON),
        ("*/*", DELIMITED, DELIMITED),
        ("application/json", "application/json", V1_JSON),
        (V1_JSON, V1_JSON, V1_JSON),
        (DELIMITED, DELIMITED, DELIMITED),
        (f"text/html;q=0.9, {V1_JSON};q=0.8, */*;q=0.1", V1_JSON, V1_JSON),
        ("text/html", None, None),
    ],
)
def test_format_is_negotiated(client: httpx.Client, accept: str | None, query_stream: str, query: str) -> None:
    headers = {} if accept is None else {"accept": accept}
    sql = TWO.format("")
    new = client.post("/query-stream", json={"sql": sql}, headers=headers)
    old = client.post("/query", json={"ksql": sql, "streamsProperties": {}}, headers=headers)
    assert (new.headers.get("content-type"), old.headers.get("content-type")) == (query_stream, query)
    assert {new.status_code, old.status_code} == {406 if query is None else 200}


@pytest.mark.parametrize("stream", STREAMS)
def test_every_row_and_type_arrives_exactly(server: KsqlServer, client: httpx.Client, stream: str) -> None:
    columns = STREAMS[stream].columns
    names = ", ".join(f"`{column.name}`" for column in columns)
    sql = f"SELECT ROWTIME, ROWPARTITION, ROWOFFSET, {names} FROM {stream} EMIT CHANGES LIMIT 1000;"
    lines = ask(client, sql).content.split(b"\n")
    schema = json.loads(lines[0].lstrip(b"[").rstrip(b","))["header"]["schema"]
    listed = ", ".join(f"`{column.name}` {column.kind}" for column in columns)
    assert schema == f"`ROWTIME` BIGINT, `ROWPARTITION` INTEGER, `ROWOFFSET` BIGINT, {listed}"
    expected = []
    for row in server.generator.rows(stream):
        place = [str(int(row["ROWTIME"].timestamp() * 1000)), str(row["ROWPARTITION"]), str(row["ROWOFFSET"])]
        values = [*place, *(encode_json(row[column.name], column.kind) for column in columns)]
        expected.append(f'{{"row":{{"columns":[{",".join(values)}]}}}},'.encode())
    assert lines[1:-1] == expected


def test_derived_columns_are_ordinary_ones_in_pull_queries(client: httpx.Client) -> None:
    rows = ask(client, "SELECT SRC_PART, SRC_OFF FROM TRANSACTION_FLATTENED WHERE SRC_OFF > 247;").content
    places = [b"%d,%d" % (partition, offset) for offset in (248, 249) for partition in range(4)]
    assert re.findall(rb"\[(\d,\d+)\]", rows) == places


def test_positions_of_each_partition_select_a_resumed_read(client: httpx.Client) -> None:
    where = "(ROWPARTITION = 0 AND ROWOFFSET >= 248) OR (`ROWPARTITION` = 3 AND ROWOFFSET >= 249)"
    sql = f"SELECT ROWPARTITION, ROWOFFSET FROM TRANSACTION_STREAM WHERE {where} EMIT CHANGES LIMIT 3;"
    assert re.findall(rb"\[(\d,\d+)\]", ask(client, sql).content) == [b"0,248", b"0,249", b"3,249"]


def test_properties_choose_where_a_push_query_begins(client: httpx.Client) -> None:
    sql = "SELECT ROWOFFSET FROM TRANSACTION_STREAM EMIT CHANGES LIMIT 1;"
    body = {"sql": sql, "properties": {"ksql.streams.auto.offset.reset": "earliest"}, "unknown": 1}
    assert b"Limit Reached" in client.post("/query-stream", json=body, headers={"accept": V1_JSON}).content
    refused = ask(client, sql, **{"auto.offset.reset": "soon"})
    assert refused.status_code == 400
    assert "auto.offset.reset" in refused.json()["message"]


def test_push_query_stays_open_and_silent_until_it_is_closed(server: KsqlServer, client: httpx.Client) -> None:
    body = {"sql": "SELECT ROWOFFSET FROM USER_EVENTS EMIT CHANGES;", "properties": EARLIEST}
    with (
        httpx.Client(base_url=server.url) as other,
        client.stream("POST", "/query-stream", json=body, headers={"accept": V1_JSON}) as answer,
    ):
        received = b""
        parts = answer.iter_bytes()
        while received.count(b"\n") < 1_001:
            received += next(parts)
        # a live row is a whole line at once: the separator does not wait for the next row
        assert received.endswith(b'{"row":{"columns":[249]}},\n')
        header = json.loads(received.split(b",\n")[0][1:])["header"]
        closed = other.post("/close-query", json={"queryId": header["queryId"]})
        assert (closed.status_code, closed.content) == (200, b"")
        assert b"".join(parts) == b'{"finalMessage":"Query Completed"}]'


def test_table_pull_cannot_be_closed(client: httpx.Client) -> None:
    answer = ask(client, "SELECT USER_ID FROM FRAUD_SCORES LIMIT 1;")
    query_id = json.loads(answer.content)[0]["header"]["queryId"]
    assert client.post("/close-query", json={"queryId": query_id}).status_code == 400


def test_tables_add_up_what_the_streams_send(client: httpx.Client) -> None:
    def rows(sql: str) -> list[list[Any]]:
        return [
            item["row"]["columns"]
            for item in json.loads(ask(client, sql).content, parse_float=Decimal)
            if "row" in item
        ]

    counts: dict[int, int] = {}
    sums: dict[int, Decimal] = {}
    for user, amount in rows("SELECT USER_ID, AMOUNT FROM TRANSACTION_STREAM;"):
        counts[user] = counts.get(user, 0) + 1
        sums[user] = sums.get(user, Decimal(0)) + (amount or 0)
    table = rows("SELECT USER_ID, TXN_COUNT, TOTAL_AMOUNT FROM USER_TRANSACTION_SUMMARY;")
    assert {user: count for user, count, _ in table} == counts
    assert {user: total for user, _, total in table} == sums


def test_servers_agree_and_restarts_change_nothing() -> None:
    sql = "SELECT * FROM USER_EVENTS;"
    bodies = []
    for _ in range(2):
        with KsqlServer(CONFIG) as server, httpx.Client(base_url=server.url) as client:
            bodies.append(without_id(ask(client, sql).content))
    assert bodies[0] == bodies[1]


def test_growing_stream_goes_on_as_time_does() -> None:
    now = [CONFIG.start.timestamp()]
    config = GeneratorConfig(events_per_day=24)
    body = {
        "sql": "SELECT ROWPARTITION, ROWOFFSET FROM TRANSACTION_ALERTS EMIT CHANGES LIMIT 3;",
        "properties": EARLIEST,
    }
    with KsqlServer(config, clock=lambda: now[0]) as server, httpx.Client(base_url=server.url) as client:
        with client.stream("POST", "/query-stream", json=body, headers={"accept": V1_JSON}) as answer:
            parts = answer.iter_bytes()
            received = b""
            while b"[0,0]" not in received:
                received += next(parts)
            now[0] += 2 * 3600
            received += b"".join(parts)
        assert re.findall(rb"\[(\d,\d)\]", received) == [b"0,0", b"1,0", b"2,0"]
        assert ask(client, "SELECT ALERT_ID FROM TRANSACTION_ALERTS;").content.count(b"al-") == 3


def test_push_query_from_latest_sends_only_what_comes_later() -> None:
    now = [CONFIG.start.timestamp()]
    config = GeneratorConfig(events_per_day=24)
    sql = "SELECT ROWPARTITION, ROWOFFSET FROM TRANSACTION_ALERTS EMIT CHANGES LIMIT 1;"
    with (
        KsqlServer(config, clock=lambda: now[0]) as server,
        httpx.stream("POST", f"{server.url}/query-stream", json={"sql": sql}, headers={"accept": V1_JSON}) as answer,
    ):
        parts = answer.iter_bytes()
        received = next(parts)
        now[0] += 3600
        received += b"".join(parts)
        assert re.findall(rb"\[(\d,\d)\]", received) == [b"1,0"]


def test_push_query_on_a_table_sends_the_rows_that_change() -> None:
    now = [CONFIG.start.timestamp()]
    config = GeneratorConfig(events_per_day=24)
    sql = "SELECT USER_ID, TXN_COUNT FROM USER_TRANSACTION_SUMMARY EMIT CHANGES LIMIT 2;"
    with (
        KsqlServer(config, clock=lambda: now[0]) as server,
        httpx.Client(base_url=server.url) as client,
        client.stream(
            "POST", "/query-stream", json={"sql": sql, "properties": EARLIEST}, headers={"accept": V1_JSON}
        ) as answer,
    ):
        parts = answer.iter_bytes()
        received = b""
        while b"9007199254741915,1]" not in received:
            received += next(parts)
        now[0] += 3600
        received += b"".join(parts)
    assert b"KEY" not in received
    assert received.endswith(b'{"row":{"columns":[9007199254741159,1]}},\n{"finalMessage":"Limit Reached"}]')


def test_expired_rows_are_no_longer_sent() -> None:
    with KsqlServer(GeneratorConfig(records=1_000, retention_rows=3)) as server:
        answer = httpx.post(
            f"{server.url}/query-stream",
            json={
                "sql": "SELECT ROWPARTITION, ROWOFFSET FROM USER_EVENTS EMIT CHANGES LIMIT 3;",
                "properties": EARLIEST,
            },
            headers={"accept": V1_JSON},
        )
    assert re.findall(rb"\[(\d,\d+)\]", answer.content) == [b"1,249", b"2,249", b"3,249"]
