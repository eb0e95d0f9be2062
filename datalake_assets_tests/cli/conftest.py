"""A command line to test: in this process, and as a process of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click.testing
import pytest
from stamina import instrumentation

from datalake_assets import retrying
from datalake_assets.cli.app import app
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store

Run = Callable[..., click.testing.Result]
RunProcess = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine reaches a test, and nothing is written outside of the test's folder."""
    for name in [name for name in os.environ if name.startswith(("DATALAKE_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command sets up the log of its process; here that is everybody's."""
    loggers = [logging.getLogger(name) for name in ("datalake_assets", "stamina")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    hooks, logged = instrumentation.get_on_retry_hooks(), retrying._logged
    yield
    retrying._logged = logged
    instrumentation.set_on_retry_hooks(hooks)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """The folder of an empty lake, the one that commands use when not told."""
    folder = tmp_path / "lake"
    folder.mkdir()
    return folder


@pytest.fixture
def lake_store(lake: Path) -> Store:
    """The lake's objects."""
    return open_store(str(lake))


@pytest.fixture
def registry(lake_store: Store) -> FeedRegistry:
    """The lake's feeds."""
    return FeedRegistry(lake_store)


@pytest.fixture
def run() -> Run:
    """Runs a command in this process."""

    def invoke(*arguments: str, **options: object) -> click.testing.Result:
        return click.testing.CliRunner().invoke(app, arguments, prog_name="datalake", **options)  # type: ignore[arg-type]

    return invoke


@pytest.fixture
def run_process() -> RunProcess:
    """Runs a command as a process."""

    def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "datalake_assets.cli", *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    return start
