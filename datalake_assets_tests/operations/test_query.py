"""What a query sees, and what it cannot: other tables, files, this process, more than its share of the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.transforms import BucketTransform
from pyiceberg.typedef import Record

from datalake_assets.lake import sql_process
from datalake_assets.lake.sql_jobs import SqlFailed, SqlJob
from datalake_assets.operations import Operations
from datalake_assets_tests.lake.iceberg.iceberg_tables import add_file, data_paths, delete_rows, without_old_schemas
from datalake_assets_tests.operations.conftest import ORDERS, SCHEMA, files_below


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A lake with a table of two writes, and another tenant's; its process for queries is started once."""
    lake = tmp_path_factory.mktemp("lake")
    with Operations(str(lake)) as operations:

        def ask(operation, **fields):
            return operations.answer({"operation": operation, **fields}).to_json()

        for tenant in ("acme", "rival"):
            ask("CREATE_TABLE", **{**ORDERS, "tenant_id": tenant}, schema=SCHEMA)
        ask("CREATE_TABLE", **{**ORDERS, "table": "others"}, schema=SCHEMA)
        ask("WRITE", **{**ORDERS, "tenant_id": "rival"}, records=[{"id": 666, "note": "secret"}])
        first = ask("WRITE", **ORDERS, records=[{"id": 1, "note": "a"}])
        ask("WRITE", **ORDERS, records=[{"id": 2}, {"id": 3, "note": "c"}])
        yield ask, first, lake


@pytest.fixture
def query(served):
    ask = served[0]

    def answer(sql, **fields):
        return ask("QUERY", **ORDERS, sql=sql, **fields)

    return answer


def test_query_answers_with_columns_and_rows(query):
    answer = query("SELECT id, note, id / 2 AS half FROM orders ORDER BY id")

    assert [(each["name"], each["type"]) for each in answer["columns"]] == [
        ("id", "BIGINT"),
        ("note", "VARCHAR"),
        ("half", "DOUBLE"),
    ]
    assert answer["rows"] == [[1, "a", 0.5], [2, None, 1.0], [3, "c", 1.5]]
    assert (answer["row_count"], answer["truncated"]) == (3, False)


def test_query_joins_a_table_with_itself(query):
    assert query("SELECT count(*) FROM orders a, orders b WHERE a.id <= b.id")["rows"] == [[6]]


def test_query_reads_an_older_snapshot_by_its_number(query, served):
    answer = query("SELECT count(*) FROM orders", snapshot_id=served[1]["snapshot_id"])

    assert answer["rows"] == [[1]]
    assert answer["snapshot_id"] == served[1]["snapshot_id"]


def test_query_reads_the_snapshot_of_a_moment(query, served):
    snapshots = served[0]("DESCRIBE", **ORDERS)["snapshots"]

    answers = [query("SELECT count(*) FROM orders", as_of=each["at"]) for each in snapshots]

    assert [each["rows"] for each in answers] == [[[3]], [[1]]]


def test_query_counts_rows_by_the_manifests(lake, ask, orders):
    """No file is read for it: that these are gone shows only where a column is."""
    for first in (0, 3):
        ask("WRITE", **orders, records=[{"id": first + number} for number in range(3)])
    for file in lake.rglob("*.parquet"):
        file.unlink()

    for sql, rows in (
        ("count(*) FROM orders", 6),
        ("sum(6) FROM orders", 36),
        ("count(*) FROM orders a, orders b", 36),
    ):
        assert ask("QUERY", **orders, sql=f"SELECT {sql}")["rows"] == [[rows]]
    assert ask("QUERY", **orders, sql="SELECT sum(id) FROM orders")["error"]["code"] == "CONFLICT"


def test_query_of_a_snapshot_that_was_queried_before_reads_no_manifest_again(query, monkeypatch):
    """Its files never change."""
    first = query("SELECT count(*) FROM orders")
    monkeypatch.setattr("pyiceberg.table.Table.scan", None)

    assert query("SELECT count(*) FROM orders") == first


@pytest.mark.parametrize("which", [{"snapshot_id": 7}, {"as_of": "2001-01-01T00:00:00+01:00"}])
def test_query_of_a_snapshot_that_is_not_there_is_refused(query, which):
    assert query("SELECT 1", **which)["error"]["code"] == "SNAPSHOT_NOT_FOUND"


def test_query_of_an_empty_table_has_its_columns_and_no_rows(served):
    answer = served[0]("QUERY", **{**ORDERS, "table": "others"}, sql="SELECT * FROM others")

    assert [each["name"] for each in answer["columns"]] == ["id", "note"]
    assert answer["rows"] == []


def test_query_gives_so_many_rows_and_says_that_there_are_more(query):
    assert query("SELECT id FROM orders ORDER BY id", max_rows=2) | {"snapshot_id": 0} == {
        "ok": True,
        "operation": "QUERY",
        "columns": [{"name": "id", "type": "BIGINT"}],
        "rows": [[1], [2]],
        "row_count": 2,
        "truncated": True,
        "snapshot_id": 0,
    }


def test_query_gives_no_more_bytes_than_an_answer_may_have(query):
    answer = query("SELECT repeat('ä', 500000) FROM range(20)")

    assert answer["truncated"]
    assert 1 <= answer["row_count"] < 10


def test_query_that_fails_with_a_long_text_is_answered_with_a_short_one(query):
    answer = query("SELECT error(repeat('x', 10000000))")

    assert answer["error"]["code"] == "QUERY_REFUSED"
    assert len(answer["error"]["message"]) < 1100


def test_query_makes_texts_of_what_json_has_not(query):
    sql = "SELECT 1.50::DECIMAL(9, 2), '\\x00\\xFF'::BLOB, DATE '2026-01-31', 'nan'::DOUBLE, 1e20::HUGEINT"

    assert query(sql)["rows"] == [["1.50", "AP8=", "2026-01-31", "nan", 10**20]]


def test_query_gives_times_exactly_or_refuses_them(query):
    sql = "SELECT INTERVAL 1 MONTH, TIMESTAMP_NS '2026-01-01 00:00:00.123456789', [DATE '2026-01-31']"

    assert query(sql)["rows"] == [["1 month", "2026-01-01 00:00:00.123456789", ["2026-01-31"]]]
    for value in ("'infinity'::DATE", "['-infinity'::TIMESTAMP]"):
        error = query(f"SELECT {value} AS d")["error"]
        assert error["code"] == "QUERY_REFUSED"
        assert "column 'd' has infinity" in error["message"]


@pytest.mark.parametrize("name", ["duckdb_tables", "sqlite_master", "pg_class"])
def test_query_of_a_table_named_like_one_of_duckdbs_sees_its_rows(served, name):
    ask = served[0]
    table = {**ORDERS, "namespace": "odd", "table": name}
    ask("CREATE_TABLE", **table, schema=SCHEMA)
    ask("WRITE", **table, records=[{"id": 7}])

    assert ask("QUERY", **table, sql=f"FROM {name}")["rows"] == [[7, None]]


def test_query_waits_for_its_turn_for_a_moment_only(monkeypatch):
    monkeypatch.setattr(sql_process, "_WAIT_S", 0.01)
    processes = sql_process.SqlProcesses(most=0)
    job = SqlJob("SELECT 1", "t", "", (), max_rows=1, max_bytes=1000, timeout_s=60)

    with pytest.raises(SqlFailed, match="too many queries run just now"):
        processes.answer(job)


def test_bound_of_a_query_is_no_higher_than_the_one_of_the_machine():
    code = (
        "import resource\n"
        "from datalake_assets.lake.sql_process import _bound_memory\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 29, 1 << 29))\n"
        "_bound_memory()\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA) == (1 << 29, 1 << 29))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


REFUSED = [
    *("INSERT INTO orders VALUES (9, 'x')", "DELETE FROM orders", "DROP VIEW orders", "CREATE TABLE t AS SELECT 1"),
    *("COPY orders TO '/tmp/stolen.csv'", "ATTACH '/tmp/x.db'", "SET memory_limit = '10GB'", "PRAGMA database_list"),
    *("SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM '/etc/passwd'", "SELECT * FROM glob('/*')"),
    *("SELECT * FROM rival.orders", "SELECT * FROM acme.sales.orders", "SELECT * FROM others", "SELECT 1; SELECT 2"),
    *("EXPLAIN ANALYZE COPY orders TO '/tmp/x'", "SELECT * FROM duckdb_secrets()", "SELECT * FROM read_parquet('*')"),
    *(
        "LOAD httpfs",
        "SELECT getenv('HOME')",
        "",
        "--",
        "\0",
        "SELECT * FROM iceberg_scan('/')",
        "CALL pragma_version()",
    ),
]


@pytest.mark.parametrize("sql", REFUSED)
def test_query_that_is_more_than_one_read_of_the_table_is_refused(query, served, sql):
    lake = served[2]
    before = files_below(lake)

    answer = query(sql)

    assert answer["error"]["code"] in {"QUERY_REFUSED", "INVALID_REQUEST"}
    assert str(lake) not in str(answer)
    assert "666" not in str(answer["error"])
    assert files_below(lake) == before
    assert not Path("/tmp/stolen.csv").exists()


def test_query_sees_no_secret_of_the_environment(lake, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    with Operations(str(lake)) as operations:
        operations.answer({"operation": "CREATE_TABLE", **ORDERS, "schema": SCHEMA})
        assert operations.answer({"operation": "QUERY", **ORDERS, "sql": "SELECT 1"}).ok
        (waiting,) = operations._processes._waiting

        assert b"do-not-tell" not in Path(f"/proc/{waiting.process.pid}/environ").read_bytes()


def test_query_is_ended_when_its_time_is_up(query):
    began = time.monotonic()

    answer = query("SELECT count(*) FROM range(1000000000000) a WHERE sin(a.range) > 2", timeout_s=1)

    assert answer["error"]["code"] == "QUERY_TIMED_OUT"
    assert time.monotonic() - began < 60


def test_query_that_makes_a_huge_value_fails_alone(query):
    answer = query("SELECT repeat('x', 3000000000) || id FROM orders")

    assert answer["error"]["code"] == "LIMIT_EXCEEDED"
    assert query("SELECT 1")["rows"] == [[1]]


def test_query_is_answered_though_the_process_that_waited_for_it_was_killed(lake):
    with Operations(str(lake)) as operations:
        operations.answer({"operation": "CREATE_TABLE", **ORDERS, "schema": SCHEMA})
        ask = {"operation": "QUERY", **ORDERS, "sql": "SELECT 1"}
        assert operations.answer(ask).ok
        parent = operations._processes._waiting[0].process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children")
        while not (found := children.read_text().split()):  # it is forked once the answer is given
            time.sleep(0.01)
        os.kill(int(found[0]), signal.SIGKILL)

        assert operations.answer(ask).to_json()["rows"] == [[1]]
        assert operations._processes._waiting[0].process.pid == parent


def test_query_leaves_no_process_and_no_file(lake, tmp_path, monkeypatch):
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setenv("TMPDIR", str(spill))
    with Operations(str(lake)) as operations:
        operations.answer({"operation": "CREATE_TABLE", **ORDERS, "schema": SCHEMA})
        operations.answer({"operation": "QUERY", **ORDERS, "sql": "SELECT 1"})
        process = operations._processes._waiting[0].process
        assert len(list(spill.iterdir())) <= 1  # of the process that waits for the next query
        assert not any(each.is_file() for each in spill.rglob("*"))

    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    deadline = time.monotonic() + 60
    while list(spill.iterdir()) and time.monotonic() < deadline:  # until the one that waited knows
        time.sleep(0.01)
    assert list(spill.iterdir()) == []


def test_query_begins_anew_when_its_process_was_killed(query, served):
    assert query("SELECT 1")["ok"]
    operations = served[0].__closure__[0].cell_contents
    operations._processes._waiting[0].process.kill()

    assert query("SELECT 1")["rows"] == [[1]]


def test_a_table_that_others_changed_is_read_as_it_is_or_refused_by_name(ask, orders, stored):
    """Rows are read without asking which are deleted, and columns by their names: neither may be what others made."""

    def answer():
        found = ask("QUERY", **orders, sql="SELECT id, note FROM orders ORDER BY id")
        return found["rows"] if found["ok"] else found["error"]["message"]

    written = [[number, f"{number}"] for number in range(6)]
    for number, note in written:
        ask("WRITE", **orders, records=[{"id": number, "note": note}])
    delete_rows(stored(), positions=[(data_paths(stored())[0], 0)])
    assert "another engine has deleted rows" in answer()
    ask("COMPACT", **orders, force=True)  # which applies it
    left = answer()
    assert len(left) == len(written) - 1
    assert all(row in written for row in left)
    ids = pa.table(
        {"id": pa.array([3], pa.int64())},
        schema=pa.schema([pa.field("id", pa.int64(), metadata={"PARQUET:field_id": "1"})]),
    )
    delete_rows(stored(), equal=ids)  # the table's property still names the files that it had before
    assert "another engine has deleted rows" in answer()
    assert ask("DESCRIBE", **orders)["files"] == 1
    ask("COMPACT", **orders, force=True)
    assert answer() == [row for row in left if row[0] != 3]

    with stored().update_spec() as spec:
        spec.add_field("id", BucketTransform(2), "id_bucket")
    ask("WRITE", **orders, records=[{"id": 9, "note": "9"}, {"id": 8, "note": None}])
    wanted = sorted([*(row for row in left if row[0] != 3), [9, "9"], [8, None]])
    assert answer() == wanted
    ask("COMPACT", **orders, force=True)
    assert answer() == wanted
    with stored().update_schema() as schema:
        schema.rename_column("note", "remark")
    assert "another engine has changed columns" in answer()
    without_old_schemas(stored().catalog, "sales.orders")
    assert "another engine has changed columns" in answer()


@pytest.mark.parametrize("is_compacted", [False, True])
def test_a_file_without_the_column_of_its_partition_is_refused_and_not_read_as_null(ask, stored, is_compacted):
    """Spark's ``add_files`` takes files of Hive folders; the value is in the manifest, where pyiceberg reads it."""
    schema = [{"name": "id", "type": "long"}, {"name": "region", "type": "string"}]
    ask("CREATE_TABLE", **ORDERS, schema=schema, partitioning=[{"column": "region"}])
    for number in (1, 2):
        ask("WRITE", **ORDERS, records=[{"id": number, "region": "eu"}])

    def added(columns, region, counts):
        numbered = [
            pa.field(name, kind, metadata={"PARQUET:field_id": str(stored().schema().find_field(name).field_id)})
            for name, kind in (("id", pa.int64()), ("region", pa.string()))
            if name in columns
        ]
        add_file(stored(), pa.table(columns, schema=pa.schema(numbered)), Record(region), counts)

    def answer():
        found = ask("QUERY", **ORDERS, sql="SELECT id, region FROM orders ORDER BY id")
        return found["rows"] if found["ok"] else found["error"]["message"]

    whole = [[1, "eu"], [2, "eu"], [3, "us"]]
    added({"id": [3], "region": ["us"]}, "us", {})  # whoever wrote it counted nothing
    assert answer() == whole
    added({"id": [4]}, "asia", {1: 1})
    if is_compacted:  # which has nothing to merge it with
        assert ask("COMPACT", **ORDERS, force=True)["compacted"]
    assert "'region', which their partitions state" in answer()
    rows = sorted(map(list, ((row["id"], row["region"]) for row in stored().scan().to_arrow().to_pylist())))
    assert rows == [*whole, [4, "asia"]]
