"""What the demo server does wrong when it is told to, and that it recovers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from datalake_assets.demo.ksqldb_server.faults import Fault, Faults, parse_fault
from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_errors import InvalidOption
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets_tests.processes.warm_processes import FORKED

V1_JSON = "application/vnd.ksql.v1+json"
PULL = "SELECT ALERT_ID, SEVERITY FROM TRANSACTION_ALERTS;"
TABLE = "SELECT USER_ID FROM FRAUD_SCORES;"
FAILURE = b'{"@type":"generic_error","error_code":50000,"message":"java.lang.RuntimeException: Failure in processing"}'
COMPLETE = b'{"finalMessage":"Query Completed"}]'


@pytest.fixture(scope="module")
def server() -> Iterator[KsqlServer]:
    with KsqlServer(GeneratorConfig(records=9_000, events_per_day=900)) as running:
        yield running


@pytest.fixture(params=[1, 2])
def client(server: KsqlServer, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    server.faults.clear()
    with httpx.Client(base_url=server.url, http1=request.param == 1, http2=request.param == 2, timeout=60) as made:
        yield made


def ask(client: httpx.Client, sql: str, accept: str = V1_JSON) -> httpx.Response:
    body = {"sql": sql, "properties": {"auto.offset.reset": "earliest"}}
    return client.post("/query-stream", json=body, headers={"accept": accept})


def rows_of(answer: httpx.Response) -> int:
    return answer.content.count(b'{"row":')


def assert_recovered(client: httpx.Client) -> None:
    answer = ask(client, PULL)
    assert (rows_of(answer), answer.content[-len(COMPLETE) :]) == (9_000, COMPLETE)


@pytest.mark.parametrize("after", [0, 1, 8_192, 8_500])
def test_error_comes_mid_stream_after_status_200(server: KsqlServer, client: httpx.Client, after: int) -> None:
    server.faults.set("error_after_rows", after, source="TRANSACTION_ALERTS")
    answer = ask(client, PULL)
    assert (answer.status_code, rows_of(answer)) == (200, after)
    assert answer.content.endswith(b'{"errorMessage":' + FAILURE + b"},\n]")
    assert_recovered(client)


def test_error_looks_otherwise_in_other_formats(server: KsqlServer, client: httpx.Client) -> None:
    server.faults.set("error_after_rows", 3, times=3)
    assert ask(client, PULL, "application/vnd.ksqlapi.delimited.v1").content.endswith(b"]\n" + FAILURE + b"\n")
    assert ask(client, PULL, "application/json").content.endswith(b"]," + FAILURE + b"]")
    table = ask(client, TABLE)
    assert table.content.endswith(b'}},\n{"errorMessage":' + FAILURE + b"}]")
    assert rows_of(table) == 3


@pytest.mark.parametrize("after", [0, 100, 8_500])
def test_connection_is_cut_after_the_rows_were_sent(server: KsqlServer, client: httpx.Client, after: int) -> None:
    server.faults.set("drop_after_rows", after, source="TRANSACTION_ALERTS")
    received = bytearray()

    def read() -> None:
        with client.stream("POST", "/query-stream", json={"sql": PULL}, headers={"accept": V1_JSON}) as answer:
            for part in answer.iter_bytes():
                received.extend(part)

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    assert received.count(b'{"row":') == after
    assert_recovered(client)


@pytest.mark.parametrize("kept", [0, 1, 2_000])
def test_table_is_truncated_but_well_formed(server: KsqlServer, client: httpx.Client, kept: int) -> None:
    whole = json.loads(ask(client, TABLE).content)
    server.faults.set("truncate_table_rows", kept, source="FRAUD_SCORES")
    cut = json.loads(ask(client, TABLE).content)
    assert cut[1:] == whole[1 : kept + 1]
    assert json.loads(ask(client, TABLE).content)[1:] == whole[1:]


def test_streams_are_not_truncated_with_the_tables(server: KsqlServer, client: httpx.Client) -> None:
    server.faults.set("truncate_table_rows", 1)
    assert_recovered(client)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (429, 42900, "Host is at rate limit for pull queries. Currently set to 1.0 qps."),
        (
            500,
            50000,
            (
                "The server encountered an internal error when processing the query. "
                "Please consult the server logs for more information."
            ),
        ),
        (503, 50302, "Server initializing"),
    ],
)
def test_status_is_answered_for_the_next_requests(
    server: KsqlServer, client: httpx.Client, status: int, code: int, message: str
) -> None:
    server.faults.set("status", status, times=2)
    for answer in (client.post("/ksql", json={"ksql": "LIST STREAMS;"}), ask(client, PULL)):
        assert answer.status_code == status
        assert answer.json() == {"@type": "generic_error", "error_code": code, "message": message}
    assert_recovered(client)


def test_status_may_befall_one_object_only(server: KsqlServer, client: httpx.Client) -> None:
    server.faults.set("status", 503, source="FRAUD_SCORES")
    assert_recovered(client)
    assert ask(client, TABLE).status_code == 503
    assert ask(client, TABLE).status_code == 200


def test_rows_come_slowly_but_completely(server: KsqlServer, client: httpx.Client) -> None:
    server.faults.set("slow_rows", 1)
    assert_recovered(client)
    server.faults.clear()
    assert_recovered(client)


@pytest.mark.parametrize("at", [0, 8_300])
def test_row_is_no_json(server: KsqlServer, client: httpx.Client, at: int) -> None:
    server.faults.set("garbage_row", at)
    lines = ask(client, PULL).content.split(b"\n")
    assert lines[at + 1] == b'{"row":{"columns":[tru,'
    assert len(lines) == 9_002
    assert_recovered(client)


def test_row_has_the_wrong_number_of_columns(server: KsqlServer, client: httpx.Client) -> None:
    server.faults.set("short_row", 7)
    lines = ask(client, PULL).content.split(b"\n")
    assert lines[8] == b'{"row":{"columns":[]}},'
    assert_recovered(client)


def test_tombstone_is_in_streamed_rows_only(server: KsqlServer, client: httpx.Client) -> None:
    server.faults.set("tombstone_row", 1, times=2)
    sql = "SELECT USER_ID, ALERT_COUNT FROM FRAUD_SCORES EMIT CHANGES LIMIT 3;"
    answer = ask(client, sql)
    deleted, again = answer.content.split(b"\n")[2:4]
    assert deleted == b'{"row":{"columns":[9007199254740995,null],"tombstone":true}},'
    assert again == b'{"row":{"columns":[9007199254740995,4]}},'
    assert rows_of(answer) == 4
    assert b"null" not in ask(client, sql, "application/json").content


@pytest.mark.parametrize(
    ("change", "ending"),
    [
        ("add", "`MAX_SEVERITY` INTEGER, `ADDED_COLUMN` STRING"),
        ("drop", "`MAX_SCORE` DOUBLE"),
        ("rename", "`MAX_SEVERITY_RENAMED` INTEGER"),
        ("retype", "`MAX_SEVERITY` BOOLEAN"),
    ],
)
def test_schema_changes_until_told_otherwise(
    server: KsqlServer, client: httpx.Client, change: str, ending: str
) -> None:
    server.faults.set("schema_change", change, source="FRAUD_SCORES")
    for _ in range(2):
        header, *rows = json.loads(ask(client, "SELECT * FROM FRAUD_SCORES LIMIT 5;").content)
        assert header["header"]["schema"].endswith(ending)
        columns = header["header"]["schema"].count("`") // 2
        assert {len(row["row"]["columns"]) for row in rows} == {columns}
    (described,) = client.post("/ksql", json={"ksql": "DESCRIBE FRAUD_SCORES;"}).json()
    assert len(described["sourceDescription"]["fields"]) == columns
    server.faults.clear()
    assert ask(client, "SELECT MAX_SEVERITY FROM FRAUD_SCORES;").status_code == 200


def test_schema_of_a_stream_changes_too(server: KsqlServer, client: httpx.Client) -> None:
    server.faults.set("schema_change", "add", source="USER_EVENTS")
    answer = ask(client, "SELECT EVENT_ID, ADDED_COLUMN FROM USER_EVENTS LIMIT 5;")
    assert len(re.findall(rb'\[\d+,"added"\]', answer.content)) == 5


def test_final_message_is_missing(server: KsqlServer, client: httpx.Client) -> None:
    server.faults.set("no_final_message")
    answer = ask(client, PULL)
    assert answer.content.endswith(b"},\n]")
    assert rows_of(answer) == 9_000
    assert_recovered(client)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("drop_after_rows=100:TRANSACTION_STREAM", Fault("drop_after_rows", 100, "TRANSACTION_STREAM", 1)),
        ("status=503:*:3", Fault("status", 503, None, 3)),
        ("no_final_message", Fault("no_final_message", 0, None, 1)),
        ("garbage_row=7:S:*", Fault("garbage_row", 7, "S", None)),
        ("slow_rows=5", Fault("slow_rows", 5, None, None)),
        ("schema_change=add:S", Fault("schema_change", "add", "S", None)),
        ("schema_change=drop:S:2", Fault("schema_change", "drop", "S", 2)),
    ],
)
def test_fault_is_read_from_text(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("explode=1", "fault 'explode' is unknown; choose one of drop_after_rows, "),
        ("status=high", "has a value or times that is no number; write kind=value:object:times"),
        ("status=-1", "fault status=-1 needs a number that is not negative"),
        ("status=503:S:x", "has a value or times that is no number"),
        ("status=503:S:1:2", "has too many parts"),
        ("schema_change=grow", "schema_change='grow' is unknown; choose one of add, drop, rename, retype"),
    ],
)
def test_fault_is_refused_when_it_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(message)):
        parse_fault(text)


def test_faults_are_used_up_in_order() -> None:
    faults = Faults([Fault("status", 500, "A"), Fault("status", 503, times=2)])
    assert [faults.take("status", name) for name in ("B", "A", "A", "A")] == [503, 500, 503, None]
    faults.set("status", 429, source="A", times=2)
    faults.clear()
    assert faults.take("status", "A") is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground_server_says_where_it_is_and_stops_cleanly(number: signal.Signals) -> None:
    code = (
        "from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer\n"
        "from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig\n"
        "KsqlServer(GeneratorConfig(records=5)).serve_forever(lambda url: print(url, flush=True))\n"
        "print('stopped', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", FORKED + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/info").status_code == 200
        os.kill(process.pid, number)
        assert process.stdout.read() == "stopped\n"
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0
