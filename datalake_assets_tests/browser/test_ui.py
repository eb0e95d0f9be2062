"""The web UI, seen: what a person sees of a lake in Dagster, and does there."""

from __future__ import annotations

import re
from datetime import timedelta

import dagster as dg
import pytest
from playwright.sync_api import Locator, Page, expect

from datalake_assets.defs.runs import PID_TAG
from datalake_assets.demo.demo_feeds import DEMO_FEED_NAMES, DEMO_MART_NAMES, DEMO_QUEUE_NAMES, demo_feeds
from datalake_assets.demo.demo_lake import DEMO_DAYS, demo_stand_in, read_demo
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.systems import connect
from datalake_assets_tests.browser.conftest import QUIET, WIDTH, Picture, visit
from datalake_assets_tests.browser.graphql import eventually
from datalake_assets_tests.browser.servers import RECORDS, DemoUI

# one server for all: they go to one worker, one after another
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

expect.set_options(timeout=60_000)
#: The daemon looks at backfills every 30 seconds, first to start their runs and then to end them.
_BACKFILL_S = 150.0
#: Of a partition that any environment's policy has compacted.
SMALL_FILES = 4
#: The feed that they are in, and the days of another one that are backfilled.
SMALL, BACKFILLED = "streams/user_events", range(3)


@pytest.fixture(scope="module")
def launched() -> dict[str, str]:
    """What one test launched and another looks at, half a minute later: Dagster's daemon takes its time."""
    return {}


def day(ui: DemoUI, number: int) -> str:
    """The key of a day of the demo's streams; the first is 0."""
    demo = read_demo(ui.store)
    assert demo
    return f"{demo.start + timedelta(days=number):%Y-%m-%d}"


def rows_in_lake(ui: DemoUI, name: str, key: str) -> int:
    report = open_table(ui.store, FeedRegistry(ui.store).get(name)).report(key)
    return report.rows if report else 0


def small_files(ui: DemoUI, name: str, key: str) -> int:
    report = open_table(ui.store, FeedRegistry(ui.store).get(name.removeprefix("streams/"))).report(key)
    return report.small_files if report else 0


def _wait_for_success(ui: DemoUI, page: Page, run_id: str) -> None:
    """Waits for a run's end without a page that follows it: drawing it takes as much CPU as the run."""
    visit(page, QUIET)
    eventually(lambda: ui.api.run_status(run_id) in {"SUCCESS", "FAILURE"}, f"run {run_id} ends")
    assert ui.api.run_status(run_id) == "SUCCESS"


def _check_that_the_worker_named_its_process(ui: DemoUI, run_id: str) -> None:
    """`defs.runs.dead_runs` relies on it: of a run that has not tagged itself yet, this is what is known."""
    (whole,) = [run["runId"] for run in ui.api.runs() if run["runId"].startswith(run_id)]
    with dg.DagsterInstance.from_config(ui.environment["DAGSTER_HOME"]) as instance:
        run = instance.get_run_by_id(whole)
    assert run
    assert ".dagster/grpc_info" in run.tags
    assert f"Started process for run (pid: {run.tags[PID_TAG]})." in ui.api.log(whole)


def choose_partitions(page: Page, partitions: str) -> Locator:
    """Opens the dialog of an asset's "Materialize", and chooses partitions; returns the dialog."""
    page.get_by_role("button", name=re.compile("Materialize…")).first.click()
    dialog = page.get_by_role("dialog")
    chosen = dialog.get_by_role("textbox").first
    chosen.fill(partitions)
    chosen.press("Enter")
    return dialog


def launch_backfill(ui: DemoUI, page: Page, picture: Picture) -> str:
    """Launches one of a range of days; its id."""
    visit(page, "/assets/streams/transaction_alerts")
    dialog = choose_partitions(page, f"[{day(ui, BACKFILLED[0])}...{day(ui, BACKFILLED[-1])}]")
    expect(dialog.get_by_role("button", name="Launch backfill")).to_be_enabled()
    picture("4-backfill-dialog")
    dialog.get_by_role("button", name="Launch backfill").click()
    return page.get_by_text(re.compile("Created backfill [a-z]+")).inner_text().split()[2]


def _serve_more(ui: DemoUI) -> None:
    served = read_demo(ui.store)
    assert served
    ui.serve_records((served.records or 0) + 15)


def _land(ui: DemoUI, name: str) -> None:
    """Exports what is new as `datalake export` does, without the start of a process and a run in Dagster."""
    feed = FeedRegistry(ui.store).get(name)
    table = open_table(ui.store, feed)
    plan = table.plan()
    with (
        demo_stand_in(load_settings(), ui.store, {feed.source.type}) as settings,
        connect(feed.source.type, settings) as source,
    ):
        table.write(source.read(feed, plan.request), partitions=plan.partitions, run_id="piece")


def turn_on_sensor(ui: DemoUI, page: Page, picture: Picture) -> None:
    """Exports a feed in small pieces, until its check is red, and turns the sensor on."""
    while small_files(ui, SMALL, day(ui, 2)) < SMALL_FILES - 1:
        _serve_more(ui)
        _land(ui, SMALL.removeprefix("streams/"))
    _serve_more(ui)
    ui.datalake("export", "--stream", SMALL.removeprefix("streams/"))
    assert small_files(ui, SMALL, day(ui, 2)) >= SMALL_FILES
    assert ui.api.checks(SMALL)["small_files"] is False
    visit(page, f"/assets/{SMALL}?view=checks&checkDetail=small_files")
    expect(page.get_by_text("Evaluation result")).to_be_visible()
    picture("6-small-files-before")
    visit(page, "/locations/datalake_assets/sensors/compaction_sensor")
    page.locator("label", has=page.get_by_role("checkbox")).first.click()  # the switch itself is not drawn


def test_asset_graph_shows_every_feed_in_its_group_with_its_kinds(ui: DemoUI, page: Page, picture: Picture):
    page.set_viewport_size({"width": 2 * WIDTH, "height": 4000})  # what does not fit is drawn without its details
    visit(page, "/asset-groups")
    groups = {feed.group for feed in demo_feeds(FeedRegistry(ui.store).get("user_events").start)}
    for group in groups:
        expect(page.get_by_text(group, exact=True).last).to_be_visible()

    page.keyboard.press("Alt+e")  # expands all groups
    page.wait_for_url("**expanded=**")
    expanded = page.url
    visit(page, QUIET)
    visit(page, expanded)  # which fits them to the window

    names = (*DEMO_FEED_NAMES, *DEMO_QUEUE_NAMES, *DEMO_MART_NAMES)
    for name in names:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.get_by_text("Parquet", exact=True)).to_have_count(len(names))
    expect(page.get_by_text("ksqldb", exact=True)).to_have_count(2 * len(DEMO_FEED_NAMES))  # of what they read, too
    picture("1-asset-graph")


def test_catalog_lists_every_feed_with_its_description(ui: DemoUI, page: Page, picture: Picture):
    page.set_viewport_size({"width": WIDTH, "height": 3000})  # what does not fit is not there
    visit(page, "/assets")

    for node in ui.api.assets().values():
        expect(page.get_by_text(node["description"][:40]).first).to_be_visible()
    expect(page.get_by_text(f"{DEMO_DAYS + 1} partitions").first).to_be_visible()
    expect(page.get_by_text("- partitions", exact=True)).to_have_count(0)  # not known yet
    picture("1-catalog")


def test_page_of_a_stream_shows_columns_and_plots_numbers(page: Page, picture: Picture):
    visit(page, "/assets/streams/transaction_stream")

    expect(page.get_by_text("Every card payment as it arrives")).to_be_visible()
    for column, kind in {"amount": "decimal128(18, 2)", "merchant": "struct<", "rowtime": "timestamp[ms"}.items():
        expect(page.get_by_text(column, exact=True).first).to_be_visible()
        expect(page.get_by_text(kind).first).to_be_visible()
    picture("2-stream-overview")

    page.get_by_role("button", name="Plots").click()

    for key in ("dagster/partition_row_count", "datalake/files", "datalake/small_files", "datalake/size_bytes"):
        expect(page.get_by_text(key, exact=True).first).to_be_visible()
    expect(page.locator("canvas").first).to_be_visible()
    picture("2-stream-plots")


def test_page_of_a_mart_shows_its_query_and_what_its_columns_are_made_of(page: Page, picture: Picture):
    visit(page, "/assets/marts/daily_payments")
    expect(page.get_by_text("how many of them a rule objected to").first).to_be_visible()
    expect(page.get_by_text("decimal128(18, 2)").first).to_be_visible()
    picture("2-mart-overview")

    page.get_by_text("datalake/made_of", exact=True).first.scroll_into_view_if_needed()
    expect(page.get_by_text("streams/transaction_stream.amount").first).to_be_visible()
    picture("2-mart-made-of")

    visit(page, "/assets/marts/daily_payments?view=lineage&lineageScope=upstream")
    for name in ("transaction_stream", "transaction_alerts"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def test_checks_of_a_stream_have_results(ui: DemoUI, page: Page, picture: Picture):
    results = ui.api.checks("streams/transaction_alerts")
    evaluated = {name for name, passed in results.items() if passed is not None}
    assert {"file_size", "freshness", "quarantine", "row_count", "schema", "small_files"} <= evaluated

    visit(page, "/assets/streams/transaction_alerts?view=checks")

    for name in sorted(evaluated):
        page.get_by_text(name, exact=True).first.click()
        expect(page.get_by_text("Evaluation result")).to_be_visible()
        expect(page.get_by_text("Passed" if results[name] else "Failed", exact=True).first).to_be_visible()
    picture("2-checks")


def test_backfill_of_a_range_is_launched(ui: DemoUI, page: Page, picture: Picture, launched: dict[str, str]):
    launched["backfill"] = launch_backfill(ui, page, picture)

    assert ui.api.backfill_status(launched["backfill"]) != ""


def test_sensor_is_turned_on_for_a_feed_of_small_files(
    ui: DemoUI, page: Page, picture: Picture, launched: dict[str, str]
):
    turn_on_sensor(ui, page, picture)
    launched["sensor"] = "on"

    eventually(lambda: ui.api.sensor("compaction_sensor")["status"] == "RUNNING", "the sensor is on")


def test_partition_is_materialized_by_hand(ui: DemoUI, page: Page, picture: Picture):
    ui.serve_records(RECORDS + 100)
    key = day(ui, 2)
    before = rows_in_lake(ui, "transaction_stream", key)
    visit(page, "/assets/streams/transaction_stream")

    dialog = choose_partitions(page, key)
    expect(dialog.get_by_role("button", name="Launch 1 run")).to_be_enabled()
    picture("3-materialize-dialog")
    dialog.get_by_role("button", name="Launch 1 run").click()

    launched = page.get_by_text(re.compile("Launched run [0-9a-f]{8}"))
    run_id = launched.inner_text().split()[2]
    page.get_by_role("button", name="View", exact=True).or_(page.get_by_role("link", name="View", exact=True)).click()
    page.wait_for_url(f"**/runs/{run_id}*")
    run_page = page.url
    _wait_for_success(ui, page, run_id)
    visit(page, run_page)
    _check_that_the_worker_named_its_process(ui, run_id)
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    picture("3-run")
    page.goto(f"/assets/streams/transaction_stream?view=partitions&partition={key}")
    after = rows_in_lake(ui, "transaction_stream", key)
    assert after > before
    expect(page.get_by_text("dagster/partition_row_count")).to_be_visible()
    expect(page.get_by_text(str(after), exact=True).first).to_be_visible()
    picture("3-partition")


def test_feed_added_by_command_appears_without_a_restart(ui: DemoUI, page: Page, picture: Picture):
    visit(page, "/assets")
    expect(page.get_by_text("Payments that a fraud rule objected to").first).to_be_visible()

    visit(page, QUIET)
    ui.datalake(
        *("feeds", "add", "--name", "payments_by_month", "--kind", "stream", "--object", "TRANSACTION_STREAM"),
        *("--partition-by", "month", "--start", day(ui, 0), "--group", "payments"),
        *("--description", "The payments once more, a partition per month."),
    )

    eventually(lambda: "streams/payments_by_month" in ui.api.assets(), "the new feed is an asset")
    page.goto("/assets")
    expect(page.get_by_text("The payments once more").first).to_be_visible()
    picture("5-feed-added")


def test_report_of_the_lake_shows_its_plots(ui: DemoUI, page: Page, picture: Picture):
    visit(page, "/assets/lake_report")
    page.get_by_role("button", name=re.compile("Materialize$")).first.click()

    launched = page.get_by_text(re.compile("Launched run [0-9a-f]{8}"))
    confirm = page.get_by_role("button", name="Confirm")  # asked for while a feed upstream was never exported
    launched.or_(confirm).first.wait_for()
    if confirm.is_visible():
        confirm.click()
    run_id = launched.inner_text().split()[2]
    _wait_for_success(ui, page, run_id)
    page.goto("/assets/lake_report")
    for plot in ("small_files_over_time", "file_sizes", "freshness", "monthly_cost"):
        expect(page.get_by_text(f"datalake/{plot}", exact=True).first).to_be_visible()
    shown = page.locator("img[src^='data:image/']")
    expect(shown.first).to_be_visible()
    drawn = "images => images.map(image => image.complete && image.naturalWidth > 0)"
    assert shown.evaluate_all(drawn) == [True] * 4
    picture("7-lake-report")
    page.get_by_role("button", name="Plots").click()
    expect(page.locator("canvas").first).to_be_visible()
    picture("7-lake-report-figures")


def test_backfill_completes_with_metadata_of_each_partition(
    ui: DemoUI, page: Page, picture: Picture, launched: dict[str, str]
):
    backfill = launched.get("backfill") or launch_backfill(ui, page, picture)
    keys = [day(ui, number) for number in BACKFILLED]
    done = {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "CANCELED"}

    eventually(lambda: ui.api.backfill_status(backfill) in done, f"backfill {backfill} ends", within_s=_BACKFILL_S)

    assert ui.api.backfill_status(backfill) == "COMPLETED_SUCCESS"
    page.goto(f"/runs/b/{backfill}?tab=overview")
    expect(page.get_by_text("100% completed")).to_be_visible()
    picture("4-backfill")
    (run,) = ui.api.runs(tags={"dagster/backfill": backfill})
    told = {
        each["partition"]: each["metadata"]["dagster/partition_row_count"]
        for each in ui.api.materializations("streams/transaction_alerts", keys)
        if each["runId"] == run["runId"]
    }
    assert told == {key: rows_in_lake(ui, "transaction_alerts", key) for key in keys}
    assert all(told.values())


def test_sensor_compacts_the_feed_within_two_ticks(ui: DemoUI, page: Page, picture: Picture, launched: dict[str, str]):
    if "sensor" not in launched:
        turn_on_sensor(ui, page, picture)
    compacted = {"datalake/feed": SMALL}

    eventually(lambda: ui.api.runs(tags=compacted, statuses=["SUCCESS", "FAILURE"]), "the feed is compacted")

    first = ui.api.runs(tags=compacted)[-1]
    ticks = ui.api.sensor("compaction_sensor")["ticks"][::-1]
    assert first["status"] == "SUCCESS"
    assert first["runId"] in [run_id for tick in ticks[:2] for run_id in tick["runIds"]]
    assert small_files(ui, SMALL, day(ui, 2)) == 1
    page.goto("/locations/datalake_assets/sensors/compaction_sensor")
    expect(page.get_by_text(re.compile("runs? requested")).first).to_be_visible()
    picture("6-sensor")
    eventually(lambda: ui.api.checks(SMALL)["small_files"], "the check is green")
    green = ui.api.checked(SMALL, "small_files")["SUCCEEDED"]
    assert any(first <= day(ui, 2) <= last for first, last in green)
    page.goto(f"/assets/{SMALL}?view=checks&checkDetail=small_files")
    expect(page.get_by_text("Passed").first).to_be_visible()
    picture("6-small-files-after")
    visit(page, f"/assets/{SMALL}")
    page.get_by_role("button", name="Plots").click()
    page.get_by_role("button", name="Events").click()
    expect(page.get_by_text("datalake/small_files", exact=True).first).to_be_visible()
    picture("6-plots-after")


def test_no_partition_is_red_for_what_another_one_was(ui: DemoUI):
    """After the compaction, the list of checks stays red: for today, which has no file at all."""
    assert "FAILED" not in ui.api.checked(SMALL, "small_files")


def test_checks_of_a_range_are_not_shown_as_skipped(ui: DemoUI):
    assert "SKIPPED" not in ui.api.checked("streams/transaction_alerts", "row_count")


def test_terminal_has_no_traceback_and_no_warning_but_of_dagsters_own_code(ui: DemoUI):
    text = ui.terminal.read_text()

    assert "Traceback (most recent call last)" not in text
    warnings = [line for line in text.splitlines() if re.search(r"Warning: | - \S*(WARNING|ERROR)", line)]
    assert [line for line in warnings if "/site-packages/dagster" not in line] == []
