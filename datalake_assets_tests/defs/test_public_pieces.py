"""The pieces for anybody's project, put together as there: small files come, checks tell, the sensor acts."""

import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

import datalake_assets.defs
from datalake_assets.config import Settings
from datalake_assets.defs import (
    LakeResource,
    ParquetLakeIOManager,
    build_compaction_sensor,
    build_file_size_checks,
    build_freshness_checks,
)
from datalake_assets.errors import ConfigError
from datalake_assets.policies import CompactionPolicy, Limits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*dagster_run is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]

NOW = datetime.now(UTC)
DAILY = dg.DailyPartitionsDefinition((NOW - timedelta(days=30)).strftime("%Y-%m-%d"), end_offset=1)
TODAY, YESTERDAY, LONG_AGO = (f"{NOW - timedelta(days=days):%Y-%m-%d}" for days in (0, 1, 20))
POLICY = CompactionPolicy(min_files=3)
SIZES = ("file_size", "small_files")


@dataclass
class Project:
    """A project of three assets: with partitions, without, and a folder that something else writes."""

    lake: LakeResource
    instance: dg.DagsterInstance
    exports_folder: Path
    rows: int = 4
    cursor: str | None = None
    more: dict[str, object] = field(default_factory=dict)
    made: tuple[dg.AssetsDefinition, ...] = ()

    def __post_init__(self) -> None:
        @dg.asset(
            partitions_def=DAILY,
            io_manager_key="lake",
            backfill_policy=dg.BackfillPolicy.single_run(),
        )
        def orders(context: dg.AssetExecutionContext) -> dict[str, pd.DataFrame]:
            return {key: pd.DataFrame({"id": range(self.rows)}) for key in context.partition_keys}

        @dg.asset(io_manager_key="lake")
        def users() -> pa.Table:
            return pa.table({"id": range(self.rows)})

        @dg.asset(metadata={"dagster/uri": str(self.exports_folder), **self.more})
        def exports() -> None:
            for number in range(self.rows):
                write(self.exports_folder / f"region=r{number % 2}" / f"{number}.parquet", number)

        self.made = (orders, users, exports)
        self.orders, self.users, self.exports = self.made

    def definitions(self, **how: object) -> dg.Definitions:
        return dg.Definitions(
            assets=self.made,
            asset_checks=build_file_size_checks(self.made, lake=self.lake, policy=POLICY, **how),
            sensors=[build_compaction_sensor(self.made, lake=self.lake, policy=POLICY)],
            resources={"lake": ParquetLakeIOManager(lake=self.lake)},
            executor=dg.in_process_executor,
        )

    def run(self, *assets: dg.AssetsDefinition, **how: object) -> dg.ExecuteInProcessResult:
        definitions = how.pop("definitions", None) or self.definitions()
        made = dg.define_asset_job("chosen", dg.AssetSelection.assets(*assets))
        job = dg.Definitions.merge(definitions, dg.Definitions(jobs=[made])).resolve_job_def("chosen")
        return job.execute_in_process(instance=self.instance, **how)

    def evaluate(self, asset: dg.AssetsDefinition, definitions: dg.Definitions | None = None, **how: object):
        """What "Execute all" on the page of checks does: no asset runs, and no partition is chosen."""
        own = definitions or self.definitions()
        keys = [key for checks in own.asset_checks for key in checks.check_keys if key.asset_key == asset.key]
        job = dg.define_asset_job("checks", dg.AssetSelection.checks(*keys))
        chosen = dg.Definitions.merge(own, dg.Definitions(jobs=[job]))
        return chosen.resolve_job_def("checks").execute_in_process(instance=self.instance, **how)

    def tick(self, definitions: dg.Definitions | None = None) -> list[dict[str, object]]:
        """A tick, and the runs that it asks for, as the daemon would have them run; returns what they compact."""
        chosen = definitions or self.definitions()
        (sensor,) = chosen.sensors
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor, definitions=chosen)
        result = sensor(context)
        self.cursor = result.cursor
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        job = chosen.resolve_job_def("compact_partition")
        for request in result.run_requests:
            tags = {**request.tags, "dagster/run_key": request.run_key}
            assert job.execute_in_process(instance=self.instance, run_config=request.run_config, tags=tags).success
        return [request.run_config["ops"]["compact"]["config"] for request in result.run_requests]

    def files(self, name: str) -> dict[str, int]:
        lake = self.lake.open()
        table = lake.table(lake.registry.get(name))
        return {key: table.report(key).files for key in table.partitions()}


def write(file: Path, *ids: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(ids)}), file)


@pytest.fixture
def project(tmp_path: Path, instance: dg.DagsterInstance) -> Project:
    (tmp_path / "lake").mkdir()
    lake = LakeResource(settings=Settings(lake=str(tmp_path / "lake")))
    return Project(lake, instance, tmp_path / "raw" / "exports")


def current(instance: dg.DagsterInstance, asset: str) -> dict[tuple[str, str], bool]:
    """Whether a partition's last evaluation is about its last materialization; else the UI shows it as missing."""
    keys = [dg.AssetCheckKey(dg.AssetKey(asset), name) for name in SIZES]
    found = instance.event_log_storage.get_asset_check_partition_info(keys)
    return {(each.check_key.name, each.partition_key): each.is_current for each in found if each.partition_key}


def evaluations(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str | None], bool]:
    found = [event.event_specific_data for event in result.all_events if event.event_type_value == EVALUATION]
    return {(each.check_name, each.partition): each.passed for each in found}


EVALUATION = "ASSET_CHECK_EVALUATION"


# The public surface


def test_public_names_are_these_and_no_others():
    assert datalake_assets.defs.__all__ == [
        "LakeResource",
        "ParquetLakeIOManager",
        "build_compaction_sensor",
        "build_file_size_checks",
        "build_freshness_checks",
    ]
    for name in datalake_assets.defs.__all__:
        assert getattr(datalake_assets.defs, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = datalake_assets.defs.nothing


def test_public_names_load_nothing_that_definitions_do_not_need():
    heavy = ("boto3", "dagster_aws", "duckdb", "httpx", "jinja2", "matplotlib", "obstore", "pandas", "polars")
    names = ", ".join(datalake_assets.defs.__all__)
    script = f"import sys; from datalake_assets.defs import {names}; print([m for m in {heavy} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_code_of_the_how_to_runs_as_it_stands(tmp_path, project):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "use-it-in-your-own-project.md"
    whole, scheduled = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    told: dict[str, object] = {}

    exec(whole.replace("s3://bucket", str(tmp_path)), told)  # noqa: S102  our own documentation
    told["freshness_checks"] = build_freshness_checks([told["orders"]], lake=told["lake"], max_commit_age=timedelta(1))
    exec(scheduled, told)  # noqa: S102  likewise

    definitions = dg.Definitions.merge(told["defs"], dg.Definitions(schedules=[told["schedule"]]))
    assert definitions.resolve_job_def("compact_partition").name == "compact_partition"
    assert project.lake.open().uri == told["lake"].open().uri
    job = definitions.resolve_job_def("freshness")
    assert job.execute_in_process(instance=project.instance).get_asset_check_evaluations()[0].passed is False


def test_definitions_bring_the_job_of_the_sensor_along(project):
    assert project.definitions().resolve_job_def("compact_partition").name == "compact_partition"
    assert not project.lake.open().registry.list().feeds, "loading definitions writes nothing"


# The folder of others, end to end


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
    monkeypatch.setattr("datalake_assets.defs.projects.sensor.LOOK_EVERY_S", 0.0)

    assert project.tick(definitions) == [{"feed": "exports", "partitions": ["region=r0"]}]


def test_folder_that_was_adopted_by_hand_stays_the_same_feed(project):
    from datalake_assets.lake.adoption import adopt  # noqa: PLC0415

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
    lake = LakeResource(settings=Settings(lake=s3_store.uri, s3_endpoint=s3_store.s3_endpoint))
    project = Project(lake, instance, Path("/nowhere"))
    project.made = (dg.AssetSpec("exports", metadata={"dagster/uri": uri}),)

    assert project.tick() == [{"feed": "exports", "partitions": ["."]}]

    left = [each.path for each in filesystem.get_file_info(pa.fs.FileSelector(path))]
    assert [Path(each).name.partition("_")[0] for each in left] == ["compacted"]
    assert sorted(pq.read_table(left[0], filesystem=filesystem)["id"].to_pylist()) == [0, 1, 2, 3]
    assert evaluations(project.evaluate(project.made[0])) == {(name, None): True for name in SIZES}


# Assets that are stored in the lake


def test_policy_of_the_sensor_is_registered_with_the_feeds(project):
    project.run(project.users)
    project.tick()

    assert project.lake.open().registry.get("users").compaction == POLICY


def test_sensor_asks_little_of_the_lake_when_nothing_happens(project):
    project.made = (project.orders, project.users)
    project.run(project.users)
    project.run(project.orders, partition_key=TODAY)
    definitions = project.definitions()
    store = project.lake.open().store
    for _ in range(2):
        project.tick(definitions)
    before = dict(store.requests)

    assert project.tick(definitions) == []

    spent = {kind: count - before[kind] for kind, count in store.requests.items()}
    assert (spent["list"], sum(spent.values())) == (1, 1)  # of the registry


def test_sensor_registers_nothing_before_an_asset_has_written(project):
    assert project.tick() == []

    assert not project.lake.open().registry.list().feeds


def test_checks_of_a_partition_are_recorded_for_the_partition(project):
    told = evaluations(project.run(project.orders, partition_key=TODAY))

    assert told == {("file_size", TODAY): True, ("small_files", TODAY): True}


def test_checks_of_a_range_are_recorded_for_each_partition_and_for_all(project):
    tags = {"dagster/asset_partition_range_start": YESTERDAY, "dagster/asset_partition_range_end": TODAY}

    told = evaluations(project.run(project.orders, tags=tags))

    assert told == {(name, key): True for name in SIZES for key in (YESTERDAY, TODAY, None)}
    assert current(project.instance, "orders") == {(name, key): True for name in SIZES for key in (YESTERDAY, TODAY)}


def test_checks_by_themselves_look_at_all_partitions(project):
    for key in (TODAY, LONG_AGO):
        project.run(project.orders, partition_key=key)

    told = evaluations(project.evaluate(project.orders))

    assert told == {(name, key): True for name in SIZES for key in (LONG_AGO, TODAY, None)}
    assert current(project.instance, "orders") == {(name, key): True for name in SIZES for key in (LONG_AGO, TODAY)}


def test_limits_of_the_builder_decide_and_are_registered(project):
    definitions = project.definitions(small_files=Limits(warn=0, error=5))

    told = evaluations(project.run(project.orders, partition_key=TODAY, definitions=definitions))

    assert told == {("file_size", TODAY): True, ("small_files", TODAY): False}
    assert project.lake.open().registry.get("orders").checks.small_files == Limits(warn=0, error=5)


def test_partition_of_many_small_files_is_told_compacted_and_well(project):
    rows = {"id": np.random.default_rng(7).integers(0, 1 << 62, 600_000)}

    def orders(metadata: dict[str, object]) -> dg.AssetsDefinition:
        made = dg.asset(partitions_def=DAILY, io_manager_key="lake", name="orders", metadata=metadata)
        return made(lambda: pa.table(rows))

    def of(target: int) -> dict[str, object]:
        return {"datalake/format": {"target_file_size_bytes": target << 20, "row_group_bytes": 1 << 20}}

    project.made = (orders(of(1)),)
    project.run(*project.made, partition_key=TODAY)
    files = project.files("orders")[TODAY]
    project.made = (orders(of(128)),)  # the files were to be small until now
    told = evaluations(project.evaluate(*project.made))

    assert files >= 3
    assert (told["small_files", TODAY], told["file_size", TODAY]) == (False, False)
    assert project.tick() == [{"feed": "orders", "partitions": [TODAY]}]
    assert project.files("orders") == {TODAY: 1}
    assert current(project.instance, "orders") == {(name, TODAY): True for name in SIZES}
    assert project.tick() == []
    assert all(evaluations(project.evaluate(*project.made)).values())
    assert project.lake.open().table(project.lake.open().registry.get("orders")).report(TODAY).rows == 600_000


def test_table_that_has_one_file_has_nothing_to_compact(project):
    assert evaluations(project.run(project.users)) == {("file_size", None): True, ("small_files", None): True}
    assert project.tick() == []


# Freshness


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
    assert (passed, "the newest commit is infinitely old" in told, "the newest event is" in told) == (False, True, True)

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


# What cannot be


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda p: build_freshness_checks([p.orders], lake=p.lake), "give an age, like max_commit_age"),
        (lambda p: build_file_size_checks(["orders"], lake=p.lake), "'orders' is no asset; give what @dg.asset or"),
        (
            lambda p: build_freshness_checks([p.users], lake=p.lake, max_event_age=timedelta(1)),
            "asset 'users': its rows have no times, so max_event_age cannot be judged; give max_commit_age instead",
        ),
        (
            lambda p: build_freshness_checks([p.exports], lake=p.lake, max_event_age=timedelta(1)),
            "or its metadata 'datalake/time_column'",
        ),
        (
            lambda p: build_compaction_sensor([dg.AssetSpec(["a", "b"]), dg.AssetSpec("a__b")], lake=p.lake),
            "assets 'a/b' and 'a__b' would both be feed 'a__b'; give one of them another name",
        ),
        (
            lambda p: build_file_size_checks(
                [dg.AssetSpec("a", partitions_def=dg.StaticPartitionsDefinition(["x"]))], lake=p.lake
            ),
            "asset 'a': its partitions are not those of a stream",
        ),
        (
            lambda p: build_file_size_checks([dg.AssetSpec("a", metadata={"dagster/uri": "gs://x/y"})], lake=p.lake),
            "'gs://x/y' cannot be adopted: give a local folder, or s3://bucket/prefix",
        ),
    ],
)
def test_what_cannot_be_watched_is_told_when_definitions_load(project, build, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        build(project)
