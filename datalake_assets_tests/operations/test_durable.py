"""What a write names is on the disk before the catalog names it: the order of the calls, since no kill can show it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pyiceberg.io import load_file_io
from sqlalchemy import event
from sqlalchemy.engine import Engine

from datalake_assets.lake.iceberg.durable_files import DurableFileIO


@pytest.fixture
def synced(monkeypatch):
    """Paths in the order in which they were synced, with ``commit`` for each transaction of a catalog."""
    done = []
    sync = os.fsync

    def recorded(handle):
        sync(handle)
        done.append(str(Path(f"/proc/self/fd/{handle}").readlink()))

    def committed(_):
        done.append("commit")

    monkeypatch.setattr(os, "fsync", recorded)
    event.listen(Engine, "commit", committed)
    yield done
    event.remove(Engine, "commit", committed)


@pytest.mark.parametrize("operation", ["WRITE", "COMPACT"])
def test_each_file_that_a_commit_names_was_synced_with_its_folder_before(ask, orders, stored, synced, operation):
    for number in range(3):
        ask("WRITE", **orders, records=[{"id": number}])
    if operation == "COMPACT":
        ask("COMPACT", **orders)

    table = stored()
    snapshot = table.current_snapshot()
    manifests = snapshot.manifests(table.io)
    named = [snapshot.manifest_list, *(each.manifest_path for each in manifests), table.metadata_location]
    named += [task.file.file_path for task in table.scan().plan_files()]
    before = synced[: len(synced) - synced[::-1].index("commit")]
    for path in (urlsplit(each).path for each in named):
        assert path in before
        assert str(Path(path).parent) in before[before.index(path) :]


def test_file_that_is_there_is_not_overwritten_unasked(tmp_path):
    file = load_file_io({"py-io-impl": f"{DurableFileIO.__module__}.DurableFileIO"}).new_output(
        str(tmp_path / "a" / "b")
    )
    with file.create() as stream:
        stream.write(b"first")

    with pytest.raises(FileExistsError):
        file.create()

    with file.create(overwrite=True) as stream:
        stream.write(b"second")
    assert (tmp_path / "a" / "b").read_bytes() == b"second"
