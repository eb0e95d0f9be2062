"""Records of files that were put aside are landed once the feed was mended; a file that changes takes them with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from datalake_assets.lake import item_replay
from datalake_assets.lake.item_replay import OTHER_CONTENT, OTHER_READING, REFUSED
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.files.files_source import FileBatches
from datalake_assets.sources.systems import connect
from datalake_assets_tests.lake.mortal_store import Killed, MortalStore
from datalake_assets_tests.sources.files.dropping import DROPPED, Dropping, files_feed

LATER = DROPPED + timedelta(days=1)
CSV = 'id;note;at\n1;"a\nb";2025-03-01 06:00:00\n-;"c;d";2025-03-02 06:00:00\n3;é;2025-03-03 06:00:00\n'


@pytest.fixture(params=["parquet", "iceberg"])
def dropping(request: pytest.FixtureRequest, local_store, tmp_path: Path) -> Dropping:
    folder = tmp_path / "drop"
    folder.mkdir()
    source = {"columns": {"id": "int64"}, "delimiter": ";"}
    feed = files_feed(str(folder), kept_as=request.param, source=source, time_column="at")
    return Dropping(local_store, folder, feed)


def mended(dropping: Dropping, **changes: object) -> Dropping:
    source = dropping.feed.source.model_copy(update={"null_values": ("-",)})
    feed = dropping.feed.model_copy(update={"source": source, **changes})
    return Dropping(dropping.store, dropping.folder, feed)


def replay(dropping: Dropping, store=None) -> tuple[int, dict[str, int]]:
    table = open_table(store or dropping.store, dropping.feed)
    with connect("files", load_settings()) as source:

        def decode(rows, schema) -> Iterator:
            return source.decode_items(dropping.feed, rows, schema)  # type: ignore[attr-defined]

        plan = table.plan()
        done = table.replay(source.read(dropping.feed, plan.request), None, decode_items=decode)
    return done.rows_added, dict(done.stayed)


def test_a_record_is_landed_as_its_file_had_it_once_its_value_is_declared_null(dropping):
    dropping.drop("a.csv", CSV)
    dropping.export()
    (dropping.folder / "a.csv").unlink()  # it need not be there any more
    assert replay(dropping) == (0, {"column 'id': a value is no int64": 1})

    after = mended(dropping)
    assert replay(after) == (1, {})
    assert after.rows("id", "note", "source_file", "source_modified") == [
        (1, "a\nb", "a.csv", DROPPED),
        (3, "é", "a.csv", DROPPED),
        (None, "c;d", "a.csv", DROPPED),
    ]
    assert after.quarantined() == []
    assert replay(after) == (0, {})


def test_a_file_that_was_touched_meanwhile_was_not_read_again(dropping):
    dropping.drop("a.csv", CSV)
    dropping.export()
    dropping.drop("a.csv", CSV, at=LATER)
    dropping.export()
    assert replay(mended(dropping)) == (1, {})


def test_equal_rows_before_the_start_are_as_many_as_they_were(dropping):
    late = dropping.feed.model_copy(update={"start": (DROPPED + timedelta(days=30)).date()})
    early = Dropping(dropping.store, dropping.folder, late)
    early.drop("a.csv", "id;at\n" + 3 * "1;2025-03-01 06:00:00\n" + "2;2025-05-01 06:00:00\n")
    early.export()
    assert replay(dropping) == (3, {})
    assert dropping.rows("id") == [(1,), (1,), (1,), (2,)]


def test_a_changed_file_takes_along_what_was_landed_later(dropping):
    dropping.drop("a.csv", CSV)
    dropping.export()
    after = mended(dropping)
    assert replay(after) == (1, {})
    assert after.remembered()["a.csv"]["partitions"] == ["2025-03-01", "2025-03-02", "2025-03-03"]
    after.drop("a.csv", "id;note;at\n9;x;2025-03-09 06:00:00\n", at=LATER)
    after.export()
    assert after.rows("id", "note") == [(9, "x")]
    assert replay(after) == (0, {})


def test_records_of_a_former_content_stay_aside(dropping):
    dropping.drop("a.csv", CSV)
    dropping.export()
    after = mended(dropping)
    after.drop("a.csv", "id;note;at\n9;x;2025-03-09 06:00:00\n", at=LATER)
    after.export()
    assert replay(after) == (0, {OTHER_CONTENT: 1})
    assert after.rows("id") == [(9,)]


def test_a_file_that_is_replaced_meanwhile_keeps_none_of_its_former_rows(dropping, monkeypatch):
    """Between any two steps of a replay another process lands another content of the file."""
    dropping.drop("a.csv", CSV)
    dropping.export()
    after = mended(dropping)
    export = item_replay._ItemsReplay
    real, overtaken = export._entered, []

    def entered(self, fence, staged):
        if len(overtaken) == 0:
            overtaken.append("before")
            after.drop("a.csv", "id;note;at\n9;x;2025-03-02 07:00:00\n", at=LATER)
            after.export()
        return real(self, fence, staged)

    monkeypatch.setattr(export, "_entered", entered)
    assert replay(after) == (0, {OTHER_CONTENT: 1})
    assert after.rows("id") == [(9,)]

    dropping.drop("b.csv", CSV)
    dropping.export()
    monkeypatch.setattr(export, "_entered", real)
    commit = export.commit_all

    def commit_all(self, wanted):
        if len(overtaken) == 1:
            overtaken.append("after")
            after.drop("b.csv", "id;note;at\n8;y;2025-03-02 07:00:00\n", at=LATER)
            after.export()
        return commit(self, wanted)

    monkeypatch.setattr(export, "commit_all", commit_all)
    assert replay(after) == (0, {OTHER_CONTENT: 2})
    assert after.rows("id") == [(8,), (9,)]


def test_records_of_a_reading_that_was_not_the_last_one_stay_aside(dropping):
    """An export died after one day of a file; the feed was mended before the next one landed the rest."""
    dropping.drop("a.csv", CSV + "-;e;2025-03-01 06:00:00\n")
    for step in itertools.count(1):
        mortal = MortalStore(dropping.store)
        mortal.left = step
        try:
            Dropping(mortal, dropping.folder, dropping.feed).export()  # type: ignore[arg-type]
        except Killed:
            if dropping.rows("id") if open_table(dropping.store, dropping.feed).partitions() else []:
                break
        else:
            pytest.skip("all days are committed at once")
    after = mended(dropping)
    after.export()
    rows, stayed = replay(after)
    assert rows == 0
    assert set(stayed) <= {OTHER_READING}
    notes = [note for (note,) in after.rows("note")]
    assert len(notes) == len(set(notes))
    # a row is there, or waits; of one that waits nobody may say any more that it is not there
    assert len(notes) + stayed[OTHER_READING] >= 4


def test_a_refused_file_is_read_by_the_next_export_and_then_forgotten_in_quarantine(dropping):
    dropping.drop("a.csv", "id;at\n1;2025-03-01 06:00:00\n")
    dropping.export()
    dropping.drop("b.csv", "id;more;at\n1;x;2025-03-01 06:00:00\n")
    dropping.export()
    assert replay(dropping) == (0, {REFUSED: 1})
    after = mended(dropping, schema_policy="evolve")
    after.export()
    assert replay(after) == (0, {})
    assert after.quarantined() == []


def test_json_records_and_those_that_are_too_long(dropping, tmp_path):
    dropping = Dropping(
        dropping.store, dropping.folder, files_feed(str(dropping.folder), source={"columns": {"id": "int64"}})
    )
    long = f'{{"id":"{"x" * (70 << 10)}"}}'
    dropping.drop("a.jsonl", f'{{"id":1}}\n{{"id":2,"new":"x"}}\n[3]\n{long}\n')
    first = dropping.feed.model_copy(update={"schema_policy": "freeze"})
    Dropping(dropping.store, dropping.folder, first).export()
    kept = dropping.quarantined()
    added, stayed = replay(Dropping(dropping.store, dropping.folder, dropping.feed))
    assert added == 0
    assert sum(stayed.values()) == len(kept) >= 2
    assert dropping.rows("id")[0] == (1,)


def test_a_replay_that_dies_at_any_change_is_finished_by_the_next(dropping):
    better, dead = mended(dropping), 0
    for step in itertools.count(1):
        dropping.drop(f"{step}.csv", CSV)
        dropping.export()
        mortal = MortalStore(dropping.store)
        mortal.left, mortal.after = step, step % 2 == 0
        try:
            replay(better, mortal)
        except Killed:
            dead += 1
            replay(better)
        else:
            break
        assert better.quarantined() == []
    assert len(better.rows("id")) == 3 * step
    assert {row for row in better.rows("id", "source_file") if row[0] is None} == {
        (None, f"{number}.csv") for number in range(1, step + 1)
    }
    assert dead > 5


def test_a_file_that_is_refused_while_a_replay_lands_its_rows_keeps_them_until_it_changes(dropping, monkeypatch):
    dropping.drop("a.csv", CSV)
    dropping.export()
    after, replays, real = mended(dropping), [], FileBatches._pending

    def pending(self, listed=None):
        found = real(self, listed)
        if found and not replays:
            replays.append(None)
            replays[:] = [replay(after)]
        return found

    after.drop("a.csv", "", at=LATER)
    monkeypatch.setattr(FileBatches, "_pending", pending)
    dropping.export()
    monkeypatch.setattr(FileBatches, "_pending", real)
    assert (replays, len(dropping.rows("id"))) == ([(1, {})], 3)
    after.drop("a.csv", CSV, at=LATER + timedelta(days=1))
    dropping.export()
    assert replay(after)[0] == 1
    assert len(after.rows("id")) == 3, "each row once"


def test_an_export_that_knew_a_file_before_a_replay_loses_none_of_its_partitions(dropping, monkeypatch):
    """A replay lands a row in a further partition while an export, which asked before, lands the file anew."""
    dropping.drop("a.csv", CSV)
    dropping.export()
    after = mended(dropping)
    for name, content, left in (("touched", CSV, 3), ("changed", "id;note;at\n9;x;2025-03-09 06:00:00\n", 1)):
        real, replays = FileBatches._pending, []

        def pending(self, listed=None, *, real=real, replays=replays):
            found = real(self, listed)
            if found and not replays:
                replays.append(None)
                replays[:] = [replay(after)]
            return found

        after.drop("a.csv", content, at=LATER + timedelta(days=2 if name == "changed" else 0))
        monkeypatch.setattr(FileBatches, "_pending", pending)
        after.export()
        monkeypatch.setattr(FileBatches, "_pending", real)
        assert len(after.rows("note")) == left, name
        if name == "touched":
            assert replays == [(1, {})]
            text = "id;note;at\n-;y;2025-03-04 06:00:00\n8;y;2025-03-05 06:00:00\n"
            after.drop("a.csv", text, at=LATER + timedelta(days=1))
            dropping.export()
            assert dropping.rows("id") == [(8,)], "the replayed row went with its file"
