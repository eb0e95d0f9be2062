"""A run that dies or fails is repeated without doubling or losing a row."""

import subprocess
import sys
from collections.abc import Iterator

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from datalake_assets.defs.storage.io_manager import ParquetLakeIOManager
from datalake_assets_tests.defs.storage.made import D1, EXPECTED_WARNINGS, asset, daily, frame, ids
from datalake_assets_tests.processes.warm_processes import FORKED

pytestmark = EXPECTED_WARNINGS


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
import os, sys, warnings
warnings.simplefilter("ignore")
import dagster as dg
import pandas as pd
from datalake_assets.settings import Settings
from datalake_assets.defs.storage.io_manager import ParquetLakeIOManager
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
        died = subprocess.run([sys.executable, "-c", FORKED + DYING, lake.settings.lake, name], check=False)
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
