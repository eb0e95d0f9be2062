"""Manifests have the bytes that they always had: a lake outlives the releases that write to it."""

from __future__ import annotations

import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Commit, Garbage, Holdings, Manifest, PastCommit, Pending, Publish
from datalake_assets.errors import CorruptLake

ARCHIVE = Path(__file__).parents[1] / "lake" / "data" / "lake_at_4ebcf7b.tar.xz"

# written by 4ebcf7b: a commit under way, garbage with and without an ETag, commits with and without amounts, files with
# everything and with nothing, a name that is neither ASCII nor Unicode
UNDER_WAY = (
    b'{"format":1,"generation":7,"write_id":"w7","schema":"ARROW","position":{"kind":"offsets","next":{"0"'
    b':[0,5],"10":[1,4611686018427387904]}},"deleted":false,"files":[{"name":"data_1.parquet","rows":3,"si'
    b'ze_bytes":300,"min_time":"2025-01-15T12:00:00+00:00","max_time":"2025-01-15T12:30:00.250000+00:00","'
    b'checksum":"xxh3-128:aa","etag":"e1"},{"name":"d\\u00e9\\udc80/\\"b\\".parquet","rows":1,"size_bytes":10,'
    b'"min_time":null,"max_time":null,"checksum":"","etag":"","written_at":"2025-01-15T12:30:00.250000+00:'
    b'00","left_out":"column \'id\' is int64"}],"pending":{"commit_id":"c8","kind":"compact","run_id":"run",'
    b'"publish":[{"file":{"name":"compacted_1.parquet","rows":4,"size_bytes":310,"min_time":"2025-01-15T12'
    b':00:00+00:00","max_time":"2025-01-15T12:30:00.250000+00:00","checksum":"xxh3-128:bb","etag":""},"tok'
    b'en":"upload","parts":["p1","p2"]}],"remove":["data_1.parquet"],"position":null,"schema":"S2","delete'
    b'd":false},"garbage":["old.parquet",{"name":"theirs.parquet","etag":"e0"}],"history":[{"commit_id":"c'
    b'6","kind":"append","at":"2025-01-15T12:00:00+00:00","run_id":"","rows":3,"files_added":1,"files_remo'
    b'ved":0},{"commit_id":"c7","kind":"reconcile","at":"2025-01-15T12:30:00.250000+00:00","run_id":"r","r'
    b'ows":1,"files_added":1,"files_removed":0,"files":2,"small_files":1,"size_bytes":310,"total_rows":4}]'
    b"}"
)
# likewise: a partition that retention removed, with what follows it under way
DELETED = (
    b'{"format":1,"generation":2,"write_id":"w","schema":null,"position":{"kind":"window","start":"2025-01'
    b'-15T12:00:00+00:00","end":"2025-01-15T12:30:00.250000+00:00","as_of":"2025-01-15T12:00:00+00:00","ro'
    b'ws":7,"fingerprint":"00ff"},"deleted":true,"files":[],"pending":{"commit_id":"d","kind":"replace","r'
    b'un_id":"","publish":[],"remove":[],"position":{"kind":"snapshot","as_of":"2025-01-15T12:00:00+00:00"'
    b',"rows":0},"schema":null,"deleted":true},"garbage":[],"history":[{"commit_id":"c","kind":"delete","a'
    b't":"2025-01-15T12:00:00+00:00","run_id":"","rows":0,"files_added":0,"files_removed":3,"files":0,"sma'
    b'll_files":0,"size_bytes":0,"total_rows":0}]}'
)


@pytest.fixture(scope="module")
def old_manifests() -> dict[str, bytes]:
    with tarfile.open(ARCHIVE) as archive:
        found = [each for each in archive.getmembers() if each.name.endswith("/manifest.json")]
        return {each.name: archive.extractfile(each).read() for each in found}


@pytest.mark.parametrize("body", [UNDER_WAY, DELETED])
def test_a_manifest_in_any_state_has_the_bytes_of_before(body):
    manifest = Manifest.from_bytes(body, where="here")
    assert manifest.to_bytes() == body
    assert list(json.loads(manifest.to_bytes())) == list(json.loads(body))


def test_manifests_of_an_old_lake_have_the_bytes_of_before(old_manifests):
    assert len(old_manifests) == 24
    for name, body in old_manifests.items():
        assert Manifest.from_bytes(body, where=name).to_bytes() == body


def test_what_a_manifest_says_is_read():
    manifest = Manifest.from_bytes(UNDER_WAY, where="here")
    assert manifest.files[1] == DataFile(
        'd\u00e9\udc80/"b".parquet',
        rows=1,
        size_bytes=10,
        written_at=manifest.history[1].at,
        left_out="column 'id' is int64",
    )
    assert manifest.garbage == (Garbage("old.parquet"), Garbage("theirs.parquet", "e0"))
    assert manifest.pending is not None
    assert manifest.pending.publish[0].parts == ("p1", "p2")
    assert [each.total_rows for each in manifest.history] == [None, 4]


def test_holdings_are_those_of_the_manifest(old_manifests):
    for name, body in {**old_manifests, "under way": UNDER_WAY, "deleted": DELETED}.items():
        manifest, holdings = Manifest.from_bytes(body, where=name), Holdings.from_bytes(body, where=name)
        assert (holdings.generation, holdings.files) == (manifest.generation, manifest.files)
        assert [figures(each) for each in holdings.history] == [figures(each) for each in manifest.history]


def figures(commit: Commit | PastCommit) -> list[object]:
    return [getattr(commit, name) for name in PastCommit.__struct_fields__]


@pytest.mark.parametrize("kind", [Manifest, Holdings])
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"rows":3,"size_bytes"', b'"rows":3,"tier":1,"size_bytes"', "unknown field `tier`"),
        (b'"rows":3,"size_bytes"', b'"rows":"3","size_bytes"', "Expected `int`, got `str`"),
        (b'"rows":3,"size_bytes"', b'"size_bytes"', "missing required field `rows`"),
        (b'"generation":7,', b"", "missing required field `generation`"),
        (b'{"format":1', b'{"format":"1"', "manifest of format 1"),
    ],
)
def test_what_a_release_does_not_know_it_refuses(kind, old, new, reason):
    assert old in UNDER_WAY
    with pytest.raises(CorruptLake, match=reason):
        kind.from_bytes(UNDER_WAY.replace(old, new), where="here")


def test_line_of_history_that_says_more_is_refused_but_by_reports():
    """A report needs few of its fields, and skips the others."""
    later = UNDER_WAY.replace(b'"rows":3,"files_added"', b'"rows":3,"by":"x","files_added"')
    assert Holdings.from_bytes(later, where="here") == Holdings.from_bytes(UNDER_WAY, where="here")
    with pytest.raises(CorruptLake, match="unknown field `by`"):
        Manifest.from_bytes(later, where="here")


def test_what_stands_beside_what_a_release_knows_is_skipped():
    body = UNDER_WAY.replace(b'{"format":1', b'{"later":[1],"format":1')
    assert Manifest.from_bytes(body, where="here").to_bytes() == UNDER_WAY


TEXTS = st.text(st.characters(codec="ascii", exclude_categories=()), max_size=8) | st.sampled_from(
    ["aZ", 'Z","max_time":', '"checksum":"Z', '","files":[],"pending":', '\\"at":"2025Z', "é", "\udc80"]
)
TIMES = st.datetimes(timezones=st.just(UTC)) | st.none()
FILES = st.builds(
    DataFile,
    name=TEXTS,
    rows=st.integers(0, 1 << 62),
    size_bytes=st.integers(0, 1 << 62),
    min_time=TIMES,
    max_time=TIMES,
    checksum=TEXTS,
    etag=TEXTS,
    written_at=TIMES,
    left_out=TEXTS,
    damaged=TEXTS,
)
GARBAGE = st.builds(
    Garbage, name=TEXTS, etag=TEXTS.filter(bool), size_bytes=st.none() | st.integers(0, 9), checksum=TEXTS
)
COMMITS = st.builds(Commit, TEXTS, TEXTS, st.datetimes(timezones=st.just(UTC)), TEXTS, *[st.integers(0, 9)] * 3)
MANIFESTS = st.builds(
    Manifest,
    files=st.lists(FILES, max_size=4).map(tuple),
    write_id=TEXTS,
    schema=TEXTS | st.none(),
    garbage=st.lists(GARBAGE, max_size=2).map(tuple),
    history=st.lists(COMMITS, max_size=2).map(tuple),
    pending=st.none()
    | st.builds(
        Pending,
        commit_id=TEXTS,
        kind=TEXTS,
        run_id=TEXTS,
        publish=st.lists(st.builds(Publish, FILES, TEXTS), max_size=2).map(tuple),
        remove=st.lists(TEXTS, max_size=2).map(tuple),
        checksums=st.dictionaries(TEXTS, TEXTS, max_size=2),
    ),
)


@given(MANIFESTS)
@settings(max_examples=60, deadline=None)
def test_whatever_is_in_it_a_manifest_has_the_bytes_that_json_gives(manifest):
    body = manifest.to_bytes()
    told = json.loads(body)

    assert json.dumps(told, separators=(",", ":")).encode() == body
    published = [each.file for each in manifest.pending.publish] if manifest.pending else []
    of_published = [each["file"] for each in told["pending"]["publish"]] if told["pending"] else []
    for file, each in zip((*manifest.files, *published), (*told["files"], *of_published), strict=True):
        times = file.min_time, file.max_time, file.written_at
        assert [each.get(name) for name in ("min_time", "max_time", "written_at")] == [_iso(time) for time in times]
        assert (each["name"], each["checksum"], each["etag"]) == (file.name, file.checksum, file.etag)
    assert [each["at"] for each in told["history"]] == [_iso(each.at) for each in manifest.history]
    assert Manifest.from_bytes(body, where="here") == manifest


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time is not None else None
