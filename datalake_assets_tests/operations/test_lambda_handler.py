"""The write API as a Lambda function, run by Lambda's own runtime client and invoked over HTTP by boto3."""

from __future__ import annotations

import base64
import json

import pytest

from datalake_assets_tests.operations.conftest import ORDERS, SCHEMA
from datalake_assets_tests.operations.lambda_runtime import LambdaFunction

TOKENS = {"acme": "a" * 32, "rival": "r" * 32}


@pytest.fixture(scope="module")
def function(tmp_path_factory):
    """The function over a lake in a folder that it has mounted, with a table of orders."""
    lake = tmp_path_factory.mktemp("lake")
    environment = {"DATALAKE_LAKE": str(lake), "DATALAKE_OPS_TOKENS": json.dumps(TOKENS)}
    with LambdaFunction("datalake_assets.operations.lambda_handler.handler", environment) as running:
        yield running


def version_1(document, *, method="POST", path="/v1/operations", token=TOKENS["acme"], headers=None):
    """What a REST API sends."""
    return {
        "resource": "/{proxy+}",
        "httpMethod": method,
        "path": path,
        "headers": {"Authorization": f"Bearer {token}", **(headers or {})},
        "multiValueHeaders": {"Authorization": [f"Bearer {token}"]},
        "requestContext": {"stage": "prod", "httpMethod": method},
        "body": None if document is None else json.dumps(document),
        "isBase64Encoded": False,
    }


def version_2(document, *, method="POST", path="/v1/operations", token=TOKENS["acme"], headers=None):
    """What an HTTP API sends; of a body that it takes for binary, base64."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": f"/prod{path}",
        "headers": {"authorization": f"Bearer {token}", **(headers or {})},
        "requestContext": {"http": {"method": method, "path": f"/prod{path}"}, "stage": "prod"},
        "body": base64.b64encode(json.dumps(document).encode()).decode(),
        "isBase64Encoded": True,
    }


@pytest.mark.parametrize("event", [version_1, version_2])
def test_operations_are_done_for_events_of_both_formats(function, event):
    table = {**ORDERS, "namespace": event.__name__}
    requests = [
        {"operation": "CREATE_TABLE", **table, "schema": SCHEMA},
        {"operation": "WRITE", **table, "records": [{"id": 1}], "idempotency_key": "a"},
        {"operation": "WRITE", **table, "records": [{"id": 1}], "idempotency_key": "a"},
        {"operation": "QUERY", **table, "sql": "SELECT id FROM orders"},
    ]

    responses = [function.invoke(event(each)) for each in requests]

    assert [(response["statusCode"], failed) for response, failed in responses] == [(200, False)] * 4
    answers = [json.loads(response["body"]) for response, _ in responses]
    assert answers[1] == answers[2]
    assert answers[3]["rows"] == [[1]]


@pytest.mark.parametrize("event", [version_1, version_2])
@pytest.mark.parametrize(
    ("changes", "document", "status"),
    [
        ({"token": "x" * 32}, {"operation": "LIST", "tenant_id": "acme"}, 401),
        ({"token": TOKENS["rival"]}, {"operation": "LIST", "tenant_id": "acme"}, 403),
        ({"path": "/v1/others"}, {"operation": "LIST", "tenant_id": "acme"}, 404),
        ({"method": "GET"}, None, 404),
        ({}, {"operation": "NOTHING"}, 400),
        ({"headers": {"Content-Encoding": "gzip"}}, {"operation": "LIST", "tenant_id": "acme"}, 415),
        ({"headers": {"content-type": "a/b; charset=utf-8"}}, {"operation": "LIST", "tenant_id": "acme"}, 200),
        ({"method": "GET", "path": "/health"}, None, 200),
        ({"method": "GET", "path": "/openapi.json"}, None, 200),
    ],
)
def test_response_has_the_status_of_its_answer(function, event, changes, document, status):
    response, failed = function.invoke(event(document, **changes))

    assert (response["statusCode"], failed) == (status, False)
    assert response["headers"]["content-type"] == "application/json"
    assert isinstance(json.loads(response["body"]), dict)


def test_schedule_compacts_the_tables_of_all_tenants(function):
    table = {**ORDERS, "namespace": "nightly"}
    function.invoke(version_1({"operation": "CREATE_TABLE", **table, "schema": SCHEMA}))
    for number in range(3):
        function.invoke(version_1({"operation": "WRITE", **table, "records": [{"id": number}]}))

    report, failed = function.invoke({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}})

    assert not failed
    assert (report["compacted"], report["failed"]) == (1, [])
    described, _ = function.invoke(version_1({"operation": "DESCRIBE", **table}))
    assert json.loads(described["body"])["files"] == 1


def test_event_of_another_kind_is_an_error_of_the_function(function):
    answer, failed = function.invoke({"Records": []})

    assert failed
    assert answer["errorType"] == "ValueError"
