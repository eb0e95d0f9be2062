"""What hostile SQL gets to see and to change: nothing. As a query of a person, and as a rule of a feed."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import psutil
import pytest

from datalake_assets.errors import ConfigError
from datalake_assets.lake import sql_gate
from datalake_assets.lake.broken_rules import count_broken
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.sql_gate import SqlLimits, SqlRefused, SqlTimedOut, check_query, open_session
from datalake_assets.lake.sql_session import open_answer
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.policies import SqlRule
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of
from datalake_assets_tests.lake.sql_answers import run_sql

#: ``{secret}`` is a file outside of the lake, ``{new}`` one that is not to appear, ``{data}`` a file of the feed.
HOSTILE = [
    # readers of files
    "select * from read_csv('{secret}')",
    "select * from read_csv_auto('{secret}')",
    "select * from sniff_csv('{secret}')",
    "select * from read_text('{secret}')",
    "select * from read_blob('{secret}')",
    "select * from read_json('{secret}')",
    "select * from read_json_objects('{secret}')",
    "select * from read_ndjson('{secret}')",
    "select * from read_parquet('{secret}')",
    "select * from parquet_scan('{secret}')",
    "select * from parquet_metadata('{secret}')",
    "select * from parquet_schema('{secret}')",
    "select * from parquet_kv_metadata('{secret}')",
    "select * from parquet_file_metadata('{secret}')",
    "select * from parquet_bloom_probe('{secret}', 'a', 1)",
    "select * from read_duckdb('{secret}')",
    "select * from glob('{folder}/*')",
    "select * from '{secret}'",
    "select * from '{folder}/*.csv'",
    'select * from "{secret}"',
    "from 'file://{secret}'",
    "from 'http://127.0.0.1:9/a.csv'",
    "from 's3://bucket/a.parquet'",
    "select * from Read_CSV('{secret}')",
    "select * from \"read_csv\"('{secret}')",
    "select * from system.main.read_csv('{secret}')",
    "select * from/**/read_text/**/('{secret}')",
    "select\u00a0* from\u3000read_text('{secret}')",
    "\ufeffselect * from read_text('{secret}')",
    "select (select content from read_text('{secret}'))",
    "select * from range(1), lateral (select * from read_text('{secret}'))",
    "with a as (from read_text('{secret}')) select * from a",
    "select * from s where note in (from read_text('{secret}'))",
    "select * from s order by (select count(*) from read_text('{secret}'))",
    "select * from s union all by name from read_text('{secret}')",
    "describe select * from read_csv('{secret}')",
    "describe '{secret}'",
    "summarize '{secret}'",
    "summarize select * from read_csv('{secret}')",
    "pivot (select * from read_csv('{secret}')) on token",
    "explain analyze select * from read_text('{secret}')",
    "select * from query('select * from read_text(''{secret}'')')",
    "select * from query_table('{secret}')",
    "select * from json_execute_serialized_sql(json_serialize_sql('select * from read_text(''{secret}'')'))",
    "select getenv('SECRET_TOKEN')",
    "select * from duckdb_secrets()",
    "select * from which_secret('s3://a', 's3')",
    # this process
    "select * from python_secret",
    "select * from arrow_scan(1, 2, 3)",
    "select * from pandas_scan(140000000000000)",
    "select * from python_map_function(1)",
    # writers
    "copy (select 1) to '{new}'",
    "copy s to '{new}' (format csv)",
    "copy (select 1) to '{data}'",
    "copy s from '{secret}'",
    "explain analyze copy (select 1) to '{new}'",
    "explain copy (select 1) to '{new}'",
    "EXPLAIN (ANALYZE) COPY (select 1) TO '{new}'",
    "explain (analyze, format json) copy (select 1) to '{new}'",
    "explain analyze /* select 1 */ copy (select 1) to '{new}'",
    "explain /* /* */ analyze select 1 -- */ analyze copy (select 1) to '{new}'",
    "explain analyze create table x as select 1",
    "explain analyze insert into s values (1)",
    "explain analyze set threads = 1",
    "explain analyze delete from s",
    "with a as (copy (select 1) to '{new}') from a",
    "with a as (insert into s values (1) returning *) from a",
    "with a as (delete from s returning *) select 1",
    "with a as (update s set id = 1 returning *) select 1",
    "with p as (pivot s on day using count(*)), c as (copy (select 1) to '{new}') from p",
    "export database '{new}'",
    "import database '{folder}'",
    "attach '{new}'",
    "attach '{new}' as other; create table other.x as select 1",
    "detach memory",
    "create table x as select 1",
    "create or replace view s as select 1",
    "create macro range(a) as table select 1",
    "create secret (type s3, key_id 'a', secret 'b')",
    "create function f() as 1",
    "insert into s values (1)",
    "update s set id = 1",
    "delete from s",
    "truncate s",
    "merge into s using s as b on true when matched then delete",
    "drop view s",
    "alter view s rename to other",
    "comment on view s is 'a'",
    "vacuum",
    "checkpoint",
    "select * from checkpoint()",
    "select * from force_checkpoint()",
    "select * from enable_logging(storage = 'file', storage_config = {{'path': '{new}'}})",
    "select * from enable_profiling(save_location = '{new}')",
    "select * from register_external_resource('a', 'b')",
    # the session
    "install httpfs",
    "load httpfs",
    "force install httpfs from 'http://127.0.0.1:9'",
    "update extensions",
    "pragma version",
    "pragma enable_profiling",
    "pragma enable_external_access = true",
    "set enable_external_access = true",
    "set global lock_configuration = false",
    "set variable a = 1",
    "reset enable_external_access",
    "use memory",
    "call pragma_version()",
    "call enable_logging()",
    "begin",
    "prepare a as select 1",
    "execute a",
    "deallocate a",
    # more than one, or none
    "select 1; select 2",
    "select 1; copy (select 1) to '{new}'",
    "select 1;\u00a0copy (select 1) to '{new}'",
    "select 1\0; copy (select 1) to '{new}'",
    "select 1 -- \n; copy (select 1) to '{new}'",
    "select 1) to '{new}'; copy (select 2",
    "select 1), (copy (select 1) to '{new}'",
    "",
    ";",
    "-- nothing",
    "select ?",
    "select $a",
]


def _lake_in(folder: Path) -> Store:
    """A stream ``s``, and beside the lake a file with a secret."""
    (folder / "lake").mkdir()
    (folder / "secret.csv").write_text("token\nhunter2\n")
    store = open_store(str(folder / "lake"))
    HiveTable(store, stream_feed()).write(stream_of(numbered(range(24))), partitions=("2025-01-01",), run_id="r")
    return store


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    return _lake_in(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A lake that no test changes, as each of them checks, and the folder in which it is."""
    folder = tmp_path_factory.mktemp("untouched")
    return _lake_in(folder), folder


def _all_files(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def _filled(statement: str, folder: Path) -> str:
    (data,) = folder.glob("lake/streams/s/*/*/*/*.parquet")
    return statement.format(secret=folder / "secret.csv", new=folder / "new", folder=folder, data=data)


def test_the_table_is_long():
    assert len(set(HOSTILE)) == len(HOSTILE) > 100


@pytest.mark.parametrize("statement", HOSTILE, ids=ascii)
def test_hostile_statement_is_refused_as_a_query(untouched, statement, monkeypatch):
    lake, folder = untouched
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    python_secret = duckdb.sql("select 'hunter2'").to_arrow_table()
    before = _all_files(folder)
    with pytest.raises(SqlRefused) as refused:
        run_sql(lake, [stream_feed()], _filled(statement, folder))
    assert python_secret
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert _all_files(folder) == before


@pytest.mark.parametrize("statement", HOSTILE, ids=ascii)
def test_hostile_statement_is_refused_as_a_rule(untouched, statement):
    lake, folder = untouched
    before = _all_files(folder)
    rule = SqlRule(name="q", query=re.sub(r"\bs\b(?!3)", "data", _filled(statement, folder)))
    with pytest.raises(ConfigError, match=r"^rule 'q' of feed 's' cannot be evaluated: ") as refused:
        list(HiveTable(lake, stream_feed()).count_broken([rule], ["2025-01-01"]))
    assert "hunter2" not in str(refused.value)
    assert _all_files(folder) == before


def test_queries_are_checked_in_one_database_that_neither_runs_them_nor_starts_a_thread(monkeypatch):
    """A session takes 20 ms to open; what is forked meanwhile would have none of its threads."""
    opened, connect = [], duckdb.connect
    monkeypatch.setattr("datalake_assets.lake.sql_gate._checking", sql_gate._Checking())
    monkeypatch.setattr(duckdb, "connect", lambda **config: opened.append(connect(**config)) or opened[0])
    threads = psutil.Process().num_threads()
    for name in "abc":
        assert check_query(f"from {name} select error('run')").tables == {name}
        with pytest.raises(SqlRefused, match="give one SELECT"):
            check_query(f"create table {name} as select 1")
    assert psutil.Process().num_threads() == threads
    assert len(opened) == 1
    assert opened[0].execute("select * from duckdb_tables()").fetchall() == []
    for statement in ("set threads = 2", "from read_text('/etc/hostname')", "attach '/tmp/new'"):
        with pytest.raises(duckdb.Error):
            opened[0].execute(statement).fetchall()


def test_queries_are_checked_in_a_forked_process_too():
    check_query("select 1")
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        assert pool.apply(check_query, ("select a from b",)) == check_query("select a from b")


def test_text_that_is_not_utf8_is_refused(lake):
    with pytest.raises(SqlRefused, match="it is not text in UTF-8"):
        run_sql(lake, [stream_feed()], "select '\udcff'")


def test_the_settings_alone_keep_a_session_shut(lake, tmp_path):
    """Whatever the gate's other half overlooks."""
    (data,) = tmp_path.glob("lake/streams/s/*/*/*/*.parquet")
    with open_session(readable=[str(data)], limits=SqlLimits()) as session:
        assert session.connection.sql(f"from read_parquet('{data}')").fetchall()
        for statement in (
            f"from read_text('{tmp_path}/secret.csv')",
            f"from '{tmp_path}/secret.csv'",
            f"from read_text('{data.parent}/../../../../../../secret.csv')",
            f"from glob('{tmp_path}/*')",
            f"copy (select 1) to '{tmp_path}/new'",
            f"attach '{tmp_path}/new'",
            "set enable_external_access = true",
            "set threads = 1",
            "set temp_directory = '/tmp'",
            "install httpfs",
            "load httpfs",
            f"from enable_logging(storage = 'file', storage_config = {{'path': '{tmp_path}/new'}})",
            "from python_secret",
        ):
            python_secret = duckdb.sql("select 1").to_arrow_table()
            with pytest.raises(duckdb.Error):
                session.connection.execute(statement).fetchall()
            assert python_secret
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "query",
    [
        "with recursive n as (select 1 as i union all select i + 1 from n) select count(*) from n",
        "select count(*) from range(1_000_000_000_000)",
        "select count(*) from range(1_000_000) a, range(1_000_000) b, range(1_000_000) c",
        "select max(sleep_ms(100)) from range(1_000_000)",
        "select sum(hash(a.range, b.range)) from range(10_000_000) a, range(10_000_000) b",
    ],
)
def test_a_query_that_never_ends_is_ended(lake, query):
    began = time.monotonic()
    with open_session(limits=SqlLimits(threads=2)) as session:
        text = session.check(query).text
        with pytest.raises(SqlTimedOut, match=r"it was not done after 0.5 s, and was ended"), session.limited(0.5):
            session.connection.execute(text).fetchall()
        assert session.connection.execute("select 1").fetchall() == [(1,)]  # and nothing else is
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "query",
    [
        "select list(range) from range(1_000_000_000)",
        "select string_agg(repeat('x', 1000)) from range(10_000_000)",
        "select count(*) from (select distinct range, hash(range) from range(20_000_000))",
        "select array_agg(repeat('x', 100_000)) from range(100_000)",
    ],
)
def test_a_query_that_takes_too_much_memory_is_ended(query):
    before = psutil.Process(os.getpid()).memory_info().rss
    with open_session(limits=SqlLimits(memory="128MB", spill_percent=0, threads=2)) as session:
        text = session.check(query).text
        with pytest.raises(duckdb.OutOfMemoryException):
            session.connection.execute(text).fetchall()
    assert psutil.Process(os.getpid()).memory_info().rss - before < 600e6


def test_a_rule_that_never_ends_says_what_to_do(lake):
    rule = SqlRule(name="endless", query="select * from data, range(1_000_000_000_000)", timeout_s=0.5)
    with pytest.raises(ConfigError) as late:
        list(HiveTable(lake, stream_feed()).count_broken([rule], ["2025-01-01"]))
    assert str(late.value) == (
        "rule 'endless' of feed 's' cannot be evaluated: it was not done after 0.5 s, and was ended;"
        " ask for less, or give the rule a larger timeout_s"
    )


TIGHT = SqlLimits(memory="64MB", uncounted_percent=0, threads=2)


@pytest.mark.parametrize(
    "query",
    [
        "select length(repeat('x', 2_000_000_000))",
        "select list_sum(range(300_000_000))",
        "select len(list_resize([1], 300_000_000, 0))",
        "select len(repeat([1], 300_000_000))",
        "select max(length(repeat('x', 100_000_000 + i::int))) from range(9) t(i)",
    ],
)
def test_value_that_a_function_makes_is_bounded(query, monkeypatch):
    """DuckDB does not count it."""
    monkeypatch.setattr("datalake_assets.lake.sql_gate.LEAST_UNCOUNTED", 1 << 28)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = psutil.Process().memory_info().rss
    with open_session(limits=TIGHT) as session:
        with pytest.raises(duckdb.OutOfMemoryException), session.bounded():
            session.connection.execute(session.check(query).text).fetchall()
        assert psutil.Process().memory_info().rss - used < 400e6
        assert session.connection.execute("select 42").fetchall() == [(42,)]
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_rule_whose_value_is_too_large_is_named(lake, monkeypatch):
    monkeypatch.setattr("datalake_assets.lake.broken_rules.LIMITS", TIGHT)
    rule = SqlRule(name="large", query="select * from data where length(repeat('x', 2_000_000_000)) < 1")
    with pytest.raises(ConfigError, match="'large' of feed 's' cannot be evaluated: it takes more memory than it may"):
        list(count_broken(HiveTable(lake, stream_feed()), [rule], ["2025-01-01"]))


def test_query_whose_value_is_too_large_is_refused(lake):
    with (
        pytest.raises(SqlRefused) as refused,
        open_answer(lake, [], "select repeat('x', 2_000_000_000)", limits=TIGHT),
    ):
        pass
    assert str(refused.value).startswith("the query cannot be run: it takes more memory than it may (")
    assert "SET" not in str(refused.value)


def test_queries_at_once_are_bounded_until_the_last_has_ended():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with open_session(limits=TIGHT) as one, open_session(limits=TIGHT) as two, one.bounded():
        with two.bounded():
            assert resource.getrlimit(resource.RLIMIT_DATA) != before
        assert resource.getrlimit(resource.RLIMIT_DATA) != before
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@contextmanager
def _alarm_after(seconds: float) -> Iterator[None]:
    """A signal like Ctrl-C's; it interrupts whatever goes on by then."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_ENDLESS_QUERY = "SELECT sum(a.range * b.range % 7) FROM range(10000000) a, range(10000000) b"


@pytest.mark.parametrize("threads", [1, 4])
def test_a_signal_ends_a_query_and_is_no_error_of_it(threads):
    """DuckDB by itself makes a RuntimeError of whatever the handler raised, or waits for ever if it has 4 threads."""
    with open_session(limits=SqlLimits(threads=threads)) as session:
        for _ in range(2):  # the session is none the worse for it
            with pytest.raises(KeyboardInterrupt), _alarm_after(0.2):
                session.run(lambda: session.connection.execute(_ENDLESS_QUERY))
        assert session.run(session.connection.execute("SELECT 1").fetchall) == [(1,)]


def test_a_signal_while_duckdb_does_a_statement_of_ours_is_an_interruption():
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        open_session(limits=SqlLimits(threads=1)) as session,
        _alarm_after(0.5),
    ):
        session.connection.execute(_ENDLESS_QUERY)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_temporary_files_go_with_their_session(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_session(limits=SqlLimits(memory="64MB", threads=2)) as session:
        query = "select count(*) from (select distinct range, hash(range) from range(5_000_000))"
        assert session.connection.execute(query).fetchall() == [(5_000_000,)]
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_limit_leaves_no_thread_that_holds_the_session():
    """Such a thread outlives the interpreter's modules, and DuckDB then prints a page of leaks at a process's end."""
    left = set()
    before = set(threading.enumerate())
    with open_session(limits=SqlLimits()) as session:
        for _ in range(300):
            with session.limited(3600):
                pass
            left |= set(threading.enumerate()) - before

    assert left == set()
