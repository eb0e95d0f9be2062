"""Checks of adopted folders: red for their reason, green again, and evaluated by the nightly job."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.checks.at_rest import EVALUATE_CHECKS
from datalake_assets.defs.runtime import known_dagster_warnings_ignored
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.policies import Checks, Freshness, UniqueRule
from datalake_assets.settings import Settings

KEY = dg.AssetKey(["folders", "clicks"])


def write(folder: Path, name: str, **columns: list[object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)


@pytest.fixture
def clicks(local_store: Store, tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / "clicks"
    write(folder / "day=1", "a.parquet", id=[1, 2])
    write(folder / "day=2", "a.parquet", id=[3])
    adopt(local_store, str(folder), "clicks")
    return folder


def evaluate(store: Store, instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    """What the nightly job says, after the look that the nightly maintenance takes."""
    open_table(store, FeedRegistry(store).get("clicks")).look_again()
    with known_dagster_warnings_ignored():
        job = build_definitions(Settings(lake=store.uri)).resolve_job_def(EVALUATE_CHECKS)
        result = job.execute_in_process(instance=instance)
    assert result.success
    return {each.check_name: each for each in result.get_asset_check_evaluations()}


def test_folder_is_healthy_when_there_is_nothing_to_merge(local_store, clicks, instance):
    found = evaluate(local_store, instance)

    assert {name: each.passed for name, each in found.items()} == dict.fromkeys(
        ("schema", "file_size", "small_files", "freshness"), True
    )
    assert found["small_files"].metadata["datalake/files"].value == 2


def test_small_files_of_a_folder_are_red_until_it_is_compacted(local_store, clicks, instance):
    for name in "bc":
        write(clicks / "day=1", f"{name}.parquet", id=[5])
    red = evaluate(local_store, instance)["small_files"]
    assert (red.passed, red.description) == (
        False,
        "day=1: 3 files, 3 of them small; compaction would leave 1",
    )

    with known_dagster_warnings_ignored():
        job = build_definitions(Settings(lake=local_store.uri)).resolve_job_def("compact_partition")
        config = {"ops": {"compact": {"config": {"feed": "clicks", "partitions": ["day=1"]}}}}
        assert job.execute_in_process(instance=instance, run_config=config).success

    latest = instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(KEY, "small_files"))
    assert latest.event.dagster_event.asset_check_evaluation_data.passed
    assert evaluate(local_store, instance)["small_files"].passed


def test_schema_of_a_folder_is_red_while_a_file_fits_no_other(local_store, clicks, instance):
    write(clicks / "day=1", "odd.parquet", id=["text"])
    red = evaluate(local_store, instance)["schema"]
    assert not red.passed
    assert red.description.startswith("day=1: odd.parquet ")

    (clicks / "day=1" / "odd.parquet").unlink()
    assert evaluate(local_store, instance)["schema"].passed


def declare(store: Store, **changes: object) -> None:
    registry = FeedRegistry(store)
    feed = registry.get("clicks")
    registry.update(feed.model_copy(update=changes), expected_revision=feed.revision)


def test_freshness_of_a_folder_is_that_of_its_last_change(local_store, clicks, instance):
    declare(local_store, freshness=Freshness(max_commit_age=timedelta(0)))
    red = evaluate(local_store, instance)["freshness"]
    assert (red.passed, red.metadata["datalake/commit_age_hours"].value >= 0) == (False, True)

    declare(local_store, freshness=Freshness(max_commit_age=timedelta(hours=1)))
    assert evaluate(local_store, instance)["freshness"].passed


@pytest.mark.parametrize("across", ["feed", "partition"])
def test_rules_of_a_folder_are_checks_of_what_others_changed(local_store, clicks, instance, across):
    declare(local_store, checks=Checks(rules=(UniqueRule(columns=("id",), across=across),)))
    assert evaluate(local_store, instance)["unique_id"].passed

    write(clicks / "day=2", "b.parquet", id=[3])
    red = evaluate(local_store, instance)["unique_id"]
    assert (red.passed, red.metadata["datalake/rows_broken"].value) == (False, 1)
    assert not evaluate(local_store, instance)["unique_id"].passed  # nothing changed: it is as bad as before

    (clicks / "day=2" / "b.parquet").unlink()
    assert evaluate(local_store, instance)["unique_id"].passed
