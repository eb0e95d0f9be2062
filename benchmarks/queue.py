"""A backlog of a queue through ``datalake export``: messages a second, CPU, memory, and how many files it becomes.

The queue's server is fauxqs, which tests use too: a process of its own, whose CPU does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datalake_assets_tests.sources.sqs.sqs_server import SqsServer, TestQueue

__all__ = ["main"]

#: Months that the messages are of, and threads that send them.
MONTHS, SENDERS = 3, 2
#: Files that a partition may have before any compaction.
MOST_FILES = 10


def main(arguments: Sequence[str]) -> None:
    """Sends, exports, and counts what is in the files by pyarrow."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks queue", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1, help="exports at once")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, SqsServer() as server:
        queue = server.queue()
        began = time.monotonic()
        sent = _sent(queue, chosen.messages)
        print(f"sent {len(sent):,} messages in {time.monotonic() - began:.0f} s")
        environment = {
            **os.environ,
            **server.environment(),
            "DATALAKE_LAKE": f"{folder}/lake",
            "DAGSTER_HOME": f"{folder}/dagster",
        }
        Path(folder, "lake").mkdir()
        Path(folder, "dagster").mkdir()
        _add(queue.name, folder, environment)
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        _export(environment, chosen.workers)
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        landed, files = _read(Path(folder, "lake", "streams", "trades"))
        left = queue.left
    assert landed == Counter(sent), "messages are missing, or there twice"
    assert left == (0, 0), f"messages are left: {left}"
    print(f"landed {len(sent):,} messages in {seconds:.1f} s: {len(sent) / seconds:,.0f} a second")
    print(f"{cpu:.1f} CPU-s of {chosen.workers} exports, {len(sent) / cpu:,.0f} messages a CPU-second")
    print(f"{after.ru_maxrss / 1024:,.0f} MiB at the most; the queue is empty")
    verdict = "met" if max(files.values()) <= MOST_FILES else "MISSED"
    print(f"files by partition: {dict(sorted(files.items()))}; at most {MOST_FILES}: {verdict}")


def _sent(queue: TestQueue, count: int) -> list[str]:
    """Ids of the messages, in no order."""
    parts = [range(first, count, SENDERS) for first in range(SENDERS)]
    with ThreadPoolExecutor(SENDERS) as threads:
        return [each for ids in threads.map(lambda numbers: queue.send(map(_body, numbers)), parts) for each in ids]


def _body(number: int) -> dict[str, Any]:
    day = f"2026-{1 + number % MONTHS:02}-{1 + number % 28:02}T12:00:00Z"
    return {"n": number, "ticker": f"T{number % 500}", "price": f"{number % 1000}.25", "filed_at": day}


def _add(queue: str, folder: str, environment: dict[str, str]) -> None:
    fields = {"n": "long", "ticker": "string", "price": "decimal(12,2)", "filed_at": "timestamptz"}
    document = {
        "name": "trades",
        "kind": "stream",
        "source": {"type": "sqs", "queue": queue, "fields": fields, "run_s": 3600},
        "time_column": "filed_at",
        "partition_by": "month",
    }
    file = Path(folder, "feed.json")
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "datalake_assets.cli", "feeds", "add", "--file", str(file)]
    subprocess.run(command, env=environment, check=True)


def _export(environment: dict[str, str], workers: int) -> None:
    command = [sys.executable, "-m", "datalake_assets.cli", "export", "--stream", "trades", "--ignore-checks"]
    running = [subprocess.Popen(command, env=environment) for _ in range(workers)]
    codes = [each.wait() for each in running]
    assert codes == [0] * workers, codes


def _read(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Message ids, and files by partition."""
    files = sorted(folder.rglob("*.parquet"))
    return Counter(_ids(files)), Counter(str(each.parent.relative_to(folder)) for each in files)


def _ids(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        yield from pq.read_table(file, columns=["message_id"], partitioning=None)["message_id"].to_pylist()
