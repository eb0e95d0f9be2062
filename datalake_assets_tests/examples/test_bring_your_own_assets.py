"""The example project, as its reader would use it: Dagster's and our own commands, each in a process of its own."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "bring_your_own_assets"
COMMANDS = Path(sys.executable).parent
YESTERDAY = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
PUBLIC = {"datalake_assets.defs", "datalake_assets.feed", "datalake_assets.policies", "datalake_assets.settings"}
SIZES = ("file_size", "small_files")


class Shop:
    """The example with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home, self.dagster_home = home, home / "dagster"
        for folder in ("lake", "raw", "dagster"):
            (home / folder).mkdir()
        (self.dagster_home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        own = {"SHOP_HOME": str(home), "DAGSTER_HOME": str(self.dagster_home), "DATALAKE_LAKE": str(home / "lake")}
        self.environment = {**os.environ, **own, "PYTHONWARNINGS": "ignore"}

    def run(self, command: str, *arguments: str) -> str:
        """Runs a command in the example's folder; its output. A failure fails the test."""
        called = [str(COMMANDS / command), *arguments]
        done = subprocess.run(
            called, cwd=EXAMPLE, env=self.environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{' '.join(called)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def dagster(self, *arguments: str) -> str:
        return self.run("dagster", *arguments, "-m", "shop.definitions")

    def sql(self, query: str) -> list[dict[str, object]]:
        return json.loads(self.run("datalake", "sql", "--json", query))

    def checks(self, asset: str, *names: str) -> dict[str, str]:
        """How checks ended the last time."""
        keys = {name: dg.AssetCheckKey(dg.AssetKey(asset), name) for name in names}
        with dg.DagsterInstance.from_config(str(self.dagster_home)) as instance:
            found = instance.event_log_storage.get_asset_check_summary_records(list(keys.values()))
        evaluations = {name: found[key].last_check_execution_record.event.dagster_event for name, key in keys.items()}
        return {name: "green" if each.event_specific_data.passed else "red" for name, each in evaluations.items()}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_example_uses_public_names_only():
    imported = set()
    for file in sorted((EXAMPLE / "shop").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("datalake_assets"):
                imported.add(node.module)
                assert not any(alias.name.startswith("_") for alias in node.names)
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("datalake_assets") for alias in node.names)

    assert imported <= PUBLIC


@pytest.mark.slow
def test_example_passes_its_own_tests(shop):
    said = shop.run("pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore")

    assert "3 passed" in said


@pytest.mark.slow
def test_definitions_load(shop):
    shop.run("dagster", "definitions", "validate")


@pytest.mark.slow
def test_assets_are_materialized_checked_and_compacted_from_the_command_line(shop):
    shop.dagster("asset", "materialize", "--select", "products,clicks")
    shop.dagster("asset", "materialize", "--select", "orders,revenue", "--partition", YESTERDAY)

    assert shop.checks("clicks", *SIZES, "freshness") == {
        "file_size": "red",
        "small_files": "red",
        "freshness": "green",
    }
    assert shop.checks("products", *SIZES, "freshness") == dict.fromkeys([*SIZES, "freshness"], "green")
    assert shop.checks("orders", *SIZES, "freshness") == dict.fromkeys([*SIZES, "freshness"], "green")

    wanted = requests(shop.dagster("sensor", "preview", "compaction_sensor"))
    assert wanted == {"feed": "clicks", "partitions": [f"day={YESTERDAY}"]}
    before = shop.sql("select count(*) as clicks, sum(visitor) as visitors from clicks")
    config = shop.home / "run.yaml"
    config.write_text(yaml.safe_dump({"ops": {"compact": {"config": wanted}}}))
    shop.dagster("job", "execute", "--job", "compact_partition", "--config", str(config))

    assert len(list((shop.home / "raw" / "clicks").rglob("*.parquet"))) == 1
    assert shop.sql("select count(*) as clicks, sum(visitor) as visitors from clicks") == before
    assert shop.checks("clicks", *SIZES) == dict.fromkeys(SIZES, "green")
    assert "Sensor returning run requests" not in shop.dagster("sensor", "preview", "compaction_sensor")
    _see_everything_with_our_commands(shop)


def _see_everything_with_our_commands(shop: Shop) -> None:
    report = {each["feed"]: each for each in json.loads(shop.run("datalake", "report", "--format", "json"))["feeds"]}

    assert set(report) == {"clicks", "orders", "products", "revenue"}
    assert shop.run("datalake", "verify", "--deep") == "4 feeds, no differences\n"
    joined = "select count(*) as sold, count(product_id) as known from orders left join products using (product_id)"
    (counted,) = shop.sql(joined)
    assert counted["sold"] == counted["known"] > 500


def requests(preview: str) -> dict[str, object]:
    """What the sensor would have run: the configuration that its preview prints."""
    _, _, rest = preview.partition("Sensor returning run requests for 1 run(s):")
    lines = [line for line in rest.splitlines() if line.startswith((" ", "ops"))]
    return yaml.safe_load("\n".join(lines))["ops"]["compact"]["config"]
