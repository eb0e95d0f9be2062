"""Real database servers for tests, each in a folder of its own on loopback: Debian's PostgreSQL and MariaDB.

What tests write and compare goes through the servers' own clients, psql and mariadb, not through the product's drivers.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Self

import pytest

from datalake_assets_tests.ports import free_port

__all__ = ["MariaDb", "Postgres"]

#: Where Debian keeps each major version's programs.
_DEBIAN = Path("/usr/lib/postgresql")
_NOBODY = "nobody"
STARTING_S = 120


def _program(name: str) -> str | None:
    found = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(found[-1]) if found else shutil.which(name)


class _Server:
    """A server's folder, which its unprivileged user owns: neither server runs as root."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="datalake-db-", dir="/tmp"))
        self.port = free_port()
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._user = {"user": _NOBODY}
            os.chown(self._folder, pwd.getpwnam(_NOBODY).pw_uid, -1)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False, **self._user)
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class Postgres(_Server):
    """PostgreSQL, while the context is open."""

    def __enter__(self) -> Self:
        programs = {name: _program(name) for name in ("initdb", "postgres", "psql")}
        if None in programs.values():
            if "TESTS_NEED_DATABASES" in os.environ:
                pytest.fail("PostgreSQL is not installed")
            pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
        self._psql = programs["psql"]
        data = self._folder / "data"
        locale = ("--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
        self._run(str(programs["initdb"]), "-D", str(data), "-U", "datalake", *locale)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_prepared_transactions": "5",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(programs["postgres"]), "-D", str(data), *options]
        self._process = subprocess.Popen(
            command, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._user
        )
        self._await()
        return self

    def _await(self) -> None:
        ends = time.monotonic() + STARTING_S
        while subprocess.run(
            [*self._client("postgres"), "-c", "SELECT 1"], capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < ends, "PostgreSQL does not start"
            assert self._process.poll() is None, "PostgreSQL ended"
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGQUIT)  # at once, whoever is connected: nobody needs it any more
        self._process.wait(60)
        self._remove()

    def database(self) -> str:
        """A new, empty database; returns its name."""
        name = f"d{uuid.uuid4().hex[:12]}"
        self.run("postgres", f"CREATE DATABASE {name}")
        return name

    def url(self, database: str, *, user: str = "datalake") -> str:
        """Where it is."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def _client(self, database: str) -> list[str]:
        return [str(self._psql), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", self.url(database)]

    def run(self, database: str, script: str) -> str:
        """What psql says to a script."""
        done = subprocess.run(self._client(database), input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def session(self, database: str) -> PsqlSession:
        """A session that stays open, for transactions that are to be seen by others."""
        return PsqlSession(self._client(database))


class PsqlSession:
    """A psql that takes statements one by one."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def run(self, script: str) -> None:
        """Runs statements and waits until they are done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{script.rstrip(';')};\n\\echo done\n")
        self._process.stdin.flush()
        while (line := self._process.stdout.readline()) != "done\n":
            assert line, "psql ended"

    def close(self) -> None:
        """Ends it; what is not committed is undone."""
        self._process.communicate()


class MariaDb(_Server):
    """MariaDB, while the context is open."""

    def __enter__(self) -> Self:
        programs = {name: _program(name) or shutil.which(name, path="/usr/sbin") for name in ("mariadbd", "mariadb")}
        if None in programs.values():
            if "TESTS_NEED_DATABASES" in os.environ:
                pytest.fail("MariaDB is not installed")
            pytest.skip("MariaDB is not installed (Debian's packages mariadb-server-core and mariadb-client-core)")
        self._mariadb, self._socket = programs["mariadb"], self._folder / "socket"
        data = self._folder / "data"
        data.mkdir()
        (self._folder / "tmp").mkdir()
        if self._user:
            for folder in (data, self._folder / "tmp"):
                os.chown(folder, pwd.getpwnam(_NOBODY).pw_uid, -1)
        options = {
            "datadir": data,
            "socket": self._socket,
            "port": self.port,
            "bind-address": "127.0.0.1",
            "pid-file": self._folder / "pid",
            "tmpdir": self._folder / "tmp",
            "innodb-flush-log-at-trx-commit": 0,
            "innodb-log-file-size": "8M",
            "innodb-buffer-pool-size": "16M",
        }
        command = [str(programs["mariadbd"]), "--no-defaults", "--skip-grant-tables", "--skip-networking=0"]
        command += [f"--{name}={value}" for name, value in options.items()]
        self._process = subprocess.Popen(
            command, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._user
        )
        ends = time.monotonic() + STARTING_S
        while subprocess.run([*self._client(""), "-e", "SELECT 1"], capture_output=True, check=False).returncode:
            assert time.monotonic() < ends, "MariaDB does not start"
            assert self._process.poll() is None, "MariaDB ended"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._remove()

    def database(self) -> str:
        """A new, empty database; returns its name."""
        name = f"d{uuid.uuid4().hex[:12]}"
        self.run("", f"CREATE DATABASE {name}")
        return name

    def url(self, database: str) -> str:
        """Where it is."""
        return f"mysql+pymysql://reader@127.0.0.1:{self.port}/{database}"

    def _client(self, database: str) -> list[str]:
        return [
            str(self._mariadb),
            "--no-defaults",
            f"--socket={self._socket}",
            "-N",
            "-B",
            *([database] if database else []),
        ]

    def run(self, database: str, script: str) -> str:
        """What the client says to a script."""
        done = subprocess.run(self._client(database), input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
