"""The process that is killed: forked, for each task, from a process that has imported everything and done nothing.

Started as ``python -m datalake_assets_tests.crash.child``, it reads one JSON document per line, forks a child that does
what it says, and answers with two lines: the child's process id at once, and at its end once more with its exit code,
negative if a signal killed it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.fs
import pyarrow.parquet  # noqa: F401  what the product imports when it needs it

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.store.s3_clients import S3Clients
from datalake_assets.retrying import log_retries
from datalake_assets_tests.crash import small_files
from datalake_assets_tests.crash.killing import KillingStore, KillPoint
from datalake_assets_tests.crash.scenarios import SCENARIOS

__all__ = ["CHANGE", "DLT", "FILES", "ICEBERG", "MARTS", "MERGE", "QUEUE", "SHARDS", "SINKS", "SQL", "TOPIC", "Forker"]


class Forker:
    """Runs tasks in processes of their own, each forked from a warm one.

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
        self._codes: dict[int, int] = {}

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

    def run(self, task: str, **arguments: object) -> int:
        """One task, `export` for one; see there for its arguments. Returns its exit code."""
        return self.wait(self.start(task, **arguments))

    def start(self, task: str, **arguments: object) -> int:
        """Begins one task; returns its process id."""
        assert self._process.stdin
        print(json.dumps([task, arguments]), file=self._process.stdin, flush=True)
        while len(answer := self._answer()) > 1:
            pass
        return answer[0]

    def wait(self, child: int) -> int:
        """Ends with a task; returns its exit code."""
        while child not in self._codes:
            self._answer()
        return self._codes.pop(child)

    def _answer(self) -> list[int]:
        assert self._process.stdout
        answer = [int(number) for number in self._process.stdout.readline().split()]
        assert answer, "the process that forks has ended"
        if len(answer) > 1:
            self._codes[answer[0]] = answer[1]
        return answer


def export(
    *, lake: str, endpoint: str | None, scenario: str, state: int, partitions: list[str] | None, point: Any, log: str
) -> None:
    """One export through a store that kills this process, perhaps."""
    exported = SCENARIOS[scenario]
    store = KillingStore(open_store(lake, s3=S3Access(endpoint=endpoint)), KillPoint(**point), log)
    table = HiveTable(store, exported.feed)  # type: ignore[arg-type]  # a Store by __getattr__
    plan = table.plan(partitions)
    batches = exported.batches(state, plan.request)
    table.write(batches, partitions=plan.partitions, run_id=f"state {state}")


def append(
    *,
    lake: str,
    endpoint: str | None,
    now: str,
    limit: int,
    pause_s: float,
    stop: str,
    acknowledged: str,
    point: Any,
    log: str,
) -> None:
    """Lands small files in one partition, until there is a file ``stop`` or there were enough.

    ``acknowledged`` gets a line for each: how many rows there are.
    """
    store: Any = KillingStore(open_store(lake, s3=S3Access(endpoint=endpoint)), KillPoint(**point), log)
    partition = small_files.Partition(store, datetime.fromisoformat(now))
    answers = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(limit):
        if Path(stop).exists():
            return
        end = small_files.append(partition.table, partition, 1, f"append {os.getpid()}")
        os.write(answers, f"{end}\n".encode())
        time.sleep(pause_s)


def compact(
    *,
    lake: str,
    endpoint: str | None,
    now: str,
    kernel: str,
    split_above: float,
    request: Any,
    stop: str,
    point: Any,
    log: str,
    reports: str,
) -> None:
    """Compacts the partition, once or until there is a file ``stop``.

    ``reports`` gets a line each time: the kernel, the number of files compacted, and why others were not.
    """
    store: Any = KillingStore(open_store(lake, s3=S3Access(endpoint=endpoint)), KillPoint(**point), log)
    partition = small_files.Partition(store, datetime.fromisoformat(now))
    table = HiveTable(store, small_files.feed(kernel, split_above=split_above))
    answers = os.open(reports, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        report = table.compact(partition.key, CompactionRequest(**request), run_id=f"compact {os.getpid()}")
        line = [report.kernel, report.files_compacted, sorted({left.reason for left in report.skipped})]
        os.write(answers, f"{json.dumps(line)}\n".encode())
        if not stop or Path(stop).exists():
            return
        if not report.files_compacted:
            time.sleep(0.02)  # until there is more


TASKS: dict[str, Callable[..., None]] = {task.__name__: task for task in (export, append, compact)}
#: Set in the environment of a `Forker` whose children work on Iceberg tables, which take half a second to import.
ICEBERG = "CRASH_ICEBERG"
#: Likewise, of one whose children merge changes.
MERGE = "CRASH_MERGE"
#: Likewise, of one whose children change what is there.
CHANGE = "CRASH_CHANGE"
#: Likewise, of one whose children read a queue.
QUEUE = "CRASH_QUEUE"
#: Likewise, of one whose children land dropped files.
FILES = "CRASH_FILES"
#: Likewise, of one whose children make marts.
MARTS = "CRASH_MARTS"
#: Likewise, of one whose children land tables of a database.
SQL = "CRASH_SQL"
#: Likewise, of one whose children land resources of dlt.
DLT = "CRASH_DLT"
#: Likewise, of one whose children read a topic.
TOPIC = "CRASH_TOPIC"
#: Likewise, of one whose children deliver to sinks.
SINKS = "CRASH_SINKS"
#: Likewise, of one whose children read a Kinesis stream.
SHARDS = "CRASH_SHARDS"


#: What the children of a forker do that is for one thing: the task, and what it imports besides.
_WARM = {
    ICEBERG: ("iceberg_upkeep", "keep_up"),
    MERGE: ("merge_rounds", "merge"),
    CHANGE: ("change_rounds", "change"),
    QUEUE: ("queue_rounds", "consume"),
    FILES: ("file_rounds", "land_files"),
    MARTS: ("mart_rounds", "make_marts"),
    SQL: ("sql_rounds", "export_table"),
    DLT: ("dlt_rounds", "export_resource"),
    TOPIC: ("topic_rounds", "export_topic"),
    SINKS: ("sink_rounds", "act"),
    SHARDS: ("shard_rounds", "export_stream"),
}


def _warm() -> None:
    """What would otherwise be done in each child; nothing here may start a thread."""
    for variable, (module, task) in _WARM.items():
        if variable in os.environ:
            TASKS[task] = getattr(import_module(f"datalake_assets_tests.crash.{module}"), task)
            return
    for scenario in SCENARIOS.values():
        scenario.truth(3)
    if "AWS_ACCESS_KEY_ID" in os.environ:
        S3Clients("bucket", "", s3=S3Access(endpoint="http://127.0.0.1:9"), timeout_s=1, lake="").boto.close()


def _serve() -> None:
    log_retries()  # or they are printed among the answers
    _warm()
    children: dict[int, int] = {}  # process id by pidfd, which is readable once the process has ended
    while True:
        for ready in select.select([sys.stdin, *children], [], [])[0]:
            if ready is not sys.stdin:
                _, status = os.waitpid(children[ready], 0)
                print(children.pop(ready), os.waitstatus_to_exitcode(status), flush=True)
                os.close(ready)
            elif line := sys.stdin.readline():
                child = os.fork()
                if not child:
                    _work_and_exit(line)
                children[os.pidfd_open(child)] = child
                print(child, flush=True)
            else:
                for left in children:
                    signal.pidfd_send_signal(left, signal.SIGKILL)
                return


def _work_and_exit(line: str) -> None:
    code = 1
    try:
        task, arguments = json.loads(line)
        TASKS[task](**arguments)
        code = 0
    except BaseException:  # noqa: BLE001  # this is the end of a process
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
