"""The job that sends rows on to the sinks of feeds, and the sensor that launches it when there is something to send.

The sensor asks the event log first, one query for all feeds; the lake, how far sinks are, only where something
happened to a feed, where the last delivery was not finished, and once an hour: an event can be lost. A sink that takes
nothing is tried again after a minute, then after twice as long each time.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import UNFINISHED, tag_run
from datalake_assets.defs.runtime import cursor_state, isolated
from datalake_assets.feed import Feed
from datalake_assets.sinks.base import DeliveryReport
from datalake_assets.sinks.delivery import deliver, sink_lag

__all__ = ["DELIVER", "SinkWatch", "deliver_job", "has_sinks", "sink_sensor"]

DELIVER = "deliver_to_sinks"
_OP = "deliver"
INTERVAL_S = 30
#: Seconds after which a delivery that was not finished is tried again, at first and at the most.
FIRST_WAIT_S, LONGEST_WAIT_S = 60.0, 3_600.0
#: Seconds after which the lake is asked though the event log tells of nothing.
LOOK_ANYWAY_S = 3_600.0


def has_sinks(feed: Feed) -> bool:
    """Whether rows of a feed are sent on."""
    return any(sink.takes_rows for sink in feed.sinks)


class DeliverConfig(dg.Config):
    """What is delivered.

    Attributes:
        feeds: Names of feeds; none means all that have sinks.
    """

    feeds: list[str] = []  # noqa: RUF012  pydantic copies defaults


def deliver_job(feeds: Sequence[Feed], lake: Lake) -> dg.JobDefinition:
    """The job; it fails at the end if a sink did not take all."""
    known = {feed.name: feed for feed in feeds if has_sinks(feed)}

    @dg.op(name=_OP, description="Sends what was landed on to the sinks of feeds, one after another.")
    def send(context: dg.OpExecutionContext, config: DeliverConfig) -> None:
        tag_run(context.instance, context.run)
        chosen = [known[name] for name in config.feeds or known if name in known]
        reports = [each for feed in chosen for each in deliver(lake.store, feed, lake.settings)]
        context.add_output_metadata({"datalake/deliveries": dg.MetadataValue.md(_summary(reports))})
        _raise_for_unfinished(reports)

    @dg.job(name=DELIVER, description="Sends rows on to sinks.", executor_def=dg.in_process_executor)
    def deliver_to_sinks() -> None:
        send()

    return deliver_to_sinks


def _summary(reports: Sequence[DeliveryReport]) -> str:
    rows = [
        f"| {each.feed} | {each.sink} | {each.sent:,} | {each.removed:,} | {each.refused:,} | {each.lag_rows:,}"
        f" | {each.error or 'ok'} |"
        for each in reports
    ]
    head = ["| feed | sink | sent | removed | refused | rows not sent | result |", "|---|---|---:|---:|---:|---:|---|"]
    return "\n".join([*head, *rows])


def _raise_for_unfinished(reports: Sequence[DeliveryReport]) -> None:
    lines = [f"{each.feed}: sink {each.sink}: {each.error}" for each in reports if each.error]
    if lines:
        raise dg.Failure("; ".join(lines), allow_retries=False)


class SinkWatch:
    """What the sensor does at each tick.

    Args:
        feeds: The feeds that have sinks.
        is_behind: Asks the lake whether a feed's sinks lack something.
    """

    def __init__(self, feeds: Sequence[Feed], *, is_behind: Callable[[Feed], bool]) -> None:
        self._feeds, self._is_behind = tuple(feeds), is_behind

    def tick(self, instance: dg.DagsterInstance, cursor: str | None, *, now: float) -> dg.SensorResult:
        """One tick.

        Args:
            instance: Dagster's instance.
            cursor: What the last tick returned; anything that cannot be read counts as none.
            now: Seconds since 1970.
        """
        filters = dg.RunsFilter(job_name=DELIVER, statuses=[dg.DagsterRunStatus.QUEUED, *UNFINISHED])
        if instance.get_run_records(filters, limit=1):
            return dg.SensorResult(skip_reason="a delivery is under way", cursor=cursor)
        state, newest = _state(cursor), self._newest(instance)
        problems: list[str] = []
        for feed in self._feeds:
            with isolated(problems.append, about=feed.path):
                state[feed.name] = self._looked(feed, state.get(feed.name, {}), newest[feed.name], now=now)
        state = {feed.name: state[feed.name] for feed in self._feeds if feed.name in state}
        due = [name for name, each in state.items() if each.get("asked_at") == now]
        if not due:
            told = "; ".join(problems) or "sinks have what was landed, or are tried again later"
            return dg.SensorResult(skip_reason=told, cursor=json.dumps(state))
        config = {"ops": {_OP: {"config": {"feeds": due}}}}
        return dg.SensorResult(run_requests=[dg.RunRequest(run_config=config)], cursor=json.dumps(state))

    def _looked(self, feed: Feed, known: dict[str, Any], newest: list[int], *, now: float) -> dict[str, Any]:
        """What is known of a feed after a look; ``asked_at`` is now if a delivery is to be launched."""
        attempt, asked_at = int(known.get("attempt", 0)), float(known.get("asked_at", 0))
        is_news = known.get("seen") != newest
        if not is_news and not attempt and now - float(known.get("looked_at", 0)) < LOOK_ANYWAY_S:
            return known
        if attempt > 1 and now < asked_at + min(FIRST_WAIT_S * 2 ** (attempt - 2), LONGEST_WAIT_S):
            return known
        looked = {"seen": newest, "looked_at": round(now)}
        if not self._is_behind(feed):
            return looked
        # news while all goes well are no failed attempt
        return {**looked, "attempt": 1 if is_news and attempt <= 1 else attempt + 1, "asked_at": now}

    def _newest(self, instance: dg.DagsterInstance) -> dict[str, list[int]]:
        """Of each feed its revision, the newest materialization and the newest observation."""
        keys = [asset_key(feed) for feed in self._feeds]
        records = {each.asset_entry.asset_key: each.asset_entry for each in instance.get_asset_records(keys)}
        found: dict[str, list[int]] = {}
        for feed, key in zip(self._feeds, keys, strict=True):
            entry = records.get(key)
            events = (entry.last_materialization_storage_id, entry.last_observation_storage_id) if entry else (0, 0)
            found[feed.name] = [feed.revision, *(each or 0 for each in events)]
        return found


def _state(cursor: str | None) -> dict[str, Any]:
    return {name: each for name, each in cursor_state(cursor).items() if isinstance(each, dict)}


def sink_sensor(feeds: Sequence[Feed], lake: Lake, *, job: dg.JobDefinition) -> dg.SensorDefinition:
    """The sensor; see `SinkWatch`."""

    def is_behind(feed: Feed) -> bool:
        return any(sink_lag(lake.store, feed, sink).partitions for sink in feed.sinks if sink.takes_rows)

    watch = SinkWatch([feed for feed in feeds if has_sinks(feed)], is_behind=is_behind)

    @dg.sensor(
        name="sink_sensor",
        job=job,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Launches deliveries to the sinks of feeds that do not have what was landed.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return watch.tick(context.instance, context.cursor, now=datetime.now(UTC).timestamp())

    return look
