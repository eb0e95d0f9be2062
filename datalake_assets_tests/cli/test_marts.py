"""Marts by command, as their how-to says."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from datalake_assets_tests.cli.conftest import Run

QUERY = "SELECT item, sum(amount)::BIGINT AS total FROM sales GROUP BY ALL"


@pytest.fixture
def drop(tmp_path: Path, lake: Path, run: Run) -> Path:
    """A lake with a stream of dropped files, in which there is one."""
    folder = tmp_path / "drop"
    folder.mkdir()
    (folder / "a.csv").write_text("item,amount,at\n1,10,2026-01-01T00:00:00Z\n1,5,2026-01-02T00:00:00Z\n")
    document = {
        "name": "sales",
        "kind": "stream",
        "time_column": "at",
        "source": {"type": "files", "location": str(folder), "min_age_s": 0, "columns": {"at": "timestamptz"}},
    }
    (tmp_path / "sales.json").write_text(json.dumps(document))
    assert run("feeds", "add", "--file", "sales.json").exit_code == 0
    return folder


def exported(run: Run, *arguments: str) -> dict[str, tuple[int, int]]:
    result = run("export", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return {each["feed"]: (each["rows"], each["new_rows"]) for each in json.loads(result.stdout)["feeds"]}


@pytest.mark.slow
def test_marts_are_added_made_after_what_they_read_and_kept_as_feeds_are(run: Run, drop: Path, lake: Path) -> None:
    added = run("feeds", "add", "--name", "by_day", "--kind", "stream", "--source", "mart", "--query", QUERY)
    assert (added.exit_code, added.stdout) == (0, f"added marts/by_day, from {QUERY[:58]} …\n")
    whole = {
        "name": "all_time",
        "kind": "table",
        "source": {"type": "mart", "query": "SELECT sum(total) t FROM by_day"},
    }
    Path("whole.json").write_text(json.dumps(whole))
    assert run("feeds", "add", "--file", "whole.json").exit_code == 0

    assert exported(run, "--all") == {"sales": (2, 2), "by_day": (2, 2), "all_time": (1, 1)}
    (drop / "b.csv").write_text("item,amount,at\n2,7,2026-01-02T00:00:00Z\n")
    assert exported(run, "--all") == {"sales": (3, 1), "by_day": (3, 1), "all_time": (1, 0)}
    assert exported(run, "--mart", "by_day", "--range", "2026-01-01..2026-01-02") == {"by_day": (3, 0)}

    asked = run("sql", "SELECT day, item, total FROM by_day ORDER BY ALL", "--json")
    assert [tuple(row.values()) for row in json.loads(asked.stdout)] == [(1, 1, 10), (2, 1, 5), (2, 2, 7)]
    read = ds.dataset(lake / "marts" / "by_day", partitioning="hive").to_table().to_pylist()
    assert sorted((row["day"], row["item"], row["total"]) for row in read) == [(1, 1, 10), (2, 1, 5), (2, 2, 7)]
    assert run("verify", "--deep").stdout == "3 feeds, no differences\n"
    assert "marts/by_day" in run("report").stdout
    assert run("compact", "by_day", "--force").exit_code == 0
    assert run("feeds", "archive", "all_time").stdout.startswith("archived marts/all_time;")
    assert run("feeds", "remove", "all_time", "--yes").exit_code == 0
    assert not [path for path in (lake / "marts" / "all_time").rglob("*") if path.is_file()]


def test_what_cannot_be_a_mart_is_refused_in_one_line(run: Run, drop: Path) -> None:
    described = ("feeds", "add", "--name", "m", "--kind", "stream", "--source", "mart", "--query")
    for query, reason in (
        ("SELECT * FROM nothing", "source.query: there is no feed 'nothing' in this lake"),
        ("SELECT * FROM m", "source.query: it reads 'm', which is the mart itself"),
        ("DELETE FROM sales", "source.query: give one SELECT; nothing else is run here"),
        ("SELECT * FROM read_text('/etc/passwd')", "source.query: table function 'read_text' is not offered here"),
    ):
        result = run(*described, query)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert result.stderr.startswith(f"Error: feed 'm' is invalid: {reason}"), result.stderr
    assert run("export", "--mart", "sales").stderr == (
        "Error: feed 'sales' is a stream; export it with --stream sales\n"
    )
    assert run(*described, "SELECT 1 AS one FROM sales").exit_code == 0
