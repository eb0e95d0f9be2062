"""A lake that is opened under another address is the same lake: links, relative paths, other names of its server."""

from __future__ import annotations

import os

import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import DatalakeError
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder, ids

FORCE = CompactionRequest(force=True)


@pytest.fixture
def addresses(tmp_path, monkeypatch) -> dict[str, str]:
    (tmp_path / "la ke").mkdir()
    (tmp_path / "link").symlink_to("la ke")
    monkeypatch.chdir(tmp_path)
    return {
        "path": str(tmp_path / "la ke"),
        "link": str(tmp_path / "link"),
        "relative": "la ke",
        "dotted": f"{tmp_path}/la ke/../la ke",
        "file": f"file://{tmp_path}/la%20ke",
        "file, localhost": f"file://localhost{tmp_path}/link",
        "trailing slash": f"{tmp_path}/la ke/",
    }


@pytest.mark.parametrize("how", ["path", "link", "relative", "dotted", "file", "file, localhost", "trailing slash"])
def test_local_lake_under_another_address_is_the_same(addresses, tmp_path, how):
    (tmp_path / "raw/clicks").mkdir(parents=True)
    (tmp_path / "raw link").symlink_to("raw")
    folder = AdoptedFolder(open_store(str(tmp_path / "raw")), "clicks")
    for number in range(4):
        folder.write(f"{number}.parquet", [number])
    one, other = open_store(addresses["path"]), open_store(addresses[how])
    feed = adopt(one, folder.uri, "clicks").feed

    for uri in (folder.uri, f"{tmp_path}/raw link/clicks", "raw/../raw/clicks", f"file://{folder.uri}"):
        again = adopt(other, uri, "clicks")
        assert (again.is_new, again.feed.source.where) == (False, feed.source.where)
        with pytest.raises(DatalakeError, match="overlaps"):
            adopt(other, uri, "second")
    with pytest.raises(DatalakeError, match="overlaps the lake itself"):
        adopt(other, f"{addresses['path']}/control", "mine")
    assert open_table(other, feed).compact(".", FORCE).files_after == 1
    folder.write("later.parquet", [4])
    assert open_table(one, feed).compact(".", FORCE).files_after == 1
    assert ids(open_table(other, feed)) == [0, 1, 2, 3, 4]
    assert list(open_table(one, feed).verify(deep=True)) == []
    FeedRegistry(other).archive("clicks")
    assert not (tmp_path / "raw/.datalake-owner-clicks.json").exists()
    assert sorted(os.listdir(tmp_path / "raw")) == ["clicks"]  # noqa: PTH208  names alone


@pytest.mark.s3
def test_s3_lake_under_another_name_of_its_server_is_the_same(s3_store, s3_server):
    folder = AdoptedFolder(open_store(f"{s3_store.uri}-raw", s3=s3_store.s3), "clicks")
    for number in range(4):
        folder.write(f"{number}.parquet", [number])
    feed = adopt(s3_store, folder.uri, "clicks").feed
    name = s3_server.endpoint.replace("127.0.0.1", "localhost")
    assert name != s3_server.endpoint
    other = open_store(f"{s3_store.uri}/", s3=S3Access(endpoint=name))

    assert adopt(other, folder.uri.replace("s3://", "s3a://"), "clicks").is_new is False
    assert open_table(other, feed).compact(".", FORCE).files_after == 1
    assert open_table(s3_store, feed).compact(".", FORCE).files_compacted == 0
    assert ids(open_table(s3_store, feed)) == [0, 1, 2, 3]
    assert FeedFolder(other, feed).log(".").load().manifest.generation == 2
