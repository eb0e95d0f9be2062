"""Tables of a real PostgreSQL: each type exact, each row once, whatever is committed late or at the same moment."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

from datalake_assets.core.batches import ReadRequest
from datalake_assets.errors import SourceError, SourceRefused, SourceUnavailable
from datalake_assets.lake import merge_changes
from datalake_assets.lake.store import open_store
from datalake_assets.settings import load_settings
from datalake_assets.sources.sql import sql_source
from datalake_assets.sources.sql.sql_source import connect
from datalake_assets_tests.sources.sql.landing import feed_of, land, landed, quarantine

pytestmark = pytest.mark.xdist_group("databases")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def database(postgres):
    return postgres.database()


@pytest.fixture
def sql(postgres, database):
    """Runs a script by psql."""
    return lambda script: postgres.run(database, script)


@pytest.fixture
def source(postgres, database):
    source = connect(load_settings(sql_url=postgres.url(database)))
    yield source
    source.close()


@pytest.fixture
def hasty(postgres, database):
    """One that soon gives up waiting for others."""
    source = connect(load_settings(sql_url=postgres.url(database), sql_timeout_s="2"))
    yield source
    source.close()


@pytest.fixture
def session(postgres, database):
    session = postgres.session(database)
    yield session
    session.close()


TYPES = {
    "i2 smallint": ("-32768", -32768),
    "i8 bigint": ("9223372036854775807", 2**63 - 1),
    "n numeric(38, 10)": (
        "1234567890123456789012345678.0123456789",
        Decimal("1234567890123456789012345678.0123456789"),
    ),
    "few numeric(2, 4)": ("0.0012", Decimal("0.0012")),
    "many numeric(3, -2)": ("12300", Decimal(12300)),
    "f real": ("1.1", pytest.approx(1.1, rel=1e-7)),
    "d double precision": ("0.1", 0.1),
    "t text": ("'Zoë \\ '' \t'", "Zoë \\ ' \t"),
    "c char(3)": ("'a'", "a  "),
    "ts timestamp": ("'2025-01-01 10:00:00.123456'", datetime(2025, 1, 1, 10, 0, 0, 123456)),  # noqa: DTZ001
    "tz timestamptz": ("'2025-01-01 10:00:00.123456+02'", datetime(2025, 1, 1, 8, 0, 0, 123456, UTC)),
    "da date": ("'1999-12-31'", date(1999, 12, 31)),
    "ti time": ("'23:59:59.999999'", time(23, 59, 59, 999999)),
    "b bytea": ("'\\x00ff27'", b"\x00\xff'"),
    "u uuid": ("'5f9f6e4e-2f0b-4d5c-8f2a-0123456789ab'", "5f9f6e4e-2f0b-4d5c-8f2a-0123456789ab"),
    "j jsonb": ("'{\"a\": [1, null]}'", '{"a": [1, null]}'),
    "bo boolean": ("true", True),
    "a integer[]": ("'{{1,2},{3,NULL}}'", "[[1,2],[3,null]]"),
    "e mood": ("'glad'", "glad"),
    "dm amount": ("3.14", Decimal("3.14")),
    "iv interval": ("'1 day 2 hours'", "P1DT2H"),
    "ip inet": ("'10.0.0.1/8'", "10.0.0.1/8"),
    "r int4range": ("'[1,5)'", "[1,5)"),
    "o oid": ("4294967295", 4294967295),
    "bi bit(3)": ("B'101'", "101"),
    "tt timetz": ("'10:00+01'", "10:00:00+01"),
}


def test_rows_come_in_batches_of_a_few_megabytes(sql, source):
    sql("CREATE TABLE t AS SELECT i::bigint AS id, repeat('x', 200) AS v FROM generate_series(1, 50000) i")
    batches = [each.rows for each in source.read(feed_of(kind="table"), ReadRequest())]
    assert sum(each.num_rows for each in batches) == 50_000
    assert max(each.nbytes for each in batches) < 4 << 20


def test_each_type_arrives_as_it_is(sql, source, store):
    sql("CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN amount AS numeric(10, 2);")
    values = ", ".join(each for each, _ in TYPES.values())
    sql(f"CREATE TABLE t ({', '.join(TYPES)}); INSERT INTO t VALUES ({values})")  # noqa: S608
    sql("INSERT INTO t DEFAULT VALUES")
    feed = feed_of(kind="table")

    land(store, source, feed)

    for column, (_, expected) in TYPES.items():
        assert landed(store, feed, column.split()[0]) == [expected, None], column


def test_what_no_column_can_hold_goes_to_quarantine(sql, source, store):
    sql(
        """CREATE TABLE t (n int, d date, at timestamptz, ti time, x numeric(4, 1));
        INSERT INTO t (n, d) VALUES (1, 'infinity'), (2, '-infinity');
        INSERT INTO t (n, at) VALUES (3, 'infinity'), (4, '-infinity');
        INSERT INTO t (n, ti) VALUES (5, '24:00'); INSERT INTO t (n, x) VALUES (6, 'NaN');
        INSERT INTO t VALUES (7, '0001-01-01 BC', '4713-11-24 BC', '00:00', -999.9)"""
    )
    feed = feed_of(kind="table")
    land(store, source, feed)
    assert landed(store, feed, "n") == [7]
    assert len({each.identity for _, each in quarantine(store, feed)}) == 6


def test_a_number_without_digits_is_refused_by_name_and_taken_if_declared(sql, source, store):
    sql("CREATE TABLE t (total numeric); INSERT INTO t VALUES (1.5), (1.23456)")
    with pytest.raises(SourceRefused, match="column 'total' is numeric"):
        source.check(feed_of(kind="table"))
    feed = feed_of(kind="table", columns={"total": "decimal(12, 2)"})
    land(store, source, feed)
    assert landed(store, feed, "total") == [Decimal("1.50")]  # no digit is rounded away
    assert [each.reason.partition(":")[0] for _, each in quarantine(store, feed)] == ["total"]
    text = feed_of(kind="table", query="SELECT total::text AS s, 1.50::numeric(5, 2) AS p FROM t")
    assert str(source.read(text, ReadRequest()).schema.types) == "[DataType(string), Decimal128Type(decimal128(5, 2))]"


def test_rows_of_one_moment_land_together_and_once(sql, source, store):
    sql("CREATE TABLE t (id int, at timestamptz); CREATE INDEX ON t (at)")
    sql("INSERT INTO t SELECT i, '2025-01-01 10:00+00' FROM generate_series(1, 1000) i")
    sql("INSERT INTO t SELECT i, '2025-01-02 10:00+00' FROM generate_series(1001, 1500) i")
    feed = feed_of(cursor="at")
    assert land(store, source, feed).rows_read == 1500
    sql("INSERT INTO t SELECT i, '2025-01-02 10:00:00.000001+00' FROM generate_series(1501, 1600) i")
    assert land(store, source, feed).rows_read == 100
    assert land(store, source, feed).rows_read == 0
    assert sorted(landed(store, feed, "id")) == list(range(1, 1601))


def test_a_number_that_becomes_visible_after_a_higher_one_is_waited_for(sql, source, hasty, store, session):
    sql("CREATE TABLE t (id bigserial PRIMARY KEY, at timestamptz DEFAULT '2025-01-01'); CREATE TABLE other (x int)")
    feed = feed_of(cursor="id", time_column="at")
    session.run("BEGIN; INSERT INTO t DEFAULT VALUES; INSERT INTO t DEFAULT VALUES")
    sql("INSERT INTO t DEFAULT VALUES")  # 3, before 1 and 2

    with pytest.raises(SourceUnavailable, match=r"transactions were open for 2 s that may write rows below"):
        land(store, hasty, feed)

    commit = threading.Timer(0.2, session.run, ["COMMIT; BEGIN; INSERT INTO other VALUES (1)"])
    commit.start()
    assert land(store, source, feed).rows_read == 3
    commit.join()
    assert sorted(landed(store, feed, "id")) == [1, 2, 3]
    assert land(store, source, feed).rows_read == 0  # nobody is waited for where nothing is new


def test_who_writes_elsewhere_is_waited_for_only_where_nobody_knows_what_a_query_reads(sql, source, hasty, session):
    sql("CREATE TABLE t (id bigserial PRIMARY KEY, at timestamptz DEFAULT now()); CREATE TABLE other (x int)")
    sql("INSERT INTO t DEFAULT VALUES")
    session.run("BEGIN; INSERT INTO other VALUES (1)")
    assert sum(each.rows.num_rows for each in source.read(feed_of(cursor="id", time_column="at"), ReadRequest())) == 1
    query = feed_of(query="SELECT * FROM t", cursor="id", time_column="at")
    with pytest.raises(SourceUnavailable, match="may write rows below"):
        list(hasty.read(query, ReadRequest()))


def test_a_prepared_transaction_and_a_part_of_a_table_are_waited_for(sql, source, hasty):
    sql("CREATE TABLE t (id bigserial, at timestamptz DEFAULT now()) PARTITION BY RANGE (id)")
    sql("CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (1000)")
    sql("BEGIN; INSERT INTO t1 VALUES (5); PREPARE TRANSACTION 'late'; INSERT INTO t VALUES (9)")
    feed = feed_of(cursor="id", time_column="at")
    with pytest.raises(SourceUnavailable, match="a prepared transaction"):
        list(hasty.read(feed, ReadRequest()))
    sql("COMMIT PREPARED 'late'")
    assert sum(each.rows.num_rows for each in source.read(feed, ReadRequest())) == 2


def test_a_time_given_before_a_transaction_ended_is_waited_for(sql, source, store, session, monkeypatch):
    monkeypatch.setattr("datalake_assets.sources.sql.databases.COARSEST", timedelta(0))
    monkeypatch.setattr("datalake_assets.sources.sql.postgresql.HELD_BACK", timedelta(0))
    sql("CREATE TABLE t (id int, at timestamptz DEFAULT now())")
    feed = feed_of(cursor="at")
    sql("INSERT INTO t VALUES (0)")
    session.run("BEGIN; SELECT now()")  # it has not written yet
    sql("INSERT INTO t VALUES (2)")

    report = land(store, source, feed)

    assert report.rows_read == 1
    assert "wait for the transaction of process" in " ".join(report.notes)
    session.run("INSERT INTO t VALUES (1); COMMIT")  # its time lies before that of 2
    assert land(store, source, feed).rows_read == 2
    assert sorted(landed(store, feed, "id")) == [0, 1, 2]


def test_who_cannot_see_open_transactions_has_to_say_how_late_rows_may_be(postgres, sql, database):
    sql("CREATE TABLE t (id int, at timestamptz, naive timestamp)")
    sql("DROP ROLE IF EXISTS blind; CREATE ROLE blind LOGIN; GRANT SELECT ON t TO blind")
    source = connect(load_settings(sql_url=postgres.url(database, user="blind")))
    for cursor, reason in (("at", "pg_read_all_stats"), ("naive", "nobody knows the clock")):
        with pytest.raises(SourceRefused, match=f"{reason}.*--lag"):
            source.check(feed_of(cursor=cursor))
        source.check(feed_of(cursor=cursor, lag=1))
    source.check(feed_of(cursor="id", time_column="at"))  # locks are seen by all
    source.close()
    sql("DROP OWNED BY blind; DROP ROLE blind")


def test_a_session_that_hides_its_transactions_is_never_taken_for_none(sql, source, session):
    sql("CREATE TABLE t (id int, at timestamptz DEFAULT now())")
    session.run("SET track_activities = off; BEGIN; INSERT INTO t VALUES (1)")  # pg_stat_activity has no start of it
    with pytest.raises(SourceRefused, match=r"track_activities.*--lag"):
        source.check(feed_of(cursor="at"))
    source.check(feed_of(cursor="at", lag=1))


def test_changes_of_one_moment_are_merged_in_one_round(sql, source, store, monkeypatch):
    monkeypatch.setattr(merge_changes, "ROUND_ROWS", 10)
    sql("CREATE TABLE t (id int PRIMARY KEY, note text, at timestamptz, changed timestamptz)")
    sql("INSERT INTO t SELECT i, 'a', '2025-01-01'::timestamptz, '2025-01-05' FROM generate_series(1, 100) i")
    feed = feed_of(cursor="changed", time_column="at", write="merge", key=["id"], batch_rows=7)
    land(store, source, feed)
    assert sorted(landed(store, feed, "id")) == list(range(1, 101))
    sql("UPDATE t SET note = 'b', changed = '2025-01-06' WHERE id <= 50")
    land(store, source, feed)
    assert sorted(landed(store, feed, "note")) == ["a"] * 50 + ["b"] * 50
    assert sorted(landed(store, feed, "id")) == list(range(1, 101))


def test_batches_of_shared_numbers_are_never_cut_between_rounds(monkeypatch):
    monkeypatch.setattr(merge_changes, "ROUND_ROWS", 3)
    schema = pa.schema([("id", pa.int64())])
    with merge_changes.Spool(schema) as spool:
        for offset in (1, 1, 2, 2, 2, 3):
            rows = pa.record_batch([pa.array([offset, offset])], schema=schema)
            own = (pa.array([0, 0], pa.int32()), pa.array([offset] * 2), pa.array([False] * 2), pa.array(["k"] * 2))
            spool.write(rows, *own)
        rounds = [table.column("id").to_pylist() for table in spool.rounds(whole_numbers=True)]
    assert rounds == [[1] * 4, [2] * 6, [3] * 2]


def test_a_query_that_writes_is_refused(sql, source):
    sql(
        "CREATE TABLE t (id int);"
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING id'"
    )
    with pytest.raises(SourceError, match="read-only transaction"):
        list(source.read(feed_of(query="SELECT f() AS x", kind="table"), ReadRequest()))


def test_tables_are_listed_as_they_are_named(sql, source, database):
    sql(
        'CREATE SCHEMA "s.x"; CREATE TABLE "s.x"."Odd" (x int); CREATE TABLE plain (x int);'
        "CREATE VIEW v AS SELECT 1 AS x"
    )
    assert [each.name for each in source.discover()] == ["public.plain", "public.v", '"s.x".Odd']
    for name in ("public.plain", "public.v", '"s.x".Odd'):
        source.check(feed_of(object=name, kind="table"))


def test_a_connection_that_broke_is_made_anew(sql, source, postgres):
    sql("CREATE TABLE t (id int)")
    source.check(feed_of(kind="table"))
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'datalake'"
    assert postgres.run("postgres", end).strip() == "t"
    source.check(feed_of(kind="table"))


def test_a_server_that_is_not_there_is_named_without_its_url(monkeypatch):
    monkeypatch.setattr(sql_source, "ATTEMPTS", 1)
    source = connect(load_settings(sql_url="postgresql://secretuser:secretword@127.0.0.1:1/secretbase"))
    with pytest.raises(SourceUnavailable) as caught:
        source.check(feed_of(kind="table"))
    assert "database 'default'" in str(caught.value)
    assert "secret" not in str(caught.value)
