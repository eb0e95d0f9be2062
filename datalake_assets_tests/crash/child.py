"""The process that is killed: forked, for each export, from a process that has imported everything and done nothing.

Started as ``python -m datalake_assets_tests.crash.child``, it reads one JSON document per line, forks a child that does
what it says, and answers with one line: the child's exit code, negative if a signal killed it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from types import TracebackType
from typing import Any, Self

import pyarrow.fs
import pyarrow.parquet  # noqa: F401  what the product imports when it needs it

from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.s3_clients import S3Clients
from datalake_assets.lake.store import open_store
from datalake_assets_tests.crash.killing import KillingStore, KillPoint
from datalake_assets_tests.crash.scenarios import SCENARIOS

__all__ = ["Forker"]


class Forker:
    """Runs exports in processes of their own, each forked from a warm one.

    Args:
        environment: Of all of them.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        # a forked process has none of its parent's threads
        single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=environment | single,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout
        self._process.stdout.close()

    def run(self, **task: object) -> int:
        """One export; see `export` for what it takes. Returns its exit code."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(task), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def export(
    *, lake: str, endpoint: str | None, scenario: str, state: int, partitions: list[str] | None, point: Any, log: str
) -> None:
    """One export through a store that kills this process, perhaps."""
    exported = SCENARIOS[scenario]
    store = KillingStore(open_store(lake, s3_endpoint=endpoint), KillPoint(**point), log)
    table = HiveTable(store, exported.feed)  # type: ignore[arg-type]  # a Store by __getattr__
    plan = table.plan(partitions)
    batches = exported.batches(state, plan.request)
    table.write(batches, partitions=plan.partitions, run_id=f"state {state}")


def _warm() -> None:
    """What would otherwise be done in each child; nothing here may start a thread."""
    for scenario in SCENARIOS.values():
        scenario.truth(3)
    if "AWS_ACCESS_KEY_ID" in os.environ:
        S3Clients("bucket", "", endpoint="http://127.0.0.1:9", timeout_s=1, lake="").boto.close()


def _serve() -> None:
    _warm()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _export_and_exit(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _export_and_exit(line: str) -> None:
    code = 1
    try:
        export(**json.loads(line))
        code = 0
    except BaseException:  # noqa: BLE001  # this is the end of a process
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
