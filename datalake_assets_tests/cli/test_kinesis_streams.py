"""A Kinesis stream from the command line: found, added, checked, landed through Dagster, mended and asked."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.xdist_group("kinesis")


@pytest.fixture
def server(kinesis_server, monkeypatch):
    for name, value in kinesis_server.environment().items():
        monkeypatch.setenv(name, value)
    return kinesis_server


def test_the_how_to_leads_from_a_stream_to_its_rows(run, lake, server):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "kinesis.md"
    block = re.findall(r"^```\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)[0]
    stream = server.stream(2, name="clicks")
    clicks = [{"user": f"u{n}", "page": "/", "at": f"2026-11-0{1 + n % 2}T10:00:00Z", "n": n} for n in range(6)]
    stream.send(clicks, keys=["a", "b", "c"])
    for command in block.replace("\\\n", " ").splitlines():
        if command.startswith("datalake"):
            result = run(*shlex.split(command)[1:])
            assert result.exit_code == 0, f"{command}: {result.stderr}"
    assert len(list(lake.rglob("streams/clicks/year=2026/month=11/*/*.parquet"))) == 2
    answer = run("sql", "SELECT count(*) AS rows, count(DISTINCT kinesis_shard_id) AS shards FROM clicks", "--json")
    assert (answer.exit_code, json.loads(answer.stdout)) == (0, [{"rows": 6, "shards": 2}]), answer.stderr

    again = run("export", "--stream", "clicks", "--json")
    assert (again.exit_code, json.loads(again.stdout)["feeds"][0]["new_rows"]) == (0, 0)
    stream.send(["no JSON"])
    assert run("export", "--stream", "clicks").exit_code == 3
    missed = run("quarantine", "show", "clicks")
    assert "it is not a JSON object" in missed.stdout


def test_streams_are_found_and_what_is_not_there_is_said(run, lake, server):
    first, second = (server.stream(name=name) for name in ("orders.eu", "Payments"))
    added = run("feeds", "add", "--from-kinesis")
    assert added.exit_code == 0, added.stderr
    assert "added streams/orders_eu, from orders.eu\n" in added.stdout
    assert "added streams/payments, from Payments\n" in added.stdout
    first.send(["x"])
    assert run("export", "--stream", "orders_eu").exit_code == 0
    second.delete()
    result = run("feeds", "check", "payments")
    assert result.exit_code == 1
    assert "correct the feed's stream and region" in result.stderr


@pytest.mark.slow
def test_a_stream_is_followed_through_a_split_and_a_kill(run, lake, server):
    stream = server.stream()
    run("feeds", "add", "--name", "hits", "--kind", "stream", "--source", "kinesis", "--stream-name", stream.name)
    keys = [f"k{number}" for number in range(9)]
    sent: list[str] = []

    def send():
        some = [f"r{len(sent) + number}" for number in range(9)]
        stream.send(some, keys=keys)
        sent.extend(some)

    def landed():
        files = lake.rglob("streams/hits/**/*.parquet")
        return sorted(each for file in files for each in pq.read_table(file, columns=["value"])["value"].to_pylist())

    def wait():
        ends = time.monotonic() + 120
        while landed() != sorted(sent):
            assert time.monotonic() < ends, (len(landed()), len(sent))
            time.sleep(0.1)

    command = [sys.executable, "-m", "datalake_assets.cli", "run", "hits"]
    send()
    with subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL) as process:
        wait()
        stream.split(stream.open_shards()[0])
        send()
        process.kill()
    with subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL) as process:
        wait()
        stream.merge(*stream.open_shards())
        send()
        wait()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert json.loads(run("export", "--stream", "hits", "--json").stdout)["feeds"][0]["new_rows"] == 0
