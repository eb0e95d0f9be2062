"""Dagster's web UI on a demo lake, as `make dev` runs it: a real ``dagster dev`` with daemon and code server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil

import datalake_assets
from datalake_assets.demo.demo_lake import DEMO_DAYS, DEMO_KEY, DemoLake, read_demo
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.browser.graphql import GraphQL, eventually
from datalake_assets_tests.ports import free_port

__all__ = ["DemoUI", "kill_all", "own_environment", "running_ui"]

ROOT = Path(datalake_assets.__file__).parent.parent
#: Three days of a demo lake's streams, the last of which goes on growing; long ago, so that the clock has no say.
RECORDS = 600
_COMMAND_S = 400
#: Three processes that import Dagster.
_START_S = 240.0


@dataclass(frozen=True, slots=True)
class DemoUI:
    """A demo lake and the web UI on it.

    Attributes:
        url: The web server's.
        lake: The lake's folder.
        environment: With which commands are run on it.
        terminal: What ``dagster dev`` wrote.
    """

    url: str
    lake: Path
    environment: dict[str, str]
    terminal: Path

    @property
    def api(self) -> GraphQL:
        """The web server's API."""
        return GraphQL(self.url)

    @property
    def store(self) -> Store:
        """The lake's objects."""
        return open_store(str(self.lake))

    def datalake(self, *arguments: str) -> str:
        """Runs a command on the lake; returns what it printed."""
        return run_command(self.environment, *arguments)

    def serve_records(self, records: int) -> None:
        """Has the source serve so many rows in each stream, at the pace of those that are there."""
        _serve(self.store, records)


@contextmanager
def running_ui(folder: Path) -> Iterator[DemoUI]:
    """Makes a demo lake and runs the web UI on it, until the context ends.

    Args:
        folder: Empty; gets lake, history and terminal.
    """
    url = f"http://127.0.0.1:{free_port()}"
    environment = own_environment(folder) | {"DATALAKE_WEBSERVER_URL": url}
    ui = DemoUI(url, folder / "lake", environment, folder / "terminal.txt")
    ui.lake.mkdir()
    _serve(ui.store, RECORDS)
    ui.datalake("demo", "--records", str(RECORDS), "--json")
    command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", url[17:]]
    command += ["--log-level", "warning", "--live-data-poll-rate", "60000"]
    # as `make dev` has it, but for warnings that Python hides by default
    shown = {"PYTHONWARNINGS": "default,ignore:Function `dev_command`"}
    with (
        ui.terminal.open("w") as terminal,
        subprocess.Popen(
            command, cwd=ROOT, env=environment | shown, stdout=terminal, stderr=terminal, start_new_session=True
        ) as process,
    ):
        try:
            eventually(ui.api.assets, "the web UI shows assets", within_s=_START_S)
            yield ui
        finally:
            kill_all(process)


def _serve(store: Store, records: int) -> None:
    start = store.now().date() - timedelta(days=DEMO_DAYS)
    demo = read_demo(store) or DemoLake(start=start, events_per_day=250, records=records)
    store.put(DEMO_KEY, demo.model_copy(update={"records": records}).model_dump_json().encode())


def own_environment(folder: Path) -> dict[str, str]:
    """The environment of commands on a lake in a folder, without anybody else's settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DATALAKE_", "DAGSTER_"))}
    return own | {"DATALAKE_LAKE": str(folder / "lake"), "DAGSTER_HOME": str(folder / "home")}


def run_command(environment: dict[str, str], *arguments: str) -> str:
    """Runs ``datalake``.

    Raises:
        AssertionError: It failed; with what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "datalake_assets.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, f"datalake {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kills a process with all that it started: in the background ``dagster dev`` ignores SIGTERM."""
    try:
        members = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        members = []
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in members:  # those that left the group
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(members, timeout=10)
