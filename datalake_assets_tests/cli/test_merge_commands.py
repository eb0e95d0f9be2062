"""A feed that is merged, by its commands: from an embedded ksqlDB into the lake, and what the lake's SQL says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer

FIRST = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)


@pytest.fixture
def _server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with KsqlServer(GeneratorConfig(start=FIRST, records=250, events_per_day=100)) as server:
        monkeypatch.setenv("DATALAKE_KSQLDB_URL", server.url)
        yield


def document(name: str, **changes: object) -> str:
    source = {"type": "ksqldb", "object": "USER_EVENTS", "idle_s": 1}
    start = f"{FIRST:%Y-%m-%d}"
    return json.dumps({"name": name, "kind": "stream", "source": source, "start": start, **changes})


@pytest.mark.slow
@pytest.mark.usefixtures("_server", "lake")
def test_merged_feed_has_the_newest_row_of_each_key(run):
    merged = {"write": "merge", "key": ["user_id"], "merge": {"order_by": "event_id"}}
    assert run("feeds", "add", "--file", "-", input=document("events")).exit_code == 0
    assert run("feeds", "add", "--file", "-", input=document("newest", **merged)).exit_code == 0
    wrong = document("wrong", write="merge", key=["user"])
    assert run("feeds", "add", "--file", "-", input=wrong).exit_code == 0
    checked = run("feeds", "check", "wrong")
    assert (checked.exit_code, "there is no column 'user'; there are" in checked.stderr) == (1, True)
    for name in ("events", "newest"):
        result = run("export", "--stream", name)
        assert (result.exit_code, result.stderr) == (0, ""), name
    query = """
        SELECT count(*) AS keys, count(*) FILTER (newest.event_id = wanted.event_id) AS same,
               (SELECT count(*) FROM newest) AS rows
        FROM (SELECT user_id, max(event_id) AS event_id FROM events GROUP BY user_id) AS wanted
        LEFT JOIN newest USING (user_id)
    """
    answer = run("sql", query, "--format", "json")
    assert (answer.exit_code, answer.stderr) == (0, "")
    (found,) = json.loads(answer.stdout)
    assert 1 < found["keys"] == found["same"] == found["rows"] < 250
    assert run("verify", "newest").exit_code == 0
    replayed = run("quarantine", "replay", "newest")
    assert (replayed.exit_code, "merges changes by key" in replayed.stderr) == (1, True)
