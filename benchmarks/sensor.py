"""What a tick of the compaction sensor costs, by the size of the lake: nothing that grows with it, is the claim.

Builds local lakes of synthetic manifests, a hundred small files in each (no data files: the sensor opens none), with
one materialization per partition in a Dagster history on SQLite. The sensor's cursor is at the end of that; then ten
partitions change, and one tick is measured, several times from the same cursor. It fails if store requests differ
between the sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from statistics import median
from typing import Any

import dagster as dg

from benchmarks.measuring import Target, answer, print_targets
from datalake_assets.core.compaction.watch import FeedWatch
from datalake_assets.core.compaction.watch_state import WatchState, state_to_json
from datalake_assets.core.files import DataFile, data_file_name
from datalake_assets.core.manifest import Commit, Manifest
from datalake_assets.core.position import OffsetsPosition
from datalake_assets.defs.compaction.sensor import CompactionWatcher
from datalake_assets.defs.metadata import asset_key, partition_metadata
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runtime import open_instance
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.settings import Settings
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource

__all__ = ["main", "measure"]

FILES_OF_ONE = 100
CHANGED = 10
PARTITIONS = (100, 1_000, 10_000)
ROUNDS = 5
MIB = 1024 * 1024
START = date(1998, 1, 1)
KINDS = ("put", "get", "list", "delete")


class CountingStore(LocalStore):
    """A lake that counts the bytes that are read."""

    bytes_read = 0

    def get(self, key: str) -> tuple[bytes, str]:
        """Body and digest."""
        body, etag = super().get(key)
        self.bytes_read += len(body)
        return body, etag


class CountingLake(Lake):
    """Such a lake."""

    @cached_property
    def store(self) -> CountingStore:
        """The lake's object store."""
        return CountingStore(self.settings.lake)


@dataclass(frozen=True, slots=True)
class Tick:
    """What one tick took.

    Attributes:
        partitions: Of the lake.
        changed: Partitions that changed since the tick before.
        asked: Partitions that the tick asked to compact.
        wall_ms: Wall time.
        cpu_ms: User and system time.
        requests: Store requests, by class.
        bytes_read: From the store.
        cursor_bytes: Size of the cursor that it left.
        build_s: Wall time to build the lake and its history.
    """

    partitions: int
    changed: int
    asked: int
    wall_ms: float
    cpu_ms: float
    requests: Mapping[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    cursor_bytes: int = 0
    build_s: float = 0.0


def feed_of() -> Feed:
    """A stream with a partition a day, for as many years as it takes."""
    return Feed(name="events", kind=FeedKind.STREAM, source=KsqlDBSource(object="EVENTS"), start=START)


def key_of(number: int) -> str:
    """A partition."""
    return f"{START + timedelta(days=number):%Y-%m-%d}"


def manifest(number: int, files: int, *, generation: int) -> Manifest:
    """Of a partition with so many files of 1 MiB."""
    at = datetime.combine(START + timedelta(days=number), datetime.min.time(), UTC)
    entries = tuple(
        DataFile(
            data_file_name("data", at + timedelta(minutes=each), f"{number:08x}{each:08x}"),
            1_000,
            MIB,
            at + timedelta(minutes=each),
            at + timedelta(minutes=each, seconds=59),
            "xxh3-128:0123456789abcdef0123456789abcdef",
        )
        for each in range(files)
    )
    last = Commit("c" * 16, "append", at, "r" * 36, 1_000, 1, 0)
    position = OffsetsPosition({0: (0, 1_000 * files)})
    return Manifest(generation, f"w{generation}", entries, position, history=(last,))


def build(lake: Lake, partitions: int) -> None:
    """Writes the manifests; as plain files, since a durable write of each would take a quarter of an hour."""
    folder = FeedFolder(lake.store, feed_of())
    for number in range(partitions):
        write(folder, number, FILES_OF_ONE, generation=FILES_OF_ONE)


def write(folder: FeedFolder, number: int, files: int, *, generation: int) -> None:
    """Writes a partition's manifest, whatever is there."""
    file = Path(folder.store.path(folder.log(key_of(number)).manifest_key))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(manifest(number, files, generation=generation).to_bytes())


def materialization(lake: Lake, number: int) -> dg.AssetMaterialization:
    """What an export reports of a partition."""
    import pyarrow as pa  # noqa: PLC0415  the parent process needs none

    feed, key = feed_of(), key_of(number)
    report = lake.table(feed).report(key)
    assert report is not None
    schema = pa.schema([("id", pa.int64()), ("rowtime", pa.timestamp("ms", "UTC"))])
    metadata = partition_metadata(feed, report, lake_uri=lake.uri, schema=schema)
    return dg.AssetMaterialization(asset_key(feed), partition=key, metadata=metadata)


def record(instance: dg.DagsterInstance, home: Path, lake: Lake, partitions: int) -> int:
    """Fills the event log: Dagster writes the first event, and the others are copies of its row for other partitions.

    Returns:
        The storage id of the last one.
    """
    instance.report_runless_asset_event(materialization(lake, 0))
    with closing(sqlite3.connect(home / "history" / "runs" / "index.db")) as log, log:
        log.row_factory = sqlite3.Row
        (first,) = log.execute("SELECT * FROM event_logs WHERE partition = ?", (key_of(0),)).fetchall()
        columns = [name for name in first.keys() if name != "id"]  # noqa: SIM118  a row iterates over its values
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO event_logs ({', '.join(columns)}) VALUES ({marks})"
        log.executemany(statement, _copies(dict(first), columns, partitions))
    newest = instance.fetch_materializations(asset_key(feed_of()), limit=1).records[0]
    assert newest.partition_key == key_of(partitions - 1)
    return newest.storage_id


def _copies(first: Mapping[str, Any], columns: Iterable[str], partitions: int) -> Iterator[list[Any]]:
    old, body = key_of(0), str(first["event"])
    for number in range(1, partitions):
        row = {**first, "partition": key_of(number), "event": body.replace(old, key_of(number))}
        yield [row[name] for name in columns]


@contextmanager
def dagster_home(folder: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on SQLite, with our ``dagster.yaml``."""
    folder.mkdir()
    (folder / "dagster.yaml").write_bytes(package_files("datalake_assets.defs").joinpath("dagster.yaml").read_bytes())
    os.environ["DAGSTER_HOME"] = str(folder)
    with open_instance() as instance:
        yield instance


def measure(partitions: int, scratch: Path) -> list[Tick]:
    """Builds a lake, and measures a tick when nothing changed, and one when ten partitions did."""
    began = time.perf_counter()
    (scratch / "lake").mkdir()
    lake = CountingLake(Settings(lake=str(scratch / "lake")))
    build(lake, partitions)
    with dagster_home(scratch / "home") as instance:
        last = record(instance, scratch / "home", lake, partitions)
        build_s = time.perf_counter() - began
        watcher = CompactionWatcher(lake, [feed_of()])
        cursor = state_to_json(WatchState({feed_of().path: FeedWatch(materialized=last)}))
        _tick(watcher, instance, lake, cursor)  # opens connections, imports what a tick needs
        idle = [_tick(watcher, instance, lake, cursor) for _ in range(ROUNDS)]
        folder = FeedFolder(lake.store, feed_of())
        for number in range(0, partitions, partitions // CHANGED):
            write(folder, number, FILES_OF_ONE + 1, generation=FILES_OF_ONE + 1)
            instance.report_runless_asset_event(materialization(lake, number))
        busy = [_tick(watcher, instance, lake, cursor) for _ in range(ROUNDS)]
    return [_median(idle, partitions, 0, build_s), _median(busy, partitions, CHANGED, build_s)]


def _tick(watcher: CompactionWatcher, instance: dg.DagsterInstance, lake: CountingLake, cursor: str) -> Tick:
    requests, bytes_read = dict(lake.store.requests), lake.store.bytes_read
    wall, cpu = time.perf_counter(), time.process_time()
    result = watcher.tick(instance, cursor, warn=print)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    asked = [each.run_config["ops"]["compact"]["config"]["partitions"] for each in result.run_requests or ()]
    spent: dict[str, int] = {kind: count - requests[kind] for kind, count in lake.store.requests.items()}
    return Tick(
        partitions=0,
        changed=0,
        asked=sum(map(len, asked)),
        wall_ms=1000 * wall,
        cpu_ms=1000 * cpu,
        requests=spent,
        bytes_read=lake.store.bytes_read - bytes_read,
        cursor_bytes=len(result.cursor or ""),
    )


def _median(ticks: list[Tick], partitions: int, changed: int, build_s: float) -> Tick:
    """The ticks as one; all but the times are the same."""
    assert len({json.dumps([each.asked, dict(each.requests), each.bytes_read]) for each in ticks}) == 1
    return Tick(
        partitions=partitions,
        changed=changed,
        asked=ticks[0].asked,
        wall_ms=median(each.wall_ms for each in ticks),
        cpu_ms=median(each.cpu_ms for each in ticks),
        requests=ticks[0].requests,
        bytes_read=ticks[0].bytes_read,
        cursor_bytes=ticks[0].cursor_bytes,
        build_s=build_s,
    )


def main(arguments: list[str]) -> None:
    """Measures each size in a process of its own, prints a table, and fails if the sizes differ in requests."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sensor", description=__doc__)
    parser.add_argument("--partitions", type=int, nargs="*", default=PARTITIONS, help="sizes of lakes to build")
    chosen = parser.parse_args(arguments)
    found = {size: [Tick(**each) for each in answer("benchmarks.sensor", str(size))] for size in chosen.partitions}
    ticks = [tick for each in found.values() for tick in each]
    _print(ticks)
    targets = _targets(ticks)
    print_targets(targets)
    if not all(target.met for target in targets):
        raise SystemExit(1)


def _print(ticks: list[Tick]) -> None:
    print("     files  partitions  changed  asked  wall ms   cpu ms  put  get list  del  bytes read   cursor  build s")
    for each in ticks:
        spent = " ".join(f"{each.requests[kind]:4}" for kind in KINDS)
        print(
            f"{each.partitions * FILES_OF_ONE:10,} {each.partitions:11,} {each.changed:8} {each.asked:6}"
            f" {each.wall_ms:8.1f} {each.cpu_ms:8.1f} {spent} {each.bytes_read:11,} {each.cursor_bytes:8,}"
            f" {each.build_s:8.1f}"
        )


def _targets(ticks: list[Tick]) -> list[Target]:
    busy, idle = [each for each in ticks if each.changed], [each for each in ticks if not each.changed]
    costs = {json.dumps(dict(each.requests)) for each in busy}
    spent = sum(busy[-1].requests.values())
    slow = busy[-1].cpu_ms / busy[0].cpu_ms
    longest = max(each.build_s for each in ticks)
    return [
        Target("store requests are the same at every size", "1 kind of tick", f"{len(costs)}", len(costs) == 1),
        Target("requests of a tick with 10 changes", f"{CHANGED}", f"{spent}", spent == CHANGED),
        Target(
            "requests of a tick without", "0", f"{sum(sum(each.requests.values()) for each in idle)}",
            all(not sum(each.requests.values()) for each in idle),
        ),
        Target("CPU of the largest lake's tick by the smallest's", "below 3", f"{slow:.1f}", slow < 3),
        Target("partitions asked for", f"{CHANGED}", f"{busy[-1].asked}", all(each.asked == CHANGED for each in busy)),
        Target("time to build the largest", "120 s", f"{longest:.0f} s", longest < 120),
    ]  # fmt: skip


def child(partitions: str) -> None:
    """Measures one size, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="datalake-sensor-") as scratch:
        print(json.dumps([asdict(each) for each in measure(int(partitions), Path(scratch))]))


if __name__ == "__main__":
    child(sys.argv[1])
