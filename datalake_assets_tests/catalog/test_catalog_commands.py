"""`datalake catalog`, as its how-to shows it."""

from __future__ import annotations

import json

import duckdb
import pytest
from click.testing import CliRunner

from datalake_assets.cli.app import app
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets_tests.catalog.catalog_contract import land
from datalake_assets_tests.lake.feeds import stream_feed


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A lake with a stream, the one that commands use when not told."""
    (tmp_path / "lake").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    found = open_store(str(tmp_path / "lake"))
    land(found, FeedRegistry(found).add(stream_feed()), 1, 30)
    return found


def run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["catalog", *arguments], prog_name="datalake")
    assert result.exit_code == exit_code, result.output
    return result.output


def test_feeds_and_views_are_entered_and_views_can_be_removed(store):
    query = "SELECT id FROM s WHERE month = '01' AND day = '02' -- the second"
    assert "revision 1" in run("add-view", "second_of_january", query)
    assert "revision 1" in run("add-view", "second_of_january", query)

    told = json.loads(run("sync", "--json"))

    assert [(each["name"], each["state"]) for each in told] == [("s", "created"), ("second_of_january", "created")]
    with duckdb.connect(store.path("lake.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT * FROM second_of_january").fetchall() == [(30,)]
    assert "second_of_january" in run("views")
    run("remove-view", "second_of_january")
    assert "stale" in run("sync")
    assert "dropped" in run("sync", "--prune")
    assert run("views") == "there are no views\n"


def test_a_document_that_is_no_view_keeps_no_feed_and_no_other_view_from_being_entered(store):
    for name in ("good", "late"):
        run("add-view", name, "SELECT id FROM s")
    run("sync")
    _, etag = store.get("views/late.json")
    store.swap("views/late.json", b"{", etag=etag)
    land(store, FeedRegistry(store).add(stream_feed(name="t")), 1, 30)

    told = json.loads(run("sync", "--prune", "--json", exit_code=1))

    states = {each["name"]: each["state"] for each in told}
    assert states == {"s": "current", "t": "created", "good": "current", "late": "failed"}
    with duckdb.connect(store.path("lake.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM late").fetchall() == [(2,)]


def test_printed_views_run_in_duckdb_as_they_are(store):
    run("add-view", "late", "SELECT id FROM s WHERE day = '02' -- a comment")

    with duckdb.connect() as connection:
        connection.execute(run("ddl", "--dialect", "duckdb"))
        assert connection.execute("SELECT * FROM late").fetchall() == [(30,)]


def test_printed_statements_name_what_is_left_out(store):
    FeedRegistry(store).add(stream_feed(name="empty"))

    lines = run("ddl", "--dialect", "athena").splitlines()

    assert lines[0] == "CREATE DATABASE IF NOT EXISTS `datalake`;"
    assert lines[1].startswith("CREATE EXTERNAL TABLE IF NOT EXISTS `datalake`.`s` (`id` bigint, `note` string,")
    assert lines[2].startswith("ALTER TABLE `datalake`.`s` ADD IF NOT EXISTS PARTITION (`year` = '2025'")
    assert lines[3] == "-- streams/empty is left out: it has no data yet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add-view", "s", "SELECT 1"), "a feed is named 's'"),
        (("add-view", "v", "SELECT * FROM nobody"), "nobody"),
        (("add-view", "v", "DROP TABLE s"), "give one SELECT"),
        (("add-view", "v", "SELECT 1 AS a, 2 AS A"), "several columns"),
        (("remove-view", "v"), "there is no view 'v'"),
        (("sync", "--to", "glue"), "Athena reads no local folder"),
        (("sync", "--to", "hve"), "there is no catalog 'hve'"),
    ],
)
def test_what_cannot_be_is_said_on_one_line(store, arguments, message):
    output = run(*arguments, exit_code=1)

    assert message in output
    assert len(output.splitlines()) == 1


def test_view_that_hides_a_feed_is_refused_by_name(store):
    run("add-view", "v", "WITH s AS (SELECT 1 AS a) SELECT a FROM s")

    assert "WITH s hides the feed" in run("ddl", exit_code=1)


def test_view_that_athena_lacks_is_refused_by_name(store):
    run("add-view", "counts", "SELECT day, count(*) AS n FROM s GROUP BY ALL")

    assert "name the columns of GROUP BY ALL" in run("ddl", "--dialect", "athena", exit_code=1)
    assert "GROUP BY ALL" in run("ddl", "--dialect", "spark")
