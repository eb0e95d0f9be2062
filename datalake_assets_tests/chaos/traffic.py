"""What goes on in an installation while its processes die: rows arrive, exports and compactions are launched."""

from __future__ import annotations

import datetime as dt
import random
import subprocess
import time
from collections import Counter

import httpx

from datalake_assets.demo.ksqldb_server.generator import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.chaos.installation import Installation

__all__ = ["UNFINISHED", "GrowingSource", "Traffic"]

UNFINISHED = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")
#: Runs that wait or go on, and commands, at most: more would only wait.
MOST_RUNS, MOST_COMMANDS = 5, 2
EVENTS_PER_DAY = 250
#: Days that there is room for, at the pace at which rows arrive.
_DAYS = 60
_BATCH = (5, 40)

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on InvalidSubsetError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
_START_SENSOR = """
mutation Start($selector: SensorSelector!) {
  startSensor(sensorSelector: $selector) { __typename ... on PythonError { message } }
}
"""


class GrowingSource:
    """A ksqlDB-compatible server whose streams grow when they are told to.

    Attributes:
        records: Rows in each stream.
        start: The first day with rows.
        server: The server; a context manager.
    """

    def __init__(self, records: int) -> None:
        self.records = records
        self.start = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=_DAYS)
        self._midnight = dt.datetime.combine(self.start, dt.time(), dt.UTC)
        config = GeneratorConfig(start=self._midnight, events_per_day=EVENTS_PER_DAY)
        self.server = KsqlServer(config, clock=self._clock)

    def _clock(self) -> float:
        """When the last of its rows has just arrived."""
        last = dt.timedelta(days=1) * (self.records - 1) / EVENTS_PER_DAY + dt.timedelta(milliseconds=2)
        return (self._midnight + last).timestamp()


class Traffic:
    """Adds rows, and launches what the installation has to do.

    Args:
        installation: The installation.
        source: What it exports.
        rng: Decides what comes next.
    """

    def __init__(self, installation: Installation, source: GrowingSource, rng: random.Random) -> None:
        self._in, self._source, self._rng = installation, source, rng
        self.commands: list[subprocess.Popen[bytes]] = []
        self.happened: Counter[str] = Counter()
        self.refused: list[str] = []

    def add_rows(self) -> None:
        """Has the source serve some more rows in each stream."""
        self._source.records += self._rng.randint(*_BATCH)

    def launch(self) -> None:
        """Launches one thing, if there is room; the web server may be gone."""
        self._reap()
        by_command = self._rng.random() < 0.4
        if by_command and len(self.commands) < MOST_COMMANDS:
            self._command()
            return
        try:
            if len(self._in.api.runs(statuses=UNFINISHED)) < MOST_RUNS:
                self._rng.choice([self.launch_export, self.launch_export, self.launch_compaction])()
        except httpx.HTTPError:
            self.happened["launches without a web server"] += 1

    def turn_on(self, sensor: str) -> None:
        """Turns a sensor on."""
        selector = {"repositoryLocationName": "datalake_assets", "repositoryName": "__repository__"}
        answer = self._in.api.ask(_START_SENSOR, selector=selector | {"sensorName": sensor})["startSensor"]
        assert answer["__typename"] == "Sensor", answer

    def finish(self, *, within_s: float) -> None:
        """Waits for the commands; one may wait for the pool slot of a dead run until that is found out.

        Raises:
            subprocess.TimeoutExpired: One goes on for longer than that.
        """
        until = time.monotonic() + within_s
        for process in self.commands:
            process.wait(max(0.0, until - time.monotonic()))
        self._reap()

    def _reap(self) -> None:
        for process in [each for each in self.commands if each.poll() is not None]:
            self.commands.remove(process)
            how = {0: "succeeded", -9: "were killed"}.get(process.returncode, "failed")
            self.happened[f"commands that {how}"] += 1

    def _command(self) -> None:
        name = self._rng.choice(list(self._in.feeds))
        feed = self._in.feeds[name]
        choices = [
            ("export", "--all"),
            ("export", "--all", "--parallel", "2"),
            ("export", f"--{feed.kind}", name),
            ("compact", name),
        ]
        chosen = self._rng.choice(choices)
        self.happened[f"commands: {chosen[0]}"] += 1
        self.commands.append(self._in.spawn("commands", "datalake_assets.cli", *chosen))

    def launch_export(self) -> None:
        """Has the daemon export some days of a stream."""
        streams = [feed for feed in self._in.feeds.values() if feed.kind is FeedKind.STREAM]
        feed = self._rng.choice(streams)
        first = max(0, self._last_day() - self._rng.choice([0, 0, 1, 3]))
        keys = [self._key(first), self._key(self._last_day())]
        tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[1]}
        if keys[0] == keys[1]:
            tags = {"dagster/partition": keys[0]}
        self._launch("__ASSET_JOB", {}, tags, assets=[["streams", feed.name]])
        self.happened["runs launched: export"] += 1

    def launch_compaction(self) -> None:
        """Has the daemon compact a stream's newest partitions."""
        name = self._rng.choice([name for name, feed in self._in.feeds.items() if feed.kind is FeedKind.STREAM])
        keys = open_table(self._in.store, self._in.feeds[name]).partitions()
        config = {"feed": name, "partitions": keys[-3:], "force": self._rng.random() < 0.3}
        self._launch("compact_partition", {"ops": {"compact": {"config": config}}}, {})
        self.happened["runs launched: compaction"] += 1

    def _launch(self, job: str, config: object, tags: dict[str, str], *, assets: list[list[str]] | None = None) -> None:
        selector: dict[str, object] = {
            "repositoryLocationName": "datalake_assets",
            "repositoryName": "__repository__",
            "jobName": job,
        }
        if assets:
            selector["assetSelection"] = [{"path": path} for path in assets]
        params = {
            "selector": selector,
            "runConfigData": config,
            "mode": "default",
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        answer = self._in.api.ask(_LAUNCH, params=params)["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            self.happened[f"launches refused: {answer['__typename']}"] += 1
            self.refused.append(f"{answer['__typename']}: {answer.get('message', '').partition(chr(10))[0]}")

    def _last_day(self) -> int:
        return (self._source.records - 1) // EVENTS_PER_DAY

    def _key(self, number: int) -> str:
        return f"{self._source.start + dt.timedelta(days=number):%Y-%m-%d}"
