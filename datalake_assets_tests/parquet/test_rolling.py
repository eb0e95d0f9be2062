from __future__ import annotations

import io
import random
import threading
import time
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.parquet import writer as writer_module
from datalake_assets.parquet.rolling import MIB, Bounds, RollingWriter
from datalake_assets.parquet.writer import SAMPLE_ROWS, ParquetSettings
from datalake_assets_tests.parquet.sinks import MemorySink

DAY_MS = 86_400_000
SCHEMA = pa.schema([("at", pa.timestamp("ms", "UTC")), ("n", pa.int64()), ("text", pa.string())])


def day_of(times):
    days = pc.cast(pc.divide(times.cast(pa.int64()), DAY_MS), pa.string())
    return pc.dictionary_encode(days)


def batch_of(days, start=0, text="x"):
    count = len(days)
    at = pa.array([None if day is None else day * DAY_MS + start for day in days], pa.timestamp("ms", "UTC"))
    return pa.RecordBatch.from_arrays(
        [at, pa.array(range(start, start + count)), pa.array([text] * count)], schema=SCHEMA
    )


class Files:
    """What a writer opened, finished and discarded."""

    def __init__(self, **sink_options):
        self.sinks, self.discarded, self.sink_options = [], [], sink_options

    def open(self, key):
        self.sinks.append(MemorySink(key, **self.sink_options))
        return self.sinks[-1]

    def writer(self, parquet=None, **options):
        options = {"partition_of": day_of, "time_column": "at"} | options
        return RollingWriter(
            SCHEMA, parquet or ParquetSettings(), open_file=self.open, discard=self.discarded.append, **options
        )


def numbers_in(finished):
    return {
        key: [pq.read_table(io.BytesIO(data))["n"].to_pylist() for data, _ in files] for key, files in finished.items()
    }


def test_rows_go_to_the_files_of_their_partitions():
    writer = Files().writer()
    writer.write(batch_of([0, 1, 0, 2]))
    writer.write(batch_of([1, 1], start=4))
    assert numbers_in(writer.close()) == {"0": [[0, 2]], "1": [[1, 4, 5]], "2": [[3]]}


def test_all_rows_go_to_one_partition_when_it_is_named():
    writer = Files().writer(partition_of="v1", time_column=None)
    writer.write(batch_of([None, 3]))
    assert numbers_in(writer.close()) == {"v1": [[0, 1]]}


def test_write_refuses_rows_without_partition():
    writer = Files().writer()
    with pytest.raises(ValueError, match="1 rows have no at"):
        writer.write(batch_of([0, None]))
    writer.abort()


def test_an_empty_file_is_written_when_asked_for():
    writer = Files().writer(partition_of="v1", time_column=None)
    writer.write_empty("v1")
    assert numbers_in(writer.close()) == {"v1": [[]]}


def test_a_batch_without_rows_opens_nothing():
    files = Files()
    writer = files.writer()
    writer.write(batch_of([]))
    assert writer.close() == {}
    assert files.sinks == []


def test_files_roll_at_the_target_size():
    files = Files()
    noise = random.Random(1).randbytes(500_000).hex()
    writer = files.writer(ParquetSettings(target_file_bytes=MIB, row_group_bytes=MIB), bounds=Bounds(rows=1))
    for number in range(9):
        writer.write(batch_of([0], start=number, text=noise + str(number)))
    finished = writer.close()["0"]
    assert [stats.rows for _, stats in finished] == [2, 2, 2, 2, 1]
    assert writer.bytes_written == pytest.approx(sum(stats.size_bytes for _, stats in finished), rel=0.01)


@pytest.mark.parametrize(
    ("bounds", "groups"), [(Bounds(rows=10), 5), (Bounds(buffered_bytes=800), 3), (Bounds(age_s=9.5), 5)]
)
def test_row_groups_are_bounded_by_rows_bytes_and_age(bounds, groups):
    now = [0]
    writer = Files().writer(bounds=bounds, clock=lambda: now[0])
    for number in range(50):
        now[0] = number
        writer.write(batch_of([0], start=number))
    ((data, stats),) = writer.close()["0"]
    assert stats.rows == 50
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == groups


def test_row_groups_are_bounded_by_their_decoded_size():
    writer = Files().writer(ParquetSettings(row_group_bytes=MIB))
    for number in range(40):
        writer.write(batch_of([0], start=number, text="x" * 100_000))
    ((data, _),) = writer.close()["0"]
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == 4


def test_the_file_written_to_least_recently_is_finished_when_too_many_are_open():
    files = Files()
    writer = files.writer(bounds=Bounds(open_files=2, rows=1))
    for number, day in enumerate([0, 1, 0, 2, 0, 1]):
        writer.write(batch_of([day], start=number))
    finished = writer.close()
    assert numbers_in(finished) == {"0": [[0, 2, 4]], "1": [[1], [5]], "2": [[3]]}
    assert [sink.key for sink in files.sinks] == ["0", "1", "2", "1"]


def test_metadata_is_in_every_footer_as_it_is_when_the_file_is_finished():
    finished_files = iter(range(9))
    writer = Files().writer(
        metadata=lambda key: {"datalake.feed": f"orders {key}", "datalake.position": str(next(finished_files))},
        bounds=Bounds(rows=1, open_files=1),
    )
    writer.write(batch_of([0, 1]))
    finished = writer.close()
    footers = [pq.read_metadata(io.BytesIO(data)).metadata for files in finished.values() for data, _ in files]
    assert [footer[b"datalake.feed"] for footer in footers] == [b"orders 0", b"orders 1"]
    assert [footer[b"datalake.position"] for footer in footers] == [b"0", b"1"]


def write_until_it_fails(writer):
    for number in range(1000):
        writer.write(batch_of([number % 3], start=number, text="x" * 2000))


@pytest.mark.parametrize("fail_after", [0, 4, 3000])
def test_an_error_of_the_sink_reaches_the_caller_and_abort_discards_everything(fail_after):
    files = Files(fail_after=fail_after)
    writer = files.writer(bounds=Bounds(rows=1, open_files=1))
    with pytest.raises(OSError, match="disk full"):
        write_until_it_fails(writer)
    writer.abort()
    writer.abort()
    assert "open" not in {sink.state for sink in files.sinks}
    assert len(files.discarded) == sum(sink.state == "finished" for sink in files.sinks)


def test_an_error_at_the_end_reaches_the_caller():
    files = Files(fail_after=100)
    writer = files.writer()
    writer.write(batch_of([0]))
    with pytest.raises(OSError, match="disk full"):
        writer.close()
    writer.abort()
    assert [sink.state for sink in files.sinks] == ["discarded"]


def test_abort_discards_finished_files_too():
    files = Files()
    writer = files.writer(bounds=Bounds(rows=1, open_files=1))
    writer.write(batch_of([0, 1, 2]))
    writer.close()
    writer.abort()
    assert len(files.discarded) == 3


def test_write_waits_for_an_encoder_that_is_behind():
    gate, files = threading.Event(), Files()
    open_file = files.open

    def slow(key):
        assert gate.wait(60)
        return open_file(key)

    files.open = slow
    writer = files.writer(bounds=Bounds(rows=1))
    written = []

    def write():
        for number in range(10):
            writer.write(batch_of([0], start=number))
            written.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    while not written:
        assert thread.is_alive()
        time.sleep(0.01)
    thread.join(0.2)
    assert len(written) < 10
    gate.set()
    thread.join(60)
    assert numbers_in(writer.close()) == {"0": [list(range(10))]}


def test_memory_is_bounded_when_many_partitions_trickle():
    writer = Files().writer(bounds=Bounds(buffered_bytes=4 * MIB))
    before = pa.total_allocated_bytes()
    peak = 0
    for number in range(100):
        writer.write(batch_of([day % 100 for day in range(500)], start=number, text="x" * 200))
        peak = max(peak, pa.total_allocated_bytes() - before)
    finished = writer.close()
    assert sum(stats.rows for files in finished.values() for _, stats in files) == 50_000
    assert peak < 16 * MIB


def test_single_rows_are_joined_in_the_buffer():
    writer = Files().writer()
    for number in range(1000):
        writer.write(batch_of([0], start=number))
    assert len(writer._buffers["0", ""].batches) < 140
    assert numbers_in(writer.close()) == {"0": [list(range(1000))]}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=30), max_size=20),
    st.integers(1, 50),
    st.integers(1, 4),
    st.integers(100, 20_000),
)
def test_no_row_is_lost_doubled_or_misplaced(batches, rows, open_files, buffered_bytes):
    files = Files()
    bounds = Bounds(rows=rows, open_files=open_files, buffered_bytes=buffered_bytes)
    writer = files.writer(ParquetSettings(target_file_bytes=4000), bounds=bounds)
    start, expected = 0, {}
    for days in batches:
        writer.write(batch_of(days, start=start))
        for number, day in enumerate(days, start):
            expected.setdefault(str(day), []).append(number)
        start += len(days)
    finished = writer.close()
    assert {key: sorted(chain.from_iterable(numbers)) for key, numbers in numbers_in(finished).items()} == expected
    assert all(sink.state == "finished" for sink in files.sinks)
    for parts in finished.values():
        for data, stats in parts:
            times = pq.read_table(io.BytesIO(data))["at"]
            assert (pc.min(times).as_py(), pc.max(times).as_py()) == (stats.min_time, stats.max_time)
            assert stats.size_bytes == len(data)


def test_files_share_the_encodings_that_a_full_row_group_called_for(monkeypatch):
    chosen = []
    choose = writer_module.choose_encodings
    monkeypatch.setattr(writer_module, "choose_encodings", lambda *args: chosen.append(args) or choose(*args))
    writer = Files().writer(bounds=Bounds(rows=SAMPLE_ROWS))
    writer.write(batch_of([0] * 10))
    writer.write(batch_of([1] * SAMPLE_ROWS))
    writer.write(batch_of([2] * SAMPLE_ROWS))
    writer.close()
    assert len(chosen) == 1
