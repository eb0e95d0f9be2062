"""The asset `lake_report` shows the figures of the lake, and is refreshed when they may have changed, not oftener."""

import base64
import re
import warnings
import xml.etree.ElementTree as ET
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.report.findings import build_report
from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.compaction.job import COMPACT_PARTITION
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.upkeep.report_asset import (
    LAKE_REPORT,
    PAGE_KEY,
    RefreshSensor,
    lake_report_asset,
    lake_report_sensor,
)
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.statistics import lake_statistics
from datalake_assets.policies import Freshness
from datalake_assets.report.thumbnails import INLINE_CHARACTERS
from datalake_assets_tests.defs.fakes import days_ago, resources, stream, table
from datalake_assets_tests.defs.sent import RECENT, Sent, exporter, key


@pytest.fixture
def sent() -> Sent:
    return Sent({"clicks": [days_ago(2), days_ago(1), days_ago(0)], "users": [days_ago(0)] * 2})


@pytest.fixture
def feeds(lake, sent):
    """A stream that was exported twice, and a table, in a lake of files."""
    runner = exporter(lake, sent, stream(**RECENT), table())
    for feed in runner.feeds.values():
        runner.lake.registry.add(feed)
    return runner


def materialized(runner, instance) -> dg.AssetMaterialization:
    definitions = dg.Definitions.merge(
        runner.definitions, dg.Definitions(assets=[lake_report_asset(lake_uri=runner.lake.uri)])
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"InitResourceContext\.dagster_run is deprecated", DeprecationWarning)
        result = job.execute_in_process(instance=instance, asset_selection=[LAKE_REPORT])
    (event,) = result.asset_materializations_for_node("lake_report")
    return event


def values(event: dg.AssetMaterialization) -> dict[str, object]:
    return {name.removeprefix("datalake/"): value.value for name, value in event.metadata.items()}


def test_figures_are_those_of_the_lake_and_plot(feeds, lake, instance):
    for name in ("clicks", "users"):
        assert feeds.export(instance, name, quiet=True).error is None

    event = materialized(feeds, instance)

    statistics = lake_statistics(lake.store, list(feeds.feeds.values()), CompactionRequest())
    report = build_report(statistics, lake=lake.uri, at=lake.store.now())
    shown = values(event)
    expected = {
        "feeds": 2,
        "feeds_needing_attention": 0,
        "partitions": 4,
        "rows": 5,
        "files": 4,
        "small_files": 4,
        "files_after_compaction": 4,
        "size_bytes": report.size_bytes,
        "rows_in_quarantine": 0,
        "monthly_cost_usd": pytest.approx(report.cost.dollars, abs=1e-6),
        "monthly_cost_after_usd": pytest.approx(report.cost_after.dollars, abs=1e-6),
    }
    assert {name: shown[name] for name in expected} == expected
    assert all(
        isinstance(event.metadata[f"datalake/{name}"], (dg.IntMetadataValue, dg.FloatMetadataValue))
        for name in expected
    )
    assert shown["verdicts"] == "- 2 feeds with nothing to do"
    rows = [line.split(" | ") for line in shown["report"].splitlines()[2:4]]
    assert [row[:4] for row in rows] == [["| streams/clicks", "3", "3 → 3", "3"], ["| tables/users", "2", "1 → 1", "1"]]


def images(markdown: str) -> list[tuple[str, ET.Element]]:
    found = re.findall(r"!\[([^]]*)\]\(data:image/svg\+xml;base64,([^)]*)\)", markdown)
    return [(alt, ET.fromstring(base64.b64decode(body))) for alt, body in found]  # noqa: S314  made here


def test_plots_are_images_that_show_at_once_and_large_ones_in_words_too(feeds, instance):
    feeds.export(instance, "clicks", quiet=True)

    shown = values(materialized(feeds, instance))

    for name in ("small_files_over_time", "file_sizes", "monthly_cost"):
        ((_, image),) = images(shown[name])
        assert image.tag.endswith("svg")
        assert len(shown[name]) < INLINE_CHARACTERS
    large = images(shown["report"])
    assert len(large) == 3
    assert all(f"\n\n{alt}." in shown["report"] for alt, _ in large)
    assert "freshness" not in shown  # no feed has a limit


def test_verdicts_name_what_is_to_be_done_as_far_as_it_shows_at_once(lake, sent, instance):
    late = {"freshness": Freshness(max_event_age=timedelta(hours=1)), **RECENT}
    runner = exporter(lake, sent, *(stream(f"{'x' * 100}{number}", **late) for number in range(8)))
    for feed in runner.feeds.values():
        runner.lake.registry.add(feed)
        sent.rows[feed.name] = [days_ago(1)]
        runner.export(instance, feed.name, quiet=True)

    lines = values(materialized(runner, instance))["verdicts"].splitlines()

    assert re.fullmatch(r"- `streams/x{100}0` the newest row is \d.* old, the feed allows 60 min", lines[0])
    assert lines[-1] == f"- and {8 - len(lines) + 1} more that need attention"
    assert 2 < len(lines) < 8


def test_the_page_lies_in_the_lake(feeds, lake, instance):
    feeds.export(instance, "clicks", quiet=True)

    event = materialized(feeds, instance)

    page = Path(str(event.metadata["dagster/uri"].value))
    assert page == Path(lake.uri) / PAGE_KEY
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "streams/clicks" in page.read_text()


def test_an_empty_lake_has_a_report(lake, instance):
    event = materialized(exporter(lake, Sent()), instance)

    assert values(event)["files"] == 0
    assert values(event)["verdicts"] == "There are no feeds yet."
    assert "The lake has no data yet" in (Path(lake.uri) / PAGE_KEY).read_text()


def test_damage_is_logged_and_reported(feeds, lake, instance):
    feeds.export(instance, "clicks", quiet=True)
    manifest = next(
        info.key for info in lake.store.list("control/streams/clicks") if info.key.endswith("manifest.json")
    )
    (Path(lake.uri) / manifest).write_text("{")

    event = materialized(feeds, instance)

    assert values(event)["feeds_needing_attention"] == 1
    assert "1 manifest cannot be read" in values(event)["verdicts"]
    logged = [entry.user_message for entry in instance.all_logs(instance.get_runs(limit=1)[0].run_id)]
    assert any(line.startswith("left out streams/clicks") for line in logged)


def tick(sensor: RefreshSensor, instance, cursor=None, *, now=1e9):
    return sensor.tick(instance, cursor, now=now)


def test_sensor_asks_for_one_report_after_exports_and_is_quiet_until_the_next(feeds, instance):
    sensor = RefreshSensor([asset_key(feed) for feed in feeds.feeds.values()], at_most_every_s=600)
    assert tick(sensor, instance).skip_reason.skip_message == "nothing has changed since the last lake_report"
    for name in ("clicks", "users"):
        feeds.export(instance, name, quiet=True)

    first = tick(sensor, instance)
    quiet = tick(sensor, instance, first.cursor, now=1e9 + 60)
    materialized(feeds, instance)
    still_quiet = tick(sensor, instance, quiet.cursor, now=1e9 + 6000)

    assert len(first.run_requests) == 1
    assert not quiet.run_requests
    assert not still_quiet.run_requests  # its own materialization is none of a feed


def test_sensor_reports_what_came_meanwhile_once_the_time_is_over(feeds, instance):
    sensor = RefreshSensor([asset_key(feed) for feed in feeds.feeds.values()], at_most_every_s=600)
    feeds.export(instance, "clicks", quiet=True)
    first = tick(sensor, instance)
    feeds.export(instance, "users", quiet=True)

    early = tick(sensor, instance, first.cursor, now=1e9 + 100)
    late = tick(sensor, instance, early.cursor, now=1e9 + 600)

    assert early.skip_reason.skip_message == "the next lake_report is due in 500 s"
    assert len(late.run_requests) == 1
    assert late.run_requests[0].run_key != first.run_requests[0].run_key


def test_sensor_reports_a_large_lake_less_often(feeds, instance):
    sensor = RefreshSensor([asset_key(feed) for feed in feeds.feeds.values()], at_most_every_s=600)
    feeds.export(instance, "clicks", quiet=True)
    first = tick(sensor, instance)
    figures = {"datalake/partitions": 10_000}
    instance.report_runless_asset_event(dg.AssetMaterialization(LAKE_REPORT, metadata=figures))
    feeds.export(instance, "users", quiet=True)

    assert (
        tick(sensor, instance, first.cursor, now=1e9 + 600).skip_reason.skip_message
        == "the next lake_report is due in 3000 s"
    )
    assert len(tick(sensor, instance, first.cursor, now=1e9 + 3600).run_requests) == 1


def test_sensor_reports_after_a_compaction(feeds, lake, instance):
    sensor = RefreshSensor([], at_most_every_s=600)
    feeds.export(instance, "clicks", quiet=True)
    assert not tick(sensor, instance).run_requests
    definitions = build_definitions(lake.settings, lake=feeds.lake, resources=resources(lake))
    config = {"ops": {"compact": {"config": {"feed": "clicks", "partitions": [key(0)]}}}}

    done = definitions.resolve_job_def(COMPACT_PARTITION).execute_in_process(config, instance=instance)

    assert done.success
    assert len(tick(sensor, instance).run_requests) == 1


def test_sensor_begins_anew_with_a_cursor_that_it_cannot_read(feeds, instance):
    sensor = RefreshSensor([asset_key(feed) for feed in feeds.feeds.values()], at_most_every_s=600)
    feeds.export(instance, "clicks", quiet=True)

    assert [len(tick(sensor, instance, cursor).run_requests) for cursor in ("?", "[]", "")] == [1, 1, 1]


def test_sensor_runs_the_asset_of_the_location(feeds, lake, home):
    feeds.export(home, "clicks", quiet=True)
    definitions = build_definitions(lake.settings, lake=feeds.lake, resources=resources(lake))
    repository = definitions.get_repository_def()
    sensor = repository.get_sensor_def("lake_report_sensor")

    context = dg.build_sensor_context(instance=home, repository_def=repository)
    (request,) = sensor.evaluate_tick(context).run_requests

    assert request.asset_selection == [LAKE_REPORT]
    assert lake_report_sensor([]).default_status is dg.DefaultSensorStatus.RUNNING


def test_manifests_of_reported_partitions_stay_as_they_are(feeds, lake, instance):
    feeds.export(instance, "clicks", quiet=True)
    folder = FeedFolder(lake.store, stream(**RECENT))
    before = {each: folder.log(each).load() for each in folder.partition_keys()}

    materialized(feeds, instance)

    assert {each: folder.log(each).load() for each in folder.partition_keys()} == before


def test_dagsters_ui_shows_short_markdown_at_once_and_images_in_it():
    """What the thumbnails rely on, as the web application of this release has it."""
    dagster_webserver = pytest.importorskip("dagster_webserver")
    chunks = Path(dagster_webserver.__file__).parent.glob("webapp/build/_next/static/chunks/**/*.js")
    code = [
        text for text in (file.read_text(errors="ignore") for file in chunks) if "mdStr" in text or "rehype" in text
    ]

    assert INLINE_CHARACTERS == 1000
    assert any(re.search(r'"MarkdownMetadataEntry":return \w+&&\w+\.mdStr\.length<1e3\?', text) for text in code)
    assert any(re.search(r'protocols:\{src:\[[^]]*\[\],"data"\]', text) for text in code)
