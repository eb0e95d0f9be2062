"""SQL over a lake: exact rows, on each kind of store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from datalake_assets.errors import SnapshotExpired
from datalake_assets.lake import sql_session as sql
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.sql_session import SqlRefused, run_sql
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of

STREAM, TABLE = stream_feed(), table_feed()


def _export(store: Store, count: int = 48) -> None:
    """Two days of a stream, and two versions of a table, of three rows and then four."""
    HiveTable(store, STREAM).write(stream_of(numbered(range(count))), partitions=("2025-01-01",), run_id="r")
    table = HiveTable(store, TABLE)
    for rows in (3, 4):
        table.write(table_of(rows), partitions=table.plan().partitions, run_id="r")


def _rows(store: Store, query: str) -> tuple[tuple[Any, ...], ...]:
    return run_sql(store, (STREAM, TABLE), query).rows


def test_counts_rows_per_partition(store):
    _export(store)
    assert _rows(store, "select year, month, day, count(*) from s group by all order by all") == (
        (2025, 1, 1, 24),
        (2025, 1, 2, 24),
    )


def test_a_table_is_read_at_its_current_version(store):
    _export(store)
    assert _rows(store, "select version, count(*) from t group by all") == (("v2", 4),)


def test_joins_feeds_and_keeps_types(store):
    _export(store)
    result = run_sql(store, (STREAM, TABLE), "SELECT s.id, s.rowtime FROM s JOIN T USING (id) ORDER BY id LIMIT 1")
    assert result.types == ("BIGINT", "TIMESTAMP WITH TIME ZONE")
    assert result.rows == ((0, datetime(2025, 1, 1, tzinfo=UTC)),)


def test_columns_are_the_schema_then_the_partition(store):
    _export(store)
    assert run_sql(store, (STREAM,), "select * from s limit 0").columns == (
        *("id", "note", "rowtime"),
        *("year", "month", "day"),
    )


def test_filters_by_partition_and_column(store):
    _export(store)
    assert _rows(store, "select min(id), count(*) from s where day = 2 and note <> 'n30'") == ((24, 23),)


def test_limit_is_told(store):
    _export(store)
    result = run_sql(store, (STREAM,), "select id from s", limit=5)
    assert (len(result.rows), result.truncated) == (5, True)
    assert not run_sql(store, (STREAM,), "select 1", limit=1).truncated


def test_unknown_files_in_the_folder_are_not_read(local_store):
    _export(local_store)
    folder = Path(local_store.path("streams/s/year=2025/month=01/day=01"))
    (folder / "unknown.parquet").write_bytes(b"not parquet")
    assert _rows(local_store, "select count(*) from s") == ((48,),)


@pytest.mark.parametrize("name", ["it's [odd] *", "plain", "it's", "year=1999"])
def test_any_folder_name_works(tmp_path, name):
    (tmp_path / name).mkdir()
    store = open_store(str(tmp_path / name))
    _export(store)
    assert _rows(store, "select count(*), max(day) from s") == ((48, 2),)


@pytest.mark.parametrize(
    "query",
    [
        "delete from s",
        "drop view s",
        "copy (select 1) to '/tmp/never'",
        "select 1; select 2",
        "",
        "set threads = 1",
        "create table x as select 1",
    ],
)
def test_anything_but_one_read_is_refused(local_store, query):
    with pytest.raises(SqlRefused, match=r"^the query cannot be run: give one SELECT; nothing else is run here$"):
        run_sql(local_store, (), query)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("selec 1", 'Parser Error: syntax error at or near "selec"'),
        ("select nothing from s", 'Binder Error: Referenced column "nothing" not found in FROM clause!'),
        ("select * from nowhere", "Catalog Error: Table with name nowhere does not exist!"),
        ("select 1/'x'", "Conversion Error"),
    ],
)
def test_bad_sql_is_one_line(local_store, query, reason):
    _export(local_store)
    with pytest.raises(SqlRefused) as refused:
        run_sql(local_store, (STREAM,), query)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_feed_without_data_says_so(local_store):
    with pytest.raises(SqlRefused, match="feed 's' has no data yet; export it with 'datalake export --stream s'"):
        run_sql(local_store, (STREAM,), "select * from s")


@pytest.mark.parametrize(
    "query", ["describe s", "summarize s", "explain select * from s", "from s", "with a as (from s) from a"]
)
def test_other_reads_work(local_store, query):
    _export(local_store)
    assert run_sql(local_store, (STREAM,), query).rows


class _Compacted:
    """Reads that find their files replaced, ``times`` times: a compaction between listing and reading."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
        self.left, self.calls = times, 0
        original = sql._register

        def register(connection: Any, feed: Any, dataset: Any, *, root: str) -> None:
            original(connection, feed, dataset, root=root)
            self.calls += 1
            if self.left:
                self.left -= 1
                table = HiveTable(store, TABLE)
                fresh = table.plan().partitions
                table.write(table_of(3 + self.calls), partitions=fresh, run_id="r")
                for file in dataset.files:
                    Path(file).unlink()

        monkeypatch.setattr(sql, "_register", register)


def test_a_query_whose_files_were_replaced_runs_again(local_store, monkeypatch):
    _export(local_store)
    compacted = _Compacted(local_store, monkeypatch, times=1)
    assert _rows(local_store, "select count(*) from t") == ((4,),)
    assert compacted.calls == 2


def test_a_query_whose_files_are_replaced_each_time_gives_up(local_store, monkeypatch):
    _export(local_store)
    _Compacted(local_store, monkeypatch, times=100)
    with pytest.raises(SnapshotExpired, match="files were replaced each time the query ran; read again"):
        _rows(local_store, "select count(*) from t")


def test_a_file_that_is_simply_missing_is_an_error(local_store):
    _export(local_store)
    for file in Path(local_store.path("tables/t/version=v2")).iterdir():
        file.unlink()
    with pytest.raises(SqlRefused, match="IO Error"):
        _rows(local_store, "select count(*) from t")
