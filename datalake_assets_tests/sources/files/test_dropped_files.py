"""Dropped files are landed once each, whatever they hold; what is bad is named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import tempfile
import zipfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

import pytest
from click.testing import CliRunner

from datalake_assets.cli.app import app
from datalake_assets.errors import CommitConflict, InvalidFeed
from datalake_assets.lake import item_ledger
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.files import csv_records, file_reading
from datalake_assets.sources.files.dropped_objects import is_drop
from datalake_assets.sources.files.files_declaration import declared_files
from datalake_assets_tests.sources.files.dropping import DROPPED, LATER, Dropping, by_day, dated, files_feed, only_local


def test_files_are_landed_once_and_read_once(dropping):
    dropping.drop("a.csv", "id,name\n1,x\n2,y\n")
    dropping.drop("sub/b.csv", "id,name\n3,z\n")
    assert dropping.export().rows_added == 3
    again = dropping.export()
    assert (again.rows_added, again.rows_read) == (0, 0)
    assert dropping.rows("id", "name", "source_file") == [(1, "x", "a.csv"), (2, "y", "a.csv"), (3, "z", "sub/b.csv")]
    dropping.drop("c.csv", "name,id\nw,4\n")
    assert dropping.export().rows_added == 1
    assert dropping.rows("id") == [(1,), (2,), (3,), (4,)]


@only_local
def test_quotes_may_be_like_other_characters_and_are_no_delimiter(dropping):
    feed = files_feed(str(dropping.folder), source={"quote": ""})
    dropping = Dropping(dropping.store, dropping.folder, feed)
    dropping.drop("a.csv", 'id,name\n1,5" pipe\n2,"x"y\n3,"\n')
    assert dropping.export().rows_added == 3
    assert dropping.rows("id", "name") == [(1, '5" pipe'), (2, '"x"y'), (3, '"')]
    with pytest.raises(InvalidFeed, match="NUL"):
        files_feed(str(dropping.folder), source={"quote": "\0"})
    same = declared_files(files_feed(str(dropping.folder), source={"delimiter": "'", "quote": "'"}))
    assert "is the delimiter" in (same.problem() or "")


@only_local
@pytest.mark.parametrize(("number", "is_double"), [("0.1234567890123456", True), ("9007199254740993.5", False)])
def test_numbers_are_doubles_beside_another_files_only_if_they_keep_their_digits(
    dropping, monkeypatch, number, is_double
):
    monkeypatch.setattr(file_reading, "blocks", partial(csv_records.blocks, size=16))
    texts = ["1.5", "1.25", "1.75", "3.5", number, "2.5"]
    dropping.drop("a.csv", "v\n" + "".join(f"{each}\n" for each in texts))
    dropping.drop("b.csv", "v\n1e300\n")
    dropping.export()
    found = {value for (value,) in dropping.rows("v")}
    assert found == ({*map(float, texts), 1e300} if is_double else {*texts, "1e300"})


@only_local
def test_a_refused_file_is_read_again_once_the_feed_says_how(dropping):
    dropping.drop("a.csv", "id,year\n1,2\n")
    assert dropping.export().rows_quarantined == 1
    assert dropping.export().rows_read == 0
    dropping.feed = files_feed(str(dropping.folder), source={"rename": {"year": "season"}})
    dropping.export()
    assert dropping.rows("id", "season") == [(1, 2)]
    assert dropping.remembered()["a.csv"]["refused"] == ""


@only_local
def test_odd_times_and_links_of_one_file_stop_no_other(dropping):
    dropping.feed = files_feed(str(dropping.folder), source={"min_age_s": 60})
    dropping.drop("good.csv", "id\n1\n")
    (dropping.folder / "loop.csv").symlink_to("loop.csv")
    for name, seconds in (("never.csv", 10**13), ("old.csv", -(10**9)), ("ahead.csv", 4 * 10**9)):
        dropping.drop(name, f"id\n{seconds}\n")
        os.utime(dropping.folder / name, (seconds, seconds))
    report = dropping.export()
    assert (report.rows_added, report.rows_quarantined) == (1, 3)
    assert {name.partition("#")[0]: reason for name, reason in dropping.quarantined()} == {
        "never.csv": "source_modified lies more than 1 day ahead",
        "old.csv": "source_modified lies before the feed's start",
        "ahead.csv": "source_modified lies more than 1 day ahead",
    }


@pytest.mark.parametrize("name", ["a.csv", "x//a.csv", "/a.csv", "x/", "x//", "", "_x//a"])
def test_folders_may_have_no_name_on_s3(name):
    assert is_drop(name) is name.endswith("a.csv")


def packed(text: str, how: str) -> bytes:
    plain = text.encode()
    if how == "gz":
        return gzip.compress(plain)
    if how == "bz2":
        return bz2.compress(plain[:9]) + bz2.compress(plain[9:])  # as pbzip2 and cat make them
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("a.csv", plain)
    return archive.getvalue()


@only_local
def test_bad_files_are_refused_by_name_and_stop_no_other(dropping):
    dropping.drop("good.csv", "id,n\n1,x\n", at=DROPPED - timedelta(days=1))
    bad = {
        "empty.csv": (b"", "it is empty"),
        "cut.csv.gz": (packed("id,n\n" + "1,x\n" * 9999, "gz")[:-9], "it is damaged"),
        "bomb.csv.gz": (gzip.compress(b"0" * (70 << 20)), "larger than 64 MiB"),
        "second.csv.bz2": (packed("id,n\n1,x\n", "bz2") + b"BZx" + packed("2,x\n", "bz2")[3:], "it is damaged"),
        "two.zip": (b"PK\x03\x04garbage", "it is damaged"),
        "other.csv": ("id,other\n1,2\n", "it has column 'other'"),
        "less.csv": ("id\n1\n", "it lacks column 'n'"),
        "own.csv": ("id,n,source_file\n1,x,y\n", "as every row of the feed has one"),
        "alike.csv": ("id,n,N\n1,x,y\n", "both 'n' in the lake"),
        "key.csv": ("id,n,year\n1,x,y\n", "named like a partition key"),
        "array.json": ("[1, 2", "it is no JSON array"),
    }
    for name, (content, _) in bad.items():
        dropping.drop(name, content)
    report = dropping.export()
    assert (report.rows_added, report.rows_quarantined) == (1, len(bad))
    reasons = dict(dropping.quarantined())
    assert reasons.keys() == bad.keys()
    for name, (_, reason) in bad.items():
        assert reason in reasons[name]
        assert reason in dropping.remembered()[name]["refused"]
    assert dropping.export().rows_read == 0


@only_local
def test_bad_rows_wait_in_quarantine_with_their_lines(dropping):
    lines = ["id,n", "1,x", "2", "x,y", '3,"a\nb"', '4,"q"z', "5,y,z", "6,ok"]
    dropping.feed = files_feed(str(dropping.folder), source={"columns": {"id": "int64"}})
    dropping.drop("a.csv", "\n".join(lines) + "\n")
    report = dropping.export()
    assert dropping.rows("id", "n") == [(1, "x"), (3, "a\nb"), (6, "ok")]
    assert report.rows_quarantined == 4
    assert dropping.quarantined() == [
        ("a.csv:3", "it has 1 fields, not 2"),
        ("a.csv:4", "column 'id': a value is no int64"),
        ("a.csv:7", "a field that begins with a quote does not end with one"),
        ("a.csv:8", "it has 3 fields, not 2"),
    ]
    assert dropping.remembered()["a.csv"]["rejected"] == 4


@only_local
@pytest.mark.parametrize("how", ["gz", "bz2", "zip"])
def test_packed_files_are_unpacked(dropping, how):
    dropping.drop(f"a.csv.{how}", packed("id\n1\n", how))
    dropping.export()
    assert dropping.rows("id") == [(1,)]


@only_local
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_texts_are_what_they_were_in_any_encoding(dropping, encoding):
    dropping.drop("a.csv", "id,n\n1,größe\n".encode(encoding))
    dropping.export()
    assert dropping.rows("id", "n") == [(1, "größe")]


@only_local
def test_types_hold_all_files_that_are_there_at_first_and_later_ones_keep_to_them(dropping):
    dropping.drop("a.csv", "v,w\n1,007\n")
    dropping.drop("b.csv", "v,w\n2.50,8\n")
    dropping.export()
    dropping.drop("c.csv", "v,w\n3,9\nfour,9\n0.125,9\n")
    dropping.export()
    assert [(str(v), w) for v, w in dropping.rows("v", "w")] == [("1.00", "007"), ("2.50", "8"), ("3.00", "9")]
    assert [place for place, _ in dropping.quarantined()] == ["c.csv:3", "c.csv:4"]


@only_local
def test_types_hold_json_files_that_lack_keys_or_have_more_of_them(dropping):
    dropping.drop("a.json", '{"a": 1, "b": 2}\n')
    dropping.drop("b.json", '{"a": "x"}\n', at=LATER)
    dropping.drop("c.json", '{"a": 3, "c": 4}\n{"a": 3, "b": 0.5}\n', at=LATER + timedelta(hours=1))
    assert dropping.export().rows_added == 3
    assert dropping.rows("a", "b") == [("1", Decimal("2.0")), ("3", Decimal("0.5")), ("x", None)]
    assert [reason for _, reason in dropping.quarantined()] == ["key 'c' is not in the feed's schema"]


@only_local
def test_records_with_keys_that_cannot_be_columns_keep_no_other_from_being_landed(dropping):
    dropping.drop("a.json", '{"": 1}\n{"a": 1, "year": 2}\n{"a": 1, "source_file": "x"}\n{"a": 2}\n')
    dropping.drop("b.json", '{"": 1}\n')
    assert dropping.export().rows_added == 1
    assert dropping.rows("a") == [(2,)]
    keys = [reason.removesuffix(" is not in the feed's schema") for _, reason in dropping.quarantined()]
    assert sorted(keys) == ["key ''", "key ''", "key 'source_file'", "key 'year'"]


@only_local
def test_records_wait_where_no_file_has_a_column(dropping):
    dropping.drop("a.json", '{"": 1}\n{}\n')
    assert (dropping.export().rows_added, len(dropping.quarantined())) == (0, 2)


@only_local
def test_files_without_what_partitions_rows_do_not_say_what_a_feed_is_like(dropping):
    dropping = by_day(dropping)
    dropping.drop("a.csv", "other\n1\n")
    with pytest.raises(InvalidFeed, match="no file that can be read has a column 'at'"):
        dropping.export()
    dropping.drop("b.csv", dated(1), at=LATER)
    assert dropping.export().rows_added == 1
    assert dict(dropping.quarantined()) == {
        "a.csv": "the file was refused: it has column 'other', which the feed has not"
    }


@only_local
def test_leading_zeros_never_get_lost(dropping):
    dropping.drop("a.csv", "v\n1\n")
    dropping.export()
    dropping.drop("b.csv", "v\n2\n007\n0x10\n+3\n-04\n")
    dropping.export()
    assert dropping.rows("v") == [(1,), (2,)]
    assert len(dropping.quarantined()) == 4


@only_local
def test_evolving_feeds_take_columns_on(dropping):
    dropping.feed = dropping.feed.model_copy(update={"schema_policy": "evolve"})
    dropping.drop("a.csv", "id\n1\n")
    dropping.export()
    dropping.drop("b.csv", "id,more\n2,x\n")
    dropping.drop("c.json", '{"id": 3, "Extra": 1.5}\n')
    dropping.export()
    assert [(i, m, e and str(e)) for i, m, e in dropping.rows("id", "more", "extra")] == [
        (1, None, None),
        (2, "x", None),
        (3, None, "1.5"),
    ]


@only_local
def test_a_table_is_all_of_its_files(dropping):
    dropping.feed = files_feed(str(dropping.folder), kind="table")
    dropping.drop("a.csv", "id\n1\n")
    dropping.export()
    dropping.drop("b.csv", "id\n2\n")
    dropping.export()
    assert dropping.rows("id") == [(1,), (2,)]


@only_local
def test_young_hidden_and_other_files_wait(dropping):
    dropping.feed = files_feed(str(dropping.folder), source={"pattern": "*.csv", "min_age_s": 3600})
    dropping.drop("a.csv", "id\n1\n")
    dropping.drop("b.csv", "id\n2\n", at=datetime.now(UTC))
    dropping.drop("_c.csv", "id\n3\n")
    dropping.drop(".d/e.csv", "id\n4\n")
    dropping.drop("f.txt", "id\n5\n")
    report = dropping.export()
    assert dropping.rows("id") == [(1,)]
    assert report.notes == ("1 files were written a moment ago, and wait for the next export",)


@only_local
def test_many_files_are_committed_some_at_a_time(dropping):
    dropping.feed = files_feed(str(dropping.folder), source={"max_files": 2})
    for number in range(5):
        dropping.drop(f"{number}.csv", f"id\n{number}\n", at=DROPPED - timedelta(hours=number))
    (report,) = [dropping.export()]
    assert (report.rows_added, len(dropping.rows("id"))) == (5, 5)
    assert len({each["number"] for each in dropping.remembered().values()}) == 3


@only_local
def test_the_ledger_stays_in_few_objects(dropping):
    dropping.feed = files_feed(str(dropping.folder), source={"max_files": 1})
    for number in range(12):
        dropping.drop(f"{number}.csv", f"id\n{number}\n")
        dropping.export()
    objects = [each.key for each in dropping.store.list("control") if each.key.endswith(".parquet")]
    assert len(objects) <= 4
    assert len(dropping.remembered()) == 12


def test_conflicts_are_what_a_begin_of_other_content_raises(dropping):
    """The fence of two writers, by itself."""
    dropping.drop("a.csv", "id\n1\n")
    dropping.export()
    ledger = item_ledger.ItemLedger(open_table(dropping.store, dropping.feed)._folder)
    (known,) = ledger.known(["a.csv"])
    assert known is not None
    with pytest.raises(CommitConflict, match="another writer lands another content"):
        ledger.begin({item_ledger.replace(known, item="a.csv#other"): None})


@only_local
def test_what_became_of_files_is_told_by_a_command(dropping):
    FeedRegistry(dropping.store).add(dropping.feed)
    dropping.drop("a.csv", "id,n\n1,\nx\n")
    dropping.drop("bad.csv", b"")
    dropping.export()
    lake = ["--lake", dropping.store.uri]
    done = CliRunner().invoke(app, [*lake, "files", "s", "--json"])
    found = {each["name"]: each for each in json.loads(done.stdout)["files"]}
    assert {name: (each["state"], each["rows"], each["rejected"], each["reason"]) for name, each in found.items()} == {
        "a.csv": ("landed", 2, 1, None),
        "bad.csv": ("refused", 0, 1, "it is empty"),
    }
    table = CliRunner().invoke(app, [*lake, "files", "s", "--refused"]).stdout
    assert "bad.csv" in table
    assert "a.csv" not in table


@only_local
@pytest.mark.parametrize("content", [packed(dated(3), "gz"), dated(3).encode("utf-16")], ids=["packed", "recoded"])
def test_file_that_there_is_no_room_for_waits_and_is_not_refused(dropping, monkeypatch, content):
    """It was remembered as damaged, and read again only once it changed."""
    dropping.drop("a.csv", content)
    dropping.drop("b.csv", dated(4, value=1))
    with monkeypatch.context() as full:
        full.setattr("datalake_assets.sources.files.contents.IN_MEMORY_BYTES", 1)
        full.setattr(tempfile, "tempdir", str(dropping.folder / "nowhere"))
        assert "1 files could not be read and wait: file a.csv" in " ".join(dropping.export().notes)
    assert dropping.rows("id") == [(1,)]

    dropping.export()

    assert dropping.rows("id") == [(0,), (1,)]
    assert dropping.quarantined() == []
