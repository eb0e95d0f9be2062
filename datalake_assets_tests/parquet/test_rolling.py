"""Writing: no row is lost or doubled on its way into files, and memory and open files stay bounded."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.core.partitions import PartitionBy, keys_of
from datalake_assets.parquet.rolling import Bounds, RollingWriter
from datalake_assets.parquet.writer import FileStats, ParquetSettings, ParquetSink, choose_encodings

START = datetime(2025, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), metadata={"PARQUET:field_id": "7"}),
        ("kind", pa.string()),
        ("at", pa.timestamp("ms", "UTC")),
    ]
)


class Folder:
    """A place for files that counts how many are open."""

    def __init__(self, *, fail_after: int | None = None) -> None:
        self.open, self.most_open, self.discarded, self.opened = 0, 0, [], 0
        self.fail_after = fail_after

    def begin(self, key: str) -> MemorySink:
        self.open += 1
        self.opened += 1
        self.most_open = max(self.most_open, self.open)
        return MemorySink(self)


class MemorySink(io.BytesIO):
    def __init__(self, folder: Folder) -> None:
        super().__init__()
        self.folder = folder

    def write(self, data) -> int:
        if self.folder.fail_after is not None and self.tell() + len(data) > self.folder.fail_after:
            raise OSError(28, "No space left on device")
        return super().write(data)

    def finish(self) -> bytes:
        self.folder.open -= 1
        return self.getvalue()

    def discard(self) -> None:
        self.folder.open -= 1
        self.folder.discarded.append(self)


def batch(hours: list[int]) -> pa.RecordBatch:
    times = [START + timedelta(hours=hour) for hour in hours]
    return pa.record_batch([hours, [f"k{hour % 3}" for hour in hours], times], schema=SCHEMA)


def writer(folder: Folder, *, target: int = 1 << 30, bounds: Bounds | None = None, clock=None) -> RollingWriter[bytes]:
    return RollingWriter(
        SCHEMA,
        ParquetSettings(target_file_bytes=target),
        open_file=folder.begin,
        discard=folder.discarded.append,
        partition_of=lambda times: keys_of(times, PartitionBy.DAY),
        time_column="at",
        metadata={"datalake.feed": "s"},
        bounds=bounds,
        **({"clock": clock} if clock else {}),
    )


def read(files: dict[str, list[tuple[bytes, FileStats]]]) -> dict[str, list[int]]:
    return {
        key: [i for body, _ in each for i in pq.read_table(io.BytesIO(body))["id"].to_pylist()]
        for key, each in files.items()
    }


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 400), max_size=60), max_size=8),
    st.integers(1, 4),
    st.sampled_from([1, 4000, 1 << 20]),
    st.sampled_from([200, 5000, 1 << 20]),
)
def test_every_row_lands_once_in_the_partition_of_its_time(batches, open_files, target, buffered):
    folder = Folder()
    rolling = writer(folder, target=target, bounds=Bounds(buffered_bytes=buffered, open_files=open_files))
    for hours in batches:
        rolling.write(batch(hours))
    found = read(rolling.close())
    wanted: dict[str, Counter[int]] = {}
    for hours in batches:
        for hour in hours:
            day = (START + timedelta(hours=hour)).strftime("%Y-%m-%d")
            wanted.setdefault(day, Counter())[hour] += 1
    assert {key: Counter(ids) for key, ids in found.items()} == wanted
    assert folder.most_open <= open_files
    assert folder.open == 0


def test_a_file_is_rolled_at_the_target_size():
    folder = Folder()
    rolling = writer(folder, target=3000, bounds=Bounds(rows=50))
    for hour in range(24):
        rolling.write(batch([hour] * 50))
    (files,) = rolling.close().values()
    assert len(files) > 1
    assert all(stats.size_bytes >= 3000 for _, stats in files[:-1])


def test_rows_are_sorted_by_time_within_a_row_group():
    rolling = writer(Folder())
    rolling.write(batch([5, 3]))
    rolling.write(batch([4, 1]))
    assert read(rolling.close()) == {"2025-01-01": [1, 3, 4, 5]}


def test_a_buffer_that_grew_old_is_written_though_it_is_small():
    now = [0.0]
    folder = Folder()
    rolling = writer(folder, bounds=Bounds(age_s=60), clock=lambda: now[0])
    rolling.write(batch([1]))
    now[0] = 61.0
    rolling.write(batch([30]))
    rolling.close()
    assert folder.opened == 2


def test_a_failed_write_reaches_the_caller_and_abort_drops_everything():
    folder = Folder(fail_after=100)
    rolling = writer(folder)
    rolling.write(batch([1, 2, 3]))
    with pytest.raises(OSError, match="No space left"):
        rolling.close()
    rolling.abort()
    rolling.abort()
    assert folder.open == 0


def test_abort_drops_finished_files_too():
    folder = Folder()
    rolling = writer(folder, target=1, bounds=Bounds(rows=1))
    for hour in (1, 2, 30):
        rolling.write(batch([hour]))
    rolling.abort()
    assert len(folder.discarded) == folder.opened


def test_a_file_says_what_is_in_it():
    sink = MemorySink(Folder())
    parquet = ParquetSink(sink, SCHEMA, ParquetSettings(), time_column="at", metadata={"datalake.feed": "s"})
    parquet.write(pa.Table.from_batches([batch([7, 2, 9])]))
    stats = parquet.close()
    body = sink.getvalue()
    assert stats == FileStats(
        rows=3,
        size_bytes=len(body),
        min_time=START + timedelta(hours=2),
        max_time=START + timedelta(hours=9),
        checksum=f"blake2b-16:{hashlib.blake2b(body, digest_size=16).hexdigest()}",
    )
    found = pq.ParquetFile(io.BytesIO(body))
    assert found.metadata.metadata[b"datalake.feed"] == b"s"
    assert found.schema_arrow.field("id").metadata[b"PARQUET:field_id"] == b"7"
    assert found.metadata.row_group(0).column(0).has_offset_index
    assert found.metadata.row_group(0).column(2).statistics.has_min_max


def test_a_file_without_rows_has_a_schema():
    sink = MemorySink(Folder())
    stats = ParquetSink(sink, SCHEMA, ParquetSettings()).close()
    assert (stats.rows, stats.min_time) == (0, None)
    assert pq.read_table(io.BytesIO(sink.getvalue())).schema.names == SCHEMA.names


def test_dictionaries_go_to_columns_of_few_values_and_to_nested_leaves():
    sample = pa.table(
        {
            "few": ["a", "b"] * 500,
            "many": [f"v{i}" for i in range(1000)],
            "number": list(range(1000)),
            "share": [i / 7 for i in range(1000)],
            "nested": [{"x": [{"y": 1}]}] * 1000,
            "map": pa.array([[("k", 1)]] * 1000, pa.map_(pa.string(), pa.int32())),
        }
    )
    dictionary, encodings = choose_encodings(sample, compact=False)
    assert dictionary == ["few", "nested.x.list.element.y", "map.key_value.key", "map.key_value.value"]
    assert encodings == {}
    assert choose_encodings(sample, compact=True)[1] == {
        "many": "DELTA_BYTE_ARRAY",
        "number": "DELTA_BINARY_PACKED",
        "share": "BYTE_STREAM_SPLIT",
    }


@pytest.mark.parametrize("profile", ["compatible", "compact"])
@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_both_profiles_are_read_back_whole(profile, compression):
    sink = MemorySink(Folder())
    parquet = ParquetSink(sink, SCHEMA, ParquetSettings(compression=compression, profile=profile))
    table = pa.Table.from_batches([batch(list(range(2000)))])
    parquet.write(table)
    parquet.close()
    found = pq.ParquetFile(io.BytesIO(sink.getvalue()))
    assert found.read().equals(table)
    columns = [found.metadata.row_group(0).column(i) for i in range(3)]
    assert {column.compression for column in columns} == {compression.upper()}
    assert ("DELTA_BINARY_PACKED" in columns[0].encodings) == (profile == "compact")
    assert "RLE_DICTIONARY" in columns[1].encodings
