"""Reads feeds of the lake for a mart: its query is run over them, exactly as they were committed at one moment each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Never

import pyarrow as pa

from datalake_assets.core.batches import ReadRequest, SourceBatch
from datalake_assets.core.partitions import keys_in, partition_by
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.lake.frames import frame_schema, to_lake
from datalake_assets.lake.marts.mart_inputs import Contents, MadeByPartition, MartInputs, contents_of, declared_mart
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.sql_gate import SqlRefused
from datalake_assets.lake.sql_session import memory_errors_named, open_arrow_answer
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access
from datalake_assets.lake.table import TableReader, TableSnapshot
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import Settings

__all__ = ["LakeSystem", "MartBatches", "MartRows", "connect"]


def connect(settings: Settings) -> LakeSystem:
    """The lake of an installation, to be read by its marts."""
    s3 = S3Access(endpoint=settings.s3_endpoint)
    return LakeSystem(open_store(settings.lake, s3=s3, catalog=CatalogAccess.of(settings)))


class LakeSystem:
    """A lake as the system that its marts are read from; implements `SourceSystem`.

    Args:
        store: The lake.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, feed: Feed, request: ReadRequest) -> MartBatches:
        """Implements `SourceSystem`."""
        by = partition_by(feed)
        keys = tuple(keys_in(request.window, by)) if by is not None and request.window is not None else ("",)
        return MartBatches(self._store, feed, keys, request)

    def discover(self) -> Iterator[Never]:
        """Implements `SourceSystem`: nothing, since only people can say what they want to know."""
        yield from ()

    def check(self, feed: Feed) -> None:
        """Implements `SourceSystem`.

        Raises:
            ConfigError: The query cannot be run over the feeds as they are.
        """
        _ = self.read(feed, ReadRequest()).schema

    def count(self, feed: Feed) -> int | None:  # noqa: ARG002  `SourceSystem`
        """Implements `SourceSystem`: None, since only the query can tell."""
        return None

    def close(self) -> None:
        """Implements `SourceSystem`."""


class MartBatches(MadeByPartition):
    """What a mart's query gives for some partitions; implements `Batches`, one partition after the other.

    Args:
        store: The lake.
        feed: The mart.
        keys: Its partitions; of a table one, whatever it is called.
        request: What is read.
    """

    recreated = False
    unfinished = ""

    def __init__(self, store: Store, feed: Feed, keys: Sequence[str], request: ReadRequest) -> None:
        self.store, self.feed, self.keys, self.request = store, feed, tuple(keys), request

    @cached_property
    def inputs(self) -> MartInputs:
        """What the mart reads, by the registry as it is now."""
        return MartInputs.of(self.feed, FeedRegistry(self.store).list().feeds)

    @cached_property
    def schema(self) -> pa.Schema:
        """Schema of the rows: as DuckDB says it of the query, in the lake's types."""
        query = declared_mart(self.feed).query
        try:
            found = self._schema_of(f"SELECT * FROM ({query}\n) LIMIT 0")  # noqa: S608  it has to pass the gate, too
        except SqlRefused:  # not every query may stand within another: ask for its first rows
            found = self._schema_of(query)
        schema = frame_schema(found, asset=self.feed.path)
        if self.time_column is not None and self.time_column not in schema.names:
            raise ConfigError(
                f"mart {self.feed.name!r}: its query gives no column {self.time_column!r}, its time_column"
            )
        return schema

    def _schema_of(self, query: str) -> pa.Schema:
        feeds, key = tuple(self.inputs.inputs.values()), self.keys[0]
        snapshot_of = partial(self.inputs.snapshot, key=key)
        with open_arrow_answer(self.store, feeds, query, snapshot_of=snapshot_of) as answer:
            return answer.schema

    @property
    def time_column(self) -> str | None:
        """The column that says a row's partition; None: all rows are of the partition that they were made for."""
        return self.feed.time_column

    def of(self, key: str) -> MartRows:
        """The rows of one partition."""
        return MartRows(self, key)

    def contents(self) -> Contents:
        """Of each input, what its partitions hold now: a request for each manifest."""
        return contents_of(self.inputs, partial(open_table, self.store))

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the rows of all partitions."""
        for key in self.keys:
            yield from self.of(key)

    def acknowledge(self) -> None:
        """Does nothing: the lake need not know."""


class MartRows:
    """What a mart's query gives for one partition, or for a version; implements `Batches` and `Derived`.

    Args:
        mart: The rows of all partitions.
        key: The partition.
    """

    recreated = False
    unfinished = ""

    def __init__(self, mart: MartBatches, key: str) -> None:
        self._mart, self._key = mart, key
        self.request, self.time_column = mart.request, mart.time_column
        self._seen: dict[str, TableSnapshot] = {}
        self.inputs = ""

    @property
    def schema(self) -> pa.Schema:
        """Implements `Batches`."""
        return self._mart.schema

    def _snapshot_of(self, table: TableReader) -> TableSnapshot:
        seen = self._mart.inputs.snapshot(table, self._key)
        self._seen[table.feed.name] = seen
        return seen

    def __iter__(self) -> Iterator[SourceBatch]:
        """Implements `Batches`: runs the query over what is committed by now.

        Raises:
            SqlRefused: DuckDB refuses it.
            SnapshotExpired: Files were merged while it was read; reading again is safe.
        """
        schema, feed, inputs = self.schema, self._mart.feed, self._mart.inputs
        query, feeds = declared_mart(feed).query, tuple(inputs.inputs.values())
        self.inputs = ""
        with (
            memory_errors_named(),
            open_arrow_answer(self._mart.store, feeds, query, snapshot_of=self._snapshot_of) as answer,
        ):
            self.inputs = inputs.digest({name: seen.contents() for name, seen in self._seen.items()})
            for batch in answer.batches:
                yield SourceBatch(to_lake(batch, schema, asset=feed.path))

    def acknowledge(self) -> None:
        """Implements `Batches`."""
