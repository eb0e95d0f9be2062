"""ksqlDB as a source: from a feed and what is wanted of it to queries, and from their answers to batches.

What is read how:

==========================  =========================================================================================
tables                      one pull query; complete with its closing bracket, but see below
streams, ``pull``           one pull query for the window; complete with its completion message
streams, ``offsets``        a push query from the start positions, until no older row came for ``idle_s``
… with ``offset_columns``   one pull query from the start positions; complete with its completion message
==========================  =========================================================================================

ROWTIME is landed as ``rowtime``, the last column, where the feed names no other time column; a BIGINT time column is
landed as the timestamp that it stands for. ROWPARTITION and ROWOFFSET are never landed, ``offset_columns`` only where
the feed's ``rename`` names them.

A failed scan of a table may end as a well-formed, shorter, even empty answer (``HARouting.executeRounds`` closes the
row queue before its error gets through; ksqlDB 0.29 and later): the lake pulls a table again whose rows fell suddenly.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import pyarrow as pa
from pydantic import SecretStr

from datalake_assets.core.batches import Batches, EndlessBatches, ReadRequest, SourceBatch
from datalake_assets.errors import ConfigError, SchemaChanged, SourceRecreated, SourceRefused
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.ksqldb.client import KsqlClient
from datalake_assets.sources.ksqldb.columns import AnswerLayout, is_timestamp, resolve, time_source
from datalake_assets.sources.ksqldb.declaration import ROWTIME, KsqlDBMode, KsqlDBSettings, declared
from datalake_assets.sources.ksqldb.failures import retried, surfaced
from datalake_assets.sources.ksqldb.positions import PositionWatch, first_offsets, starts_anew
from datalake_assets.sources.ksqldb.query import EARLIEST, PullQuery, PushQuery, Query
from datalake_assets.sources.ksqldb.reading import Batcher, OffsetReader, decoded_again, scan
from datalake_assets.sources.ksqldb.statements import Description, at_or_after, described, in_window, listed, select
from datalake_assets.sources.topic_identity import TopicIdentity

__all__ = ["KsqlDB", "connect"]

logger = logging.getLogger(__name__)

_PSEUDO_NUMBERING = ("ROWPARTITION", "ROWOFFSET")
#: A query that was opened to learn the schema serves the iteration too, if that begins within this time: later, its
#: rows would be older than the caller thinks.
_HELD_S = 5.0
#: Rows of a stream that is followed are handed on when the first of them has waited this long.
_FOLLOWED_HOLD_S = 0.1


class KsqlDB:
    """A ksqlDB server to read feeds from; one thread at a time.

    Args:
        url: ``http(s)://host[:port]``; credentials in it are used, and never shown.
        user: For HTTP Basic authentication.
        password: Its password.
        ca_file: PEM file of the authority that signed the server's certificate.
        timeout_s: Seconds to wait for a connection or for the next bytes of an answer.

    Raises:
        ConfigError: The URL or the file cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: SecretStr | str | None = None,
        ca_file: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._client = KsqlClient(url, user=user, password=password, ca_file=ca_file, timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"KsqlDB({self._client.url!r})"

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        """Prepares to read ``feed``; nothing is asked before the iteration, or its ``schema``."""
        return _KsqlBatches(self._client, feed, request)

    def follow(self, feed: Feed, request: ReadRequest) -> EndlessBatches:
        """Prepares to read ``feed`` by a push query that goes on; implements `Follows`."""
        return _KsqlBatches(self._client, feed, request, follows=True)

    def read_ahead(self, feed: Feed, request: ReadRequest, *, is_wanted: Callable[[], bool]) -> Batches:
        """Prepares to read ``feed`` in a way that can be given up; implements `BeginsAhead`."""
        return _KsqlBatches(self._client, feed, request, is_wanted=is_wanted)

    def discover(self) -> Iterator[SourceObject]:
        """Lists streams and tables; the note says why one cannot be landed.

        Raises:
            SourceError: The server failed.
        """
        return listed(self._client)

    def check(self, feed: Feed) -> None:
        """Asks whether ``feed`` could be read: its object, its columns, its query.

        Raises:
            SourceError: It could not; says why.
            InvalidFeed: Its columns don't fit what the feed says of them.
        """
        batches = _KsqlBatches(self._client, feed, ReadRequest())
        with contextlib.closing(batches):
            _ = batches.schema

    def decode(self, feed: Feed, raws: Sequence[bytes]) -> SourceBatch:
        """Decodes rows again that went to quarantine as this server sent them; implements `DecodesAgain`."""
        batches = _KsqlBatches(self._client, feed, ReadRequest())
        with contextlib.closing(batches):
            return decoded_again(self._client.source(declared(feed).object), batches.layout, raws)

    def count(self, feed: Feed) -> None:
        """Nothing: ksqlDB counts by reading."""

    def close(self) -> None:
        """Closes its connections; idempotent."""
        self._client.close()


def connect(settings: Settings) -> KsqlDB:
    """The server of an installation's settings.

    Raises:
        ConfigError: They name none, or cannot work.
    """
    own = settings.of(KsqlDBSettings)
    if not own.ksqldb_url:
        raise ConfigError(
            "no ksqlDB server to read from: set DATALAKE_KSQLDB_URL (only demo lakes read the embedded server)"
        )
    return KsqlDB(
        own.ksqldb_url,
        user=own.ksqldb_user,
        password=own.ksqldb_password,
        ca_file=own.ksqldb_ca_file,
        timeout_s=own.ksqldb_timeout_s,
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """An open read: its schema is known, its rows are not read yet."""

    layout: AnswerLayout
    batches: Callable[[], Iterator[SourceBatch]]
    close: Callable[[], None]
    opened: float

    @property
    def schema(self) -> pa.Schema:
        """The lake's columns."""
        return self.layout.schema


class _KsqlBatches:
    """One read of a feed."""

    def __init__(
        self,
        client: KsqlClient,
        feed: Feed,
        request: ReadRequest,
        *,
        follows: bool = False,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client, self._feed, self._request = client, feed, request
        self._follows, self._is_wanted = follows, is_wanted
        self._declared = declared(feed)
        self._source = client.source(self._declared.object)
        self._schema: pa.Schema | None = None
        self._held: _Read | None = None
        self._recreated = self._is_other = False
        self._source_id = ""
        self._reader: OffsetReader | None = None

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows; asks the server, and keeps the query for an iteration that begins at once."""
        if self._schema is None:
            self._held = retried(self._open)
            self._schema = self._held.schema
        return self._schema

    @property
    def layout(self) -> AnswerLayout:
        """How the answer's columns become the lake's; asks the server, as `schema` does."""
        _ = self.schema
        if self._held is None:
            self._held = retried(self._open)
        return self._held.layout

    @property
    def time_column(self) -> str | None:
        """The lake column that partitions the rows; None for a table."""
        if self._feed.kind is FeedKind.TABLE:
            return None
        return self._feed.row_time

    @property
    def request(self) -> ReadRequest:
        """What is read."""
        return self._request

    @property
    def recreated(self) -> bool:
        """Whether the source numbers its rows anew; asked only if the request accepts it."""
        return self._recreated

    @property
    def unfinished(self) -> str:
        """Why the last iteration stopped before the end of an endless query; empty if it came there."""
        return "" if self._reader is None else self._reader.unfinished

    def acknowledge(self) -> None:
        """Does nothing: ksqlDB needn't know."""

    def close(self) -> None:
        """Drops a query that was opened for its schema only; idempotent."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # nobody is left to tell
            self.close()

    def __iter__(self) -> Generator[SourceBatch, None, None]:
        """Streams the rows. Failures before the first batch are retried; later ones are the caller's.

        Raises:
            SourceError: The server failed, refused, or ended without saying that it was complete.
        """
        read, batches, first = retried(self._begin)
        with contextlib.closing(read), surfaced():
            for batch in batches if first is None else chain((first,), batches):
                yield replace(batch, source_id=self._source_id)

    def _begin(self) -> tuple[_Read, Iterator[SourceBatch], SourceBatch | None]:
        read = self._fresh()
        try:
            batches = read.batches()
            return read, batches, next(batches, None)
        except BaseException:
            read.close()
            raise

    def _fresh(self) -> _Read:
        held, self._held = self._held, None
        if held is not None and time.monotonic() - held.opened <= _HELD_S:
            return held
        if held is not None:
            held.close()
        read = self._open()
        if self._schema is not None and not read.schema.equals(self._schema):
            read.close()
            raise SchemaChanged(self._source, "the columns changed while it was being read", cure="run it again")
        self._schema = read.schema
        return read

    def _open(self) -> _Read:
        description = described(self._client, self._declared.object)
        _refuse(self._source, self._feed, description)
        if self._feed.kind is FeedKind.TABLE:
            return self._table()
        by = time_source(self._feed, description.columns)
        if self._declared.mode is KsqlDBMode.PULL:
            return self._window(description, by)
        self._refuse_other(description)
        if self._follows or self._declared.offset_columns is None:
            return self._push(description, by)
        return self._numbered(description, by)

    def _refuse_other(self, description: Description) -> None:
        """Makes sure that the offsets are of the topic of which rows were landed; columns may have those of any.

        Raises:
            SourceRecreated: They are of another one, and nobody takes that for granted.
        """
        if not description.topic or self._declared.offset_columns is not None:
            return
        topic, before = TopicIdentity(description.topic), self._request.source_id
        self._is_other = topic.is_other_than(before)
        if self._is_other and not self._request.new_epoch:
            raise SourceRecreated(self._source, topic.told(before))
        self._source_id = topic.to_text(before="" if self._is_other else before)

    def _table(self) -> _Read:
        return self._whole(self._query(select(["*"], self._declared.object)))

    def _window(self, description: Description, by: str) -> _Read:
        self._refuse_old("pull queries on streams")
        return self._whole(self._query(self._select(description, by), by=by, says_completed=True))

    def _whole(self, query: Query) -> _Read:
        running = PullQuery(self._client, query)
        batcher = Batcher(self._source, running.layout)
        return _read(running, lambda: (batch for block in running.blocks() if (batch := batcher.batch(block))))

    def _push(self, description: Description, by: str) -> _Read:
        is_own = self._declared.offset_columns is not None
        numbering = self._numbering(description) if is_own else _PSEUDO_NUMBERING
        columns = [name for name in description.columns if name not in numbering]
        where = [self._bounds(numbering, nullable=is_own)]
        sql = select([*columns, ROWTIME, *numbering], self._declared.object, where=where, push=True)
        query = self._query(sql, by=by, numbering=numbering, push=True)
        if self._follows:
            query = replace(query, hold_s=_FOLLOWED_HOLD_S)
        self._reader = reader = self._offset_reader(query)
        running = PushQuery(self._client, query)
        return _read(running, lambda: reader.followed(running) if self._follows else reader.pushed(running))

    def _numbered(self, description: Description, by: str) -> _Read:
        self._refuse_old("pull queries on streams")
        numbering = self._numbering(description)
        sql = self._select(description, by, numbering=numbering)
        query = self._query(sql, by=by, numbering=numbering, says_completed=True)
        reader = self._offset_reader(query)
        running = PullQuery(self._client, query)
        return _read(running, lambda: reader.pulled(running))

    def _numbering(self, description: Description) -> tuple[str, str]:
        """The source's names of the columns that carry source partition and offset."""
        partition, offset = self._declared.offset_columns or _PSEUDO_NUMBERING
        columns = description.columns
        return resolve(self._feed, partition, columns), resolve(self._feed, offset, columns)

    def _select(self, description: Description, by: str, *, numbering: tuple[str, str] | None = None) -> str:
        """A bounded query of a stream: its columns, ROWTIME if it partitions, source partition and offset last."""
        columns = [name for name in description.columns if name not in (numbering or ())]
        columns += [*([ROWTIME] if by == ROWTIME else []), *(numbering or ())]
        as_text = by != ROWTIME and is_timestamp(description.types.get(by, ""))
        where = [
            in_window(by, self._request.window, as_text=as_text),
            self._bounds(numbering, nullable=True) if numbering else "",
        ]
        return select(columns, self._declared.object, where=where)

    @property
    def _starts(self) -> dict[int, int]:
        """Next offset wanted by source partition; nothing if everything is."""
        return {} if self._request.new_epoch else self._request.numbered_starts

    def _bounds(self, numbering: tuple[str, str], *, nullable: bool) -> str:
        return at_or_after(numbering, first_offsets(self._starts), nullable=nullable)

    def _offset_reader(self, query: Query) -> OffsetReader:
        starts = self._request.numbered_starts
        if self._request.new_epoch and starts:
            watch = PositionWatch(self._source, starts)
            self._recreated = self._is_other or starts_anew(starts, scan(self._client, query, watch.is_settled_by))
        # a pull's window is the server's to filter: it hides the row that would vouch for the position
        vouched = query.push or self._request.window is None
        watch = PositionWatch(self._source, self._starts, vouched=vouched)
        return OffsetReader(self._client, query, self._request, watch, is_wanted=self._is_wanted)

    def _query(
        self,
        sql: str,
        *,
        by: str | None = None,
        numbering: tuple[str, str] | None = None,
        push: bool = False,
        says_completed: bool = False,
    ) -> Query:
        properties = dict(self._declared.properties)
        if push:
            properties[EARLIEST] = "earliest"
        return Query(sql, self._source, self._feed, properties, by, numbering, push, says_completed)

    def _refuse_old(self, what: str) -> None:
        version = self._client.version
        if not version.ends_stream_pulls:
            reason = f"ksqlDB {version.text} ends {what} without saying that they are complete (#8554)"
            cure = "upgrade to 0.25.1 or later, or read it by offsets without offset_columns"
            raise SourceRefused(self._source, reason, cure=cure)


def _read(running: PullQuery | PushQuery, batches: Callable[[], Iterator[SourceBatch]]) -> _Read:
    return _Read(running.layout, batches, running.close, time.monotonic())


def _refuse(source: str, feed: Feed, description: Description) -> None:
    if description.kind != feed.kind.value:
        reason = f"it is a {description.kind}, not a {feed.kind.value}"
        raise SourceRefused(source, reason, cure=f"set the feed's kind to {description.kind!r}")
    headers = description.source_table and description.header_columns
    if headers:
        raise SourceRefused(source, description.note, cure="then set the feed's source to that table")
