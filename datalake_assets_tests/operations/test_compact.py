"""COMPACT merges files and changes no row, whatever writers do meanwhile."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import _dataframe_to_data_files

from datalake_assets.lake.iceberg.named_files import FILES, MAX_CHARS, named_files
from datalake_assets.operations import Operations
from datalake_assets_tests.operations.conftest import ORDERS, SCHEMA, catalog_of

DAYS = [{"name": "id", "type": "long"}, {"name": "at", "type": "timestamp"}]


def later(length):
    return datetime.now(UTC) + length


def write(ask, numbers):
    for number in numbers:
        assert ask("WRITE", **ORDERS, records=[{"id": number}])["ok"]


def test_compact_makes_one_file_of_many_with_the_same_rows(ask, orders, stored, stored_ids):
    write(ask, range(6))
    before = ask("DESCRIBE", **orders)

    answer = ask("COMPACT", **orders)

    assert answer["compacted"]
    stats = answer["stats"]
    assert (stats["files_before"], stats["files_after"], stats["files_compacted"], stats["files_written"]) == (
        6,
        1,
        6,
        1,
    )
    assert stats["bytes_before"] == before["size_bytes"]
    assert stats["bytes_saved"] == stats["bytes_before"] - stats["bytes_after"]
    assert stats["small_files_remaining"] == 1
    assert stats["compaction_time_ms"] > 0
    assert stored_ids() == list(range(6))
    assert stored().current_snapshot().snapshot_id == answer["snapshot_id"]
    assert stored().current_snapshot().summary.operation.value == "replace"


def test_compact_leaves_older_snapshots_to_be_queried(ask, orders):
    write(ask, range(5))
    before = ask("DESCRIBE", **orders)["snapshot_id"]
    ask("COMPACT", **orders)

    answer = ask("QUERY", **orders, sql="SELECT count(*) FROM orders", snapshot_id=before)

    assert answer["rows"] == [[5]]


def test_a_compacted_table_is_queried_without_its_manifests_until_somebody_commits(ask, orders, stored, tmp_path):
    write(ask, range(5))
    assert ask("COMPACT", **orders)["compacted"]
    listed, away = Path(urlsplit(stored().current_snapshot().manifest_list).path), tmp_path / "list of manifests"
    listed.rename(away)
    asked = {**orders, "sql": "SELECT count(*), sum(id) FROM orders"}

    without = ask("QUERY", **asked)
    away.rename(listed)
    write(ask, [100])
    after = ask("QUERY", **asked)

    assert (without["rows"], after["rows"]) == ([[5, 10]], [[6, 110]])
    assert named_files(stored(), stored().current_snapshot()) is None


@pytest.fixture(scope="module")
def compacted(tmp_path_factory):
    """A lake with a table of five rows in one file, and what the table says of that file's name."""
    lake = tmp_path_factory.mktemp("compacted")
    with Operations(str(lake)) as opened:

        def ask(operation, **fields):
            return opened.answer({"operation": operation, **fields}).to_json()

        assert ask("CREATE_TABLE", **ORDERS, schema=SCHEMA)["created"]
        write(ask, range(5))
        assert ask("COMPACT", **ORDERS)["compacted"]
    with closing(catalog_of(lake, "acme")) as catalog:
        table = catalog.load_table(("sales", "orders"))
        (file,) = named_files(table, table.current_snapshot())
        assert (file.path, file.rows) == (next(iter(table.scan().plan_files())).file.file_path, 5)
        return lake, table.properties[FILES]


@pytest.mark.parametrize(
    "change",
    [
        lambda number, file: [number + 1, [file]],
        lambda number, file: [number, [file, file]],
        lambda number, file: [number, [[*file[:2], file[2] - 1]]],
        lambda number, file: [number, [[file[0], file[1] + 1, file[2]]]],
        lambda number, file: [number, [[file[0], str(file[1]), file[2]]]],
        lambda number, file: [number, [file[:2]]],
        lambda number, file: [number, file[1]],
        lambda number, file: {"files": [number, file]},
    ],
)
def test_names_of_files_that_are_not_those_of_the_snapshot_are_passed_over(compacted, change):
    lake, names = compacted
    with Operations(str(lake)) as opened, closing(catalog_of(lake, "acme")) as catalog:

        def stored():
            return catalog.load_table(("sales", "orders"))

        number, (line,) = json.loads(names)
        with stored().transaction() as changed:
            changed.set_properties({FILES: json.dumps(change(number, line))})

        assert named_files(stored(), stored().current_snapshot()) is None
        asked = {"operation": "QUERY", **ORDERS, "sql": "SELECT count(*) FROM orders"}
        assert opened.answer(asked).to_json()["rows"] == [[5]]


def test_a_compaction_that_leaves_many_files_names_none(ask, stored):
    schema = [{"name": "id", "type": "long"}, {"name": "note", "type": "string"}]
    ask("CREATE_TABLE", **ORDERS, schema=schema, partitioning=[{"column": "note", "transform": "identity"}])
    for number in range(2):
        ask("WRITE", **ORDERS, records=[{"id": number, "note": "a"}])
    ask("COMPACT", **ORDERS, force=True)
    assert FILES in stored().properties
    notes = [f"{number:04d}" for number in range(MAX_CHARS // 50)]
    for number in range(2):
        assert ask("WRITE", **ORDERS, records=[{"id": number, "note": note} for note in notes])["ok"]

    answer = ask("COMPACT", **ORDERS, force=True)

    assert answer["stats"]["files_after"] == 1 + len(notes)
    assert FILES not in stored().properties
    assert ask("QUERY", **ORDERS, sql="SELECT count(*) FROM orders")["rows"] == [[2 + 2 * len(notes)]]


def test_compact_does_nothing_with_too_few_small_files_unless_it_is_forced(ask, orders):
    write(ask, range(2))

    left = ask("COMPACT", **orders)
    forced = ask("COMPACT", **orders, force=True)
    again = ask("COMPACT", **orders, force=True)

    assert (left["compacted"], left["stats"]["files_after"]) == (False, 2)
    assert "fewer than 3 small files" in left["reason"]
    assert (forced["compacted"], forced["stats"]["files_after"]) == (True, 1)
    assert (again["compacted"], again["reason"]) == (False, "there is nothing to merge")


def test_compact_of_a_table_that_nothing_was_written_to_has_nothing_to_merge(ask, orders):
    answer = ask("COMPACT", **orders, force=True)

    assert (answer["compacted"], answer["stats"]["files_before"]) == (False, 0)


def test_compact_takes_only_the_partitions_that_are_asked_for(ask, stored):
    ask("CREATE_TABLE", **ORDERS, schema=DAYS, partitioning=[{"column": "at", "transform": "day"}])
    for _ in range(3):
        ask("WRITE", **ORDERS, records=[{"id": day, "at": f"2026-01-0{day}T00:00:00"} for day in (1, 2)])

    answer = ask("COMPACT", **ORDERS, partition_filter={"at_day": "2026-01-02"})

    assert answer["stats"]["files_compacted"] == 3
    files = [task.file.partition[0] for task in stored().scan().plan_files()]
    assert sorted(files) == [20454, 20454, 20454, 20455]


def test_compact_refuses_a_field_that_the_table_is_not_partitioned_by(ask, orders):
    answer = ask("COMPACT", **orders, partition_filter={"at_day": "2026-01-02"})

    assert answer["error"]["code"] == "INVALID_REQUEST"
    assert "at_day" in answer["error"]["message"]


def test_compact_merges_so_many_files_and_no_more(ask, orders):
    write(ask, range(6))

    answer = ask("COMPACT", **orders, max_files=4)

    assert answer["stats"]["files_compacted"] == 4
    assert answer["stats"]["files_after"] == 3


def test_compact_expires_old_snapshots_with_their_files_and_nothing_else(ask, orders, lake, stored_ids, monkeypatch):
    write(ask, range(5))
    before = ask("DESCRIBE", **orders)["snapshot_id"]
    young = ask("COMPACT", **orders, expire_snapshots=True)
    hours = timedelta(hours=169)
    monkeypatch.setattr("datalake_assets.operations.dispatcher.datetime", SimpleNamespace(now=lambda _: later(hours)))

    answer = ask("COMPACT", **orders, expire_snapshots=True)

    assert young["stats"]["snapshots_expired"] == 0
    assert answer["stats"]["snapshots_expired"] == 5
    gone = ask("QUERY", **orders, sql="SELECT 1", snapshot_id=before)
    assert gone["error"]["code"] == "SNAPSHOT_NOT_FOUND"
    assert stored_ids() == list(range(5))
    assert len(list(lake.rglob("*.parquet"))) == 1
    assert answer["stats"]["files_removed"] >= 5


def test_compaction_beyond_those_that_may_run_at_once_is_told_to_come_later(operations, ask, orders):
    with operations._turn(), operations._turn():
        answer = ask("COMPACT", **orders)

    assert (answer["error"]["code"], answer["error"]["retryable"]) == ("UNAVAILABLE", True)
    assert ask("COMPACT", **orders)["ok"]


def test_key_is_remembered_over_a_compaction(ask, orders, stored_ids):
    first = ask("WRITE", **orders, records=[{"id": 1}], idempotency_key="a")
    write(ask, [2])
    ask("COMPACT", **orders, force=True)

    assert ask("WRITE", **orders, records=[{"id": 1}], idempotency_key="a") == first
    assert stored_ids() == [1, 2]


def test_writers_and_a_compactor_at_once_keep_every_row_once(operations, orders, stored_ids):
    numbers = count()

    def write_some(_):
        for number in [next(numbers) for _ in range(6)]:
            assert operations.answer({"operation": "WRITE", **orders, "records": [{"id": number}]}).ok

    with ThreadPoolExecutor(5) as pool:
        writers = [pool.submit(write_some, number) for number in range(4)]
        compacted = 0
        while not all(writer.done() for writer in writers):
            answer = operations.answer({"operation": "COMPACT", **orders}).to_json()
            assert answer["ok"], answer
            compacted += answer["stats"]["files_compacted"]
        for writer in writers:
            writer.result()

    assert stored_ids() == list(range(24))
    assert compacted > 0


def test_all_tenants_tables_that_need_it_are_compacted_at_night(operations, ask):
    for tenant in ("acme", "rival"):
        table = {**ORDERS, "tenant_id": tenant}
        ask("CREATE_TABLE", **table, schema=[{"name": "id", "type": "long"}])
        for number in range(4 if tenant == "acme" else 2):
            ask("WRITE", **table, records=[{"id": number}])

    assert operations.compact_all() == {"tables": 2, "compacted": 1, "orphans": 0, "failed": [], "left": 0}
    assert operations.compact_all(may_go_on=lambda: False)["left"] == 2
    assert ask("DESCRIBE", **ORDERS)["files"] == 1


def test_tenant_whose_catalog_is_torn_keeps_nobody_from_being_compacted(operations, ask, lake):
    for tenant in ("acme", "rival"):
        table = {**ORDERS, "tenant_id": tenant}
        ask("CREATE_TABLE", **table, schema=[{"name": "id", "type": "long"}])
        for number in range(3):
            ask("WRITE", **table, records=[{"id": number}])
    (lake / "tenants" / "acme" / "catalog.sqlite").write_bytes(b"no database" * 1000)

    done = operations.compact_all()

    assert (done["tables"], done["compacted"]) == (1, 1)
    assert done["failed"] == [{"tenant_id": "acme", "code": "UNAVAILABLE"}]


def test_table_that_fails_as_nobody_foresaw_keeps_no_other_from_being_compacted(operations, ask, monkeypatch):
    for tenant in ("acme", "rival"):
        table = {**ORDERS, "tenant_id": tenant}
        ask("CREATE_TABLE", **table, schema=[{"name": "id", "type": "long"}])
        for number in range(3):
            ask("WRITE", **table, records=[{"id": number}])
    remove = Operations._remove_orphans

    def odd(self, tenant_id, *name):
        if tenant_id == "acme":
            raise KeyError("files")
        return remove(self, tenant_id, *name)

    monkeypatch.setattr(Operations, "_remove_orphans", odd)
    done = operations.compact_all()

    assert (done["tables"], done["compacted"]) == (2, 2)
    assert done["failed"] == [{"tenant_id": "acme", "namespace": "sales", "table": "orders", "code": "INTERNAL"}]


def test_table_with_a_damaged_file_is_named_at_night(operations, orders, ask, lake):
    write(ask, range(4))
    min(lake.rglob("*.parquet")).write_bytes(b"no Parquet")

    done = operations.compact_all()

    assert (done["compacted"], done["failed"]) == (1, [{**orders, "code": "TABLE_UNREADABLE"}])


def test_files_that_a_dead_writer_left_are_deleted_at_night_after_some_days(operations, orders, ask, lake, stored_ids):
    write(ask, [1])
    (kept,) = lake.rglob("*.parquet")
    old, young = (kept.with_name(f"{name}.parquet") for name in ("old", "young"))
    for orphan, days in ((old, 4), (young, 2)):
        orphan.write_bytes(b"left behind")
        moment = later(timedelta(days=-days)).timestamp()
        os.utime(orphan, (moment, moment))

    assert operations.compact_all()["orphans"] == 1
    assert (old.exists(), young.exists(), kept.exists()) == (False, True, True)
    assert stored_ids() == [1]


@pytest.mark.parametrize("partitioned", [False, True])
def test_upstream_writes_a_data_file_per_partition_without_the_id_of_its_spec(ask, stored, partitioned):
    """pyiceberg, private: `_dataframe_to_data_files` writes what an append commits; we add the spec's id ourselves.

    If this fails, ``RecordAppend`` in ``lake/iceberg/record_appends.py`` writes nothing, or files of no partition.
    """
    ask("CREATE_TABLE", **ORDERS, schema=DAYS[:1], partitioning=[{"column": "id"}] if partitioned else [])
    table = stored()

    files = list(_dataframe_to_data_files(table.metadata, pa.table({"id": [1, 2, 2]}), table.io))

    assert sorted(file.record_count for file in files) == ([1, 2] if partitioned else [3])
    assert not any(hasattr(file, "_spec_id") for file in files)
