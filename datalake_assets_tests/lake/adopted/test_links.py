"""Links in an adopted folder are named, and neither followed nor deleted; nothing that lies elsewhere is merged in."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import LakeUnavailable
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder, ids, parquet_bytes, refused

FORCE = CompactionRequest(force=True)
LEFT_ALONE = "it is a link, which is neither followed nor deleted"


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    above = tmp_path / "raw"
    (above / "clicks").mkdir(parents=True)
    return above


@pytest.fixture
def folder(parent: Path) -> AdoptedFolder:
    here = AdoptedFolder(open_store(str(parent)), "clicks")
    for number in range(3):
        here.write(f"{number}.parquet", [number])
    return here


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    there = tmp_path / "elsewhere"
    (there / "day=9").mkdir(parents=True)
    for name in ("a.parquet", "day=9/b.parquet"):
        (there / name).write_bytes(parquet_bytes({"id": [100]}))
    return there


def links_in(parent: Path) -> dict[str, str]:
    return {path.name: str(path.readlink()) for path in parent.rglob("*") if path.is_symlink()}


def test_links_are_named_and_stay_and_nothing_is_merged_twice(local_store, folder, parent, elsewhere):
    clicks = parent / "clicks"
    for number in (3, 4):
        folder.write(f"{number}.parquet", [number])
    (clicks / "latest.parquet").symlink_to("2.parquet")
    (clicks / "absolute.parquet").symlink_to(clicks / "0.parquet")
    (clicks / "outside.parquet").symlink_to(elsewhere / "a.parquet")
    (clicks / "broken.parquet").symlink_to("nothing.parquet")
    (clicks / "again").symlink_to(clicks)
    (clicks / "day=9").symlink_to(elsewhere / "day=9")
    (clicks / "_hidden").symlink_to(elsewhere)
    links = links_in(parent)

    adoption = adopt(local_store, folder.uri, "clicks")
    table = open_table(local_store, adoption.feed)

    named = {"absolute.parquet", "again", "broken.parquet", "day=9", "latest.parquet", "outside.parquet"}
    assert {each.name for each in adoption.found.links} == named
    assert {each.reason for each in adoption.found.links} == {LEFT_ALONE}
    assert (adoption.found.added, ids(table)) == (5, [0, 1, 2, 3, 4])

    report = table.compact(".", FORCE)

    assert (report.files_before, report.files_after, report.rows) == (5, 3, 3)
    linked = {each.name: each.reason for each in report.skipped if each.name not in named}
    assert linked == {
        "0.parquet": "the link 'absolute.parquet' points to it",
        "2.parquet": "the link 'latest.parquet' points to it",
    }
    assert {(each.name, each.reason, each.unusable) for each in report.skipped if each.name in named} == {
        (name, LEFT_ALONE, False) for name in named
    }
    assert links_in(parent) == links
    assert sorted(path.name for path in elsewhere.rglob("*.parquet")) == ["a.parquet", "b.parquet"]
    assert [(clicks / name).exists() for name in ("latest.parquet", "absolute.parquet")] == [True, True]
    assert ids(table) == [0, 1, 2, 3, 4]
    assert list(table.verify(deep=True)) == []


def test_folder_of_links_alone_is_no_folder_of_parquet_files(local_store, parent, elsewhere):
    (parent / "linked").mkdir()
    (parent / "linked/a.parquet").symlink_to(elsewhere / "a.parquet")
    (parent / "linked/day=9").symlink_to(elsewhere / "day=9")

    assert refused(lambda: adopt(local_store, f"{parent}/linked", "linked")) == (
        f"{parent}/linked cannot be adopted: there are no Parquet files in it"
    )


def test_file_that_became_a_link_is_read_as_none_of_ours(local_store, folder, parent, elsewhere):
    """As another release adopted it: the manifest names it."""
    table = open_table(local_store, adopt(local_store, folder.uri, "clicks").feed)
    moved = elsewhere / "moved.parquet"
    (parent / "clicks/1.parquet").rename(moved)
    (parent / "clicks/1.parquet").symlink_to(moved)

    report = table.compact(".", FORCE)

    assert report.rows == 2
    assert (parent / "clicks/1.parquet").is_symlink()
    assert moved.read_bytes()
    table.look_again()
    assert ids(table) == [0, 2]


def test_input_that_becomes_a_link_to_itself_during_the_rewrite_stops_the_commit(
    local_store, folder, parent, elsewhere
):
    table = open_table(local_store, adopt(local_store, folder.uri, "clicks").feed)
    moved, file = elsewhere / "moved.parquet", parent / "clicks/1.parquet"

    def swap(_: object) -> None:
        if not file.is_symlink():
            file.rename(moved)
            file.symlink_to(moved)

    report = table.compact(".", FORCE, on_progress=swap)

    assert report.files_compacted == 0
    assert file.is_symlink()
    assert sorted(path.name for path in (parent / "clicks").iterdir()) == ["0.parquet", "1.parquet", "2.parquet"]


def test_input_that_becomes_a_link_after_the_commit_is_not_deleted(local_store, folder, parent, elsewhere):
    adopt(local_store, folder.uri, "clicks")
    before = {info.key: info.etag for info in folder.store.list("clicks")}
    moved, file = elsewhere / "moved.parquet", parent / "clicks/1.parquet"
    file.rename(moved)
    file.symlink_to(moved)
    (parent / "clicks").rename(parent / "real")
    (parent / "clicks").symlink_to("real")

    assert set(folder.store.delete_if(before)) == set(before)
    assert file.is_symlink()
    (parent / "clicks").unlink()
    (parent / "real").rename(parent / "clicks")
    assert folder.store.delete_if(before) == ("clicks/1.parquet",)
    assert moved.read_bytes()


def test_partition_that_became_a_link_is_not_compacted(local_store, folder, parent, elsewhere):
    for number in range(2):
        folder.write(f"day=1/{number}.parquet", [number])
    table = open_table(local_store, adopt(local_store, folder.uri, "clicks").feed)
    (parent / "clicks/day=1").rename(elsewhere / "day=1")
    (parent / "clicks/day=1").symlink_to(elsewhere / "day=1")

    with pytest.raises(LakeUnavailable, match="it is a link, or lies behind one, by now"):
        table.compact("day=1", FORCE)
    assert len(list((elsewhere / "day=1").iterdir())) == 2
    table.look_again()
    assert ids(table) == [0, 1, 2]


def test_folder_that_is_given_by_a_link_is_the_folder(local_store, folder, parent):
    (parent / "link").symlink_to("clicks")

    adoption = adopt(local_store, f"{parent}/link", "clicks")

    assert adoption.feed.source.where == folder.uri
    assert adopt(local_store, folder.uri, "clicks").is_new is False


# ---- what a refused or archived adoption leaves


def beside(parent: Path) -> list[str]:
    return sorted(path.relative_to(parent).as_posix() for path in parent.rglob("*") if "clicks/" not in str(path))


def test_archiving_leaves_nothing_beside_the_folder(local_store, folder, parent):
    table = open_table(local_store, adopt(local_store, folder.uri, "clicks").feed)
    table.compact(".", FORCE)

    FeedRegistry(local_store).archive("clicks")

    assert beside(parent) == ["clicks"]
    FeedRegistry(local_store).restore("clicks")
    assert ids(table) == [0, 1, 2]
    assert table.compact(".", FORCE).files_after == 1


def test_archiving_leaves_what_is_staged_and_what_is_locked(local_store, folder, parent):
    adopt(local_store, folder.uri, "clicks")
    with folder.store.stage("other/a.parquet") as writer:
        writer.write(b"x")
        staged = writer.finish()
    with folder.store._tree.lock("00"):
        FeedRegistry(local_store).archive("clicks")
        assert beside(parent) == [
            ".staging",
            ".staging/files",
            f"{staged.token}",
            ".staging/locks",
            ".staging/locks/00",
            "clicks",
        ]
    folder.store.tidy()
    assert folder.store.has_staged(staged)
    folder.store.discard_staged(staged)
    folder.store.tidy()
    assert beside(parent) == ["clicks"]


@pytest.mark.parametrize("options", [{"time_column": "nothing"}, {"name": "taken"}])
def test_refused_adoption_leaves_nothing(local_store, folder, parent, options):
    other = parent / "other"
    other.mkdir()
    (other / "a.parquet").write_bytes(parquet_bytes({"id": [1]}))
    adopt(local_store, str(other), "taken")
    before = beside(parent), sorted(info.key for info in local_store.list(""))

    refused(lambda: adopt(local_store, folder.uri, **{"name": "clicks", **options}))

    assert (beside(parent), sorted(info.key for info in local_store.list(""))) == before


def test_refused_adoption_of_somebody_elses_folder_leaves_nothing(local_store, folder, parent, tmp_path):
    (tmp_path / "lake2").mkdir()
    adopt(open_store(str(tmp_path / "lake2")), folder.uri, "theirs")
    before = beside(parent)

    refused(lambda: adopt(local_store, folder.uri, "clicks"))

    assert beside(parent) == before
    assert not [info.key for info in local_store.list("") if info.key != "control/lake.json"]


@pytest.mark.parametrize("files", [{"hosts": b"127.0.0.1", "conf.d/x": b"x" * 100}, {"a.parquet": b"text"}, {}])
def test_folder_without_parquet_files_is_refused_and_leaves_nothing(local_store, tmp_path, files):
    for name, body in files.items():
        file = tmp_path / "etc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
    (tmp_path / "etc").mkdir(exist_ok=True)
    before = sorted(os.listdir(tmp_path))  # noqa: PTH208  names alone

    line = refused(lambda: adopt(local_store, str(tmp_path / "etc"), "etc"))

    assert line.startswith(f"{tmp_path}/etc cannot be adopted: there are no Parquet files in it")
    assert sorted(os.listdir(tmp_path)) == before  # noqa: PTH208
    assert list(local_store.list("")) == []


def test_etc_is_not_adopted(local_store):
    assert "there are no Parquet files in it" in refused(lambda: adopt(local_store, "/etc", "etc"))
    assert list(local_store.list("")) == []


def test_locks_hold_while_others_tidy(local_store):
    """A counter that is read and written under a lock, by threads, while another removes whatever is not held."""
    stop, count = Event(), {"n": 0}

    def work() -> None:
        for _ in range(200):
            with local_store._tree.lock("ab"):
                seen = count["n"]
                os.stat(local_store.uri)  # noqa: PTH116  lets the others run
                count["n"] = seen + 1

    def tidy() -> None:
        while not stop.is_set():
            local_store.tidy()

    with ThreadPoolExecutor(5) as pool:
        tidying = pool.submit(tidy)
        try:
            for job in [pool.submit(work) for _ in range(4)]:
                job.result()
        finally:
            stop.set()
        tidying.result()
    assert count["n"] == 800
