"""Dagster's DuckDB resource with a view for each feed of the lake."""

from pathlib import Path

import dagster as dg
import duckdb
import pytest

from datalake_assets.defs import LakeDuckDBResource
from datalake_assets_tests.defs.projects.project import EXPECTED_WARNINGS, TODAY, Project

pytestmark = EXPECTED_WARNINGS


@pytest.mark.parametrize("database", [":memory:", "marts.duckdb"])
def test_connection_has_a_view_of_each_feed_with_the_rows_that_are_committed(
    project: Project, tmp_path: Path, database: str
):
    project.run(project.orders, partition_key=TODAY)
    project.run(project.users)
    project.rows = 6
    project.run(project.users)
    chosen = database if database == ":memory:" else str(tmp_path / database)
    counts: dict[str, int] = {}

    @dg.asset
    def asked(duckdb: LakeDuckDBResource) -> None:
        with duckdb.get_connection() as connection:
            for name in ("orders", "users"):
                counts[name] = connection.execute(f"from {name} select count(*)").fetchone()[0]
            connection.execute("create or replace table kept as select * from users")

    resources = {"duckdb": LakeDuckDBResource(lake=project.lake, database=chosen)}
    for _ in range(2):  # a database file that has been used before, too
        assert dg.materialize([asked], resources=resources, instance=project.instance).success

    assert counts == {"orders": 4, "users": 6}


def test_database_file_keeps_what_was_made_and_no_view(project: Project, tmp_path: Path):
    project.run(project.users)
    file = str(tmp_path / "marts.duckdb")
    with LakeDuckDBResource(lake=project.lake, database=file).get_connection() as connection:
        connection.execute("create table kept as select * from users")

    with duckdb.connect(file) as later:
        assert later.execute("select table_name from information_schema.tables").fetchall() == [("kept",)]
        assert later.execute("select count(*) from kept").fetchall() == [(4,)]
