"""A lake that an earlier release wrote opens, grows, is compacted, verified and reported on as one written today.

``lake_at_4ebcf7b.tar.xz`` was made by that commit: ``datalake demo --records`` 60, 180, 300 and 420, with
``transaction_stream`` compacted in between. What is expected stands here as that release reported it.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from datalake_assets_tests.cli.conftest import Run

ARCHIVE = Path(__file__).parents[1] / "lake" / "data" / "lake_at_4ebcf7b.tar.xz"
STREAMS = {"transaction_alerts": 420, "transaction_flattened": 420, "transaction_stream": 420, "user_events": 420}
TABLES = {"account_balances": 405, "fraud_scores": 395, "merchant_summary": 238, "user_transaction_summary": 392}


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    folder = tmp_path / "lake"
    with tarfile.open(ARCHIVE) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4; Debian 12 has 3.11.2
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)  # noqa: S202  of our own
    return folder


def _counts(run: Run) -> dict[str, int]:
    query = " union all ".join(f"select '{name}' as name, count(*) as n from {name}" for name in STREAMS | TABLES)  # noqa: S608  names of ours
    rows = json.loads(run("sql", query, "--json").stdout)
    return {row["name"]: row["n"] for row in rows}


def test_old_lake_reads_as_it_was_reported_by_the_release_that_wrote_it(lake, run):
    assert _counts(run) == STREAMS | TABLES
    rows = list(csv.DictReader(io.StringIO(run("report", "--format", "csv").stdout)))
    current = [row for row in rows if row["is_current_version"] != "false"]
    assert sum(int(row["rows"]) for row in current) == sum((STREAMS | TABLES).values())
    compacted = [row for row in rows if row["feed"] == "transaction_stream"]
    assert [(row["partition"], row["files"], row["compactions"]) for row in compacted] == [
        ("2026-10-31", "1", "1"),
        ("2026-11-01", "1", "1"),
    ]


def test_old_lake_is_verified_without_a_difference(lake, run):
    result = run("verify", "--deep")
    assert result.exit_code == 0, result.output


def test_old_lake_is_compacted_to_the_same_rows(lake, run):
    folder = lake / "streams" / "user_events"
    before = pd.read_parquet(folder).sort_values(["rowtime", "event_id"], ignore_index=True)
    result = run("compact", "user_events", "--force")
    assert result.exit_code == 0, result.output
    assert len(list(folder.rglob("*.parquet"))) == 2
    after = pd.read_parquet(folder).sort_values(["rowtime", "event_id"], ignore_index=True)
    pd.testing.assert_frame_equal(before, after)
    assert run("verify", "user_events", "--deep").exit_code == 0


@pytest.mark.slow
def test_old_lake_lands_what_is_new_and_nothing_twice(lake, run):
    again = json.loads(run("export", "--stream", "transaction_stream", "--json").stdout)
    assert [feed["new_rows"] for feed in again["feeds"]] == [0]
    result = run("demo", "--records", "500", "--json")
    assert result.exit_code == 0, result.output
    counts = _counts(run)
    assert {name: counts[name] for name in STREAMS} == dict.fromkeys(STREAMS, 500)
    assert run("verify", "--deep").exit_code == 0


@pytest.mark.slow
def test_version_that_is_there_already_adds_no_rows_and_says_so(lake, run):
    result = run("export", "--table", "fraud_scores", "--partition", "v2")
    assert result.exit_code == 0, result.output
    assert result.stderr == "fraud_scores: version v2 was committed before and is kept as it is\n"
    assert result.stdout.splitlines()[-1].split()[:3] == ["tables/fraud_scores", "177", "0"]
