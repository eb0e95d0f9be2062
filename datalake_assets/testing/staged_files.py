"""The contract of `Store`, as a suite that every implementation runs: its staged files."""

from __future__ import annotations

import contextlib
import gc
import os
import tracemalloc
from datetime import timedelta

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from datalake_assets.errors import UploadGone
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.testing.stores import DATA, outcomes, staged, visible

__all__ = ["StagedFileContract"]


class StagedFileContract:
    """What every store promises of files that are staged: invisible, then whole, once.

    A subclass has the fixture ``store``.
    """

    @pytest.fixture
    def store(self) -> Store:
        """An empty store, for each test."""
        raise NotImplementedError

    def opened_again(self, store: Store) -> Store:
        """The same store, as another process opens it."""
        return open_store(store.uri, s3=store.s3)

    def test_staged_file_is_invisible_until_published(self, store: Store) -> None:
        with store.stage(DATA) as sink:
            sink.write(b"x" * 9_000_000)
            assert visible(store) == []
            file = sink.finish()

        assert visible(store) == []
        assert store.head(DATA) is None
        assert store.has_staged(file)

        store.publish(file)
        store.sync([DATA])

        assert visible(store) == [DATA]
        assert store.get(DATA)[0] == b"x" * 9_000_000

    def test_staged_file_knows_its_key_and_size(self, store: Store) -> None:
        file = staged(store, body=b"12345")

        assert (file.key, file.size_bytes) == (DATA, 5)

    def test_staged_file_is_published_by_another_process_from_plain_data(self, store: Store) -> None:
        file = staged(store)
        other = self.opened_again(store)

        other.publish(StagedFile(file.key, file.size_bytes, file.token, file.parts))

        assert store.get(DATA)[0] == b"rows"

    def test_staged_file_is_read_back_or_was_verified_on_arrival(self, store: Store) -> None:
        body = os.urandom(3_000_000)
        chunks = store.read_staged(staged(store, body=body))

        assert chunks is None or b"".join(map(bytes, chunks)) == body

    def test_staged_file_that_is_gone_is_not_read_back(self, store: Store) -> None:
        file = staged(store)
        store.discard_staged(file)
        chunks = store.read_staged(file)

        if chunks is not None:
            with pytest.raises(UploadGone):
                list(chunks)

    def test_empty_file_can_be_staged(self, store: Store) -> None:
        store.publish(staged(store, body=b""))

        assert store.get(DATA)[0] == b""

    def test_publish_consumes_the_staged_file(self, store: Store) -> None:
        file = staged(store)
        store.publish(file)

        assert not store.has_staged(file)
        assert list(store.list_staged("")) == []

    def test_publish_again_changes_nothing(self, store: Store) -> None:
        """A second publish may say `UploadGone` or nothing; the file stays as it is, whole."""
        file = staged(store)
        store.publish(file)
        before = store.head(DATA)

        with contextlib.suppress(UploadGone):
            store.publish(file)

        assert store.head(DATA) == before
        assert store.get(DATA)[0] == b"rows"

    def test_publish_does_not_resurrect_a_deleted_file(self, store: Store) -> None:
        """A zombie that published before it slept must not bring back what a compaction has removed since."""
        file = staged(store)
        store.publish(file)
        store.delete([DATA])

        with pytest.raises(UploadGone):
            store.publish(file)

        assert visible(store) == []

    def test_publish_fails_when_discarded(self, store: Store) -> None:
        file = staged(store)
        store.discard_staged(file)
        store.discard_staged(file)

        assert not store.has_staged(file)
        with pytest.raises(UploadGone, match=r"data_1\.parquet"):
            store.publish(file)
        assert visible(store) == []

    def test_discard_staged_leaves_a_published_file(self, store: Store) -> None:
        file = staged(store)
        store.publish(file)

        store.discard_staged(file)

        assert store.get(DATA)[0] == b"rows"

    def test_publish_race_leaves_one_whole_file(self, store: Store) -> None:
        for round_ in range(5):
            file = staged(store, f"race/{round_}", b"x" * 1000)

            def publish(file: StagedFile = file) -> None:
                try:
                    store.publish(file)
                except UploadGone:
                    return

            assert outcomes([publish] * 4) == ["won"] * 4
            assert store.get(file.key)[0] == b"x" * 1000

    def test_writer_discards_when_the_block_raises(self, store: Store) -> None:
        def write_and_fail() -> None:
            with store.stage(DATA) as sink:
                sink.write(b"x" * 9_000_000)
                raise RuntimeError("boom")

        with pytest.raises(RuntimeError, match="boom"):
            write_and_fail()

        assert list(store.list_staged("")) == []
        assert visible(store) == []

    def test_writer_discards_when_never_finished(self, store: Store) -> None:
        with store.stage(DATA) as sink:
            sink.write(b"x" * 9_000_000)
        sink.discard()

        assert list(store.list_staged("")) == []
        with pytest.raises(ValueError, match="discarded"):
            sink.finish()

    def test_writer_discards_when_it_is_garbage(self, store: Store) -> None:
        sink = store.stage(DATA)
        sink.write(b"x" * 9_000_000)
        del sink
        gc.collect()

        assert list(store.list_staged("")) == []

    def test_writer_finishes_once_and_after_close(self, store: Store) -> None:
        """Pyarrow may close a sink that it was lent."""
        with store.stage(DATA) as sink:
            sink.write(b"rows")
            sink.close()
            assert sink.closed
            file = sink.finish()
            assert sink.finish() is file
        sink.discard()

        store.publish(file)
        with pytest.raises(ValueError, match="closed"):
            sink.write(b"more")

    def test_writer_takes_any_buffer_and_tells_its_position(self, store: Store) -> None:
        with store.stage(DATA) as sink:
            assert sink.write(b"ab") == 2
            assert sink.write(memoryview(bytearray(b"cd"))) == 2
            assert sink.write(pa.py_buffer(b"ef")) == 2
            assert sink.tell() == 6
            store.publish(sink.finish())

        assert store.get(DATA)[0] == b"abcdef"

    def test_parquet_of_many_parts_reads_back_equal(self, store: Store) -> None:
        table = pa.table({"id": pa.array(range(900_000)), "text": pa.array([f"row {i}" for i in range(900_000)])})
        with store.stage(DATA) as sink:
            with pq.ParquetWriter(sink, table.schema, compression="none", use_dictionary=False) as writer:
                writer.write_table(table, row_group_size=200_000)
            file = sink.finish()
        store.publish(file)

        assert file.size_bytes > 2 * 8 * 1024 * 1024
        with store.filesystem().open_input_file(store.path(DATA)) as source:
            assert pq.read_table(source).equals(table)

    def test_staging_64_mb_takes_bounded_memory(self, store: Store) -> None:
        piece = os.urandom(1_000_000)
        store.discard_staged(staged(store))  # imports and connections are not the file's
        tracemalloc.start()
        try:
            with store.stage(DATA) as sink:
                for _ in range(64):
                    sink.write(piece)
                file = sink.finish()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert file.size_bytes == 64_000_000
        assert peak < 40_000_000

    def test_list_staged_shows_key_token_and_age(self, store: Store) -> None:
        before = store.now() - timedelta(seconds=2)
        file = staged(store)
        staged(store, "streams/payments_eu/a.parquet")

        [upload] = store.list_staged("streams/payments")

        assert (upload.key, upload.token) == (file.key, file.token)
        assert before <= upload.started_at <= store.now() + timedelta(seconds=2)
        assert len(list(store.list_staged(""))) == 2

    def test_discard_stale_drops_what_was_listed(self, store: Store) -> None:
        file = staged(store)
        [upload] = store.list_staged("")

        store.discard_stale(upload)
        store.discard_stale(upload)

        assert not store.has_staged(file)
        assert list(store.list_staged("")) == []
