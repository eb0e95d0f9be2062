"""Footers that the native kernel reads say what Arrow's reading of them says, whatever wrote the file."""

from __future__ import annotations

import datetime as dt

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, FolderSource
from datalake_assets.lake.adopted import footers as footers_module
from datalake_assets.lake.adopted.adoption import FirstPageLook
from datalake_assets.lake.adopted.footers import Footers
from datalake_assets.lake.adopted.listing import list_folder
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.parquet.native import load_kernel

pytestmark = pytest.mark.skipif(load_kernel() is None, reason="there is no native kernel")

ODD = dt.datetime(1969, 12, 31, 23, 59, 59, 999_999)  # noqa: DTZ001  the column says what it is
TIMES = {
    "ms": pa.array([1, -1, 86_400_000], pa.timestamp("ms")),
    "us": pa.array([ODD, ODD, dt.datetime(2025, 1, 15)], pa.timestamp("us", "UTC")),  # noqa: DTZ001
    "ns": pa.array([1_999, -1, 5], pa.timestamp("ns")),
    "s": pa.array([1, 2, -3], pa.timestamp("s", "Europe/Vienna")),
    "date": pa.array([-1, 0, 20_000], pa.date32()),
    "far": pa.array([1 << 62, 0, 1], pa.timestamp("us")),
    "nulls": pa.array([None, 3, 4], pa.timestamp("us")),
    "none": pa.array([None, None, None], pa.timestamp("us")),
    "text": pa.array(["2025", "a", "b"]),
    "number": pa.array([1, 2, 3]),
}


def write(folder, path: str, columns, **options: object) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), target, **options)


@pytest.fixture
def folder(tmp_path):
    """Three files of each kind, so that two of them are the kernel's; and what nobody, or only Arrow, can read."""
    root = tmp_path / "raw"
    for number in range(3):
        for name, times in TIMES.items():
            write(root, f"kind={name}/{number}.parquet", {"at": times, "id": [number] * 3})
            # the same columns elsewhere, and one that is no leaf
            write(root, f"kind={name}/last/{number}.parquet", {"s": [{"at": 1}] * 3, "id": [1] * 3, "at": times})
        write(root, f"int96/{number}.parquet", {"at": TIMES["us"]}, use_deprecated_int96_timestamps=True)
        write(root, f"no/{number}.parquet", {"id": [number]}, store_schema=False)
        write(root, f"case/{number}.parquet", {"AT": TIMES["us"]}, write_statistics=False)
        write(root, f"empty/{number}.parquet", {"at": TIMES["us"][:0]})
        write(root, f"groups/{number}", {"at": TIMES["ms"]}, row_group_size=1, write_page_checksum=True)
        pd.DataFrame({"at": [ODD] * (number + 1)}).to_parquet(root / f"pandas{number}.parquet")
        whole = (root / f"groups/{number}").read_bytes()
        (root / f"torn{number}.parquet").write_bytes(whole[: -9 - number])
        flipped = bytearray(whole)
        flipped[60 + number] ^= 255
        (root / f"flipped{number}.parquet").write_bytes(flipped)
        (root / f"text{number}").write_bytes(b"no Parquet at all")
        (root / f"zero{number}.parquet").write_bytes(b"")
    (tmp_path / "lake").mkdir()
    source = FolderSource(uri=str(root))
    return FeedFolder(
        LocalStore(tmp_path / "lake"), Feed(name="raw", kind=FeedKind.FOLDER, source=source, time_column="at")
    )


def looked(folder: FeedFolder, footers: Footers):
    files = list_folder(folder).partitions
    read = footers.read(files, lambda key: [*files[key].values()])
    found = {(key, each.file.name): (each.file, each.schema.to_string()) for key, each in read.found()}
    return found, sorted(read.problems, key=lambda each: each.name), read.other_files


def test_kernel_and_arrow_say_the_same_of_all_files(folder, monkeypatch):
    by_arrow, read_by = [], footers_module.read_adopted_footer
    with monkeypatch.context() as patch:
        patch.setattr(
            footers_module, "read_adopted_footer", lambda *told, **more: by_arrow.append(1) or read_by(*told, **more)
        )
        mine = looked(folder, Footers(folder))
    monkeypatch.setenv("DATALAKE_NATIVE", "0")

    wanted = looked(folder, Footers(folder))

    assert mine == wanted
    assert len(mine[0]) == 3 * (2 * len(TIMES) + 5) + 3 + sum("flipped" in name for _, name in mine[0])
    assert mine[2] == 3
    assert len(by_arrow) < len(mine[0])


def test_pages_that_the_kernel_walked_are_counted_as_if_they_were_compared(folder, monkeypatch):
    pages = FirstPageLook(folder.data_store)
    looked(folder, Footers(folder, pages=pages))
    monkeypatch.setenv("DATALAKE_NATIVE", "0")
    slow = FirstPageLook(folder.data_store)

    looked(folder, Footers(folder, pages=slow))

    mine, wanted = pages.compared, slow.compared
    assert (mine.files, mine.without, mine.not_compared) == (wanted.files, wanted.without, wanted.not_compared)


def test_file_that_is_another_by_now_is_left_to_the_next_listing(folder, tmp_path):
    files = list_folder(folder).partitions
    write(tmp_path / "raw", "no/1.parquet", {"id": [7, 8]}, store_schema=False)
    (tmp_path / "raw/no/2.parquet").unlink()

    read = Footers(folder).read(["no"], lambda key: [*files[key].values()])

    assert [each.file.name for _, each in read.found()] == ["0.parquet"]
    assert not read.problems


def test_each_file_is_read_once_until_it_changes(folder, tmp_path):
    footers = Footers(folder)
    before = looked(folder, footers)
    files = footers.files
    assert looked(folder, footers) == before
    assert footers.files == files
    write(tmp_path / "raw", "no/1.parquet", {"id": [7, 8]}, store_schema=False)

    found, _, _ = looked(folder, footers)

    assert (found["no", "1.parquet"][0].rows, footers.files) == (2, files + 1)
