"""What a mart is made of: its inputs, which of their partitions go into which of its own, and what has changed.

What a partition was made of is one text, a digest of the query and of the contents of all partitions that it read,
which its position keeps. A partition is stale when that text would be another one by now. So nothing has to be
remembered of what was refreshed: a lost event, a crash, or a refresh that came too early show as a stale partition.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa

from datalake_assets.core.batches import Batches
from datalake_assets.core.partitions import PartitionBy, key_of, keys_in, partition_by, window_of
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, MartSource
from datalake_assets.lake.sql_gate import SqlRefused, check_query
from datalake_assets.lake.table import TableReader, TableSnapshot

__all__ = [
    "Contents",
    "MadeByPartition",
    "MartInputs",
    "contents_of",
    "declared_mart",
    "input_names",
    "mart_problem",
]

#: From the longest to the shortest.
_LENGTHS = (PartitionBy.MONTH, PartitionBy.DAY, PartitionBy.HOUR)

#: Of each input by name, the contents of its partitions.
Contents = Mapping[str, Mapping[str, str]]


def declared_mart(feed: Feed) -> MartSource:
    """What a feed says of the SQL that it is made by.

    Raises:
        ConfigError: It is made by something else.
    """
    if isinstance(feed.source, MartSource):
        return feed.source
    raise ConfigError(f"feed {feed.name!r} is no mart")


_checked = lru_cache(maxsize=1_000)(check_query)


def input_names(query: str) -> frozenset[str]:
    """Names of feeds that a query may read; some of them may be its own common table expressions.

    Raises:
        SqlRefused: It is not one read, or asks for all feeds that there are.
    """
    named = _checked(query).tables
    if named is None:
        raise SqlRefused("a mart reads feeds by their names, and not all that there are")
    return named


@dataclass(frozen=True, slots=True)
class MartInputs:
    """The inputs of a mart.

    Attributes:
        feed: The mart.
        inputs: The feeds that it reads, by name.
    """

    feed: Feed
    inputs: Mapping[str, Feed] = field(default_factory=dict)

    @classmethod
    def of(cls, feed: Feed, feeds: Iterable[Feed]) -> MartInputs:
        """The inputs of a mart among the feeds of its lake.

        Raises:
            SqlRefused: Its query is not one read, or names what is no feed.
            ConfigError: It reads itself, or partitions that are longer than its own.
        """
        source = declared_mart(feed)
        named, known = input_names(source.query), {each.name: each for each in feeds}
        defined = _checked(source.query).defined
        unknown = sorted({*named - defined, *source.whole} - known.keys() - {feed.name})
        if unknown:
            raise SqlRefused(f"there is no feed {unknown[0]!r} in this lake")
        if feed.name in {*named - defined, *source.whole}:
            raise SqlRefused(f"it reads {feed.name!r}, which is the mart itself")
        found = cls(feed, {name: known[name] for name in sorted(named & known.keys() - {feed.name})})
        found._refuse_longer(source)
        return found

    def _refuse_longer(self, source: MartSource) -> None:
        for name in source.whole:
            if name not in self.inputs:
                raise ConfigError(f"mart {self.feed.name!r}: whole: its query does not read {name!r}")
        own = partition_by(self.feed)
        for name, each in self.inputs.items():
            length = self._length(each)
            if own is not None and length is not None and _LENGTHS.index(length) < _LENGTHS.index(own):
                raise ConfigError(
                    f"mart {self.feed.name!r}: its partitions by {own} are shorter than those of {name!r}, by {length}:"
                    f" nothing says which rows belong to which; take partition_by = '{length}', or name {name!r} in"
                    " 'whole', and let the query say it"
                )

    def _length(self, each: Feed) -> PartitionBy | None:
        """Of the partitions of an input that go into those of the same time; None: it is read whole."""
        if self.feed.kind is FeedKind.TABLE or each.name in declared_mart(self.feed).whole:
            return None
        return partition_by(each)

    def reads_by_partition(self, each: Feed) -> bool:
        """Whether a partition of the mart reads only the input's partitions of the same time."""
        return self._length(each) is not None

    def snapshot(self, table: TableReader, key: str) -> TableSnapshot:
        """What a partition of the mart, or a version of it, sees of an input; an empty key means all of it."""
        length, own = self._length(table.feed), partition_by(self.feed)
        if length is None or own is None or not key:
            return table.snapshot()
        wanted = list(keys_in(window_of(key, own), length))
        if len(wanted) > 1:
            known = set(table.partitions())
            wanted = [each for each in wanted if each in known]
        return table.snapshot(wanted)

    def digest(self, contents: Contents) -> str:
        """What rows were made of, by what their query saw of its inputs."""
        source = declared_mart(self.feed)
        seen = {name: self._seen(each, contents.get(name, {})) for name, each in self.inputs.items()}
        document = json.dumps([source.query, sorted(source.whole), self.feed.time_column, seen], sort_keys=True)
        return hashlib.blake2b(document.encode(), digest_size=16).hexdigest()

    def _seen(self, each: Feed, contents: Mapping[str, str]) -> list[Any]:
        """What is seen of an input; of a table not which version it is: the same rows again are no change."""
        return sorted(contents.values() if each.kind is FeedKind.TABLE else contents.items())

    def by_partition(self, contents: Contents, keys: Sequence[str] | None = None) -> dict[str, str]:
        """What each partition would be made of now; a partition without any rows to read is left out.

        Args:
            contents: Of all partitions of all inputs.
            keys: Partitions of the mart; None: all that have something to read.
        """
        own = partition_by(self.feed)
        if own is None:
            raise AssertionError
        whole = self._whole(contents)
        parts: dict[str, dict[str, dict[str, str]]] = {}
        for name, each in self.inputs.items():
            length = self._length(each)
            if length is None:
                continue
            for key, content in contents.get(name, {}).items():
                parts.setdefault(key_of(window_of(key, length).start, own), {}).setdefault(name, {})[key] = content
        if keys is not None and len(whole) == len(self.inputs):
            parts |= {key: {} for key in keys}
        wanted = sorted(parts) if keys is None else [key for key in keys if key in parts]
        return {key: self.digest({**whole, **parts[key]}) for key in wanted}

    def emptied(self, contents: Contents) -> str:
        """What a partition is made of by now whose inputs have no such partition, or none any more."""
        return self.digest(self._whole(contents))

    def _whole(self, contents: Contents) -> dict[str, Mapping[str, str]]:
        return {name: contents.get(name, {}) for name, each in self.inputs.items() if self._length(each) is None}


class MadeByPartition(ABC):
    """Batches of a mart: the rows of each partition by themselves."""

    @property
    @abstractmethod
    def inputs(self) -> MartInputs:
        """What the mart reads."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Schema of the rows."""

    @abstractmethod
    def contents(self) -> Contents:
        """What the partitions of all inputs hold now."""

    @abstractmethod
    def of(self, key: str) -> Batches:
        """The rows of one partition, or version."""


def contents_of(inputs: MartInputs, open_table: Callable[[Feed], TableReader]) -> Contents:
    """Of each input, what its partitions hold now: a request for each manifest."""
    return {name: open_table(each).snapshot().contents() for name, each in inputs.inputs.items()}


def mart_problem(feed: Feed, feeds: Iterable[Feed]) -> str | None:
    """Why a mart could never be made; None if nothing shows.

    Args:
        feed: The mart.
        feeds: The active feeds of its lake.
    """
    known = {each.name: each for each in feeds} | {feed.name: feed}
    try:
        found = MartInputs.of(feed, known.values())
        return _circle(found, known)
    except SqlRefused as error:
        return f"source.query: {error.reason}"
    except ConfigError as error:
        return str(error)


def _circle(of: MartInputs, known: Mapping[str, Feed]) -> str | None:
    """Whether some mart that it reads, or that one reads, reads it."""
    waiting, seen = list(of.inputs), set[str]()
    while waiting:
        name = waiting.pop()
        if name == of.feed.name:
            return f"source.query: {of.feed.name!r} would be made of itself, by way of other marts"
        if name in seen or name not in known or not known[name].is_mart:
            continue
        seen.add(name)
        waiting += sorted(input_names(declared_mart(known[name]).query) & known.keys())
    return None
