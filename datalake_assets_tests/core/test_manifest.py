from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import HISTORY, Commit, Decision, Garbage, Manifest, Pending, Publish, Seen, decide
from datalake_assets.core.position import OffsetsPosition, SnapshotPosition, WindowPosition
from datalake_assets.errors import CommitConflict, CorruptLake

NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)
A, B, C = (DataFile(f"{name}.parquet", rows, rows * 10) for name, rows in (("a", 1), ("b", 2), ("c", 4)))

# what can be told apart after a trip through JSON: any text, any aware time
times = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
counts = st.integers(0, 2**63 - 1)
files = st.builds(
    DataFile,
    st.text(),
    counts,
    counts,
    st.none() | times,
    st.none() | times,
    checksum=st.text(),
    etag=st.text(),
    written_at=st.none() | times,
    left_out=st.text(),
)
positions = st.one_of(
    st.builds(OffsetsPosition, st.dictionaries(st.integers(0, 2**31), st.tuples(counts, counts))),
    st.builds(WindowPosition, times, times, times, counts, st.text()),
    st.builds(SnapshotPosition, times, counts),
)
pendings = st.builds(
    Pending,
    commit_id=st.text(),
    kind=st.text(),
    run_id=st.text(),
    publish=st.lists(st.builds(Publish, files, st.text(), st.lists(st.text(), max_size=2).map(tuple)), max_size=2).map(
        tuple
    ),
    remove=st.lists(st.text(), max_size=2).map(tuple),
    position=st.none() | positions,
    schema=st.none() | st.text(),
    deleted=st.booleans(),
)
manifests = st.builds(
    Manifest,
    generation=counts,
    write_id=st.text(),
    files=st.lists(files, max_size=2).map(tuple),
    position=st.none() | positions,
    schema=st.none() | st.text(),
    pending=st.none() | pendings,
    garbage=st.lists(st.builds(Garbage, st.text(), st.text(min_size=1), st.integers(0, 9), st.text()), max_size=2).map(
        tuple
    ),
    history=st.lists(
        st.builds(Commit, st.text(), st.text(), times, st.text(), counts, counts, counts, *[st.none() | counts] * 4),
        max_size=2,
    ).map(tuple),
    deleted=st.booleans(),
)


def pending_of(*published: DataFile, **rest: object) -> Pending:
    publish = tuple(Publish(file, f"token of {file.name}") for file in published)
    return Pending(**{"commit_id": "c1", "kind": "append", "run_id": "", "publish": publish, **rest})


def committed(base: Manifest, *published: DataFile, **rest: object) -> Manifest:
    return base.prepared(pending_of(*published, **rest)).committed(published, at=NOON)


@given(manifests)
def test_manifest_survives_its_json(manifest):
    assert Manifest.from_bytes(manifest.to_bytes(), where="here") == manifest


def test_manifest_is_written_as_the_design_says():
    document = json.loads(Manifest(write_id="w").prepared(pending_of(A)).to_bytes())
    assert list(document) == [
        "format",
        "generation",
        "write_id",
        "schema",
        "position",
        "deleted",
        "files",
        "pending",
        "garbage",
        "history",
    ]
    assert document["pending"]["publish"][0]["token"] == "token of a.parquet"


def test_manifest_names_the_time_of_writing_only_of_files_whose_name_does_not_tell():
    manifest = Manifest(files=(A, msgspec.structs.replace(B, written_at=NOON)))
    ours, adopted = json.loads(manifest.to_bytes())["files"]
    assert "written_at" not in ours
    assert adopted["written_at"] == "2025-01-15T12:00:00+00:00"


def test_history_says_what_the_partition_amounted_to_after_each_commit():
    one = Manifest().prepared(pending_of(A)).committed([A], at=NOON, small_file_bytes=15)
    two = one.prepared(pending_of(B, commit_id="c2")).committed([B], at=NOON, small_file_bytes=15)
    three = two.reconciled((B, C), commit_id="c3", at=NOON, small_file_bytes=15)
    said = [(each.files, each.small_files, each.size_bytes, each.total_rows) for each in three.history]
    assert said == [(1, 1, 10, 1), (2, 1, 30, 3), (2, 0, 60, 6)]


def test_history_of_an_older_release_is_read_and_what_it_did_not_know_stays_out_of_the_json():
    body = committed(Manifest(), A).to_bytes()
    (entry,) = json.loads(body)["history"]
    assert list(entry) == ["commit_id", "kind", "at", "run_id", "rows", "files_added", "files_removed"]
    (commit,) = Manifest.from_bytes(body, where="here").history
    assert (commit.files, commit.small_files, commit.size_bytes, commit.total_rows) == (None, None, None, None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not a manifest"),
        (b"[]", "not a manifest"),
        (b"null", "not a manifest"),
        (b'{"format":1}', "not a manifest"),
        (b'{"format":2}', "manifest of format 2; use a newer release"),
        (Manifest().to_bytes().replace(b'"files":[]', b'"files":[{}]'), "not a manifest"),
        (Manifest().to_bytes().replace(b'"position":null', b'"position":{"kind":"tea"}'), "unknown kind 'tea'"),
    ],
)
def test_from_bytes_names_the_manifest_that_it_cannot_read(body, reason):
    with pytest.raises(CorruptLake, match=reason):
        Manifest.from_bytes(body, where="control/x/manifest.json")


def test_prepared_changes_nothing_that_readers_see():
    base = committed(Manifest(), A)
    prepared = base.prepared(pending_of(B, commit_id="c2"))
    assert replace(prepared, pending=None) == base


def test_committed_replaces_files_and_remembers_the_commit():
    base = committed(Manifest(), A, B, position=OffsetsPosition({0: (0, 3)}), schema="s")
    after = committed(base, C, commit_id="c2", kind="compact", run_id="r", remove=("a.parquet",))
    assert after == Manifest(
        generation=2,
        files=(B, C),
        position=OffsetsPosition({0: (0, 3)}),
        schema="s",
        garbage=(Garbage("a.parquet"),),
        history=(*base.history, Commit("c2", "compact", NOON, "r", rows=4, files_added=1, files_removed=1)),
    )
    assert after.rows == 6
    assert after.committed_already("c1")
    assert after.committed_already("c2")
    assert not after.committed_already("c3")


def test_committed_keeps_what_the_store_said_of_the_files():
    published = msgspec.structs.replace(A, etag="e")
    assert Manifest().prepared(pending_of(A)).committed([published], at=NOON).files == (published,)


def test_committed_remembers_the_last_commits_only():
    manifest = Manifest()
    for number in range(HISTORY + 3):
        manifest = committed(manifest, DataFile(f"{number}", 1, 1), commit_id=f"c{number}")
    assert [commit.commit_id for commit in manifest.history] == [f"c{number}" for number in range(3, HISTORY + 3)]
    assert manifest.generation == HISTORY + 3


def test_a_deleted_partition_keeps_its_position_and_comes_back_with_the_next_rows():
    position = SnapshotPosition(NOON, 1)
    base = committed(Manifest(), A, position=position)
    gone = committed(base, commit_id="c2", kind="delete", remove=("a.parquet",), deleted=True)
    assert (gone.files, gone.deleted, gone.position, gone.rows) == ((), True, position, 0)
    assert not committed(gone.swept(), B, commit_id="c3").deleted


def test_rolled_back_lists_all_its_files_as_garbage():
    base = committed(Manifest(), A)
    undone = base.prepared(pending_of(B, C, commit_id="c2", remove=("a.parquet",))).rolled_back()
    assert undone == replace(base, garbage=(Garbage("b.parquet"), Garbage("c.parquet")))
    assert undone.swept() == base


def test_garbage_of_others_names_what_the_file_is_known_by_and_ours_is_plain_text():
    base = Manifest(files=(A, msgspec.structs.replace(B, etag="e")), generation=1)
    pending = replace(pending_of(C, remove=("b.parquet",)), checksums={"b.parquet": "xxh3-128:0b"})
    ours = base.prepared(pending).committed([C], at=NOON)
    prepared = Manifest.from_bytes(base.prepared(pending).to_bytes(), where="here")
    guarded = prepared.committed([C], at=NOON, guarded=True)
    assert json.loads(ours.to_bytes())["garbage"] == ["b.parquet"]
    assert json.loads(guarded.to_bytes())["garbage"] == [
        {"name": "b.parquet", "etag": "e", "size_bytes": 20, "checksum": "xxh3-128:0b"}
    ]
    assert Manifest.from_bytes(guarded.to_bytes(), where="here").garbage == guarded.garbage


def test_reconciled_takes_over_what_is_there_and_deletes_nothing():
    base = committed(Manifest(), A, B, schema="s")
    rewritten = msgspec.structs.replace(B, rows=7, etag="new")
    after = base.reconciled((rewritten, C), commit_id="c2", at=NOON, run_id="r", schema="t")
    assert after == Manifest(
        generation=2,
        files=(rewritten, C),
        schema="t",
        history=(*base.history, Commit("c2", "reconcile", NOON, "r", rows=11, files_added=2, files_removed=2)),
    )


@pytest.mark.parametrize("base", [Manifest().prepared(pending_of(A)), replace(Manifest(), garbage=(Garbage("x"),))])
def test_reconciled_refuses_an_unfinished_commit(base):
    with pytest.raises(CorruptLake, match="reconciled over an unfinished commit"):
        base.reconciled((), commit_id="c", at=NOON)


@pytest.mark.parametrize(
    ("base", "pending", "error"),
    [
        (Manifest().prepared(pending_of(A)), pending_of(B), CorruptLake),
        (replace(Manifest(), garbage=(Garbage("x"),)), pending_of(B), CorruptLake),
        (Manifest(), pending_of(B, remove=("a.parquet",)), CorruptLake),
        # committed so long ago that the history forgot it: its files must not become garbage
        (replace(Manifest(), files=(A, B)), pending_of(A, C, remove=("a.parquet", "b.parquet")), CommitConflict),
    ],
)
def test_prepared_refuses_a_base_that_it_cannot_be_made_on(base, pending, error):
    with pytest.raises(error):
        base.prepared(pending)


@pytest.mark.parametrize("transition", [Manifest.rolled_back, lambda manifest: manifest.committed([], at=NOON)])
def test_a_commit_ends_only_if_it_was_prepared(transition):
    with pytest.raises(CorruptLake, match="nothing is pending"):
        transition(Manifest())


def test_stamped_changes_only_the_write_id():
    assert replace(committed(Manifest(), A).stamped("w7"), write_id="") == committed(Manifest(), A)


PUBLISHED = Seen(staged=False, published=True)
LINKED = Seen(staged=True, published=True)
LOST = Seen(staged=False, published=False)
NOT_YET = Seen(staged=True, published=False)
REFUSED = Seen(staged=True, published=False, refused=True)
REFUSED_TWICE = Seen(staged=True, published=True, refused=True)


@pytest.mark.parametrize(
    ("seen", "decision"),
    [
        ([], Decision.FORWARD),
        ([PUBLISHED], Decision.FORWARD),
        ([PUBLISHED, LINKED], Decision.FORWARD),
        ([REFUSED_TWICE], Decision.FORWARD),
        ([PUBLISHED, NOT_YET], Decision.WAIT),
        ([NOT_YET, LOST], Decision.BACK),
        ([PUBLISHED, LOST], Decision.BACK),
        ([PUBLISHED, REFUSED], Decision.BACK),
        ([NOT_YET, REFUSED], Decision.BACK),
    ],
)
def test_decide(seen, decision):
    assert decide(seen) is decision
    assert decide(reversed(seen)) is decision


def test_history_keeps_the_time_of_a_commit_to_the_microsecond():
    at = NOON + timedelta(microseconds=1)
    manifest = Manifest().prepared(pending_of(A)).committed([A], at=at)
    assert Manifest.from_bytes(manifest.to_bytes(), where="").history[0].at == at
