"""What Dagster's daemon does with the compaction sensor, and what a test does to the lake meanwhile."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.defs.compaction.sensor import CompactionWatcher
from datalake_assets.defs.metadata import asset_key
from datalake_assets.feed import Feed
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.lake.feeds import stream_feed

#: Long after the demo days closed.
NOW = 1_800_000_000.0


@dataclass
class Daemon:
    """What Dagster's daemon does with a sensor's results, at times of the test's choosing."""

    instance: dg.DagsterInstance
    watcher: CompactionWatcher
    job: dg.JobDefinition
    now: float = NOW
    cursor: str | None = None
    warned: list[str] = field(default_factory=list)
    skipped: str | None = None

    def tick(self) -> list[dg.RunRequest]:
        """A tick, 30 s after the last one; the requests that it made."""
        self.now += 30
        result = self.watcher.tick(self.instance, self.cursor, warn=self.warned.append, now=self.now)
        self.cursor, self.skipped = result.cursor, result.skip_reason and result.skip_reason.skip_message
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        return list(result.run_requests or ())

    def run(self, *requests: dg.RunRequest, job: dg.JobDefinition | None = None) -> list[bool]:
        """Runs requests; says of each whether it succeeded."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [
                (job or self.job)
                .execute_in_process(
                    instance=self.instance,
                    run_config=each.run_config,
                    tags={**each.tags, "dagster/run_key": each.run_key},
                    raise_on_error=False,
                )
                .success
                for each in requests
            ]

    def settle(self, ticks: int = 10) -> int:
        """Ticks and runs until nothing is asked for; returns the number of runs."""
        for done in range(ticks):
            requests = self.tick()
            if not requests:
                return done
            self.run(*requests)
        raise AssertionError(self.cursor)

    def reports(self, feed: Feed) -> list[dg.AssetObservation]:
        """What the sensor has reported of a feed."""
        records = self.instance.fetch_observations(asset_key(feed), limit=1000).records
        found = [record.asset_observation for record in records]
        return [each for each in found if "datalake/compaction_failures" in each.metadata]


Open = Callable[..., Daemon]


def added(store: Store, **changes: object) -> Feed:
    return FeedRegistry(store).add(stream_feed(**changes))


def materialized(instance: dg.DagsterInstance, feed: Feed, *keys: str) -> None:
    for key in keys:
        instance.report_runless_asset_event(dg.AssetMaterialization(asset_key(feed), partition=key))


def partitions(request: dg.RunRequest) -> list[str]:
    return request.run_config["ops"]["compact"]["config"]["partitions"]


def files(store: Store, feed: Feed, key: str) -> list[Path]:
    year, month, day = key.split("-")
    return sorted(Path(store.uri).glob(f"streams/{feed.name}/year={year}/month={month}/day={day}/*"))


def damage(file: Path) -> str:
    """Breaks a file, as a disk would: it keeps its size."""
    os.truncate(file, 0)
    file.write_bytes(b"x" * 700)
    return file.name


def synthetic(store: Store, feed: Feed, key: str, *names: str, size_bytes: int = 1000) -> None:
    """A manifest of files that nobody ever reads."""
    folder = FeedFolder(store, feed)
    entries = tuple(DataFile(name, 1, size_bytes) for name in names)
    file = Path(store.path(folder.log(key).manifest_key))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(Manifest(len(names), "w", entries).to_bytes())
