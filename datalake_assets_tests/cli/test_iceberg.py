"""What ``docs/how-to/iceberg.md`` shows, run: its commands and its Python, in order, in one lake."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datalake_assets.demo.ksqldb_server.blocks import GeneratorConfig
from datalake_assets.demo.ksqldb_server.ksql_server import KsqlServer
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import table_feed, table_of
from datalake_assets_tests.lake.hive_tables import export

PAGE = Path(__file__).parents[2] / "docs/how-to/iceberg.md"
FIRST = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
ROWS = 250


@pytest.fixture
def _server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with KsqlServer(GeneratorConfig(start=FIRST, records=ROWS, events_per_day=100)) as server:
        monkeypatch.setenv("DATALAKE_KSQLDB_URL", server.url)
        monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else it wants a package that is faster
        yield


@pytest.mark.usefixtures("_server", "lake")
def test_how_to_does_what_it_says(run, registry):
    answers, names = {}, {}
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(block, names)  # noqa: S102  the page's own
        for line in block.splitlines() if not language else ():
            if line.startswith("datalake "):
                result = run(*shlex.split(line)[1:])
                assert (result.exit_code, result.stderr) == (0, ""), line
                answers[line] = result.stdout
            if line.startswith("datalake feeds add"):
                _is_done_soon(registry)
    names["catalog"].close()
    assert answers['datalake sql "select count(*) as n from events"'].split()[-1] == str(ROWS)
    assert names["rows"].num_rows == names["before"].num_rows == names["frame"].height == ROWS
    assert "streams/events" in answers["datalake report"]


def _is_done_soon(registry) -> None:
    """The embedded server has nothing more to say once it is silent."""
    feed = registry.get("events")
    source = feed.source.model_copy(update={"idle_s": 1.0})
    registry.update(feed.model_copy(update={"source": source}), expected_revision=feed.revision)


def test_format_is_one_of_two(run, lake):
    result = run("feeds", "add", "--name", "e", "--kind", "stream", "--object", "E", "--format", "delta")
    assert (result.exit_code, "'parquet', 'iceberg'" in result.stderr) == (2, True)


def test_a_database_with_a_password_in_its_url_is_refused(run, lake, monkeypatch):
    monkeypatch.setenv("DATALAKE_ICEBERG_CATALOG", "postgresql://me:secret@host/db")
    result = run("report")
    assert result.exit_code == 1
    assert "DATALAKE_ICEBERG_CATALOG: write a URL without a user and a password" in result.stderr
    assert "secret" not in result.stderr


def test_a_conversion_says_what_it_did_and_where_the_old_form_is(run, lake, lake_store, registry):
    export(open_table(lake_store, registry.add(table_feed())), table_of(3))
    assert run("feeds", "convert", "t").exit_code == 2
    assert "is kept as parquet already" in run("feeds", "convert", "t", "--to", "parquet").stderr
    done = run("feeds", "convert", "t", "--to", "iceberg")
    assert (done.exit_code, done.stdout.splitlines()) == (
        0,
        [
            "converted tables/t to iceberg: 1 partitions, 3 rows",
            "the parquet form stays in tables/t until 'datalake feeds convert t --drop-old'",
        ],
    )
    assert '"former": {' in run("feeds", "show", "t").stdout
    assert run("sql", "select count(*) from t").stdout.split()[-1] == "3"
    assert "former form holds them too" in run("delete", "t", "--where", "id = 1", "--yes").stdout
    assert "dropped the former form of tables/t" in run("feeds", "convert", "t", "--drop-old").stdout
    assert "nothing is kept" in run("feeds", "convert", "t", "--drop-old").stderr
