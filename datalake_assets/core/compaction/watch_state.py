"""The compaction sensor's memory between two ticks, as text of bounded size: Dagster keeps a copy with every tick."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from datalake_assets.core.compaction.watch import FeedWatch

__all__ = ["MEMORY", "WAITING", "WatchState", "bounded", "state_from_json", "state_to_json"]

#: Where `FeedWatch.requested` is in the text.
_REQUESTED = FeedWatch.__struct_fields__.index("requested")
#: Version of the text; a text of a newer version counts as none. In version 1 a feed had one run at a time.
VERSION = 2
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
        The rest, and the number of partitions that were to be planned later and now are not.
    """
    waiting = [(at, path, key) for path, watch in state.feeds.items() for key, at in watch.due.items() if at > now]
    past = sum(len(_forgettable(watch)) for watch in state.feeds.values())
    if len(waiting) <= WAITING and past <= MEMORY:
        return state, 0
    late = {(path, key) for _, path, key in sorted(waiting)[WAITING:]}
    # the earliest of each feed go first, and of each feed as large a share as of all
    share = max(0, past - MEMORY) / past if past else 0.0
    feeds = {path: _forgetful(path, watch, late, share) for path, watch in state.feeds.items()}
    return WatchState(feeds, state.turn), len(late)


def state_to_json(state: WatchState) -> str:
    """The state as text: ASCII, whatever the names of partitions are."""
    feeds = {path: _with_whole_seconds(watch) for path, watch in state.feeds.items()}
    document = {"v": VERSION, "turn": state.turn, "feeds": msgspec.to_builtins(feeds)}
    return json.dumps(document, separators=(",", ":"))


def state_from_json(text: str | None) -> WatchState:
    """Reads it back; begins anew with a text that cannot be read, of an older release or by somebody's hand."""
    try:
        document = json.loads(text or "")  # of names that are no Unicode only `json` knows
        if document["v"] == 1:
            for watch in document["feeds"].values():
                watch[_REQUESTED] = [] if watch[_REQUESTED] is None else [watch[_REQUESTED]]
        elif document["v"] != VERSION:
            return WatchState()
        return WatchState(msgspec.convert(document["feeds"], dict[str, FeedWatch]), int(document["turn"]))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return WatchState()


def _forgetful(path: str, watch: FeedWatch, late: set[tuple[str, str]], share: float) -> FeedWatch:
    others = _forgettable(watch)
    gone = set(others[: math.ceil(share * len(others))])
    due = {key: at for key, at in watch.due.items() if (path, key) not in late}
    return replace(watch, due=due, past={key: each for key, each in watch.past.items() if key not in gone})


def _forgettable(watch: FeedWatch) -> list[str]:
    in_flight = watch.in_flight
    return [key for key in watch.past if key not in in_flight]


def _with_whole_seconds(watch: FeedWatch) -> FeedWatch:
    return replace(watch, due={key: math.ceil(at) for key, at in watch.due.items()})
