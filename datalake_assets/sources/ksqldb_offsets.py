"""Reads of a stream whose rows carry source partition and offset: push queries until caught up, and bounded pulls.

Both ask for one row more than they need by source partition, see `ksqldb_positions`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from datalake_assets.core.batches import ReadRequest, SourceBatch
from datalake_assets.errors import SourceUnavailable
from datalake_assets.sources.ksqldb_batches import Batcher, has_rows_before
from datalake_assets.sources.ksqldb_client import KsqlClient
from datalake_assets.sources.ksqldb_columns import Layout
from datalake_assets.sources.ksqldb_positions import OrderWatch, PositionWatch, Seen
from datalake_assets.sources.ksqldb_probe import LONGEST_PUSH_S, Pace, older, scan
from datalake_assets.sources.ksqldb_query import PullQuery, PushQuery, Query

__all__ = ["OffsetReader"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class OffsetReader:
    """One read, from given positions.

    Attributes:
        client: The server.
        query: What the read itself asks.
        request: What is wanted.
        watch: Whether what comes next is still there.
    """

    client: KsqlClient
    query: Query
    request: ReadRequest
    watch: PositionWatch
    _scanned: Seen | None = field(default=None, init=False)

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
        batcher, pace = self._batcher(running.layout), Pace(self.query.feed.ksqldb.idle_s, self.client.timeout_s)
        began_ms = int(time.time() * 1000)
        while True:
            for block in pace.poll(running):
                batch = batcher.batch(block)
                if self.watch.gaps:
                    self.watch.settle(self._scan())
                if batch is not None:
                    yield batch
                if has_rows_before(block, running.layout, began_ms):
                    pace.restart()
            if running.ended:
                logger.warning("%s: the server ended the query; what came until then is kept", self.query.source)
                return
            if pace.is_quiet and self._caught_up(pace):
                return
            if pace.is_overdue:
                logger.warning("%s: not caught up after %d s; the next read goes on", self.query.source, LONGEST_PUSH_S)
                return

    def _batcher(self, layout: Layout) -> Batcher:
        return Batcher(
            self.query.source,
            layout,
            starts=self.watch.starts,
            window=self.request.window,
            seen=self.watch.seen,
            order=OrderWatch(self.query.source),
        )

    def _caught_up(self, pace: Pace) -> bool:
        """Whether silence means that there is nothing more, rather than that the server still skips old rows."""
        if not self.watch.silent:
            return True
        owed = self.watch.settle(self._scan())
        if owed and pace.is_quiet_for_long:
            reason = f"the server did not reach the position in partitions {sorted(owed)} in time"
            raise SourceUnavailable(self.query.source, reason, cure="run it again, or raise DATALAKE_KSQLDB_TIMEOUT_S")
        return False

    def _scan(self) -> Seen:
        """What there is of the source partitions in doubt; read once."""
        if self._scanned is None:
            self._scanned = scan(self.client, self.query, self.watch.is_settled_by)
        return self._scanned
