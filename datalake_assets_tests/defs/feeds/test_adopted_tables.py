"""Adopted tables of other formats in Dagster: observed with their partitions, checked, and compacted by the sensor."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import deltalake
import pyarrow as pa
import pytest

from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.compaction.job import compact_partition_job
from datalake_assets.defs.compaction.sensor import CompactionWatcher
from datalake_assets.defs.resources import Lake
from datalake_assets.lake.adopted.adoption import adopt_at
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.compaction.daemon import Daemon

KEY = dg.AssetKey(["folders", "t"])
Write = Callable[[int], None]


@pytest.fixture
def write(local_store: Store, tmp_path: Path) -> Write:
    """Somebody else's next write, of the first day, to a Delta table that was adopted; Iceberg's differ in no glue."""
    folder = tmp_path / "others" / "t"

    def append(first: int, days: tuple[int, ...] = (1,)) -> None:
        dates = [dt.date(2026, 1, day) for day in days]
        frame = pa.table({"ts_day": dates, "id": [first] * len(days)})
        deltalake.write_deltalake(folder, frame, partition_by=["ts_day"], mode="append")

    for first in (0, 10):
        append(first, (1, 2))
    adopt_at(local_store, str(folder), "t", time_column="ts_day")
    return append


def observe(definitions: dg.Definitions, instance: dg.DagsterInstance) -> dict[str, dg.AssetObservation]:
    job = definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=instance, asset_selection=[KEY])
    events = [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    found = [event.event_specific_data.asset_observation for event in events]
    return {each.partition: each for each in found if each.partition}


def version(observation: dg.AssetObservation) -> str:
    return observation.tags["dagster/data_version"]


def test_table_is_observed_checked_and_compacted_by_the_sensor(local_store, write):
    first, second = "ts_day=2026-01-01", "ts_day=2026-01-02"
    definitions = build_definitions(Settings(lake=local_store.uri))
    node = definitions.resolve_asset_graph().get(KEY)
    assert (node.is_observable, node.is_materializable) == (True, False)
    with dg.DagsterInstance.ephemeral() as instance:
        feed, lake = FeedRegistry(local_store).get("t"), Lake(Settings(lake=local_store.uri))
        daemon = Daemon(instance, CompactionWatcher(lake, [feed]), compact_partition_job(lake, [feed]))
        assert daemon.tick() == []
        before = observe(definitions, instance)
        assert sorted(before) == instance.get_dynamic_partitions("folders/t") == [first, second]
        assert before[first].metadata["datalake/files"].value == 2
        assert daemon.settle() == 1
        merged = observe(definitions, instance)
        assert {key: each.metadata["datalake/files"].value for key, each in merged.items()} == {first: 1, second: 1}
        assert {key: version(each) for key, each in merged.items()} == {k: version(v) for k, v in before.items()}
        write(20)
        after = observe(definitions, instance)
        assert version(after[first]) != version(before[first])
        assert version(after[second]) == version(before[second])
        checks = definitions.resolve_job_def("evaluate_checks").execute_in_process(instance=instance)
        results = {each.check_name: each.passed for each in checks.get_asset_check_evaluations()}
        assert results == {"schema": True, "file_size": False, "small_files": False, "freshness": True}
