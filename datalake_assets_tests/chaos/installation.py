"""An installation whose processes can be killed one by one: web server, daemon, code server, and the runs' own."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from datalake_assets.demo.demo_feeds import demo_feeds
from datalake_assets.feed import Feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.browser.graphql import GraphQL, eventually
from datalake_assets_tests.browser.servers import ROOT, own_environment
from datalake_assets_tests.ports import free_port

__all__ = ["FEEDS", "SCHEDULED", "SERVICES", "Installation"]

#: One feed of each kind of position, and so of each kind of export.
FEEDS = ("transaction_stream", "transaction_alerts", "user_events", "account_balances")
#: Exported by its schedule as well.
SCHEDULED = "user_events"
SERVICES = ("webserver", "daemon", "code_server")
_LOCATION = "datalake_assets"


class Installation:
    """A lake, a Dagster home, and the processes on them.

    Args:
        folder: Empty; gets lake, history and what the processes write.
        ksqldb_url: What is exported.
        start: The first day with rows.
    """

    def __init__(self, folder: Path, *, ksqldb_url: str, start: dt.date) -> None:
        self.folder, self.lake = folder, folder / "lake"
        self._ports = {name: free_port() for name in ("webserver", "code_server")}
        self.url = f"http://127.0.0.1:{self._ports['webserver']}"
        self.environment = own_environment(folder) | {
            "DATALAKE_WEBSERVER_URL": self.url,
            "DATALAKE_KSQLDB_URL": ksqldb_url,
        }
        self.api = GraphQL(self.url)
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        self.lake.mkdir()
        self.feeds = self._add_feeds(start)
        workspace = {"grpc_server": {"host": "localhost", "port": self._ports["code_server"]}}
        workspace["grpc_server"]["location_name"] = _LOCATION
        (folder / "workspace.yaml").write_text(json.dumps({"load_from": [workspace]}))

    @property
    def store(self) -> Store:
        """The lake's objects."""
        return open_store(str(self.lake))

    def _add_feeds(self, start: dt.date) -> dict[str, Feed]:
        for feed in demo_feeds(start):
            if feed.name in FEEDS:
                often = {"schedule": "* * * * *"} if feed.name == SCHEDULED else {}
                FeedRegistry(self.store).add(feed.model_copy(update=often))
        return {feed.name: feed for feed in FeedRegistry(self.store).list().feeds}

    def __enter__(self) -> Self:
        for name in SERVICES[::-1]:
            self.start(name)
        eventually(self.api.assets, "the web server shows assets")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in SERVICES:
            self.kill(name)
        for process in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def start(self, name: str) -> None:
        """Starts a service."""
        workspace = ("-w", str(self.folder / "workspace.yaml"))
        commands: dict[str, Sequence[str]] = {
            "webserver": ("dagster_webserver", "-h", "127.0.0.1", "-p", str(self._ports["webserver"]), *workspace),
            "daemon": ("dagster._daemon", "run", *workspace),
            "code_server": (
                *("dagster", "api", "grpc", "-p", str(self._ports["code_server"]), "-h", "localhost"),
                *("-m", "datalake_assets.definitions", "-a", "defs", "--location-name", _LOCATION),
            ),
        }
        self._services[name] = self.spawn(name, *commands[name])

    def spawn(self, log: str, *module: str) -> subprocess.Popen[bytes]:
        """Starts ``python -m module`` on the installation; what it writes is appended to a log."""
        with (self.folder / f"{log}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # its children die with it only if somebody means it
            )

    def kill(self, name: str) -> None:
        """Kills a service, and not what it started."""
        process = self._services.pop(name, None)
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def restart_missing(self) -> list[str]:
        """Starts the services that are not there; their names."""
        gone = [name for name in SERVICES if name not in self._services or self._services[name].poll() is not None]
        for name in gone:
            self.start(name)
        return gone

    def workers(self) -> list[psutil.Process]:
        """The processes of runs that the code server launched, orphans included."""
        mine = {"DAGSTER_HOME": self.environment["DAGSTER_HOME"]}.items()
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if "--multiprocessing-fork" not in (process.info["cmdline"] or ()):
                continue
            with contextlib.suppress(psutil.Error):
                if mine <= process.environ().items():
                    found.append(process)
        return found

    def datalake(self, *arguments: str, timeout_s: float = 300) -> tuple[int, str]:
        """Runs a command to its end; its exit code, and what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "datalake_assets.cli", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout + ("" if done.returncode == 0 else done.stderr[-2000:])

    def answer(self, *arguments: str) -> Any:
        """The JSON document of a command that has to succeed."""
        code, printed = self.datalake(*arguments, "--json")
        assert code == 0, f"datalake {' '.join(arguments)} failed with {code}: {printed[-2000:]}"
        return json.loads(printed)

    def in_this_process(self) -> contextlib.AbstractContextManager[None]:
        """The environment of the installation, for Dagster's instance in this process."""
        return _environment(self.environment)


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Any:
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
