"""Reads of a stream whose rows carry source partition and offset: push queries until caught up, and bounded pulls.

Both ask for one row more than they need by source partition: that row shows that nothing was lost in between
(`datalake_assets.sources.ksqldb.positions`). Where a read leaves in doubt which source offsets a stream has, a probe
asks for them. Blocks of decoded rows become the lake's batches, with positions, windows, and where rejected rows stood.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.core.batches import ReadRequest, RejectedRow, SourceBatch
from datalake_assets.core.partitions import TimeWindow
from datalake_assets.errors import IncompleteResponse, SourceError, SourceRefused, SourceUnavailable
from datalake_assets.sources.ksqldb.client import KsqlClient
from datalake_assets.sources.ksqldb.columns import AnswerLayout
from datalake_assets.sources.ksqldb.declaration import ROWTIME, declared
from datalake_assets.sources.ksqldb.decode.rows import DecodedRows, RowDecoder, UndecodedRow
from datalake_assets.sources.ksqldb.failures import retried
from datalake_assets.sources.ksqldb.pace import LONGEST_PUSH_S, Pace
from datalake_assets.sources.ksqldb.positions import OrderWatch, PositionWatch, SeenOffsets
from datalake_assets.sources.ksqldb.query import EARLIEST, PullQuery, PushQuery, Query
from datalake_assets.sources.ksqldb.statements import before, select

__all__ = [
    "Batcher",
    "Beginning",
    "FirstRow",
    "OffsetReader",
    "decoded_again",
    "numbers_of",
    "older",
    "position_of",
    "scan",
]


@dataclass(slots=True)
class Batcher:
    """Makes batches of one read.

    Attributes:
        source: What is read, for errors.
        layout: The answer's columns.
        starts: Rows before these offsets are left out, by source partition.
        window: Rows outside of it are left out.
        seen: Takes note of all rows, those that are left out too.
        order: Makes sure that they are in order.
    """

    source: str
    layout: AnswerLayout
    starts: Mapping[int, int] = field(default_factory=dict)
    window: TimeWindow | None = None
    seen: SeenOffsets | None = None
    order: OrderWatch | None = None

    def batch(self, decoded: DecodedRows) -> SourceBatch | None:
        """The wanted rows of a block; None if there are none."""
        rows = _combined(decoded.table)
        rejected = tuple(row for row in map(self._rejected, decoded.rejected) if row is not None)
        if self.layout.numbering is not None:
            self._note(rows, self.layout.numbering)
        mask = self.layout.wanted(rows, starts=self.starts, window=self.window)
        if not mask.all():
            rows = rows.filter(pa.array(mask))
        if not rows.num_rows and not rejected:
            return None
        partitions, offsets = self._positions(rows)
        return SourceBatch(self.layout.rows(rows), partitions, offsets, rejected)

    def _note(self, rows: pa.RecordBatch, numbering: tuple[int, int]) -> None:
        self._refuse_nulls(rows, numbering)
        for watch in (self.order, self.seen):
            if watch is not None and rows.num_rows:
                watch.add(*numbers_of(rows, numbering))

    def _refuse_nulls(self, rows: pa.RecordBatch, numbering: tuple[int, int]) -> None:
        if any(rows.column(index).null_count for index in numbering):
            names = " or ".join(repr(self.layout.columns[index].name) for index in numbering)
            reason = f"rows without a number in {names}: their source partition and offset are not known"
            raise SourceRefused(self.source, reason, cure="choose other offset_columns, or mode 'pull'")

    def _positions(self, rows: pa.RecordBatch) -> tuple[pa.Array | None, pa.Array | None]:
        if self.layout.numbering is None:
            return None, None
        partition, offset = self.layout.numbering
        return rows.column(partition).cast(pa.int32()), rows.column(offset).cast(pa.int64())

    def _rejected(self, row: UndecodedRow) -> RejectedRow | None:
        at = None if self.layout.numbering is None else position_of(row.raw, len(self.layout.columns))
        if at is not None:
            partition, offset = at
            if self.seen is not None:
                self.seen.add(np.array([partition], np.int32), np.array([offset], np.int64))
            if offset < self.starts.get(partition, 0):
                return None
            return RejectedRow(row.raw, row.reason, f"{partition}:{offset}")
        digest = hashlib.blake2b(row.raw, digest_size=8).hexdigest()
        return RejectedRow(row.raw, row.reason, f"line:{row.line}@{digest}")


def decoded_again(source: str, layout: AnswerLayout, raws: Sequence[bytes]) -> SourceBatch:
    """Rows as a server sent them once, in the columns of an answer now.

    Args:
        source: What is read, for errors.
        layout: The answer's columns.
        raws: The rows.
    """
    kinds = (False, True)
    by_form = [[raw for raw in raws if raw.lstrip().startswith(b"{") is wrapped] for wrapped in kinds]
    tables: list[pa.Table] = []
    rejected: list[UndecodedRow] = []
    for wrapped, rows in zip(kinds, by_form, strict=True):
        decoder = RowDecoder(layout.columns, layout.decoded, wrapped=wrapped)
        # a row that has become several lines is none; its pieces would be rows without a position
        block = b"".join(raw.replace(b"\n", b" ") + b"\n" for raw in rows)
        decoded = decoder.decode(bytearray(block)) if rows else DecodedRows(layout.decoded.empty_table())
        tables.append(decoded.table)
        rejected += decoded.rejected
    rows_again = DecodedRows(pa.concat_tables(tables), tuple(rejected))
    return Batcher(source, layout).batch(rows_again) or _no_rows(layout)


def has_rows_before(rows: DecodedRows, layout: AnswerLayout, moment_ms: int) -> bool:
    """Whether any row's own timestamp is earlier; a row that was not decoded counts as one."""
    if rows.rejected or layout.rowtime is None:
        return rows.lines > 0
    if not rows.table.num_rows:
        return False
    return bool(pc.min(rows.table.column(layout.rowtime)).as_py() < moment_ms)


def numbers_of(rows: pa.RecordBatch, numbering: tuple[int, int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Source partition and offset of decoded rows."""
    partition, offset = (rows.column(index).to_numpy() for index in numbering)
    return partition, offset


def position_of(raw: bytes, columns: int) -> tuple[int, int] | None:
    """Source partition and offset of a row that could not be decoded, if they are certain.

    Args:
        raw: The row as the server sent it, source partition and offset last.
        columns: How many columns it must have: in a shorter row, others would pass for them.
    """
    try:
        row = json.loads(raw)
        values = row["row"]["columns"] if isinstance(row, dict) else row
        if len(values) != columns:
            return None
        partition, offset = values[-2:]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (partition, offset))
    return (partition, offset) if whole and 0 <= partition < 2**31 and 0 <= offset < 2**63 else None


def _no_rows(layout: AnswerLayout) -> SourceBatch:
    rows = pa.RecordBatch.from_pylist([], schema=layout.schema)
    return SourceBatch(rows, pa.array([], pa.int32()), pa.array([], pa.int64()))


def _combined(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if len(batches) == 1:
        return batches[0]
    return pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


#: A query that is followed shows this often that it is alive.
_HEARTBEAT_S = 0.1
#: Gaps between offsets, 16 bytes each, after which an endless read begins anew: compacted topics have many.
_MOST_GAPS = 2_000_000


def older(client: KsqlClient, query: Query, ends: Mapping[int, int]) -> SeenOffsets:
    """One row or more before the end of each source partition that has any, by a bounded query."""
    numbering = _numbering(query)
    found = SeenOffsets()
    with PullQuery(client, _probe(query, select(numbering, query.object, where=[before(numbering, ends)]))) as running:
        for block in running.blocks():
            _note(found, running.layout, block)
            if ends.keys() <= found.extents.keys():
                break
    return found


def scan(
    client: KsqlClient, query: Query, enough: Callable[[SeenOffsets], bool], *, first_row: FirstRow | None = None
) -> SeenOffsets:
    """Reads source offsets from the oldest row on, until enough is known or there are no more.

    Alarms rest on that, and a pause is no end: an endless query is asked only of servers that end no bounded one for
    certain, and has to be silent for as long as any answer may take.

    Raises:
        SourceError: The server failed, or it is not certain that there are no more.
    """
    if not query.push:
        return _pull_scan(client, query, enough)
    if client.version.ends_stream_pulls:
        try:
            return retried(lambda: _pull_scan(client, bounded(query), enough))
        except SourceError as error:
            logger.warning("%s: cannot be scanned by a bounded query: %s", query.source, error.reason)
    return _push_scan(client, query, enough, Beginning(first_row or FirstRow(client, query)))


def bounded(query: Query) -> Query:
    """The same of what is there now, as a query that ends, and says that it is complete."""
    properties = {name: value for name, value in query.properties.items() if name != EARLIEST}
    return replace(query, properties=properties, push=False, says_completed=True)


def _pull_scan(client: KsqlClient, query: Query, enough: Callable[[SeenOffsets], bool]) -> SeenOffsets:
    found = SeenOffsets()
    with PullQuery(client, _probe(query, select(_numbering(query), query.object))) as running:
        for block in running.blocks():
            _note(found, running.layout, block)
            if enough(found):
                break
    return found


def _push_scan(
    client: KsqlClient, query: Query, enough: Callable[[SeenOffsets], bool], beginning: Beginning
) -> SeenOffsets:
    found = SeenOffsets()
    pace = Pace(max(declared(query.feed).idle_s, client.timeout_s), client.timeout_s)
    with PushQuery(client, _probe(query, select(_numbering(query), query.object, push=True))) as running:
        while not (pace.is_overdue or enough(found)):
            for block in pace.poll(running):
                _note(found, running.layout, block)
                if block.lines:
                    beginning.is_over = True
                    pace.restart()
            if running.ended or (pace.is_quiet and beginning.is_the_end(pace)):
                break
    if running.ended:
        beginning.refuse_end()
    return found


@dataclass(slots=True)
class Beginning:
    """Silence at the beginning of an endless query, which may be the end of an empty stream or a slow start.

    A server may take ten seconds and more until it sends the first row. What tells the two apart is a bounded query: it
    ends by saying that it is complete, whether there are rows or not.

    Attributes:
        first_row: That query; asked once, and only if need be.
        is_over: Whether a row came.
    """

    first_row: FirstRow
    is_over: bool = False

    def is_the_end(self, pace: Pace) -> bool:
        """Whether silence for the idle time means that everything came.

        Raises:
            SourceUnavailable: Nothing came for so long that nothing will, and the stream is not known to be empty.
        """
        if self.is_over or self.first_row.is_there is False:
            return True
        if pace.is_quiet_for_long:
            known = "although there are rows" if self.first_row.is_there else _UNTOLD
            reason = f"no row came within {pace.long_s:g} s, {known}"
            raise SourceUnavailable(self.first_row.query.source, reason, cure=_LATE_CURE)
        return False

    def refuse_end(self) -> None:
        """Refuses that the server ended the query before the first row, unless there is none.

        Raises:
            IncompleteResponse: There may be rows.
        """
        if not self.is_over and self.first_row.is_there is not False:
            raise IncompleteResponse(self.first_row.query.source, "the server ended the query before it sent a row")


_UNTOLD = "and the server cannot tell whether there are rows"
_LATE_CURE = "run it again when the server is well, or raise DATALAKE_KSQLDB_TIMEOUT_S"


@dataclass(slots=True)
class FirstRow:
    """Whether a stream has a row at all, asked of a server beside the endless query that waits for its first row."""

    client: KsqlClient
    query: Query
    _answer: tuple[bool | None] | None = field(default=None, init=False)

    @property
    def is_there(self) -> bool | None:
        """The server's answer, asked for once; None where it answers bounded queries not at all, or not for sure."""
        if self._answer is None:
            self._answer = (self._asked() if self.client.version.ends_stream_pulls else None,)
        return self._answer[0]

    def _asked(self) -> bool | None:
        sql = select([ROWTIME], self.query.object, limit=1)
        one = replace(bounded(self.query), sql=sql, time=None, numbering=None, limited=True)

        def ask() -> bool:
            with PullQuery(self.client, one) as running:
                return any(block.lines for block in running.blocks())

        try:
            return retried(ask)
        except SourceError as error:
            logger.warning("%s: cannot be asked for its first row: %s", self.query.source, error.reason)
            return None


def _probe(query: Query, sql: str) -> Query:
    return replace(query, sql=sql, time=None)


def _numbering(query: Query) -> tuple[str, str]:
    if query.numbering is None:
        raise AssertionError("only numbered queries are probed")
    return query.numbering


def _note(found: SeenOffsets, layout: AnswerLayout, block: DecodedRows) -> None:
    for rows in block.table.to_batches():
        if layout.numbering is not None and rows.num_rows:
            found.add(*numbers_of(rows, layout.numbering))


logger = logging.getLogger(__name__)


@dataclass(slots=True)
class OffsetReader:
    """One read, from given positions.

    Attributes:
        client: The server.
        query: What the read itself asks.
        request: What is wanted.
        watch: Whether what comes next is still there.
        unfinished: Why the read ended before all was read; empty if it was not so.
        is_wanted: Whether an endless query is to be read on; one that is not just ends.
    """

    client: KsqlClient
    query: Query
    request: ReadRequest
    watch: PositionWatch
    unfinished: str = ""
    is_wanted: Callable[[], bool] = lambda: True
    _scanned: SeenOffsets | None = field(default=None, init=False)
    _first_row: FirstRow = field(init=False)

    def __post_init__(self) -> None:
        self._first_row = FirstRow(self.client, self.query)

    def pulled(self, running: PullQuery) -> Iterator[SourceBatch]:
        """The rows of a bounded query; an iteration that ends without an error found nothing lost.

        Raises:
            SourceDataLost: Rows between position and oldest offset are gone.
            SourceRecreated: A source partition ends before the position.
        """
        batcher = self._batcher(running.layout)
        for block in running.blocks():
            batch = batcher.batch(block)
            if batch is not None:
                yield batch
        doubts = self.watch.silent | self.watch.gaps
        if doubts:
            ends = {partition: self.watch.starts[partition] - 1 for partition in doubts}
            self.watch.settle(older(self.client, self.query, ends))

    def pushed(self, running: PushQuery) -> Iterator[SourceBatch]:
        """The rows of an endless query, until no row from before the read's beginning came for the feed's idle time.

        Rows that are written while it is read come too, and don't prolong it: a busy stream would never be read.

        Raises:
            SourceDataLost: Rows between position and oldest offset are gone.
            SourceRecreated: A source partition ends before the position.
            SourceUnavailable: The server did not reach the position.
        """
        batcher, pace = self._batcher(running.layout), Pace(declared(self.query.feed).idle_s, self.client.timeout_s)
        beginning = Beginning(self._first_row)
        began_ms = int(time.time() * 1000)
        while self.is_wanted():
            for block in pace.poll(running):
                batch = batcher.batch(block)
                beginning.is_over = beginning.is_over or block.lines > 0
                if self.watch.gaps:
                    self.watch.settle(self._scan())
                if batch is not None:
                    yield batch
                if has_rows_before(block, running.layout, began_ms):
                    pace.restart()
            if running.ended:
                beginning.refuse_end()
                if beginning.is_over:
                    self._unfinished("the server ended the query")
                return
            if pace.is_quiet and self._caught_up(pace, beginning):
                return
            if pace.is_overdue:
                self._unfinished(f"rows still came after {LONGEST_PUSH_S:g} s")
                return

    def followed(self, running: PushQuery) -> Iterator[SourceBatch]:
        """The rows of an endless query as they come, for ever; batches without rows show that none came.

        It ends where the server ends the query, and where more gaps between offsets are remembered than memory allows.

        Raises:
            SourceDataLost: Rows between position and oldest offset are gone.
            SourceRecreated: A source partition ends before the position.
            SourceUnavailable: The server did not reach the position.
        """
        batcher, pace = self._batcher(running.layout), Pace(declared(self.query.feed).idle_s, self.client.timeout_s)
        nothing = _no_rows(running.layout)
        while not running.ended:
            batches = [batch for block in pace.poll(running, longest_s=_HEARTBEAT_S) if (batch := batcher.batch(block))]
            if self.watch.gaps:
                self.watch.settle(self._scan())
            elif self.watch.silent and pace.is_quiet:
                self._settle_silence(pace)
            yield from batches or [nothing]
            if batcher.order is not None and batcher.order.gaps > _MOST_GAPS:
                return

    def _batcher(self, layout: AnswerLayout) -> Batcher:
        return Batcher(
            self.query.source,
            layout,
            starts=self.watch.starts,
            window=self.request.window,
            seen=self.watch.seen,
            order=OrderWatch(self.query.source),
        )

    def _unfinished(self, why: str) -> None:
        self.unfinished = (
            f"not caught up: {why}; what came until then is landed, and the next export goes on from there"
        )
        logger.warning("%s: %s", self.query.source, self.unfinished)

    def _caught_up(self, pace: Pace, beginning: Beginning) -> bool:
        """Whether silence means that there is nothing more, rather than that the server still skips old rows."""
        if not self.watch.silent:
            return beginning.is_the_end(pace)
        self._settle_silence(pace)
        return False

    def _settle_silence(self, pace: Pace) -> None:
        """Finds out what became of source partitions of which nothing came although there must be something."""
        owed = self.watch.settle(self._scan())
        if owed and pace.is_quiet_for_long:
            reason = f"the server did not reach the position in partitions {sorted(owed)} in time"
            raise SourceUnavailable(self.query.source, reason, cure="run it again, or raise DATALAKE_KSQLDB_TIMEOUT_S")

    def _scan(self) -> SeenOffsets:
        """What there is of the source partitions in doubt; read once."""
        if self._scanned is None:
            self._scanned = scan(self.client, self.query, self.watch.is_settled_by, first_row=self._first_row)
        return self._scanned
