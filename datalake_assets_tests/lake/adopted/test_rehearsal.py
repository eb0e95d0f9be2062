"""A rehearsal of a compaction names what the compaction leaves alone, and leaves no trace."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.feed_compaction import Rehearsed
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder, parquet_bytes
from datalake_assets_tests.lake.adopted.test_page_look import checked, damaged

FORCE = CompactionRequest(force=True)
PLENTY = 1 << 30


def calendar(ids: list[int]) -> bytes:
    """A file by Spark's legacy calendar, whose values mean something else than others' files'."""
    file = io.BytesIO()
    metadata = {"org.apache.spark.version": "3.5.0", "org.apache.spark.legacyDateTime": ""}
    pq.write_table(pa.table({"id": ids}).replace_schema_metadata(metadata), file)
    return file.getvalue()


def broken(body: bytes) -> bytes:
    """The file with a page that does not decode; it has no checksums."""
    chunk = pq.ParquetFile(io.BytesIO(body)).metadata.row_group(0).column(0)
    bad = bytearray(body)
    for at in range(chunk.dictionary_page_offset + 18, chunk.dictionary_page_offset + 40):
        bad[at] ^= 0xFF
    return bytes(bad)


def one_of_each_kind(folder: AdoptedFolder) -> None:
    for number in range(3):
        folder.write(f"day=1/good{number}.parquet", [number])
    folder.put("day=1/text.parquet", b"no Parquet at all")
    folder.put("day=1/empty.parquet", b"")
    folder.put("day=1/cut.parquet", parquet_bytes({"id": [7]})[:-20])
    folder.put("day=1/checksum.parquet", damaged(checked(0)))
    folder.put("day=1/page.parquet", broken(parquet_bytes({"id": list(range(500))})))
    folder.put("day=1/calendar.parquet", calendar([9]))
    folder.write("day=1/schema.parquet", ["text"])
    folder.put("day=1/case.parquet", parquet_bytes({"id": [1], "ID": [2]}))
    folder.put("day=2/alone.parquet", b"no Parquet either")
    folder.write("day=3/one.parquet", [1])


def named(left_alone) -> dict[str, str]:
    return {each.name: each.reason for each in left_alone}


def state_of(folder: AdoptedFolder, store) -> dict[str, bytes]:
    lake = {info.key: store.get(info.key)[0] for info in store.list("")}
    return lake | {info.key: folder.store.get(info.key)[0] for info in folder.store.list("")}


def test_dry_run_names_what_the_run_leaves_alone_with_the_same_reasons(store, folder):
    folder.write("day=1/first.parquet", [0])
    feed = adopt(store, folder.uri, "clicks").feed
    one_of_each_kind(folder)  # after the last look, so that no manifest knows them
    before = state_of(folder, store)
    rehearsal = open_table(store, feed)

    keys = rehearsal.rehearsed_partitions()
    foreseen = {key: rehearsal.rehearse(key, FORCE, most_bytes=PLENTY) for key in keys}

    assert keys == ("day=1", "day=3")
    assert state_of(folder, store) == before
    table = open_table(store, feed)
    table.look_again()
    for key in keys:
        report = table.compact(key, FORCE)
        merged = {file.name for group in foreseen[key].plan.groups for file in group.files}
        assert named(foreseen[key].plan.left_alone) == named(report.skipped)
        assert {each.name for each in foreseen[key].plan.left_alone if each.unusable} == {
            each.name for each in report.skipped if each.unusable
        }
        assert len(merged) == report.files_compacted
    assert {"text.parquet", "empty.parquet", "cut.parquet", "checksum.parquet", "page.parquet"} <= set(
        named(foreseen["day=1"].plan.left_alone)
    )
    assert [each.name for each in rehearsal.rehearsed_problems() if each.key == "day=2"] == ["day=2/alone.parquet"]


def test_rehearsal_tries_no_more_than_it_may(store, folder):
    for number in range(3):
        folder.put(f"{number}.parquet", broken(parquet_bytes({"id": list(range(500 * number, 500 * number + 500))})))
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    sizes = sum(info.size_bytes for info in folder.store.list("clicks"))

    assert table.rehearse(".", FORCE, most_bytes=sizes - 1).untried_bytes == sizes
    done = table.rehearse(".", FORCE, most_bytes=sizes)
    assert isinstance(done, Rehearsed)
    assert (done.plan.groups, done.tried_bytes, done.untried_bytes) == ((), sizes, 0)
