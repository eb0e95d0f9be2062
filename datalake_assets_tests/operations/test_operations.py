"""What each operation promises: its answer, its errors by code, and what a reader finds afterwards."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from operator import itemgetter

import numpy as np
import pytest
from pyiceberg import types
from pyiceberg.catalog.sql import SqlCatalog
from sqlalchemy.exc import OperationalError

from datalake_assets.errors import ConfigError
from datalake_assets.operations import MAX_REQUEST_BYTES, Operations
from datalake_assets.operations.admission import RequestRefused, checked_request
from datalake_assets.settings import Environment
from datalake_assets_tests.operations.conftest import ORDERS, SCHEMA, files_below


def code(answer):
    return answer["error"]["code"]


def test_create_table_makes_an_iceberg_table_that_other_engines_read(ask, stored):
    schema = [
        {"name": "at", "type": "timestamptz", "required": True, "doc": "when"},
        {"name": "tags", "type": "list<string>"},
        {"name": "amount", "type": "decimal(10,2)"},
    ]
    partitioning = [{"column": "at", "transform": "day"}, {"column": "amount", "transform": "bucket", "parameter": 4}]

    answer = ask("CREATE_TABLE", **ORDERS, schema=schema, partitioning=partitioning)

    assert answer["created"]
    assert [(each["name"], each["type"]) for each in answer["schema"]] == [
        ("at", "timestamptz"),
        ("tags", "list<string>"),
        ("amount", "decimal(10, 2)"),
    ]
    assert answer["partitioning"] == [
        {"name": "at_day", "column": "at", "transform": "day"},
        {"name": "amount_bucket", "column": "amount", "transform": "bucket", "parameter": 4},
    ]
    table = stored()
    assert [str(each.field_type) for each in table.schema().fields] == ["timestamptz", "list<string>", "decimal(10, 2)"]
    assert [str(each.transform) for each in table.spec().fields] == ["day", "bucket[4]"]
    assert table.schema().find_field("at").doc == "when"


def test_create_table_is_refused_where_there_is_one(ask, orders, lake):
    before = files_below(lake)

    answer = ask("CREATE_TABLE", **orders, schema=[{"name": "other", "type": "int"}])

    assert code(answer) == "TABLE_EXISTS"
    assert files_below(lake) == before


def test_create_table_if_not_exists_answers_with_the_table_that_there_is(ask, orders):
    answer = ask("CREATE_TABLE", **orders, schema=[{"name": "other", "type": "int"}], if_not_exists=True)

    assert not answer["created"]
    assert [each["name"] for each in answer["schema"]] == ["id", "note"]


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"schema": []}, "schema"),
        ({"schema": [{"name": "a", "type": "text"}]}, "schema.0.type"),
        ({"schema": [{"name": "a", "type": "decimal(39,2)"}]}, "schema.0.type"),
        ({"schema": [{"name": "a", "type": "list<uuid>"}]}, "schema.0.type"),
        ({"schema": [{"name": "a b", "type": "int"}]}, "schema.0.name"),
        ({"schema": [{"name": "a", "type": "int"}, {"name": "a", "type": "long"}]}, ""),
        ({"partitioning": [{"column": "nowhere"}]}, ""),
        ({"partitioning": [{"column": "note", "transform": "day"}]}, ""),
        ({"partitioning": [{"column": "id", "transform": "bucket"}]}, "partitioning.0"),
        ({"namespace": "Sales"}, "namespace"),
        ({"table": "orders\n"}, "table"),
        ({"tenant_id": "../acme"}, "tenant_id"),
        ({"tenant_id": "аcme"}, "tenant_id"),  # noqa: RUF001  a Cyrillic letter, on purpose
        ({"surprise": 1}, "surprise"),
        ({"if_not_exists": 1}, "if_not_exists"),
    ],
)
def test_request_that_is_not_valid_is_refused_by_its_field(ask, lake, changed, field):
    answer = ask(**{"operation": "CREATE_TABLE", **ORDERS, "schema": SCHEMA, **changed})

    assert code(answer) == "INVALID_REQUEST"
    assert answer["error"]["details"]["problems"][0]["field"] == field
    assert files_below(lake) == {}


@pytest.mark.parametrize(
    ("kind", "field", "reason"),
    [
        ("uuid", {}, "has no transform 'identity'"),
        ("time", {"transform": "bucket", "parameter": 4}, "has no transform 'bucket'"),
        ("timestamp", {"transform": "day"}, "partition field 'v_day' would have the name of a column"),
    ],
)
def test_create_table_refuses_what_could_not_be_written_to(ask, lake, kind, field, reason):
    schema = [{"name": "v", "type": kind}, {"name": "v_day", "type": "string"}]

    answer = ask("CREATE_TABLE", **ORDERS, schema=schema, partitioning=[{"column": "v", **field}])

    assert code(answer) == "INVALID_REQUEST"
    assert reason in answer["error"]["message"]
    assert files_below(lake) == {}


EVERY_TYPE = {
    "boolean": (True, True),
    "int": (-(2**31), -(2**31)),
    "long": (2**63 - 1, 2**63 - 1),
    "float": (0.5, 0.5),
    "double": (1, 1.0),
    "decimal(38, 10)": (
        "-1234567890123456789012345678.0123456789",
        Decimal("-1234567890123456789012345678.0123456789"),
    ),
    "string": ("grüße\0", "grüße\0"),
    "binary": ("AP8=", b"\x00\xff"),
    "date": ("2024-02-29", date(2024, 2, 29)),
    "time": ("23:59:59.999999", time(23, 59, 59, 999999)),
    "timestamp": ("1969-12-31T23:59:59.000001", datetime(1969, 12, 31, 23, 59, 59, 1)),  # noqa: DTZ001  without a zone, on purpose
    "timestamptz": ("2026-01-31T00:30:00+02:00", datetime(2026, 1, 30, 22, 30, tzinfo=UTC)),
    "uuid": ("123E4567-e89b-12d3-a456-426614174000", uuid.UUID("123e4567-e89b-12d3-a456-426614174000")),
    "list<int>": ([1, None, 3], [1, None, 3]),
    "list<decimal(3, 1)>": (["1.5"], [Decimal("1.5")]),
}


def test_write_keeps_every_type_exactly(ask, stored):
    names = {kind: f"c{number}" for number, kind in enumerate(EVERY_TYPE)}
    ask("CREATE_TABLE", **ORDERS, schema=[{"name": name, "type": kind} for kind, name in names.items()])
    record = {names[kind]: value for kind, (value, _) in EVERY_TYPE.items()}

    answer = ask("WRITE", **ORDERS, records=[record, {}])

    assert answer["records_written"] == 2
    whole, empty = stored().scan().to_arrow().to_pylist()
    assert whole == {names[kind]: expected for kind, (_, expected) in EVERY_TYPE.items()}
    assert set(empty.values()) == {None}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("float", "16777217"),
        ("float", "16777217.0"),
        ("float", "1e-46"),
        ("float", "3.14159265358979"),
        ("list<float>", "[16777217]"),
        ("double", "123456789012345678901"),
        ("double", '1, "v": 2'),
    ],
)
def test_write_refuses_a_number_that_its_column_would_change(operations, ask, lake, kind, value):
    ask("CREATE_TABLE", **ORDERS, schema=[{"name": "v", "type": kind}])
    before = files_below(lake)
    head = json.dumps({"operation": "WRITE", **ORDERS}).removesuffix("}")

    answer = operations.answer(f'{head}, "records": [{{"v": {value}}}]}}').to_json()

    assert code(answer) in {"INVALID_RECORDS", "INVALID_REQUEST"}
    assert files_below(lake) == before


def test_write_keeps_the_digits_of_floats_and_of_integers_beyond_64_bits(operations, ask, stored):
    schema = [
        {"name": "f", "type": "list<float>"},
        {"name": "d", "type": "double"},
        {"name": "c", "type": "decimal(38, 0)"},
    ]
    ask("CREATE_TABLE", **ORDERS, schema=schema)
    records = [{"f": [0.1, 16777216, 1e-45, 3.4028234663852886e38], "d": 10**22, "c": 10**25 + 1}]
    request = {"operation": "WRITE", **ORDERS, "records": records, "idempotency_key": "a"}

    first, again = operations.answer(request).to_json(), operations.answer(json.dumps(request)).to_json()

    assert first == again
    (row,) = stored().scan().to_arrow().to_pylist()
    assert [float(str(np.float32(each))) for each in row["f"]] == [0.1, 16777216.0, 1e-45, 3.4028235e38]
    assert (row["d"], row["c"]) == (1e22, Decimal(10**25 + 1))


DEFAULTS = {
    "whole": (types.LongType(), 7),
    "text": (types.StringType(), "a"),
    "exact": (types.DecimalType(9, 2), Decimal("1.25")),
    "day": (types.DateType(), date(2020, 1, 2)),
    "moment": (types.TimestamptzType(), datetime(2020, 1, 2, tzinfo=UTC)),
    "id_of": (types.UUIDType(), uuid.UUID(int=5)),
    "raw": (types.BinaryType(), b"x"),
}


def test_column_that_a_record_does_not_name_gets_the_default_that_another_engine_gave_it(ask, orders, stored):
    with stored().update_schema() as change:
        for name, (kind, default) in DEFAULTS.items():
            change.add_column(name, kind, default_value=default, required=name == "text")
    with stored().update_schema() as change:
        change.set_default_value("whole", 8)

    records = [{"id": 1}, {"id": 2, "whole": None, "day": None}, {"id": 3, "text": "b"}]
    assert ask("WRITE", **orders, records=records)["records_written"] == 3

    rows = sorted(stored().scan().to_arrow().drop_columns(["note"]).to_pylist(), key=itemgetter("id"))
    usual = {name: default for name, (_, default) in DEFAULTS.items()} | {"whole": 8}
    assert rows == [
        {"id": 1, **usual},
        {"id": 2, **usual, "whole": None, "day": None},
        {"id": 3, **usual, "text": "b"},
    ]
    assert code(ask("WRITE", **orders, records=[{"id": 4, "text": None}])) == "INVALID_RECORDS"


def test_write_names_each_bad_value_and_writes_nothing(ask, orders, lake):
    before = files_below(lake)

    answer = ask("WRITE", **orders, records=[{"id": 1}, {"id": "2"}, {"note": 3, "colour": "red"}])

    assert code(answer) == "INVALID_RECORDS"
    problems = answer["error"]["details"]["problems"]
    assert sorted((each["index"], each["field"]) for each in problems) == [
        (1, "id"),
        (2, "colour"),
        (2, "id"),
        (2, "note"),
    ]
    assert files_below(lake) == before


def test_write_names_a_hundred_problems_and_counts_the_others(ask, orders):
    answer = ask("WRITE", **orders, records=[{}] * 150)

    assert len(answer["error"]["details"]["problems"]) == 100
    assert answer["error"]["details"]["problems_count"] == 150


def test_write_splits_records_among_partitions(ask, stored):
    schema = [{"name": "at", "type": "timestamp"}]
    ask("CREATE_TABLE", **ORDERS, schema=schema, partitioning=[{"column": "at", "transform": "day"}])

    ask("WRITE", **ORDERS, records=[{"at": f"2026-01-0{day}T12:00:00"} for day in (1, 2, 2)])

    files = [task.file for task in stored().scan().plan_files()]
    assert sorted((file.partition[0], file.record_count) for file in files) == [(20454, 1), (20455, 2)]


def test_write_to_too_many_partitions_is_refused_before_it_writes(ask, lake):
    ask("CREATE_TABLE", **ORDERS, schema=SCHEMA, partitioning=[{"column": "id"}])
    before = files_below(lake)

    answer = ask("WRITE", **ORDERS, records=[{"id": each} for each in range(201)])

    assert code(answer) == "LIMIT_EXCEEDED"
    assert files_below(lake) == before


def test_write_to_a_partition_whose_folder_could_not_be_named_is_refused_without_its_value(ask, lake, caplog):
    ask("CREATE_TABLE", **ORDERS, schema=[{"name": "s", "type": "string"}], partitioning=[{"column": "s"}])
    before = files_below(lake)

    for value in ("x" * 254, "é" * 43):  # with 's=' before it, and each byte of é as three characters
        answer = ask("WRITE", **ORDERS, records=[{"s": value}])
        assert code(answer) == "LIMIT_EXCEEDED"
        assert value not in caplog.text + str(answer)
    assert files_below(lake) == before
    assert ask("WRITE", **ORDERS, records=[{"s": "x" * 253}])["ok"]


def test_fifth_write_recommends_compaction_in_development(ask, orders):
    answers = [ask("WRITE", **orders, records=[{"id": each}]) for each in range(6)]

    assert [each.get("compaction_recommended") for each in answers] == [None, None, None, None, True, None]
    assert answers[4]["small_files_count"] == 5


def test_fifth_write_counts_only_files_that_can_be_merged_with_others(ask):
    ask("CREATE_TABLE", **ORDERS, schema=SCHEMA, partitioning=[{"column": "id"}])

    answers = [ask("WRITE", **ORDERS, records=[{"id": each}]) for each in range(5)]

    assert (answers[4]["small_files_count"], answers[4]["compaction_recommended"]) == (5, False)


@pytest.mark.parametrize(("environment", "every"), [("staging", 75), ("production", 100)])
def test_profile_decides_how_often_a_write_looks_at_small_files(lake, environment, every):
    operations = Operations(str(lake), environment=Environment(environment))

    profile = operations._profile

    assert (profile.every, profile.at_least) == (every, {"staging": 15, "production": 20}[environment])
    assert profile.below_bytes == 64 << 20


def test_describe_tells_amounts_and_the_newest_snapshots(ask, orders):
    first = ask("WRITE", **orders, records=[{"id": 1}])
    second = ask("WRITE", **orders, records=[{"id": 2}, {"id": 3}])

    answer = ask("DESCRIBE", **orders)

    assert (answer["records"], answer["files"], answer["small_files_count"]) == (3, 2, 2)
    assert answer["snapshot_id"] == second["snapshot_id"]
    assert [(each["snapshot_id"], each["operation"], each["records"]) for each in answer["snapshots"]] == [
        (second["snapshot_id"], "append", 3),
        (first["snapshot_id"], "append", 1),
    ]


def test_describe_of_an_empty_table_has_no_snapshot(ask, orders):
    answer = ask("DESCRIBE", **orders)

    assert (answer["records"], answer["files"], "snapshot_id" in answer) == (0, 0, False)


@pytest.mark.parametrize("operation", ["WRITE", "DESCRIBE"])
def test_table_that_is_not_there_is_named(ask, lake, operation):
    records = {"records": [{"id": 1}]} if operation == "WRITE" else {}

    answer = ask(operation, **ORDERS, **records)

    assert code(answer) == "TABLE_NOT_FOUND"
    assert "sales.orders" in answer["error"]["message"]
    assert files_below(lake) == {}


def test_list_goes_on_behind_the_last_name(ask):
    for namespace, table in [("b", "x"), ("a", "y"), ("a", "x")]:
        ask("CREATE_TABLE", tenant_id="acme", namespace=namespace, table=table, schema=SCHEMA)

    first = ask("LIST", tenant_id="acme", limit=2)
    rest = ask("LIST", tenant_id="acme", after=first["next"])

    assert [each["table"] for each in first["tables"]] == ["x", "y"]
    assert rest["tables"] == [{"namespace": "b", "table": "x"}]
    assert "next" not in rest
    assert ask("LIST", tenant_id="acme", namespace="a")["tables"] == first["tables"]
    assert ask("LIST", tenant_id="acme", namespace="nowhere")["tables"] == []


def test_health_says_which_profile_holds(ask):
    assert ask("HEALTH")["environment"] == "development"


def test_lake_that_is_gone_is_unavailable_and_not_begun_anew(ask, lake):
    lake.rmdir()

    answers = [ask("HEALTH"), ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)]

    assert {code(each) for each in answers} == {"UNAVAILABLE"}
    assert not lake.exists()


@pytest.mark.s3
def test_lake_in_a_bucket_is_refused_without_a_catalog(s3_environment):
    with pytest.raises(ConfigError, match="set DATALAKE_ICEBERG_CATALOG to a REST catalog's URL, or to 'glue'"):
        Operations("s3://bucket/lake")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"", "INVALID_REQUEST"),
        (b"{}{}", "INVALID_REQUEST"),
        (b'{"operation": "HEALTH", "tenant_id": NaN}', "INVALID_REQUEST"),
        (b'"\xff"', "INVALID_REQUEST"),
        (b"[]", "INVALID_REQUEST"),
        (b"[" * 100_000, "INVALID_REQUEST"),
        (b"[" * 40 + b"]" * 40, "LIMIT_EXCEEDED"),
        (b" " * (MAX_REQUEST_BYTES + 1), "LIMIT_EXCEEDED"),
        ({"operation": "HEALTH", 1: 2}, "INVALID_REQUEST"),
        ({"operation": "HEALTH", "x": object()}, "INVALID_REQUEST"),
        ({"operation": "HEALTH", "x": "x" * (MAX_REQUEST_BYTES + 1)}, "LIMIT_EXCEEDED"),
        ({"operation": "\ud800"}, "INVALID_REQUEST"),
    ],
)
def test_request_of_another_shape_is_refused(operations, request_, expected):
    assert code(operations.answer(request_).to_json()) == expected


def test_request_that_holds_itself_is_refused(operations):
    request = {"operation": "HEALTH"}
    request["x"] = request

    assert code(operations.answer(request).to_json()) == "LIMIT_EXCEEDED"


def test_unforeseen_error_leaves_a_reference_and_no_trace(ask, orders, monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr("datalake_assets.operations.dispatcher.records_table", fail)

    answer = ask("WRITE", **orders, records=[{"id": 1}])

    assert code(answer) == "INTERNAL"
    assert "secret" not in str(answer)
    reference = answer["error"]["details"]["reference"]
    assert reference in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_measuring_a_request_takes_no_memory_for_how_long_its_lists_are():
    request = {"operation": "WRITE", **ORDERS, "records": [0] * 300_000}
    tracemalloc.start()
    try:
        with pytest.raises(RequestRefused, match="at most 10000 items"):
            checked_request(request)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20  # an entry each took thirty


def test_namespace_that_somebody_makes_at_the_same_time_is_there_for_both(ask, orders, monkeypatch):
    """Who looked for it before the other made it is refused by the database."""
    exists, looks = SqlCatalog.namespace_exists, iter([False])
    monkeypatch.setattr(SqlCatalog, "namespace_exists", lambda *given: next(looks, True) and exists(*given))

    assert ask("CREATE_TABLE", **{**orders, "table": "other"}, schema=SCHEMA)["created"]
    assert next(looks, None) is None


def test_catalog_that_somebody_makes_at_the_same_time_is_there_for_both(ask, monkeypatch):
    create, refused = SqlCatalog.create_tables, list[SqlCatalog]()

    def beside_another(self):
        create(self)
        if not refused:
            refused.append(self)
            raise OperationalError("CREATE TABLE iceberg_tables", {}, Exception("table iceberg_tables already exists"))

    monkeypatch.setattr(SqlCatalog, "create_tables", beside_another)
    assert ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)["created"]
    assert len(refused) == 1
