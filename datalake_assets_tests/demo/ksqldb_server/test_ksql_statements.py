"""What the demo server answers that is no rows: errors, listings, descriptions, byte for byte."""

# ruff: noqa: S608 - statements are what is tested

from __future__ import annotations

import httpx
import pytest

from datalake_assets_tests.demo.ksqldb_server.wire import V1_JSON, ask

HELP = " See https://cnfl.io/queries for more info.\nAdd EMIT CHANGES if you intended to issue a push query."
BAD_STATEMENTS = [
    ("SELECT * FROM NOPE;", "NOPE does not exist."),
    (
        "SELECT * FROM `transaction_stream`;",
        (
            "transaction_stream does not exist.\n"
            "Did you mean TRANSACTION_STREAM? Hint: try removing double quotes from the source name."
        ),
    ),
    ("SELECT NOPE FROM USER_EVENTS;", "Line: 1, Col: 8: SELECT column 'NOPE' cannot be resolved."),
    (
        "SELECT * FROM USER_EVENTS WHERE\n X.USER_ID = 1;",
        "Line: 2, Col: 2: WHERE column 'USER_ID' cannot be resolved.",
    ),
    (
        "SELECT * FROM USERS;",
        (
            "The `USERS` table isn't queryable. To derive a queryable table, you can do "
            "'CREATE TABLE QUERYABLE_USERS AS SELECT * FROM USERS'." + HELP
        ),
    ),
    (
        "SELECT ROWOFFSET, ROWPARTITION FROM USER_EVENTS;",
        "Pull queries don't support the following columns in SELECT clauses: `ROWOFFSET`, `ROWPARTITION`\n" + HELP,
    ),
    (
        "SELECT * FROM FRAUD_SCORES WHERE ROWOFFSET > 1;",
        "Pull queries don't support the following columns in WHERE clauses: `ROWOFFSET`\n" + HELP,
    ),
    (
        "SELECT * FROM USER_EVENTS WHERE USER_ID = 'x';",
        "Cannot compare USER_ID (BIGINT) to 'x' (STRING) with EQUAL.",
    ),
    ("LIST STREAMS;", "Only queries and PRINT statements are supported on this endpoint"),
    (
        "SELECT * FROM USERS; SELECT * FROM USERS;",
        "Expected exactly one KSQL statement; found 2 instead",
    ),
    ("SELECT *", "line 1:9: Syntax Error\nSyntax error at or near '<EOF>' at line 1:9"),
]


@pytest.mark.parametrize(("sql", "message"), BAD_STATEMENTS)
def test_bad_statement_is_refused_without_a_content_type(client: httpx.Client, sql: str, message: str) -> None:
    answer = ask(client, sql)
    assert (answer.status_code, answer.headers.get("content-type")) == (400, None)
    error = {"@type": "statement_error", "error_code": 40001, "message": message, "statementText": sql, "entities": []}
    assert answer.json() == error
    assert list(answer.json()) == list(error)


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "message"),
    [
        ("/query-stream", b"{", 400, 40000, "Invalid JSON in request: "),
        ("/query-stream", b"[]", 400, 40000, "Invalid JSON in request: "),
        ("/query-stream", b'{"ksql":"x;"}', 400, 40000, "Invalid JSON in request: "),
        ("/query", b'{"sql":"x;"}', 400, 40000, "Invalid JSON in request: "),
        ("/ksql", b'{"ksql":7}', 400, 40000, "Invalid JSON in request: "),
        ("/query-stream", b'{"sql":"x;","properties":[1]}', 400, 40000, "Invalid JSON in request: "),
        (
            "/query-stream",
            b'{"sql":"x;","properties":{"ksql.service.id":"x"}}',
            400,
            40000,
            "Cannot override property 'ksql.service.id'",
        ),
        (
            "/query-stream",
            b'{"sql":"x;","properties":{"ksql.query.pull.table.scan.enabled":"true"}}',
            500,
            50000,
            (
                "The server encountered an internal error when processing the query. "
                "Please consult the server logs for more information."
            ),
        ),
        ("/close-query", b'{"queryId":"Q"}', 400, 40000, "No query with id Q"),
    ],
)
def test_bad_request_is_a_generic_error(
    client: httpx.Client, path: str, body: bytes, status: int, *, code: int, message: str
) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == status
    error = answer.json()
    assert (error["@type"], error["error_code"], list(error)) == (
        "generic_error",
        code,
        ["@type", "error_code", "message"],
    )
    assert error["message"].startswith(message)


def test_select_sent_to_ksql_is_refused(client: httpx.Client) -> None:
    answer = client.post("/ksql", json={"ksql": "SELECT * FROM USERS;"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert (answer.json()["@type"], answer.json()["error_code"]) == ("statement_error", 40002)


def test_sources_are_listed(client: httpx.Client) -> None:
    answer = client.post("/ksql", json={"ksql": "LIST STREAMS;"}, headers={"accept": V1_JSON})
    assert answer.headers["content-type"] == "application/json"
    first = (
        b'[{"@type":"streams","statementText":"LIST STREAMS;","streams":[{"type":"STREAM","name":"TRANSACTION_STREAM",'
        b'"topic":"transaction_stream","keyFormat":"KAFKA","valueFormat":"JSON","isWindowed":false},'
    )
    assert answer.content.startswith(first)
    assert answer.content.endswith(b'],"warnings":[]}]')
    (tables,) = client.post("/ksql", json={"ksql": "SHOW TABLES;"}).json()
    names = [table["name"] for table in tables["tables"]]
    assert names == ["USER_TRANSACTION_SUMMARY", "MERCHANT_SUMMARY", "ACCOUNT_BALANCES", "FRAUD_SCORES", "USERS"]
    assert {table["type"] for table in tables["tables"]} == {"TABLE"}


def test_source_is_described(client: httpx.Client) -> None:
    (answer,) = client.post("/ksql", json={"ksql": "DESCRIBE TRANSACTION_STREAM;"}).json()
    assert (answer["@type"], answer["warnings"]) == ("sourceDescription", [])
    described = answer["sourceDescription"]
    expected = (
        "name windowType readQueries writeQueries fields type timestamp statistics errorStats extended keyFormat "
        "valueFormat topic partitions replication statement queryOffsetSummaries sourceConstraints clusterStatistics "
        "clusterErrorStats"
    )
    assert list(described) == expected.split()
    key, user, *_ = described["fields"]
    string = {"type": "STRING", "fields": None, "memberSchema": None}
    assert key == {"name": "TRANSACTION_ID", "schema": string, "type": "KEY"}
    assert user == {"name": "USER_ID", "schema": {"type": "BIGINT", "fields": None, "memberSchema": None}}
    amount = next(field for field in described["fields"] if field["name"] == "AMOUNT")
    assert amount["schema"]["parameters"] == {"precision": 18, "scale": 2}
    merchant = next(field for field in described["fields"] if field["name"] == "MERCHANT")
    assert merchant["schema"]["fields"][1] == {"name": "NAME", "schema": string}
    (unknown,) = (client.post("/ksql", json={"ksql": "DESCRIBE NOPE;"}).json(),)
    assert unknown["message"] == "Could not find STREAM/TABLE 'NOPE' in the Metastore"


def test_extended_description_of_a_derived_object_shows_its_inputs_offsets(client: httpx.Client) -> None:
    (answer,) = client.post("/ksql", json={"ksql": "LIST STREAMS EXTENDED;"}).json()
    assert answer["@type"] == "source_descriptions"
    raw, flat, *_ = answer["sourceDescriptions"]
    assert (raw["queryOffsetSummaries"], raw["writeQueries"]) == ([], [])
    assert flat["writeQueries"][0]["sinks"] == ["TRANSACTION_FLATTENED"]
    (topic,) = flat["queryOffsetSummaries"][0]["topicSummaries"]
    assert topic["kafkaTopic"] == raw["topic"]
    assert topic["offsets"][0] == {"partition": 0, "logStartOffset": 0, "logEndOffset": 250, "consumerOffset": 250}


def test_properties_are_shown(client: httpx.Client) -> None:
    (answer,) = client.post("/ksql", json={"ksql": "SHOW PROPERTIES;"}).json()
    assert list(answer["properties"][0]) == ["name", "scope", "value", "editable", "level"]
    assert (answer["overwrittenProperties"], answer["defaultProperties"]) == ([], [])


@pytest.mark.parametrize(
    ("method", "path", "status", "content_type", "body"),
    [
        ("GET", "/", 307, None, b""),
        ("GET", "/nowhere", 404, None, b"Not Found"),
        ("GET", "/query-stream", 404, None, b"Not Found"),
        ("GET", "/clusterStatus", 404, None, b"Not Found"),
        ("GET", "/status", 200, "application/json", b'{"commandStatuses":{}}'),
        (
            "GET",
            "/status/stream/S/create",
            404,
            "application/json",
            b'{"@type":"generic_error","error_code":40400,"message":"Command not found"}',
        ),
        (
            "GET",
            "/info?x=1",
            200,
            "application/json",
            (
                b'{"KsqlServerInfo":{"version":"0.29.0","kafkaClusterId":"datalake-demo",'
                b'"ksqlServiceId":"datalake_demo_","serverStatus":"RUNNING"}}'
            ),
        ),
        (
            "GET",
            "/healthcheck",
            200,
            "application/json",
            (
                b'{"isHealthy":true,"details":{"metastore":{"isHealthy":true},"kafka":{"isHealthy":true},'
                b'"commandRunner":{"isHealthy":true}},"serverState":"READY"}'
            ),
        ),
    ],
)
def test_fixed_endpoint_answers(
    client: httpx.Client, method: str, path: str, status: int, *, content_type: str | None, body: bytes
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers.get("content-type"), answer.content) == (status, content_type, body)
    assert answer.headers.get("location") == ("/info" if path == "/" else None)
