"""Of two copies of one lake, one keeps an adopted folder; a lake that moved, or has several addresses, is one lake."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import FolderTaken
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.adopted.claims import Claim
from datalake_assets.lake.commit import PartitionLog
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder, ids, refused

FORCE = CompactionRequest(force=True)


class Killed(BaseException):
    """The process ends here."""


def copy_of(store, name: str):
    """The lake as a backup has it."""
    uri = f"{store.uri}-{name}"
    if "://" not in uri:
        shutil.copytree(store.uri, uri)
        return open_store(uri)
    copy = open_store(uri, s3=store.s3)
    for info in store.list(""):
        copy.put(info.key, store.get(info.key)[0])
    return copy


def compact(store, feed):
    return open_table(store, feed).compact(".", FORCE)


@pytest.fixture
def feed(store, folder):
    for number in range(4):
        folder.write(f"{number}.parquet", [number])
    return adopt(store, folder.uri, "clicks").feed


def test_copy_is_refused_while_the_lake_that_was_copied_is_there(store, folder, feed):
    copy = copy_of(store, "copy")

    line = refused(lambda: compact(copy, feed))

    marker = f"{folder.store.uri}/.datalake-owner-clicks.json"
    assert line == (
        f"{folder.uri}: it is kept in order by another copy of this lake, {store.uri}; leave it to that one, and"
        f" archive the feed here; or, to give it to this one, delete {marker} and run 'datalake adopt {folder.uri}"
        " --name clicks'"
    )
    assert len(folder.files()) == 4
    assert ids(open_table(copy, feed)) == [0, 1, 2, 3]
    assert compact(store, feed).files_after == 1
    open_table(copy, feed).look_again()
    for lake in (store, copy):
        assert ids(open_table(lake, feed)) == [0, 1, 2, 3]


def test_archiving_the_feed_in_a_refused_copy_leaves_the_folder_to_the_original(store, folder, feed):
    copy = copy_of(store, "copy")
    assert "another copy of this lake" in refused(lambda: compact(copy, feed))

    FeedRegistry(copy).archive("clicks")  # as the message says

    assert compact(store, feed).files_after == 1
    assert ids(open_table(store, feed)) == [0, 1, 2, 3]


def hidden(store) -> None:
    """Lets a local lake be where nobody can see it, as on another machine."""
    Path(store.uri).rename(f"{store.uri}-hidden")


def test_of_two_copies_that_do_not_see_each_other_the_first_keeps_the_folder(local_store, tmp_path):
    (tmp_path / "raw/clicks").mkdir(parents=True)
    folder = AdoptedFolder(open_store(str(tmp_path / "raw")), "clicks")
    for number in range(4):
        folder.write(f"{number}.parquet", [number])
    feed = adopt(local_store, folder.uri, "clicks").feed
    copy = copy_of(local_store, "copy")
    hidden(local_store)
    assert compact(copy, feed).files_after == 1
    folder.write("later.parquet", [4])
    Path(f"{local_store.uri}-hidden").rename(local_store.uri)

    for act in (
        lambda: compact(local_store, feed),
        lambda: adopt(local_store, folder.uri, "clicks"),
    ):
        assert f"another copy of this lake, {copy.uri};" in refused(act)
    FeedRegistry(local_store).archive("clicks")  # the copy keeps its marker

    assert compact(copy, feed).files_after == 1
    assert ids(open_table(copy, feed)) == [0, 1, 2, 3, 4]


def test_lake_that_was_restored_from_a_backup_is_told_so_and_can_take_the_folder(store, folder, feed):
    backup = copy_of(store, "backup")
    assert compact(store, feed).files_after == 1
    store.delete([info.key for info in store.list("")])
    for info in backup.list(""):
        store.put(info.key, backup.get(info.key)[0])

    line = refused(lambda: compact(store, feed))

    marker = ".datalake-owner-clicks.json"
    assert line == (
        f"{folder.uri}: it was changed since by a newer copy of this lake, and this one was restored from a backup; if"
        f" no other copy keeps it in order, delete {folder.store.uri}/{marker} and run 'datalake adopt {folder.uri}"
        " --name clicks'"
    )
    folder.store.delete([marker])
    adopt(store, folder.uri, "clicks")
    assert ids(open_table(store, feed)) == [0, 1, 2, 3]


def test_lake_that_moved_goes_on(store, folder, feed):
    moved = copy_of(store, "moved")
    if "://" in store.uri:
        store.delete([info.key for info in store.list("")])
    else:
        hidden(store)

    assert compact(moved, feed).files_after == 1
    folder.write("later.parquet", [4])
    assert adopt(moved, folder.uri, "clicks").found.added == 1
    assert compact(moved, feed).files_after == 1
    assert ids(open_table(moved, feed)) == [0, 1, 2, 3, 4]
    assert json.loads(folder.store.get(".datalake-owner-clicks.json")[0])["lake"] == moved.uri


def test_folder_is_given_to_a_copy_by_deleting_the_marker(store, folder, feed):
    assert compact(store, feed).files_after == 1
    copy = copy_of(store, "copy")
    folder.store.delete([".datalake-owner-clicks.json"])

    assert adopt(copy, folder.uri, "clicks").is_new is False

    folder.write("later.parquet", [4])
    assert "another copy of this lake" in refused(lambda: compact(store, feed))
    assert compact(copy, feed).files_after == 1
    assert ids(open_table(copy, feed)) == [0, 1, 2, 3, 4]


@pytest.mark.s3
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_lake_of_another_name_of_its_server_is_no_copy(store, folder, feed, s3_server):
    other = open_store(store.uri, s3=S3Access(endpoint=s3_server.endpoint.replace("127.0.0.1", "localhost")))

    for number, lake in enumerate((store, other, store), 4):
        folder.write(f"{number}.parquet", [number])
        assert compact(lake, feed).files_after == 1
    assert ids(open_table(other, feed)) == list(range(7))


def test_local_lake_that_two_paths_lead_to_is_no_copy(local_store, tmp_path):
    """Bind mounts and network folders: no resolving of links tells that the two are one."""
    (tmp_path / "raw/clicks").mkdir(parents=True)
    folder = AdoptedFolder(open_store(str(tmp_path / "raw")), "clicks")
    folder.write("0.parquet", [0])
    feed = adopt(local_store, folder.uri, "clicks").feed
    (tmp_path / "mounted").symlink_to(local_store.uri)
    other = open_store(str(tmp_path / "mounted"))
    assert other.uri != local_store.uri

    for number, lake in enumerate((local_store, other, local_store), 1):
        folder.write(f"{number}.parquet", [number])
        assert compact(lake, feed).files_after == 1
    assert ids(open_table(other, feed)) == [0, 1, 2, 3]


def test_marker_of_before_is_taken_over_once(store, folder, feed):
    marker = ".datalake-owner-clicks.json"
    before = {name: each for name, each in json.loads(folder.store.get(marker)[0]).items() if name != "claim"}
    folder.store.put(marker, json.dumps(before).encode())
    store.delete(["control/folders/clicks/owner.json"])
    copy = copy_of(store, "copy")

    assert compact(store, feed).files_after == 1

    folder.write("later.parquet", [4])
    assert "another copy" in refused(lambda: compact(copy, feed))
    assert ids(open_table(store, feed)) == [0, 1, 2, 3]


def test_prepared_commit_of_a_copy_is_not_undone_where_the_other_went_on(local_store, tmp_path, monkeypatch):
    """Undoing it would delete a file that the other lake has committed: one of its two is merged by now."""
    (tmp_path / "raw/clicks").mkdir(parents=True)
    folder = AdoptedFolder(open_store(str(tmp_path / "raw")), "clicks")
    for number in range(4):
        folder.write(f"{number}.parquet", [number])
    feed = adopt(local_store, folder.uri, "clicks").feed
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise Killed

        patch.setattr(PartitionLog, "_finish", killed)
        with pytest.raises(Killed):
            compact(local_store, feed)
    copy = copy_of(local_store, "copy")
    folder.write("later.parquet", [4])
    compact(local_store, feed)
    hidden(local_store)

    table = open_table(copy, feed)
    for act in (table.repair, table.look_again, lambda: compact(copy, feed)):
        assert "another copy of this lake" in refused(act)

    Path(f"{local_store.uri}-hidden").rename(local_store.uri)
    assert ids(open_table(local_store, feed)) == [0, 1, 2, 3, 4]
    assert list(open_table(local_store, feed).verify(deep=True)) == []


@pytest.mark.parametrize("dies", ["swap", "create"])
def test_claim_is_kept_by_whoever_dies_while_renewing_it(local_store, tmp_path, monkeypatch, dies):
    (tmp_path / "raw/clicks").mkdir(parents=True)
    folder = AdoptedFolder(open_store(str(tmp_path / "raw")), "clicks")
    for number in range(4):
        folder.write(f"{number}.parquet", [number])
    honest = getattr(LocalStore, dies)

    def dying(self: LocalStore, key: str, *arguments: object, **options: object) -> str:
        if key.startswith(".datalake-owner"):
            raise Killed
        return honest(self, key, *arguments, **options)

    feed = None
    if dies == "swap":
        feed = adopt(local_store, folder.uri, "clicks").feed
    act = partial(compact, local_store, feed) if feed else partial(adopt, local_store, folder.uri, "clicks")
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, dies, dying)
            with pytest.raises(Killed):
                act()

    feed = adopt(local_store, folder.uri, "clicks").feed
    assert compact(local_store, feed).files_after == 1
    assert ids(open_table(local_store, feed)) == [0, 1, 2, 3]


def test_processes_of_one_lake_renew_at_once_and_none_loses_it(store, folder, feed):
    start = Barrier(4)

    def attempt(_: int) -> None:
        claim: Claim = open_table(open_store(store.uri, s3=store.s3), feed)._folder.claim
        start.wait()
        for _ in range(5):
            claim.renew()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(attempt, range(4))) == [None] * 4
    assert compact(store, feed).files_after == 1


def test_of_two_copies_that_renew_at_once_one_does(store, folder, feed):
    copy = copy_of(store, "copy")
    start = Barrier(2)

    def attempt(lake) -> str:
        claim = open_table(lake, feed)._folder.claim
        start.wait()
        try:
            claim.renew()
        except FolderTaken:
            return "refused"
        return "renewed"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(attempt, (store, copy))) == ["refused", "renewed"]
