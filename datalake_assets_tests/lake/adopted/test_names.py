"""Names of others: no text at all, of several lines, or longer than the files that lie beside them may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.wording import name_text
from datalake_assets.lake.adopted import listing
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import ids, parquet_bytes, refused

pytestmark = pytest.mark.one_case_on_s3

FORCE = CompactionRequest(force=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (os.fsdecode(b"\xff.parquet"), r"\xff.parquet"),
        ("a\nb", r"a\nb"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\u2028b", r"a\u2028b"),
        ("\ud800", r"\ud800"),
        ("ü 日本.parquet", "ü 日本.parquet"),
    ],
)
def test_name_text(name, text):
    assert name_text(name) == text
    assert name_text(name).encode()


def test_folder_whose_own_path_is_no_text_is_refused_in_one_line(local_store, tmp_path):
    for name in (b"\xffraw", b"two\nlines"):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        folder.mkdir()
        (folder / "a.parquet").write_bytes(parquet_bytes({"id": [1]}))
        inside = folder / "clicks"
        inside.mkdir()
        (inside / "a.parquet").write_bytes(parquet_bytes({"id": [1]}))

        for path in (folder, inside):
            line = refused(lambda path=path: adopt(local_store, str(path), "clicks"))
            assert line == (
                f"{name_text(str(path))} cannot be adopted: its path is not UTF-8, or has control characters or a"
                " backslash; rename it"
            )


# ---- long paths


@pytest.mark.parametrize("length", [200, 230, 260, 500, 900])
def test_partition_of_a_long_path_is_compacted(store, folder, length):
    if "://" in store.uri and length > 500:
        return  # its keys would be longer than S3 takes; see below
    path = "/".join(f"k{number:03}={'v' * 90}" for number in range(-(-length // 96)))[:length].rstrip("/")
    for number in range(3):
        folder.write(f"{path}/{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    assert table.compact(path, FORCE).files_after == 1
    assert ids(table) == [0, 1, 2]
    assert list(table.verify(deep=True)) == []
    assert not list(folder.store.list_staged(""))
    FeedRegistry(store).archive("clicks")
    if "://" not in folder.uri:
        assert os.listdir(folder.store.uri) == ["clicks"]  # noqa: PTH208  names alone


def test_partition_whose_path_leaves_no_room_is_named_and_left_alone(store, folder, monkeypatch):
    monkeypatch.setattr(listing, "KEY_MAX_BYTES", 400)
    monkeypatch.setattr(listing, "PATH_MAX_BYTES", 400)
    long = "/".join(["k=" + "v" * 90] * 4)
    folder.write(f"{long}/0.parquet", [1])
    folder.write("short/0.parquet", [2])

    adoption = adopt(store, folder.uri, "clicks")

    assert [(each.name, each.reason) for each in adoption.found.problems] == [
        (f"{long}/0.parquet", "its path is too long for a manifest, or for a merged file beside it")
    ]
    assert ids(open_table(store, adoption.feed)) == [2]


def test_folder_of_a_long_name_has_a_marker_by_its_digest(local_store, tmp_path):
    folder = tmp_path / ("x" * 250)
    folder.mkdir()
    (folder / "0.parquet").write_bytes(parquet_bytes({"id": [1]}))
    (folder / "1.parquet").write_bytes(parquet_bytes({"id": [2]}))
    table = open_table(local_store, adopt(local_store, str(folder), "clicks").feed)

    assert table.compact(".", FORCE).files_after == 1
    (marker,) = tmp_path.glob(".datalake-owner-*")
    assert len(marker.name) < 60
    FeedRegistry(local_store).archive("clicks")
    assert not marker.exists()
