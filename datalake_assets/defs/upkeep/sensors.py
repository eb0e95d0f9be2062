"""Sensors that keep the installation in order: new feeds appear, dead runs end, interrupted commits are finished."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from datalake_assets.core.verdicts import FRESHNESS
from datalake_assets.defs.checks.on_write import freshness_of
from datalake_assets.defs.compaction.job import FEED_TAG
from datalake_assets.defs.feeds.assets import left_out_evaluation
from datalake_assets.defs.metadata import asset_key, check_evaluation
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import LOCATION_NAME, repair_runs
from datalake_assets.defs.runtime import cursor_state, isolated
from datalake_assets.feed import Feed
from datalake_assets.lake.registry import FeedProblem
from datalake_assets.network import post_json
from datalake_assets.policies import Level

logger = logging.getLogger(__name__)

__all__ = [
    "dead_run_sensor",
    "feed_registry_sensor",
    "freshness_sensor",
    "interrupted_commit_sensor",
    "reload_location",
    "repair_feeds",
]

#: Seconds within which a feed that was added shows up in the UI, plus the time that a reload takes.
REGISTRY_INTERVAL_S = 10
DEAD_RUN_INTERVAL_S = 30
FRESHNESS_INTERVAL_S = 300
#: The web server answers a reload when the location is loaded; as a whole within the second.
_RELOAD_TIMEOUT_S, _RELOAD_WHOLE_S = 45.0, 90.0
_RELOAD = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) {
    __typename
    ... on WorkspaceLocationEntry { locationOrLoadError { __typename ... on PythonError { message } } }
    ... on PythonError { message }
  }
}
"""


def feed_registry_sensor(
    lake: Lake, *, loaded: str, left_out: Mapping[dg.AssetKey, FeedProblem] = MappingProxyType({})
) -> dg.SensorDefinition:
    """Has the web server reload this code location once the registry is no longer as it was loaded.

    It also fails the checks of the assets that stand for feeds which were left out: once for each reason.

    Args:
        lake: Whose registry is watched.
        loaded: Digest of the registry that the definitions were made from.
        left_out: The feeds that are no part of the definitions, by the assets that stand for them.
    """

    @dg.sensor(
        name="feed_registry_sensor",
        minimum_interval_seconds=REGISTRY_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reloads this code location when feeds were added, changed or archived; reports those left out.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        origin = context.code_location_origin
        location = origin.location_name if origin else LOCATION_NAME
        asked_for, _, reported = (context.cursor or "").partition(" ")
        watched = _watch_registry(lake, loaded, asked_for=asked_for or None, location=location)
        return _with_failures(watched, left_out, reported=reported)

    return watch


def dead_run_sensor() -> dg.SensorDefinition:
    """Fails the runs whose process on this host died, and frees their pool slots."""

    @dg.sensor(
        name="dead_run_sensor",
        minimum_interval_seconds=DEAD_RUN_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fails the runs whose process on this host died, and frees their pool slots.",
    )
    def bury(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        failed = repair_runs(context.instance)
        return dg.SkipReason(f"failed {', '.join(failed)}: the process is gone" if failed else "no dead runs")

    return bury


def interrupted_commit_sensor(feeds: Mapping[str, Feed], lake: Lake) -> dg.SensorDefinition:
    """Finishes or undoes what a failed run left half done, so that no partition waits for its next writer."""

    @dg.run_failure_sensor(
        name="interrupted_commit_sensor",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Finishes the interrupted commits of failed runs.",
    )
    def repair(context: dg.RunFailureSensorContext) -> dg.SkipReason:
        run = context.dagster_run
        keys = run.asset_selection or frozenset()
        chosen = [each for each in feeds.values() if asset_key(each) in keys or each.path == run.tags.get(FEED_TAG)]
        return dg.SkipReason("; ".join(repair_feeds(lake, chosen)) or "the run wrote to no feed")

    return repair


def freshness_sensor(feeds: Mapping[str, Feed], lake: Lake) -> dg.SensorDefinition:
    """Evaluates ``freshness`` while nothing runs, and reports when a feed becomes late, or is fresh again."""
    watched = [feed for feed in feeds.values() if feed.is_exported and feed.freshness.is_watched]

    @dg.sensor(
        name="freshness_sensor",
        minimum_interval_seconds=FRESHNESS_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports when a feed becomes older than it allows, and when it is fresh again.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        known = cursor_state(context.cursor)
        changed = list(_changes(watched, lake, context.instance, known))
        return dg.SensorResult(
            asset_events=changed, cursor=json.dumps(known), skip_reason=None if changed else "no news"
        )

    return look


def reload_location(webserver_url: str, location: str) -> str | None:
    """Asks a Dagster web server to load a code location anew.

    Returns:
        None once it has, or one line that says why it has not; no web server is an ordinary reason.
    """
    import httpx  # noqa: PLC0415  a sixth of a second, needed only after a change

    request = {"query": _RELOAD, "variables": {"name": location}}
    try:
        url = f"{webserver_url.rstrip('/')}/graphql"
        answer = post_json(url, request, silent_s=_RELOAD_TIMEOUT_S, whole_s=_RELOAD_WHOLE_S)
        answer.raise_for_status()
        reloaded = answer.json()["data"]["reloadRepositoryLocation"]
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, KeyError, TypeError) as error:
        return f"no reload by the web server at {urlsplit(webserver_url).netloc}: {type(error).__name__}"
    # a location that fails to load is reported inside a successful answer
    loaded: dict[str, Any] = reloaded.get("locationOrLoadError") or reloaded
    if loaded.get("__typename") != "RepositoryLocation":
        return f"the location did not load: {loaded.get('message', loaded.get('__typename'))}"
    return None


def repair_feeds(lake: Lake, feeds: Sequence[Feed]) -> list[str]:
    """Repairs the tables of feeds; says in one line each what it did, or why it could not."""
    told: list[str] = []
    for feed in feeds:
        with isolated(told.append, about=feed.path):
            told.append(f"{feed.path}: {_repaired(lake, feed)}")
    return told


def _repaired(lake: Lake, feed: Feed) -> str:
    done = lake.table(feed).repair()
    waiting = f", waiting: {'; '.join(done.waiting)}" if done.waiting else ""
    return f"{done.finished} commits finished, {done.undone} undone, {done.swept} leftovers swept{waiting}"


def _watch_registry(lake: Lake, loaded: str, *, asked_for: str | None, location: str) -> dg.SensorResult:
    """The cursor is the digest that a reload was last asked for: each state of the registry is asked for once."""
    digest = lake.registry.digest()
    if digest == loaded:
        return dg.SensorResult(skip_reason="feeds are as loaded", cursor=asked_for)
    if digest == asked_for:
        return dg.SensorResult(
            skip_reason="a reload was asked for; this process still has the old feeds", cursor=digest
        )
    problem = reload_location(lake.settings.webserver_url, location)
    if problem:
        return dg.SensorResult(skip_reason=problem, cursor=asked_for)
    return dg.SensorResult(skip_reason="feeds changed; the code location was reloaded", cursor=digest)


def _with_failures(
    watched: dg.SensorResult, left_out: Mapping[dg.AssetKey, FeedProblem], *, reported: str
) -> dg.SensorResult:
    """Adds a failed check of each feed that was left out, unless the same was reported before."""
    failed = [left_out_evaluation(key, problem) for key, problem in left_out.items()]
    known = "".join(f"{each.asset_key.to_user_string()} {each.description}\n" for each in failed)
    # Dagster keeps an old cursor in place of an empty one
    now = hashlib.blake2b(known.encode(), digest_size=16).hexdigest() if failed else reported and "-"
    return dg.SensorResult(
        skip_reason=watched.skip_reason,
        cursor=f"{watched.cursor or ''} {now}".rstrip(),
        asset_events=failed if now != reported else [],
    )


def _changes(
    feeds: Sequence[Feed], lake: Lake, instance: dg.DagsterInstance, known: dict[str, str]
) -> list[dg.AssetCheckEvaluation]:
    """Evaluations that differ from those in ``known``, which is brought up to date; one that fails stops no other."""
    events = []
    for feed in feeds:
        with isolated(logger.warning, about=f"freshness of {feed.path} is not known"):
            verdict = freshness_of(instance, lake.table(feed), now=datetime.now(UTC))
            # never exported counts as nothing to report, and no first evaluation is needed of a fresh feed
            if verdict is not None and known.get(feed.path, Level.OK) != verdict.level:
                events.append(check_evaluation(FRESHNESS, verdict, asset_key=asset_key(feed)))
                known[feed.path] = verdict.level
    return events
