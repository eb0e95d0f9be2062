"""Malformed requests by the thousand: each gets a typed error, nothing is written, nothing of others is told.

``python -m datalake_assets_tests.operations.fuzz 5000`` prints how many there were of each kind, with which codes, and
how much memory it took. Requests are made of valid ones, each by a change that no operation may take, so that every
success is a fault.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datalake_assets.operations import MAX_REQUEST_BYTES, Code, Operations
from datalake_assets_tests.operations.conftest import ORDERS, SCHEMA, files_below

__all__ = ["fuzz"]

#: What must never be told to anybody but the tenant whose it is.
SECRET = "the-rival-s-secret"
RIVAL = {"tenant_id": "rival", "namespace": "private", "table": "ledger"}
#: Codes with which a malformed request may be refused.
TYPED = {str(code) for code in Code} - {"INTERNAL", "OUTCOME_UNKNOWN", "UNAVAILABLE", "CONFLICT"}

NAMES = [
    *("../rival", "..", ".", "/", "/etc/passwd", "rival/private", "a/../../rival", "%2e%2e%2frival", "..\\rival"),
    *(
        "rival.private",
        "rival\0",
        "ri\u200bval",
        "\u0440ival",
        "\uff52ival",
        "RIVAL",
        "r\u0131val",
        "ri\u0301val",
        "\u202elavir",
    ),
    *(
        "rival'; DROP TABLE iceberg_tables; --",
        '"rival"',
        "`rival`",
        "rival private",
        "",
        " ",
        "\n",
        "a" * 129,
        "é",
        "1a",
    ),
    *(
        "a-b",
        "$HOME",
        "{{7*7}}",
        "file:///etc/passwd",
        "s3://bucket/x",
        "con:",
        "~root",
        "\ud800",
        "_a",
        "A",
        "null\u0000",
    ),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 2**63, 2**200, 1e308, "", "1", "x" * 10_000, [], {}, [[]], [None], {"a": 1}),
    *({"$ne": 1}, ["rival"], {"__class__": "x"}, [{}] * 50, "\x00", "\ud83d", "{}", "null", [1, "a", None], {"": ""}),
]
SQL = [
    *("INSERT INTO orders VALUES (9, 'x')", "UPDATE orders SET id = 0", "DELETE FROM orders", "DROP VIEW orders"),
    *("CREATE TABLE t AS SELECT 1", "COPY orders TO '{out}'", "COPY (SELECT 1) TO '{out}'", "EXPORT DATABASE '{out}'"),
    *(
        "ATTACH '{out}' AS x",
        "ATTACH '{lake}/tenants/rival/catalog.sqlite' AS x (TYPE sqlite)",
        "INSTALL httpfs",
        "LOAD x",
    ),
    *(
        "SELECT * FROM read_text('{lake}/secret.txt')",
        "SELECT * FROM '{lake}/secret.txt'",
        "SELECT * FROM glob('{lake}/**')",
    ),
    *("SELECT * FROM read_blob('/etc/passwd')", "SELECT * FROM read_csv('/etc/passwd')", "FROM read_json('/x')"),
    *(
        "SELECT * FROM parquet_scan('{lake}/tenants/rival/tables/private/ledger/data/*.parquet')",
        "SELECT * FROM rival.ledger",
    ),
    *(
        "SELECT * FROM read_parquet('{lake}/tenants/rival/**')",
        "SELECT * FROM iceberg_scan('{lake}')",
        "SELECT * FROM ledger",
    ),
    *("SELECT * FROM sqlite_scan('{lake}/tenants/rival/catalog.sqlite', 'iceberg_tables')", "PRAGMA database_list"),
    *(
        "EXPLAIN ANALYZE COPY orders TO '{out}'",
        "WITH a AS (COPY orders TO '{out}') SELECT 1",
        "SELECT 1; DROP VIEW orders",
    ),
    *("SET memory_limit = '1TB'", "SET allowed_paths = ['/']", "RESET enable_external_access", "CALL dbgen(sf = 1)"),
    *(
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM duckdb_settings()",
        "SELECT getenv('HOME')",
        "SELECT",
        ";",
        "--",
        "/*",
    ),
    *(
        "SELECT repeat('x', 3000000000)",
        "SELECT count(*) FROM range(1000000000000)",
        "SELECT '\0",
        'SELECT "',
        "\u202e",
    ),
    *(
        "SELECT list_sum(range(1000000000))",
        "SELECT * FROM no_such_table",
        "SELECT nothing FROM orders",
        "SELECT error('x')",
    ),
    *(
        "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a FROM r) SELECT count(*) FROM r",
        "(" * 5000,
        "SELECT " + "-" * 9000,
    ),
]


def requests_of(lake: Path) -> dict[str, dict[str, Any]]:
    """A valid request of each operation; what is made of them must not be valid."""
    record = {"id": 7, "note": "fuzz"}
    return {
        "CREATE_TABLE": {**ORDERS, "table": "made", "schema": SCHEMA, "partitioning": [{"column": "id"}]},
        "WRITE": {**ORDERS, "records": [record, record], "idempotency_key": "a"},
        "QUERY": {**ORDERS, "sql": "SELECT id FROM orders", "max_rows": 5},
        "COMPACT": {**ORDERS, "target_file_size_mb": 64, "max_files": 10, "partition_filter": {"nowhere": "1"}},
        "DESCRIBE": {**ORDERS},
        "LIST": {"tenant_id": "acme", "namespace": "sales", "limit": 10},
    }


def _wrong_name(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    field = chance.choice([each for each in ("tenant_id", "namespace", "table") if each in request])
    return {**request, field: chance.choice(NAMES)}


def _wrong_value(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    field = chance.choice(
        [each for each in request if each not in {"operation", "note", "namespace", "idempotency_key"}]
    )
    fits = {"partitioning": [[]], "partition_filter": [{}], "if_not_exists": [True, False]}.get(field, [])
    value = chance.choice([each for each in VALUES if each not in fits and not _could_be(field, each)])
    return {**request, field: value}


def _could_be(field: str, value: Any) -> bool:
    """Whether a value would be a valid one of an optional or a free field."""
    is_small = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000
    is_name = isinstance(value, str) and re.fullmatch("[a-z][a-z0-9_]{0,127}", value) is not None
    fits = {
        "limit": is_small,
        "max_rows": is_small,
        "target_file_size_mb": is_small,
        "max_files": is_small,
        "table": is_name,
        "tenant_id": is_name,
    }
    return fits.get(field, field == "sql" and isinstance(value, str) and value != "")


def _unknown_field(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    return {
        **request,
        chance.choice(["tenant", "as_tenant", "Tenant_id", "__proto__", "x" * 500, "\u200b", "where"]): "rival",
    }


def _missing_field(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    needed = [each for each in ("operation", "tenant_id", "table", "records", "schema", "sql") if each in request]
    gone = chance.choice(needed)
    return {name: value for name, value in request.items() if name != gone}


def _other_tenant(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    return {**request, **{name: value for name, value in RIVAL.items() if name in request}}


def _wrong_operation(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    return {
        **request,
        "operation": chance.choice(["write", "DROP_TABLE", "", None, 1, ["WRITE"], {"a": 1}, "WRITE\0", "QUERY "]),
    }


def _wrong_records(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    bad = chance.choice(
        [
            *(
                {"id": "1"},
                {"id": 1.0},
                {"id": 2**63},
                {"id": True},
                {"note": "no id"},
                {"id": 1, "note": 5},
                {"id": 1, "x": 1},
            ),
            *(
                {"id": None},
                {"id": [1]},
                {"id": {"a": 1}},
                {"id": 1, "note": ["a"]},
                {"id": 1, "\ud800": 1},
                {"id": 1, "": ""},
            ),
            *(5, None, "record", [], [{"id": 1}], {"id": 1, "note": "\ud800"}, {"ID": 1}, {"id ": 1}),
        ]
    )
    records = [{"id": 1}] * chance.choice([0, 1, 50]) + [bad]
    return {"operation": "WRITE", **ORDERS, "records": records}


def _deep(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    depth = chance.choice([40, 900, 5000, 100_000])
    opening, closing = chance.choice([("[", "]"), ('{"a":', "}")])
    text = json.dumps({**request, "records": "DEEP"})
    return text.replace('"DEEP"', opening * depth + "1" + closing * depth).encode()


def _huge(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    size = chance.choice([MAX_REQUEST_BYTES, MAX_REQUEST_BYTES + 1, 2 * MAX_REQUEST_BYTES])
    field = chance.choice(["tenant_id", "table", "note"])
    return {**request, field: "x" * size} if chance.random() < 0.5 else {**request, "records": [{}] * 10_001}


def _torn(request: dict[str, Any], chance: random.Random, _: Path) -> Any:
    text = bytearray(json.dumps({**request, "operation": "WRITE", "extra": 1}).encode())
    for _unused in range(chance.randint(1, 4)):
        place = chance.randrange(len(text))
        text[place : place + chance.randint(0, 3)] = bytes(
            chance.randrange(256) for _each in range(chance.randint(0, 3))
        )
    return bytes(text[: chance.randint(0, len(text))])


def _wrong_sql(request: dict[str, Any], chance: random.Random, lake: Path) -> Any:
    sql = chance.choice(SQL).replace("{lake}", str(lake)).replace("{out}", str(lake / "stolen"))
    return {"operation": "QUERY", **ORDERS, "sql": sql, "timeout_s": 1}


#: Ways to spoil a request, and how often each is taken.
SPOIL: dict[Callable[[dict[str, Any], random.Random, Path], Any], int] = {
    _wrong_name: 20,
    _wrong_value: 20,
    _unknown_field: 8,
    _missing_field: 8,
    _other_tenant: 8,
    _wrong_operation: 8,
    _wrong_records: 15,
    _deep: 4,
    _huge: 1,
    _torn: 12,
    _wrong_sql: 4,
}


def fuzz(number: int, *, seed: int, lake: Path) -> tuple[Counter[str], list[str]]:
    """Asks for so many malformed requests as one tenant.

    Returns:
        How often each way of spoiling was answered with each code, and what was wrong with answers.
    """
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    faults: list[str] = []
    (lake / "secret.txt").write_text(SECRET)
    with Operations(str(lake)) as operations:
        for table in (ORDERS, RIVAL):
            assert operations.answer({"operation": "CREATE_TABLE", **table, "schema": SCHEMA}).ok
            assert operations.answer({"operation": "WRITE", **table, "records": [{"id": 1, "note": SECRET}]}).ok
        before = files_below(lake)
        valid = requests_of(lake)
        each_way = list(SPOIL)
        for _ in range(number):
            (spoil,) = each_way[:1] or chance.choices(list(SPOIL), list(SPOIL.values()))
            del each_way[:1]
            operation = chance.choice(list(valid))
            request = spoil({"operation": operation, **valid[operation]}, chance, lake)
            answer = operations.answer(request, tenant_id="acme").to_json()
            code = answer["error"]["code"] if not answer["ok"] else "OK"
            counts[f"{spoil.__name__.strip('_')} {code}"] += 1
            faults += [f"{fault}: {request!r:.300} -> {answer!r:.300}" for fault in _faults(answer, code, lake)]
        if files_below(lake) != before:
            faults.append(f"files changed: {sorted(files_below(lake).items() ^ before.items())}")
    return counts, faults


def _faults(answer: dict[str, Any], code: str, lake: Path) -> list[str]:
    text = json.dumps(answer)
    wrong = {
        "it was done": code == "OK",
        "no typed error": code != "OK" and code not in TYPED,
        "a trace": "Traceback" in text or 'File \\"' in text or ".py" in text,
        "a secret": SECRET in text,
        "where the lake lies": str(lake / "tenants") in text and "read_" not in text and "scan" not in text,
        "longer than what was asked": len(text) > 200_000,
    }
    return [name for name, is_so in wrong.items() if is_so]


def main() -> int:
    """Fuzzes, and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=5000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = fuzz(options.number, seed=options.seed, lake=Path(folder))
    for name, count in sorted(counts.items()):
        print(f"{count:7,} {name}")
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    seconds = time.monotonic() - began
    print(f"{options.number:,} requests in {seconds:.0f} s, {memory_mb} MiB at most, {len(faults)} faults")
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
