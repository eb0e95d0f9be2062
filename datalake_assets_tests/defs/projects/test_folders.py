"""A folder that something else writes: small files come, checks tell, the sensor acts."""

import uuid
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from datalake_assets.defs import LakeResource
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.projects.project import EXPECTED_WARNINGS, SIZES, Project, evaluations, write

pytestmark = EXPECTED_WARNINGS


def test_folder_with_small_files_is_told_compacted_and_well(project):
    project.rows = 8

    told = evaluations(project.run(project.exports))
    assert told == {("file_size", None): False, ("small_files", None): False}
    assert project.files("exports") == {"region=r0": 4, "region=r1": 4}

    assert project.tick() == [{"feed": "exports", "partitions": ["region=r0", "region=r1"]}]
    assert project.files("exports") == {"region=r0": 1, "region=r1": 1}
    assert project.tick() == []

    assert evaluations(project.evaluate(project.exports)) == {("file_size", None): True, ("small_files", None): True}
    assert sorted(pq.read_table(project.exports_folder)["id"].to_pylist()) == list(range(8))


def test_compaction_of_a_folder_is_told_by_observations_and_by_its_checks(project):
    project.rows = 8
    project.run(project.exports)
    project.tick()

    observed = project.instance.fetch_observations(dg.AssetKey("exports"), limit=10).records
    metadata = [each.asset_observation.metadata for each in observed]
    assert sorted((each["datalake/partition"].value, each["datalake/files"].value) for each in metadata) == [
        ("region=r0", 1),
        ("region=r1", 1),
    ]
    summary = project.instance.event_log_storage.get_asset_check_summary_records(
        [dg.AssetCheckKey(dg.AssetKey("exports"), name) for name in SIZES]
    )
    assert {each.last_check_execution_record.status.value for each in summary.values()} == {"SUCCEEDED"}
    assert len(project.instance.fetch_materializations(dg.AssetKey("exports"), limit=9).records) == 1


def test_sensor_waits_for_a_folder_and_then_takes_it(project):
    assert project.tick() == []

    for number in range(3):
        write(project.exports_folder / f"{number}.parquet", number)
    project.instance.report_runless_asset_event(dg.AssetMaterialization("exports"))

    assert project.tick() == [{"feed": "exports", "partitions": ["."]}]
    assert project.files("exports") == {".": 1}


def test_sensor_notices_files_that_nobody_told_of(project, monkeypatch):
    definitions = project.definitions()
    project.run(project.exports, definitions=definitions)
    project.tick(definitions)
    for number in range(3):
        write(project.exports_folder / "region=r0" / f"late{number}.parquet", 90 + number)

    assert project.tick(definitions) == []  # it was listed a moment ago
    monkeypatch.setattr("datalake_assets.defs.projects.LOOK_EVERY_S", 0.0)

    assert project.tick(definitions) == [{"feed": "exports", "partitions": ["region=r0"]}]


def test_folder_that_was_adopted_by_hand_stays_the_same_feed(project):
    from datalake_assets.lake.adopted.adoption import adopt  # noqa: PLC0415

    write(project.exports_folder / "a.parquet", 1)
    adopt(project.lake.open().store, str(project.exports_folder), "exports")

    project.evaluate(project.exports)

    assert project.lake.open().registry.get("exports").asset == "exports"


def test_check_of_a_folder_that_is_not_there_fails_and_says_so(project):
    project.exports_folder.parent.mkdir()
    result = project.evaluate(project.exports, raise_on_error=False)

    (failure,) = [event.event_specific_data for event in result.all_events if event.is_step_failure]
    assert "cannot be adopted: there is no such folder" in failure.user_failure_data.description


@pytest.mark.s3
def test_folder_on_s3_is_taken_and_compacted_where_it_lies(s3_store, s3_server, instance):
    uri = f"s3://{s3_server.bucket}/others/{uuid.uuid4().hex}/exports"
    filesystem, path = s3_store.filesystem(), uri.removeprefix("s3://")
    for number in range(4):
        pq.write_table(pa.table({"id": [number]}), f"{path}/{number}.parquet", filesystem=filesystem)
    lake = LakeResource(settings=Settings(lake=s3_store.uri, s3_endpoint=s3_store.s3.endpoint))
    project = Project(lake, instance, Path("/nowhere"))
    project.made = (dg.AssetSpec("exports", metadata={"dagster/uri": uri}),)

    assert project.tick() == [{"feed": "exports", "partitions": ["."]}]

    left = [each.path for each in filesystem.get_file_info(pa.fs.FileSelector(path))]
    assert [Path(each).name.partition("_")[0] for each in left] == ["compacted"]
    assert sorted(pq.read_table(left[0], filesystem=filesystem)["id"].to_pylist()) == [0, 1, 2, 3]
    assert evaluations(project.evaluate(project.made[0])) == {(name, None): True for name in SIZES}
