"""`datalake quarantine`: exact lines, documents and exit codes, on what an export put aside."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of

FIRST = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=6)
ROWS, A_DAY = 250, 100


@pytest.fixture
def feed(registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    """A stream whose rows of the first two days lie before its start."""
    source = {"type": "ksqldb", "object": "USER_EVENTS", "idle_s": 1}
    document = {"name": "events", "kind": "stream", "source": source, "start": str((FIRST + timedelta(2)).date())}
    with KsqlServer(GeneratorConfig(start=FIRST, records=ROWS, events_per_day=A_DAY)) as server:
        monkeypatch.setenv("DATALAKE_KSQLDB_URL", server.url)
        yield registry.add(parse_feed(json.dumps(document)))


def lowered(registry, feed: Feed) -> Feed:
    return registry.update(feed.model_copy(update={"start": FIRST.date()}), expected_revision=1)


def test_rows_are_counted_shown_and_landed_once_the_start_is_lowered(run, lake_store, registry, feed):
    run("export", "--stream", "events", "--json")
    before = HiveTable(lake_store, feed).scan().read_all().num_rows

    (found,) = json.loads(run("quarantine", "list", "--json").stdout)["quarantine"]
    assert (found["feed"], found["rows"] + before) == ("events", ROWS)
    assert found["reason"] == "rowtime lies before the feed's start"
    assert "rowtime lies before the feed's start" in run("quarantine", "list").stdout

    shown = json.loads(run("quarantine", "show", "events", "--limit", "3", "--json").stdout)
    assert (shown["rows"], len(shown["shown"])) == (found["rows"], 3)
    assert f"and {found['rows'] - 3:,} more" in run("quarantine", "show", "events", "--limit", "3").stdout

    kept = run("quarantine", "replay", "events")
    assert kept.exit_code == 1
    assert kept.stderr == f"{found['rows']:,} rows stay: rowtime lies before the feed's start\n"

    lowered(registry, feed)
    landed = run("quarantine", "replay", "events", "--json")
    assert landed.exit_code == 0
    assert json.loads(landed.stdout)["landed"] == found["rows"]
    assert HiveTable(lake_store, feed).scan().read_all().num_rows == ROWS
    assert run("quarantine", "replay", "events").stdout == "nothing of events is in quarantine\n"
    assert run("quarantine", "show", "events").stdout == "nothing of events is in quarantine\n"
    assert run("quarantine", "list").stdout == "1 feeds, nothing in quarantine\n"
    assert run("verify", "--deep").exit_code == 0

    again = json.loads(run("export", "--stream", "events", "--json").stdout)["feeds"][0]
    assert (again["new_rows"], again["rows"]) == (0, ROWS)


def test_rows_that_were_landed_in_part_are_listed_and_shown_as_they_came(run, lake_store, registry):
    feed = registry.add(stream_feed(schema_policy="discard_value"))
    table = HiveTable(lake_store, feed)
    wider = numbered([1, 2])
    extra = wider.rows.append_column("extra", pa.array([None, "kept\x1b[31m"]))
    for batch in (numbered([0]), dataclasses.replace(wider, rows=extra)):
        table.write(stream_of(batch), partitions=table.plan().partitions, run_id="run")

    assert run("quarantine", "list").stdout == "1 feeds, nothing in quarantine\n"
    assert run("quarantine", "show", "s").stdout == "nothing of s is in quarantine\n"
    (found,) = json.loads(run("quarantine", "list", "--discarded", "--json").stdout)["discarded"]
    assert (found["feed"], found["rows"]) == ("s", 1)
    assert found["reason"] == "column 'extra' is not in the feed's schema"
    assert found["reason"] in run("quarantine", "list", "--discarded").stdout
    shown = json.loads(run("quarantine", "show", "s", "--discarded", "--json").stdout)
    (row,) = shown["shown"]
    assert (shown["rows"], row["position"], row["partition"]) == (1, "0:2", "year=2025/month=01/day=01")
    assert json.loads(row["raw"])["extra"] == "kept\x1b[31m"
    plain = run("quarantine", "show", "s", "--discarded").stdout
    assert "0:2" in plain
    assert "\x1b" not in plain
    assert run("verify", "--deep").exit_code == 0


def test_nothing_that_was_discarded_is_one_line(run, registry):
    registry.add(stream_feed(schema_policy="discard_row"))
    assert run("quarantine", "list", "--discarded").stdout == "1 feeds, nothing discarded\n"
    assert run("quarantine", "show", "s", "--discarded").stdout == "nothing of s was discarded\n"


def test_replay_of_a_table_says_how_its_rows_come(run, registry):
    source = {"type": "ksqldb", "object": "T"}
    registry.add(parse_feed(json.dumps({"name": "t", "kind": "table", "source": source})))
    result = run("quarantine", "replay", "t")
    assert result.exit_code == 1
    assert "once it is mended, 'datalake export --table t' lands them" in result.stderr


def test_replay_of_no_feed_is_one_line(run, lake):
    result = run("quarantine", "replay", "nobody")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
