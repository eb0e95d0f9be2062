"""A lake with one partition, and the processes that append to it and compact it."""

from __future__ import annotations

import json
import os
import select
import signal
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.killing import KillPoint
from datalake_assets_tests.crash.small_files import Partition

__all__ = ["NEVER", "WAYS", "CompactedLake", "Process", "Way"]


@dataclass(frozen=True)
class Way:
    """One way to compact: `CompactionRequest`, and the feed's policy."""

    name: str
    kernel: str
    request: dict[str, Any] = field(default_factory=lambda: {"force": True})
    split_above: float = 0


NEVER = KillPoint()
#: Between two appends: without it, new files come faster than two busy cores merge them.
PAUSE_S = 0.05
# an appended file has 6 to 7 kB, so that there are several groups of 30 kB; the first one has 3 MB
SEVERAL = {"force": True, "target_file_bytes": 30_000}
SMALLER = {"force": True, "target_file_bytes": 1 << 20}
WAYS = (
    Way("concat", "concat"),
    Way("reencode", "reencode"),
    Way("concat in groups", "concat", SEVERAL),
    Way("reencode in groups", "reencode", SEVERAL),
    Way("split", "auto", SMALLER, split_above=2),
    Way("auto, not forced", "auto", {}),
)


class Process:
    """A task under way, which can be stopped and continued; by a handle that never means another process."""

    def __init__(self, forker: Forker, task: str, **arguments: object) -> None:
        self._forker, self.log = forker, Path(str(arguments["log"]))
        self.child = forker.start(task, **arguments)
        try:
            self._handle = os.pidfd_open(self.child)
        except ProcessLookupError:  # it has ended
            self._handle = -1
        self._waiting = select.poll()  # select takes no number beyond 1,024
        if self._handle >= 0:
            self._waiting.register(self._handle, select.POLLIN)

    def send(self, number: signal.Signals) -> None:
        if self._handle >= 0:
            try:
                signal.pidfd_send_signal(self._handle, number)
            except ProcessLookupError:
                return

    def has_ended(self, timeout_s: float = 0) -> bool:
        return self._handle < 0 or bool(self._waiting.poll(1000 * timeout_s))

    def is_asleep(self) -> bool:
        """Waits until it has ended or fallen asleep."""
        status = Path(f"/proc/{self.child}/stat")
        while not self.has_ended(0.002):
            try:
                state = status.read_text().rpartition(")")[2].split()[0]
            except OSError:
                return False
            if state == "T":
                return True
        return False

    def steps(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def end(self) -> int:
        code = self._forker.wait(self.child)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        return code


class CompactedLake:
    """A lake with one partition, and the processes that work on it."""

    def __init__(self, uri: str, endpoint: str | None, folder: Path) -> None:
        if "://" not in uri:
            Path(uri).mkdir()
        self.uri, self.endpoint, self.folder = uri, endpoint, folder
        folder.mkdir()
        self.now = datetime.now(UTC)
        self.store: Store = open_store(uri, s3=S3Access(endpoint=endpoint))
        self.partition = Partition(self.store, self.now)
        self.rounds = self._tasks = 0
        self._stop, self._acknowledged, self._reports = folder / "stop", folder / "acknowledged", folder / "reports"

    def append(
        self, forker: Forker, *, limit: int = 10_000, pause_s: float = PAUSE_S, point: KillPoint = NEVER
    ) -> Process:
        """Small files, until `stop` or there were enough."""
        self._stop.unlink(missing_ok=True)
        files = {"stop": str(self._stop), "acknowledged": str(self._acknowledged)}
        return self._start(forker, "append", point, limit=limit, pause_s=pause_s, **files)

    def compact(self, forker: Forker, way: Way, *, again: bool = False, point: KillPoint = NEVER) -> Process:
        """A compaction; or one after another, until `stop`."""
        files = {"stop": str(self._stop) if again else "", "reports": str(self._reports)}
        return self._start(
            forker, "compact", point, kernel=way.kernel, split_above=way.split_above, request=way.request, **files
        )

    def stop(self) -> None:
        """Lets appends, and compactions in a row, end."""
        self._stop.touch()

    def _start(self, forker: Forker, task: str, point: KillPoint, **arguments: object) -> Process:
        self._tasks += 1
        log = self.folder / f"log{self._tasks}"
        where = {"lake": self.uri, "endpoint": self.endpoint, "now": self.now.isoformat(), "log": str(log)}
        return Process(forker, task, point=asdict(point), **where, **arguments)

    def acknowledged(self) -> int:
        """Rows that some process was told to be there."""
        return max((int(line) for line in _whole_lines(self._acknowledged)), default=0)

    def kernels(self) -> Counter[str]:
        """Compactions that came to their end, by the kernel that they used; "" if there was nothing to do."""
        return Counter(json.loads(line)[0] for line in _whole_lines(self._reports))

    def check(self) -> None:
        """Every committed row once, and no acknowledged one missing, whoever may be at work."""
        self.partition.check_exact(at_least=self.acknowledged())


def _whole_lines(file: Path) -> list[str]:
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [line for line in lines if line.endswith("\n")]
