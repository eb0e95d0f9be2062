"""`datalake report` on a small real lake, in every format."""

from __future__ import annotations

import csv
import fcntl
import gc
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest

from datalake_assets.core.batches import RejectedRow
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.report.documents import CSV_COLUMNS
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.many_files import DAYS, append


@pytest.fixture
def filled(lake_store: Store, registry: FeedRegistry) -> Store:
    """Three days of the stream ``s``, of 4 small files each, and two versions of the table ``t``."""
    append(lake_store, registry.add(stream_feed(freshness={"max_event_age": "P1D"})), times=4)
    table = HiveTable(lake_store, registry.add(table_feed()))
    for rows in (3, 4):
        table.write(table_of(rows), partitions=table.plan().partitions, run_id="r")
    return lake_store


def test_console_says_what_is_the_matter_and_where(run, filled):
    result = run("report")
    assert (result.exit_code, result.stderr) == (0, "")
    feeds, verdicts, worst, costs = result.stdout.split("\n\n")
    assert feeds.splitlines()[2].split()[:5] == ["streams/s", "3", "12", "12", "12"]
    stream, others = verdicts.splitlines()
    assert stream.startswith("streams/s: the newest row is ")
    assert stream.endswith("; needs compaction: 12 small files in 3 partitions, saves under 1 cent a month")
    assert others == "1 feed is healthy: nothing to merge, nothing late"
    assert [line.split()[:5] for line in worst.splitlines()[2:]] == [["streams/s", day, "4", "4", "1"] for day in DAYS]
    assert costs == "on S3, read once a day: under 1 cent a month, after compaction under 1 cent\n"


def test_figures_are_read_without_what_merges_files(filled, tmp_path):
    """Loading it took as much CPU as reading a thousand partitions, and a fifth of the memory of ten thousand."""
    program = """
import sys
from datalake_assets.cli.app import app
app(["report"], standalone_mode=False)
heavy = {"dagster", "pyarrow.fs", "pyarrow.parquet", "datalake_assets.lake.hive", "datalake_assets.parquet.rewrite"}
print(*sorted(heavy & {*sys.modules}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    assert "needs compaction: 12 small files" in done.stdout
    assert done.stderr == "\n"


def test_console_names_ten_partitions_and_counts_the_rest(run, lake_store, registry):
    feed = registry.add(stream_feed(partition_by="hour"))
    hours = numbered(range(12)).rows["rowtime"]
    for first in (0, 12):
        batch = numbered(range(first, first + 12))
        batch = replace(batch, rows=batch.rows.set_column(2, "rowtime", hours))
        table = HiveTable(lake_store, feed)
        table.write(stream_of(batch), partitions=table.plan().partitions, run_id="r")
    assert run("report").stdout.split("\n\n")[2].endswith("\nand 2 more; --format csv lists all")


def test_csv_has_a_line_per_partition_with_all_columns(run, filled):
    text = run("report", "--format", "csv").stdout
    lines = list(csv.DictReader(io.StringIO(text)))
    assert tuple(lines[0]) == CSV_COLUMNS
    first, current = lines[0], lines[-1]
    assert (first["partition"], first["files"], first["files_after_compaction"]) == (DAYS[0], "4", "1")
    assert (first["files_below_64_kib"], first["files_from_1_gib"], first["is_current_version"]) == ("4", "0", "")
    assert first["last_export"].endswith("+00:00")
    assert (current["partition"], current["is_current_version"], current["min_time"]) == ("v2", "true", "")
    assert float(first["request_cost"]) > float(first["request_cost_after"]) > 0


def test_json_has_the_same_figures_and_the_history(run, filled):
    document = json.loads(run("report", "--format", "json").stdout)
    stream, table = document["feeds"]
    assert (stream["rows"], stream["files"], stream["files_after_compaction"]) == (12, 12, 3)
    assert stream["level"] == "warn"
    assert [age["level"] for age in stream["freshness"]] == ["ok", "warn"]
    assert stream["history"]["files"][-1] == 12
    assert [each["version"] for each in table["versions"]] == ["v1", "v2"]
    assert (table["current_version"], table["newest_row"]) == ("v2", None)
    assert document["total"]["files"] == sum(feed["files"] for feed in document["feeds"]) == 14
    assert document["total"]["history"]["small_files"][-1] == 14
    assert sum(document["total"]["file_sizes"]) == 14
    assert document["file_size_buckets"][0] == {"from_bytes": 0, "below_bytes": 65536, "label": "below 64 KiB"}


def test_only_the_feeds_that_are_named_are_reported(run, filled):
    document = json.loads(run("report", "--json", "--feed", "t", "--feed", "t").stdout)
    assert [feed["feed"] for feed in document["feeds"]] == ["t"]
    assert run("report", "--feed", "nope").exit_code == 1


def test_costs_follow_the_scans_that_are_assumed(run, filled):
    def cost(*arguments):
        return json.loads(run("report", "--json", *arguments).stdout)["total"]["monthly_cost"]

    once, often, never = cost(), cost("--scans-per-day", "24"), cost("--scans-per-day", "0")
    assert often["requests_usd"] == pytest.approx(24 * once["requests_usd"])
    assert never["requests_usd"] == 0
    assert never["storage_usd"] == once["storage_usd"] > 0


@pytest.mark.parametrize("scans", ["-1", "nan", "inf", "1e308", "often"])
def test_scans_are_a_number(run, lake, scans):
    assert run("report", "--scans-per-day", scans).exit_code == 2


def test_rows_in_quarantine_are_reported(run, lake_store, registry):
    feed = registry.add(stream_feed())
    bad = RejectedRow(b"{", "not JSON", "0:1")
    HiveTable(lake_store, feed).write(stream_of(numbered([0], rejected=[bad])), partitions=DAYS[:1], run_id="r")
    assert "streams/s: 1 row in quarantine\n" in run("report").stdout
    (found,) = json.loads(run("report", "--json").stdout)["feeds"]
    assert (found["quarantine"]["rows"], found["quarantine"]["is_exact"]) == (1, True)


def test_a_compaction_shows_in_the_history(run, filled):
    assert run("compact", "s").exit_code == 0
    stream = json.loads(run("report", "--json").stdout)["feeds"][0]
    (compaction,) = stream["partitions"][0]["compactions"]
    assert (compaction["files_removed"], compaction["files_added"]) == (4, 1)
    assert (max(stream["history"]["files"]), stream["history"]["files"][-1]) == (12, 3)


def test_a_damaged_manifest_is_told_and_its_feeds_summary_left_as_it_is(run, filled, lake: Path, registry):
    manifest = FeedFolder(filled, registry.get("s")).log(DAYS[1]).manifest_key
    (lake / manifest).write_bytes(b"{")
    summary = lake / "metadata/streams/s/_metadata.json"
    before = summary.read_bytes()
    result = run("report", "--rebuild")
    assert result.exit_code == 0
    told, left = result.stderr.splitlines()
    assert told.startswith(f"left out streams/s {DAYS[1]}: not a manifest: ")
    assert left == "the summary of streams/s stays as it was: not all of its manifests can be read"
    assert "1 manifest cannot be read: run 'datalake verify s'" in result.stdout
    assert summary.read_bytes() == before


def test_html_goes_to_a_file_or_into_a_pipe(run, filled, tmp_path: Path):
    page = run("report", "--format", "html")
    assert page.stdout.startswith("<!DOCTYPE html>\n<html")
    assert "needs compaction: 12 small files in 3 partitions" in page.stdout
    assert run("report", "--format", "html", "--output", "my.html").stdout == "wrote my.html\n"
    assert (tmp_path / "my.html").read_text().startswith("<!DOCTYPE html>")
    assert not (tmp_path / "lake_report.html").exists()


def test_html_is_not_printed_on_a_terminal(filled, tmp_path: Path):
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "datalake_assets.cli", "report", "--format", "html"]
    done = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, check=False, timeout=180)
    os.close(terminal)
    said = os.read(master, 10_000)
    os.close(master)
    assert (done.returncode, done.stderr, said) == (0, b"", b"wrote lake_report.html\r\n")
    assert (tmp_path / "lake_report.html").read_text().startswith("<!DOCTYPE html>")


def on_terminal(*arguments: str, width: int) -> list[str]:
    """What a command prints on a terminal of this width."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "datalake_assets.cli", *arguments]
    done = subprocess.run(command, stdout=terminal, env=environment, check=True, timeout=180)
    os.close(terminal)
    said = os.read(master, 10_000).decode()
    os.close(master)
    assert done.returncode == 0
    return said.splitlines()


def test_tables_keep_to_the_width_of_a_terminal_and_not_in_files_and_pipes(run, filled, tmp_path: Path):
    plain = run("report").stdout.splitlines()
    assert 100 < len(plain[0]) < 200
    assert on_terminal("report", width=200) == plain
    folded = on_terminal("report", width=100)
    assert len(folded[1]) <= 100
    assert folded[1:2] != plain[1:2]
    assert on_terminal("report", "--output", "table.txt", width=90) == ["wrote table.txt"]
    assert (tmp_path / "table.txt").read_text().splitlines() == plain


def test_html_of_an_empty_lake(run, lake):
    assert "The lake has no data yet" in run("report", "--format", "html").stdout


def test_garbage_is_collected_again_after_a_report(run, lake):
    assert gc.isenabled()
    run("report", "--output", "no/such/folder")
    assert gc.isenabled()


def test_metrics_are_printed_with_the_depth_of_queues_and_without_what_cannot_be_asked(run, filled, tmp_path):
    file = tmp_path / "lake.prom"
    result = run("report", "--format", "prometheus", "--output", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    assert 'datalake_small_files{lake="' in file.read_text()
    assert list(tmp_path.glob("lake.prom*")) == [file]

    document = json.loads(run("report", "--format", "cloudwatch", "--cost-limit", "3").stdout)
    assert [each["Threshold"] for each in document["alarms"] if each["MetricName"] == "MonthlyCost"] == [3.0]
    assert run("report", "--format", "cloudwatch", "--feed", "s").exit_code == 2
