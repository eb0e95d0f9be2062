"""A database from the command line, as the how-to shows it: added, checked, landed through Dagster, and asked."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from pathlib import Path

import pytest

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "databases.md"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setenv("DATALAKE_SQL_URL", f"sqlite:///{tmp_path / 'shop.db'}")
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.executescript(
        """CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE orders (id INTEGER PRIMARY KEY, ordered_at TIMESTAMP, amount DECIMAL(10, 2));
        INSERT INTO customers VALUES (1, 'Ada'), (2, 'Zoë');
        INSERT INTO orders VALUES (1, '2025-01-01 10:00:00', 1.10), (2, '2025-01-02', 2.20);"""
    )
    yield connection
    connection.close()


def test_the_how_to_does_what_it_says(run, lake, shop):
    blocks = re.findall(r"<!-- tested: how-to -->\n```\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    assert len(blocks) == 2
    said = ""
    for line in "".join(blocks).splitlines():
        result = run(*shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)
        said += result.stdout
    assert "added tables/customers, from default:customers" in said
    assert "orders: ok" in said
    assert re.search(r"2\s+3\.30", said)

    shop.execute("INSERT INTO orders VALUES (3, '2025-01-02', 0.05)")
    shop.commit()
    exported = run("export", "--all", "--ignore-checks", "--json")
    assert {each["feed"]: each["new_rows"] for each in json.loads(exported.stdout)["feeds"]} == {
        "customers": 0,
        "orders": 1,
    }
    assert run("verify", "--deep").exit_code == 0
    assert "by id" in run("feeds", "list").stdout


def test_all_tables_of_a_database_are_added(run, lake, shop, registry):
    result = run("feeds", "add", "--from-sql")
    assert result.exit_code == 0, result.stderr
    assert [each.path for each in registry.list().feeds] == ["tables/customers", "tables/orders"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "name one of object and query"),
        (("--object", "t", "--column-type", "x=number"), "'number' is no type"),
        (("--object", "t", "--lag", "soon"), "source.lag"),
    ],
)
def test_what_no_export_could_do_is_refused_when_it_is_added(run, lake, shop, options, reason):
    result = run("feeds", "add", "--name", "x", "--kind", "stream", "--source", "sql", *options)
    assert result.exit_code == 1
    assert reason in result.stderr


def test_a_database_that_no_setting_has_is_named(run, lake):
    run("feeds", "add", "--name", "x", "--kind", "table", "--source", "sql", "--object", "shop:t")
    assert "no database 'shop' is set; set DATALAKE_SQL_DATABASES" in run("feeds", "check", "x").stderr
