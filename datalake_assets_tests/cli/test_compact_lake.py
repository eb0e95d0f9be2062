"""`datalake compact` on a lake of files: fifty small ones become three, with the same rows."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.defs.runtime import open_instance
from datalake_assets.feed import Feed
from datalake_assets.lake import event_queue
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.cli.told import dagster_told
from datalake_assets_tests.lake.feeds import stream_feed, table_feed, table_of
from datalake_assets_tests.lake.many_files import DAYS, append, ids_in

TIMES = 17


@pytest.fixture
def feed(lake_store: Store, registry: FeedRegistry) -> Feed:
    """The stream ``s``: three days of 17 files of a row each."""
    added = registry.add(stream_feed())
    append(lake_store, added, times=TIMES)
    return added


def _tree(lake: Path) -> dict[str, str]:
    files = (path for path in lake.rglob("*") if path.is_file())
    return {str(path): blake2b(path.read_bytes()).hexdigest() for path in files}


def _files(lake: Path, day: int) -> list[Path]:
    return sorted(lake.glob(f"streams/s/year=2025/month=01/day={day:02}/*"))


def test_compact_makes_few_files_of_many_with_the_same_rows(run, feed, lake, lake_store):
    result = run("compact", "s")

    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split(",")[0] for line in result.stdout.splitlines()[:4]] == [
        *(f"streams/s {day}: files 17 -> 1" for day in DAYS),
        "streams/s: 3 of 3 partitions compacted",
    ]
    assert [len(_files(lake, day)) for day in (1, 2, 3)] == [1, 1, 1]
    assert ids_in(lake_store, feed) == list(range(3 * TIMES))
    assert pq.read_table(lake / "streams/s").num_rows == 3 * TIMES
    assert run("verify", "--deep").stdout == "1 feeds, no differences\n"
    assert run("report", "--json").stdout.count('"files": 1,') == 3


def test_compact_again_does_nothing_and_later_files_are_merged_in(run, feed, lake, lake_store):
    run("compact", "s")
    before = _tree(lake)
    again = run("compact", "s")
    assert again.stdout.startswith("streams/s: nothing to compact in 3 partitions; 3 files: ")
    assert len(again.stdout.splitlines()) == 1
    assert _tree(lake) == before

    append(lake_store, feed, times=2, start=TIMES)
    document = json.loads(run("compact", "s", "--json", "--partition", DAYS[0]).stdout)

    assert (document["files_before"], document["files_after"], document["files_removed"]) == (3, 1, 2)
    assert ids_in(lake_store, feed) == list(range(3 * TIMES + 6))


def test_json_and_the_lake_agree(run, feed, lake):
    sizes = [path.stat().st_size for path in _files(lake, 2)]

    document = json.loads(run("compact", "s", "--json", "--partition", DAYS[1]).stdout)

    (after,) = _files(lake, 2)
    assert document["bytes_before"] == sum(sizes)
    assert document["bytes_after"] == after.stat().st_size
    assert document["bytes_saved"] == sum(sizes) - after.stat().st_size
    assert (document["files_compacted"], document["rows"], document["kernel"]) == (TIMES, TIMES, "reencode")
    assert document["compaction_time_ms"] > 0


def test_dry_run_changes_nothing(run, feed, lake):
    before = _tree(lake)

    result = run("compact", "s", "--dry-run")

    assert (result.exit_code, result.stderr) == (0, "")
    assert "streams/s: 3 of 3 partitions to compact, files 51 -> 3," in result.stdout
    assert _tree(lake) == before
    assert not (lake.parent / "dagster").exists()


def test_a_file_that_cannot_be_read_is_named_and_left_where_it_is(run, feed, lake, lake_store):
    bad = _files(lake, 1)[7]
    bad.write_bytes(b"x" * bad.stat().st_size)

    result = run("compact", "s", "--partition", DAYS[0])

    assert result.exit_code == 1
    named, left = result.stderr.splitlines()
    assert named.startswith(f"streams/s 2025-01-01: {bad.name}: ")
    assert left == "Error: streams/s: 1 file was due and was not merged: it is named above"
    assert "files 17 -> 2," in result.stdout
    assert bad in _files(lake, 1)


def test_versions_of_a_table_are_its_partitions(run, registry, lake_store):
    snapshots = HiveTable(lake_store, registry.add(table_feed()))
    for count in (3, 4):
        snapshots.write(table_of(count), partitions=snapshots.plan().partitions, run_id="r")

    result = run("compact", "t")
    missing = run("compact", "t", "--partition", "v9")

    assert result.stdout == "tables/t: nothing to compact in 2 partitions; 2 files: no other file to merge it with\n"
    assert missing.stderr == "Error: feed 't' has no partition 'v9'; it has 2, from 'v1' to 'v2'\n"


def test_a_partition_that_cannot_be_is_one_line(run, feed):
    result = run("compact", "s", "--partition", "yesterday")

    line = "Error: 'yesterday' is not a partition by day; write it like '2025-01-15'\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


def test_an_unreadable_manifest_stops_no_other_partition(run, feed, lake):
    (lake / "control/streams/s/year=2025/month=01/day=02/manifest.json").write_text("{")

    result = run("compact", "s")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: streams/s 2025-01-02: ")
    assert len(result.stderr.splitlines()) == 1
    assert "streams/s: 2 of 3 partitions compacted, files 34 -> 2," in result.stdout


def test_dagster_has_an_observation_that_agrees_with_the_lake(run, feed, lake):
    run("compact", "s", "--partition", DAYS[0])

    with dagster_told(lake) as instance:
        (record,) = instance.fetch_observations(dg.AssetKey(["streams", "s"]), limit=10).records
        assert instance.fetch_materializations(dg.AssetKey(["streams", "s"]), limit=10).records == []
    observed = {name: value.value for name, value in record.asset_observation.metadata.items()}
    assert record.partition_key == DAYS[0]
    assert (observed["datalake/files"], observed["datalake/files_removed"]) == (1, TIMES - 1)
    assert observed["dagster/partition_row_count"] == TIMES
    assert observed["datalake/size_bytes"] == _files(lake, 1)[0].stat().st_size


def test_dagster_is_not_imported_where_it_keeps_no_history(feed, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME")
    program = """
import sys
from datalake_assets.cli.app import app
app(["compact", "s"], standalone_mode=False)
print(*(name for name in ("dagster", "dagster_aws") if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)

    assert "3 of 3 partitions compacted" in done.stdout
    assert done.stderr == "\n"
    assert not Path(".dagster").exists()


def test_dagster_is_not_imported_to_be_told(feed, lake):
    """Importing it, and opening its history, took ten times the CPU time of the compaction."""
    program = """
import sys
from datalake_assets.cli.app import app
app(["compact", "s"], standalone_mode=False)
print(*(name for name in ("dagster", "sqlalchemy") if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    assert done.stderr == "\n"
    assert len(list((lake / "control/events").iterdir())) == 1


def test_dagster_is_told_at_once_where_nobody_fetches_what_waits(run, feed, lake, monkeypatch):
    run("compact", "s", "--partition", DAYS[0])
    with open_instance() as instance:
        assert instance.fetch_observations(dg.AssetKey(["streams", "s"]), limit=10).records == []
        monkeypatch.setattr(event_queue, "MOST_WAITING", 1)
        assert run("compact", "s", "--partition", DAYS[1]).stderr == ""
        records = instance.fetch_observations(dg.AssetKey(["streams", "s"]), limit=10).records
    assert sorted(record.partition_key for record in records) == list(DAYS[:2])
    assert not list((lake / "control/events").iterdir())


def test_dagster_is_told_by_default_where_it_was_set_up_before(run, feed, lake, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")
    (tmp_path / ".dagster").mkdir()
    (tmp_path / ".dagster/dagster.yaml").write_text("telemetry: {enabled: false}\n")

    assert run("compact", "s", "--partition", DAYS[0]).stderr == ""

    with dagster_told(lake) as instance:
        assert len(instance.fetch_observations(dg.AssetKey(["streams", "s"]), limit=10).records) == 1


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_then_the_lines(feed):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "datalake_assets.cli", "compact", "s"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(theirs)
        output = process.communicate(timeout=180)[0].decode()
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # Linux: the other end is closed
        pass
    os.close(ours)

    assert len(output.splitlines()) == 4
    assert "streams/s" in shown.decode()
    assert "partition 1 of 3" in shown.decode()
    assert "files 17 -> 1" not in shown.decode()


def test_compact_plans_and_reads_a_merged_partition_a_few_times_only(run, feed, lake_store, counted):
    counted.clear()

    assert run("compact", "s").exit_code == 0

    assert set(counted.loads.values()) == {2}  # to begin with the worst, and to merge
    assert counted.plans == 3 * len(DAYS)


def test_compact_of_an_adopted_folder_reads_each_manifest_twice(run, lake_store, tmp_path, counted):
    for number in range(34):
        target = tmp_path / "raw" / f"region={number % 2}" / f"{number}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [number]}), target)
    assert run("adopt", str(tmp_path / "raw"), "--name", "clicks").stderr == ""
    counted.clear()

    assert "2 of 2 partitions compacted" in run("compact", "clicks").stdout

    assert set(counted.loads.values()) == {2}  # to take over what others changed: of all, and of each before its merge
    assert counted.plans == 3 * 2
