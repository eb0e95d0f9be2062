"""Which feed of the lake an asset of anybody's project is."""

import dagster as dg
import pyarrow as pa

from datalake_assets_tests.defs.storage.made import D1, EXPECTED_WARNINGS, TIMED, daily, frame, ids

pytestmark = EXPECTED_WARNINGS


def test_key_of_several_parts_is_a_name_of_several_parts(run, lake, rows):
    assert run(daily(frame(1), key=["sales", "orders"], name=None), partition_key=D1) is None

    assert lake.registry.get("sales__orders").asset == "sales/orders"
    assert ids(rows("sales__orders")) == [1]


def test_asset_can_have_another_name_in_the_lake(run, lake):
    orders = daily(frame(1), name="Orders", metadata={"datalake/feed": "shop_orders"})
    seen: list = []
    assert run(orders, partition_key=D1) is None

    def take(orders: pa.Table) -> None:
        seen.append(orders)

    taken = dg.asset(ins={"orders": dg.AssetIn("Orders")}, name="taken", io_manager_key="lake")(take)
    run(orders, taken, selection=[taken])

    assert lake.registry.get("shop_orders").asset == "Orders"
    assert seen[0]["id"].to_pylist() == [1]


def test_feed_of_another_asset_is_never_written_to(run, rows):
    assert run(daily(frame(1), key=["a", "b"], name=None), partition_key=D1) is None

    told = run(daily(frame(2), name="other", metadata={"datalake/feed": "a__b"}), partition_key=D1)

    assert "asset 'other': the lake's feed 'a__b' is that of asset 'a/b'" in told
    assert ids(rows("a__b")) == [1]


def test_registered_feed_follows_the_asset_and_keeps_what_was_set_by_hand(run, lake):
    assert run(daily(frame(1), metadata=TIMED), partition_key=D1) is None
    known = lake.registry.get("orders")
    lake.registry.update(known.model_copy(update={"group": "shop"}), expected_revision=known.revision)

    assert run(daily(frame(1)), partition_key=D1) is None

    feed = lake.registry.get("orders")
    assert (feed.time_column, feed.group, feed.revision) == (None, "shop", 3)


def test_asset_whose_partitions_change_their_length_is_refused(run):
    assert run(daily(frame(1)), partition_key=D1) is None

    told = run(
        daily(frame(1), partitions_def=dg.MonthlyPartitionsDefinition("2026-01", fmt="%Y-%m")), partition_key="2026-01"
    )

    assert "kind and partition_by are for life" in told


def test_archived_feed_is_not_written_to(run, lake):
    assert run(daily(frame(1)), partition_key=D1) is None
    lake.registry.archive("orders")

    assert "is archived; restore it with 'datalake feeds restore orders'" in run(daily(frame(1)), partition_key=D1)
