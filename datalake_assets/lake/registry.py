"""Feeds as data: one JSON document per feed in the lake, changed only by compare-and-swap.

``feeds/active/<name>.json`` holds what is landed, ``feeds/archived/<name>.json`` what was. A feed is archived when its
newest copy lies in the archive or says ``"enabled": false``; of two copies the one with the higher ``revision`` counts.

Moving a feed between the folders takes several requests, and a crash or a rival between any two of them leaves a feed
that exists, in one state. Archiving first swaps the active copy to ``"enabled": false`` (here it happens), then writes
the archive's copy, then deletes the active one. The copy that lost is deleted only by the process that *created* the
other one: whoever merely finds both leaves both, for the delete of the process between the two may still be on its way.
"""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import date, timedelta
from typing import Any

from datalake_assets.errors import (
    ConfigError,
    FeedExists,
    FeedNotFound,
    InvalidFeed,
    LakeError,
    ObjectNotFound,
    PreconditionFailed,
)
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.lake.feed_documents import (
    ARCHIVED,
    FEEDS_PREFIX,
    FeedCopy,
    FeedDocuments,
    FeedProblem,
    RegistryListing,
    feed_key,
)
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import retried, swap_object

__all__ = ["FEEDS_PREFIX", "FeedProblem", "FeedRegistry", "RegistryListing", "feed_key"]

logger = logging.getLogger(__name__)

#: Attempts at a change that is made on whatever the document is by then.
ATTEMPTS = 5
# After this long nobody is still in the middle of moving a feed: a move takes three requests.
_MOVE_LIMIT = timedelta(minutes=10)


class FeedRegistry:
    """The feeds of one lake. Safe to use from several processes at once.

    Args:
        store: The lake.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._documents = store, FeedDocuments(store)

    def add(self, feed: Feed) -> Feed:
        """Registers a new feed and returns it as stored, with its first revision, and with a folder of its own.

        A document that was copied from a converted feed says where that one's data lie.

        Raises:
            FeedExists: The name is taken, possibly by an archived feed.
            InvalidFeed: The feed would not be readable again.
        """
        known = self._documents.newest(feed.name)
        if known is not None:
            raise FeedExists(feed.name, archived=known.archived)
        own = feed.format.model_copy(update={"folder": "", "former": None})
        added = feed.model_copy(update={"enabled": True, "revision": 1, "format": own})
        try:
            self._write(feed_key(feed.name), added, etag=None)
        except PreconditionFailed as error:
            raise FeedExists(feed.name) from error
        return added

    def get(self, name: str) -> Feed:
        """The active feed of this name.

        Raises:
            FeedNotFound: There is none, or it is archived.
            InvalidFeed: Its file is not a valid feed.
        """
        return self._get(name).feed

    def list(self, *, archived: bool = False) -> RegistryListing:
        """All active feeds, or all archived ones; a file that is no valid feed is reported and never raises."""
        return self._documents.list(archived=archived)

    def update(self, feed: Feed, *, expected_revision: int) -> Feed:
        """Replaces an active feed and returns it as stored; also one whose document has become invalid.

        Args:
            feed: The feed as it is to be; its ``revision`` and ``enabled`` are ignored.
            expected_revision: The revision that the change was made on.

        Raises:
            FeedNotFound: There is no such active feed.
            InvalidFeed: The change would leave the feed's data where nothing searches for it.
            PreconditionFailed: Somebody else changed the feed.
        """
        try:
            current = self._get(feed.name)
        except InvalidFeed as error:
            return self._mend(feed, error.reason, expected_revision=expected_revision)
        if current.feed.revision != expected_revision:
            raise _changed(current.key)
        if (feed.kind, feed.partition_by) != (current.feed.kind, current.feed.partition_by):
            raise InvalidFeed(
                feed.name, "kind and partition_by are for life; archive the feed and add one under another name"
            )
        if (feed.folder, feed.partition_prefix) != (current.feed.folder, current.feed.partition_prefix):
            raise InvalidFeed(
                feed.name, "partition_prefix, and to be a mart or none, are for life; archive the feed and add another"
            )
        if _form(feed) != _form(current.feed):
            raise InvalidFeed(
                feed.name, f"what it is kept as is changed by 'datalake feeds convert {feed.name} --to …' alone"
            )
        if problem := _time_problem(feed, current.feed):
            raise InvalidFeed(feed.name, problem)
        if _merged(feed) != _merged(current.feed):
            raise InvalidFeed(
                feed.name, "write, key, order_by and envelope are for life; archive the feed and add another"
            )
        if _remembers(feed) < _remembers(current.feed):
            raise InvalidFeed(
                feed.name,
                "source.horizon can be raised, and not be lowered: rows in quarantine count on how long it was",
            )
        if feed.is_adopted and _adopted(feed) != _adopted(current.feed):
            raise InvalidFeed(
                feed.name,
                "source and time_column of what is adopted are for life; archive the feed and adopt the other",
            )
        return self._change(current, feed, enabled=True)

    def convert(self, feed: Feed) -> Feed:
        """Stores what an active feed is kept as, once its rows are there; all else of its document stays.

        Raises:
            FeedNotFound: There is no such active feed.
            PreconditionFailed: Others changed it again and again.
        """

        def store() -> Feed:
            current = self._get(feed.name)
            named = {"type": feed.format.type, "folder": feed.format.folder, "former": feed.format.former}
            update = {"format": current.feed.format.model_copy(update=named)}
            if _form(feed) == _form(current.feed):
                return current.feed
            return self._change(current, current.feed.model_copy(update=update), enabled=True)

        return retried(store, attempts=ATTEMPTS, on=(PreconditionFailed,))

    def _mend(self, feed: Feed, reason: str, *, expected_revision: int) -> Feed:
        """Replaces a document that is no valid feed, but says what is for life, as the new one does."""
        key = feed_key(feed.name)
        try:
            document, etag = self._store.get(key)
            was = json.loads(document)
            now = feed.model_dump(mode="json")
            is_same = _for_life(feed, was) == _for_life(feed, now) and was["revision"] == expected_revision
        except (ObjectNotFound, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            is_same = False
        if not is_same or not was.get("enabled", True):
            raise InvalidFeed(feed.name, f"{reason}; correct {key} by hand")
        changed = feed.model_copy(update={"enabled": True, "revision": expected_revision + 1})
        self._write(key, changed, etag=etag)
        return changed

    def start_of(self, name: str) -> date | None:
        """The first day of an active feed; None if that cannot be read.

        Raises:
            FeedNotFound: There is none, or it is archived.
        """
        try:
            return self.get(name).start
        except InvalidFeed:
            return None

    def archive(self, name: str) -> Feed:
        """Takes a feed out of the graph and returns it as stored; its data stays. Finishes an interrupted archiving.

        An adopted folder is given free for another lake.

        Raises:
            FeedNotFound: There is no such feed, or it is archived already.
            PreconditionFailed: Somebody else changed the feed meanwhile.
        """
        current = self._documents.newest(name)
        if current is None or current.key.startswith(ARCHIVED):
            raise FeedNotFound(name, archived=current is not None)
        feed = self._change(current, current.feed, enabled=False) if current.feed.enabled else current.feed
        self._move(feed, to_key=feed_key(name, archived=True), from_key=current.key)
        if feed.is_adopted:
            _give_free(self._store, feed)
        return feed

    def restore(self, name: str) -> Feed:
        """Brings an archived feed back and returns it as stored; an adopted folder is taken again.

        Raises:
            FeedNotFound: There is no such feed.
            FeedExists: It is active.
            FolderTaken: The folder is another's by now.
            PreconditionFailed: Somebody else changed the feed meanwhile.
        """
        current = self._documents.newest(name)
        if current is None:
            raise FeedNotFound(name)
        if not current.archived:
            raise FeedExists(name)
        feed = current.feed.model_copy(update={"enabled": True, "revision": current.feed.revision + 1})
        if feed.is_adopted:
            from datalake_assets.lake.tables import take_adopted  # noqa: PLC0415  a list of feeds needs no tables

            take_adopted(self._store, feed)
        self._move(feed, to_key=feed_key(name), from_key=feed_key(name, archived=True))
        return feed

    def archived(self, name: str) -> Feed:
        """The archived feed of this name.

        Raises:
            FeedNotFound: There is none.
            ConfigError: It is active.
        """
        current = self._documents.newest(name)
        if current is None:
            raise FeedNotFound(name)
        if not current.archived:
            raise ConfigError(f"feed {name!r} is active; archive it first: 'datalake feeds archive {name}'")
        return current.feed

    def remove(self, name: str) -> int:
        """Deletes an archived feed and everything of it in the lake; not the files of an adopted folder.

        The feed's own document goes last, so that the name is taken until nothing of it is left; repeat what was
        interrupted.

        Returns:
            How many objects were deleted.

        Raises:
            FeedNotFound: There is no such feed.
            ConfigError: It is active, or another feed has its data in the same folder.
        """
        from datalake_assets.lake.tables import folder_of, open_table  # noqa: PLC0415  a list of feeds needs no tables

        feed = self.archived(name)
        self._refuse_shared(feed)
        former, deleted = feed.format.former, 0
        if former is not None:
            was = feed.format.model_copy(update={"type": former.type, "folder": former.folder, "former": None})
            deleted = folder_of(self._store, feed.model_copy(update={"format": was})).delete_form()
        deleted += open_table(self._store, feed).purge()
        self._store.delete([feed_key(name), feed_key(name, archived=True)])
        return deleted + 1

    def _refuse_shared(self, feed: Feed) -> None:
        """Makes sure that no other feed has its data where this one has; documents can be written by hand."""
        own = _folders(feed)
        for listed in (self.list(), self.list(archived=True)):
            for other in listed.feeds:
                both = [(one, another) for one in own for another in _folders(other) if _lies_in(one, another)]
                if other.name != feed.name and both:
                    raise ConfigError(
                        f"feed {other.name!r} has its data in {both[0][1]}, and feed {feed.name!r} in {both[0][0]}:"
                        " to delete one would delete the other; correct what a document says (format.folder)"
                    )

    def digest(self) -> str:
        """Changes whenever a file of the registry does; costs one listing."""
        listed = sorted((info.key, info.etag) for info in self._store.list(FEEDS_PREFIX))
        return hashlib.blake2b(repr(listed).encode(), digest_size=16).hexdigest()

    def _get(self, name: str) -> FeedCopy:
        current = self._documents.newest(name)
        if current is None or current.archived:
            raise FeedNotFound(name, archived=current is not None)
        return current

    def _change(self, current: FeedCopy, feed: Feed, *, enabled: bool) -> Feed:
        changed = feed.model_copy(update={"enabled": enabled, "revision": current.feed.revision + 1})
        self._write(current.key, changed, etag=current.etag)
        return changed

    def _move(self, feed: Feed, *, to_key: str, from_key: str) -> None:
        target = self._store.head(to_key)
        if target is None:
            self._write(to_key, feed, etag=None)
        else:
            copy = self._documents.read(to_key)
            if copy is None or (copy.feed.revision >= feed.revision and copy.feed != feed):
                raise _changed(to_key)
            if copy.feed != feed:
                self._write(to_key, feed, etag=copy.etag)
            if self._store.now() - target.modified_at < _MOVE_LIMIT:
                return
        source = self._documents.read(from_key)
        if source is not None and source.feed.revision <= feed.revision:
            self._store.delete([from_key])

    def _write(self, key: str, feed: Feed, *, etag: str | None) -> None:
        """Creates (no ETag) or swaps a document; a lost answer is settled by reading back.

        A document is never written twice in a feed's life, since its revision only rises: finding it is proof enough.
        """
        body = feed.model_dump_json(indent=2).encode() + b"\n"
        parse_feed(body, name=feed.name)
        try:
            swap_object(self._store, key, body, etag=etag)
        except PreconditionFailed as error:
            raise _changed(key) from error


def _folders(feed: Feed) -> list[str]:
    """Where the data of a feed lie in the lake, now and before a conversion."""
    if feed.is_adopted:
        return []
    former = feed.format.former
    return [f"{path.strip('/')}/" for path in (feed.data_path, *([former.folder] if former is not None else []))]


def _lies_in(one: str, another: str) -> bool:
    """Whether one folder is, or lies in, the other, or the other way round."""
    return one.startswith(another) or another.startswith(one)


def _give_free(store: Store, feed: Feed) -> None:
    """The feed is archived, whatever became of its folder or table."""
    from datalake_assets.lake.tables import release_adopted  # noqa: PLC0415  a list of feeds needs no tables

    try:
        release_adopted(store, feed)
    except (LakeError, ConfigError) as error:
        logger.warning("the owner's marker of %s stays: %s", feed.source.where, error)


#: What says, in the sources of adopted folders and tables, which one it is.
_PLACE = ("type", "uri", "table", "catalog")


def _for_life(feed: Feed, document: dict[str, Any]) -> tuple[object, ...]:
    """What an update cannot change, of a JSON document of a feed."""
    source, time_column = document["source"], document.get("time_column")
    named = tuple(source.get(field, "") for field in _PLACE)
    kept: tuple[object, ...] = (named, time_column) if feed.is_adopted else ()
    stated = document.get("format", {})
    stated = {"type": stated} if isinstance(stated, str) else stated
    form, where = stated.get("type", "parquet"), (stated.get("folder", ""), stated.get("former"))
    if form == "iceberg":  # without a column of its own, it is the source that says when a row was
        kept = (time_column,) if time_column else (source["type"], source.get("rename", {}))
        kept += (stated.get("parts", []),)
    merging = document.get("merge", {})
    kept += (merging.get("order_by"), merging.get("envelope", "none"), *document.get("key", ()))
    write = document.get("write", "append")
    kept += (source["type"] == "mart", document.get("partition_prefix", ""))
    return (document["name"], document["kind"], document.get("partition_by", "day"), form, *where, write, *kept)


def _parting(feed: Feed) -> tuple[object, ...]:
    """What decides which files of an Iceberg table rows go to."""
    return (feed.row_time, feed.format.parts)


def _time_problem(feed: Feed, was: Feed) -> str:
    """Why a feed cannot have the time that it is to be partitioned by; empty if it can."""
    if feed.is_iceberg and _parting(feed) != _parting(was):
        return "time_column and parts of an Iceberg table are for life; archive the feed and add another"
    if _is_pulled(feed) and _is_pulled(was) and feed.row_time != was.row_time:
        return (
            "time_column of a feed that is pulled by windows is for life: a row would lie in the partition of each of"
            " its times; archive the feed and add another"
        )
    return ""


def _is_pulled(feed: Feed) -> bool:
    """Whether its partitions are pulled, and replaced, by a time; marts make all of theirs anew by themselves."""
    is_stream = feed.kind is FeedKind.STREAM and feed.is_exported and not feed.is_mart
    return is_stream and feed.position_kind is PositionKind.WINDOW


def _merged(feed: Feed) -> tuple[object, ...]:
    """What decides which rows are there already."""
    return (feed.write, feed.key, feed.merge.order_by, feed.merge.envelope)


def _remembers(feed: Feed) -> timedelta:
    """How long items are remembered; no time where there are none, or the source alone decides."""
    source = feed.source
    return (source.remembers if isinstance(source, SystemSource) else None) or timedelta()


def _form(feed: Feed) -> tuple[object, ...]:
    return (feed.format.type, feed.format.folder, feed.format.former)


def _adopted(feed: Feed) -> tuple[object, str | None]:
    return (tuple(getattr(feed.source, field, "") for field in _PLACE), feed.time_column)


def _changed(key: str) -> PreconditionFailed:
    return PreconditionFailed(
        key, "the feed was changed by somebody else", cure="look at it again, then repeat the change"
    )
