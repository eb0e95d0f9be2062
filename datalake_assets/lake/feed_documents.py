"""The documents of feeds, as they are read: whichever copy of a feed counts, and what is no feed.

Whoever changes them is `datalake_assets.lake.registry`, which says how they are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from datalake_assets.core.values import Value
from datalake_assets.errors import ConfigError, InvalidFeed, LakeError, ObjectNotFound
from datalake_assets.feed import NAME_PATTERN, Feed, parse_feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.store.base import ObjectInfo, Store, is_far

__all__ = ["ARCHIVED", "FEEDS_PREFIX", "FeedCopy", "FeedDocuments", "FeedProblem", "RegistryListing", "feed_key"]

FEEDS_PREFIX = "feeds"
ACTIVE, ARCHIVED = f"{FEEDS_PREFIX}/active/", f"{FEEDS_PREFIX}/archived/"
# A registry is read on every load of the code location; S3 answers a GET in tens of milliseconds.
_READERS = 8


class FeedProblem(Value, frozen=True):
    """A file of the registry that is not a feed.

    Attributes:
        file: Its key in the lake.
        reason: Why it was skipped, on one line.
        kind: The kind of feed that it says it is, if it says one.
    """

    file: str
    reason: str
    kind: FeedKind | None = None

    @property
    def name(self) -> str:
        """The feed's name by the file's."""
        return _name_of(self.file)


class RegistryListing(Value, frozen=True):
    """The feeds of a registry, by name, and the files that had to be skipped."""

    feeds: tuple[Feed, ...]
    problems: tuple[FeedProblem, ...] = ()


class FeedCopy(Value, frozen=True):
    """A feed as one of the two folders has it."""

    feed: Feed
    etag: str
    key: str

    @property
    def archived(self) -> bool:
        """Whether it is a copy of an archived feed."""
        return not self.feed.enabled or self.key.startswith(ARCHIVED)


def feed_key(name: str, *, archived: bool = False) -> str:
    """Where a feed's document lies in the lake."""
    return f"{ARCHIVED if archived else ACTIVE}{name}.json"


class FeedDocuments:
    """The documents of one lake's feeds, to be read.

    Args:
        store: The lake.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self, *, archived: bool = False) -> RegistryListing:
        """All active feeds, or all archived ones; a file that is no valid feed is reported and never raises."""
        copies: dict[str, FeedCopy] = {}
        problems = []
        for found in self._read_all(self._store.list(FEEDS_PREFIX)):
            if isinstance(found, FeedProblem):
                problems.append(found)
            else:
                known = copies.get(found.feed.name)
                copies[found.feed.name] = found if known is None else _winner(known, found)
        return RegistryListing(
            feeds=tuple(copy.feed for _, copy in sorted(copies.items()) if copy.archived is archived),
            problems=tuple(problem for problem in problems if problem.file.startswith(ARCHIVED) is archived),
        )

    def newest(self, name: str) -> FeedCopy | None:
        """The copy of a feed that counts; None if there is no such feed.

        Raises:
            InvalidFeed: Its file is not a valid feed.
        """
        if not NAME_PATTERN.fullmatch(name):
            return None
        active = self.read(feed_key(name))
        try:
            archived = self.read(feed_key(name, archived=True))
        except InvalidFeed:
            if active is None:
                raise
            return active
        if active is None or archived is None:
            return active or archived
        return _winner(active, archived)

    def read(self, key: str) -> FeedCopy | None:
        """One copy; None if there is no such file."""
        try:
            document, etag = self._store.get(key)
        except ObjectNotFound:
            return None
        name = _name_of(key)
        feed = parse_feed(document, name=name)
        if feed.name != name:
            raise InvalidFeed(name, f"its file is named {name!r} but the feed {feed.name!r}; rename one of them")
        return FeedCopy(feed, etag, key)

    def _read_all(self, infos: Iterable[ObjectInfo]) -> tuple[FeedCopy | FeedProblem, ...]:
        keys = sorted(info.key for info in infos if info.key.endswith(".json"))
        with ThreadPoolExecutor(_READERS) as readers:  # no thread before it is needed
            read = readers.map if is_far(self._store.uri) else map
            return tuple(found for found in read(self._read_or_report, keys) if found is not None)

    def _read_or_report(self, key: str) -> FeedCopy | FeedProblem | None:
        try:
            return self.read(key)
        except InvalidFeed as error:
            return FeedProblem(key, error.reason, self._kind_said_by(key))
        except ConfigError:
            if NAME_PATTERN.fullmatch(_name_of(key)):
                raise
            return FeedProblem(key, "no feed can have this name; rename the file, or remove it")

    def _kind_said_by(self, key: str) -> FeedKind | None:
        """What a document that is no valid feed says of its kind; by that its asset had its key while it was valid."""
        try:
            return FeedKind(json.loads(self._store.get(key)[0])["kind"])
        except (LakeError, ValueError, TypeError, KeyError, RecursionError):
            return None


def _name_of(key: str) -> str:
    return key.removeprefix(ACTIVE).removeprefix(ARCHIVED).removesuffix(".json")


def _winner(one: FeedCopy, other: FeedCopy) -> FeedCopy:
    return max(one, other, key=lambda copy: (copy.feed.revision, copy.key.startswith(ARCHIVED)))
