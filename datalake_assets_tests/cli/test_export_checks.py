"""`datalake export` where rows were landed and a check of theirs failed: named, counted, and exit code 3."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

import pytest

from datalake_assets.demo.demo_feeds import demo_feeds
from datalake_assets.demo.demo_lake import demo_stand_in, prepare_demo
from datalake_assets.policies import Checks, Limits, RangeRule
from datalake_assets.settings import load_settings

NAME = "transaction_flattened"


@pytest.fixture
def exported(run, lake_store, registry, monkeypatch) -> Iterator:
    """Exports a stream of 200 rows under a rule that all of its rows break."""
    demo = prepare_demo(lake_store, 200)
    feed = next(feed for feed in demo_feeds(demo.start) if feed.name == NAME)
    with demo_stand_in(load_settings(lake=lake_store.uri), lake_store, {"ksqldb"}) as served:
        monkeypatch.setenv("DATALAKE_KSQLDB_URL", served.ksqldb_url or "")

        def export(*arguments: str, limits: Limits, blocking: bool = False):
            rule = RangeRule(name="tiny", column="amount", max=-1, limits=limits)
            checks = Checks(rules=(rule,), blocking=("tiny",) if blocking else ())
            registry.add(feed.model_copy(update={"checks": checks}))
            return run("export", "--stream", NAME, *arguments)

        yield export


ERROR, WARN = Limits(error=0), Limits(warn=0)


@pytest.mark.parametrize("blocking", [False, True])
def test_failed_check_is_told_and_exits_3(exported, blocking):
    result = exported(limits=ERROR, blocking=blocking)

    assert f"{NAME}: check tiny failed: " in result.stderr
    assert result.exit_code == 3
    head, _, row = [line for line in result.stdout.splitlines() if line][-3:]
    assert head.split()[-1] == "checks"
    assert "1 failed" in row


def test_failed_check_is_in_the_document(exported):
    result = exported("--json", limits=ERROR)

    (feed,) = json.loads(result.stdout)["feeds"]
    tiny = [check for check in feed["checks"] if check["check"] == "tiny"]
    assert {check["level"] for check in tiny} == {"error"}
    assert all("rows break it" in check["what"] for check in tiny)
    assert (result.exit_code, feed["error"], feed["new_rows"]) == (3, None, 200)


def test_failed_check_can_be_ignored(exported):
    assert exported("--ignore-checks", limits=ERROR).exit_code == 0


def test_check_that_warns_is_told_and_exits_0(exported):
    result = exported(limits=WARN)

    assert f"{NAME}: check tiny warns: " in result.stderr
    assert "1 warn" in result.stdout or "2 warn" in result.stdout
    assert result.exit_code == 0


def test_report_shows_a_failed_check_in_every_format(exported, run):
    exported(limits=ERROR)

    console = run("report").stdout
    assert f"streams/{NAME}: check tiny failed: " in console
    assert "healthy" not in console
    (feed,) = json.loads(run("report", "--json").stdout)["feeds"]
    assert feed["level"] == "error"
    assert {(each["check"], each["level"]) for each in feed["failed_checks"]} == {("tiny", "error")}
    lines = list(csv.DictReader(io.StringIO(run("report", "--format", "csv").stdout)))
    assert lines
    assert {line["failed_checks"] for line in lines} == {"tiny"}
    page = run("report", "--format", "html").stdout
    assert "1 of 1 feed needs attention." in page
    assert "Checks that did not pass" in page
    assert "rows break it" in page


def test_report_holds_without_a_history_that_can_be_read(exported, run, monkeypatch, tmp_path):
    exported(limits=ERROR)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "dagster.yaml").write_text("no: [such")
    monkeypatch.setenv("DAGSTER_HOME", str(broken))

    result = run("report", "--json")

    assert result.exit_code == 0
    assert result.stderr.startswith(f"checks are left out: DAGSTER_HOME {broken} cannot be used: ")
    assert json.loads(result.stdout)["feeds"][0]["failed_checks"] is None
