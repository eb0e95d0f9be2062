"""What assets write, in the lake itself: replaced as a whole, one run at a time, and declared by code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import pyarrow as pa
import pytest

from datalake_assets.defs.storage.asset_feeds import declare, registered
from datalake_assets.errors import ConfigError, FeedNotFound, IncompleteResponse
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import AssetSource, FeedKind
from datalake_assets.lake.asset_table import AssetTable
from datalake_assets.lake.frames import FramesByKey, frame_batches
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets.policies import Checks, CompactionPolicy, Limits, NotNullRule
from datalake_assets_tests.lake.sql_answers import run_sql

D1, D2 = "2026-01-01", "2026-01-02"
ORDERS = Feed(name="orders", kind=FeedKind.STREAM, source=AssetSource(asset="orders"), start="2026-01-01")


def frames(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids)})


def ids(table: AssetTable, *keys: str) -> list[int]:
    return sorted(table.scan(columns=["id"], partitions=keys or None).read_all()["id"].to_pylist())


@pytest.fixture
def table(store):
    return open_table(store, ORDERS)


def write(table: AssetTable, frame: object, *keys: str) -> None:
    table.write(frame_batches(frame, asset="orders"), partitions=keys, run_id="run")


def test_feed_of_an_asset_is_opened_as_its_table(table):
    assert isinstance(table, AssetTable)


def test_same_rows_again_write_nothing(table):
    write(table, frames(1, 2), D1)
    before = table.report(D1)

    write(table, frames(2, 1), D1)

    assert table.report(D1) == before


@pytest.mark.parametrize(("condition", "wanted"), [("share > 5", [2]), ("share < 5", [1]), ("isnan(share)", [2])])
def test_rows_that_are_not_a_number_are_found_by_sql(table, condition, wanted):
    """DuckDB takes the bounds in a footer, which say nothing of them, for those of all rows."""
    write(table, pa.table({"id": [1, 2, 3], "share": [1.0, float("nan"), None]}), D1)
    found = run_sql(table._folder.store, (ORDERS,), f"select id from orders where {condition}")  # noqa: S608  our own
    assert [number for (number,) in found.rows] == wanted


def test_stream_of_rows_is_read_once_and_says_so(table):
    write(table, frames(1, 2), D1)
    batches = frame_batches(frames(3).to_reader(), asset="orders")
    assert sum(each.rows.num_rows for each in batches) == 1

    with pytest.raises(IncompleteResponse, match="can be read only once"):
        table.write(batches, partitions=[D1], run_id="run")

    assert ids(table) == [1, 2]


def test_frames_by_key_are_committed_one_by_one_and_a_repetition_completes_them(table):
    good, bad = frame_batches(frames(1), asset="orders"), frame_batches(pa.table({"other": [1]}), asset="orders")

    with pytest.raises(Exception, match="the schema changed"):
        table.write(FramesByKey({D1: good, D2: bad}), partitions=[D1, D2], run_id="run")
    assert ids(table) == [1]
    again = FramesByKey({key: frame_batches(frames(1), asset="orders") for key in (D1, D2)})
    report = table.write(again, partitions=[D1, D2], run_id="run")

    assert [each.key for each in report.partitions] == [D1, D2]
    assert (report.rows_read, report.rows_added, ids(table)) == (2, 1, [1, 1])


def test_frames_that_no_longer_fit_land_as_far_as_the_policy_says(local_store):
    write(open_table(local_store, ORDERS), frames(1), D1)
    other = pa.table({"id": ["2", None], "more": [None, 1], "nothing": [None, None]})

    by_row = open_table(local_store, ORDERS.model_copy(update={"schema_policy": "discard_row"}))
    write(by_row, pa.table({"id": [1, 2, 3], "more": [None, 1, None], "nothing": pa.nulls(3)}), D1)
    assert (ids(by_row), [row.reason for _, row in by_row.quarantined()]) == (
        [1, 3],
        ["column 'more' is not in the feed's schema"],
    )

    by_value = open_table(local_store, ORDERS.model_copy(update={"schema_policy": "discard_value"}))
    write(by_value, other, D1)
    assert by_value.scan(columns=["id"]).read_all()["id"].to_pylist() == [None, None]
    assert sorted(row.raw for _, row in by_value.discarded()) == [
        '{"id":"2","more":null,"nothing":null}',
        '{"id":null,"more":1,"nothing":null}',
    ]
    assert {path for path, _ in by_value.discarded()} == {"year=2026/month=01/day=01"}


def test_runs_of_one_partition_at_once_leave_the_rows_of_one_of_them(store):
    def one(number: int) -> None:
        write(open_table(store, ORDERS), frames(*[number] * (10 + number)), D1)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))

    found = ids(open_table(store, ORDERS), D1)
    assert found in [[number] * (10 + number) for number in range(6)]
    assert list(open_table(store, ORDERS).verify(deep=True)) == []


def test_plan_takes_any_of_its_partitions_and_no_others(table):
    assert table.plan(["2026-01-05", "2026-01-01", "2099-01-01"]).partitions == (
        "2026-01-05",
        "2026-01-01",
        "2099-01-01",
    )
    with pytest.raises(ConfigError, match="'2026-01' is not a partition by day"):
        table.plan(["2026-01"])
    with pytest.raises(ConfigError, match="written by the Dagster asset 'orders': it decides what it writes"):
        table.plan()


def test_table_without_columns_is_refused(store):
    users = ORDERS.model_copy(update={"name": "users", "kind": FeedKind.TABLE})
    table = open_table(store, users)

    with pytest.raises(ConfigError, match="has neither rows nor columns"):
        table.write(frame_batches(pa.table({}), asset="users"), partitions=["v1"], run_id="run")


# Declarations


def test_declaration_registers_and_follows_and_leaves_the_rest_alone(store):
    registry = FeedRegistry(store)
    assert registered(store, ORDERS) is None
    first = declare(store, ORDERS)
    by_hand = registry.update(first.model_copy(update={"group": "shop"}), expected_revision=first.revision)

    policy = CompactionPolicy(min_files=9)
    changed = declare(store, ORDERS.model_copy(update={"compaction": policy}))

    assert (first.revision, changed.revision, changed.group, changed.compaction) == (1, 3, by_hand.group, policy)
    assert registered(store, ORDERS) == changed, "what is not declared stays"


def test_limits_are_declared_one_by_one(store):
    rules = (NotNullRule(column="id"),)
    known = declare(store, ORDERS.model_copy(update={"checks": Checks(rules=rules)}))
    assert known.checks.rules == rules

    changed = declare(store, ORDERS.model_copy(update={"checks": Checks(small_files=Limits(warn=1))}))

    assert (changed.checks.rules, changed.checks.small_files) == (rules, Limits(warn=1))


def test_declarations_at_once_make_one_feed(store):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(declare, repeat(store, 8), repeat(ORDERS)))

    assert {each.revision for each in found} == {1}


def test_archived_feed_is_not_declared_again(store):
    declare(store, ORDERS)
    FeedRegistry(store).archive("orders")

    for attempt in (declare, registered):
        with pytest.raises(FeedNotFound, match="is archived"):
            attempt(store, ORDERS)
