"""Scans within scans end, however many there are at a time and however few threads Arrow reads with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

#: Scans of files of others as DuckDB is shown them, at a time; in a process of its own, since those that hang stay.
PROGRAM = """
import sys
import time
from concurrent.futures import ThreadPoolExecutor
import pyarrow as pa
import pyarrow.dataset as ds
from datalake_assets.lake.scan import BoundedDataset
from datalake_assets.lake.shown_rows import in_columns

folder, threads, scans = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pa.set_io_thread_count(threads)
plain = ds.dataset(folder, format=ds.ParquetFileFormat())
files = BoundedDataset(list(plain.get_fragments()), plain.schema, plain.format, plain.filesystem)
shown = in_columns(files, pa.schema([pa.field("no", pa.null()), *plain.schema]))

def read(first):
    batches = shown.scanner(columns=["id"], filter=ds.field("id") >= first).to_batches()
    if first == 3:  # one that nobody reads to its end
        return next(batches).num_rows > 0
    return sum(each.num_rows for each in batches)

with ThreadPoolExecutor(scans) as pool:
    print(*pool.map(read, range(scans)))
while pa.io_thread_count() > threads:  # Arrow may still be reading ahead of the one that was left
    time.sleep(0.01)
"""


def test_scans_within_scans_wait_for_no_thread_that_one_of_them_has(tmp_path: Path) -> None:
    for first in range(0, 1000, 250):
        pq.write_table(pa.table({"id": range(first, first + 250)}), tmp_path / f"{first}.parquet", row_group_size=50)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "1", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.stdout, done.returncode) == ("1000 999 998 True 996 995\n", 0), done.stderr


#: Scans that nobody reads to their end, where Arrow computes with one thread.
_LEFT = """
import sys
import pyarrow as pa
import pyarrow.dataset as ds
from datalake_assets.lake.scan import BoundedDataset
from datalake_assets.lake.shown_rows import in_columns

pa.set_cpu_count(1)
plain = ds.dataset(sys.argv[1], format=ds.ParquetFileFormat())
files = BoundedDataset(list(plain.get_fragments()), plain.schema, plain.format, plain.filesystem)
shown = in_columns(files, pa.schema([pa.field("no", pa.null()), *plain.schema]))
for _ in range(20):
    left = shown.scanner(columns=["id"]).to_batches()
    next(left)
    del left
    rows = sum(each.num_rows for each in shown.scanner(columns=["id"]).to_batches())
print(rows)
"""


def test_a_scan_that_is_left_keeps_no_thread_from_others(tmp_path: Path) -> None:
    for first in range(0, 1000, 250):
        pq.write_table(pa.table({"id": range(first, first + 250)}), tmp_path / f"{first}.parquet", row_group_size=50)
    command = [sys.executable, "-c", _LEFT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.stdout, done.returncode) == ("1000\n", 0), done.stderr


#: Takes a batch of many, and ends: by a reader that is dropped, and by DuckDB, which has had enough rows.
_ENOUGH = """
import time, duckdb, pyarrow as pa
from datalake_assets.lake.nested_scans import scanner_of

schema = pa.schema([("n", pa.int64())])

def batches():
    for number in range(1_000_000):
        time.sleep(0.002)
        yield pa.record_batch([pa.array([number])], schema=schema)

for _ in range(3):
    next(iter(scanner_of(batches(), schema).to_reader()))
    connection = duckdb.connect()
    connection.register("many", scanner_of(batches(), schema))
    assert connection.execute("SELECT n FROM many LIMIT 1").fetchall() == [(0,)]
    connection.close()
"""


def test_a_process_that_has_had_enough_rows_ends_as_it_should():
    command = [sys.executable, "-c", _ENOUGH]
    ended = [subprocess.run(command, capture_output=True, timeout=120, check=False) for _ in range(3)]
    assert [(each.returncode, each.stderr) for each in ended] == [(0, b"")] * 3
