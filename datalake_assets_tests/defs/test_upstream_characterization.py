"""Behaviours of Dagster that the glue rests on, one test each: a failure here says what an upgrade changed."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from datalake_assets.defs.metadata import aimed
from datalake_assets.defs.runs import run_job_here
from datalake_assets.defs.runtime import known_dagster_warnings_ignored

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_offset=1)
A = dg.AssetKey("a")
RANGE = {"dagster/asset_partition_range_start": "2026-01-01", "dagster/asset_partition_range_end": "2026-01-03"}


class Recorder(dg.IOManager):
    """Attaches metadata to each partition, as our IO manager does."""

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        for number, key in enumerate(context.asset_partition_keys):
            context.step_context.add_asset_metadata({"n": number}, asset_key=context.asset_key, partition_key=key)
        context.add_output_metadata({"all": 1})
        context.log_event(dg.AssetMaterialization(context.asset_key, partition="2025-12-31", metadata={"n": 9}))
        if isinstance(obj, str):
            context.step_context.set_data_version(context.asset_key, dg.DataVersion(obj))
        if isinstance(obj, dg.Failure):
            raise obj

    def load_input(self, context: dg.InputContext) -> None: ...


def materialize(assets: list[object], instance: dg.DagsterInstance, **how: object) -> dg.ExecuteInProcessResult:
    with known_dagster_warnings_ignored():
        return dg.materialize(
            assets, instance=instance, resources={"io_manager": Recorder()}, raise_on_error=False, **how
        )


def asset(value: object = "v", **how: object) -> dg.AssetsDefinition:
    with known_dagster_warnings_ignored():

        @dg.asset(name="a", partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run(), **how)
        def a() -> object:
            return value

        return a


def events(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetMaterialization]:
    found = [event.materialization for event in result.get_asset_materialization_events()]
    return {each.partition: each for each in found}


def test_range_run_takes_metadata_per_partition(instance):
    found = events(materialize([asset()], instance, tags=RANGE))

    numbers = {key: (each.metadata["n"].value, "all" in each.metadata) for key, each in found.items()}
    assert numbers == {
        "2025-12-31": (9, False),
        "2026-01-01": (0, True),
        "2026-01-02": (1, True),
        "2026-01-03": (2, True),
    }


def test_single_partition_run_takes_metadata_per_partition_too(instance):
    assert events(materialize([asset()], instance, partition_key="2026-01-02"))["2026-01-02"].metadata["n"].value == 0


def test_code_version_alone_would_make_new_rows_look_like_the_same_data(instance):
    versions = [
        events(materialize([asset(0, code_version="1")], instance, partition_key="2026-01-01"))["2026-01-01"].tags[
            "dagster/data_version"
        ]
        for _ in range(2)
    ]

    assert versions[0] == versions[1]


def test_data_version_can_be_set_while_the_output_is_handled(instance):
    found = events(materialize([asset("g7", code_version="1")], instance, partition_key="2026-01-01"))

    assert found["2026-01-01"].tags["dagster/data_version"] == "g7"


def test_failure_raised_while_the_output_is_handled_keeps_its_description_and_metadata(instance):
    result = materialize([asset(dg.Failure("one line", metadata={"k": "v"}))], instance, partition_key="2026-01-01")

    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data.description == "one line"
    assert event.step_failure_data.user_failure_data.metadata["k"].value == "v"


def test_generator_goes_on_only_after_its_output_was_handled(instance):
    order = []

    class Noting(Recorder):
        def handle_output(self, context: dg.OutputContext, obj: object) -> None:
            order.append("handled")

    @dg.asset(check_specs=[dg.AssetCheckSpec("c", asset="a")])
    def a() -> Iterator[object]:
        yield dg.Output(1)
        order.append("went on")
        yield dg.AssetCheckResult(passed=True, check_name="c")

    dg.materialize([a], instance=instance, resources={"io_manager": Noting()})

    assert order == ["handled", "went on"]


def test_range_run_records_a_partitioned_check_without_partition_unless_logged_per_key(instance):
    with known_dagster_warnings_ignored():

        @dg.asset(
            partitions_def=DAYS,
            backfill_policy=dg.BackfillPolicy.single_run(),
            check_specs=[dg.AssetCheckSpec("c", asset="a", partitions_def=DAYS)],
        )
        def a(context: dg.AssetExecutionContext) -> Iterator[object]:
            yield dg.Output(1)
            for key in context.partition_keys:
                context.log_event(dg.AssetCheckEvaluation(asset_key=A, check_name="c", passed=True, partition=key))
            yield dg.AssetCheckResult(passed=True, check_name="c")

    evaluations = materialize([a], instance, tags=RANGE).get_asset_check_evaluations()

    assert [each.partition for each in evaluations] == ["2026-01-01", "2026-01-02", "2026-01-03", None]


def test_partition_in_progress_is_one_only_with_end_offset(instance):
    today = datetime.now(UTC).strftime("%Y-%m-%d")

    assert DAYS.get_last_partition_key() == today
    assert dg.DailyPartitionsDefinition("2026-01-01").get_last_partition_key() < today


def test_dynamic_partition_must_be_known_before_a_run(instance):
    @dg.asset(partitions_def=dg.DynamicPartitionsDefinition(name="v"))
    def a() -> None: ...

    with pytest.raises(dg.DagsterUnknownPartitionError):
        dg.materialize([a], instance=instance, partition_key="v1")
    instance.add_dynamic_partitions("v", ["v1"])
    assert dg.materialize([a], instance=instance, partition_key="v1").success


def test_run_started_here_belongs_to_the_code_location(instance):
    job = dg.Definitions(assets=[asset(0)], executor=dg.in_process_executor, resources={"io_manager": Recorder()})
    result = run_job_here(
        job.resolve_implicit_global_asset_job_def(),
        instance,
        asset_key=A,
        run_config={},
        tags={"dagster/partition": "2026-01-01"},
    )

    run = instance.get_run_by_id(result.run_id)
    assert (run.job_name, run.remote_job_origin.location_name) == ("__ASSET_JOB", "datalake_assets")
    assert run.asset_selection == {A}


def test_run_of_the_public_api_belongs_to_no_code_location(instance):
    run = materialize([asset(0)], instance, partition_key="2026-01-01").dagster_run

    assert run.remote_job_origin is None  # the UI cannot run it again, and no run-failure sensor sees it


def test_failing_a_run_does_not_free_its_pool_slots(home):
    @dg.job
    def empty() -> None: ...

    run = home.create_run_for_job(empty)
    log = home.event_log_storage
    log.initialize_concurrency_limit_to_default("pool")
    assert log.claim_concurrency_slot("pool", run.run_id, "step").is_claimed

    home.report_run_failed(run)

    assert log.get_concurrency_run_ids() == {run.run_id}
    log.free_concurrency_slots_for_run(run.run_id)
    assert log.get_concurrency_run_ids() == set()


def test_template_gives_each_pool_one_slot_for_steps_and_captures_no_streams(home):
    config = home.get_concurrency_config()

    assert (config.pool_config.default_pool_limit, config.pool_config.pool_granularity.value) == (1, "op")
    assert home.run_monitoring_enabled
    assert not home.telemetry_enabled
    assert not home.nux_enabled
    assert type(home.compute_log_manager).__name__ == "NoOpComputeLogManager"


def test_freshness_policy_is_refused_below_a_minute():
    with pytest.raises(Exception, match="cannot be less than 1 minute"):
        dg.FreshnessPolicy.time_window(fail_window=timedelta(seconds=59))


def test_logged_evaluation_of_a_partition_is_current_only_if_it_names_the_materialization(instance):
    """`check_results.aimed` sets what the results of steps get from Dagster; without it the UI says "missing"."""
    with known_dagster_warnings_ignored():
        spec = dg.AssetCheckSpec("c", asset="a", partitions_def=DAYS)

    @dg.asset(partitions_def=DAYS, check_specs=[spec])
    def a(context: dg.AssetExecutionContext):
        yield dg.MaterializeResult()
        plain = dg.AssetCheckEvaluation(asset_key=A, check_name="c", passed=True, partition="2026-01-01")
        named = dg.AssetCheckEvaluation(asset_key=A, check_name="c", passed=True, partition="2026-01-02")
        for event in (plain, *aimed(context.instance, [named])):
            context.log_event(event)
        yield dg.AssetCheckResult(check_name="c", passed=True)

    assert materialize([a], instance, tags=RANGE).success

    found = instance.event_log_storage.get_asset_check_partition_info([spec.key])
    told = {each.partition_key: each.is_current for each in found if each.partition_key}
    assert (told["2026-01-01"], told["2026-01-02"]) == (False, True)


def test_check_with_partitions_can_give_no_result_in_a_run_without(instance):
    """So `projects.checks` logs evaluations there, and its steps yield nothing."""

    with known_dagster_warnings_ignored():
        specs = [dg.AssetCheckSpec(name, asset="a", partitions_def=DAYS) for name in ("c", "d")]

    @dg.multi_asset_check(specs=specs[:1], can_subset=True)
    def silent(context: dg.AssetCheckExecutionContext):
        event = dg.AssetCheckEvaluation(asset_key=A, check_name="c", passed=True, partition="2026-01-01")
        context.op_execution_context.log_event(event)
        yield from ()

    @dg.multi_asset_check(specs=specs[1:], can_subset=True)
    def telling():
        yield dg.AssetCheckResult(check_name="d", passed=True)

    instance.report_runless_asset_event(dg.AssetMaterialization(A, partition="2026-01-01"))
    for checks, succeeds in ((silent, True), (telling, False)):
        job = dg.define_asset_job("checks", dg.AssetSelection.checks(checks))
        definitions = dg.Definitions([dg.AssetSpec("a", partitions_def=DAYS)], asset_checks=[checks], jobs=[job])
        result = definitions.resolve_job_def("checks").execute_in_process(instance=instance, raise_on_error=False)
        assert result.success is succeeds


def test_sensor_brings_its_job_along():
    @dg.job
    def brought(): ...

    sensor = dg.SensorDefinition(name="s", job=brought, evaluation_fn=lambda _: dg.SkipReason("no"))

    assert dg.Definitions(sensors=[sensor]).resolve_job_def("brought").name == "brought"


def test_backfill_policy_is_still_beta():
    with pytest.warns(dg.BetaWarning, match="backfill_policy"):

        @dg.asset(backfill_policy=dg.BackfillPolicy.single_run())
        def a() -> None: ...


def test_definitions_import_neither_components_nor_boto3():
    """They would double the time that every command and every run takes to start."""
    code = (
        "import sys, datalake_assets.defs.build;"
        "print([name for name in ('boto3', 'dagster_aws', 'httpx', 'duckdb') if name in sys.modules]);"
        "import datalake_assets.lake.marts.mart_inputs;"  # of a lake that has marts
        "print([name for name in ('pandas', 'pyarrow.dataset') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.split() == ["[]", "[]"]
