"""Folders are not adopted where taking them over would do harm: what they are, and whose."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from datalake_assets.errors import ConfigError, FeedExists, FolderTaken, LakeUnavailable
from datalake_assets.lake.adopted import owners
from datalake_assets.lake.adopted.adoption import Adoption, adopt
from datalake_assets.lake.adopted.reconcile import reconcile
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import NOON, AdoptedFolder, ids, kinds, parquet_bytes, refused


@pytest.mark.parametrize(
    ("path", "whose", "cure"),
    [
        (
            "_delta_log/00000000000000000000.json",
            "a Delta table",
            "adopt the table itself with 'datalake adopt {} --name NAME'",
        ),
        (
            "metadata/00000-ab.metadata.json",
            "an Iceberg table",
            "adopt the table itself with 'datalake adopt iceberg:NAMESPACE.TABLE --catalog CATALOG --name NAME'",
        ),
        (".hoodie/hoodie.properties", "a Hudi table", "use that format's own tools"),
        ("_spark_metadata/0", "a Spark streaming sink", "use that format's own tools"),
    ],
)
def test_table_with_a_log_is_refused(store, folder, path, whose, cure):
    folder.write("a.parquet", [1])
    folder.put(path, b"{}")

    assert refused(lambda: adopt(store, folder.uri, "clicks")) == (
        f"{folder.uri} is {whose}: its log says which files count, and compaction would corrupt it;"
        f" {cure.format(folder.uri)}"
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


@pytest.fixture
def other_lake(store: Store) -> Store:
    uri = f"{store.uri}-other"
    if "://" not in uri:
        Path(uri).mkdir()
    return open_store(uri, s3=store.s3)


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
    folder = AdoptedFolder(open_store(str(parent)), "clicks")
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
        return adopt(open_store(store.uri, s3=store.s3), folder.uri, "clicks")

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

    (_, claim) = json.loads(store.get("control/folders/clicks/owner.json")[0])["claims"]
    assert marker == {"format": 1, "lake_id": lake_id, "lake": store.uri, "feed": "clicks", "claim": claim}
    assert not [key for key in folder.files() if "datalake" in key]


def test_folder_without_write_access_beside_it_is_refused(local_store, tmp_path, monkeypatch):
    folder = AdoptedFolder(open_store(str(tmp_path)), "clicks")
    (tmp_path / "clicks").mkdir()
    folder.write("a.parquet", [1])

    create = LocalStore.create

    def denied(self: LocalStore, key: str, body: bytes) -> str:
        if key.startswith(".datalake-owner-"):
            raise LakeUnavailable("x", "no permission")
        return create(self, key, body)

    monkeypatch.setattr(LocalStore, "create", denied)
    with pytest.raises(LakeUnavailable) as caught:
        adopt(local_store, folder.uri, "clicks")
    assert str(caught.value) == (
        f"{tmp_path}/clicks: its owner's marker cannot be written beside it: no permission; give this user write"
        f" access to {tmp_path}, where files are staged too"
    )
