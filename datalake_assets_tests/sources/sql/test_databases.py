"""What every database does alike: values that change on no way, names, statements, settings, SQLite."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.errors import ConfigError, InvalidFeed, SourceRecreated, SourceRefused
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.sql import sqlite
from datalake_assets.sources.sql.databases import exact, relation_of, translated
from datalake_assets.sources.sql.sql_source import connect
from datalake_assets.sources.sql.sqlite import declared_type
from datalake_assets_tests.sources.sql.landing import feed_of, land, landed, quarantine

_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.decimals(allow_nan=True, places=3),
    st.sampled_from(["2025-01-01", "2025-01-01 10:00:00", "2025-01-01T10:00:00Z", "1", "1.5", "007", "true"]),
)
_KINDS = [pa.int64(), pa.float64(), pa.string(), pa.binary(), pa.bool_(), pa.date32(), pa.timestamp("us")]


@settings(deadline=None)  # the first example loads Arrow's casts
@given(values=st.lists(_VALUES, max_size=4), kind=st.sampled_from([*_KINDS, pa.decimal128(10, 2)]))
def test_a_value_is_kept_as_it_is_or_refused(values, kind):
    found = exact(list(values), kind)

    assert found.values.type == kind
    assert len(found.values) == len(values)
    for row, value in enumerate(values):
        kept = found.values[row].as_py()
        if row in found.bad:
            assert kept is None
            assert value is not None
        elif isinstance(value, str) and not isinstance(kept, str):
            assert _same_text(value, kept)
        elif isinstance(value, float) and value != value:  # noqa: PLR0124  NaN
            assert kept != kept  # noqa: PLR0124
        elif isinstance(value, float) and isinstance(kept, Decimal):
            assert Decimal(repr(value)) == kept  # a float that SQLite made of a decimal
        else:
            assert kept == value
            assert not isinstance(value, bool) or isinstance(kept, bool | float | Decimal)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([datetime(2020, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))], pa.timestamp("us")),
        ([time(12, tzinfo=timezone(timedelta(hours=2)))], pa.time64("us")),
        (pa.array([datetime(2020, 1, 1, 12)]), pa.date32()),  # noqa: DTZ001  it has no zone
        (pa.array([1234.567]), pa.decimal128(10, 2)),
    ],
)
def test_what_arrow_would_round_or_cut_is_refused(values, kind):
    found = exact(values, kind)
    assert (found.values.null_count, list(found.bad)) == (1, [0])


def _same_text(text, kept):
    if isinstance(kept, bytes):
        return kept == text.encode()
    if isinstance(kept, bool):
        return text.lower() in {"true", "false", "1", "0"}
    if isinstance(kept, datetime):
        return datetime.fromisoformat(text) == kept
    if isinstance(kept, date):
        return date.fromisoformat(text) == kept
    return Decimal(text) == Decimal(kept)


@pytest.mark.parametrize(
    ("written", "parts"),
    [("orders", ("orders",)), ("public.Orders", ("public", "Orders")), ('a."b.c""d"', ("a", 'b.c"d'))],
)
def test_a_table_is_named_by_its_parts(written, parts):
    assert relation_of(written, "").name == parts


@pytest.mark.parametrize("written", ["a.", ".a", "a..b", 'a"b', '"a'])
def test_a_name_that_is_none_is_refused(written):
    with pytest.raises(ConfigError, match="is no name of a table"):
        relation_of(written, "")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("INTEGER", pa.int64()),
        ("unsigned big int", pa.int64()),
        ("VARCHAR(10)", pa.string()),
        ("decimal(12,3)", pa.decimal128(12, 3)),
        ("NUMERIC", None),
        ("", None),
        ("Timestamp With Time Zone", pa.timestamp("us", "UTC")),
        ("datetime", pa.timestamp("us")),
        ("date", pa.date32()),
        ("double precision", pa.float64()),
        ("BLOB", pa.binary()),
    ],
)
def test_sqlite_columns_have_the_types_that_they_declare(kind, expected):
    assert declared_type(kind) == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"object": ""}, "name one of object and query"),
        ({"object": "a", "query": "SELECT 1"}, "name one of object and query"),
        ({"object": "a", "lag": -1}, "source.lag"),
        ({"object": "Shop:a"}, "source.database"),
    ],
)
def test_what_a_feed_cannot_say(source, reason):
    with pytest.raises(InvalidFeed, match=reason):
        feed_of(**source)


def test_the_database_of_an_object_is_named_before_a_colon():
    assert feed_of(object="shop:public.orders").source.where == "shop:public.orders"


# settings


def test_databases_are_named_in_the_settings_and_their_urls_nowhere_else(tmp_path, monkeypatch):
    (tmp_path / "urls.json").write_text(json.dumps({"b": f"sqlite:///{tmp_path}/b.db"}))
    monkeypatch.setenv("DATALAKE_SQL_DATABASES", json.dumps({"a": "postgresql://me:s3cret@127.0.0.1:1/x"}))
    settings = load_settings(sql_databases_file=str(tmp_path / "urls.json"))
    source = connect(settings)

    assert "s3cret" not in repr(settings)
    for name, reason in (
        ("a", "could not connect|Connection refused|failed"),
        ("b", "unable to open"),
        ("c", "no database"),
    ):
        with pytest.raises((SourceRefused, ConfigError, Exception), match=reason) as caught:
            source.check(feed_of(database=name, object="t", kind="table"))
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": "s3cret"}'])
def test_settings_that_are_no_urls_are_refused_without_being_repeated(text, monkeypatch):
    monkeypatch.setenv("DATALAKE_SQL_DATABASES", text)
    with pytest.raises(ConfigError, match="sql_databases: write a JSON object of URLs") as caught:
        connect(load_settings())
    assert "s3cret" not in str(caught.value)


# SQLite


@pytest.fixture
def shop(tmp_path):
    connection = sqlite3.connect(tmp_path / "shop.db")
    yield connection
    connection.close()


@pytest.fixture
def source(shop, tmp_path):
    source = connect(load_settings(sql_url=f"sqlite:///{tmp_path}/shop.db"))
    yield source
    source.close()


@pytest.fixture
def store(tmp_path):
    (tmp_path / "lake").mkdir()
    return open_store(str(tmp_path / "lake"))


def test_rows_are_read_on_by_a_number_and_land_once(shop, source, store):
    shop.execute("CREATE TABLE t (n INTEGER, at TIMESTAMP, price DECIMAL(8, 2))")
    shop.execute(
        "INSERT INTO t VALUES (-5, '2025-01-01 10:00:00', 1.10), (-5, '2025-01-02', 2), (3, '2025-01-02', 0.5)"
    )
    shop.commit()
    feed = feed_of(cursor="n", time_column="at")
    assert land(store, source, feed).rows_read == 3
    assert land(store, source, feed).rows_read == 0
    shop.execute("INSERT INTO t VALUES (4, '2025-01-01T10:00:00.5', 7), (4, '2025-02-01', NULL), (-9, '2025-01-01', 0)")
    shop.commit()

    report = land(store, source, feed)

    assert report.rows_read == 2  # that of -9 came too late, which nobody promised to land
    assert sorted(landed(store, feed, "n")) == [-5, -5, 3, 4, 4]
    assert sorted(map(str, landed(store, feed, "price"))) == ["0.50", "1.10", "2.00", "7.00", "None"]
    assert landed(store, feed, "at")[0] == datetime(2025, 1, 1, 10)  # noqa: DTZ001  it has no zone


def test_values_that_fit_no_type_go_to_quarantine_each_once(shop, source, store):
    shop.execute("CREATE TABLE t (n INTEGER, at TIMESTAMP, price DECIMAL(8, 2), born DATE)")
    rows = [
        (1, "2025-01-01 00:00:00", "1.555", None),
        (1, "2025-01-01 00:00:00", "1.555", "2025-01-01"),
        (1, "2025-01-01 00:00:00", 1.5, "2025-01-01"),
        (2, "yesterday", 1.5, None),
        (3, None, 1.5, None),
        (4, "2025-01-01 00:00:00", 2, "not a day"),
    ]
    shop.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
    shop.commit()
    feed = feed_of(cursor="n", time_column="at")
    for _ in range(2):
        land(store, source, feed)

    assert landed(store, feed, "n") == [1]
    reasons = {each.identity: each.reason for _, each in quarantine(store, feed)}
    assert sorted(reason.partition(":")[0] for reason in reasons.values()) == [
        "at",
        "at is null",
        "born",
        "price",
        "price",
    ]
    with pytest.raises(ConfigError, match="read on by values that rows may share"):
        open_table(store, feed).check_replay()


def test_a_text_that_is_none_in_utf_8_stops_no_other_row(shop, source, store):
    shop.execute("CREATE TABLE t (n INTEGER, name TEXT)")
    shop.execute("INSERT INTO t VALUES (1, 'a'), (2, CAST(x'ff61' AS TEXT)), (3, 'ä')")
    shop.commit()
    feed = feed_of(kind="table")
    land(store, source, feed)
    assert landed(store, feed, "name") == ["a", "ä"]
    assert [json.loads(each.raw) for _, each in quarantine(store, feed)] == [{"n": 2, "name": "ff61"}]


def test_rows_that_get_a_value_of_others_within_the_lag_land(shop, source, store, monkeypatch):
    shop.execute("CREATE TABLE t (batch INTEGER, at TIMESTAMP, n INTEGER)")
    shop.execute("INSERT INTO t VALUES (1, '2025-01-01', 1)")
    shop.commit()

    def written_meanwhile(seconds):
        assert seconds == 5
        shop.execute("INSERT INTO t VALUES (1, '2025-01-01', 2)")
        shop.commit()

    monkeypatch.setattr(sqlite.time, "sleep", written_meanwhile)
    feed = feed_of(cursor="batch", time_column="at", lag=5)
    land(store, source, feed)
    assert sorted(landed(store, feed, "n")) == [1, 2]
    assert land(store, source, feed).rows_read == 0


def test_rows_without_a_cursor_value_are_told(shop, source, store):
    shop.execute("CREATE TABLE t (n INTEGER, at TIMESTAMP)")
    shop.execute("INSERT INTO t VALUES (NULL, '2025-01-01'), (1, '2025-01-01')")
    shop.commit()
    assert "that have no INTEGER in n were not read" in " ".join(
        land(store, source, feed_of(cursor="n", time_column="at")).notes
    )


def test_a_table_that_begins_anew_is_told_and_read_anew_if_a_person_says_so(shop, source, store):
    shop.execute("CREATE TABLE t (n INTEGER, at TIMESTAMP)")
    shop.execute("INSERT INTO t VALUES (7, '2025-01-01'), (8, '2025-01-01')")
    shop.commit()
    feed = feed_of(cursor="n", time_column="at")
    land(store, source, feed)
    shop.execute("DELETE FROM t")
    shop.execute("INSERT INTO t VALUES (1, '2025-01-02')")
    shop.commit()

    assert "created anew" in " ".join(land(store, source, feed).notes)
    land(store, source, feed, new_epoch=True)

    assert sorted(landed(store, feed, "n")) == [1, 7, 8]


@pytest.mark.parametrize("other", [{"object": "other", "cursor": "n"}, {"cursor": "at", "lag": 0}, {"cursor": "m"}])
def test_a_feed_that_reads_other_numbers_is_an_alarm_and_reads_them_all_if_a_person_says_so(shop, source, store, other):
    shop.execute("CREATE TABLE t (n INTEGER, m INTEGER, at TIMESTAMP)")
    shop.executemany("INSERT INTO t VALUES (?, ?, '2025-01-01 10:00:00')", [(n, n // 2) for n in range(9)])
    shop.execute("CREATE TABLE other (n INTEGER, m INTEGER, at TIMESTAMP)")
    shop.execute("INSERT INTO other SELECT * FROM t")
    shop.commit()
    before = feed_of(cursor="n", time_column="at")
    land(store, source, before)
    after = feed_of(time_column="at", **other)

    with pytest.raises(SourceRecreated, match="what was landed is "):
        land(store, source, after)
    assert len(landed(store, before, "n")) == 9
    land(store, source, before)  # given back, it goes on
    assert land(store, source, after, new_epoch=True).rows_added == 9
    assert land(store, source, after).rows_read == 0


def test_a_query_goes_on_with_the_numbers_of_a_table_and_the_table_with_its_own(shop, source, store):
    shop.execute("CREATE TABLE t (n INTEGER, at TIMESTAMP)")
    shop.commit()
    table = feed_of(cursor="n", time_column="at")
    assert land(store, source, table).rows_read == 0  # what numbers its rows is known all the same
    shop.execute("INSERT INTO t VALUES (1, '2025-01-01')")
    shop.commit()
    query = feed_of(
        query="SELECT n, at FROM t", columns={"n": "int64", "at": "timestamp"}, cursor="n", time_column="at"
    )
    assert land(store, source, query).rows_added == 1
    shop.execute("CREATE TABLE u (n INTEGER, at TIMESTAMP)")
    with pytest.raises(SourceRecreated, match=r'"t" of default by n, a number, and it reads "u" of default'):
        land(store, source, feed_of(object="u", cursor="n", time_column="at"))
    assert land(store, source, table).rows_read == 0


def test_times_of_one_form_are_read_on_by_and_those_of_two_are_refused(shop, source, store):
    shop.execute("CREATE TABLE t (at TIMESTAMP)")
    shop.executemany("INSERT INTO t VALUES (?)", [("2025-01-01 10:00:00",), ("2025-01-01 10:00:00",)])
    shop.commit()
    feed = feed_of(cursor="at", lag=0)
    land(store, source, feed)
    shop.execute("INSERT INTO t VALUES ('2025-01-01 10:00:00.5')")
    shop.commit()
    land(store, source, feed)
    assert len(landed(store, feed, "at")) == 3
    shop.executemany("INSERT INTO t VALUES (?)", [("2025-01-02T10:00:00",), ("2025-01-02 11:00:00",)])
    shop.commit()
    with pytest.raises(SourceRefused, match="do not come in the order of 'at'"):
        land(store, source, feed)


@pytest.mark.parametrize("cursor", ["at", "born"])
def test_a_clock_that_was_put_back_is_told(shop, source, store, monkeypatch, cursor):
    shop.execute("CREATE TABLE t (at TIMESTAMP, born DATE)")
    shop.execute("INSERT INTO t VALUES ('2025-01-02 10:00:00', '2025-01-02')")
    shop.commit()
    for lag in (0, 86400):  # a lag that was raised is none
        assert land(store, source, feed_of(cursor=cursor, time_column="at", lag=lag)).notes == ()
    bound = sqlite.settled_before
    before = datetime(2025, 1, 1, 12, tzinfo=UTC)
    monkeypatch.setattr(sqlite, "settled_before", lambda _, kind, lag: bound(before, kind, lag))
    (note,) = land(store, source, feed_of(cursor=cursor, time_column="at", lag=0)).notes
    assert f"its clock is behind the newest {cursor} that was landed, 2025-01-02" in note


def test_a_column_of_no_exact_type_is_refused_by_name_until_its_type_is_declared(shop, source, store):
    shop.execute("CREATE TABLE t (total NUMERIC, n INTEGER)")
    shop.execute("INSERT INTO t VALUES (1.25, 1)")
    shop.commit()
    with pytest.raises(SourceRefused, match=r"column 'total' is NUMERIC.*--column-type total="):
        source.check(feed_of(kind="table"))
    feed = feed_of(kind="table", columns={"total": "decimal(9, 2)"})
    land(store, source, feed)
    assert landed(store, feed, "total") == [Decimal("1.25")]


def test_a_stream_without_a_time_is_refused(shop, source):
    shop.execute("CREATE TABLE t (n INTEGER, at TEXT)")
    for feed, reason in (
        (feed_of(), "name the column that partitions"),
        (feed_of(cursor="n"), "'n' is int64, no time"),
        (feed_of(cursor="x", time_column="at"), "'at' is string, no time"),
    ):
        with pytest.raises(InvalidFeed, match=reason):
            source.check(feed)


def test_a_late_time_zone_of_a_window_is_utc(shop, source, store):
    shop.execute("CREATE TABLE t (at TIMESTAMPTZ, n INTEGER)")
    shop.execute("INSERT INTO t VALUES ('2025-01-01 23:30:00-01:00', 1), ('2025-01-01T10:00:00Z', 2)")
    shop.commit()
    feed = feed_of(time_column="at")
    land(store, source, feed, partitions=["2025-01-01", "2025-01-02"])
    assert sorted(landed(store, feed, "at")) == [
        datetime(2025, 1, 1, 10, tzinfo=UTC),
        datetime(2025, 1, 2, 0, 30, tzinfo=UTC),
    ]


def test_no_window_loses_a_row_by_the_zone_of_its_text(shop, source, store):
    shop.execute("CREATE TABLE t (at TIMESTAMPTZ, n INTEGER)")
    shop.execute(
        "INSERT INTO t VALUES ('2024-12-31 23:30:00-05:00', 1), ('2025-01-03T08:00:00+14:00', 2),"
        " ('2025-01-02T00:00:00Z', 3)"
    )
    shop.commit()
    feed = feed_of(time_column="at", start="2025-01-01")
    for day in ("2025-01-01", "2025-01-02"):
        land(store, source, feed, partitions=[day])
    assert sorted(landed(store, feed, "n")) == [1, 2, 3]


def test_times_that_are_no_texts_of_a_day_are_told(shop, source, store):
    shop.execute("CREATE TABLE t (at DATETIME, n INTEGER)")
    shop.execute("INSERT INTO t VALUES ('2025-01-01 10:00:00', 1)")
    shop.commit()
    feed = feed_of(time_column="at", start="2025-01-01")
    assert not land(store, source, feed, partitions=["2025-01-01"]).notes
    for odd in (1735725600, "yesterday", ""):
        shop.execute("UPDATE t SET at = ? WHERE n = 1", (odd,))
        shop.execute("INSERT INTO t VALUES ('2025-01-01 10:00:00', 1)")
        shop.commit()
        notes = land(store, source, feed, partitions=["2025-01-01"]).notes
        assert "no DATETIME in at were not read" in " ".join(notes)
        shop.execute("DELETE FROM t WHERE at = ?", (odd,))


def test_a_password_is_kept_out_of_messages_also_as_drivers_decode_it():
    said = translated("d", ValueError("bad p@ss/word"), transient=False, url="mysql://u:p%40ss%2Fword@h/x")
    assert "p@ss" not in str(said)
