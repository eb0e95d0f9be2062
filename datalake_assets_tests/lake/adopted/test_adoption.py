"""Folders are adopted without touching a byte, followed, and read."""

from __future__ import annotations

import datetime as dt
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import NOON, ids, kinds, parquet_bytes, refused, rows


def test_adopt_touches_no_byte_and_knows_all(store, folder):
    folder.write("year=2025/month=01/a.parquet", [1, 2], at=[NOON, NOON + dt.timedelta(days=1)])
    folder.write("year=2025/month=02/part-0", [3], at=[NOON])
    folder.put("year=2025/month=02/_SUCCESS", b"")
    before = folder.files()

    adoption = adopt(store, folder.uri, "clicks", time_column="at")

    assert folder.files() == before
    assert (adoption.is_new, adoption.feed.path) == (True, "folders/clicks")
    found = {
        key: (each.files, each.rows, each.min_time, each.max_time) for key, each in adoption.found.partitions.items()
    }
    assert found == {
        "year=2025/month=01": (1, 2, NOON, NOON + dt.timedelta(days=1)),
        "year=2025/month=02": (1, 1, NOON, NOON),
    }
    assert (adoption.found.added, adoption.found.other_files, adoption.found.problems) == (2, 1, [])
    manifest = FeedFolder(store, adoption.feed).log("year=2025/month=01").load().manifest
    (file,) = manifest.files
    info = folder.store.head("clicks/year=2025/month=01/a.parquet")
    assert (file.name, file.size_bytes, file.etag, file.checksum) == ("a.parquet", info.size_bytes, info.etag, "")
    assert file.written_at == info.modified_at
    assert list(store.list("control/folders/clicks"))


def test_rows_that_are_not_a_number_are_found_whatever_bounds_say(store, folder):
    """Arrow finds by a footer's bounds that nothing in the file is not below 5."""
    folder.write("a.parquet", [1, 2, 3], share=[1.0, float("nan"), None])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    share = ds.field("share")
    assert ids(table, where=~(share < 5)) == [2]
    assert ids(table, where=(share < 5) == ds.scalar(False)) == [2]
    assert ids(table, where=(share < 5) | share.is_null()) == [1, 3]


def test_adopt_again_changes_nothing(store, folder):
    folder.write("a.parquet", [1])
    first = adopt(store, folder.uri, "clicks")
    before = {info.key: info.etag for info in store.list("")}

    again = adopt(store, f"{folder.uri}/", "clicks")

    assert (first.is_new, again.is_new, again.found.changed, again.found.footers_read) == (True, False, [], 0)
    assert {info.key: info.etag for info in store.list("")} == before
    assert again.feed == first.feed


def test_others_changes_are_taken_over_one_commit_per_partition(store, folder):
    for name in ("kept", "rewritten", "gone"):
        folder.write(f"day=1/{name}.parquet", [name])
    folder.write("day=2/a.parquet", ["two"])
    adoption = adopt(store, folder.uri, "clicks")
    folder.write("day=1/rewritten.parquet", ["anew", "more"])
    folder.write("day=1/new.parquet", ["new"])
    folder.write("day=3/a.parquet", ["three"])
    folder.delete("day=1/gone.parquet")

    found = adopt(store, folder.uri, "clicks").found

    assert (found.changed, found.added, found.rewritten, found.removed) == (["day=1", "day=3"], 2, 1, 1)
    assert kinds(store, adoption, "day=1") == [("reconcile", 3, 0), ("reconcile", 2, 2)]
    assert kinds(store, adoption, "day=2") == [("reconcile", 1, 0)]
    assert ids(open_table(store, adoption.feed)) == ["anew", "kept", "more", "new", "three", "two"]


def test_damaged_files_are_told_each_time_and_the_rest_goes_on(store, folder):
    folder.write("a.parquet", [1])
    folder.put("day=1/cut.parquet", parquet_bytes({"id": [1]})[:-5])
    folder.put("day=1/empty.parquet", b"")
    folder.put("day=1/text.parquet", b"id,name\n1,x\n" * 50)
    adoption = adopt(store, folder.uri, "clicks")

    for found in (adoption.found, adopt(store, folder.uri, "clicks").found):
        told = {each.name: each.reason for each in found.problems}
        assert told == {
            "day=1/cut.parquet": "it is not a Parquet file, or was truncated",
            "day=1/empty.parquet": "it has no bytes",
            "day=1/text.parquet": "it is not a Parquet file, or was truncated",
        }
    assert ids(open_table(store, adoption.feed)) == [1]
    assert len(folder.files()) == 4


def test_damaged_file_joins_when_it_is_whole(store, folder):
    folder.write("a.parquet", [1])
    folder.put("b.parquet", b"half")
    adoption = adopt(store, folder.uri, "clicks")
    folder.write("b.parquet", [2])

    assert adopt(store, folder.uri, "clicks").found.problems == []
    assert ids(open_table(store, adoption.feed)) == [1, 2]


def test_files_that_do_not_fit_are_left_out_of_scans_alone(store, folder):
    for number in range(3):
        folder.write(f"{number}.parquet", pa.array([number], pa.int32()))
    folder.write("wide.parquet", pa.array([2**40]), more=["x"])
    folder.write("odd.parquet", ["text"])

    adoption = adopt(store, folder.uri, "clicks")

    (odd,) = adoption.found.left_out
    assert odd.name == "odd.parquet"
    assert odd.reason in {f"column 'id' is {kind} in some files and string in others" for kind in ("int32", "int64")}
    table = open_table(store, adoption.feed)
    assert table.scan().schema == pa.schema([("id", pa.int64()), ("more", pa.string())])
    assert ids(table) == [0, 1, 2, 2**40]
    assert adoption.found.partitions["."].files == 5


def test_columns_of_later_files_widen_the_schema(store, folder):
    folder.write("a.parquet", pa.array([1], pa.int32()))
    adoption = adopt(store, folder.uri, "clicks")
    folder.write("b.parquet", pa.array([2**40]), more=["x"])
    adopt(store, folder.uri, "clicks")

    assert rows(open_table(store, adoption.feed)) == [{"id": 1, "more": None}, {"id": 2**40, "more": "x"}]


def test_partition_columns_are_inferred_over_all_paths(store, folder):
    folder.write("root.parquet", [0])
    folder.write("region=eu/2024/a.parquet", [1])
    folder.write("region=eu/year=2024/a.parquet", [2])
    folder.write("region=a%2Fb/year=05/a.parquet", [3])
    folder.write("region=__HIVE_DEFAULT_PARTITION__/year=2025/a.parquet", [4])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    assert table.scan().schema == pa.schema([("id", pa.int64()), ("region", pa.string()), ("year", pa.int32())])
    assert {row["id"]: (row["region"], row["year"]) for row in rows(table)} == {
        0: (None, None),
        1: ("eu", None),
        2: ("eu", 2024),
        3: ("a/b", 5),
        4: (None, 2025),
    }
    assert ids(table, where=ds.field("region") == "eu") == [1, 2]
    assert ids(table, where=ds.field("year").is_null()) == [0, 1]
    assert ids(table, partitions=["region=eu/2024", "."]) == [0, 1]


def test_partition_column_wins_over_a_column_of_the_files(store, folder):
    folder.write("year=2024/a.parquet", [1], year=["wrong"])
    folder.write("year=2025/a.parquet", [2], year=["wrong"])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    assert rows(table) == [{"id": 1, "year": 2024}, {"id": 2, "year": 2025}]
    assert ids(table, where=ds.field("year") == 2025) == [2]


def test_partitions_that_cannot_match_are_not_opened(store, folder):
    folder.write("year=2024/a.parquet", [1])
    folder.write("year=2025/a.parquet", [2])
    feed = adopt(store, folder.uri, "clicks").feed
    FeedFolder(store, feed).store.put("control/folders/clicks/year=2024/manifest.json", b"no manifest")

    assert ids(open_table(store, feed), where=ds.field("year") == 2025) == [2]


def test_scan_passes_over_files_that_others_deleted_since(store, folder):
    folder.write("a.parquet", [1])
    folder.write("b.parquet", [2])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    folder.delete("a.parquet")

    assert ids(table) == [2]


@pytest.mark.parametrize("name", ["sp ace ü#?+&*[x]{y}.parquet", "x=y'\"z.parquet", "100%.parquet"])
def test_names_of_other_writers_are_read(store, folder, name):
    folder.write(f"k=a b/{name}", [1])

    assert rows(open_table(store, adopt(store, folder.uri, "clicks").feed)) == [{"id": 1, "k": "a b"}]


def test_time_column_is_for_life(store, folder):
    folder.write("a.parquet", [1], at=[NOON])
    adopt(store, folder.uri, "clicks", time_column="at")

    assert adopt(store, folder.uri, "clicks").feed.time_column == "at"
    assert refused(lambda: adopt(store, folder.uri, "clicks", time_column="id")) == (
        "feed 'clicks' was adopted with the time column 'at', and keeps it"
    )


def test_more_files_than_a_listing_has_on_a_page_are_read_in_seconds(store, folder):
    bodies = [parquet_bytes({"id": [number], "at": [NOON]}) for number in range(100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: folder.put(f"day={n % 40}/{n}.parquet", bodies[n % 100]), range(1050)))
    began = time.monotonic()

    found = adopt(store, folder.uri, "clicks", time_column="at").found

    assert (found.added, found.footers_read, len(found.partitions)) == (1050, 1050, 40)
    rate = found.footers_read / found.footers_s
    print(f"{folder.uri}: {time.monotonic() - began:.1f} s in all, {rate:,.0f} footers a second")


def lines_run(call: Callable[[], object]) -> int:
    """Lines of Python that a call runs, in all of its threads: unlike seconds, the same each time."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: object):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        threading.settrace(None)  # type: ignore[arg-type]  # as it is at first
    return count


def test_looks_take_twice_as_long_for_twice_the_files(local_store, tmp_path):
    first, second, verified, merged = {}, {}, {}, {}
    for count in (100, 200):
        flat = tmp_path / f"raw{count}/flat"
        flat.mkdir(parents=True)
        for number in range(count):
            (flat / f"{number}.parquet").write_bytes(parquet_bytes({"id": [number]}))
        first[count] = lines_run(lambda flat=flat, count=count: adopt(local_store, str(flat), f"flat{count}"))
        second[count] = lines_run(lambda flat=flat, count=count: adopt(local_store, str(flat), f"flat{count}"))
        table = open_table(local_store, FeedRegistry(local_store).get(f"flat{count}"))
        verified[count] = lines_run(lambda table=table: list(table.verify()))
        merged[count] = lines_run(lambda table=table: table.compact(".", CompactionRequest(force=True)))
        assert len(list(flat.iterdir())) == 1

    assert first[200] < 2.3 * first[100]
    assert second[200] < 2.3 * second[100]
    assert verified[200] < 2.3 * verified[100]
    assert merged[200] < 2.3 * merged[100]
