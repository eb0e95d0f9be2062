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
from datalake_assets_tests.processes.warm_processes import COLD, FORKED


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


def test_migrations_are_read_once_and_databases_are_stamped_as_ever(tmp_path: Path, monkeypatch) -> None:
    """Dagster reads all its migrations twice for each new database, and each run has one."""
    code = """
import contextlib, os, pathlib, sqlite3, sys
import dagster as dg
from alembic.config import Config
from alembic.script import ScriptDirectory
from datalake_assets.defs.runtime import open_instance

@dg.asset
def orders(): ...

reads, read = [], ScriptDirectory._load_revisions
ScriptDirectory._load_revisions = lambda self: reads.append(self.dir) or read(self)
for _ in range(2):
    with open_instance() if sys.argv[1] == "ours" else dg.DagsterInstance.get() as instance:
        assert dg.materialize([orders], instance=instance).success
        assert dg.materialize([orders], instance=instance).success
print(len(reads))
databases = [*pathlib.Path(os.environ["DAGSTER_HOME"]).rglob("*.db")]
assert len(databases) >= 7, databases  # of runs, their events, schedules, and of each run
for path in databases:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("select sql from sqlite_master order by 1").fetchall()
        stamps = [row for name, in connection.execute("select name from sqlite_master where name = 'alembic_version'")
                  for row in connection.execute(f"select * from {name}")]
    is_run = path.stem.count("-") == 4
    print(path.parent.name, "run" if is_run else path.stem, stamps, hash(str(tables)))
others = Config()
others.set_main_option("script_location", os.environ["DAGSTER_HOME"])
assert ScriptDirectory.from_config(others) is not ScriptDirectory.from_config(others)
"""
    monkeypatch.delenv(FOLDER)  # they make each database
    told = {}
    for whose in ("Dagster's", "ours"):
        home = tmp_path / whose[:4]
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        prepare_home()
        environment = os.environ | {COLD: "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code, whose], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        reads, *databases = done.stdout.splitlines()
        told[whose] = (int(reads), sorted(databases))
    assert told["ours"][0] == 1
    assert told["Dagster's"][0] > 10
    assert told["ours"][1] == told["Dagster's"][1]


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
