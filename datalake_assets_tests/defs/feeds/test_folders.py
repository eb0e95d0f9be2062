"""Adopted folders in Dagster: observed, never materialized, with a partition per folder."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.feeds.assets import add_partitions
from datalake_assets.defs.feeds.folders import keep_partitions
from datalake_assets.defs.metadata import asset_key
from datalake_assets.lake.adopted.adoption import Adoption, adopt
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import Settings

KEY = dg.AssetKey(["folders", "clicks"])


def write(folder: Path, name: str, *ids: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(ids)}), folder / name)


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / "clicks"
    write(folder / "day=1", "a.parquet", 1, 2)
    write(folder / "day=1", "b.parquet", 3)
    write(folder / "day=2", "a.parquet", 4)
    return folder


@pytest.fixture
def adopted(local_store: Store, clicks: Path) -> Adoption:
    return adopt(local_store, str(clicks), "clicks")


@pytest.fixture
def definitions(local_store: Store, adopted: Adoption) -> dg.Definitions:
    return build_definitions(Settings(lake=local_store.uri))


def observe(definitions: dg.Definitions, instance: dg.DagsterInstance) -> dict[str, dg.AssetObservation]:
    """What a click on "Observe" runs; the observations by partition."""
    job = definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=instance, asset_selection=[KEY])
    assert result.success
    events = [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    assert not instance.get_latest_materialization_event(KEY)
    found = [event.event_specific_data.asset_observation for event in events]
    assert len({each.partition for each in found}) == len(found)
    return {each.partition: each for each in found if each.partition}


def numbers(observation: dg.AssetObservation) -> tuple[int, int]:
    return (
        observation.metadata["dagster/partition_row_count"].value,
        observation.metadata["datalake/files"].value,
    )


def test_folder_is_an_observable_asset_with_dynamic_partitions(definitions):
    node = definitions.resolve_asset_graph().get(KEY)
    assert (node.is_observable, node.is_materializable, node.is_external) == (True, False, True)
    assert isinstance(node.partitions_def, dg.DynamicPartitionsDefinition)
    assert node.group_name == "folders"


def test_observation_tells_of_each_partition_and_makes_it_known(definitions):
    with dg.DagsterInstance.ephemeral() as instance:
        found = observe(definitions, instance)
        assert {key: numbers(each) for key, each in found.items()} == {"day=1": (3, 2), "day=2": (1, 1)}
        assert instance.get_dynamic_partitions("folders/clicks") == ["day=1", "day=2"]


def test_observation_takes_over_what_others_changed(definitions, clicks):
    with dg.DagsterInstance.ephemeral() as instance:
        before = observe(definitions, instance)
        write(clicks / "day=1", "c.parquet", 9)
        write(clicks / "day=3", "a.parquet", 10)
        (clicks / "day=2" / "a.parquet").unlink()
        after = observe(definitions, instance)
        assert {key: numbers(each) for key, each in after.items()} == {"day=1": (4, 3), "day=3": (1, 1)}
        assert instance.get_dynamic_partitions("folders/clicks") == ["day=1", "day=3"]
        assert version(before["day=1"]) != version(after["day=1"])


def version(observation: dg.AssetObservation) -> str:
    return observation.tags["dagster/data_version"]


def test_data_version_stays_when_we_merge_files(definitions, adopted, local_store):
    with dg.DagsterInstance.ephemeral() as instance:
        before = observe(definitions, instance)["day=1"]
        open_table(local_store, adopted.feed).compact("day=1", CompactionRequest(force=True))
        after = observe(definitions, instance)["day=1"]
        assert (numbers(before), numbers(after)) == ((3, 2), (3, 1))
        assert version(before) == version(after)


def test_file_that_cannot_be_read_is_a_warning_of_the_run(definitions, clicks):
    (clicks / "day=2" / "bad.parquet").write_text("no")
    with dg.DagsterInstance.ephemeral() as instance:
        job = definitions.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance, asset_selection=[KEY])
        lines = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == 30]
    assert lines == [
        "day=2/bad.parquet cannot be read, and stays where it is: it is not a Parquet file, or was truncated"
    ]


def test_key_that_dagster_refuses_is_left_out(clicks, local_store):
    write(clicks / "a...b", "a.parquet", 7)
    adoption = adopt(local_store, str(clicks), "clicks")
    with dg.DagsterInstance.ephemeral() as instance:
        new = keep_partitions(instance, adoption.feed, adoption.found)
        assert new == {"day=1", "day=2"}
    assert "a...b" in adoption.found.partitions


def test_nothing_exports_a_folder(definitions, adopted):
    assert not [each.name for each in definitions.schedules if each.name.startswith("export")]
    with dg.DagsterInstance.ephemeral() as instance:
        result = definitions.resolve_job_def("export_all").execute_in_process(instance=instance)
        assert result.success
        assert not instance.get_latest_materialization_event(asset_key(adopted.feed))


def test_partitions_that_another_process_adds_at_the_same_time_are_there_for_both(adopted, instance, monkeypatch):
    """What two do at once, one after another: who looked before the other had added is refused by Dagster's storage."""
    feed, add = adopted.feed, type(instance).add_dynamic_partitions

    def beside_another(self, name, keys):
        if not self.has_dynamic_partition(name, "day=1"):
            add(self, name, ["day=1"])
            raise sqlite3.IntegrityError("UNIQUE constraint failed: dynamic_partitions")
        add(self, name, keys)

    monkeypatch.setattr(type(instance), "add_dynamic_partitions", beside_another)
    add_partitions(instance, feed, ["day=1", "day=2"])

    assert instance.get_dynamic_partitions("folders/clicks") == ["day=1", "day=2"]
