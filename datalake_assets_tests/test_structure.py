"""The package can be held in the head: no modules in a circle, no file name twice."""

from __future__ import annotations

import re

import pytest

from datalake_assets_tests.structure import cycle, naming, read_modules, repeated_names


@pytest.fixture(scope="module")
def modules():
    return read_modules()


def test_modules_do_not_import_each_other_in_a_circle(modules):
    assert cycle(modules) == []


def test_no_file_name_stands_in_two_folders(modules):
    assert repeated_names(modules) == {}


def test_only_sources_and_the_demo_name_a_system_that_rows_come_from(modules):
    """Another source is a folder and a line in `sources.systems`; ``serve`` runs the demo's server."""
    assert naming(modules, "ksql") == []


def test_only_the_list_of_sources_knows_which_there_are(modules):
    declaration = "datalake_assets.sources.ksqldb.declaration"
    importers = {name for name, module in modules.items() if declaration in module.imports}
    outside = {name for name in importers if not name.startswith("datalake_assets.sources.ksqldb")}
    assert outside == {
        "datalake_assets.sources.systems",
        "datalake_assets.demo.demo_feeds",
        "datalake_assets.demo.demo_lake",
    }


TABLES = {"datalake_assets.lake.adopted.adopted_table", "datalake_assets.lake.asset_table", "datalake_assets.lake.hive"}


def test_only_the_registry_of_tables_knows_which_there_are(modules):
    """Another format is a module and a line in there; the tables themselves build on each other."""
    importers = {name for name, module in modules.items() if module.imports & TABLES} - TABLES
    assert importers == {"datalake_assets.lake.tables"}


def test_whether_a_folder_was_adopted_is_asked_of_the_feed_or_the_table(modules):
    """Whoever declares such a feed names the kind; nobody else compares kinds."""
    naming = {name for name, module in modules.items() if "FeedKind.FOLDER" in module.path.read_text()}
    assert naming == {"datalake_assets.feed", "datalake_assets.defs.storage.asset_feeds"}


def test_dagster_and_the_command_line_go_by_the_table_alone(modules):
    """Manifests and states are a table's own; another format has none. Rows in quarantine lie beside the tables."""
    above = ("datalake_assets.cli", "datalake_assets.defs", "datalake_assets.report")
    inner = re.compile(r"\b(FeedFolder|PartitionLog|StateLog|Manifest|HiveTable|AdoptedTable|AssetTable)\b")
    found = {
        name for name, module in modules.items() if name.startswith(above) and inner.search(module.path.read_text())
    }
    assert found == {"datalake_assets.cli.quarantine"}
