"""A stream on a page and in the lake, as it grows: latency, loss, memory and CPU; also with the process killed often.

The embedded source gives so many events a second from a process of its own. `datalake run --live` lands them and serves
the page; this process reads the page's server-sent events by a plain HTTP client, and counts in the manifests what is
committed. When a row arrived follows from its number, by the generator's formula, and not from what any of ours says.
At the end DuckDB reads the files that the manifests name: each row once, but for the broken ones.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measuring import Target, print_targets

__all__ = ["main"]

#: Every so many events one is broken.
_BROKEN_EVERY = 10_007
#: Source partitions of the embedded source.
_PARTITIONS = 4
#: Figures of memory, CPU and latency begin here, or at half of a shorter run: before it, windows and caches fill, and
#: the processes begin that queries run in.
_WARM_S = 120.0
#: Seconds whose mean a figure of memory is: it goes up and down by a third as windows are pruned.
_LOOKED_S = 60.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_FEED = {
    "kind": "stream",
    "source": {
        "type": "ksqldb",
        "object": "TRANSACTION_FLATTENED",
        "offset_columns": ["SRC_PART", "SRC_OFF"],
        "rename": {"SRC_PART": "src_part", "SRC_OFF": "src_off"},
        "idle_s": 0.5,
    },
    "tiles": [
        {"name": "events", "sql": "SELECT count(*) FROM data", "kind": "number"},
        {
            "name": "spend",
            "sql": "SELECT date_trunc('second', rowtime) AS s, sum(amount) AS spend FROM data GROUP BY 1 ORDER BY 1",
            "kind": "series",
        },
        {
            "name": "merchants",
            "sql": "SELECT merchant_name, sum(amount) AS spend FROM data GROUP BY 1 ORDER BY 2 DESC LIMIT 10",
            "kind": "table",
        },
    ],
}


def main(arguments: Sequence[str]) -> None:
    """Runs it and prints the figures; exits with 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks live", description=__doc__)
    parser.add_argument("--rate", type=int, default=5_000, help="events a second")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--kill-every", type=float, metavar="SECONDS", help="SIGKILL the process so often")
    parser.add_argument("--batch-every", type=float, default=60.0, metavar="SECONDS", help="schedule of the batch feed")
    parser.add_argument("--no-batch", action="store_true", help="leave out the batch feed, which takes two schedules")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="live") as folder, _source(chosen.rate) as source:
        bench = _Bench(Path(folder), source)
        if chosen.kill_every:
            targets = bench.killed(chosen.minutes * 60, chosen.kill_every)
        else:
            targets = bench.measured(chosen.minutes * 60, None if chosen.no_batch else chosen.batch_every)
    print_targets(targets)
    if not all(each.met for each in targets):
        raise SystemExit(1)


@dataclass(frozen=True, slots=True)
class _Source:
    """The embedded source.

    Attributes:
        url: Its address.
        began_s: When its second row arrived; each of the others came 1 / rate later than the one before.
        rate: Events a second.
    """

    url: str
    began_s: float
    rate: int

    def count(self, at: float) -> int:
        """How many events there are at a time."""
        return int((at - self.began_s) * self.rate) + 2

    def arrivals(self, good: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """When events arrived, by their numbers among those that are not broken."""
        block, rest = np.divmod(good, _BROKEN_EVERY - 1)
        index = block * _BROKEN_EVERY + rest
        return np.asarray(self.began_s + (np.maximum(index, 1) - 1) / self.rate, dtype=np.float64)


@contextmanager
def _source(rate: int) -> Iterator[_Source]:
    command = [sys.executable, "-m", "benchmarks.live_source", str(rate), str(_BROKEN_EVERY)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise AssertionError
        url, began = process.stdout.readline().split()
        try:
            yield _Source(url, float(began), rate)
        finally:
            process.kill()


@dataclass(slots=True)
class _Counts:
    """How many rows there were at some times, each count when it was first seen."""

    at: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def add(self, at: float, rows: int) -> None:
        """Takes note of a count that is higher than before."""
        if rows > (self.rows[-1] if self.rows else 0):
            self.at.append(at)
            self.rows.append(rows)

    def latencies(self, source: _Source, since: float) -> npt.NDArray[np.float64]:
        """Seconds from each row's arrival to when it was first counted, of rows that arrived later than ``since``."""
        rows = np.array([0, *self.rows], dtype=np.int64)
        seen_at = np.repeat(np.array(self.at), np.diff(rows))
        arrived = source.arrivals(np.arange(rows[-1], dtype=np.int64))
        return np.asarray((seen_at - arrived)[arrived >= since])


class _Page(threading.Thread):
    """Reads a page's events until its server ends."""

    def __init__(self, port: int, feed: str, counts: _Counts, landed: _Counts) -> None:
        super().__init__(daemon=True)
        self._port, self._feed, self._counts, self._landed = port, feed, counts, landed
        self.first_at: float | None = None
        self.documents = 0

    def run(self) -> None:
        """Reads."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            connection.request("GET", f"/events?feeds={self._feed}")
            answer = connection.getresponse()
            while line := answer.readline():
                if line.startswith(b"data: "):
                    self._take(json.loads(line[6:]), time.time())
        except (OSError, http.client.HTTPException, ValueError):
            return  # it was killed

    def _take(self, document: dict[str, Any], at: float) -> None:
        self.documents += 1
        (feed,) = document["feeds"]
        if feed["rows_seen"] and self.first_at is None:
            self.first_at = at
        self._counts.add(at, feed["rows_seen"])
        self._landed.add(at, feed["rows_landed"])


@dataclass(slots=True)
class _Worker:
    """`datalake run --live`, and what it uses."""

    process: subprocess.Popen[str]
    port: int

    def _processes(self) -> list[int]:
        """It and its children: queries of the page run in one of their own."""
        found = [self.process.pid]
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(OSError):  # a thread that has ended
                found += [int(pid) for pid in task.joinpath("children").read_text(encoding="utf-8").split()]
        return found

    def rss_mb(self) -> float:
        """Memory that they hold, in MiB."""
        found = 0
        for pid in self._processes():
            with suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                found += int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
        return found / 1024

    def cpu_s(self) -> float:
        """CPU time that they have used; of children that ended, too."""
        used = 0
        for number, pid in enumerate(self._processes()):
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                used += sum(map(int, fields[11:13] if number else fields[11:15]))
        return used / os.sysconf("SC_CLK_TCK")


class _Bench:
    """The lake, and what is done with it."""

    def __init__(self, folder: Path, source: _Source) -> None:
        self._folder, self._source = folder, source
        self._lake = folder / "lake"
        self._lake.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DATALAKE_", "DAGSTER_"))}
        self._environment = kept | {
            "DATALAKE_LAKE": str(self._lake),
            "DATALAKE_KSQLDB_URL": source.url,
            "DAGSTER_HOME": str(folder / "dagster"),
        }

    def _datalake(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "datalake_assets.cli", *arguments]
        subprocess.run(command, env=self._environment, check=True, stdout=subprocess.DEVNULL, cwd=self._folder)

    def _add(self, name: str, **fields: object) -> None:
        document = self._folder / f"{name}.json"
        document.write_text(json.dumps({"name": name, **_FEED, **fields}), encoding="utf-8")
        self._datalake("feeds", "add", "--file", str(document))

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        command = [sys.executable, "-m", "datalake_assets.cli", "run", "payments", "--live", "--port", "0"]
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, text=True, cwd=self._folder
        ) as process:
            if process.stdout is None:
                raise AssertionError
            try:
                port = None
                for line in process.stdout:
                    if found := _ADDRESS.search(line):
                        port = int(found[1])
                        break
                if port is None:
                    raise SystemExit("datalake run --live did not say where its page is")
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield _Worker(process, port)
            finally:
                process.kill()

    def _end(self, worker: _Worker) -> float:
        """Ends it well; seconds that this took."""
        began = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        if worker.process.wait(60) != 0:
            raise SystemExit(f"datalake run ended with {worker.process.returncode}")
        return time.monotonic() - began

    def measured(self, seconds: float, batch_every: float | None) -> list[Target]:
        """One process for all the time, then the batch feed."""
        self._add("payments", batch={"max_age": "PT1S"})
        seen, landed, in_lake = _Counts(), _Counts(), _Counts()
        warm_s = min(_WARM_S, seconds / 2)
        began = time.time()
        with self._worker() as worker:
            page = _Page(worker.port, "payments", seen, landed)
            page.start()
            memory: list[float] = []
            warm_cpu = (0.0, 0.0, 0)
            while (at := time.time()) - began < seconds:
                in_lake.add(at, _rows_committed(self._lake, "payments"))
                if at - began >= warm_s:
                    memory.append(worker.rss_mb())
                    warm_cpu = warm_cpu if warm_cpu[0] else (worker.cpu_s(), at, in_lake.rows[-1])
                time.sleep(0.1)
            cpu_s, counted = worker.cpu_s() - warm_cpu[0], in_lake.rows[-1] - warm_cpu[2]
            cpu = cpu_s / (time.time() - warm_cpu[1])
            worker_ended_s = self._end(worker)
            given = self._source.count(time.time())
        page.join(5)
        since = began + warm_s
        print(f"{self._source.rate:,} events a second for {seconds:g} s, {page.documents:,} documents of the page")
        some = max(1, min(len(memory) // 3, int(len(memory) * _LOOKED_S / max(seconds - warm_s, 1))))
        first, last = float(np.mean(memory[:some])), float(np.mean(memory[-some:]))
        print(f"memory after {warm_s:g} s {first:.0f} MiB, at the end {last:.0f}: means of {some} looks each")
        print(f"first look {memory[0]:.0f} MiB, last {memory[-1]:.0f}, from {min(memory):.0f} to {max(memory):.0f}")
        print(f"CPU {cpu:.2f} of a core, {cpu_s / max(counted, 1) * 1e6:.1f} s a million rows")
        print(f"it ended {worker_ended_s:.1f} s after SIGTERM")
        on_page = seen.latencies(self._source, since)
        rows: list[tuple[str, npt.NDArray[np.float64]]] = [
            ("live view", on_page),
            ("continuous feed, landed on the page", landed.latencies(self._source, since)),
            ("continuous feed, in the lake", in_lake.latencies(self._source, since)),
        ]
        if batch_every is not None:
            rows.append((f"batch feed, exported every {batch_every:g} s", self._batch(batch_every)))
        _print_latencies(rows)
        p99 = float(np.percentile(on_page, 99))
        growth = last / first - 1
        return [
            Target("event to page, p99", "< 1 s", f"{p99:.2f} s", p99 < 1),
            Target("memory, start to end", "flat: + 10 % at most", f"{growth:+.1%}", growth < 0.1),
            *self._exact("payments", given),
        ]

    def _batch(self, every: float) -> npt.NDArray[np.float64]:
        """What waits for a schedule: latency of the rows of the second of two exports."""
        self._add("payments_batch")
        counts = _Counts()
        self._datalake("export", "--stream", "payments_batch")
        counts.add(time.time(), _rows_committed(self._lake, "payments_batch"))
        before = time.time()
        time.sleep(every)
        with subprocess.Popen(
            [sys.executable, "-m", "datalake_assets.cli", "export", "--stream", "payments_batch"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
        ) as export:
            while export.poll() is None:
                counts.add(time.time(), _rows_committed(self._lake, "payments_batch"))
                time.sleep(0.1)
        counts.add(time.time(), _rows_committed(self._lake, "payments_batch"))
        return counts.latencies(self._source, before)

    def killed(self, seconds: float, every: float) -> list[Target]:
        """The process is killed again and again, and started again at once."""
        self._add("payments", batch={"max_age": "PT1S"})
        ends, kills, given, back, chance = time.time() + seconds, 0, 0, [], random.Random(14)
        while time.time() < ends:
            began = time.time()
            with self._worker() as worker:
                page = _Page(worker.port, "payments", _Counts(), _Counts())
                page.start()
                time.sleep(max(0.0, min(began + every + chance.uniform(-1, 1), ends) - time.time()))
                if time.time() < ends:
                    worker.process.send_signal(signal.SIGKILL)
                    kills += 1
                else:
                    self._end(worker)
                given = self._source.count(time.time())
            page.join(5)
            back.append((page.first_at or float("inf")) - began)
        print(f"{self._source.rate:,} events a second for {seconds:g} s, killed {kills:,} times")
        print(f"rows on the page again {np.median(back):.1f} s after a start, {max(back):.1f} at most")
        return [Target("kills", "some", f"{kills:,}", kills > 0), *self._exact("payments", given)]

    def _exact(self, name: str, given: int) -> list[Target]:
        """Counts in the lake's files, by DuckDB, and compares with what the source has given."""
        import duckdb  # noqa: PLC0415  it weighs, and only now it may

        query = """SELECT src_part, count(*), count(DISTINCT src_off), max(src_off), sum(src_off)::HUGEINT
            FROM read_parquet(?) GROUP BY 1 ORDER BY 1"""
        with duckdb.connect() as connection:
            found = connection.execute(query, [_files(self._lake, name)]).fetchall()
        lost = doubled = wrong = landed = 0
        for partition, rows, distinct, last, total in found:
            offsets = np.arange(last + 1, dtype=np.int64)
            index = offsets * _PARTITIONS + partition
            kept = offsets[index % _BROKEN_EVERY != _BROKEN_EVERY - 1]
            lost, doubled, landed = lost + len(kept) - distinct, doubled + rows - distinct, landed + rows
            wrong += int(kept.sum()) != total and lost == doubled == 0
        files = _files(self._lake, name)
        print(f"{landed:,} rows in {len(files):,} files; the source had given {given:,} when it ended")
        return [
            Target("rows lost", "0", f"{lost + wrong:,}", lost + wrong == 0),
            Target("rows doubled", "0", f"{doubled:,}", doubled == 0),
            Target("source partitions", f"{_PARTITIONS}", f"{len(found)}", len(found) == _PARTITIONS),
        ]


def _manifests(lake: Path, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    control = lake / "control" / "streams" / name
    for manifest in control.rglob("manifest.json"):
        yield lake / "streams" / name / manifest.parent.relative_to(control), json.loads(manifest.read_bytes())


def _rows_committed(lake: Path, name: str) -> int:
    return sum(each["rows"] for _, manifest in _manifests(lake, name) for each in manifest["files"])


def _files(lake: Path, name: str) -> list[str]:
    return [str(folder / each["name"]) for folder, manifest in _manifests(lake, name) for each in manifest["files"]]


def _print_latencies(rows: Sequence[tuple[str, npt.NDArray[np.float64]]]) -> None:
    """A table: seconds from a row's arrival at the source to where it can be seen."""
    width = max(len(name) for name, _ in rows)
    print(f"{'seconds from event to':<{width}}      p50      p95      p99      max      rows")
    for name, found in rows:
        figures = "".join(f"{value:9.2f}" for value in (*np.percentile(found, [50, 95, 99]), found.max()))
        print(f"{name:<{width}}{figures}{len(found):>10,}")
