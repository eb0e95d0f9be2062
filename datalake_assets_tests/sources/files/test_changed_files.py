"""What becomes of a file that changes: it replaces its rows, whoever dies, sleeps or writes beside."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

import pytest

from datalake_assets.errors import InvalidFeed, SourceRecreated
from datalake_assets.lake import item_ledger
from datalake_assets.lake.item_exports import ItemsExport
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.files.files_source import FileBatches
from datalake_assets_tests.sources.files.dropping import DROPPED, LATER, Dropping, by_day, dated, files_feed, only_local

DAY = datetime(2025, 3, 1, 6)  # noqa: DTZ001  as the file has it, without a zone


class Killed(BaseException):
    """The process dies here."""


def test_a_changed_file_replaces_its_rows_wherever_they_are(dropping):
    dropping = by_day(dropping)
    dropping.drop("a.csv", dated(1, 2, 3))
    dropping.drop("b.csv", dated(2, value=7))
    dropping.export()
    dropping.drop("a.csv", dated(3, 4, value=1), at=LATER)
    dropping.export()
    assert dropping.rows("id", "source_file") == [(1, "a.csv"), (1, "a.csv"), (7, "b.csv")]
    assert dropping.remembered()["a.csv"]["partitions"] == ["2025-03-03", "2025-03-04"]
    assert dropping.export().rows_read == 0
    assert list(open_table(dropping.store, dropping.feed).verify()) == []


def test_a_file_that_changes_back_is_another_again(dropping):
    for number, value in enumerate((1, 2, 1, 2)):
        dropping.drop("a.csv", f"id\n{value}\n", at=DROPPED + timedelta(hours=number))
        dropping.export()
        assert dropping.rows("id") == [(value,)]


def test_a_file_that_is_touched_is_not_landed_again(dropping):
    dropping.drop("a.csv", "id\n1\n")
    dropping.export()
    dropping.drop("a.csv", "id\n1\n", at=LATER)
    assert dropping.export().rows_added == 0
    assert dropping.rows("id", "source_modified") == [(1, DROPPED)]
    before = dropping.remembered()["a.csv"]["number"]
    dropping.export()
    assert dropping.remembered()["a.csv"]["number"] == before


@only_local
@pytest.mark.parametrize(("on_change", "left"), [("ignore", [(1,)]), ("append", [(1,), (2,)])])
def test_a_changed_file_does_what_the_feed_says(dropping, on_change, left):
    dropping.feed = files_feed(str(dropping.folder), source={"on_change": on_change})
    dropping.drop("a.csv", "id\n1\n")
    dropping.export()
    dropping.drop("a.csv", "id\n2\n", at=LATER)
    dropping.export()
    assert dropping.rows("id") == left


@only_local
def test_files_of_another_place_replace_none_of_the_same_names_unless_a_person_says_that_they_were_moved(
    dropping, tmp_path
):
    dropping.drop("a.csv", "id\n1\n")
    dropping.drop("b.csv", "id\n2\n")
    dropping.export()
    former = dropping.folder
    dropping.folder = tmp_path / "other"
    dropping.feed = files_feed(str(dropping.folder))
    dropping.drop("a.csv", "id\n3\n", at=LATER)

    with pytest.raises(SourceRecreated, match=f"what was landed is of {former}: a file of the same name would"):
        dropping.export()
    assert dropping.rows("id") == [(1,), (2,)]
    dropping.drop("a.csv", "id\n1\n")
    assert dropping.export(new_epoch=True).rows_added == 0
    dropping.drop("c.csv", "id\n4\n", at=LATER)
    dropping.export()
    assert dropping.rows("id") == [(1,), (2,), (4,)]


@only_local
@pytest.mark.parametrize("own", ["file_column", "modified_column"])
def test_the_columns_by_which_former_rows_are_found_are_for_life(dropping, own):
    dropping.drop("a.json", '{"id": 1}')
    dropping.export()
    dropping.feed = files_feed(str(dropping.folder), source={own: "other"})
    dropping.drop("a.json", '{"id": 2}', at=LATER)
    with pytest.raises(InvalidFeed, match="rows have no column 'other'"):
        dropping.export()
    assert dropping.rows("id", "source_file") == [(1, "a.json")]


@only_local
def test_a_file_that_becomes_bad_keeps_its_former_rows_until_it_is_good_again(dropping):
    dropping.drop("a.csv", "id\n1\n")
    dropping.export()
    dropping.drop("a.csv", b"", at=LATER)
    dropping.export()
    assert dropping.rows("id") == [(1,)]
    dropping.drop("a.csv", "id\n3\n", at=LATER + timedelta(hours=1))
    dropping.export()
    assert dropping.rows("id") == [(3,)]


@only_local
def test_a_content_that_was_landed_in_part_and_is_gone_is_replaced_even_where_changes_are_ignored(
    dropping, monkeypatch
):
    dropping = by_day(dropping)
    dropping.feed = dropping.feed.model_copy(
        update={"source": dropping.feed.source.model_copy(update={"on_change": "ignore"})}
    )
    dropping.drop("a.csv", dated(1, 2, 3))
    swap, left = type(dropping.store).swap, [3]

    def dies(self, key, body, *, etag):
        left[0] -= key.endswith("manifest.json")
        if not left[0]:
            raise Killed
        return swap(self, key, body, etag=etag)

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(type(dropping.store), "swap", dies)
        dropping.export()
    assert dropping.remembered()["a.csv"]["state"] == "landing"
    for value in (1, 2):
        dropping.drop("a.csv", dated(2, 4, value=value), at=LATER + timedelta(hours=value))
        dropping.export()
    assert dropping.rows("id") == [(1,), (1,)]


@only_local
def test_a_file_that_loses_all_rows_takes_them_out_of_the_lake(dropping):
    dropping.drop("a.csv", "id\n1\n")
    dropping.export()
    dropping.drop("a.csv", "id\n", at=LATER)
    dropping.export()
    assert dropping.rows("id") == []


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("steps", range(4))
def test_what_a_crash_left_is_finished_by_the_next_export(dropping, monkeypatch, steps):
    """Three commits of partitions, with the ledger's entries before and after them."""
    dropping = by_day(dropping)
    dropping.drop("a.csv", dated(1, 2, 3))
    dropping.export()
    dropping.drop("a.csv", dated(2, 3, 5, value=1), at=LATER)
    real, left = type(dropping.store).swap, [2 * steps + 1]

    def swap(self, key, body, *, etag):
        if key.endswith("manifest.json") or "iceberg" in key:
            left[0] -= 1
            if not left[0]:
                raise Killed
        return real(self, key, body, etag=etag)

    with monkeypatch.context() as patch:
        patch.setattr(type(dropping.store), "swap", swap)
        try:
            dropping.export()
        except Killed:
            assert dropping.remembered()["a.csv"]["state"] == "landing"
    dropping.export()
    assert dropping.rows("id", "at") == [(1, DAY.replace(day=day)) for day in (2, 3, 5)]
    assert dropping.remembered()["a.csv"]["superseded"] == []


def test_a_writer_of_an_older_content_is_kept_out(dropping, monkeypatch):
    """It read the file before it changed, and wakes up when the newer content is there."""
    dropping.drop("a.csv", "id\n1\n")
    first, begin = [True], item_ledger.ItemLedger.begin

    def overtaken(self, entries):
        if first.pop() if first else False:
            dropping.drop("a.csv", "id\n2\n", at=LATER)
            Dropping(dropping.store, dropping.folder, dropping.feed).export()
        begin(self, entries)

    monkeypatch.setattr(item_ledger.ItemLedger, "begin", overtaken)
    dropping.export()
    assert dropping.rows("id") == [(2,)]


def test_a_writer_that_slept_after_it_began_is_kept_out(dropping, monkeypatch):
    dropping.drop("a.csv", "id\n1\n")
    real, first = ItemsExport.commit_all, [True]

    def commit_all(self, wanted):
        if first.pop() if first else False:
            dropping.drop("a.csv", "id\n2\n", at=LATER)
            Dropping(dropping.store, dropping.folder, dropping.feed).export()
        return real(self, wanted)

    monkeypatch.setattr(ItemsExport, "commit_all", commit_all)
    dropping.export()
    assert dropping.rows("id") == [(2,)]


@pytest.mark.parametrize("steps", [3, 99])
def test_rows_that_another_writer_landed_meanwhile_are_found_once_the_file_changes(dropping, monkeypatch, steps):
    """The second writer asked what is known before the first one began, and reads after that one died or ended."""
    dropping = by_day(dropping)
    dropping.drop("a.csv", dated(1, 2, 3))
    real, swap, first, left = FileBatches._batches, type(dropping.store).swap, [True], [steps]

    def dies(self, key, body, *, etag):
        left[0] -= key.endswith("manifest.json") or "iceberg" in key
        if not left[0]:
            raise Killed
        return swap(self, key, body, etag=etag)

    def overtaken(self, *of):
        if first.pop() if first else False:
            with monkeypatch.context() as patch:
                patch.setattr(type(dropping.store), "swap", dies)
                with suppress(Killed):
                    Dropping(dropping.store, dropping.folder, dropping.feed).export()
        return real(self, *of)

    monkeypatch.setattr(FileBatches, "_batches", overtaken)
    dropping.export()
    assert len(dropping.rows("id")) == 3
    assert dropping.remembered()["a.csv"]["partitions"] == [f"2025-03-{day:02}" for day in (1, 2, 3)]
    dropping.drop("a.csv", dated(4, value=1), at=LATER)
    dropping.export()
    assert dropping.rows("id") == [(1,)]
