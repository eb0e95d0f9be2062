"""How far a sink has got, by partition: durable, in the lake, and its own; the lake's positions know nothing of sinks.

What is remembered of a partition is what was committed of it when all of that was taken by the sink. It is written
after the sink has answered, so a delivery that dies is repeated, and ids make the repetition harmless (ADR 046).
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from datalake_assets.core.partitions import partition_path
from datalake_assets.errors import CorruptLake, PreconditionFailed
from datalake_assets.feed import Feed
from datalake_assets.lake.layout import new_id, sink_folder
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import known_object, swap_object

__all__ = ["Delivered", "DeliveredLog", "Overtaken", "UnderWay"]

#: Names of files that are remembered; of more, files are read again and their rows told apart by their positions.
MOST_FILES = 2_000


class Overtaken(Exception):
    """Another delivery of the partition has written its progress meanwhile."""


class UnderWay(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A delivery of a partition that has begun; its documents may be there, all or some.

    Attributes:
        target: Where it writes; a repetition writes the same to the same place, so that no document lies in two.
        by_position: As in `Delivered`; like what follows, it is what there was when it began.
        content: Likewise.
        generation: Likewise.
        rows: Likewise.
        position: Likewise.
    """

    target: str
    by_position: bool = False
    content: str = ""
    generation: int = 0
    rows: int = 0
    position: dict[str, Any] | None = None


class Delivered(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a sink has of a partition.

    Attributes:
        write_id: Fresh for every write.
        content: `TableSnapshot.contents` of what was sent; empty if nothing was yet.
        generation: Commits by then.
        rows: Rows by then.
        files: Names of the files by then, or of some of them.
        position: The partition's position by then, as JSON.
        by_position: Whether documents have the positions of their rows for ids; else they are known by their content.
        under_way: What has begun since and was not finished, or not yet.
        refused: Documents that the sink has refused, as counted when they were.
        compared: How often its documents were compared with the rows, and may have been removed.
        place: `datalake_assets.feed_sinks.SinkModel.place` of who sent it; None of what earlier releases wrote.
    """

    write_id: str = ""
    content: str = ""
    generation: int = 0
    rows: int = 0
    files: tuple[str, ...] = ()
    position: dict[str, Any] | None = None
    by_position: bool = False
    under_way: UnderWay | None = None
    refused: int = 0
    compared: int = 0
    place: str | None = None

    def has(self, content: str) -> bool:
        """Whether the sink has all of a partition of this content, and nothing else has begun."""
        return self.content == content and self.under_way is None


class DeliveredLog:
    """The progress of one sink of a feed.

    Args:
        store: The lake.
        feed: The feed.
        sink: The sink's name.
        place: Where it has its documents.
    """

    def __init__(self, store: Store, feed: Feed, sink: str, *, place: str = "") -> None:
        self._store, self._feed, self._place = store, feed, place
        self._folder = f"{sink_folder(feed, sink)}/position"
        self._etags: dict[str, str | None] = {}

    def load(self, key: str) -> Delivered:
        """What the sink has of a partition; nothing where what it has lies at another place than it writes to now.

        Raises:
            CorruptLake: What is written there is no progress of a sink.
        """
        path = self._path(key)
        known = known_object(self._store, path)
        self._etags[key] = known.etag
        if known.body is None:
            return Delivered()
        try:
            found = msgspec.convert(json.loads(known.body), Delivered)
        except (ValueError, msgspec.ValidationError) as error:
            cure = f"'datalake sinks resend {self._feed.name}' begins anew"
            raise CorruptLake(path, f"it is no progress of a sink: {error}", cure=cure) from error
        return Delivered() if found.place not in {None, self._place} else found

    def save(self, key: str, delivered: Delivered) -> Delivered:
        """Writes what the sink has of a partition, over what `load` or `save` knew.

        Raises:
            Overtaken: Another delivery has written it since.
        """
        stamped = msgspec.structs.replace(
            delivered, write_id=new_id(), files=delivered.files[:MOST_FILES], place=self._place
        )
        body = json.dumps(msgspec.to_builtins(stamped)).encode()
        try:
            self._etags[key] = swap_object(self._store, self._path(key), body, etag=self._etags.get(key))
        except PreconditionFailed as error:
            raise Overtaken(key) from error
        return stamped

    def forget(self) -> int:
        """Forgets all progress: the next delivery sends everything; returns of how many partitions."""
        keys = [info.key for info in self._store.list(self._folder)]
        self._store.delete(keys)
        return len(keys)

    def _path(self, key: str) -> str:
        return f"{self._folder}/{partition_path(self._feed, key)}.json"
