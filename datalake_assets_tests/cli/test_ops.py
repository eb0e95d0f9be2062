"""``datalake ops``: one request in, one answer out."""

from __future__ import annotations

import json

import pytest

REQUEST = {"tenant_id": "acme", "namespace": "sales", "table": "orders"}


def test_ops_answers_a_request_with_a_document(run, lake):
    request = json.dumps({"operation": "CREATE_TABLE", **REQUEST, "schema": [{"name": "id", "type": "long"}]})

    result = run("ops", input=request)

    assert result.exit_code == 0
    assert json.loads(result.stdout)["created"]


def test_ops_exits_with_1_when_the_request_fails_and_says_why_in_the_document(run, lake):
    result = run("ops", input=json.dumps({"operation": "DESCRIBE", **REQUEST}))

    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "TABLE_NOT_FOUND"
    assert result.stderr == ""


def test_ops_compacts_the_tables_of_all_tenants(run, lake):
    run("ops", input=json.dumps({"operation": "CREATE_TABLE", **REQUEST, "schema": [{"name": "id", "type": "long"}]}))
    for number in range(3):
        run("ops", input=json.dumps({"operation": "WRITE", **REQUEST, "records": [{"id": number}]}))

    result = run("ops", "--compact-all")

    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"tables": 1, "compacted": 1, "orphans": 0, "failed": [], "left": 0}


def test_ops_exits_with_1_when_a_table_could_not_be_compacted_and_names_it(run, lake):
    run("ops", input=json.dumps({"operation": "CREATE_TABLE", **REQUEST, "schema": [{"name": "id", "type": "long"}]}))
    for file in lake.rglob("*.metadata.json"):
        file.unlink()

    result = run("ops", "--compact-all")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["failed"] == [{**REQUEST, "code": "UNAVAILABLE"}]


@pytest.mark.s3
def test_ops_refuses_a_lake_in_a_bucket_that_has_no_catalog_with_one_line(run, s3_environment):
    result = run("ops", "--lake", "s3://bucket/lake", input="{}")

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: s3://bucket/lake: a lake in S3 has no place for a catalog's SQLite file, which Iceberg tables have by"
        " default: set DATALAKE_ICEBERG_CATALOG to a REST catalog's URL, or to 'glue'\n"
    )
