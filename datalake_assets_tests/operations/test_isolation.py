"""No input lets a tenant see, name or reach what is another's."""

from __future__ import annotations

import pytest

from datalake_assets_tests.operations.conftest import SCHEMA, files_below

SECRET = {"tenant_id": "rival", "namespace": "private", "table": "ledger"}
#: Ways to write one tenant's name from within another's.
NAMES = [
    *("../rival", "acme/../rival", "/rival", "rival/", "rival\0", "RIVAL", "\uff52ival", "rival\u200b", "ri\u0301val"),
    *("..", ".", "", "rival.private", '"rival"', "rival'--", "a" * 129, "%2e%2e", "..%2frival", "rival\n"),
]


@pytest.fixture
def rival(ask):
    """Another tenant's table, which has rows."""
    ask("CREATE_TABLE", **SECRET, schema=SCHEMA)
    ask("WRITE", **SECRET, records=[{"id": 42, "note": "theirs"}])
    return SECRET


def test_tables_of_one_name_are_apart(ask, rival):
    ours = {**rival, "tenant_id": "acme"}

    assert ask("DESCRIBE", **ours)["error"]["code"] == "TABLE_NOT_FOUND"
    ask("CREATE_TABLE", **ours, schema=SCHEMA)
    ask("WRITE", **ours, records=[{"id": 1}])

    assert ask("DESCRIBE", **ours)["records"] == 1
    assert ask("DESCRIBE", **rival)["records"] == 1
    assert ask("LIST", tenant_id="acme")["tables"] == [{"namespace": "private", "table": "ledger"}]


@pytest.mark.parametrize("name", NAMES)
def test_no_spelling_of_a_name_reaches_another_tenant(ask, rival, lake, name):
    before = files_below(lake)
    answers = [
        ask("DESCRIBE", **{**rival, "tenant_id": name}),
        ask("DESCRIBE", **{**rival, "tenant_id": "acme", "namespace": name}),
        ask("DESCRIBE", **{**rival, "tenant_id": "acme", "table": name}),
        ask("WRITE", **{**rival, "tenant_id": "acme", "table": name}, records=[{"id": 1}]),
        ask("LIST", tenant_id="acme", namespace=name),
        ask("LIST", tenant_id=name),
    ]

    assert {each["error"]["code"] for each in answers} == {"INVALID_REQUEST"}
    assert "theirs" not in str(answers)
    assert files_below(lake) == before


def test_request_for_another_tenant_than_the_one_that_asks_is_refused_alike_whether_it_exists(operations, rival):
    asked = [
        operations.answer({"operation": "DESCRIBE", **rival, "tenant_id": name}, tenant_id="acme").to_json()
        for name in ("rival", "nobody_at_all")
    ]

    assert asked[0] == asked[1]
    assert asked[0]["error"]["code"] == "FORBIDDEN"


def test_asking_for_a_tenant_that_there_is_not_leaves_nothing(ask, lake):
    assert ask("LIST", tenant_id="nobody")["tables"] == []
    assert ask("HEALTH", tenant_id="nobody")["ok"]
    assert list(lake.iterdir()) == []


def test_damaged_catalog_of_one_tenant_is_unavailable_and_harms_no_other(ask, rival, lake):
    ask("CREATE_TABLE", **{**rival, "tenant_id": "acme"}, schema=SCHEMA)
    (lake / "tenants" / "rival" / "catalog.sqlite").write_bytes(b"not a database" * 100)

    broken = ask("DESCRIBE", **rival)

    assert (broken["error"]["code"], broken["error"]["retryable"]) == ("UNAVAILABLE", True)
    assert str(lake) not in str(broken)
    assert ask("DESCRIBE", **{**rival, "tenant_id": "acme"})["ok"]
