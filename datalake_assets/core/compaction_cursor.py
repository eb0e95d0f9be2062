"""The compaction sensor's memory between two ticks, as text of bounded size: Dagster keeps a copy with every tick."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from datalake_assets.core.compaction_watch import FeedWatch, Past, Requested, Tried

__all__ = ["MEMORY", "WAITING", "WatchState", "bounded", "state_from_json", "state_to_json"]

#: Version of the text; a text of another version counts as none.
VERSION = 1
#: Partitions that wait for a time; what is above is left to the nightly maintenance.
WAITING = 1_000
#: Partitions that something is remembered of; of those forgotten the same may be tried and reported once more.
MEMORY = 500


@dataclass(frozen=True, slots=True)
class WatchState:
    """All that is remembered.

    Attributes:
        feeds: By the feed's path.
        turn: Ticks so far; says which feed comes first, since a tick may not get through all.
    """

    feeds: Mapping[str, FeedWatch] = field(default_factory=dict)
    turn: int = 0


def bounded(state: WatchState, now: float) -> tuple[WatchState, int]:
    """Forgets what is too much to keep.

    Args:
        state: All of it.
        now: Seconds since 1970.

    Returns:
        The rest, and the number of partitions that were to be looked at later and now are not.
    """
    waiting = [(at, path, key) for path, watch in state.feeds.items() for key, at in watch.due.items() if at > now]
    past = [(path, key) for path, watch in state.feeds.items() for key in watch.past if key not in _running(watch)]
    if len(waiting) <= WAITING and len(past) <= MEMORY:
        return state, 0
    late = {(path, key) for _, path, key in sorted(waiting)[WAITING:]}
    # the earliest of each feed go first, and of each feed as large a share as of all
    share = max(0, len(past) - MEMORY) / len(past) if past else 0.0
    feeds = {path: _forgetful(path, watch, late, share) for path, watch in state.feeds.items()}
    return replace(state, feeds=feeds), len(late)


def state_to_json(state: WatchState) -> str:
    """The state as text."""
    feeds = {path: _feed_to_json(watch) for path, watch in state.feeds.items()}
    return json.dumps({"v": VERSION, "turn": state.turn, "feeds": feeds}, separators=(",", ":"))


def state_from_json(text: str | None) -> WatchState:
    """Reads it back; begins anew with a text that cannot be read, of an older release or by somebody's hand."""
    try:
        document = json.loads(text or "")
        if document["v"] != VERSION:
            return WatchState()
        feeds = {path: _feed_from_json(each) for path, each in document["feeds"].items()}
        return WatchState(feeds, int(document["turn"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return WatchState()


def _forgetful(path: str, watch: FeedWatch, late: set[tuple[str, str]], share: float) -> FeedWatch:
    running = _running(watch)
    others = [key for key in watch.past if key not in running]
    gone = set(others[: math.ceil(share * len(others))])
    due = {key: at for key, at in watch.due.items() if (path, key) not in late}
    return replace(watch, due=due, past={key: each for key, each in watch.past.items() if key not in gone})


def _running(watch: FeedWatch) -> Mapping[str, str]:
    return watch.requested.files if watch.requested else {}


def _feed_to_json(watch: FeedWatch) -> list[Any]:
    run = watch.requested
    return [
        watch.materialized,
        watch.observed,
        {key: math.ceil(at) for key, at in watch.due.items()},
        {key: list(astuple(past)) for key, past in watch.past.items()},
        [run.run_key, dict(run.files)] if run else None,
        watch.began,
    ]


def _feed_from_json(document: list[Any]) -> FeedWatch:
    materialized, observed, due, past, run, began = document
    return FeedWatch(
        materialized=int(materialized),
        observed=int(observed),
        due={key: float(at) for key, at in due.items()},
        past={key: _past_from_json(each) for key, each in past.items()},
        requested=Requested(run[0], dict(run[1])) if run else None,
        began=float(began),
    )


def _past_from_json(document: list[Any]) -> Past:
    known = Past(*document)
    return replace(known, tried=Tried(known.tried))
