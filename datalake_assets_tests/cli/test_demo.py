"""`datalake demo` and exports from the embedded server, as a person runs them: in processes of their own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from click.testing import Result

from datalake_assets.cli.export_results import result_table
from datalake_assets.core.facts import ExportResult, FeedTotals, PartitionFacts
from datalake_assets.demo.demo_feeds import DEMO_FEED_NAMES, DEMO_MART_NAMES, DEMO_QUEUE_NAMES
from datalake_assets.demo.demo_lake import read_demo
from datalake_assets.demo.ksqldb_server.generator import Generator
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import stream_feed
from datalake_assets_tests.processes.warm_processes import FORKED

STREAMS = DEMO_FEED_NAMES[:4]


def _unexpected(stderr: str) -> list[str]:
    """Lines but for those of checks that warn of small files."""
    return [line for line in stderr.splitlines() if " warns: " not in line]


def _outcomes(done: subprocess.CompletedProcess[str] | Result) -> dict[str, dict[str, Any]]:
    assert (done.exit_code if isinstance(done, Result) else done.returncode) == 0
    assert _unexpected(done.stderr) == []
    return {outcome["feed"]: outcome for outcome in json.loads(done.stdout)["feeds"]}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_lands_each_row_once_however_often_it_runs(run_process, run, tmp_path):
    first = run_process("demo", "--records", "300")
    assert first.returncode == 0
    assert _unexpected(first.stderr) == []
    _says_what_it_did(first.stdout, lake=tmp_path / "lake")
    _first_feed_took_no_longer_than_others(first.stdout)
    _suggests_what_works(first.stdout, run)

    more = _outcomes(run("demo", "--records", "500", "--json"))
    streams = sorted((*STREAMS, *DEMO_QUEUE_NAMES))
    assert list(more) == [*streams, *sorted(DEMO_FEED_NAMES[4:]), *DEMO_MART_NAMES]
    assert [(more[name]["rows"], more[name]["new_rows"]) for name in DEMO_QUEUE_NAMES] == [(50, 20)]
    assert [(more[name]["rows"], more[name]["new_rows"]) for name in STREAMS] == [(500, 200)] * 4
    _every_reader_agrees(run, tmp_path / "lake")

    repeated = _outcomes(run("export", "--all", "--json"))
    assert [outcome["new_rows"] for outcome in repeated.values()] == [0] * 11
    assert run("verify", "--deep").stdout == "11 feeds, no differences\n"
    _children_read_the_embedded_server_too(run)


def _children_read_the_embedded_server_too(run: Any) -> None:
    kept = ["transaction_stream", "account_balances"]  # a stream and a table: each child takes seconds to start
    for name in {*DEMO_FEED_NAMES, *DEMO_QUEUE_NAMES, *DEMO_MART_NAMES} - set(kept):
        assert run("feeds", "archive", name).exit_code == 0
    repeated = _outcomes(run("export", "--all", "--parallel", "2", "--json"))
    assert {name: outcome["new_rows"] for name, outcome in repeated.items()} == dict.fromkeys(kept, 0)


def _says_what_it_did(output: str, *, lake: Path) -> None:
    lines = output.splitlines()
    assert lines[0] == f"lake    {lake}"
    assert lines[1].startswith("ksqlDB  http://127.0.0.1:")
    assert lines[2].startswith("SQS     http://127.0.0.1:")
    assert "transaction_stream: +300 rows in " in output
    assert next(line.split() for line in lines if line.startswith("row_count")) == ["row_count", "11", "of", "11"]
    assert any(line.startswith("11 of 11 feeds exported, +") for line in lines)


def _first_feed_took_no_longer_than_others(output: str) -> None:
    """The start of Dagster is nobody's export; it took four times as long."""
    lines = [line.split() for line in output.splitlines() if line.startswith("streams/trans")][:3]
    first, *others = [float(line[7]) for line in lines]
    assert len(others) == 2
    assert first < 2.5 * max(others)


def _suggests_what_works(output: str, run: Any) -> None:
    lines = [line.strip() for line in output.splitlines()]
    query = next(line.split('"')[1] for line in lines if line.startswith("datalake sql"))
    assert sum(row["records"] for row in json.loads(run("sql", query, "--json").stdout)) == 300
    program = next(line.split('"')[1] for line in lines if line.startswith("python -c"))
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    assert "[300 rows x " in shown.stdout


def _every_reader_agrees(run: Any, lake: Path) -> None:
    demo = read_demo(open_store(str(lake)))
    assert demo is not None
    generator = Generator(demo.generator())
    for name in STREAMS:
        served = {str(day): rows for day, rows in generator.rows_per_day(name.upper()).items()}
        day = "format('{}-{:02d}-{:02d}', year, month, day)"
        query = f"select {day} as date, count(*) as n from {name} group by date"  # noqa: S608  names of our own
        ours = {row["date"]: row["n"] for row in json.loads(run("sql", query, "--json").stdout)}
        with duckdb.connect() as connection:
            files = connection.read_parquet(f"{lake}/streams/{name}/**/*.parquet")
            plain = dict(
                files.aggregate("strftime(rowtime at time zone 'UTC', '%Y-%m-%d') as date, count(*)").fetchall()
            )
        assert ours == plain == served
        assert len(pd.read_parquet(lake / "streams" / name, filters=[("year", ">=", demo.start.year)])) == 500


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.timeout(600)
def test_the_demo_on_s3_leaves_a_lake_that_can_be_served_again(run_process, run, tmp_path):
    first = _outcomes(run_process("demo", "--s3", "--records", "100", "--json"))
    assert [first[name]["rows"] for name in STREAMS] == [100] * 4
    assert not (tmp_path / "lake").exists()
    with _Served("s3", "lake-s3", lines=5, rest="stopped\n") as environment:
        assert "11 feeds, no differences" in run("verify", "--deep", env=environment).stdout
        answer = run("sql", "select count(*) as n from user_events", "--json", env=environment).stdout
        assert json.loads(answer) == [{"n": 100}]


def test_the_demo_leaves_other_lakes_alone(run, registry, lake):
    registry.add(stream_feed())
    result = run("demo")
    line = f"Error: {lake} is no demo lake: it has feeds of its own (s); give another --lake\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)
    assert not (lake / "control").exists()


def test_a_demo_lake_that_cannot_be_made_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("demo", "--lake", "file/lake")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: {tmp_path}/file/lake: the folder cannot be made: Not a directory; "
        "mend the lake's storage or DATALAKE_LAKE, then run it again\n"
    )


@pytest.mark.slow
def test_discovery_adds_what_can_be_landed(run, lake, tmp_path):
    with _Served("ksqldb", "--port", "0", "--records", "10") as url:
        added = json.loads(run("feeds", "add", "--from-ksqldb", "--group", "g", "--json", env=url).stdout)
        assert sorted(feed["name"] for feed in added["added"]) == sorted(DEMO_FEED_NAMES)
        assert {feed["group"] for feed in added["added"]} == {"g"}
        assert [each["object"] for each in added["skipped"]] == ["USERS"]
        assert "not queryable" in added["skipped"][0]["reason"]
        again = run("feeds", "add", "--from-ksqldb", env=url)
        assert again.stdout == "0 added, 9 skipped\n"
        assert "skipped USER_EVENTS: there is a feed 'user_events' already" in again.stderr.splitlines()
        checked = run("feeds", "check", env=url)
        assert (checked.exit_code, checked.stderr) == (0, "")
        assert "user_events: ok" in checked.stdout.splitlines()
        assert (
            run("feeds", "check", "user_events", env=url | {"DATALAKE_KSQLDB_URL": "http://127.0.0.1:9"}).exit_code == 1
        )


class _Served:
    """`datalake serve …` as a process; gives the environment that it prints, and ends it with Ctrl-C."""

    def __init__(self, *arguments: str, lines: int = 1, rest: str = "") -> None:
        command = [sys.executable, "-m", "datalake_assets.cli", "serve", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._lines, self._rest = lines, rest

    def __enter__(self) -> dict[str, str]:
        assert self.process.stdout is not None
        read = (self.process.stdout.readline().removeprefix("export ").strip() for _ in range(self._lines))
        return {name: value for name, _, value in (line.partition("=") for line in read)}

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        rest, errors = self.process.communicate(timeout=120)
        assert (self.process.returncode, rest, errors) == (0, self._rest, "")


@pytest.mark.slow
def test_serve_ksqldb_answers_and_asks_for_credentials():
    with _Served("ksqldb", "--port", "0", "--user", "u", "--password", "p") as environment:
        url = environment["DATALAKE_KSQLDB_URL"]
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(f"{url}/info", timeout=60)  # noqa: S310  http on the loopback
        refused.value.close()


@pytest.mark.slow
def test_serve_ksqldb_on_a_taken_port_is_one_line(run):
    with _Served("ksqldb", "--port", "0") as environment:
        port = environment["DATALAKE_KSQLDB_URL"].rpartition(":")[2]
        result = run("serve", "ksqldb", "--port", port)
    line = f"Error: port {port}: address already in use; give another with --port\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


def test_serve_ksqldb_names_a_fault_that_is_none(run):
    result = run("serve", "ksqldb", "--fault", "nope")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: fault 'nope' is unknown; choose one of ")


def test_quarantined_rows_are_shown_and_failures_left_out():
    landed, totals = (PartitionFacts("2025-01-01", rows_added=1000),), FeedTotals(2, 1234, 2, 0, 1500)
    results = [
        ExportResult("s", "stream", partitions=landed, rows_quarantined=3, seconds=1, totals=totals),
        ExportResult("t", "table", error="broke"),
    ]
    assert result_table(results).splitlines() == [
        "feed        rows  new rows  files     size  partitions  seconds  quarantined",
        "─────────  ─────  ────────  ─────  ───────  ──────────  ───────  ───────────",
        "streams/s  1,234     1,000      2  1.5 KiB           2      1.0            3",
    ]


#: What ``datalake demo --live`` does once everything was exported.
_LIVE = """
import sys
from datalake_assets.cli.demo import Growing, _go_on, _prepare
from datalake_assets.cli.session import Session
from datalake_assets.cli.signals import heed_signals
heed_signals()
session = Session(sys.argv[1])
_prepare(session, 300)
_go_on(session, Growing(1_000, 0))
"""


@pytest.mark.slow
def test_a_live_demo_lands_what_comes_and_shows_what_is_late_twice_or_broken(lake, lake_store):
    with subprocess.Popen(
        [sys.executable, "-c", FORKED + _LIVE, str(lake)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        page = next(found[0] for line in process.stdout if (found := re.findall(r"http://127\.0\.0\.1:\d+", line)))
        wanted = ("rows_landed", "rows_late", "rows_duplicate", "rows_quarantined")
        ends = time.monotonic() + 120
        while True:
            feeds = json.loads(urllib.request.urlopen(f"{page}/state", timeout=60).read())["feeds"]  # noqa: S310  loopback
            payments = next(feed for feed in feeds if feed["name"] == "transaction_stream")
            if all(payments[name] > 0 for name in wanted):
                break
            assert time.monotonic() < ends, payments
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    assert (process.returncode, said.splitlines()[-1]) == (0, "stopped; the lake keeps what came")

    demo, feed = read_demo(lake_store), FeedRegistry(lake_store).get("transaction_stream")
    assert demo.grows_until is None
    table = open_table(lake_store, feed)
    starts = table.plan().request.start_offsets
    read, broken = sum(starts.values()), len({row.position for _, row in table.quarantined()})
    rows = table.scan(columns=["rowtime"]).read_all().num_rows
    assert rows + broken == read <= demo.records
