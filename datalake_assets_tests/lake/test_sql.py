"""SQL over a lake: exact rows, on each kind of store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from datalake_assets.errors import ObjectNotFound, SnapshotExpired
from datalake_assets.lake import sql_session as sql
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.sql_gate import SqlRefused
from datalake_assets.lake.sql_session import open_answer, open_arrow_answer
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.sql_answers import run_sql

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


def test_joins_plain_feeds_with_iceberg_tables_and_reads_a_version_of_each(local_store):
    feeds = (STREAM, table_feed(format={"type": "iceberg"}))
    open_table(local_store, STREAM).write(stream_of(numbered(range(48))), partitions=("2025-01-01",), run_id="r")
    table = open_table(local_store, feeds[1])
    for rows in (3, 4):
        table.write(table_of(rows), partitions=table.plan().partitions, run_id="r")
    query = "SELECT s.id, t.version, s.note = t.note FROM s JOIN t USING (id) WHERE s.day = 1 ORDER BY id"
    assert run_sql(local_store, feeds, query).rows == tuple((number, "v2", True) for number in range(4))


def test_columns_are_the_schema_then_the_partition(store):
    _export(store)
    assert run_sql(store, (STREAM,), "select * from s limit 0").columns == (
        *("id", "note", "rowtime"),
        *("year", "month", "day"),
    )


def test_filters_by_partition_and_column(store):
    _export(store)
    assert _rows(store, "select min(id), count(*) from s where day = 2 and note <> 'n30'") == ((24, 23),)


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
    "query",
    [
        *("describe s", "summarize s", "show s", "from s", "with a as (from s) from a", "values (1), (2)", "table s"),
        *("explain select * from s", "explain analyze from s", "explain (format json) select * from s"),
        *("pivot s on day using count(*)", "with p as (pivot s on day using count(*)) from p"),
        *("pivot s on day in (1, 2) using count(*)", "from s pivot (count(*) for day in (1))"),
        *("unpivot (select 1 as a, 2 as b) on a, b", "describe select * from s", "select unnest(range(3)) from s"),
        *("/* first */ select 1 from s -- last", "select 1 from s;", "select 1 from main.s", "((select 1 from s))"),
        *("with recursive n as (select 1 as i union all select i + 1 from n where i < 9) from n, s",),
        *("select * from s, range(2), generate_series(1, 2)", "select * from s tablesample 100%", "from S"),
        *("select columns('i.*') from s", "select * from s positional join range(3)", "from s select id limit 1"),
        *("with insert as (select 1 as copy from s) select copy from insert", "select 'copy' as attach from s"),
    ],
)
def test_other_reads_work(local_store, query):
    _export(local_store)
    assert run_sql(local_store, (STREAM,), query).rows


class _Compacted:
    """Reads that find their files replaced, ``times`` times: a compaction between listing and reading."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
        self.left, self.calls = times, 0
        original = sql._View.register

        def register(view: Any, connection: Any) -> None:
            original(view, connection)
            self.calls += 1
            if self.left:
                self.left -= 1
                table = HiveTable(store, TABLE)
                fresh = table.plan().partitions
                table.write(table_of(3 + self.calls), partitions=fresh, run_id="r")
                for file in view.read_by_duckdb:
                    Path(file).unlink()

        monkeypatch.setattr(sql._View, "register", register)


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
    with pytest.raises(ObjectNotFound, match=r"snapshot_.*parquet: no such object; run 'datalake verify'"):
        _rows(local_store, "select count(*) from t")


#: An answer that fails far behind its first rows.
_LATE = "select if(range = 3_000_000, error('too late'), range) as n from t, range(4_000_000) where id = 0"


@pytest.mark.parametrize("open_it", [open_answer, open_arrow_answer])
def test_an_answer_that_fails_late_is_not_begun_anew_when_its_files_were_replaced(local_store, open_it):
    _export(local_store)
    table = HiveTable(local_store, TABLE)
    with open_it(local_store, [TABLE], _LATE) as answer:
        next(answer.batches)
        table.write(table_of(9), partitions=table.plan().partitions, run_id="r")
        with pytest.raises(SnapshotExpired, match="a file was compacted or replaced during the query; read again"):
            list(answer.batches)


@pytest.mark.parametrize("open_it", [open_answer, open_arrow_answer])
def test_an_answer_that_fails_late_says_why(local_store, open_it):
    _export(local_store)
    with open_it(local_store, [TABLE], _LATE) as answer, pytest.raises(SqlRefused, match="too late"):
        list(answer.batches)


def test_an_answer_is_streamed(local_store):
    with open_answer(local_store, (), "select range from range(1_000_000_000_000)") as answer:
        assert [len(next(answer.batches)) for _ in range(3)] == [sql.ROWS] * 3
    with open_arrow_answer(local_store, (), "select range from range(1_000_000_000_000)") as arrow:
        assert [next(arrow.batches).num_rows for _ in range(3)] == [sql.ARROW_ROWS] * 3


def test_another_thread_can_end_a_query(local_store):
    ends: list[Any] = []
    with open_answer(local_store, (), "select range from range(1_000_000_000_000)", on_begin=ends.append) as answer:
        next(answer.batches)
        ends[0]()
        with pytest.raises(SqlRefused, match="Interrupted"):
            list(answer.batches)
    ends[0]()  # too late, and no harm


def test_a_name_that_a_query_defines_need_not_have_data(local_store):
    assert run_sql(local_store, (STREAM,), "with s as (select 1 as n) select n from s").rows == ((1,),)


def test_show_tables_lists_the_feeds_that_have_data(local_store):
    assert _rows(local_store, "show tables") == ()
    _export(local_store)
    assert _rows(local_store, "show tables") == (("s",), ("t",))
    assert run_sql(local_store, (STREAM, TABLE, stream_feed(name="empty")), "show tables").rows == (("s",), ("t",))
