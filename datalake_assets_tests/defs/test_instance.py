"""Opening Dagster's history."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from datalake_assets.cli.session import prepare_home
from datalake_assets_tests.processes.spared_storages import FOLDER
from datalake_assets_tests.processes.warm_processes import FORKED


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
    children = [subprocess.Popen([sys.executable, "-c", FORKED + code], env=os.environ) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]


def test_connections_of_sqlite_histories_are_kept_and_what_they_write_is_there_for_others(home, monkeypatch) -> None:
    """Dagster opens a file for each statement; what is killed loses nothing that was committed."""
    monkeypatch.delenv(FOLDER)
    code = """
import os, signal
import dagster as dg
from sqlalchemy import event
from sqlalchemy.pool import Pool
from datalake_assets.defs.runtime import open_instance

@dg.asset(check_specs=[dg.AssetCheckSpec("c", asset="orders")])
def orders():
    yield dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True)])

opened = []
with open_instance() as instance:
    event.listen(Pool, "connect", lambda *_: opened.append(1))
    for _ in range(6):
        assert dg.materialize([orders], instance=instance).success
    before = len(opened)
    for _ in range(20):
        instance.report_runless_asset_event(dg.AssetObservation("orders"))
        assert instance.get_latest_materialization_event(dg.AssetKey("orders")) is not None
    print(len(opened) - before)
    instance.event_log_storage.dispose()
    assert len(instance.get_runs()) == 6
    instance.report_runless_asset_event(dg.AssetObservation("orders", description="last"))
    print(len(opened), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    while_open, opened = map(int, done.stdout.split())
    assert while_open <= 10  # for the database of events without a run; Dagster opens one for each of 100 statements
    assert opened < 60  # with one more for each event of a check 69
    key = dg.AssetKey("orders")
    observed = home.fetch_observations(key, limit=50).records
    assert (len(observed), observed[0].asset_observation.description) == (21, "last")
    assert len(home.fetch_materializations(key, limit=50).records) == 6
    assert home.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(key, "c")) is not None
    for run in home.get_runs():
        assert run.is_success
        assert {"STEP_START", "STEP_SUCCESS"} <= {each.dagster_event_type.value for each in home.all_logs(run.run_id)}
