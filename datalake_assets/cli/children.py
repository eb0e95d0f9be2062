"""Exports in child processes: ``datalake export`` for one feed each, at most so many at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from datalake_assets.cli.exporting import ExportRequest, Outcome, tell
from datalake_assets.cli.progress import ExportProgress
from datalake_assets.cli.session import Session
from datalake_assets.cli.show import one_line
from datalake_assets.config import Feed

__all__ = ["export_in_children"]

#: Time for a child to end its run after Ctrl-C.
_GRACE_S = 20.0


def export_in_children(
    session: Session, feeds: Sequence[Feed], request: ExportRequest, progress: ExportProgress, *, parallel: int
) -> list[Outcome]:
    """Exports each feed in a process of its own; their outcomes, in the order of ``feeds``."""
    children = _Children(session, request)
    lock = threading.Lock()

    def run(feed: Feed) -> Outcome:
        progress.begin(feed.name)
        outcome = children.run(feed)
        with lock:
            return outcome if children.interrupted else tell(progress, outcome)

    with ThreadPoolExecutor(parallel) as pool:
        try:
            return list(pool.map(run, feeds))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.interrupt()
            raise


class _Children:
    """The child processes of one command, so that none outlives it.

    Attributes:
        interrupted: Whether they were told to end.
    """

    def __init__(self, session: Session, request: ExportRequest) -> None:
        settings = session.settings
        self._command = [sys.executable, "-m", "datalake_assets.cli", "--lake", settings.lake, "export", "--json"]
        self._command += request.arguments()
        self._environment = os.environ | {"DATALAKE_KSQLDB_URL": settings.ksqldb_url or ""}
        self.interrupted = False
        self._running: list[subprocess.Popen[str]] = []

    def run(self, feed: Feed) -> Outcome:
        """Exports a feed and waits for it."""
        child = subprocess.Popen(
            [*self._command, f"--{feed.kind}", feed.name],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(child)
        answer, errors = child.communicate()
        try:
            document: dict[str, Any] = json.loads(answer)["feeds"][0]
        except (ValueError, LookupError):
            lines = [line for line in errors.splitlines() if line.strip()]
            last = one_line(lines[-1]).removeprefix("Error: ") if lines else "it said nothing"
            return Outcome(feed.name, feed.kind.value, error=f"its process ended with {child.returncode}: {last}")
        return Outcome(**document)

    def interrupt(self) -> None:
        """Ends the children that still run as Ctrl-C would, and kills those that stay."""
        self.interrupted = True
        for child in self._running:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
        for child in self._running:
            try:
                child.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
