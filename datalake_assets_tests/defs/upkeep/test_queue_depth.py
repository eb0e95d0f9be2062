"""The sensor of a queue launches exports, plots the depth and fails a check; on a real server and a real lake."""

from __future__ import annotations

import dagster as dg
import pytest

from datalake_assets.core.batches import Backlog
from datalake_assets.core.verdicts import depth_band, queue_depth_verdict
from datalake_assets.defs.build import build_definitions
from datalake_assets.defs.feeds.runner import export_feed
from datalake_assets.defs.metadata import asset_key
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.policies import Checks, Level, Limits
from datalake_assets.settings import load_settings
from datalake_assets_tests.sources.sqs.conftest import bodies, feed_of, landed

pytestmark = pytest.mark.xdist_group("sqs")


@pytest.mark.parametrize(
    ("waiting", "band", "level"),
    [
        (0, "perfect", Level.OK),
        (1, "normal", Level.OK),
        (50, "normal", Level.OK),
        (51, "attention", Level.WARN),
        (100, "attention", Level.WARN),
        (101, "problem", Level.ERROR),
    ],
)
def test_depths_have_bands(waiting, band, level):
    limits = Checks().queue_depth
    verdict = queue_depth_verdict(Backlog(waiting, 2, 3), limits)
    assert (depth_band(Backlog(waiting), limits), verdict.level) == (band, level)
    assert verdict.figures == {"queue_depth": waiting, "in_flight": 2, "delayed": 3}
    assert bool(verdict.lines) == (level is not Level.OK)
    assert level is Level.OK or "batch_records" in verdict.lines[0]


@pytest.fixture
def queue(sqs_server, monkeypatch):
    for name, value in sqs_server.environment().items():
        monkeypatch.setenv(name, value)
    return sqs_server.queue()


def look(definitions, instance, cursor=None):
    (sensor,) = [each for each in definitions.sensors if each.name == "queue_depth_sensor_trades"]
    with dg.build_sensor_context(instance, cursor=cursor, definitions=definitions) as context:
        return sensor.evaluate_tick(context)


def test_sensor_launches_plots_and_alerts(queue, tmp_path):
    feed = feed_of(queue, feed={"checks": {"queue_depth": Limits(warn=2, error=4)}})
    store = open_store(str(tmp_path))
    FeedRegistry(store).add(feed)
    settings = load_settings(lake=str(tmp_path))
    definitions = build_definitions(settings)
    queue.send(bodies(range(5)))

    with dg.DagsterInstance.ephemeral() as instance:
        first = look(definitions, instance)
        (request,) = first.run_requests
        observation, evaluation = first.asset_events
        assert observation.metadata["datalake/queue_depth"].value == 5
        assert observation.metadata["datalake/queue_band"].value == "problem"
        assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.ERROR)
        assert "5 messages wait, more than 4: problem" in evaluation.description

        again = look(definitions, instance, first.cursor)
        assert again.asset_events == []
        job = definitions.resolve_implicit_global_asset_job_def()
        waiting = instance.create_run_for_job(job, asset_selection={asset_key(feed)}, tags=request.tags)
        assert look(definitions, instance, first.cursor).run_requests == []
        instance.delete_run(waiting.run_id)

        result = export_feed(settings, feed.name, instance=instance)
        assert (result.error, result.rows_added, result.checks) == (None, 5, ())
        history = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(asset_key(feed), "queue_depth"), limit=1
        )
        evaluated = history[0].event.dagster_event.asset_check_evaluation_data
        assert (evaluated.passed, evaluated.metadata["datalake/queue_depth"].value) == (True, 0)
        after = look(definitions, instance, first.cursor)

    assert sorted(landed(store, feed)) == list(range(5))
    assert after.run_requests == []
    observation, evaluation = after.asset_events
    assert observation.metadata["datalake/queue_band"].value == "perfect"
    assert evaluation.passed


def test_sensor_skips_while_the_queue_cannot_be_asked(queue, tmp_path, monkeypatch):
    FeedRegistry(open_store(str(tmp_path))).add(feed_of(queue))
    monkeypatch.setenv("DATALAKE_SQS_ENDPOINT", "http://127.0.0.1:9")
    definitions = build_definitions(load_settings(lake=str(tmp_path)))
    with dg.DagsterInstance.ephemeral() as instance:
        skipped = look(definitions, instance)
    assert skipped.run_requests == []
    assert "cannot be reached" in skipped.skip_message
