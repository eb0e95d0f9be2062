"""Folders that others write are taken over without touching a byte, followed, and refused where that would do harm."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from datalake_assets.errors import ConfigError, DatalakeError, FeedExists, FolderTaken, LakeUnavailable
from datalake_assets.lake import owners
from datalake_assets.lake.adoption import Adoption, adopt
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.reconcile import reconcile
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import Store, open_store
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.foreign_folder import ForeignFolder, ids, parquet_bytes, rows

NOON = dt.datetime(2025, 1, 1, 12, tzinfo=dt.UTC)


def kinds(store: Store, adoption: Adoption, key: str) -> list[tuple[str, int, int]]:
    history = FeedFolder(store, adoption.feed).log(key).load().manifest.history
    return [(commit.kind, commit.files_added, commit.files_removed) for commit in history]


# ---- taking over


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
    assert (adoption.found.added, adoption.found.others, adoption.found.problems) == (2, 1, [])
    manifest = FeedFolder(store, adoption.feed).log("year=2025/month=01").load().manifest
    (file,) = manifest.files
    info = folder.store.head("clicks/year=2025/month=01/a.parquet")
    assert (file.name, file.size_bytes, file.etag, file.checksum) == ("a.parquet", info.size_bytes, info.etag, "")
    assert file.written_at == info.modified_at
    assert list(store.list("control/folders/clicks"))


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


# ---- partition columns


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
def test_foreign_names_are_read(store, folder, name):
    folder.write(f"k=a b/{name}", [1])

    assert rows(open_table(store, adopt(store, folder.uri, "clicks").feed)) == [{"id": 1, "k": "a b"}]


# ---- what is refused


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DatalakeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "whose"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta"),
        ("metadata/00000-ab.metadata.json", "an Iceberg"),
        (".hoodie/hoodie.properties", "a Hudi"),
        ("_spark_metadata/0", "a Spark streaming sink's"),
    ],
)
def test_table_with_a_log_is_refused(store, folder, path, whose):
    folder.write("a.parquet", [1])
    folder.put(path, b"{}")

    assert refused(lambda: adopt(store, folder.uri, "clicks")) == (
        f"{folder.uri} is {whose} table: its log says which files count, and compaction would corrupt it; use that"
        " format's own tools"
    )
    assert list(folder.store.list("")) == [info for info in folder.store.list("") if info.key.startswith("clicks/")]


def test_folder_that_becomes_a_table_is_refused_from_then_on(store, folder):
    folder.write("a.parquet", [1])
    feed = adopt(store, folder.uri, "clicks").feed
    folder.put("_delta_log/0.json", b"{}")

    with pytest.raises(ConfigError, match="is a Delta table"):
        reconcile(FeedFolder(store, feed))


def test_what_is_no_folder_of_parquet_files_is_refused(store, folder):
    folder.put("notes.txt", b"text")
    folder.store.put("file.parquet", parquet_bytes({"id": [1]}))
    root = folder.store.uri

    assert refused(lambda: adopt(store, folder.uri, "clicks")) == (
        f"{folder.uri} cannot be adopted: there are no Parquet files in it"
    )
    assert refused(lambda: adopt(store, f"{root}/file.parquet", "clicks")) == (
        f"{root}/file.parquet cannot be adopted: it is a file; give the folder that it lies in"
    )
    absent = "there is no such folder" if "://" not in root else "there are no Parquet files in it"
    assert refused(lambda: adopt(store, f"{root}/nothing", "clicks")) == f"{root}/nothing cannot be adopted: {absent}"
    assert FeedRegistry(store).list().feeds == ()


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("/", "'/' cannot be adopted: it has no place beside it; give a folder in it"),
        ("file:///", "'file:///' cannot be adopted: it has no place beside it; give a folder in it"),
        ("s3://bucket", "'s3://bucket' cannot be adopted: a bucket has no place beside it; give a prefix in it"),
        ("s3://bucket/", "'s3://bucket/' cannot be adopted: a bucket has no place beside it; give a prefix in it"),
        ("", "'' cannot be adopted: give a local folder, or s3://bucket/prefix"),
        ("gs://bucket/x", "'gs://bucket/x' cannot be adopted: give a local folder, or s3://bucket/prefix"),
        ("s3://key:secret@b/x", "a folder's URI must not carry credentials; give them by the AWS conventions"),
    ],
)
def test_address_that_cannot_be_adopted_is_refused(local_store, uri, line):
    assert refused(lambda: adopt(local_store, uri, "clicks")) == line


def test_overlaps_are_refused(store, folder):
    folder.write("day=1/a.parquet", [1])
    folder.store.put("other/a.parquet", parquet_bytes({"id": [1]}))
    adopt(store, folder.uri, "clicks")
    root = folder.store.uri

    inside = f"{folder.uri}/day=1"
    assert refused(lambda: adopt(store, inside, "day")) == (
        f"{inside} cannot be adopted: it overlaps {folder.uri}, which is feed 'clicks'"
    )
    assert refused(lambda: adopt(store, root, "raw")) == (
        f"{root} cannot be adopted: it overlaps {folder.uri}, which is feed 'clicks'"
    )
    assert refused(lambda: adopt(store, f"{store.uri}/streams", "mine")) == (
        f"{store.uri}/streams cannot be adopted: it overlaps the lake itself, {store.uri}"
    )
    assert adopt(store, f"{root}/other", "other").is_new


def test_name_that_is_taken_is_refused(store, folder):
    folder.write("a.parquet", [1])
    folder.store.put("other/a.parquet", parquet_bytes({"id": [1]}))
    adopt(store, folder.uri, "clicks")

    with pytest.raises(FeedExists, match="feed 'clicks' exists already; choose another name"):
        adopt(store, f"{folder.store.uri}/other", "clicks")
    FeedRegistry(store).archive("clicks")
    with pytest.raises(FeedExists, match="exists already in the archive"):
        adopt(store, folder.uri, "clicks")
    with pytest.raises(ConfigError, match=r"names match \[a-z\]"):
        adopt(store, folder.uri, "Clicks")


@pytest.mark.parametrize(
    ("column", "line"),
    [
        ("when", "'when' cannot be the time column: the files have at, id"),
        ("id", "'id' cannot be the time column: it is int64; give a column of timestamps or dates"),
    ],
)
def test_time_column_that_is_none_is_refused_before_anything_is_written(store, folder, column, line):
    folder.write("a.parquet", [1], at=[NOON])

    assert refused(lambda: adopt(store, folder.uri, "clicks", time_column=column)) == line
    assert FeedRegistry(store).list().feeds == ()
    assert [info.key for info in folder.store.list("")] == ["clicks/a.parquet"]


def test_time_column_is_for_life(store, folder):
    folder.write("a.parquet", [1], at=[NOON])
    adopt(store, folder.uri, "clicks", time_column="at")

    assert adopt(store, folder.uri, "clicks").feed.time_column == "at"
    assert refused(lambda: adopt(store, folder.uri, "clicks", time_column="id")) == (
        "feed 'clicks' was adopted with the time column 'at', and keeps it"
    )


# ---- owners


@pytest.fixture
def other_lake(store: Store) -> Store:
    uri = f"{store.uri}-other"
    if "://" not in uri:
        Path(uri).mkdir()
    return open_store(uri, s3_endpoint=store.s3_endpoint)


def test_folder_of_another_lake_is_refused(store, other_lake, folder):
    folder.write("day=1/a.parquet", [1])
    adopt(store, folder.uri, "clicks")
    marker = f"{folder.store.uri}/.datalake-owner-clicks.json"
    whose = f"{folder.uri}: it is kept in order by feed 'clicks' of the lake {store.uri}"

    for uri in (folder.uri, f"{folder.uri}/day=1", folder.store.uri):
        line = refused(lambda uri=uri: adopt(other_lake, uri, "mine"))
        assert line == f"{whose}; archive that feed first; if it is no more, delete {marker}"
    assert FeedRegistry(other_lake).list().feeds == ()
    assert {info.key for info in folder.store.list("")} == {"clicks/day=1/a.parquet", ".datalake-owner-clicks.json"}


def test_archiving_gives_the_folder_free_and_restoring_takes_it_again(store, other_lake, folder):
    folder.write("a.parquet", [1])
    adopt(store, folder.uri, "clicks")
    FeedRegistry(store).archive("clicks")

    assert adopt(other_lake, folder.uri, "mine").is_new
    with pytest.raises(FolderTaken, match="feed 'mine' of the lake"):
        FeedRegistry(store).restore("clicks")
    FeedRegistry(other_lake).archive("mine")
    assert FeedRegistry(store).restore("clicks").enabled
    assert adopt(store, folder.uri, "clicks").is_new is False


def test_feed_whose_folder_is_gone_can_be_archived(local_store, tmp_path, caplog):
    parent = tmp_path / "raw"
    (parent / "clicks").mkdir(parents=True)
    folder = ForeignFolder(open_store(str(parent)), "clicks")
    folder.write("a.parquet", [1])
    adopt(local_store, folder.uri, "clicks")
    shutil.rmtree(parent)

    assert FeedRegistry(local_store).archive("clicks").enabled is False
    assert [each.getMessage().partition(" stays: ")[0] for each in caplog.records] == [
        f"the owner's marker of {folder.uri}"
    ]


def test_of_two_lakes_at_once_one_gets_the_folder(store, other_lake, folder):
    folder.write("a.parquet", [1])
    start = Barrier(2)

    def attempt(lake: Store) -> str:
        start.wait()
        try:
            return adopt(lake, folder.uri, "clicks").feed.name
        except FolderTaken as error:
            return type(error).__name__

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(attempt, (store, other_lake))) == ["FolderTaken", "clicks"]


def test_of_two_lakes_that_take_overlapping_folders_at_most_one_does(store, other_lake, folder, monkeypatch):
    """Each looks around before either has left its marker; the second look finds the other's."""
    folder.write("day=1/a.parquet", [1])
    create, meet = owners._create, Barrier(2)

    def create_together(*arguments):
        meet.wait()
        created = create(*arguments)
        meet.wait()
        return created

    monkeypatch.setattr(owners, "_create", create_together)

    def attempt(case: tuple[Store, str]) -> str:
        try:
            return adopt(case[0], case[1], "clicks").feed.name
        except FolderTaken:
            return "refused"

    with ThreadPoolExecutor(2) as pool:
        came_of_it = list(pool.map(attempt, ((store, folder.uri), (other_lake, f"{folder.uri}/day=1"))))
    assert came_of_it.count("clicks") <= 1


def test_two_processes_of_one_lake_adopt_once(store, folder):
    for number in range(5):
        folder.write(f"{number}.parquet", [number])
    start = Barrier(3)

    def attempt(_: int) -> Adoption:
        start.wait()
        return adopt(open_store(store.uri, s3_endpoint=store.s3_endpoint), folder.uri, "clicks")

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(attempt, range(3)))
    assert len({each.feed.name for each in done}) == 1
    assert kinds(store, done[0], ".") == [("reconcile", 5, 0)]
    assert ids(open_table(store, done[0].feed)) == list(range(5))


def test_marker_is_no_data_and_names_the_owner(store, folder):
    folder.write("a.parquet", [1])
    adopt(store, folder.uri, "clicks")
    marker = json.loads(folder.store.get(".datalake-owner-clicks.json")[0])
    lake_id = json.loads(store.get("control/lake.json")[0])["id"]

    assert marker == {"format": 1, "lake_id": lake_id, "lake": store.uri, "feed": "clicks"}
    assert not [key for key in folder.files() if "datalake" in key]


def test_folder_without_write_access_beside_it_is_refused(local_store, tmp_path, monkeypatch):
    folder = ForeignFolder(open_store(str(tmp_path)), "clicks")
    (tmp_path / "clicks").mkdir()
    folder.write("a.parquet", [1])

    def denied(*_: object) -> str:
        raise LakeUnavailable("x", "no permission")

    monkeypatch.setattr("datalake_assets.lake.store_local.LocalStore.create", denied)
    with pytest.raises(LakeUnavailable) as caught:
        owners._create(folder.store, owners.FolderAddress(str(tmp_path), "clicks"), {})
    assert str(caught.value) == (
        f"{tmp_path}/clicks: its owner's marker cannot be written beside it: no permission; give this user write"
        f" access to {tmp_path}, where files are staged too"
    )


# ---- many files


def test_thousands_of_files_are_read_in_seconds(store, folder):
    bodies = [parquet_bytes({"id": [number], "at": [NOON]}) for number in range(100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: folder.put(f"day={n % 40}/{n}.parquet", bodies[n % 100]), range(2000)))
    began = time.monotonic()

    found = adopt(store, folder.uri, "clicks", time_column="at").found

    assert (found.added, found.footers_read, len(found.partitions)) == (2000, 2000, 40)
    rate = found.footers_read / found.footers_s
    print(f"{folder.uri}: {time.monotonic() - began:.1f} s in all, {rate:,.0f} footers a second")
