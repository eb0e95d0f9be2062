"""Rounds of compaction on a Ray cluster whose workers and nodes are killed in the middle; every row is counted.

The cluster is `ray.cluster_utils.Cluster`: a head without CPUs, where nothing runs, and nodes of one CPU each, all on
this machine. In a round, small files are landed in two partitions and compacted in a thread; meanwhile a process that
is busy with a task, or the daemon of its node, gets SIGKILL, again and again. A run that gives up is begun anew, as
Dagster's retries do it.

Zombies are provoked in two ways: the daemon of a node is killed while a worker is writing, which then goes on as an
orphan; or the worker is stopped before that, and woken once the compaction has come to its end elsewhere.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, SourceBatch
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import EngineError
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake import inspection
from datalake_assets.lake.feed_compaction import compact_partitions
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store import open_store
from datalake_assets_tests.crash.small_files import require

__all__ = ["RayRounds"]

#: Small files of a partition, and rows of each: a group takes a second or more, so that kills hit its middle.
FILES, ROWS = 10, 200_000
PARTITIONS = 2
#: Of each output, about; several files make a group.
GROUP_BYTES = 40 << 20
#: Nodes that work, of one CPU each.
NODES = 2
#: Attempts to start a node.
STARTS = 5
#: One kill in so many is of a node.
NODE_IN = 6
#: Kills of a round, at the most: it should come to an end.
KILLS = 8
#: Between two kills, at the most.
PAUSE_S = 1.0
#: Longer than any wait, on a busy machine.
PATIENCE_S = 600.0
START = datetime(2025, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema([("id", pa.int64()), ("rowtime", pa.timestamp("ms", "UTC")), ("load", pa.string())])


def _feed() -> Feed:
    source = {"type": "ksqldb", "object": "KILLED", "mode": "offsets"}
    own = {"kernel": "reencode"}
    form = {"compression": "zstd", "row_group_bytes": 8 << 20}
    feed = {"name": "killed", "kind": "stream", "source": source, "start": "2025-01-01"}
    return parse_feed(json.dumps({**feed, "format": form, "compaction": own}))


def _loads(ids: np.ndarray) -> pa.Array:
    """What a row must hold follows from its id."""
    mixed = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    texts = pc.cast(pa.array(mixed), pa.string())
    return pc.binary_join_element_wise(texts, pc.utf8_reverse(texts), "-")


def _rows(first: int, day: datetime) -> SourceBatch:
    ids = np.arange(first, first + ROWS)
    times = pa.array([day] * ROWS, SCHEMA.field("rowtime").type)
    batch = pa.record_batch([pa.array(ids), times, _loads(ids)], schema=SCHEMA)
    return SourceBatch(batch, pa.array(np.zeros(ROWS, np.int32)), pa.array(ids))


class _Cluster:
    """A head, and nodes that come and go."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster  # noqa: PLC0415  an extra

        head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self.nodes = [self._node() for _ in range(NODES)]
        self._cluster.wait_for_nodes()

    def _node(self) -> Any:
        for _ in range(STARTS - 1):
            with suppress(Exception):  # Ray gives a node 30 s to start, which a busy machine may exceed
                return self._cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        return self._cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    def busy(self) -> list[tuple[Any, psutil.Process]]:
        """Workers in the middle of a task, with their node."""
        found = []
        for node in self.nodes:
            with suppress(psutil.Error):
                found += [(node, each) for each in psutil.Process(self._daemon(node)).children() if _is_busy(each)]
        return found

    def kill(self, node: Any) -> None:
        """The node's daemon; its workers are not told."""
        os.kill(self._daemon(node), signal.SIGKILL)

    def replace(self, node: Any) -> None:
        """What is left of a killed node goes, and another comes."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes[self.nodes.index(node)] = self._node()

    def close(self) -> None:
        with suppress(ValueError):  # a compaction that failed may be connected yet
            self._cluster.shutdown()

    @staticmethod
    def _daemon(node: Any) -> int:
        return int(node.all_processes["raylet"][0].process.pid)


def _is_busy(process: psutil.Process) -> bool:
    """Whether a worker is in the middle of a task, whose name Ray shows as that of the process."""
    with suppress(psutil.Error):
        return "".join(process.cmdline()[:1]).startswith("ray::streams/")
    return False


def _size(file: Path) -> int:
    with suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


class RayRounds:
    """Kills workers and nodes, until there were enough.

    Args:
        lakes: Below this folder the lake is made.
        forker: Not needed.
        endpoint: None: the lake is a folder, which all nodes share.
        seed: Decides what the machine's speed doesn't.
        kills: So many are enough.

    Attributes:
        steps: What is killed.
        hits: Kills by what was killed.
        moments: Nothing: kills come at any time.
        happened: What else there was.
        rounds: At the most.
        is_done: There were enough kills, and all was in order at the end.
    """

    steps = ("worker", "node", "zombie")
    rounds = 1_000

    def __init__(self, lakes: str, forker: object, *, endpoint: str | None, seed: int, kills: int) -> None:
        require(endpoint is None, "rounds on a cluster know a lake in a folder only")
        self._rng, self._kills, self._days = random.Random(seed), kills, 0
        self._store = open_store(f"{lakes}/ray")
        Path(self._store.uri).mkdir()
        self._feed, self._folder = _feed(), tempfile.TemporaryDirectory(prefix="ray")
        self._env = pytest.MonkeyPatch()
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.is_done = False

    def prepare(self) -> None:
        """Starts the cluster."""
        self._env.setenv("RAY_TMPDIR", self._folder.name)
        self._env.setenv("RAY_USAGE_STATS_ENABLED", "0")
        self._env.setenv("RAY_worker_niceness", "0")  # or a busy machine starves them
        self._cluster = _Cluster()
        self._env.setenv("RAY_ADDRESS", self._cluster.address)

    def close(self) -> None:
        """Ends the cluster."""
        import ray  # noqa: PLC0415  an extra

        ray.shutdown()
        self._cluster.close()
        self._env.undo()
        self._folder.cleanup()

    def round(self) -> str:
        """Lands two partitions, compacts them, kills meanwhile, and counts."""
        keys = self._land()
        before = self.hits.total()
        attempts: list[str] = []
        work = threading.Thread(target=self._compact, args=(keys, attempts))
        work.start()
        zombie = self._provoke(work)
        self._kill(work, most=min(before + KILLS, self._kills))
        work.join(PATIENCE_S)
        require(not work.is_alive(), "the compaction does not end")
        require(attempts[-1] == "", f"the compaction failed: {attempts[-1]}")
        self.happened["runs begun anew"] += len(attempts) - 1
        if zombie is not None:
            self._wake(zombie)
        for key in keys:
            self._check(key)
        if self.hits.total() >= self._kills:
            self._end()
        return f"{self.hits.total() - before} kills, {len(attempts)} runs, {self._staged()} leftovers staged"

    def _land(self) -> list[str]:
        keys = []
        for _ in range(PARTITIONS):
            day = START + timedelta(days=self._days)
            for number in range(FILES):
                table = HiveTable(self._store, self._feed)
                first = (self._days * FILES + number) * ROWS
                batches = InMemoryBatches((_rows(first, day),), "rowtime", ReadRequest())
                table.write(batches, partitions=table.plan(None).partitions, run_id="land")
            keys.append(f"{day:%Y-%m-%d}")
            self._days += 1
        return keys

    def _compact(self, keys: list[str], attempts: list[str]) -> None:
        """Until all is done; what each run failed with."""
        request = CompactionRequest(force=True, target_file_bytes=GROUP_BYTES, engine="ray")
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            errors = []
            try:
                for each in compact_partitions(lambda: HiveTable(self._store, self._feed), keys, request):
                    if each.error is not None:
                        errors.append(each.error)
                    elif each.report is not None:
                        self.happened["tasks"] += len(each.report.tasks)
            except Exception as error:  # noqa: BLE001  told below
                attempts.append(repr(error))
                return
            strange = [error for error in errors if not isinstance(error, EngineError)]
            attempts.append("; ".join(map(str, strange or errors)))
            if strange or not errors:
                return

    def _kill(self, work: threading.Thread, *, most: int) -> None:
        while work.is_alive():
            time.sleep(self._rng.uniform(0.05, PAUSE_S))
            if self.hits.total() < most and (busy := self._cluster.busy()):
                node, worker = self._rng.choice(busy)
                if self.hits["node"] * NODE_IN <= self.hits.total():
                    self._cluster.kill(node)
                    self.hits["node"] += 1
                    self._cluster.replace(node)
                    continue
                with suppress(psutil.Error):
                    worker.kill()
                    self.hits["worker"] += 1

    def _provoke(self, work: threading.Thread) -> psutil.Process | None:
        """A worker that is stopped in its task, and whose node is dead."""
        while work.is_alive():
            for node, worker in self._cluster.busy():
                with suppress(psutil.Error):
                    worker.suspend()
                    if _is_busy(worker) and self._outputs(worker):
                        return self._orphaned(node, worker)
                    worker.resume()
            time.sleep(0.02)
        return None

    def _orphaned(self, node: Any, worker: psutil.Process) -> psutil.Process | None:
        """Kills the node of a stopped worker, and lets that sleep on, or go on at once: every other one."""
        self._cluster.kill(node)
        self.hits["zombie"] += 1
        outputs, sleeps = self._outputs(worker), self.hits["zombie"] % 2 == 0
        before = sum(map(_size, outputs))
        if not sleeps:
            worker.resume()
            until = time.monotonic() + 30
            while _is_busy(worker) and time.monotonic() < until and sum(map(_size, outputs)) <= before:
                time.sleep(0.01)
            self.happened["orphans that wrote on"] += sum(map(_size, outputs)) > before
        self._cluster.replace(node)
        return worker if sleeps else None

    def _outputs(self, worker: psutil.Process) -> list[Path]:
        """What it is writing just now."""
        staging = f"{self._store.uri}/.staging/files/"
        return [Path(each.path) for each in worker.open_files() if each.path.startswith(staging)]

    def _wake(self, zombie: psutil.Process) -> None:
        """Lets it do what it was about to do, though all is committed."""
        before = self._staged_bytes()
        require(before > 0, "the zombie has staged nothing yet")
        with suppress(psutil.Error):
            zombie.resume()
            until = time.monotonic() + 60
            while _is_busy(zombie) and time.monotonic() < until:
                time.sleep(0.1)
        self.happened["zombies woken"] += 1
        self.happened["that staged more then"] += self._staged_bytes() > before

    def _check(self, key: str) -> None:
        """Every row once with its values, for who lists the folder and for who reads through the manifest."""
        day = datetime.fromisoformat(f"{key}T00:00:00+00:00")
        first = (day - START).days * FILES * ROWS
        folder = Path(self._store.uri, f"{self._feed.path}/{day:year=%Y/month=%m/day=%d}")
        require(all(each.suffix == ".parquet" for each in folder.iterdir()), "the folder holds other things")
        listed = ds.dataset(str(folder), format="parquet", schema=SCHEMA).to_table()
        scanned = HiveTable(self._store, self._feed).scan(partitions=[key]).read_all().select(SCHEMA.names)
        for rows in (listed, scanned):
            found = rows.sort_by("id").combine_chunks()
            ids = found["id"].to_numpy()
            require(np.array_equal(ids, np.arange(first, first + FILES * ROWS)), f"{key}: {len(ids)} other rows")
            require(found["load"].combine_chunks().equals(_loads(ids)), f"{key}: other values")

    def _staged_bytes(self) -> int:
        staging = Path(self._store.uri, ".staging", "files")
        return sum(each.stat().st_size for each in staging.rglob("*") if each.is_file())

    def _staged(self) -> int:
        return len(list(self._store.list_staged("")))

    def _end(self) -> None:
        """What kills left is swept once it is old, and nothing else is; all rows are there."""
        table = HiveTable(self._store, self._feed)
        self.happened["leftovers swept"] = self._staged()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inspection, "STALE", timedelta(days=-1))
            require(not table.repair().waiting, "repair waits")
        require(not self._staged(), "leftovers stay staged")
        staging = [each for each in Path(self._store.uri, ".staging").rglob("*") if each.is_file()]
        strange = [str(each) for each in staging if each.parent.name not in {"locks", "tmp"}]
        require(not strange, f"leftovers: {strange}")
        differences = list(table.verify(deep=True))
        require(not differences, f"verify: {differences}")
        for number in range(self._days):
            self._check(f"{START + timedelta(days=number):%Y-%m-%d}")
        self.is_done = True
