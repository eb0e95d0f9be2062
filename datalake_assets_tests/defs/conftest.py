"""Dagster instances and lakes for the tests of the glue: real ones, small."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

import datalake_assets.defs
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.fakes import MemoryLake, days_ago
from datalake_assets_tests.defs.sent import Sent


@pytest.fixture
def lake(tmp_path: Path) -> MemoryLake:
    folder = tmp_path / "lake"
    folder.mkdir()
    return MemoryLake(Settings(lake=str(folder), webserver_url="http://127.0.0.1:9"))


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as ephemeral:
        yield ephemeral


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance on SQLite, with our ``dagster.yaml``."""
    folder = tmp_path / "home"
    folder.mkdir()
    template = Path(datalake_assets.defs.__file__).with_name("dagster.yaml")
    (folder / "dagster.yaml").write_bytes(template.read_bytes())
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with dg.DagsterInstance.get() as persistent:
            yield persistent


@pytest.fixture
def sent() -> Sent:
    """Three clicks on three days, and a table of four users."""
    return Sent({"clicks": [days_ago(2), days_ago(1), days_ago(0)], "users": [days_ago(0)] * 4})
