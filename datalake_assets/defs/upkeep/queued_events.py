"""Shows in Dagster what commands did without it: a sensor reports the events that they left in the lake.

Each event is reported once. Who reports one claims it, and takes it out of the queue afterwards; where that process
died in between, the next one asks Dagster's log which of it are there.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import msgspec

from datalake_assets.core.compaction.compaction_report import CompactionReport
from datalake_assets.core.facts import Deletion, PartitionFacts, WriteReport
from datalake_assets.core.schema import schema_from_json
from datalake_assets.defs.checks.at_rest import size_evaluations
from datalake_assets.defs.checks.on_write import evaluations_now
from datalake_assets.defs.compaction.job import observation
from datalake_assets.defs.metadata import (
    asset_key,
    deletion_metadata,
    event_partition,
    feed_metadata,
    partition_metadata,
    totals_metadata,
)
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runtime import isolated, known_dagster_warnings_ignored
from datalake_assets.errors import DatalakeError, FeedNotFound
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.event_queue import EventKind, EventQueue, QueuedEvent

__all__ = ["EVENT", "QUEUED_EVENTS_SENSOR", "Reported", "queued_events_sensor", "report_queued"]

logger = logging.getLogger(__name__)

QUEUED_EVENTS_SENSOR = "queued_events_sensor"
INTERVAL_S = 30
#: A tick ends before Dagster takes it for one that hangs (its limit: 60 seconds).
BUDGET_S = 20.0
#: On every event of a command: what tells it apart from all others.
EVENT = "datalake/event"
#: On every event of a command: when it happened. Dagster's own time is that of the report.
EVENT_AT = "datalake/event_at"
#: A partition's newest events that are searched for one that may have been reported: others are reported meanwhile.
RECENT = 100

_Event = dg.AssetMaterialization | dg.AssetObservation
#: A tick that Dagster gave up may still be at it.
_reporting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Reported:
    """What became of queued events.

    Attributes:
        events: Queued events that Dagster has now.
        dropped: Those whose feed is gone.
        problems: Why others wait on, a line each.
    """

    events: int = 0
    dropped: int = 0
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For the log of a tick."""
        parts = [f"{self.events:,} reported" if self.events else "", f"{self.dropped:,} dropped: their feed is gone"]
        said = [each for each in (parts[0], parts[1] if self.dropped else "", *self.problems) if each]
        return "; ".join(said) or "no events wait"


def queued_events_sensor(lake: Lake) -> dg.SensorDefinition:
    """Reports what commands left in the lake for Dagster."""

    @dg.sensor(
        name=QUEUED_EVENTS_SENSOR,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Shows what 'datalake run', 'compact', 'delete', 'feeds convert' and 'quarantine replay' did.",
    )
    def fetch(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return dg.SkipReason(report_queued(lake, context.instance).text)

    return fetch


def report_queued(lake: Lake, instance: dg.DagsterInstance, *, budget_s: float = BUDGET_S) -> Reported:
    """Reports the events that wait, the oldest first, as far as the budget goes; others wait for the next time.

    An event whose feed is no longer active is dropped: there is no asset to show it at.
    """
    if not _reporting.acquire(blocking=False):
        return Reported(problems=("an earlier look still reports",))
    try:
        return _reported(lake, instance, until=time.monotonic() + budget_s)
    finally:
        _reporting.release()


def _reported(lake: Lake, instance: dg.DagsterInstance, *, until: float) -> Reported:
    queue, events, dropped = EventQueue(lake.store), 0, 0
    problems: list[str] = []
    try:
        waiting = queue.waiting()
    except DatalakeError as error:  # a command that asked for it has done its own work
        return Reported(problems=(str(error),))
    for key in waiting:
        if time.monotonic() > until:
            break
        with isolated(problems.append, about=key):  # the others can be reported
            queued = queue.claim(key)
            if queued is None:
                continue
            try:
                _report(lake, instance, queued)
                events += 1
            except FeedNotFound:
                dropped += 1
            queue.forget(key)
    return Reported(events, dropped, tuple(problems))


def _report(lake: Lake, instance: dg.DagsterInstance, queued: QueuedEvent) -> None:
    feed = lake.registry.get(queued.feed)
    with known_dagster_warnings_ignored():
        for number, event in enumerate(_EVENTS[queued.kind](lake, feed, queued.body)):
            marked = _marked(event, f"{queued.id}/{number}", queued)
            if not (queued.may_be_reported and _is_there(instance, marked)):
                instance.report_runless_asset_event(marked)
        evaluations: list[dg.AssetCheckEvaluation] = []
        # another partition may be damaged, which is no reason to keep what happened to this one waiting
        with isolated(logger.warning, about=f"{feed.path}: checks could not be evaluated"):
            evaluations += _evaluated(lake, instance, feed, queued)
        for evaluation in evaluations:
            instance.report_runless_asset_event(evaluation)


def _evaluated(
    lake: Lake, instance: dg.DagsterInstance, feed: Feed, queued: QueuedEvent
) -> Iterator[dg.AssetCheckEvaluation]:
    """What checks say after it; that is a state: to say it again changes nothing."""
    if queued.kind == "landing":
        yield from evaluations_now(instance, lake, feed, _written(queued.body), rules=False)
    if queued.kind == "compaction":
        healths = [each.health for each in _compactions(queued.body)]
        # of partitions only within a run: without one, the second of the same partition breaks SQLite storage
        yield from size_evaluations(instance, lake, feed, healths, each_partition=False)


def _marked(event: _Event, mark: str, queued: QueuedEvent) -> _Event:
    marked: dict[str, Any] = {EVENT: dg.MetadataValue.text(mark), EVENT_AT: dg.MetadataValue.timestamp(queued.at)}
    return event.with_metadata({**event.metadata, **marked})


def _is_there(instance: dg.DagsterInstance, event: _Event) -> bool:
    wanted = dg.AssetRecordsFilter(
        asset_key=event.asset_key, asset_partitions=None if event.partition is None else [event.partition]
    )
    is_made = isinstance(event, dg.AssetMaterialization)
    fetch = instance.fetch_materializations if is_made else instance.fetch_observations
    for record in fetch(wanted, limit=RECENT).records:
        there = record.asset_materialization or record.asset_observation
        if there is not None and there.metadata.get(EVENT) == event.metadata[EVENT]:
            return True
    return False


def _compactions(body: Any) -> list[CompactionReport]:
    return msgspec.convert(body, list[CompactionReport])


def _compacted(lake: Lake, feed: Feed, body: Any) -> Iterator[_Event]:
    for each in _compactions(body):
        yield observation(feed, each, lake_uri=lake.uri)


def _replayed(lake: Lake, feed: Feed, body: Any) -> Iterator[_Event]:
    """Partitions that received rows outside of a run: from quarantine."""
    totals, schema = totals_metadata(feed, lake.table(feed).totals()), schema_from_json(body["schema"])
    for each in msgspec.convert(body["partitions"], list[PartitionFacts]):
        metadata = partition_metadata(feed, each, lake_uri=lake.uri, schema=schema) | totals
        yield dg.AssetMaterialization(asset_key(feed), partition=each.key, metadata=metadata)


def _written(body: Any) -> WriteReport:
    """What `datalake run` landed, as far as its event says."""
    return WriteReport(
        tuple(msgspec.convert(body["partitions"], list[PartitionFacts])),
        rows_read=body["rows_read"],
        rows_quarantined=body["rows_quarantined"],
        rows_known=0,
        schema=schema_from_json(body["schema"]),
        requests={},
    )


def _landed(lake: Lake, feed: Feed, body: Any) -> Iterator[_Event]:
    """Partitions that `datalake run` landed rows in, in some batches."""
    figures: dict[str, dg.MetadataValue] = {
        f"datalake/{name}": dg.MetadataValue.int(body[name]) for name in ("rows_read", "rows_quarantined", "batches")
    }
    for event in _replayed(lake, feed, body):
        yield event.with_metadata({**event.metadata, **figures})


def _deleted(lake: Lake, feed: Feed, body: Any) -> Iterator[_Event]:
    """Partitions that lost rows outside of a run, so that what is made of them is out of date.

    A table's versions are observed: a past one that was materialized last would look like the present one.
    """
    make = dg.AssetObservation if feed.kind is FeedKind.TABLE else dg.AssetMaterialization
    totals = totals_metadata(feed, lake.table(feed).totals())
    for each in msgspec.convert(body, list[Deletion]):
        metadata = deletion_metadata(feed, each, lake_uri=lake.uri) | totals
        text = f"{each.rows_deleted:,} of {each.rows:,} rows deleted"
        yield make(asset_key(feed), partition=event_partition(feed, each.key), metadata=metadata, description=text)


def _converted(lake: Lake, feed: Feed, body: Any) -> Iterator[_Event]:
    """What a feed is kept as from now on; its rows are the same, and nothing is out of date for it."""
    kept_as: dict[str, dg.MetadataValue] = {"datalake/format": dg.MetadataValue.text(body["to"])}
    kept_as["dagster/uri"] = feed_metadata(feed, lake_uri=lake.uri)["dagster/uri"]
    totals = totals_metadata(feed, lake.table(feed).totals())
    text = f"converted to {body['to']}: {body['partitions']:,} partitions, {body['rows']:,} rows"
    yield dg.AssetObservation(asset_key(feed), metadata=kept_as | totals, description=text)


#: What each kind of queued event means in Dagster, by its body.
_EVENTS: Mapping[EventKind, Callable[[Lake, Feed, Any], Iterator[_Event]]] = {
    "compaction": _compacted,
    "deletion": _deleted,
    "conversion": _converted,
    "replay": _replayed,
    "landing": _landed,
}
