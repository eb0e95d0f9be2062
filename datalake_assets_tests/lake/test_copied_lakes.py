"""A lake that was copied is the same lake: nothing rests on ETags alone."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from datalake_assets.core.batches import SourceBatch
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.manifest import Garbage
from datalake_assets.errors import DatalakeError
from datalake_assets.lake import compaction_inputs
from datalake_assets.lake.adopted import adoption
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.commit import PartitionLog
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store import open_store, posix
from datalake_assets.lake.tables import open_table
from datalake_assets.policies import CompactionPolicy
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder, ids, parquet_bytes
from datalake_assets_tests.lake.feeds import START, stream_feed, stream_of
from datalake_assets_tests.lake.hive_tables import export

FORCE = CompactionRequest(force=True)
DAY = "2025-01-01"


@lru_cache(maxsize=3)
def large_rows(first: int, count: int = 900) -> SourceBatch:
    """Some 9 MB that no codec makes smaller: more than one part of an upload."""
    numbers = np.random.default_rng(first)
    schema = pa.schema([("id", pa.int64()), ("note", pa.string()), ("rowtime", pa.timestamp("ms", "UTC"))])
    columns = [
        pa.array(range(first, first + count), pa.int64()),
        pa.array([numbers.bytes(5_000).hex() for _ in range(count)]),
        pa.array([START] * count, schema.field("rowtime").type),
    ]
    offsets = pa.array(range(first, first + count), pa.int64())
    return SourceBatch(pa.record_batch(columns, schema=schema), pa.array([0] * count, pa.int32()), offsets)


def put_in_parts(store, key: str, body: bytes) -> None:
    """Writes an object so that its ETag is no digest of its bytes."""
    target = {"Bucket": store._bucket, "Key": store._full(key)}
    upload = {**target, "UploadId": store._boto.create_multipart_upload(**target)["UploadId"]}
    part = store._boto.upload_part(**upload, PartNumber=1, Body=body)
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    store._boto.complete_multipart_upload(**upload, MultipartUpload=parts)


def copied(store, to):
    """Each object of a lake, written anew: on S3 with the ETag of a single part."""
    for info in store.list(""):
        with store.filesystem().open_input_file(store.path(info.key)) as opened:
            to.put(info.key, opened.read())
    return to


@pytest.mark.s3
@pytest.mark.parametrize("verify", ["full", "rows"])
def test_lake_that_was_copied_to_another_bucket_compacts_as_before(s3_store, verify):
    feed = stream_feed(compaction={"verify": verify, "kernel": "concat"})
    for first in (0, 2000, 4000):
        export(HiveTable(s3_store, feed), stream_of(large_rows(first)))
    before = HiveTable(s3_store, feed)
    etags = {file.etag for file in before._folder.log(DAY).load().manifest.files}
    assert all("-" in etag for etag in etags)
    copy = copied(s3_store, open_store(f"{s3_store.uri}-copy", s3=s3_store.s3))
    table = HiveTable(copy, feed)

    report = table.compact(DAY, FORCE)

    assert [each for each in report.skipped if each.unusable] == []
    assert (report.files_before, report.files_after, report.rows) == (3, 1, 2700)
    assert list(table.verify(deep=True)) == []
    assert sorted(table.scan(columns=["id"]).read_all()["id"].to_pylist()) == [
        *range(900),
        *range(2000, 2900),
        *range(4000, 4900),
    ]


@pytest.mark.s3
@pytest.mark.parametrize("verify", ["full", "rows"])
def test_file_of_a_copied_lake_with_other_bytes_is_named_by_its_checksum(s3_store, verify):
    feed = stream_feed(compaction={"verify": verify, "kernel": "concat"})
    for first in (0, 2000, 4000):
        export(HiveTable(s3_store, feed), stream_of(large_rows(first)))
    copy = copied(s3_store, open_store(f"{s3_store.uri}-copy", s3=s3_store.s3))
    table = HiveTable(copy, feed)
    bad = table._folder.log(DAY).load().manifest.files[1]
    key = table._folder.log(DAY).key_of(bad.name)
    body = bytearray(copy.get(key)[0])
    body[len(body) // 2] ^= 1
    copy.put(key, bytes(body))

    report = table.compact(DAY, FORCE)

    assert [each.name for each in report.skipped if each.unusable] == [bad.name]
    assert report.rows == 1800


@pytest.fixture
def moved(store, folder) -> Callable[[], tuple[AdoptedFolder, object]]:
    """Puts every file of the adopted folder anew, as a copy to another machine does."""

    def move() -> None:
        if "://" in folder.uri:
            for info in list(folder.store.list(folder.name)):
                body = folder.store.get(info.key)[0]
                if "compacted" in info.key:  # whole, and not in parts as before
                    folder.store.put(info.key, body)
                    continue
                put_in_parts(folder.store, info.key, body)
        else:
            root = Path(folder.uri)
            root.rename(root.with_name("before"))
            shutil.copytree(root.with_name("before"), root, copy_function=shutil.copy)
            shutil.rmtree(root.with_name("before"))

    return move


def test_adopted_folder_that_was_copied_is_known_again(store, folder, moved):
    for day in (1, 2):
        for number in range(4):
            folder.write(f"day={day}/{number}.parquet", [10 * day + number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    assert table.compact("day=1", FORCE).files_after == 1
    (before,) = table._folder.log("day=1").load().manifest.files
    versions = table.look_again().versions
    moved()

    assert list(table.verify()) == []
    found = adopt(store, folder.uri, "clicks").found

    assert (found.added, found.rewritten, found.removed, found.changed) == (0, 0, 0, [])
    assert found.versions == versions
    (after,) = table._folder.log("day=1").load().manifest.files
    assert before.checksum
    assert (after.name, after.checksum) == (before.name, before.checksum)
    assert after.etag != before.etag
    assert list(table.verify(deep=True)) == []
    folder.write("day=1/new.parquet", [14])
    assert table.compact("day=1", FORCE).rows == 5
    assert table.compact("day=2", FORCE).files_after == 1
    assert ids(table) == [10, 11, 12, 13, 14, 20, 21, 22, 23]


def test_compacted_file_that_others_wrote_anew_in_its_size_is_theirs(store, folder):
    for number in range(4):
        folder.write(f"{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    table.compact(".", FORCE)
    (file,) = table._folder.log(".").load().manifest.files
    body = bytearray(folder.store.get(f"clicks/{file.name}")[0])
    body[20] ^= 1
    folder.put(file.name, bytes(body))

    assert [each.what for each in table.verify()] == ["changed"]
    assert adopt(store, folder.uri, "clicks").found.rewritten == 1
    (file,) = table._folder.log(".").load().manifest.files
    assert file.checksum == ""


def test_one_file_of_several_that_was_written_anew_in_its_size_counts_as_rewritten(store, folder):
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    folder.write("1.parquet", [77])

    assert [each.what for each in table.verify()] == ["changed"]
    assert adopt(store, folder.uri, "clicks").found.rewritten == 1
    assert ids(table) == [0, 2, 77]


# ---- copied while replaced files are still to be deleted


def killed_before_the_deletes(table, key: str, monkeypatch) -> None:
    """Compacts a partition, and dies between commit and sweep."""
    with monkeypatch.context() as patch:
        patch.setattr(PartitionLog, "_sweep", killed)
        with pytest.raises(Killed):
            table.compact(key, FORCE)
    assert table._folder.log(key).load().manifest.garbage


def beside(path: Path):
    """A folder and a lake, on a disk."""
    for name in ("lake", "raw/clicks"):
        (path / name).mkdir(parents=True)
    return AdoptedFolder(open_store(str(path / "raw")), "clicks"), open_store(str(path / "lake"))


def killed(*_: object) -> None:
    raise Killed


class Killed(BaseException):
    """The process ends here."""


@lru_cache(maxsize=4)
def wide(first: int, count: int) -> bytes:
    """A file that no codec makes smaller than 100 bytes a row."""
    notes = pa.py_buffer(np.random.default_rng(first).bytes(100 * count))
    column = pa.Array.from_buffers(pa.binary(100), count, [None, notes]).cast(pa.binary())
    return parquet_bytes({"id": np.arange(first, first + count), "note": column})


#: From here on files are not fetched whole, in these tests; the real bounds are up to 32 times as much.
LARGE_BYTES = 256 << 10


@pytest.fixture(autouse=True)
def _large_begins_early(monkeypatch) -> None:
    for name in ("WHOLE_BYTES", "WHOLE_LOCAL_BYTES", "WHOLE_UNLESS_COPIED_BYTES"):
        monkeypatch.setattr(compaction_inputs, name, LARGE_BYTES)
    monkeypatch.setattr(adoption, "WHOLE_BYTES", LARGE_BYTES)


def enough(size: str) -> int:
    """Rows of a file that is fetched whole, or of one so large that it is not."""
    return 3 if size == "small" else LARGE_BYTES // 100


@pytest.mark.parametrize("kernel", ["concat", "reencode"])
def test_large_files_are_known_by_the_bytes_that_were_merged(tmp_path, monkeypatch, kernel):
    """They are not read once more for it."""
    folder, store = beside(tmp_path)
    count = enough("large")
    for number in range(3):
        folder.put(f"{number}.parquet", wide(number * count, count))
    bodies = {name: folder.store.get(f"clicks/{name}")[0] for name in folder.files()}
    feed = adopt(store, folder.uri, "clicks").feed
    table = open_table(store, feed.model_copy(update={"compaction": CompactionPolicy(kernel=kernel)}))
    monkeypatch.setattr(compaction_inputs, "stored_checksum", killed)

    killed_before_the_deletes(table, ".", monkeypatch)

    garbage = table._folder.log(".").load().manifest.garbage
    assert {each.name: each.checksum for each in garbage} == {
        name: f"xxh3-128:{xxhash.xxh3_128(body).hexdigest()}" for name, body in bodies.items()
    }


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("size", ["small", "large"])
def test_replaced_files_of_a_copied_folder_are_deleted(store, folder, moved, monkeypatch, size):
    count = enough(size)
    for number in range(3):
        folder.put(f"day=1/{number}.PARQUET", wide(number * count, count))
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    killed_before_the_deletes(table, "day=1", monkeypatch)
    moved()
    assert ids(table) == [*range(3 * count)]

    table.look_again()

    assert ids(table) == [*range(3 * count)]
    assert len(folder.files()) == 1
    assert list(table.verify(deep=True)) == []


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("again", ["compact", "repair"])
def test_replaced_files_of_a_copied_folder_are_deleted_by_whoever_comes(store, folder, moved, monkeypatch, again):
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    killed_before_the_deletes(table, ".", monkeypatch)
    moved()

    {"compact": lambda: table.compact(".", FORCE), "repair": table.repair}[again]()

    assert ids(table) == [0, 1, 2]
    assert len(folder.files()) == 1


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("size", ["small", "large"])
def test_replaced_file_of_a_copied_folder_that_others_wrote_again_stays(store, folder, moved, monkeypatch, size):
    count = enough(size)
    for number in range(3):
        folder.put(f"{number}.parquet", wide(number * count, count))
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    killed_before_the_deletes(table, ".", monkeypatch)
    moved()
    old, theirs = wide(count, count), wide(9 * count, count)
    folder.put("1.parquet", theirs)
    assert old != theirs

    table.look_again()

    assert folder.store.get("clicks/1.parquet")[0] == theirs
    assert ids(table) == [*range(3 * count), *range(9 * count, 10 * count)]
    assert len(folder.files()) == 2


def test_replaced_file_of_a_copied_folder_with_one_other_byte_stays(store, folder, moved, monkeypatch):
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    killed_before_the_deletes(table, ".", monkeypatch)
    moved()
    body = bytearray(folder.store.get("clicks/1.parquet")[0])
    body[4] ^= 1
    folder.put("1.parquet", bytes(body))

    table.look_again()

    assert folder.store.get("clicks/1.parquet")[0] == bytes(body)
    assert len(folder.files()) == 2


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_replaced_file_that_others_mended_in_its_middle_stays(store, folder, monkeypatch, size, in_parts):
    """Nothing was copied; size and end are the same, and on S3 the end is all that is known of a large file."""
    count = enough(size)

    def put(name: str, body: bytes) -> None:
        if in_parts and "://" in folder.uri:
            put_in_parts(folder.store, f"clicks/{name}", body)
        else:
            folder.put(name, body)

    for number in range(3):
        put(f"{number}.parquet", wide(number * count, count))
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    killed_before_the_deletes(table, ".", monkeypatch)
    body = bytearray(folder.store.get("clicks/1.parquet")[0])
    body[4] ^= 1
    put("1.parquet", bytes(body))

    table.look_again()

    assert folder.store.get("clicks/1.parquet")[0] == bytes(body)
    assert len(folder.files()) == 2


def test_file_that_was_moved_aside_when_its_folder_was_copied_is_deleted(tmp_path, monkeypatch):
    """A copy of the parent has it in ``.staging/held``, from where it is put back before it is known again."""
    folder, store = beside(tmp_path)
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    with monkeypatch.context() as patch:
        patch.setattr(posix, "_finish", lambda _file, held, _is_same: not Path(held).exists() or killed())
        with pytest.raises(Killed):
            table.compact(".", FORCE)
    assert [*(tmp_path / "raw/.staging/held").iterdir()]
    (tmp_path / "raw").rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "raw", copy_function=shutil.copy)

    table.look_again()

    assert ids(table) == [0, 1, 2]
    assert len(folder.files()) == 1


def test_prepared_commit_of_a_copied_folder_is_finished_and_swept(store, folder, moved, monkeypatch):
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    with monkeypatch.context() as patch:
        patch.setattr(type(folder.store), "sync", killed)
        with pytest.raises(Killed):
            table.compact(".", FORCE)
    assert table._folder.log(".").load().manifest.pending
    moved()

    table.look_again()

    assert ids(table) == [0, 1, 2]
    assert len(folder.files()) == 1


def as_the_release_wrote_it(store, log) -> None:
    """Gives garbage the form of 4ebcf7b's manifests: a name and an ETag."""
    manifest = log.load().manifest
    plain = tuple(Garbage(each.name, each.etag) for each in manifest.garbage)
    store.put(log.manifest_key, dataclasses.replace(manifest, garbage=plain).to_bytes())


def test_garbage_of_an_older_manifest_is_deleted_if_its_copy_kept_size_and_time(tmp_path, monkeypatch):
    folder, store = beside(tmp_path)
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    killed_before_the_deletes(table, ".", monkeypatch)
    as_the_release_wrote_it(store, table._folder.log("."))
    (tmp_path / "raw").rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "raw")  # with times, as 'cp -a' and rsync do

    table.look_again()

    assert ids(table) == [0, 1, 2]
    assert len(folder.files()) == 1


@pytest.fixture
def undecided(store, folder, moved, monkeypatch):
    """A copied folder with replaced files of which the release's manifest has no more than their ETags."""
    for day in (1, 2):
        for number in range(3):
            folder.write(f"day={day}/{number}.parquet", [10 * day + number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    killed_before_the_deletes(table, "day=1", monkeypatch)
    as_the_release_wrote_it(store, table._folder.log("day=1"))
    moved()
    return table


ROWS = [10, 11, 12, 20, 21, 22]


def test_copied_garbage_of_the_release_is_named_and_waits(store, folder, undecided):
    reason = (
        "clicks/day=1/0.parquet and 2 more had been merged and was to be deleted, and is another by its ETag now:"
        " nobody can say whether it is a copy, whose rows the merged file has, or a new file."
        " Delete it if it is a copy, rename it if it is new"
    )
    for _ in range(2):
        assert adopt(store, folder.uri, "clicks").found.waiting == [f"day=1: {reason}"]
        assert undecided.repair().waiting == (f"folders/clicks/day=1: {reason}",)
        with pytest.raises(DatalakeError) as caught:
            undecided.compact("day=1", FORCE)
        assert str(caught.value) == f"clicks/day=1: {reason}; then run it again"
        assert ids(undecided) == ROWS
        assert len(folder.files()) == 7
    assert undecided.compact("day=2", FORCE).files_after == 1
    assert [each.what for each in undecided.verify(partitions=["day=1"])] == ["garbage"]


def test_copied_garbage_of_the_release_is_decided_by_whoever_deletes_or_renames_it(folder, undecided):
    new = folder.store.get("clicks/day=1/2.parquet")[0]
    folder.delete("day=1/0.parquet")
    assert undecided.repair().waiting
    folder.delete("day=1/1.parquet", "day=1/2.parquet")
    folder.put("day=1/theirs.parquet", new)

    assert undecided.repair().waiting == ()

    assert ids(undecided) == sorted([*ROWS, 12])
    assert undecided.compact("day=1", FORCE).rows == 4


def test_garbage_of_the_release_that_is_another_by_its_size_joins(tmp_path, monkeypatch):
    folder, store = beside(tmp_path)
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    killed_before_the_deletes(table, ".", monkeypatch)
    as_the_release_wrote_it(store, table._folder.log("."))
    folder.write("1.parquet", [7, 8, 9], note=["longer"] * 3)

    assert table.look_again().waiting == []

    assert ids(table) == [0, 1, 2, 7, 8, 9]


@pytest.mark.s3
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_large_garbage_that_a_copy_left_with_other_etags_waits_even_if_ours_kept_theirs(store, folder, monkeypatch):
    """Copied in parts as large as ours, so that merged files look as before; ETags under KMS are no digests either."""
    count = enough("large")
    for number in range(3):
        folder.put(f"{number}.parquet", wide(number * count, count))
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    killed_before_the_deletes(table, ".", monkeypatch)
    for number in range(3):
        put_in_parts(folder.store, f"clicks/{number}.parquet", folder.store.get(f"clicks/{number}.parquet")[0])

    assert "nobody can say" in table.look_again().waiting[0]

    assert ids(table) == [*range(3 * count)]
