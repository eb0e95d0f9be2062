"""Checks of freshness for anybody's assets: red for their reason, and green again."""

from collections.abc import Callable
from datetime import timedelta

import dagster as dg

from datalake_assets.defs import ParquetLakeIOManager, build_freshness_checks
from datalake_assets_tests.defs.projects.project import (
    EVALUATION,
    EXPECTED_WARNINGS,
    LONG_AGO,
    YESTERDAY,
    Project,
    write,
)

pytestmark = EXPECTED_WARNINGS


def fresh(project: Project, asset: dg.AssetsDefinition, **ages: timedelta) -> Callable[[], tuple[bool, str | None]]:
    checks = build_freshness_checks([asset], lake=project.lake, **ages)
    resources = {"lake": ParquetLakeIOManager(lake=project.lake)}
    definitions = dg.Definitions(assets=project.made, asset_checks=checks, resources=resources)

    def evaluate() -> tuple[bool, str | None]:
        result = project.evaluate(asset, definitions)
        (found,) = [event.event_specific_data for event in result.all_events if event.event_type_value == EVALUATION]
        return found.passed, found.description

    return evaluate


def test_freshness_is_red_without_rows_and_after_a_backfill_and_green_after_todays_rows(project):
    evaluate = fresh(project, project.orders, max_event_age=timedelta(hours=30), max_commit_age=timedelta(hours=1))

    assert evaluate()[0] is False
    project.run(project.orders, partition_key=LONG_AGO)
    passed, told = evaluate()
    assert (passed, "the newest commit is not known" in told, "the newest event is" in told) == (False, True, True)

    project.run(project.orders, partition_key=YESTERDAY)
    assert evaluate() == (True, None)


def test_freshness_of_an_asset_without_partitions_is_that_of_its_newest_version(project):
    evaluate = fresh(project, project.users, max_commit_age=timedelta(hours=1))

    assert evaluate()[0] is False
    project.run(project.users)
    assert evaluate() == (True, None)


def test_freshness_of_a_folder_is_that_of_its_files(project):
    write(project.exports_folder / "a.parquet", 1)
    evaluate = fresh(project, project.exports, max_commit_age=timedelta(hours=1))

    assert evaluate() == (True, None)
