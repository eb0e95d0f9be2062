"""A lake of files that assets of anybody's project are stored in."""

from pathlib import Path

import dagster as dg
import pytest

from datalake_assets.defs.resources import Lake, LakeResource
from datalake_assets.defs.storage.io_manager import ParquetLakeIOManager
from datalake_assets.settings import Settings


@pytest.fixture
def resource(tmp_path: Path) -> LakeResource:
    (tmp_path / "lake").mkdir()
    return LakeResource(settings=Settings(lake=str(tmp_path / "lake")))


@pytest.fixture
def lake(resource: LakeResource) -> Lake:
    return resource.open()


@pytest.fixture
def run(resource: LakeResource, instance: dg.DagsterInstance):
    """Materializes assets; the failure's line, or None."""
    manager = ParquetLakeIOManager(lake=resource)

    def materialize(*assets: dg.AssetsDefinition, **how: object) -> str | None:
        chosen = how.pop("selection", assets)
        resources = {"lake": manager}
        result = dg.materialize(
            assets, selection=chosen, instance=instance, resources=resources, raise_on_error=False, **how
        )
        for event in result.all_events:
            if event.is_step_failure:
                data = event.event_specific_data
                return data.user_failure_data.description if data.user_failure_data else str(data.error)
        return None

    return materialize


@pytest.fixture
def rows(lake: Lake):
    """A feed's rows as a list of dicts, without what its folders add."""

    def read(name: str, **how: object) -> list[dict]:
        table = lake.table(lake.registry.get(name)).scan(**how).read_all()
        kept = [column for column in table.column_names if column not in {"year", "month", "day", "hour", "version"}]
        return table.select(kept).to_pylist()

    return read
