"""Rounds by time: ``datalake export``, with Dagster and all, is killed at whatever it is doing."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.batches import ReadRequest
from datalake_assets.demo.demo_feeds import demo_feeds
from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.feed import Feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.sources.ksqldb.source import KsqlDB
from datalake_assets_tests.crash.checks import CrashError

__all__ = ["CliRounds"]

#: One feed of each kind of position, and so of each kind of export.
FEEDS = ("transaction_stream", "transaction_alerts", "account_balances")
EVENTS_PER_DAY = 200
RECORDS_PER_ROUND = 120
#: Of a busy machine; only a command that hangs is waited for as long.
TIMEOUT_S = 900


class CliRounds:
    """Kills command lines, one after another, on one lake whose source grows.

    Args:
        lake: Where the lake is to be.
        environment: The S3 server's variables, if it is on S3.
        feeds: Those of the demo that are exported.
        seed: Decides when to kill.
    """

    def __init__(
        self,
        lake: str,
        environment: dict[str, str] | None = None,
        *,
        feeds: Sequence[str] = FEEDS,
        seed: int = 0,
    ) -> None:
        self._rng, self._records = random.Random(seed), 0
        self._home = tempfile.TemporaryDirectory()
        self._start = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=12)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("DATALAKE_", "DAGSTER_"))}
        self._environment = own | (environment or {}) | {"DATALAKE_LAKE": lake, "DAGSTER_HOME": self._home.name}
        if "://" not in lake:
            Path(lake).mkdir()
        self._store = open_store(lake, s3=S3Access(endpoint=(environment or {}).get("DATALAKE_S3_ENDPOINT")))
        self._feeds = [feed for feed in demo_feeds(self._start) if feed.name in feeds]
        for feed in self._feeds:
            FeedRegistry(self._store).add(feed)
        self._duration_s = 5.0  # of an export that nobody kills: as long as the last one
        self.happened: Counter[str] = Counter()

    def close(self) -> None:
        """Forgets Dagster's history; the lake stays."""
        self._home.cleanup()

    def round(self) -> str:
        """One round; returns what it was."""
        before, self._records = self._records, self._records + RECORDS_PER_ROUND
        config = GeneratorConfig(
            start=dt.datetime.combine(self._start, dt.time(), dt.UTC),
            events_per_day=EVENTS_PER_DAY,
            records=self._records,
        )
        with KsqlServer(config) as server:
            environment = self._environment | {"DATALAKE_KSQLDB_URL": server.url}
            delay_s = self._kill(environment)
            truths = {feed.name: self._truth(server.url, feed) for feed in self._feeds}
            for feed in self._feeds:
                self._check_crashed(feed, truths[feed.name], first=not before)
            began = time.monotonic()
            self._run(environment, "export", "--all")
            self._duration_s = time.monotonic() - began
        for feed in self._feeds:
            self._check_retried(feed, truths[feed.name])
        self._run(environment, "verify", "--deep")
        return f"killed after {delay_s:.1f} s of about {self._duration_s:.1f} s, {self._records} records"

    def _kill(self, environment: dict[str, str]) -> float:
        """The first third is spent on imports."""
        delay_s = self._rng.uniform(0.35, 1.0) * self._duration_s
        parallel = self._rng.choice(["1", "1", "2"])
        with subprocess.Popen(
            [sys.executable, "-m", "datalake_assets.cli", "export", "--all", "--parallel", parallel],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # its children die with it
            text=True,
        ) as process:
            try:
                _, errors = process.communicate(timeout=delay_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                self.happened["killed"] += 1
                return delay_s
        if process.returncode:
            raise CrashError(f"an export that nobody killed failed: {errors[-2000:]}")
        self.happened["survived"] += 1
        return delay_s

    @staticmethod
    def _run(environment: dict[str, str], *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "datalake_assets.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            told = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            raise CrashError(f"datalake {' '.join(arguments)} failed with {done.returncode} after a crash: {told}")

    def _truth(self, url: str, feed: Feed) -> Counter[str]:
        system = KsqlDB(url)
        try:
            return _counted(pa.Table.from_batches([batch.rows for batch in system.read(feed, ReadRequest())]))
        finally:
            system.close()

    def _listed(self, feed: Feed) -> Counter[str]:
        rows: Counter[str] = Counter()
        for info in self._store.list(feed.path):
            try:
                path = self._store.path(info.key)
                rows += _counted(pq.read_table(path, filesystem=self._store.filesystem(), partitioning=None))
            except (pa.ArrowException, OSError) as error:
                raise CrashError(f"{info.key} cannot be read: {error}") from error
        return rows

    def _check_crashed(self, feed: Feed, truth: Counter[str], *, first: bool) -> None:
        listed = self._listed(feed)
        if feed.kind == "stream":
            _require(set(listed) <= set(truth), f"{feed.name}: a lister sees rows that the source never had")
        if not first or self._store.head(f"control/{feed.path}/feed.json") is not None:
            scanned = _counted(_without_keys(HiveTable(self._store, feed)))
            twice = [row for row, count in scanned.items() if count > 1 and count > truth[row]]
            _require(not twice, f"{feed.name}: a reader of the manifests sees rows twice")

    def _check_retried(self, feed: Feed, truth: Counter[str]) -> None:
        table = HiveTable(self._store, feed)
        _require(_counted(_without_keys(table)) == truth, f"{feed.name}: a reader of the manifests sees other rows")
        if feed.kind == "stream":
            _require(self._listed(feed) == truth, f"{feed.name}: a lister sees other rows")
        differences = list(table.verify(deep=True))
        _require(not differences, f"{feed.name}: {differences}")


def _without_keys(table: HiveTable) -> pa.Table:
    scanned = table.scan().read_all()
    keys = {"year", "month", "day", "version"}
    return scanned.drop_columns([name for name in scanned.column_names if name in keys])


def _counted(table: pa.Table) -> Counter[str]:
    return Counter(repr(sorted(row.items())) for row in table.to_pylist())


def _require(condition: object, what: str) -> None:
    if not condition:
        raise CrashError(what)
