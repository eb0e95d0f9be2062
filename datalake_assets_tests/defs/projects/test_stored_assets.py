"""Assets that are stored in the lake: small files come, checks tell, the sensor acts."""

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.fs

from datalake_assets.policies import Limits
from datalake_assets_tests.defs.projects.project import (
    DAILY,
    EXPECTED_WARNINGS,
    LONG_AGO,
    POLICY,
    SIZES,
    TODAY,
    YESTERDAY,
    current,
    evaluations,
)

pytestmark = EXPECTED_WARNINGS


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
