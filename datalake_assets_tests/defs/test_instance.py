"""Opening Dagster's history."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from datalake_assets.cli.session import prepare_home
from datalake_assets_tests.processes.spared_storages import FOLDER


def test_run_prints_what_a_person_reads_and_keeps_all_events(
    home: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    """The terminal of `make dev` is that of its runs."""

    @dg.asset
    def orders(context: dg.AssetExecutionContext) -> None:
        context.log.info("landed 3 rows")

    run = dg.materialize([orders], instance=home)

    (line,) = capfd.readouterr().err.splitlines()
    assert "INFO" in line
    assert line.endswith("landed 3 rows")
    kept = {each.dagster_event.event_type_value for each in home.all_logs(run.run_id) if each.is_dagster_event}
    assert {"STEP_START", "ASSET_MATERIALIZATION", "STEP_SUCCESS"} <= kept


def test_processes_that_open_a_new_history_at_once_all_can(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv(FOLDER)  # they make it, and copy none
    prepare_home()
    code = "from datalake_assets.defs.runtime import open_instance; open_instance().dispose()"
    children = [subprocess.Popen([sys.executable, "-c", code], env=os.environ) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
