"""A Dagster project that uses the public pieces, as anybody's would."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from datalake_assets.defs import LakeResource, ParquetLakeIOManager, build_compaction_sensor, build_file_size_checks
from datalake_assets.policies import CompactionPolicy

EXPECTED_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*dagster_run is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]
NOW = datetime.now(UTC)
DAILY = dg.DailyPartitionsDefinition((NOW - timedelta(days=30)).strftime("%Y-%m-%d"), end_offset=1)
TODAY, YESTERDAY, LONG_AGO = (f"{NOW - timedelta(days=days):%Y-%m-%d}" for days in (0, 1, 20))
POLICY = CompactionPolicy(min_files=3)
SIZES = ("file_size", "small_files")
EVALUATION = "ASSET_CHECK_EVALUATION"


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


def current(instance: dg.DagsterInstance, asset: str) -> dict[tuple[str, str], bool]:
    """Whether a partition's last evaluation is about its last materialization; else the UI shows it as missing."""
    keys = [dg.AssetCheckKey(dg.AssetKey(asset), name) for name in SIZES]
    found = instance.event_log_storage.get_asset_check_partition_info(keys)
    return {(each.check_key.name, each.partition_key): each.is_current for each in found if each.partition_key}


def evaluations(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str | None], bool]:
    found = [event.event_specific_data for event in result.all_events if event.event_type_value == EVALUATION]
    return {(each.check_name, each.partition): each.passed for each in found}
