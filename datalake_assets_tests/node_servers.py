"""Servers of npm's that tests start: pinned packages, each in a process of its own on loopback.

They are installed beside their lock file when a test first needs one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

import boto3
import pytest

__all__ = ["AwsServer", "NodeServer", "install"]

NPM = Path(__file__).with_name("npm")
_LOCK, _INSTALLED = NPM / "package-lock.json", NPM / "node_modules" / ".package-lock.json"


def install() -> None:
    """Installs what the lock file pins, once, whichever process is first; without Node, skips the test."""
    if shutil.which("npm") is None and "TESTS_NEED_NODE" not in os.environ:
        pytest.skip("no Node.js with npm, which a server of tests runs on")
    with (NPM / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _INSTALLED.exists() or _INSTALLED.stat().st_mtime < _LOCK.stat().st_mtime:
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(command, cwd=NPM, check=True, stdout=subprocess.DEVNULL)
            _INSTALLED.touch()


class NodeServer:
    """A server, while the context is open; it ends with this process, however that ends.

    Args:
        script: What Node runs: it says its port on the first line, and ends with its standard input.
    """

    def __init__(self, script: str) -> None:
        self._script = script

    def __enter__(self) -> Self:
        install()
        command = ["node", self._script]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=NPM, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, line: str) -> None:
        """Has the script do something, and waits until it is done."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


class AwsServer(NodeServer):
    """A server of a service of AWS.

    Args:
        service: As boto3 calls it; ``<service>_server.mjs`` runs it.

    Attributes:
        client: boto3's.
    """

    def __init__(self, service: str) -> None:
        super().__init__(f"{service}_server.mjs")
        self._service: Any = service  # of a hundred names that types know, one

    def __enter__(self) -> Self:
        super().__enter__()
        self.client = boto3.client(
            self._service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        super().__exit__()

    def environment(self) -> dict[str, str]:
        """What a process needs that reads it."""
        return {
            f"DATALAKE_{self._service.upper()}_ENDPOINT": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
