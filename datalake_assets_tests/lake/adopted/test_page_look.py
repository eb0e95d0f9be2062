"""Adopting a folder compares its files' pages with their checksums, within bounds, and says how far it came."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from dataclasses import replace

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.facts import PagesCompared
from datalake_assets.lake.adopted.adoption import FirstPageLook, adopt
from datalake_assets.lake.adopted.footers import Footers
from datalake_assets.lake.adopted.reconcile import reconcile
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder, ids

pytestmark = pytest.mark.one_case_on_s3

FORCE = CompactionRequest(force=True)


def table(first: int, rows: int = 1000) -> pa.Table:
    numbers = range(first, first + rows)
    return pa.table({"id": pa.array(numbers, pa.int64()), "note": [f"note {each % 7}" for each in numbers]})


def checked(first: int, rows: int = 1000, **options: object) -> bytes:
    """A file whose pages have checksums."""
    file = io.BytesIO()
    pq.write_table(table(first, rows), file, write_page_checksum=True, **options)
    return file.getvalue()


def damaged(body: bytes, column: int = 0, row_group: int = 0) -> bytes:
    """The file with one other bit in the last page of a column chunk."""
    chunk = pq.ParquetFile(io.BytesIO(body)).metadata.row_group(row_group).column(column)
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    bad = bytearray(body)
    bad[begin + chunk.total_compressed_size - 1] ^= 1
    return bytes(bad)


WRITERS = {
    "snappy": {},
    "v2": {"data_page_version": "2.0", "compression": "zstd"},
    "plain": {"compression": "none", "use_dictionary": False},
    "many pages": {"data_page_size": 500, "write_batch_size": 50, "compression": "gzip"},
    "row groups": {"row_group_size": 100},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_damaged_page_is_named_and_its_file_left_out_of_compaction(store, folder, writer):
    for number in range(4):
        folder.put(f"day=1/{number}.parquet", checked(1000 * number, **WRITERS[writer]))
    body = folder.store.get("clicks/day=1/2.parquet")[0]
    last = pq.ParquetFile(io.BytesIO(body)).num_row_groups - 1
    bad = damaged(body, column=1, row_group=last)
    folder.put("day=1/2.parquet", bad)

    found = adopt(store, folder.uri, "clicks").found

    reason = f"column 'note' of row group {last}: the checksum of a page is not that of its bytes"
    assert [(each.key, each.name, each.reason) for each in found.damaged] == [("day=1", "day=1/2.parquet", reason)]
    assert (found.pages.files, found.pages.without, found.pages.not_compared) == (4, 0, 0)
    clicks = open_table(store, adopt(store, folder.uri, "clicks").feed)
    plan = clicks.compaction_plan("day=1", FORCE)
    assert [(each.name, each.reason) for each in plan.left_alone if each.unusable] == [("2.parquet", reason)]
    assert clicks.compact("day=1", FORCE).rows == 3000
    assert folder.store.get("clicks/day=1/2.parquet")[0] == bad
    assert [(each.what, each.name) for each in clicks.verify()] == [("damaged", "clicks/day=1/2.parquet")]
    assert ids(clicks) == list(range(4000))  # of a column whose pages are whole


def test_each_look_names_it_until_the_file_is_another(store, folder):
    folder.put("0.parquet", checked(0))
    folder.put("1.parquet", damaged(checked(1000)))
    for _ in range(2):
        assert [each.name for each in adopt(store, folder.uri, "clicks").found.damaged] == ["1.parquet"]
    folder.put("1.parquet", checked(1000))

    found = adopt(store, folder.uri, "clicks").found

    assert (found.damaged, found.rewritten, found.pages.files) == ([], 1, 1)
    assert open_table(store, adopt(store, folder.uri, "clicks").feed).compact(".", FORCE).rows == 2000


def test_files_of_writers_without_checksums_are_counted_as_such(local_store, tmp_path):
    for name in ("duckdb", "polars", "pyarrow"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    duckdb.from_arrow(table(0)).write_parquet(str(tmp_path / "raw/duckdb/a.parquet"))
    pl.from_arrow(table(0)).write_parquet(tmp_path / "raw/polars/a.parquet")
    pq.write_table(table(0), tmp_path / "raw/pyarrow/a.parquet")
    (tmp_path / "raw/pyarrow/b.parquet").write_bytes(checked(1000))
    pq.write_table(table(0, 0), tmp_path / "raw/pyarrow/empty.parquet")

    pages = adopt(local_store, str(tmp_path / "raw"), "raw").found.pages

    assert (pages.files, pages.without, pages.not_compared) == (1, 4, 0)


@pytest.fixture
def folder_on_disk(tmp_path) -> AdoptedFolder:
    (tmp_path / "raw/clicks").mkdir(parents=True)
    return AdoptedFolder(open_store(str(tmp_path / "raw")), "clicks")


def put_all(folder, count: int, rows: int) -> list:
    for number in range(count):
        folder.put(f"{number}.parquet", checked(rows * number, rows, compression="none", use_dictionary=False))
    return [folder.store.head(f"clicks/{number}.parquet") for number in range(count)]


def test_look_ends_when_it_has_read_enough_and_says_so(folder_on_disk):
    infos = put_all(folder_on_disk, 20, 20_000)
    each = infos[0].size_bytes
    look = FirstPageLook(folder_on_disk.store, most_bytes=2 * each)

    assert look.damaged(infos) == {}

    done = replace(look.compared)
    assert done.files + done.not_compared == 20
    # all footers together are a fraction of one file, so some file is begun; what threads have begun is finished
    assert 1 <= done.files < 20
    assert done.read_bytes < 20 * each
    assert look.damaged(infos) == {}
    assert look.compared == replace(done, not_compared=done.not_compared + 20)


def test_look_ends_when_it_took_long_enough(folder_on_disk):
    ticks = itertools.count()
    look = FirstPageLook(folder_on_disk.store, most_s=10, clock=lambda: float(next(ticks)))

    look.damaged(put_all(folder_on_disk, 30, 10))

    assert look.compared.not_compared >= 15
    assert look.compared.files + look.compared.not_compared == 30


def test_row_groups_of_a_large_file_are_compared_one_by_one(folder_on_disk):
    body = checked(0, 20_000, row_group_size=1000, compression="none", use_dictionary=False)
    folder_on_disk.put("large.parquet", body)
    info = folder_on_disk.store.head("clicks/large.parquet")
    look = FirstPageLook(folder_on_disk.store, most_bytes=len(body) // 4)

    assert look.damaged([info]) == {}

    assert (look.compared.files, look.compared.not_compared) == (0, 1)
    assert len(body) // 4 <= look.compared.read_bytes < len(body) // 2


@pytest.fixture
def rotten(local_store, folder_on_disk, tmp_path):
    """The feed of a folder of which a file got another bit and kept its time, and the path of that file."""
    whole = put_all(folder_on_disk, 3, 1000)[1]
    path = tmp_path / "raw/clicks/1.parquet"
    shutil.copy2(path, tmp_path / "backup")
    path.write_bytes(damaged(path.read_bytes()))
    shutil.copystat(tmp_path / "backup", path)
    found = adopt(local_store, folder_on_disk.uri, "clicks")
    assert [each.name for each in found.found.damaged] == ["1.parquet"]
    assert folder_on_disk.store.head("clicks/1.parquet").etag == whole.etag
    return found.feed, path


@pytest.mark.parametrize("restore", [shutil.copy2, os.replace], ids=["into its place", "under its name"])
def test_file_that_was_restored_with_its_time_is_damaged_no_more(
    local_store, folder_on_disk, rotten, tmp_path, restore
):
    feed, path = rotten
    restore(tmp_path / "backup", path)

    found = adopt(local_store, folder_on_disk.uri, "clicks").found

    assert (found.damaged, found.pages.files) == ([], 1)
    assert list(open_table(local_store, feed).verify(deep=True)) == []
    assert open_table(local_store, feed).compact(".", FORCE).rows == 3000


def test_file_that_a_look_did_not_reach_stays_damaged(local_store, folder_on_disk, rotten):
    folder = FeedFolder(local_store, rotten[0])
    look = FirstPageLook(folder.data_store, most_bytes=0)

    found = reconcile(folder, footers=Footers(folder, pages=look))

    assert look.compared.not_compared == 1
    assert [each.name for each in found.damaged] == ["1.parquet"]
    assert found.changed == []


def test_file_that_is_written_anew_meanwhile_is_not_called_damaged(folder_on_disk):
    (info,) = put_all(folder_on_disk, 1, 1000)
    folder_on_disk.put("0.parquet", damaged(checked(0, compression="none", use_dictionary=False)))
    look = FirstPageLook(folder_on_disk.store)

    assert look.damaged([info]) == {}
    assert look.compared == PagesCompared(not_compared=1, read_bytes=look.compared.read_bytes)
