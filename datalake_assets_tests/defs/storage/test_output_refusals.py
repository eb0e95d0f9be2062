"""What an asset cannot store is refused in one line, and nothing of it is stored."""

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from datalake_assets.defs.storage.io_manager import ParquetLakeIOManager
from datalake_assets_tests.defs.storage.made import D1, D2, D3, EXPECTED_WARNINGS, TIMED, asset, daily, frame, span

pytestmark = EXPECTED_WARNINGS


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
