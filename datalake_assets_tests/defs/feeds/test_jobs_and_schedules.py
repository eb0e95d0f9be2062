"""Exporting everything, and exporting by the clock."""

import dagster as dg
import pytest

from datalake_assets.defs.build import EXPORT_ALL, PARENT_TAG, build_definitions
from datalake_assets.defs.feeds.runner import FeedRunner
from datalake_assets.errors import SourceUnavailable
from datalake_assets_tests.defs.fakes import MemoryLake, days_ago, resources, stream, table


@pytest.fixture
def definitions(lake: MemoryLake) -> dg.Definitions:
    for feed in (stream(schedule="0 * * * *"), stream("views", enabled=True), table(schedule="@daily")):
        lake.registry.add(feed)
        lake.sent[feed.name] = [days_ago(0)]
    return build_definitions(lake.settings, lake=lake, resources=resources(lake))


def test_export_all_runs_every_feed_in_a_run_of_its_own(lake, definitions, instance):
    result = definitions.resolve_job_def(EXPORT_ALL).execute_in_process(instance=instance)

    runs = instance.get_runs(dg.RunsFilter(tags={PARENT_TAG: result.run_id}))
    assert {next(iter(run.asset_selection)).to_user_string() for run in runs} == {
        "streams/clicks",
        "streams/views",
        "tables/users",
    }
    assert all(run.is_success for run in runs)


def test_export_all_goes_on_after_a_failure_and_names_it_at_the_end(lake, definitions, instance):
    lake.broken["clicks"] = SourceUnavailable("http://ksql CLICKS", "refused")

    result = definitions.resolve_job_def(EXPORT_ALL).execute_in_process(instance=instance, raise_on_error=False)

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data.description == (
        "1 of 3 feeds failed: clicks: http://ksql CLICKS: refused; nothing was committed; "
        "run it again when the source is well"
    )
    assert instance.get_dynamic_partitions("tables/users") == ["v1"]


def test_export_all_goes_on_after_what_nobody_foresaw(definitions, instance, monkeypatch):
    plan = FeedRunner.plan

    def odd(self, instance, name, partitions=None):
        if name == "clicks":
            raise KeyError("files")
        return plan(self, instance, name, partitions)

    monkeypatch.setattr(FeedRunner, "plan", odd)
    result = definitions.resolve_job_def(EXPORT_ALL).execute_in_process(instance=instance, raise_on_error=False)

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data.description == (
        "1 of 3 feeds failed: clicks: unexpected KeyError: 'files' (a bug; see where with -v)"
    )
    assert instance.get_dynamic_partitions("tables/users") == ["v1"]


def test_export_all_takes_the_feeds_that_it_is_told(lake, definitions, instance):
    config = {"ops": {"export_feeds": {"config": {"feeds": ["views"]}}}}

    result = definitions.resolve_job_def(EXPORT_ALL).execute_in_process(instance=instance, run_config=config)

    assert len(instance.get_runs(dg.RunsFilter(tags={PARENT_TAG: result.run_id}))) == 1


def test_job_of_a_table_lands_its_next_version_each_time(definitions, instance):
    job = definitions.resolve_job_def("export_table_users")

    assert all(job.execute_in_process(instance=instance).success for _ in range(2))

    assert instance.get_dynamic_partitions("tables/users") == ["v1", "v2"]


def test_schedules_are_there_for_the_feeds_that_ask_for_one(definitions):
    schedules = definitions.get_repository_def().schedule_defs

    assert {schedule.name: schedule.cron_schedule for schedule in schedules} == {
        "export_stream_clicks": "0 * * * *",
        "export_table_users": "@daily",
        "nightly_maintenance": "0 2 * * *",
    }
    assert {schedule.default_status for schedule in schedules} == {dg.DefaultScheduleStatus.RUNNING}
    assert {schedule.execution_timezone for schedule in schedules} == {"UTC"}


def test_schedule_of_a_stream_asks_for_its_current_partition(definitions, home):
    schedule = definitions.get_repository_def().get_schedule_def("export_stream_clicks")

    tick = schedule.evaluate_tick(dg.build_schedule_context(instance=home))

    (request,) = tick.run_requests
    assert request.tags["dagster/partition"] == f"{days_ago(0):%Y-%m-%d}"
    assert request.asset_selection == [dg.AssetKey(["streams", "clicks"])]


def test_schedule_of_a_table_allocates_a_version_that_dagster_knows(definitions, home):
    schedule = definitions.get_repository_def().get_schedule_def("export_table_users")

    tick = schedule.evaluate_tick(dg.build_schedule_context(instance=home))

    assert tick.run_requests[0].tags["dagster/partition"] == "v1"
    assert home.get_dynamic_partitions("tables/users") == ["v1"]
