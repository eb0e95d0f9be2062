"""Assets of anybody's project in a real lake: what they return replaces what was there, exactly, and comes back."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from datalake_assets.config import Feed, KsqlDBSource, Settings
from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.defs.storage.io_managers import ParquetLakeIOManager

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*dagster_run is deprecated:DeprecationWarning", "ignore::dagster.BetaWarning"
)

DAILY = dg.DailyPartitionsDefinition("2026-01-01")
TIMED = {"datalake/time_column": "at"}
D1, D2, D3 = "2026-01-01", "2026-01-02", "2026-01-03"
FIRST = {D1: 1, D2: 2, D3: 3}


@pytest.fixture
def resource(tmp_path: Path) -> LakeResource:
    (tmp_path / "lake").mkdir()
    return LakeResource(settings=Settings(lake=str(tmp_path / "lake")))


@pytest.fixture
def lake(resource: LakeResource) -> Lake:
    return resource.open()


@pytest.fixture
def run(resource: LakeResource, instance: dg.DagsterInstance):
    """Materializes assets; the failure's line, or None."""
    manager = ParquetLakeIOManager(lake=resource)

    def materialize(*assets: dg.AssetsDefinition, **how: object) -> str | None:
        chosen = how.pop("selection", assets)
        resources = {"lake": manager}
        result = dg.materialize(
            assets, selection=chosen, instance=instance, resources=resources, raise_on_error=False, **how
        )
        for event in result.all_events:
            if event.is_step_failure:
                data = event.event_specific_data
                return data.user_failure_data.description if data.user_failure_data else str(data.error)
        return None

    return materialize


@pytest.fixture
def rows(lake: Lake):
    """A feed's rows as a list of dicts, without what its folders add."""

    def read(name: str, **how: object) -> list[dict]:
        table = lake.table(lake.registry.get(name)).scan(**how).read_all()
        kept = [column for column in table.column_names if column not in {"year", "month", "day", "hour", "version"}]
        return table.select(kept).to_pylist()

    return read


def span(first: str, last: str) -> dict[str, object]:
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return {"tags": tags}


def asset(frame: object, **how: object) -> dg.AssetsDefinition:
    """An asset that returns this, or what this returns."""
    how = {"io_manager_key": "lake", "name": "orders", **how}

    @dg.asset(**how)
    def orders(context: dg.AssetExecutionContext):
        return frame(context) if callable(frame) else frame

    return orders


def daily(frame: object, **how: object) -> dg.AssetsDefinition:
    return asset(frame, **{"partitions_def": DAILY, "backfill_policy": dg.BackfillPolicy.single_run(), **how})


def frame(*ids: int, day: str = D1) -> pd.DataFrame:
    return pd.DataFrame({"id": list(ids), "at": pd.to_datetime([f"{day} 12:00"] * len(ids))})


def materialization(instance: dg.DagsterInstance, key: str = "orders") -> dg.AssetMaterialization:
    return instance.get_latest_materialization_event(dg.AssetKey.from_user_string(key)).asset_materialization


def ids(found: list[dict]) -> list[int]:
    return sorted(each["id"] for each in found)


def values(instance: dg.DagsterInstance) -> dict[str, object]:
    return {name: value.value for name, value in materialization(instance).metadata.items()}


# What can be returned


@pytest.mark.parametrize(
    "made",
    [
        pd.DataFrame({"id": [1, 2]}),
        pa.table({"id": [1, 2]}),
        pa.record_batch({"id": [1, 2]}),
        pl.DataFrame({"id": [1, 2]}),
        lambda _: pa.table({"id": [1, 2]}).to_reader(),
    ],
    ids=["pandas", "table", "batch", "polars", "reader"],
)
def test_every_kind_of_frame_lands_with_the_same_rows_and_columns(run, rows, lake, made):
    assert run(daily(made), partition_key=D1) is None

    assert rows("orders") == [{"id": 1}, {"id": 2}]
    assert lake.table(lake.registry.get("orders")).scan(columns=["id"]).schema == pa.schema([("id", pa.int64())])


def test_reader_is_streamed_in_bounded_memory(run, rows, lake):
    held: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(60):
            held.append(pa.total_allocated_bytes())
            yield pa.record_batch({"id": pa.array(range(number << 17, number + 1 << 17), pa.int64())})

    schema = pa.schema([("id", pa.int64())])
    assert run(daily(lambda _: pa.RecordBatchReader.from_batches(schema, batches())), partition_key=D1) is None

    table = lake.table(lake.registry.get("orders"))
    assert table.report(D1).rows == 60 << 17
    assert max(held[20:]) < max(held[:20]) * 1.5, "memory grows with the rows"


def test_types_of_libraries_become_the_same_types_of_the_lake(run, lake):
    made = {
        D1: pd.DataFrame({"t": pd.Categorical(["x"]), "z": pd.to_datetime(["2026-01-01T12:00+02:00"]), "n": [1.5]}),
        D2: pl.DataFrame({"t": ["x"], "z": ["2026-01-02T10:00:00Z"], "n": [1.5]}).with_columns(
            pl.col("z").str.to_datetime(time_unit="ms", time_zone="UTC"), pl.col("t").cast(pl.Categorical)
        ),
        D3: pa.table(
            {"t": pa.array(["x"], pa.large_string()), "z": pa.array([0], pa.timestamp("s", "UTC")), "n": [1.5]}
        ),
    }
    assert run(daily(made), **span(D1, D3)) is None

    table = lake.table(lake.registry.get("orders"))
    assert table.scan(columns=["t", "z", "n"]).schema == pa.schema(
        [("t", pa.string()), ("z", pa.timestamp("us", "UTC")), ("n", pa.float64())]
    )


def test_named_index_becomes_columns_and_an_unnamed_one_does_not(run, rows):
    named = pd.DataFrame({"id": [1], "region": ["eu"]}).set_index("region")
    left = pd.DataFrame({"id": [1, 2, 3]}).query("id > 2")

    assert run(daily({D1: named, D2: left.assign(region="us")}), **span(D1, D2)) is None

    assert rows("orders") == [{"region": "eu", "id": 1}, {"region": "us", "id": 3}]


# Partitions


def test_partition_that_runs_again_is_replaced_exactly(run, rows, lake):
    for made in (frame(1, 2), frame(1, 2), frame(3)):
        assert run(daily(made), partition_key=D1) is None
    assert run(daily(frame(9)), partition_key=D2) is None

    assert ids(rows("orders")) == [3, 9]
    assert ids(rows("orders", partitions=[D1])) == [3]
    assert list(lake.table(lake.registry.get("orders")).verify(deep=True)) == []


def test_partition_that_returns_no_rows_is_emptied(run, rows, lake):
    assert run(daily(frame(1, 2)), partition_key=D1) is None
    for empty in (frame().iloc[:0], pd.DataFrame(), pa.table({"id": pa.array([], pa.int64())})):
        assert run(daily(empty), partition_key=D1) is None

    assert rows("orders") == []
    assert lake.table(lake.registry.get("orders")).report(D1).files == 0


def test_run_of_many_partitions_is_split_by_the_time_column(run, rows, instance):
    made = pd.concat([frame(1, day=D1), frame(2, 3, day=D2), frame(4, day=D3)])

    assert run(daily(made, metadata=TIMED), **span(D1, D3)) is None
    assert run(daily(made[made["id"] != 3], metadata=TIMED), **span(D1, D3)) is None

    assert [ids(rows("orders", partitions=[key])) for key in (D1, D2, D3)] == [[1], [2], [4]]
    events = instance.fetch_materializations(dg.AssetKey("orders"), limit=6).records
    counts = {
        (each.partition_key, each.asset_materialization.metadata["dagster/partition_row_count"].value)
        for each in events
    }
    assert counts == {(D1, 1), (D2, 2), (D2, 1), (D3, 1)}


def test_run_of_many_partitions_takes_a_frame_for_each(run, rows, instance):
    assert run(daily({D1: frame(1), D2: frame(2, 3), D3: frame().iloc[:0]}), **span(D1, D3)) is None

    assert [ids(rows("orders", partitions=[key])) for key in (D1, D2)] == [[1], [2, 3]]
    assert len(instance.fetch_materializations(dg.AssetKey("orders"), limit=6).records) == 3


@pytest.mark.parametrize(
    ("partitions", "key", "path"),
    [
        (dg.HourlyPartitionsDefinition("2026-01-01-00:00"), "2026-01-01-05:00", "year=2026/month=01/day=01/hour=05"),
        (DAILY, D2, "year=2026/month=01/day=02"),
        (dg.MonthlyPartitionsDefinition("2026-01", fmt="%Y-%m"), "2026-03", "year=2026/month=03"),
    ],
)
def test_partitions_lie_where_every_reader_of_hive_finds_them(run, lake, partitions, key, path):
    assert run(daily(frame(1), partitions_def=partitions), partition_key=key) is None

    assert lake.table(lake.registry.get("orders")).partitions() == (key,)
    assert pd.read_parquet(f"{lake.uri}/streams/orders/{path}")["id"].tolist() == [1]


def test_asset_without_partitions_is_a_table_whose_newest_version_is_read(run, rows, lake, instance):
    for made in (pd.DataFrame({"id": [1, 2]}), pd.DataFrame({"id": [3]})):
        assert run(asset(made)) is None

    table = lake.table(lake.registry.get("orders"))
    assert table.partitions() == ("v1", "v2")
    assert rows("orders") == [{"id": 3}]
    found = values(instance)
    assert (found["dagster/row_count"], found["datalake/partition"]) == (1, "v2")
    assert materialization(instance).partition is None


def test_table_keeps_as_many_versions_as_its_metadata_says(run, lake):
    for number in range(4):
        made = pd.DataFrame({"id": [number]})
        assert run(asset(made, metadata={"datalake/retention": {"versions": 2}})) is None

    assert lake.table(lake.registry.get("orders")).partitions() == ("v3", "v4")


# Metadata, and what comes back


def test_materialization_says_what_the_lake_has(run, lake, instance):
    assert run(daily(frame(1, 2), metadata=TIMED), partition_key=D1) is None

    found, report = values(instance), lake.table(lake.registry.get("orders")).report(D1)
    assert found["dagster/partition_row_count"] == 2
    assert (found["datalake/files"], found["datalake/small_files"]) == (report.files, report.small_files) == (1, 1)
    assert found["datalake/size_bytes"] == report.size_bytes
    assert found["dagster/uri"] == f"{lake.uri}/streams/orders/year=2026/month=01/day=01"
    assert [column.name for column in found["dagster/column_schema"].columns] == ["id", "at"]


def downstream(wanted: object, seen: list, **how: object) -> dg.AssetsDefinition:
    def take(orders):
        seen.append(orders.read_all() if isinstance(orders, pa.RecordBatchReader) else orders)

    take.__annotations__ = {"orders": wanted, "return": None}
    return dg.asset(name="taken", io_manager_key="lake", **how)(take)


@pytest.mark.parametrize("wanted", [pd.DataFrame, pa.Table, pa.RecordBatchReader, pl.DataFrame])
def test_downstream_asset_gets_the_partitions_own_rows_in_the_columns_that_were_returned(run, wanted):
    orders = daily({D1: frame(1), D2: frame(2, day=D2)})
    assert run(orders, **span(D1, D2)) is None
    seen: list = []

    taken = downstream(wanted, seen, partitions_def=DAILY)
    run(orders, taken, selection=[taken], partition_key=D2)

    as_pandas = seen[0] if wanted is pd.DataFrame else seen[0].to_pandas()
    assert as_pandas["id"].tolist() == [2]
    assert list(as_pandas.columns) == ["id", "at"]


def test_downstream_asset_gets_all_partitions_as_a_dict_or_as_one_frame(run):
    orders = daily({D1: frame(1), D2: frame(2, day=D2)})
    assert run(orders, **span(D1, D2)) is None
    seen: list = []

    taken = downstream(dict[str, pd.DataFrame], seen)
    run(orders, taken, selection=[taken])
    taken = downstream(pa.Table, seen)
    run(orders, taken, selection=[taken])

    assert {key: each["id"].tolist() for key, each in seen[0].items()} == {D1: [1], D2: [2]}
    assert seen[1]["id"].to_pylist() == [1, 2]


def test_downstream_asset_gets_the_newest_version_of_an_asset_without_partitions(run):
    orders = asset(pd.DataFrame({"id": [1]}))
    for made in (orders, asset(pd.DataFrame({"id": [2]}))):
        assert run(made) is None
    seen: list = []

    taken = downstream(pd.DataFrame, seen)
    run(orders, taken, selection=[taken])

    assert seen[0].to_dict("list") == {"id": [2]}


def test_feed_of_the_lake_itself_can_be_read_by_its_key(resource, instance, lake):
    source = KsqlDBSource(object="CLICKS", mode="pull")
    clicks = Feed(name="clicks", kind="stream", source=source, time_column="at", start="2026-01-01")
    lake.registry.add(clicks)
    batches = InMemoryBatches((SourceBatch(pa.record_batch(frame(5))),), "at")
    lake.table(clicks).write(batches, partitions=[D1], run_id="run")
    seen: list = []

    def take(clicks: pd.DataFrame) -> None:
        seen.append(clicks)

    upstream = dg.AssetIn(["streams", "clicks"], input_manager_key="lake")
    taken = dg.asset(ins={"clicks": upstream}, name="taken")(take)
    declared = dg.AssetSpec(["streams", "clicks"])
    definitions = dg.Definitions([declared, taken], resources={"lake": ParquetLakeIOManager(lake=resource)})
    job = definitions.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance).success

    assert seen[0]["id"].tolist() == [5]


def test_asset_can_return_what_it_took(run, rows):
    orders = daily({D1: frame(1)})
    assert run(orders, partition_key=D1) is None

    @dg.asset(partitions_def=DAILY, io_manager_key="lake")
    def copied(orders: pa.Table) -> pa.Table:
        return orders

    assert run(orders, copied, selection=[copied], partition_key=D1) is None
    assert rows("copied") == rows("orders")


# Retries and crashes


def test_retry_after_a_crash_between_commit_and_event_doubles_nothing(run, rows, monkeypatch):
    calls = []
    land = ParquetLakeIOManager.handle_output

    def crash_once(self, context, obj):
        land(self, context, obj)
        calls.append(obj)
        if len(calls) == 1:
            raise OSError("the process died before its event was written")

    monkeypatch.setattr(ParquetLakeIOManager, "handle_output", crash_once)
    retried = {"retry_policy": dg.RetryPolicy(max_retries=1)}

    assert run(daily(frame(1, 2), **retried), partition_key=D1) is None

    assert len(calls) == 2
    assert ids(rows("orders")) == [1, 2]


DYING = """
import os, sys
import dagster as dg
import pandas as pd
from datalake_assets.config import Settings
from datalake_assets.defs.storage.io_managers import ParquetLakeIOManager
from datalake_assets.defs.resources import LakeResource

class Dying(ParquetLakeIOManager):
    def handle_output(self, context, obj):
        super().handle_output(context, obj)
        os._exit(9)

@dg.asset(io_manager_key="lake", partitions_def=dg.DailyPartitionsDefinition("2026-01-01"))
def orders():
    return pd.DataFrame({"id": [1, 2]})

@dg.asset(io_manager_key="lake")
def users():
    return pd.DataFrame({"id": [1]})

lake = Dying(lake=LakeResource(settings=Settings(lake=sys.argv[1])))
made = {"orders": orders, "users": users}[sys.argv[2]]
dg.materialize([made], resources={"lake": lake}, partition_key="2026-01-01" if made is orders else None)
"""


@pytest.mark.slow
def test_run_that_was_killed_after_its_commit_is_repeated_without_doubling(run, rows, lake):
    for name in ("orders", "users"):
        died = subprocess.run([sys.executable, "-W", "ignore", "-c", DYING, lake.settings.lake, name], check=False)
        assert died.returncode == 9
    assert (ids(rows("orders")), rows("users")) == ([1, 2], [{"id": 1}])

    assert run(daily(pd.DataFrame({"id": [1, 2]})), partition_key=D1) is None
    assert run(asset(pd.DataFrame({"id": [1]}), name="users")) is None

    assert (ids(rows("orders")), rows("users")) == ([1, 2], [{"id": 1}])
    for name in ("orders", "users"):
        assert list(lake.table(lake.registry.get(name)).verify(deep=True)) == []


def test_stream_of_rows_that_fails_midway_commits_nothing(run, rows):
    assert run(daily(frame(1)), partition_key=D1) is None

    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch(frame(2))
        raise ValueError("the database went away")

    schema = pa.record_batch(frame(2)).schema
    told = run(daily(lambda _: pa.RecordBatchReader.from_batches(schema, batches())), partition_key=D1)

    assert "the database went away" in told
    assert ids(rows("orders")) == [1]


# What is refused, in one line


@pytest.mark.parametrize(
    ("made", "how", "told"),
    [
        (None, {}, "asset 'orders' returned nothing; return a frame, or annotate it '-> None'"),
        (7, {}, "asset 'orders' returned a builtins.int; return a pandas.DataFrame"),
        (pd.Series([1]), {}, "asset 'orders' returned a pandas.Series; return a pandas.DataFrame"),
        (pa.table({"year": [1]}), {}, "column 'year' is named like a partition key of the lake; rename it"),
        (pa.table({"a": [1], "A": [1]}), {}, "columns 'a' and 'A' are the same name to most readers; rename one"),
        (pa.table({"": [1]}), {}, "a column has no name; give it one"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), {}, "Duplicate column names found: ['a', 'a']"),
        (pd.DataFrame({"a": [1, "x"]}), {}, "Conversion failed for column a with type object"),
        (pd.DataFrame({"a": [None]}), {}, "column 'a' has nothing but nulls (null), so that its type is unknown"),
        (pa.table({"a": pa.array([1], pa.duration("s"))}), {}, "column 'a' is duration[s], and the lake has no"),
        (
            pa.table({"a": pa.array([1], pa.timestamp("ns"))}),
            {},
            "column 'a' (timestamp[ns]) cannot be kept exactly as timestamp[us]",
        ),
        (frame(1), {"metadata": {"datalake/time_column": "when"}}, "'when' cannot be the time column: there is none"),
        (frame(1), {"metadata": {"datalake/time_column": "id"}}, "it is int64; make it a timestamp"),
        (frame(1), {"metadata": {"datalake/time_colum": "at"}}, "there is no metadata 'datalake/time_colum'"),
        (frame(1), {"metadata": {"datalake/schema_policy": "drop"}}, "schema_policy: Input should be 'freeze'"),
        (frame(1, day=D2), {"metadata": TIMED}, "that are not the run's: 2026-01-02 (1 rows); nothing was committed"),
        ({D1: frame(1), D2: frame(2)}, {}, "returned a dict that has others: 2026-01-02; return one frame for each"),
        (
            frame(1),
            {"partitions_def": dg.WeeklyPartitionsDefinition("2026-01-01"), "key": "2026-01-04"},
            "its partitions are not those of a stream, which are whole months, days or hours in UTC",
        ),
        (
            frame(1),
            {"partitions_def": dg.DailyPartitionsDefinition("2026-01-01", timezone="Europe/Berlin")},
            "they are '0 0 * * *' in Europe/Berlin",
        ),
        (
            frame(1),
            {"partitions_def": dg.MonthlyPartitionsDefinition("2026-01-01")},
            "give its partitions fmt='%Y-%m'",
        ),
        (frame(1), {"partitions_def": dg.StaticPartitionsDefinition(["a"]), "key": "a"}, "StaticPartitionsDefinition"),
        (frame(1), {"name": "Orders"}, "'Orders' cannot be the name of a feed"),
    ],
)
def test_what_cannot_be_landed_is_refused_in_one_line(run, lake, made, how, told):
    how = dict(how)
    key = how.pop("key", D1)

    line = run(daily(made, **how), partition_key=key)

    assert told in line
    assert "\n" not in line
    assert not any(info.key.endswith(".parquet") for info in lake.store.list("streams"))


def test_asset_whose_files_something_else_writes_must_not_return_rows(run):
    told = run(asset(frame(1), metadata={"dagster/uri": "/somewhere/else"}))

    assert "its metadata 'dagster/uri' says that something else writes its files, and it returned rows" in told


def test_output_of_an_op_is_refused(resource, instance):
    @dg.op(out=dg.Out(io_manager_key="lake"))
    def make():
        return frame(1)

    @dg.job(resource_defs={"lake": ParquetLakeIOManager(lake=resource)}, executor_def=dg.in_process_executor)
    def made():
        make()

    result = made.execute_in_process(instance=instance, raise_on_error=False)

    (failure,) = [event.event_specific_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data.description == "make is no asset; the lake stores assets only"


def test_frame_of_many_partitions_without_a_time_column_is_refused(run):
    told = run(daily(frame(1)), **span(D1, D3))

    assert "it returned one frame for 3 partitions" in told
    assert "'datalake/time_column'" in told


def test_dict_that_lacks_a_partition_of_the_run_is_refused(run):
    assert "returned a dict that lacks 2026-01-02" in run(daily({D1: frame(1)}), **span(D1, D2))


def test_rows_without_a_time_are_quarantined_and_counted(run, rows, instance):
    made = pd.concat([frame(1), pd.DataFrame({"id": [2], "at": [pd.NaT]})])

    assert run(daily(made, metadata=TIMED), partition_key=D1) is None

    assert ids(rows("orders")) == [1]
    assert values(instance)["datalake/rows_quarantined"] == 1


def test_changed_columns_stop_the_asset_until_it_may_evolve(run, rows):
    assert run(daily(frame(1)), partition_key=D1) is None
    wider = frame(2).assign(more="x")

    refused = run(daily(wider), partition_key=D2)
    evolving = {"datalake/schema_policy": "evolve"}
    assert run(daily(wider, metadata=evolving), partition_key=D2) is None
    narrowed = run(daily(frame(3).assign(id="text"), metadata=evolving), partition_key=D3)

    assert refused == (
        "asset 'orders': the schema changed: added more string; undo it, or let it have new columns by its metadata"
        " 'datalake/schema_policy': 'evolve'"
    )
    assert "changed id int64 -> string" in narrowed
    assert [(each["id"], each["more"]) for each in rows("orders")] == [(1, None), (2, "x")]


def test_column_of_nulls_has_the_type_that_it_had(run, rows):
    assert run(daily(pd.DataFrame({"a": ["x"], "b": [[1]]})), partition_key=D1) is None
    assert run(daily(pd.DataFrame({"a": [None], "b": [None]})), partition_key=D2) is None

    assert rows("orders", partitions=[D2]) == [{"a": None, "b": None}]


# The registry


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


# On S3


@pytest.mark.s3
def test_assets_land_on_s3_as_they_do_in_a_folder(s3_store, instance):
    settings = Settings(lake=s3_store.uri, s3_endpoint=s3_store.s3_endpoint)
    resources = {"lake": ParquetLakeIOManager(lake=LakeResource(settings=settings))}
    lake = Lake(settings)
    seen: list = []
    orders, users = daily({D1: frame(1), D2: frame(2, 3)}), asset(pl.DataFrame({"id": [7]}), name="users")
    taken = downstream(pd.DataFrame, seen)

    for _ in range(2):
        assert dg.materialize([orders], instance=instance, resources=resources, **span(D1, D2)).success
        assert dg.materialize([users], instance=instance, resources=resources).success
    assert dg.materialize([orders, taken], selection=[taken], instance=instance, resources=resources).success

    assert seen[0]["id"].tolist() == [1, 2, 3]
    found = {feed.name: lake.table(feed) for feed in lake.registry.list().feeds}
    assert found["users"].scan(columns=["id"]).read_all().to_pydict() == {"id": [7]}
    assert [list(table.verify(deep=True)) for table in found.values()] == [[], []]
