"""Which feeds Dagster takes: asked of Dagster itself, so that one feed which it refuses harms no other.

A feed's document says owners, tags, groups, cron lines and names of checks. What Dagster accepts of them is Dagster's
to say, and it says it when definitions are built and resolved, of all of them at once. Where that fails, each feed is
built by itself, and those that fail are left out and named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from datalake_assets.errors import DatalakeError
from datalake_assets.feed import MAX_PARTITIONS, Feed, partitions_problem

__all__ = ["RefusedFeed", "UsableFeeds", "usable_feeds"]

#: A feed that has come to so many partitions over the years is kept; above, Dagster's UI is slow for everybody.
LOADED_PARTITIONS = 10 * MAX_PARTITIONS


@dataclass(frozen=True, slots=True)
class RefusedFeed:
    """A feed that cannot be part of a code location, and why, on one line."""

    feed: Feed
    reason: str


@dataclass(frozen=True, slots=True)
class UsableFeeds:
    """What could be built.

    Attributes:
        definitions: Those of the feeds that Dagster takes.
        refused: The other feeds.
    """

    definitions: dg.Definitions
    refused: tuple[RefusedFeed, ...] = ()


def usable_feeds(feeds: Sequence[Feed], build: Callable[[Sequence[Feed]], dg.Definitions]) -> UsableFeeds:
    """Builds the definitions of all feeds that Dagster takes.

    Args:
        feeds: The feeds.
        build: Makes the definitions of some of them; resolved here, since Dagster looks at much of it only then.

    Raises:
        Exception: As Dagster raises it, if the definitions of no feed at all do not load either.
    """
    now = datetime.now(UTC)
    refused = [
        RefusedFeed(feed, reason)
        for feed in feeds
        if (reason := partitions_problem(feed, now, most=LOADED_PARTITIONS)) is not None
    ]
    kept = _without(feeds, refused)
    try:
        return UsableFeeds(_resolved(kept, build), tuple(refused))
    except Exception:  # noqa: BLE001  whatever it is, one feed must not take the others down
        _resolved((), build)
    refused += [RefusedFeed(feed, reason) for feed in kept if (reason := _refusal((feed,), build)) is not None]
    kept = _without(feeds, refused)
    if _refusal(kept, build) is not None:
        refused += _at_odds(kept, build)
    return UsableFeeds(_resolved(_without(feeds, refused), build), tuple(refused))


def _at_odds(feeds: Sequence[Feed], build: Callable[[Sequence[Feed]], dg.Definitions]) -> list[RefusedFeed]:
    """The feeds that do not go together with those before them, though each loads by itself."""
    kept: list[Feed] = []
    refused = []
    for feed in feeds:
        reason = _refusal((*kept, feed), build)
        if reason is None:
            kept.append(feed)
        else:
            refused.append(RefusedFeed(feed, reason))
    return refused


def _without(feeds: Sequence[Feed], refused: Sequence[RefusedFeed]) -> tuple[Feed, ...]:
    names = {each.feed.name for each in refused}
    return tuple(feed for feed in feeds if feed.name not in names)


def _resolved(feeds: Sequence[Feed], build: Callable[[Sequence[Feed]], dg.Definitions]) -> dg.Definitions:
    definitions = build(feeds)
    dg.Definitions.validate_loadable(definitions)
    return definitions


def _refusal(feeds: Sequence[Feed], build: Callable[[Sequence[Feed]], dg.Definitions]) -> str | None:
    try:
        _resolved(feeds, build)
    except DatalakeError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  Dagster refuses by errors of many kinds, pydantic's and Python's among them
        return f"Dagster refuses it: {_first_sentence(error)}"
    return None


def _first_sentence(error: BaseException) -> str:
    """What the innermost of a chain of errors says, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


#: Dagster's messages may list whole documents.
_LONGEST = 400
