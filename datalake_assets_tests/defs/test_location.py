"""The code location as Dagster loads it: from workspace.yaml, in a process of its own."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

import datalake_assets
from datalake_assets.defs.build import build_definitions
from datalake_assets.errors import LakeUnavailable
from datalake_assets_tests.defs.fakes import MemoryLake, resources, stream, table

ROOT = Path(datalake_assets.__file__).parent.parent


def validate(lake: Path, home: Path) -> subprocess.CompletedProcess[str]:
    home.mkdir()
    environment = {**os.environ, "DATALAKE_LAKE": str(lake), "DAGSTER_HOME": str(home), "PYTHONWARNINGS": "default"}
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_location_of_eight_feeds_and_a_bad_one_validates_without_warnings_of_ours(lake: MemoryLake, tmp_path: Path):
    for number in range(4):
        lake.registry.add(stream(f"s{number}", schedule="@hourly"))
        lake.registry.add(table(f"t{number}"))
    (Path(lake.uri) / "feeds/active/bad.json").write_text("{")

    done = validate(Path(lake.uri), tmp_path / "home")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "feeds/active/bad.json is skipped" in done.stderr
    ours = [line for line in done.stderr.splitlines() if "Warning" in line and "datalake_assets" in line]
    assert ours == []
    assert "BetaWarning" not in done.stderr
    assert "PreviewWarning" not in done.stderr


def test_unreadable_lake_is_an_error_and_not_an_empty_location(tmp_path: Path, lake: MemoryLake):
    gone = MemoryLake(lake.settings.model_copy(update={"lake": str(tmp_path / "gone")}))

    with pytest.raises(LakeUnavailable, match="no such folder"):
        build_definitions(gone.settings, lake=gone, resources=resources(gone))


def test_bad_feed_file_is_skipped_with_a_warning(lake: MemoryLake, caplog: pytest.LogCaptureFixture):
    lake.registry.add(stream())
    (Path(lake.uri) / "feeds/active/bad.json").write_text('{"name": "bad"}')

    with caplog.at_level(logging.WARNING):
        definitions = build_definitions(lake.settings, lake=lake, resources=resources(lake))

    assert {spec.key.to_user_string() for spec in definitions.resolve_all_asset_specs()} == {
        "catalog",
        "feeds/bad",
        "ksqldb/CLICKS",
        "lake_report",
        "streams/clicks",
    }
    assert caplog.messages[0].startswith("feeds/active/bad.json is skipped: kind: Field required")


def test_feed_that_is_left_out_says_why_until_it_is_mended(lake: MemoryLake, instance: dg.DagsterInstance):
    for feed in (stream(), stream().model_copy(update={"name": "bad", "owners": ("nobody",)})):
        lake.registry.add(feed)

    left_out = build_definitions(lake.settings, lake=lake, resources=resources(lake))
    sensor = left_out.resolve_sensor_def("feed_registry_sensor")
    first = reported(sensor, instance, None)
    (spec,) = [each for each in left_out.resolve_all_asset_specs() if each.group_name == "left_out"]
    graph = left_out.resolve_asset_graph()

    reason = "Dagster refuses it: Invalid owner 'nobody'"
    assert spec.key == dg.AssetKey(["streams", "bad"])
    assert spec.metadata["datalake/left_out"].text.startswith(reason)
    assert f"\n\n    {reason}" in str(spec.description)
    assert not graph.get(spec.key).is_executable
    assert [(each.asset_key, each.passed, each.description[: len(reason)]) for each in first.asset_events] == [
        (spec.key, False, reason)
    ]
    assert graph.get_check_keys_for_assets({spec.key}) == {dg.AssetCheckKey(spec.key, "declaration")}
    again = reported(sensor, instance, first.cursor)
    assert (again.asset_events, again.cursor) == ([], first.cursor)

    lake.registry.update(stream().model_copy(update={"name": "bad"}), expected_revision=1)
    mended = build_definitions(lake.settings, lake=lake, resources=resources(lake))
    (bad,) = [each for each in mended.resolve_all_asset_specs() if each.key == spec.key]

    assert bad.group_name == "streams"
    assert "declaration" not in {key.name for key in mended.resolve_asset_graph().get_check_keys_for_assets({bad.key})}
    assert reported(mended.resolve_sensor_def("feed_registry_sensor"), instance, first.cursor).cursor == " -"


def reported(sensor: dg.SensorDefinition, instance: dg.DagsterInstance, cursor: str | None):
    with dg.build_sensor_context(instance=instance, cursor=cursor, sensor_name=sensor.name) as context:
        return sensor.evaluate_tick(context)


def test_lineage_leads_from_the_source_to_the_report(lake: MemoryLake):
    for feed in (stream(), stream().model_copy(update={"name": "again"})):
        lake.registry.add(feed)

    graph = build_definitions(lake.settings, lake=lake, resources=resources(lake)).resolve_asset_graph()

    source, report = dg.AssetKey(["ksqldb", "CLICKS"]), dg.AssetKey("lake_report")
    feeds = {dg.AssetKey(["streams", "clicks"]), dg.AssetKey(["streams", "again"])}
    assert graph.get(source).is_external
    assert graph.get(source).child_keys == feeds
    assert graph.get(report).parent_keys == feeds
    assert graph.get(dg.AssetKey("catalog")).parent_keys == feeds


def test_location_without_feeds_loads(lake: MemoryLake):
    definitions = build_definitions(lake.settings, lake=lake, resources=resources(lake))

    # Dagster says them in the order of a set
    specs = definitions.resolve_all_asset_specs()
    assert sorted(spec.key.to_user_string() for spec in specs) == ["catalog", "lake_report"]
    assert definitions.resolve_job_def("export_all")
