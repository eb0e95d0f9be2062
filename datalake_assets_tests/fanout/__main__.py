"""``python -m datalake_assets_tests.fanout``: drains 2,000 partitions through Celery, and kills runs meanwhile."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from playwright.sync_api import sync_playwright

from datalake_assets.defs.runtime import open_instance
from datalake_assets.lake.store import open_store
from datalake_assets_tests.browser.conftest import ARGUMENTS, HEIGHT, LANGUAGE, WIDTH
from datalake_assets_tests.fanout.backlog import BACKLOG, FILES, ROWS, kept, make
from datalake_assets_tests.fanout.cluster import Cluster

SENSOR, JOB = "compaction_sensor", "compact_partition"
#: Dagster's own slowness included: it looks at its queue every 5 s, at sensors every 30 s, at dead runs every 20 s.
WITHIN_S = 3_600.0
MIB = 1 << 20
_START_SENSOR = """
mutation Start($selector: SensorSelector!) { startSensor(sensorSelector: $selector) { __typename } }
"""
_UNFINISHED = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")


class FanOutError(AssertionError):
    """Something is not as it has to be."""


def main() -> None:
    """Runs it and prints what happened."""
    parser = argparse.ArgumentParser(description="Drains a backlog of compaction through Celery, and kills its runs.")
    parser.add_argument("--partitions", type=int, default=2_000, help="Of the three feeds together.")
    parser.add_argument("--kills", type=int, default=6, help="Processes of runs that are killed.")
    parser.add_argument("--losses", type=int, default=1, help="Times that the worker is killed with all its processes.")
    parser.add_argument("--workers", type=int, default=3, help="Runs that go on at a time.")
    parser.add_argument("--run-mb", type=int, default=8, help="Megabytes of a run.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="Empty or new, and kept afterwards.  [default: a temporary one]")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for line in FanOut(folder, chosen).run():
            print(line, flush=True)


@dataclass
class FanOut:
    """The campaign.

    Attributes:
        folder: Where all of it is.
        chosen: What the command line says.
        memory: The most that the processes of runs have held, in bytes.
    """

    folder: Path
    chosen: argparse.Namespace
    killed: Counter[str] = field(default_factory=Counter)
    memory: int = 0

    def run(self) -> Iterator[str]:
        """Makes the backlog, has it drained, and checks what came of it; lines for a person.

        Raises:
            FanOutError: Something is not as it has to be.
        """
        self._rng = random.Random(self.chosen.seed)
        cluster = Cluster(self.folder, run_mb=self.chosen.run_mb, workers=self.chosen.workers)
        with _environment(cluster.environment), open_instance() as instance:
            yield from make(open_store(str(cluster.lake)), instance, partitions=self.chosen.partitions)
        with cluster, _environment(cluster.environment), open_instance() as instance:
            self._cluster, self._instance = cluster, instance
            began = time.monotonic()
            self._turn_on()
            self._drain()
            yield f"drained in {time.monotonic() - began:,.0f} s; killed: {dict(self.killed)}"
            self._see("runs_afterwards", f"/runs?q%5B0%5D=job%3A{JOB}")
            cluster.datalake("repair", "--json")
            yield from self._check_rows()
            yield from self._check_runs()

    def _turn_on(self) -> None:
        selector = {"repositoryLocationName": "datalake_assets", "repositoryName": "__repository__"}
        answer = self._cluster.api.ask(_START_SENSOR, selector=selector | {"sensorName": SENSOR})["startSensor"]
        assert answer["__typename"] == "Sensor", answer

    def _drain(self) -> None:
        """Waits until the sensor has nothing more to ask for, and kills runs meanwhile."""
        until, next_kill = time.monotonic() + WITHIN_S, time.monotonic() + 60
        seen = False
        while time.monotonic() < until:
            started = self._cluster.api.runs(statuses=["STARTED"])
            self._weigh()
            if not seen and len(started) >= min(2, self.chosen.workers):
                self._see("runs_while_drained", f"/runs?q%5B0%5D=job%3A{JOB}")
                seen = True
            if started and time.monotonic() >= next_kill and self._kill():
                next_kill = time.monotonic() + self._rng.uniform(5, 25)
            if not started and self._is_drained():
                return
            time.sleep(1)
        raise FanOutError(f"not drained within {WITHIN_S:.0f} s: {self._cluster.api.sensor(SENSOR)}")

    def _kill(self) -> bool:
        left = [*["run"] * (self.chosen.kills - self.killed["run"])]
        left += ["worker"] * (self.chosen.losses - self.killed["worker"])
        what = self._rng.choice(left) if left else ""
        if what == "run":
            busy = [each for each in self._cluster.run_processes() if each.cpu_times().user > 1]
            if not busy:
                return False
            with suppress(psutil.NoSuchProcess):
                self._rng.choice(busy).kill()
        elif what == "worker":
            self._lose_worker()
        if what:
            self.killed[what] += 1
        return bool(what)

    def _lose_worker(self) -> None:
        """Nobody but a person can know that a machine is gone with all of its runs: they are marked as failed."""
        on_it = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
        self._cluster.kill("worker")
        for run in self._instance.get_runs(dg.RunsFilter(statuses=on_it)):
            self._instance.report_run_failed(run, "the worker was lost")
        self._cluster.start("worker")

    def _weigh(self) -> None:
        with suppress(psutil.Error):
            for process in self._cluster.run_processes():
                self.memory = max(self.memory, process.memory_info().rss)

    def _is_drained(self) -> bool:
        if self._cluster.api.runs(statuses=_UNFINISHED):
            return False
        ticks = self._cluster.api.sensor(SENSOR)["ticks"]
        return bool(ticks) and ticks[0]["skipReason"] == "nothing to compact"

    def _check_rows(self) -> Iterator[str]:
        for small in BACKLOG:
            days = small.partitions(self.chosen.partitions)
            found = kept(self._cluster.lake, small, partitions=self.chosen.partitions)
            rows = FILES * ROWS * days
            if (found.files, found.rows, found.ids, found.wrong) != (days, rows, rows, 0):
                raise FanOutError(f"{small.name}: {found}, of {days} partitions with {rows} rows")
            yield f"{small.name}: {found.files:,} files, {found.rows:,} rows, each once and as it was landed"

    def _check_runs(self) -> Iterator[str]:
        records = self._instance.get_run_records(dg.RunsFilter(job_name=JOB))
        ended = Counter(record.dagster_run.status.value for record in records)
        yield f"runs: {dict(ended)}"
        self._check_sizes(records)
        yield from self._check_concurrency(records)
        yield from self._check_work(records)
        ticks = self._instance.get_ticks(*self._sensor_ids(), limit=500)
        took = [each.end_timestamp - each.timestamp for each in ticks if each.end_timestamp]
        yield f"ticks: {len(took)}, the longest {max(took):.1f} s"
        done = [each for each in records if each.dagster_run.is_success]
        whole = [each.end_time - each.start_time for each in done]
        work = [float(self._work_s(each.dagster_run.run_id)) for each in done]
        waits = [each.start_time - each.create_timestamp.timestamp() for each in done]
        mb = [int(each.dagster_run.tags["datalake/bytes_to_merge"]) / 1e6 for each in done]
        yield (
            f"a run: {statistics.median(whole):.1f} s, of which it merged files for {statistics.median(work):.1f} s;"
            f" waited {statistics.median(waits):.1f} s; {sum(mb) / sum(work):.1f} MB/s while it merged;"
            f" its process held {self.memory / MIB:.0f} MiB at the most"
        )

    def _check_sizes(self, records: list[Any]) -> None:
        for each in records:
            size = int(each.dagster_run.tags["datalake/bytes_to_merge"])
            keys = _partitions(each.dagster_run)
            if size > self.chosen.run_mb * MIB and len(keys) > 1:
                raise FanOutError(f"a run of {len(keys)} partitions has {size:,} bytes")

    def _check_concurrency(self, records: list[Any]) -> Iterator[str]:
        """No more at a time than the pool lets, and never two runs about one partition."""
        spans = [(each.start_time, each.end_time, each.dagster_run) for each in records if each.start_time]
        most = max(sum(start <= at < end for start, end, _ in spans) for at, _, _ in spans)
        if most > self.chosen.workers:
            raise FanOutError(f"{most} runs went on at a time")
        by_partition: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for each in records:
            for key in _partitions(each.dagster_run):
                span = (each.create_timestamp.timestamp(), each.end_time)
                by_partition[each.dagster_run.tags["datalake/feed"], key].append(span)
        for key, found in by_partition.items():
            found.sort()
            if any(end > start for (_, end), (start, _) in pairwise(found)):
                raise FanOutError(f"two runs at a time were about {key}: {found}")
        yield f"{most} runs at a time, none about a partition of another; {len(by_partition):,} partitions"

    def _check_work(self, records: list[Any]) -> Iterator[str]:
        """Nothing was merged twice: what a killed run had committed was none of the next one's business."""
        merged = Counter[tuple[str, str]]()
        for each in records:
            for event in self._compactions(each.dagster_run.run_id):
                if event.metadata["datalake/files_compacted"].value:
                    merged["/".join(event.asset_key.path), event.partition] += 1
        twice = [key for key, count in merged.items() if count > 1]
        if twice:
            raise FanOutError(f"merged more than once: {twice[:5]}")
        lost = [each for each in records if not each.dagster_run.is_success]
        yield f"{len(merged):,} partitions merged, none twice; {len(lost)} runs were lost, and done by others"

    def _work_s(self, run_id: str) -> float:
        events = self._compactions(run_id)
        return sum(each.metadata["datalake/compaction_time_ms"].value for each in events) / 1000

    def _compactions(self, run_id: str) -> list[dg.AssetObservation]:
        entries = self._instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION)
        return [each.get_dagster_event().asset_observation_data.asset_observation for each in entries]

    def _sensor_ids(self) -> tuple[str, str]:
        (state,) = [each for each in self._instance.all_instigator_state() if each.instigator_name == SENSOR]
        return state.instigator_origin_id, state.selector_id

    def _see(self, name: str, path: str) -> None:
        """A picture of a page of the web UI."""
        browser_path = shutil.which("chromium") or shutil.which("google-chrome")
        if browser_path is None:
            return
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=ARGUMENTS)
            page = browser.new_page(base_url=self._cluster.url, viewport={"width": WIDTH, "height": HEIGHT})
            page.add_init_script(LANGUAGE)
            page.goto(path, timeout=120_000)
            page.get_by_text("datalake/feed: ").first.wait_for(timeout=120_000)
            page.screenshot(path=self.folder / f"{name}.png")
            browser.close()


def _partitions(run: dg.DagsterRun) -> list[str]:
    config: Any = run.run_config
    return list(config["ops"]["compact"]["config"]["partitions"])


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    main()
