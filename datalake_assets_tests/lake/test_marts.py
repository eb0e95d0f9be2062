"""Marts hold what their query gives for what their inputs hold, and are made anew when that has changed, and only then.

What is expected of rows is computed here in Python, or written down; nothing of the product's SQL takes part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import ConfigError, SchemaChanged
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import AssetSource, FeedKind, MartSource
from datalake_assets.lake.frames import frame_batches
from datalake_assets.lake.marts.mart_inputs import mart_problem
from datalake_assets.lake.marts.mart_lineage import column_lineage
from datalake_assets.lake.marts.mart_order import made_in_waves
from datalake_assets.lake.marts.mart_reading import LakeSystem
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import WriteReport
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of
from datalake_assets_tests.lake.mortal_store import Killed, MortalStore

D1, D2, D3 = "2026-01-01", "2026-01-02", "2026-01-03"
REVENUE = "SELECT u.name, sum(o.amount)::BIGINT AS total FROM orders o JOIN users u ON u.id = o.user_id GROUP BY ALL"


def stream(name: str, **more: Any) -> Feed:
    return Feed(**{"name": name, "kind": "stream", "source": AssetSource(asset=name), "start": D1, **more})


def mart(name: str, query: str, *, kind: str = "stream", whole: tuple[str, ...] = (), **more: Any) -> Feed:
    return Feed(
        **{"name": name, "kind": kind, "source": MartSource(query=query, whole=whole), "start": "2026-01-01", **more}
    )


@dataclass
class Shop:
    """A lake with orders by day and users, and marts over them."""

    store: Store

    def add(self, *feeds: Feed) -> None:
        for feed in feeds:
            FeedRegistry(self.store).add(feed)

    def feed(self, name: str) -> Feed:
        return FeedRegistry(self.store).get(name)

    def put(self, name: str, key: str | None, *rows: tuple[Any, ...], columns: tuple[str, ...]) -> None:
        """Replaces a partition, or makes a version."""
        table = open_table(self.store, self.feed(name))
        frame = pa.table({each: [row[i] for row in rows] for i, each in enumerate(columns)})
        keys = table.plan([key] if key else None).partitions
        table.write(frame_batches(frame, asset=name), partitions=keys, run_id="run")

    def orders(self, key: str, *rows: tuple[int, int]) -> None:
        self.put("orders", key, *rows, columns=("user_id", "amount"))

    def users(self, *rows: tuple[int, str]) -> None:
        self.put("users", None, *rows, columns=("id", "name"))

    def make(self, name: str, *keys: str) -> WriteReport:
        table = open_table(self.store, self.feed(name))
        plan = table.plan(keys or None)
        return table.write(
            LakeSystem(self.store).read(table.feed, plan.request), partitions=plan.partitions, run_id="run"
        )

    def rows(self, name: str, *columns: str) -> list[tuple[Any, ...]]:
        read = open_table(self.store, self.feed(name)).scan(columns=list(columns)).read_all()
        return sorted(zip(*(column.to_pylist() for column in read.columns), strict=True))

    def is_stale(self, name: str) -> bool:
        stale: bool = open_table(self.store, self.feed(name)).is_stale()  # type: ignore[attr-defined]
        return stale

    def generations(self, name: str) -> dict[str, int]:
        table = open_table(self.store, self.feed(name))
        return {key: facts.generation for key in table.partitions() if (facts := table.report(key))}


@pytest.fixture
def shop(local_store: Store) -> Shop:
    shop = Shop(local_store)
    users = Feed(name="users", kind="table", source=AssetSource(asset="users"))
    shop.add(stream("orders"), users, mart("revenue", REVENUE))
    shop.orders(D1, (1, 10), (1, 20), (2, 30))
    shop.orders(D3, (1, 5))
    shop.users((1, "ann"), (2, "bo"))
    return shop


def test_mart_holds_what_its_query_gives_for_each_partition(shop):
    report = shop.make("revenue")

    assert shop.rows("revenue", "name", "total", "day") == [("ann", 5, 3), ("ann", 30, 1), ("bo", 30, 1)]
    assert (report.rows_added, [each.key for each in report.partitions]) == (3, [D1, D2, D3])
    assert not shop.is_stale("revenue")


def test_only_partitions_are_made_anew_whose_inputs_changed(shop):
    shop.make("revenue")
    before = shop.generations("revenue")

    shop.orders(D3, (1, 5), (2, 7))
    assert shop.is_stale("revenue")
    shop.make("revenue")

    assert shop.rows("revenue", "name", "total", "day") == [
        ("ann", 5, 3),
        ("ann", 30, 1),
        ("bo", 7, 3),
        ("bo", 30, 1),
    ]
    assert shop.generations("revenue") == {**before, D3: before[D3] + 1}


def test_an_input_that_is_read_whole_makes_every_partition_stale_when_its_rows_are_others(shop):
    shop.make("revenue")
    shop.users((2, "bo"), (1, "ann"))  # another version with the same rows
    assert not shop.is_stale("revenue")

    shop.users((1, "ann"), (2, "bob"))
    shop.make("revenue")

    assert shop.rows("revenue", "name", "total", "day") == [("ann", 5, 3), ("ann", 30, 1), ("bob", 30, 1)]


def test_merging_files_of_an_input_makes_nothing_stale(local_store):
    shop = Shop(local_store)
    shop.add(stream_feed(), mart("counts", "SELECT count(*) AS n FROM s", start="2025-01-01"))
    table, day = open_table(local_store, shop.feed("s")), "2025-01-01"
    for ids in ([0, 1], [2]):
        table.write(stream_of(numbered(ids)), partitions=[day], run_id="run")
    shop.make("counts")

    assert table.compact(day, CompactionRequest(force=True)).files_compacted == 2
    assert not shop.is_stale("counts")
    table.write(stream_of(numbered([3])), partitions=[day], run_id="run")
    assert shop.is_stale("counts")


def test_a_mart_of_a_mart_is_stale_only_when_rows_changed(shop):
    shop.add(mart("totals", "SELECT name, sum(total)::BIGINT AS total FROM revenue GROUP BY ALL", kind="table"))
    shop.make("revenue")
    shop.make("totals")
    assert shop.rows("totals", "name", "total", "version") == [("ann", 35, "v1"), ("bo", 30, "v1")]

    shop.orders(D1, (1, 30), (2, 30))  # other orders of the same totals
    shop.make("revenue")
    assert not shop.is_stale("totals")
    again = shop.make("totals")
    assert ([each.key for each in again.partitions], again.rows_added, again.notes) == (["v1"], 0, ())

    shop.orders(D1, (1, 31), (2, 30))
    shop.make("revenue")
    shop.make("totals")
    assert shop.rows("totals", "name", "total", "version") == [("ann", 36, "v2"), ("bo", 30, "v2")]


def test_a_refresh_finishes_what_one_that_was_killed_left(shop):
    shop.make("revenue")
    shop.orders(D1, (2, 7))
    mortal: Any = MortalStore(shop.store)
    shop_of_mortal, died = Shop(mortal), 0
    for number in range(16):  # before and after each of the first changes
        mortal.left, mortal.after = 1 + number // 2, bool(number % 2)
        try:
            shop_of_mortal.make("revenue")
        except Killed:
            died += 1
        mortal.left = -1
        shop.make("revenue")
        files = shop.store.list("marts/revenue/year=2026/month=01/day=01")
        assert len(list(files)) == 1
        assert not shop.is_stale("revenue")
        shop.orders(D1, (2, 8 + number))
    assert died > 5


def test_partitions_that_no_longer_have_rows_are_emptied_and_not_made_again_and_again(shop):
    shop.make("revenue")
    shop.orders(D1)
    shop.make("revenue")

    assert shop.rows("revenue", "name", "total", "day") == [("ann", 5, 3)]
    assert not shop.is_stale("revenue")


def test_a_query_that_changed_makes_all_partitions_anew_and_other_columns_are_refused(shop):
    shop.make("revenue")
    registry, feed = FeedRegistry(shop.store), shop.feed("revenue")
    doubled = REVENUE.replace("sum(", "2 * sum(")
    registry.update(feed.model_copy(update={"source": MartSource(query=doubled)}), expected_revision=feed.revision)
    shop.make("revenue")
    assert [row[1] for row in shop.rows("revenue", "name", "total")] == [10, 60, 60]

    feed = shop.feed("revenue")
    other = MartSource(query=REVENUE.replace("AS total", "AS amount"))
    registry.update(feed.model_copy(update={"source": other}), expected_revision=feed.revision)
    with pytest.raises(SchemaChanged):
        shop.make("revenue")
    assert [row[1] for row in shop.rows("revenue", "name", "total")] == [10, 60, 60]


def test_shorter_partitions_go_into_the_longer_ones_that_they_lie_in(local_store):
    shop = Shop(local_store)
    shop.add(stream("orders"), mart("monthly", "SELECT sum(amount)::BIGINT AS n FROM orders", partition_by="month"))
    shop.orders(D1, (1, 10))
    shop.orders("2026-01-31", (1, 5))
    shop.orders("2026-02-01", (1, 7))
    shop.make("monthly")

    assert shop.rows("monthly", "month", "n") == [(1, 15), (2, 7)]


def test_rows_go_where_their_time_column_says_and_those_of_other_partitions_are_refused(local_store):
    shop = Shop(local_store)
    query = "SELECT amount, TIMESTAMPTZ '2026-01-01 12:00:00Z' + to_days(amount) AS at FROM orders"
    shop.add(stream("orders"), mart("timed", query, time_column="at"), mart("none", query, time_column="no"))
    shop.orders(D1, (1, 0))
    shop.make("timed")
    shop.orders(D1, (1, 0), (1, 1))

    with pytest.raises(ConfigError, match=r"rows of partitions that are not the run's: 2026-01-02 \(1 rows\)"):
        shop.make("timed")
    assert shop.rows("timed", "amount", "day") == [(0, 1)]
    with pytest.raises(ConfigError, match="its query gives no column 'no', its time_column"):
        shop.make("none")


def test_a_query_that_fails_leaves_what_there_is(shop):
    shop.add(mart("parsed", "SELECT CAST(name AS INTEGER) AS n FROM users, orders"))
    shop.users((1, "1"))
    shop.make("parsed")
    before = shop.rows("parsed", "n", "day")

    shop.users((1, "one"))
    with pytest.raises(ConfigError, match="Could not convert string 'one'"):
        shop.make("parsed")
    assert shop.rows("parsed", "n", "day") == before
    assert shop.is_stale("parsed")


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("SELECT 1 AS a FROM nothing", "there is no feed 'nothing' in this lake"),
        ("SELECT * FROM m", "it reads 'm', which is the mart itself"),
        ("SELECT * FROM b", "'m' would be made of itself, by way of other marts"),
        ("SELECT * FROM orders; SELECT 1", "give one SELECT"),
        ("COPY orders TO '/tmp/x'", "give one SELECT"),
        ("SELECT * FROM read_csv('/etc/passwd')", "table function 'read_csv' is not offered here"),
        ("SELECT * FROM monthly", "its partitions by day are shorter than those of 'monthly', by month"),
        ("SHOW TABLES", "a mart reads feeds by their names"),
    ],
)
def test_marts_that_could_never_be_made_are_refused(query, problem):
    monthly = stream("monthly", partition_by="month")
    feeds = [stream("orders"), monthly, mart("b", "SELECT * FROM c"), mart("c", "SELECT * FROM m")]

    assert problem in (mart_problem(mart("m", query), feeds) or "")


def test_marts_over_whole_streams_and_over_common_table_expressions_are_taken():
    feeds = [stream("orders"), stream("monthly", partition_by="month")]
    for good in (
        mart("m", "SELECT * FROM monthly, orders", whole=("monthly",)),
        mart("m", "WITH x AS (SELECT * FROM orders) SELECT * FROM x"),
        mart("m", "SELECT * FROM monthly", kind="table"),
    ):
        assert mart_problem(good, feeds) is None


def test_a_mart_is_no_iceberg_table():
    with pytest.raises(ValueError, match="a mart is kept as Parquet files"):
        mart("m", "SELECT 1 AS a", format="iceberg")


def test_feeds_are_exported_before_the_marts_that_read_them():
    feeds = [mart("a", "SELECT * FROM b"), mart("b", "SELECT * FROM orders"), stream("orders"), mart("z", "no SQL")]

    assert [[feed.name for feed in wave] for wave in made_in_waves(feeds)] == [["orders"], ["b", "z"], ["a"]]


def test_lineage_names_the_columns_that_values_are_made_of():
    schemas = {
        "orders": pa.schema([("user_id", pa.int64()), ("amount", pa.int64())]),
        "users": pa.schema([("id", pa.int64()), ("name", pa.string())]),
    }
    query = (
        "WITH sums AS (SELECT user_id, sum(amount) AS total, count(*) AS n FROM orders GROUP BY ALL)"
        " SELECT u.*, total * 2 AS twice, n FROM sums JOIN users u ON u.id = sums.user_id"
    )

    assert column_lineage(mart("m", query), ["id", "name", "twice", "n"], schemas) == {
        "id": (("users", "id"),),
        "name": (("users", "name"),),
        "twice": (("orders", "amount"),),
    }
    assert column_lineage(mart("m", "no SQL at all"), ["id"], schemas) == {}


def test_a_mart_is_asked_of_the_lake_and_named_in_its_folder(shop):
    feed = shop.feed("revenue")

    assert (feed.path, feed.kind, feed.is_exported) == ("marts/revenue", FeedKind.STREAM, True)
    shop.make("revenue")
    assert shop.store.list("marts/revenue/year=2026/month=01/day=01")


def test_partitions_without_anything_to_read_any_more_are_made_anew_once(shop):
    shop.add(stream("returns"), mart("counts", "SELECT count(*)::BIGINT AS n FROM orders"))
    shop.put("returns", D2, (1,), (2,), columns=("id",))
    shop.make("counts")

    feed = shop.feed("counts")
    other = feed.model_copy(update={"source": MartSource(query="SELECT count(*)::BIGINT AS n FROM returns")})
    FeedRegistry(shop.store).update(other, expected_revision=feed.revision)
    shop.make("counts")

    assert shop.rows("counts", "n", "day") == [(0, 1), (0, 3), (2, 2)]
    assert not shop.is_stale("counts")
    before = shop.generations("counts")
    shop.make("counts", D1, D2, D3)
    assert shop.generations("counts") == before
