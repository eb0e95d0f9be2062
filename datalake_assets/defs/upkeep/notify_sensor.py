"""The sensor that tells people: runs that fail and are well again, checks that do not pass and pass again.

Of each run or check there is one message when it goes wrong, one when it gets worse, one a day while it lasts, and one
when it is well again. What is known lies in the sensor's cursor; what a channel did not take is sent at the next look.
A process that dies between sending and keeping its cursor tells something twice, and nothing is left untold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from datalake_assets.core.facts import FailedCheck
from datalake_assets.defs.compaction.job import FEED_TAG
from datalake_assets.defs.metadata import asset_key, check_names, failed_checks
from datalake_assets.errors import SourceUnavailable
from datalake_assets.feed import Feed
from datalake_assets.notify.channels import Channel, open_channels, send
from datalake_assets.notify.incidents import MOST_WAITING, Level, Message, Outbox, observed
from datalake_assets.settings import Settings
from datalake_assets.sinks.webhook.alerts import Route, routes

__all__ = ["Watch", "notify_sensor"]

INTERVAL_S = 30
#: Ended runs of one look; the next look goes on.
_RUNS = 200
#: Partitions and assets that a message names.
_NAMED = 3
#: Steps whose errors a message has.
_STEPS = 3
#: Begins the keys of messages about checks.
_CHECK = "check"
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


def notify_sensor(
    feeds: Sequence[Feed], settings: Settings, *, channels: Callable[..., Sequence[Channel]] = open_channels
) -> dg.SensorDefinition:
    """The sensor.

    Args:
        feeds: The feeds whose checks are watched; runs are watched whatever they are of.
        settings: The installation, which says where messages go.
        channels: Opens the channels.
    """
    watch = Watch(feeds, link=settings.webserver_url)

    @dg.sensor(
        name="notify_sensor",
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells of failed runs and checks, and when they are well again: log, webhook, SNS, e-mail.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        broken: list[str] = []
        opened = channels(settings, on_broken=lambda error: broken.append(str(error)))
        own = list(routes(feeds, settings, on_broken=lambda error: broken.append(str(error))))
        for line in broken:
            context.log.warning(line)
        before = Outbox.from_json(context.cursor)
        outbox, told = watch.look(
            context.instance, before, opened, own=own, now=datetime.now(UTC), warn=context.log.warning
        )
        context.update_cursor(outbox.to_json())
        return dg.SkipReason("; ".join([f"{told} messages" if told else "nothing to tell", *broken]))

    return look


class Watch:
    """What the sensor does at each look: two queries, and some more of each run and feed that changed.

    Args:
        feeds: The feeds whose checks are watched.
        link: The web server's address.
    """

    def __init__(self, feeds: Sequence[Feed], *, link: str) -> None:
        self._feeds, self._link = tuple(feeds), link.rstrip("/")

    def look(
        self,
        instance: dg.DagsterInstance,
        before: Outbox,
        channels: Sequence[Channel],
        *,
        own: Sequence[Route] = (),
        now: datetime,
        warn: Callable[[str], None],
    ) -> tuple[Outbox, int]:
        """One look; what is to be kept, and how many messages were sent.

        Args:
            instance: Dagster's instance.
            before: What the last look kept. The first one begins with now: what failed before is known already.
            channels: Where messages go.
            own: Webhooks of feeds, where some messages about these go, too.
            now: The time.
            warn: Called with a line on what was not taken.
        """
        cursor, incidents, messages = dict(before.cursor), dict(before.incidents), list[Message]()
        for key, message in [*self._runs(instance, cursor, now), *self._checks(instance, cursor)]:
            incidents, told = observed(incidents, key, message, at=now)
            messages += [told] if told is not None else []
        reached = [*channels, *(each.channel for each in own)]
        waiting, silent = [], set[str]()
        for message, names in [*before.waiting, *((each, self.reached(each, channels, own)) for each in messages)]:
            # one that does not answer is asked once a look: else Dagster would end the look, and all be told again
            asked = [each for each in reached if each.name in names and each.name not in silent]
            failed = send(asked, message, most_attempts=1)
            for name, error in failed.items():
                warn(f"{message.title!r} was not taken: {error}")
                silent |= {name} if isinstance(error, SourceUnavailable) else set()
            left = tuple(name for name in names if name in failed or name in silent)
            waiting += [(message, left)] if left else []
        for message, _ in waiting[:-MOST_WAITING]:
            warn(f"{message.title!r} is given up: too many messages wait")
        return Outbox(cursor, incidents, tuple(waiting[-MOST_WAITING:])), len(messages)

    @staticmethod
    def reached(message: Message, channels: Sequence[Channel], own: Sequence[Route]) -> tuple[str, ...]:
        """Names of the channels that a message goes to; see `look`."""
        kind, _, about = message.key.partition(" ")
        path, _, check = about.partition(" ")
        of_feed = [each.channel.name for each in own if kind == _CHECK and each.takes(path, check)]
        return (*(each.name for each in channels), *of_feed)

    def _runs(
        self, instance: dg.DagsterInstance, cursor: dict[str, Any], now: datetime
    ) -> Iterator[tuple[str, Message | None]]:
        """What runs that have ended since are about, and what is wrong with them."""
        since = float(cursor.get("runs_since", now.timestamp()))
        known = set(cursor.get("runs_known", ()))
        after = datetime.fromtimestamp(since, UTC) - timedelta(seconds=1)  # its own second comes again, and is known
        records = instance.get_run_records(
            dg.RunsFilter(statuses=_ENDED, updated_after=after),
            limit=_RUNS + len(known),
            order_by="update_timestamp",
            ascending=True,
        )
        cursor["runs_since"], cursor["runs_known"] = since, sorted(known)
        for record in records:
            run, at = record.dagster_run, record.update_timestamp.timestamp()
            if run.run_id in known or at < since:
                continue
            yield _run_key(run), self._run_message(instance, run)
        if records:
            newest = max(since, *(each.update_timestamp.timestamp() for each in records))
            recent = {each.dagster_run.run_id for each in records if each.update_timestamp.timestamp() >= newest - 1}
            cursor["runs_since"], cursor["runs_known"] = newest, sorted(recent)

    def _run_message(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> Message | None:
        if run.status is not dg.DagsterRunStatus.FAILURE:
            return None
        partition = run.tags.get("dagster/partition", "")
        title = f"{_run_subject(run)} failed{f', partition {partition}' if partition else ''}"
        reasons = dict.fromkeys(_reasons(instance, run.run_id))
        return Message(_run_key(run), "failure", title, "\n".join(reasons), f"{self._link}/runs/{run.run_id}")

    def _checks(self, instance: dg.DagsterInstance, cursor: dict[str, Any]) -> Iterator[tuple[str, Message | None]]:
        """The checks of feeds of which one was evaluated since, and what is wrong with them."""
        known: Mapping[str, int] = cursor.get("checks", {})
        keys = {
            feed.path: [dg.AssetCheckKey(asset_key(feed), name) for name in check_names(feed)] for feed in self._feeds
        }
        every = [key for each in keys.values() for key in each]
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(every) if every else {}
        newest = {
            path: max((record.id for key in each if (record := latest.get(key)) is not None), default=0)
            for path, each in keys.items()
        }
        cursor["checks"] = newest
        if "checks_begun" not in cursor:  # what did not pass before is known already
            cursor["checks_begun"] = True
            return
        changed = [feed for feed in self._feeds if newest[feed.path] != known.get(feed.path, 0)]
        for name, failed in failed_checks(instance, changed).items():
            feed = next(each for each in changed if each.name == name)
            for check, found in failed.items():
                yield f"{_CHECK} {feed.path} {check}", self._check_message(feed, check, found)

    def _check_message(self, feed: Feed, check: str, found: Sequence[FailedCheck]) -> Message | None:
        if not found:
            return None
        level: Level = "failure" if any(each.level == "error" for each in found) else "alert"
        lines = [f"{each.partition}: {each.what}" if each.partition else each.what for each in found]
        more = [f"and {len(lines) - _NAMED:,} more partitions"] if len(lines) > _NAMED else []
        key = asset_key(feed)
        title = f"check {check} of {feed.path} {'failed' if level == 'failure' else 'warns'}"
        link = f"{self._link}/assets/{'/'.join(key.path)}?view=checks"
        return Message(f"{_CHECK} {feed.path} {check}", level, title, "\n".join([*lines[:_NAMED], *more]), link)


def _run_subject(run: dg.DagsterRun) -> str:
    """What a run is about: its assets, or its job with the feed that it works on."""
    names = sorted(key.to_user_string() for key in run.asset_selection or ())
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"{', '.join(names[:_NAMED])}{more}"
    feed = run.tags.get(FEED_TAG, "")
    return f"job {run.job_name}{f' of {feed}' if feed else ''}"


def _run_key(run: dg.DagsterRun) -> str:
    names = sorted(key.to_user_string() for key in run.asset_selection or ())
    return f"run {' '.join(names)}" if names else f"run {_run_subject(run)}"


def _reasons(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    """Why steps of a run failed, a line each; else why the run did."""
    entries = instance.all_logs(run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE})
    events = [each.dagster_event for each in entries if each.dagster_event is not None]
    steps = [each for each in events if each.event_type is dg.DagsterEventType.STEP_FAILURE]
    for event in steps[:_STEPS]:
        data = event.step_failure_data
        told = data.user_failure_data.description if data.user_failure_data else None
        yield " ".join((told or (data.error.message if data.error else event.message) or "").split())
    if not steps:
        yield from (" ".join((each.message or "").split()) for each in events)
