"""A source is added by registering it: commands, Dagster and child processes know it without another edit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from datalake_assets.cli.session import Session
from datalake_assets.defs.build import build_definitions
from datalake_assets.demo.demo_lake import prepare_demo
from datalake_assets.errors import ConfigError
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.settings import load_settings
from datalake_assets.sources.base import FeedOption, System
from datalake_assets.sources.systems import register, registered, systems
from datalake_assets_tests.cli.conftest import Run, RunProcess
from datalake_assets_tests.sources.toy import TOY, ToySource


@pytest.fixture
def toy() -> Iterator[None]:
    with registered(TOY):
        yield


@pytest.fixture
def added(toy: None, run: Run, lake: Path) -> None:
    options = ("--schedule", "@hourly", "--start", "2026-11-01", "--group", "clocks")
    result = run("feeds", "add", "--from-toy", *options)
    assert (result.exit_code, result.stdout) == (0, "added streams/tower, from tower\n1 added, 1 skipped\n")
    assert result.stderr == "skipped sundial: it does not tick\n"


def exported(run: Run, *arguments: str, **options: object) -> list[dict[str, object]]:
    result = run("export", *arguments, "--json", **options)
    assert result.exit_code == 0, result.stderr
    feeds: list[dict[str, object]] = json.loads(result.stdout)["feeds"]
    return feeds


@pytest.mark.usefixtures("toy")
def test_the_help_of_feeds_add_offers_what_the_source_declares(run: Run) -> None:
    text = run("feeds", "add", "--help").stdout
    own = text[text.index("Options of source toy:") :]
    assert "--clock [tower|wrist]  Which clock." in own
    assert "--from-toy" in text
    assert "--object" not in own


@pytest.mark.usefixtures("added")
def test_its_rows_land_once_are_counted_checked_and_found(run: Run) -> None:
    assert run("feeds", "check").stdout == "tower: ok, 10 rows at the source\n"
    (first,) = exported(run, "--all")
    assert (first["new_rows"], first["rows"], first["partitions"]) == (10, 10, 3)
    (again,) = exported(run, "--stream", "tower")
    assert (again["new_rows"], again["rows"]) == (0, 10)
    (more,) = exported(run, "--all", env={"DATALAKE_TOY_TICKS": "14"})
    assert (more["new_rows"], more["rows"]) == (4, 14)

    assert run("sql", "select count(*) as n, max(tick) as newest from tower", "--json").exit_code == 0
    assert run("verify", "--deep").exit_code == 0
    assert "tower" in run("report").stdout
    listed = run("feeds", "list").stdout
    assert all(word in listed for word in ("tower", "offsets", "@hourly"))


@pytest.mark.usefixtures("added")
def test_dagster_schedules_it_and_shows_where_it_comes_from(lake: Path) -> None:
    definitions = build_definitions(load_settings(lake=str(lake)))
    graph = definitions.resolve_asset_graph()
    key = dg.AssetKey(["streams", "tower"])
    assert graph.get(key).kinds == {"parquet", "toy"}
    assert graph.get(key).parent_keys == {dg.AssetKey(["toy", "tower"])}
    schedules = {each.name: each for each in definitions.schedules or () if isinstance(each, dg.ScheduleDefinition)}
    assert schedules["export_stream_tower"].cron_schedule == "@hourly"


@pytest.mark.usefixtures("added")
def test_feeds_of_other_sources_that_are_not_configured_do_not_stop_it(run: Run) -> None:
    assert run("feeds", "add", "--name", "o", "--kind", "table", "--object", "O").exit_code == 0
    result = run("export", "--all", "--json")
    outcomes = {each["feed"]: each for each in json.loads(result.stdout)["feeds"]}
    assert result.exit_code == 1
    assert (outcomes["tower"]["error"], outcomes["tower"]["new_rows"]) == (None, 10)
    assert outcomes["o"]["error"].startswith("no ksqlDB server to read from: set DATALAKE_KSQLDB_URL")


@pytest.mark.usefixtures("toy", "lake")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--source", "toy"), "missing --clock"),
        (("--source", "toy", "--clock", "tower", "--object", "O"), "source toy does not take --object"),
        (("--object", "O", "--clock", "tower"), "source ksqldb does not take --clock"),
    ],
)
def test_options_of_another_source_are_refused(run: Run, options: tuple[str, ...], reason: str) -> None:
    result = run("feeds", "add", "--name", "x", "--kind", "stream", *options)
    assert (result.exit_code, reason in result.stderr) == (2, True)


def test_a_feed_of_a_source_that_is_gone_is_named_and_harms_no_other(run: Run, registry: FeedRegistry) -> None:
    with registered(TOY):
        run("feeds", "add", "--name", "ticks", "--kind", "stream", "--source", "toy", "--clock", "wrist")
    (problem,) = registry.list().problems
    assert f"there is no source of type 'toy'; take one of {', '.join(sorted(systems()))}" in problem.reason
    assert registry.list().feeds == ()


def test_settings_of_a_source_are_refused_unless_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "datalake.yaml").write_text("toy_ticks: 3\n")
    with pytest.raises(ConfigError, match="toy_ticks"):
        load_settings()
    with registered(TOY):
        assert dict(load_settings())["toy_ticks"] == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "there is a source of type 'ksqldb' already"),
        (
            {"model": TOY.model, "options": (FeedOption("--rename", "clock", "x"),)},
            "--rename is of another shape elsewhere",
        ),
    ],
)
def test_sources_that_clash_are_refused(change: dict[str, object], reason: str) -> None:
    ksqldb = systems()["ksqldb"]
    clashing = System(**{"model": ksqldb.model, "connect": ksqldb.connect, **change})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=reason):
        register(clashing)


@pytest.mark.parametrize("type_", ["asset", "folder", "lake", "lake_io_manager", "Toy", "my-toy", "1", ""])
def test_types_that_are_no_names_or_are_taken_are_refused(type_: str) -> None:
    class Other(ToySource):
        type: str = type_  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="cannot be the type of a source"):
        register(System(Other, TOY.connect))


@pytest.mark.usefixtures("lake")
def test_a_demo_lakes_server_is_named_only_while_it_runs(lake_store: Store) -> None:
    prepare_demo(lake_store, 10)
    session = Session()
    with session.source("ksqldb"):
        first = dict(session.settings)["ksqldb_url"]
        assert session.environment["DATALAKE_KSQLDB_URL"] == first
    assert dict(session.settings)["ksqldb_url"] is None
    assert "DATALAKE_KSQLDB_URL" not in session.environment
    with session.source("ksqldb") as again:
        assert list(again.discover())


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """The environment of processes in which a package is installed that brings a source."""

    def install(address: str) -> dict[str, str]:
        info = tmp_path / "site" / "toy_source-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-source\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[datalake_assets.sources]\ntoy = {address}\n")
        here = Path(__file__).parents[2]
        return {"PYTHONPATH": f"{tmp_path / 'site'}:{here}"}

    return install


@pytest.mark.slow
def test_a_package_brings_a_source_that_children_and_runs_know(
    installed: Callable[[str], dict[str, str]], run_process: RunProcess, run: Run, lake: Path
) -> None:
    environment = installed("datalake_assets_tests.sources.toy:TOY")
    options = ("--kind", "stream", "--source", "toy", "--start", "2026-11-01")
    added = run_process("feeds", "add", "--name", "tower", "--clock", "tower", *options, **environment)
    assert added.returncode == 0
    with registered(TOY):
        assert run("feeds", "add", "--name", "wrist", "--clock", "wrist", *options).exit_code == 0
    done = run_process("export", "--all", "--parallel", "2", "--json", **environment, DATALAKE_TOY_TICKS="6")
    assert [each["new_rows"] for each in json.loads(done.stdout)["feeds"]] == [6, 6], done.stderr


def test_a_package_whose_source_is_broken_is_named(
    installed: Callable[[str], dict[str, str]], run_process: RunProcess, lake: Path
) -> None:
    done = run_process("feeds", "list", **installed("datalake_assets_tests.sources.toy:SCHEMA"))
    assert done.returncode == 1
    assert done.stderr == "Error: source 'toy' of datalake_assets_tests.sources.toy:SCHEMA: Schema is no System\n"
