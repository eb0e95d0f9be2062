"""What is remembered of deleted keys, where an order column says which change is the newest.

A row that is there carries its own order value. One that was deleted does not, and an older change of it may still
come: it would bring the row back. So the deletion's order value is kept, in a Parquet file beside the manifests that
the feed's state names. The file is written before the commits that delete the rows: whoever dies in between has only
remembered early what the next run deletes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalake_assets.core.feed_state import FeedState
from datalake_assets.errors import CorruptLake, ObjectNotFound, PreconditionFailed
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.swap import retried
from datalake_assets.parquet.failed_requests import answered

__all__ = ["DeletedKeys"]

#: Attempts at one change; each lost one means that another writer got further.
ATTEMPTS = 20
BATCH_ROWS = 1 << 16
#: A file that no state names is somebody's attempt; after this long nobody is still at it.
ABANDONED = timedelta(days=1)


class DeletedKeys:
    """The deleted keys of one feed.

    Args:
        folder: The feed's corner of the lake.
        order: Type of the order column.
    """

    def __init__(self, folder: FeedFolder, order: pa.DataType) -> None:
        self._folder, self._store, self._at = folder, folder.store, f"{folder.control}/deleted"
        self._schema = pa.schema(
            [("key", pa.large_binary()), ("order", order), ("deleted_at", pa.timestamp("us", "UTC"))]
        )

    def newest_of(self, keys: pa.Array) -> pa.Array:
        """The order value of the deletion of each of these keys; null where none is known."""

        def look() -> pa.Array:
            found: list[pa.Table] = [self._schema.empty_table()]
            for batch in self._known(self._folder.state.load().deleted):
                rows = pa.Table.from_batches([batch])
                found.append(rows.filter(pc.is_in(rows["key"], value_set=keys)))
            table = pa.concat_tables(found).combine_chunks()
            where = pc.index_in(keys, value_set=table["key"].combine_chunks())
            return table["order"].combine_chunks().take(where)

        return retried(look, attempts=ATTEMPTS, on=(ObjectNotFound,))  # another writer may just have replaced it

    def remember(self, keys: pa.Array, order: pa.Array, *, keep: timedelta) -> None:
        """Adds deletions to those that are known; older ones than ``keep`` are forgotten. Idempotent."""
        if not len(keys):
            return
        for _ in range(ATTEMPTS):
            known = self._folder.state.load().deleted
            key = f"{self._at}/{self._folder.new_id()}.parquet"
            try:
                self._write(key, known, keys, order, keep)
            except ObjectNotFound:
                if self._folder.state.load().deleted == known:
                    raise
                continue  # another writer has just replaced it
            if self._replace(known, key):
                self._sweep({known} - {""})
                return
            self._store.delete([key])
        raise PreconditionFailed(self._at, "other writers kept getting there first", cure="run it again")

    def _replace(self, known: str, key: str) -> bool:
        def rule(now: FeedState) -> FeedState:
            return replace(now, deleted=key) if now.deleted == known else now

        return self._folder.state.change(rule).deleted == key

    def _sweep(self, gone: set[str]) -> None:
        """Deletes what the state named before, and attempts of writers that died."""
        old = self._store.now() - ABANDONED
        named = self._folder.state.load().deleted
        left = {info.key for info in self._store.list(self._at) if info.modified_at < old and info.key != named}
        self._store.delete(sorted(left | gone))
        for upload in list(self._store.list_staged(self._at)):
            if upload.started_at < old:
                self._store.discard_stale(upload)

    def _write(self, key: str, known: str, keys: pa.Array, order: pa.Array, keep: timedelta) -> None:
        now = self._store.now()
        oldest = pa.scalar(now - keep, self._schema.field("deleted_at").type)
        sink = self._store.stage(key)
        try:
            with pq.ParquetWriter(sink, self._schema, compression="zstd") as writer:
                for batch in self._known(known):
                    writer.write_batch(batch.filter(self._stays(batch, keys, order, oldest)))
                when = pa.array([now] * len(keys), self._schema.field("deleted_at").type)
                writer.write_batch(pa.RecordBatch.from_arrays([keys, order, when], schema=self._schema))
            staged = sink.finish()
        except BaseException:
            sink.discard()
            raise
        self._store.publish(staged)
        self._store.sync([key])

    @staticmethod
    def _stays(batch: pa.RecordBatch, keys: pa.Array, order: pa.Array, oldest: pa.Scalar) -> pa.Array:
        """Which known deletions are kept: young ones, but for those that a new one is not older than.

        What stays comes first in the file, so that the first line of a key is its newest deletion.
        """
        again = order.take(pc.index_in(batch["key"], value_set=keys))
        is_newer = pc.fill_null(pc.greater(batch["order"], again), fill_value=True)
        return pc.and_(is_newer, pc.greater_equal(batch["deleted_at"], oldest))

    def _known(self, key: str) -> Iterator[pa.RecordBatch]:
        if not key:
            return
        try:
            with answered(key), self._store.filesystem().open_input_file(self._store.path(key)) as source:
                for batch in pq.ParquetFile(source).iter_batches(BATCH_ROWS):
                    # Parquet has no seconds: times come back in milliseconds
                    yield batch.cast(self._schema)
        except FileNotFoundError as error:
            raise ObjectNotFound(key, "the list of deleted keys is gone", cure="restore it") from error
        except (pa.ArrowException, OSError) as error:
            reason = f"the list of deleted keys cannot be read: {str(error).splitlines()[0]}"
            raise CorruptLake(key, reason, cure="restore it") from error
