"""A queue from the command line: found, added, checked, landed through Dagster, and asked."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from datalake_assets_tests.sources.sqs.conftest import bodies

pytestmark = pytest.mark.xdist_group("sqs")
FIELDS = ("--field", "n=long not null", "--field", "price=decimal(10,2)")


@pytest.fixture
def server(sqs_server, monkeypatch):
    for name, value in sqs_server.environment().items():
        monkeypatch.setenv(name, value)
    return sqs_server


def test_a_queue_is_added_checked_landed_and_asked(run, lake, server, registry):
    queue = server.queue()
    queue.send([*bodies(range(20)), "not JSON"])
    options = ("--source", "sqs", "--queue", queue.name, *FIELDS, "--partition-by", "month", "--max-receives", "1")
    added = run("feeds", "add", "--name", "trades", "--kind", "stream", *options, "--rename", "price=paid")
    assert (added.exit_code, added.stdout) == (0, f"added streams/trades, from {queue.name}\n"), added.stderr
    assert registry.get("trades").source.fields == {"n": "long not null", "price": "decimal(10,2)"}
    assert run("feeds", "check").stdout == "trades: ok\n"
    metrics = run("report", "--format", "prometheus").stdout
    assert re.search(r'^datalake_queue_depth\{.*feed="trades".*\} 21\.0$', metrics, re.MULTILINE)

    result = run("export", "--stream", "trades", "--ignore-checks", "--json")

    assert result.exit_code == 0, result.stderr
    (feed,) = json.loads(result.stdout)["feeds"]
    assert (feed["new_rows"], feed["quarantined"], feed["partitions"]) == (20, 1, 1)
    asked = run("sql", "select sum(paid) as paid, count(distinct message_id) as n from trades", "--json")
    assert json.loads(asked.stdout) == [{"paid": "200.00", "n": 20}]
    assert "it is not a JSON object" in run("quarantine", "show", "trades").stdout
    assert run("verify", "--deep").exit_code == 0
    assert "messages" in run("feeds", "list").stdout
    assert queue.left == (0, 0)


def test_all_queues_of_a_region_are_added_with_their_bodies_as_they_are(run, lake, server, registry):
    queue = server.queue()
    result = run("feeds", "add", "--from-sqs")
    assert result.exit_code == 0, result.stderr
    assert f"added streams/{queue.name}, from {queue.name}\n" in result.stdout
    assert registry.get(queue.name).source.fields == {}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--queue", "q", "--field", "n=number"), "there is no type 'number'"),
        (("--queue", "no queue"), "source.queue"),
        (("--queue", "q", "--batch-records", "0"), "source.batch_records"),
        (("--queue", "q", "--kind", "table"), "a table cannot have a source of type 'sqs'"),
        ((), "missing --queue"),
    ],
)
def test_what_cannot_be_a_feed_of_a_queue_is_refused(run, lake, options, reason):
    result = run("feeds", "add", "--name", "q", "--kind", "stream", "--source", "sqs", *options)
    assert result.exit_code in (1, 2)
    assert reason in result.stderr


def test_a_queue_that_is_not_there_is_named(run, lake, server):
    run("feeds", "add", "--name", "q", "--kind", "stream", "--source", "sqs", "--queue", "nothere")
    result = run("feeds", "check")
    assert result.exit_code == 1
    assert "queue 'nothere': there is no such queue" in result.stderr
    run("feeds", "add", "--name", "z", "--kind", "stream", "--source", "sqs", "--queue", server.queue().name)
    result = run("report", "--format", "prometheus")
    assert result.exit_code == 0
    assert "queue depth is left out: queue 'nothere'" in result.stderr
    (depth,) = (line for line in result.stdout.splitlines() if line.startswith("datalake_queue_depth{"))
    assert '"z"' in depth


def test_the_how_to_leads_from_a_queue_to_an_answer(run, lake, server):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "queues.md"
    block = re.findall(r"^```\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)[0]
    queue = server.queue(name="form4")
    filing = {"accession_number": "1", "ticker": "ACME", "transaction_code": "P", "shares": 100, "price": 1.25}
    queue.send([{**filing, "filed_at": "2026-11-02T10:00:00-05:00", "footnotes": ["a"]}])
    for command in block.replace("\\\n", " ").splitlines():
        result = run(*shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}: {result.stderr}"
    assert "ACME" in result.stdout
    assert "125.00" in result.stdout
    assert len(list(lake.rglob("streams/insider_trades/year=2026/month=11/*.parquet"))) == 1
    assert queue.left == (0, 0)
