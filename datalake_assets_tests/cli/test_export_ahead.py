"""`datalake export` of several push queries: their silences pass at once, and nothing else is different."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from datalake_assets.feed import Feed
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource
from datalake_assets_tests.sources.ksqldb.answers import NUMBERED, STREAM
from datalake_assets_tests.sources.ksqldb.scripted_server import (
    STREAMED,
    Answer,
    Request,
    ScriptedServer,
    description,
    error,
    info,
    scripted,
)

pytestmark = pytest.mark.slow
NAMES = ("first", "second", "third")


class Streams:
    """A server of three streams, of two rows each, that go on for ever.

    Attributes:
        broken: Names of streams whose queries the server refuses.
        open: Queries that go on, by name of the stream.
        most: As many as went on at once.
    """

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.open: list[str] = []
        self.most = 0
        self.opened = threading.Semaphore(0)
        self._at_ms = int(time.time() * 1000) - 60_000
        self._closed: set[str] = set()
        self._changed = threading.Condition()

    def __call__(self, request: Request) -> Answer:
        if request.path == "/info":
            return info()
        if request.path == "/ksql":
            return description(_stream_in(request.body["ksql"]).upper(), **STREAM)
        if request.path == "/close-query":
            with self._changed:
                self._closed.add(request.body["queryId"])
                self._changed.notify_all()
            return Answer()
        name = _stream_in(request.body["sql"])
        if name in self.broken:
            return error(40001, "it is not for you", 400)
        return Answer(self._rows(name), content_type=STREAMED)

    def _rows(self, name: str) -> Iterator[bytes]:
        with self._changed:
            query = f"q{len(self.open)}_{name}"
            self.open.append(query)
            self.most = max(self.most, len({*self.open} - self._closed))
        yield json.dumps({"header": {"queryId": query, "schema": NUMBERED}}).encode().join((b"[", b",\n"))
        for offset in range(2):
            yield json.dumps({"row": {"columns": [offset, name, self._at_ms, 0, offset]}}).encode() + b",\n"
        self.opened.release()
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: query in self._closed, 0.05):
                    return
            yield b"\n"

    @property
    def left(self) -> set[str]:
        """Queries that nobody has ended."""
        return {*self.open} - self._closed


def _stream_in(sql: str) -> str:
    return re.findall("FIRST|SECOND|THIRD", sql)[-1].lower()


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def server(streams: Streams) -> Iterator[ScriptedServer]:
    with scripted(streams) as server:
        yield server


@pytest.fixture(params=[1.0])
def feeds(registry, request) -> None:
    """The three streams; each ends once it is silent for so long."""
    for name in NAMES:
        registry.add(Feed(name=name, kind="stream", source=KsqlDBSource(object=name.upper(), idle_s=request.param)))


def exported(run, server: ScriptedServer) -> list[dict[str, object]]:
    done = run("export", "--all", "--json", env={"DATALAKE_KSQLDB_URL": server.url})
    return json.loads(done.stdout)["feeds"]


@pytest.mark.usefixtures("feeds")
def test_streams_are_silent_at_once_and_land_in_their_order(run, server, streams):
    done = run("export", "--all", env={"DATALAKE_KSQLDB_URL": server.url})
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [line.partition(":") for line in done.stdout.splitlines() if " rows in " in line]
    assert [(name, rest.partition(" in ")[0]) for name, _, rest in lines] == [(name, " +2 rows") for name in NAMES]
    assert streams.most == len(NAMES)
    assert len(streams.open) == len(NAMES)  # each is asked once
    assert not streams.left
    again = exported(run, server)
    assert [(each["feed"], each["new_rows"], each["rows"]) for each in again] == [(name, 0, 2) for name in NAMES]


@pytest.mark.usefixtures("feeds")
def test_a_stream_that_fails_ahead_fails_in_its_turn_and_alone(run, server, streams):
    streams.broken = {"second"}
    done = run("export", "--all", env={"DATALAKE_KSQLDB_URL": server.url})
    cure = "correct the feed or the credentials, then run it again"
    assert done.exit_code == 1
    assert done.stderr == f"Error: second: {server.url} SECOND: it is not for you; {cure}\n"
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if " rows in " in line] == ["first", "third"]
    assert not streams.left


@pytest.mark.usefixtures("feeds")
def test_who_accepts_a_source_that_was_created_anew_has_each_read_in_its_turn(run, server, streams):
    done = run("export", "--all", "--new-epoch", env={"DATALAKE_KSQLDB_URL": server.url})
    assert done.exit_code == 0
    assert (streams.most, len(streams.open)) == (1, len(NAMES))


@pytest.mark.usefixtures("feeds")
@pytest.mark.parametrize("feeds", [600.0], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_an_export_ends_all_queries_that_were_begun(server, streams, number):
    with subprocess.Popen(
        [sys.executable, "-m", "datalake_assets.cli", "export", "--all"],
        env=os.environ | {"DATALAKE_KSQLDB_URL": server.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in NAMES:
            assert streams.opened.acquire(timeout=60)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "Interrupted\n")
    assert not streams.left
