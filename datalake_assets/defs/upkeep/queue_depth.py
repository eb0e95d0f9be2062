"""Sensors that look at the queues which feeds are read from: they launch exports, plot the depth, and raise the alarm.

There is one per feed: a sensor's runs have to be of assets with the same partitions.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager

import dagster as dg

from datalake_assets.core.batches import Backlog
from datalake_assets.core.verdicts import QUEUE_DEPTH, depth_band, queue_depth_verdict
from datalake_assets.defs.metadata import asset_key, check_evaluation
from datalake_assets.defs.runs import UNFINISHED
from datalake_assets.defs.runtime import cursor_state
from datalake_assets.errors import ConfigError, DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.sources.base import HasBacklog, SourceSystem

__all__ = ["Connect", "is_running", "queue_depth_sensor"]

#: Seconds between two looks.
INTERVAL_S = 30
#: Runs in progress that are looked through for one of the feed.
_MOST_RUNS = 500

#: Connects to a system by its type.
Connect = Callable[[str], AbstractContextManager[SourceSystem]]


def queue_depth_sensor(
    feed: Feed, connect: Connect, next_run: Callable[[dg.DagsterInstance], dg.RunRequest]
) -> dg.SensorDefinition:
    """The sensor of a feed whose source can tell what waits.

    Args:
        feed: The feed.
        connect: Connects to its source.
        next_run: The run that catches it up.
    """

    @dg.sensor(
        name=f"queue_depth_sensor_{feed.name}",
        target=dg.AssetSelection.assets(asset_key(feed)),
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            f"Looks at {feed.exported_from.where}: launches an export of {feed.path} if messages wait, plots how many,"
            " and fails the check queue_depth if they are too many."
        ),
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            with connect(feed.source.type) as source:
                backlog = _asked(source, feed)
        except DatalakeError as error:
            context.log.warning(str(error))
            return dg.SkipReason(str(error))
        requests = [] if not backlog.waiting or is_running(context.instance, feed) else [next_run(context.instance)]
        return _looked(context, feed, backlog, requests)

    return look


def _asked(source: SourceSystem, feed: Feed) -> Backlog:
    if not isinstance(source, HasBacklog):
        raise ConfigError(f"feed {feed.name!r}: source {feed.source.type} cannot tell what waits")
    return source.backlog(feed)


def is_running(instance: dg.DagsterInstance, feed: Feed) -> bool:
    """Whether a run of the feed is under way or waits: another one would wait for it."""
    runs = instance.get_runs(
        filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED, *UNFINISHED]), limit=_MOST_RUNS
    )
    return any(asset_key(feed) in (run.asset_selection or ()) for run in runs)


def _looked(
    context: dg.SensorEvaluationContext, feed: Feed, backlog: Backlog, requests: list[dg.RunRequest]
) -> dg.SensorResult:
    """Reports a depth that is another than the last one, and a check that changed; the cursor knows both."""
    known = cursor_state(context.cursor)
    verdict, key = queue_depth_verdict(backlog, feed.checks.queue_depth), asset_key(feed)
    band = depth_band(backlog, feed.checks.queue_depth)
    events: list[dg.AssetObservation | dg.AssetCheckEvaluation] = []
    if known.get("depth") != backlog.waiting:
        figures = {f"datalake/{name}": dg.MetadataValue.int(int(value)) for name, value in verdict.figures.items()}
        text = dg.MetadataValue.text(band)
        events.append(dg.AssetObservation(key, metadata={**figures, "datalake/queue_band": text}))
    if known.get("level", "ok") != verdict.level.value:
        events.append(check_evaluation(QUEUE_DEPTH, verdict, asset_key=key))
        for line in verdict.lines:
            context.log.warning("%s: %s", feed.path, line)
    cursor = json.dumps({"depth": backlog.waiting, "level": verdict.level.value})
    skip = None if requests else f"{backlog.waiting:,} messages wait: {band}"
    return dg.SensorResult(run_requests=requests, asset_events=events, cursor=cursor, skip_reason=skip)
