"""A write is done once per key, and rows of writers that come at the same time are all there, once."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from pyiceberg.catalog.sql import SqlCatalog
from sqlalchemy import event
from sqlalchemy.engine import Engine

from datalake_assets.errors import LakeError
from datalake_assets.lake.iceberg import record_appends
from datalake_assets_tests.lake.iceberg.iceberg_tables import upgraded
from datalake_assets_tests.operations.conftest import ORDERS, files_below
from datalake_assets_tests.processes.warm_processes import FORKED


def test_write_that_is_repeated_with_its_key_gets_the_first_answer(ask, orders, stored_ids):
    first = [ask("WRITE", **orders, records=[{"id": each}], idempotency_key=f"key-{each}") for each in range(6)]
    again = [ask("WRITE", **orders, records=[{"id": each}], idempotency_key=f"key-{each}") for each in range(6)]

    assert again == first
    assert first[4]["compaction_recommended"]
    assert stored_ids() == [0, 1, 2, 3, 4, 5]


def test_key_that_was_used_for_other_records_is_refused(ask, orders, stored_ids, lake):
    ask("WRITE", **orders, records=[{"id": 1}], idempotency_key="a")
    before = files_below(lake)

    answer = ask("WRITE", **orders, records=[{"id": 2}], idempotency_key="a")

    assert answer["error"]["code"] == "KEY_REUSED"
    assert stored_ids() == [1]
    assert files_below(lake) == before


def test_key_holds_whatever_the_order_of_fields(ask, orders):
    first = ask("WRITE", **orders, records=[{"id": 1, "note": "x"}], idempotency_key="a")

    assert ask("WRITE", **orders, records=[{"note": "x", "id": 1}], idempotency_key="a") == first


def test_key_is_of_one_table(ask, orders, stored_ids):
    other = {**orders, "table": "others"}
    ask("CREATE_TABLE", **other, schema=[{"name": "id", "type": "long"}])
    ask("WRITE", **other, records=[{"id": 7}], idempotency_key="a")

    assert ask("WRITE", **orders, records=[{"id": 1}], idempotency_key="a")["records_written"] == 1
    assert stored_ids() == [1]


def test_key_is_remembered_when_its_snapshot_has_expired(ask, orders, stored, stored_ids):
    first = ask("WRITE", **orders, records=[{"id": 1}], idempotency_key="a")
    ask("WRITE", **orders, records=[{"id": 2}])
    stored().maintenance.expire_snapshots().by_id(first["snapshot_id"]).commit()

    assert ask("WRITE", **orders, records=[{"id": 1}], idempotency_key="a") == first
    assert stored_ids() == [1, 2]


def test_table_remembers_so_many_keys_and_no_more(ask, orders, stored, monkeypatch):
    monkeypatch.setattr(record_appends, "REMEMBERED", 3)

    for each in range(5):
        ask("WRITE", **orders, records=[{"id": each}], idempotency_key=f"key-{each}")

    assert len(json.loads(stored().properties["datalake.write-keys"])) == 3
    assert "key-4" not in json.dumps(stored().properties)


def test_commit_whose_answer_was_lost_is_done_once(ask, orders, stored_ids, monkeypatch):
    commit = SqlCatalog.commit_table
    calls = []

    def lose_the_first(self, *arguments):
        done = commit(self, *arguments)
        calls.append(done)
        if len(calls) == 1:
            raise ConnectionError("the answer was lost")
        return done

    monkeypatch.setattr(SqlCatalog, "commit_table", lose_the_first)

    assert ask("WRITE", **orders, records=[{"id": 1}])["records_written"] == 1
    assert stored_ids() == [1]


@pytest.mark.parametrize("key", [{}, {"idempotency_key": "a"}])
def test_commit_whose_answer_was_lost_with_the_catalog_is_not_known_to_be_done(
    ask, orders, stored_ids, monkeypatch, key
):
    commit = SqlCatalog.commit_table

    def unreachable(*_):
        raise ConnectionError("the catalog is gone")

    def lose(self, *arguments):
        commit(self, *arguments)
        patched.setattr(SqlCatalog, "load_table", unreachable)
        unreachable()

    with monkeypatch.context() as patched:
        patched.setattr(record_appends, "ATTEMPTS", 3)
        patched.setattr(SqlCatalog, "commit_table", lose)
        error = ask("WRITE", **orders, records=[{"id": 1}], **key)["error"]

    assert (error["code"], error["retryable"]) == ("OUTCOME_UNKNOWN", False)
    assert "without one, look first whether they are there" in error["message"]
    assert stored_ids() == [1]


def test_commit_that_did_not_happen_is_done_again_without_another_file(ask, orders, stored_ids, lake, monkeypatch):
    commit = SqlCatalog.commit_table
    calls = []

    def refuse_the_first(self, *arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise ConnectionError("it never arrived")
        return commit(self, *arguments)

    monkeypatch.setattr(SqlCatalog, "commit_table", refuse_the_first)

    assert ask("WRITE", **orders, records=[{"id": 1}])["records_written"] == 1
    assert stored_ids() == [1]
    assert len([name for name in files_below(lake) if name.endswith(".parquet")]) == 1


@pytest.fixture
def hasty():
    """Nobody waits for a transaction of others in SQLite."""

    def at_once(connection, _):
        connection.execute("pragma busy_timeout = 0")

    event.listen(Engine, "connect", at_once)
    yield
    event.remove(Engine, "connect", at_once)


@pytest.mark.usefixtures("hasty")
def test_commit_that_the_database_refuses_while_others_read_is_not_taken_for_done(
    ask, orders, stored_ids, lake, monkeypatch
):
    """What SQLite leaves open of it looks like done to whoever gets the connection next."""
    monkeypatch.setattr(record_appends, "ATTEMPTS", 2)
    written = {**orders, "records": [{"id": 1}], "idempotency_key": "a"}
    with closing(sqlite3.connect(lake / "tenants/acme/catalog.sqlite", isolation_level=None)) as reader:
        reader.execute("begin")
        reader.execute("select * from iceberg_tables").fetchall()
        refused = ask("WRITE", **written)

    assert (refused["error"]["code"], refused["error"]["retryable"]) == ("UNAVAILABLE", True)
    assert stored_ids() == []
    assert [name for name in files_below(lake) if name.endswith((".parquet", ".avro"))] == []
    assert ask("WRITE", **written)["ok"]
    assert stored_ids() == [1]


@pytest.mark.usefixtures("hasty")
def test_write_is_done_once_others_that_read_the_database_are_gone(ask, orders, stored_ids, lake):
    with closing(sqlite3.connect(lake / "tenants/acme/catalog.sqlite", check_same_thread=False)) as reader:
        reader.execute("begin")
        reader.execute("select * from iceberg_tables").fetchall()
        leaving = threading.Timer(0.1, reader.rollback)
        leaving.start()
        assert ask("WRITE", **orders, records=[{"id": 1}])["records_written"] == 1
        leaving.join()
    assert stored_ids() == [1]


def test_write_that_fails_before_its_commit_leaves_no_file(ask, orders, lake, monkeypatch):
    def fail(*_):
        raise LakeError("sales.orders", "its manifests cannot be written")

    before = files_below(lake)
    monkeypatch.setattr(record_appends, "commit_change", fail)

    assert ask("WRITE", **orders, records=[{"id": 1}])["error"]["code"] == "UNAVAILABLE"
    assert files_below(lake) == before


def test_table_that_was_made_version_3_is_refused_by_name_before_anything_is_written(ask, orders, stored, lake):
    ask("WRITE", **orders, records=[{"id": 1}])
    upgraded(stored().catalog, "sales.orders")
    before = files_below(lake)

    refused = [ask("WRITE", **orders, records=[{"id": 2}]), ask("COMPACT", **orders, force=True)]

    assert [(each["error"]["code"], each["error"]["retryable"]) for each in refused] == [
        ("TABLE_UNREADABLE", False)
    ] * 2
    assert "it has format version 3" in refused[0]["error"]["message"]
    assert files_below(lake) == before
    assert ask("QUERY", **orders, sql="SELECT id FROM orders")["rows"] == [[1]]


def test_two_writers_with_one_key_at_once_write_once(operations, orders, stored_ids, lake):
    request = {"operation": "WRITE", **orders, "records": [{"id": 1}], "idempotency_key": "a"}

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: operations.answer(request).to_json(), range(4)))

    assert answers == [answers[0]] * 4
    assert answers[0]["records_written"] == 1
    assert stored_ids() == [1]
    assert len([name for name in files_below(lake) if name.endswith(".parquet")]) == 1


def test_writers_at_once_lose_nothing_and_count_each_write(operations, orders, stored, stored_ids):
    def write(writer):
        for each in range(6):
            request = {"operation": "WRITE", **orders, "records": [{"id": 100 * writer + each}]}
            assert operations.answer(request).ok

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))

    assert stored_ids() == sorted(100 * writer + each for writer in range(4) for each in range(6))
    assert stored().properties["datalake.write-count"] == "24"


@pytest.mark.slow
def test_writer_that_is_killed_leaves_all_or_nothing(ask, orders, lake, stored_ids):
    """The writer says what it is told is done; whatever it said is there, once, and the rest may be sent again."""
    child = (
        "import json, sys\n"
        "from datalake_assets.operations import Operations\n"
        "operations = Operations(sys.argv[1])\n"
        "for number in range(1000):\n"
        f"    operations.answer({{'operation': 'WRITE', **{ORDERS!r}, 'records': [{{'id': number}}],"
        " 'idempotency_key': str(number)})\n"
        "    print(number, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", FORKED + child, str(lake)], stdout=subprocess.PIPE, text=True)
    told = [int(process.stdout.readline()) for _ in range(5)]
    process.kill()
    told += [int(line) for line in process.communicate()[0].split()]
    last = told[-1]

    for number in range(last + 3):
        assert ask("WRITE", **orders, records=[{"id": number}], idempotency_key=str(number))["records_written"] == 1

    assert stored_ids() == list(range(last + 3))
