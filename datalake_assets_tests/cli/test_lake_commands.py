"""`report`, `sql`, `verify` and `repair` on a small lake: what they print, and their exit codes."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from datalake_assets.feed import parse_feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of


@pytest.fixture
def filled(lake_store: Store, registry: FeedRegistry) -> Store:
    """Two days of the stream ``s``, 24 rows each, and two versions of the table ``t``, of 3 and 4 rows."""
    stream, table = registry.add(stream_feed()), registry.add(table_feed())
    HiveTable(lake_store, stream).write(stream_of(numbered(range(48))), partitions=("2025-01-01",), run_id="r")
    snapshots = HiveTable(lake_store, table)
    for rows in (3, 4):
        snapshots.write(table_of(rows), partitions=snapshots.plan().partitions, run_id="r")
    return lake_store


def _data_files(lake: Path) -> list[Path]:
    return sorted(lake.glob("streams/s/**/*.parquet"))


def test_report_of_an_empty_lake_says_what_to_do(run, lake):
    assert run("report").stdout == "the lake has no data yet; export some with 'datalake export --all'\n"


def test_report_shows_feeds(run, filled):
    lines = run("report").stdout.splitlines()
    assert lines[0].split()[:8] == ["feed", "partitions", "rows", "files", "small", "size", "newest", "row"]
    assert lines[2].split()[:5] == ["streams/s", "2", "48", "2", "2"]
    assert "2025-01-02 23:00:00" in lines[2]
    assert lines[3].split()[:5] == ["tables/t", "2", "7", "2", "2"]


def test_report_as_csv_has_a_line_per_partition(run, filled):
    rows = list(csv.DictReader(io.StringIO(run("report", "--format", "csv").stdout)))
    assert [(row["feed"], row["partition"], row["rows"]) for row in rows] == [
        ("s", "2025-01-01", "24"),
        ("s", "2025-01-02", "24"),
        ("t", "v1", "3"),
        ("t", "v2", "4"),
    ]
    assert rows[0]["max_time"] == "2025-01-01T23:00:00+00:00"


@pytest.mark.parametrize("arguments", [("--json",), ("--format", "json")])
def test_report_as_json(run, filled, lake, arguments):
    document = json.loads(run("report", *arguments).stdout)
    assert document["lake"] == str(lake)
    assert [(feed["feed"], feed["rows"], len(feed["partitions"])) for feed in document["feeds"]] == [
        ("s", 48, 2),
        ("t", 7, 2),
    ]


def test_report_to_a_file(run, filled, tmp_path):
    assert run("report", "--format", "csv", "--output", "report.csv").stdout == "wrote report.csv\n"
    assert (tmp_path / "report.csv").read_text().startswith("feed,kind,partition,")
    failed = run("report", "--output", "no/such/folder")
    assert (failed.exit_code, failed.stderr) == (1, "Error: --output no/such/folder: No such file or directory\n")


def test_report_rebuilds_the_summaries(run, filled, lake):
    summary = lake / "metadata/streams/s/_metadata.json"
    before = json.loads(summary.read_text())
    summary.write_text("lost")
    assert run("report", "--rebuild").exit_code == 0
    after = json.loads(summary.read_text())
    assert after["partitions"] == before["partitions"]
    assert (after["source"], after["total_records"]) == ("s", 48)


def test_sql_prints_a_table(run, filled):
    result = run("sql", "select day, count(*) as n from s group by day order by day")
    assert result.stdout.splitlines() == ["day   n", "───  ──", "  1  24", "  2  24"]


def test_sql_prints_csv_and_json(run, filled):
    query = "select id, note, rowtime from s where id < 2 order by id"
    assert run("sql", query, "--format", "csv").stdout.splitlines() == [
        "id,note,rowtime",
        "0,n0,2025-01-01T00:00:00+00:00",
        "1,n1,2025-01-01T01:00:00+00:00",
    ]
    rows = [{"id": 0, "note": "n0", "rowtime": "2025-01-01T00:00:00+00:00"}]
    for arguments in (("--json",), ("--format", "json")):
        assert json.loads(run("sql", f"{query} limit 1", *arguments).stdout) == rows


def test_sql_says_when_it_left_rows_out(run, filled):
    result = run("sql", "select id from s", "--limit", "3")
    assert len(result.stdout.splitlines()) == 5
    assert result.stderr == "the first 3 rows; --limit 0 prints all\n"
    assert len(run("sql", "select id from s", "--limit", "0").stdout.splitlines()) == 50
    assert len(run("sql", "select range from range(200)").stdout.splitlines()) == 102
    assert len(run("sql", "select range from range(200)", "--format", "csv").stdout.splitlines()) == 201


def test_sql_that_is_wrong_is_one_line(run, filled):
    result = run("sql", "select nothing from s")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith('Error: the query cannot be run: Binder Error: Referenced column "nothing"')
    assert len(result.stderr.splitlines()) == 1


def test_sql_changes_nothing(run, filled):
    result = run("sql", "drop table s")
    line = "Error: the query cannot be run: give one SELECT; nothing else is run here\n"
    assert (result.exit_code, result.stderr) == (1, line)


def test_verify_of_a_sound_lake(run, filled):
    for arguments in ((), ("--deep",)):
        result = run("verify", *arguments)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "2 feeds, no differences\n", "")
    assert json.loads(run("verify", "--json").stdout) == {
        "feeds": 2,
        "differences": [],
        "problems": [],
        "errors": [],
    }


@pytest.mark.parametrize(
    ("command", "done"), [("verify", "2 feeds, no differences"), ("repair", "2 feeds, nothing to")]
)
def test_feed_that_cannot_be_looked_at_keeps_no_other_from_its_turn(run, filled, lake, command, done):
    gone = {"name": "a", "kind": "folder", "source": {"type": "folder", "uri": str(lake.parent / "unmounted/a")}}
    FeedRegistry(filled).add(parse_feed(json.dumps(gone)))

    result, as_json = run(command), run(command, "--json")

    assert (result.exit_code, as_json.exit_code) == (1, 1)
    assert done in result.stdout
    assert result.stderr.startswith("Error: folders/a: ")
    assert [each["feed"] for each in json.loads(as_json.stdout)["errors"]] == ["a"]
    assert run(command, "a").stderr.startswith("Error: ")


def test_feed_whose_look_meets_a_bug_keeps_no_other_from_its_turn(run, filled, monkeypatch):
    honest = HiveTable.verify

    def verify(self: HiveTable, **options: object) -> object:
        return honest(self, **options) if self.feed.name == "t" else iter([1 // 0])

    monkeypatch.setattr(HiveTable, "verify", verify)

    result = run("verify")

    assert (result.exit_code, result.stdout) == (1, "1 feeds, no differences\n")
    line = (
        "Error: streams/s: unexpected ZeroDivisionError: integer division or modulo by zero (a bug; see where with -v)"
    )
    assert line in result.stderr.splitlines()


def test_verify_names_each_difference(run, filled, lake):
    missing, damaged = _data_files(lake)
    missing.unlink()
    body = bytearray(damaged.read_bytes())
    body[10] ^= 0xFF
    damaged.write_bytes(body)
    shallow = run("verify", "s")
    assert shallow.exit_code == 1
    assert (
        shallow.stdout == f"streams/s 2025-01-01: missing: {missing.relative_to(lake)}: 24 rows, {_size(lake)} bytes\n"
    )
    deep = json.loads(run("verify", "--deep", "--json").stdout)
    assert [(each["feed"], each["partition"], each["what"]) for each in deep["differences"]][:2] == [
        ("s", "2025-01-01", "missing"),
        ("s", "2025-01-02", "checksum"),
    ]


def _size(lake: Path) -> int:
    manifest = json.loads((lake / "control/streams/s/year=2025/month=01/day=01/manifest.json").read_text())
    size: int = manifest["files"][0]["size_bytes"]
    return size


def test_verify_counts_a_bad_feed_file(run, filled, lake):
    (lake / "feeds/active/bad.json").write_text("{")
    result = run("verify")
    assert result.exit_code == 1
    assert result.stderr.startswith("skipped feeds/active/bad.json: ")


def test_repair_of_a_sound_lake_does_nothing(run, filled):
    assert run("repair").stdout == "2 feeds, nothing to repair\n"
    assert json.loads(run("repair", "s", "--json").stdout) == {
        "feeds": [{"feed": "s", "finished": 0, "undone": 0, "swept": 0, "waiting": []}],
        "dead_runs": [],
        "errors": [],
    }


@pytest.mark.parametrize("command", ["verify", "repair", "export --stream", "feeds show"])
def test_an_unknown_feed_is_named(run, lake, command):
    result = run(*command.split(), "nope")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: feed 'nope' does not exist; see 'datalake feeds list'\n"


def test_commands_that_need_nothing_of_dagster_do_not_wait_for_its_import(filled, tmp_path):
    """It takes seconds; there is no history of its own here yet that these could read or add to."""
    lines = [
        ["feeds", "list"],
        ["feeds", "list", "--json"],
        ["feeds", "show", "s"],
        ["report"],
        ["report", "--format", "html", "--output", "report.html"],
        ["sql", "select count(*) from s"],
        ["verify"],
        ["repair"],
        ["quarantine", "list"],
        ["quarantine", "show", "s"],
        ["compact", "s", "--dry-run"],
    ]
    program = f"""
import sys
from datalake_assets.cli.app import app
for line in {lines!r}:
    app(line, standalone_mode=False)
    if "dagster" in sys.modules:
        sys.exit(f"{{line}} imported Dagster")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, "")
