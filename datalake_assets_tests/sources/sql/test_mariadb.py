"""A real MariaDB by SQLAlchemy and PyMySQL; and a driver of ADBC that nobody here knows."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from datalake_assets.core.batches import ReadRequest
from datalake_assets.errors import ConfigError, SourceRefused
from datalake_assets.lake.store import open_store
from datalake_assets.settings import load_settings
from datalake_assets.sources.sql.sql_source import connect
from datalake_assets_tests.sources.sql.landing import feed_of, land, landed, quarantine

pytestmark = pytest.mark.xdist_group("databases")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def database(mariadb):
    return mariadb.database()


@pytest.fixture
def sql(mariadb, database):
    return lambda script: mariadb.run(database, script)


@pytest.fixture
def source(mariadb, database):
    source = connect(load_settings(sql_url=mariadb.url(database)))
    yield source
    source.close()


TYPES = {
    "ti TINYINT": ("-128", -128),
    "u BIGINT UNSIGNED": ("18446744073709551615", Decimal(18446744073709551615)),
    "n DECIMAL(38, 10)": (
        "1234567890123456789012345678.0123456789",
        Decimal("1234567890123456789012345678.0123456789"),
    ),
    "f FLOAT": ("16777217.3", pytest.approx(16777217.3, rel=1e-7)),
    "d DOUBLE": ("0.1", 0.1),
    "s VARCHAR(9) CHARACTER SET utf8mb4": ("'a%s :x ☃'", "a%s :x ☃"),
    "dt DATETIME(6)": ("'2025-01-01 10:00:00.123456'", datetime(2025, 1, 1, 10, 0, 0, 123456)),  # noqa: DTZ001
    "ts TIMESTAMP(3) NULL": ("'2025-01-01 10:00:00.123'", datetime(2025, 1, 1, 10, 0, 0, 123000, UTC)),
    "da DATE": ("'1999-12-31'", date(1999, 12, 31)),
    "tm TIME(3)": ("'-838:59:59.000'", "-838:59:59.000"),
    "b VARBINARY(9)": ("x'00ff27'", b"\x00\xff'"),
    "e ENUM('sad', 'glad')": ("'glad'", "glad"),
    "j JSON": ("'{\"a\": [1, null]}'", '{"a": [1, null]}'),
    "bi BIT(3)": ("b'101'", b"\x05"),
}


def test_each_type_arrives_as_it_is(sql, source, store):
    sql(f"CREATE TABLE t ({', '.join(TYPES)})")
    values = ", ".join(each for each, _ in TYPES.values())
    sql(f"SET time_zone = '+00:00'; INSERT INTO t VALUES ({values})")  # noqa: S608
    sql("INSERT INTO t VALUES ()")
    feed = feed_of(kind="table")

    land(store, source, feed)

    for column, (_, expected) in TYPES.items():
        assert landed(store, feed, column.split()[0]) == [expected, None], column


def test_a_day_that_is_none_goes_to_quarantine(sql, source, store):
    sql("SET sql_mode = ''; CREATE TABLE t (n INT, da DATE, dt DATETIME)")
    sql(
        "SET sql_mode = ''; INSERT INTO t VALUES (1, '0000-00-00', NULL), (2, NULL, '2025-00-01 00:00:00'),"
        " (3, '2025-01-01', NULL)"
    )
    feed = feed_of(kind="table")
    land(store, source, feed)
    assert landed(store, feed, "n") == [3]
    assert len(quarantine(store, feed)) == 2


def test_rows_are_read_on_by_a_number_within_the_lag_that_is_declared(sql, source, store):
    sql("CREATE TABLE t (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, at DATETIME, note VARCHAR(9))")
    sql("INSERT INTO t (at, note) VALUES ('2025-01-01', '%'), ('2025-01-02', ':a')")
    with pytest.raises(SourceRefused, match=r"does not tell which transactions are open.*--lag"):
        source.check(feed_of(cursor="id", time_column="at"))
    feed = feed_of(cursor="id", time_column="at", lag=0.01, batch_rows=1)
    assert land(store, source, feed).rows_read == 2
    sql("INSERT INTO t (at) SELECT at FROM t")
    assert land(store, source, feed).rows_read == 2
    assert land(store, source, feed).rows_read == 0
    assert sorted(landed(store, feed, "id")) == [1, 2, 3, 4]


def test_a_query_is_read_in_the_types_that_are_declared(sql, source, store):
    sql("CREATE TABLE t (id INT, at DATETIME, p DOUBLE); INSERT INTO t VALUES (1, '2025-01-01', 0.5)")
    query = "SELECT id, at, ':x %s' AS note, p FROM t"
    with pytest.raises(SourceRefused, match="--column-type id="):
        source.check(feed_of(query=query, kind="table"))
    types = {"id": "int64", "at": "timestamp", "note": "string", "p": "double"}
    feed = feed_of(query=query, columns=types, cursor="at", lag=0)
    land(store, source, feed)
    assert (landed(store, feed, "note"), landed(store, feed, "p")) == ([":x %s"], [0.5])


def test_a_table_that_is_not_there_is_named(source):
    with pytest.raises(SourceRefused, match="there is no table nowhere"):
        source.check(feed_of(object="nowhere", kind="table"))


def test_tables_are_listed(sql, source, database):
    sql("CREATE TABLE plain (x INT); CREATE TABLE `odd.name` (x INT)")
    names = {each.name for each in source.discover()}
    assert {"plain", '"odd.name"'} <= names
    source.check(feed_of(object='"odd.name"', kind="table"))


@pytest.mark.parametrize(
    "url", ["mysql+nodriver://u:s3cret@127.0.0.1/x", "adbc+nodriver://u:s3cret@h", "oracle+nothing://s3cret"]
)
def test_a_driver_that_is_not_installed_is_named(url):
    source = connect(load_settings(sql_url=url))
    with pytest.raises((ConfigError, SourceRefused)) as caught:
        source.read(feed_of(kind="table"), ReadRequest()).schema  # noqa: B018  it asks
    assert "s3cret" not in str(caught.value)
