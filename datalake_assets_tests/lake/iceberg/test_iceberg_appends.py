"""What an append to a table of many snapshots costs: no more than one to a table of few; and what that rests on."""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter
from collections.abc import Callable
from inspect import getsource
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from pyiceberg.catalog import MetastoreCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import MetadataLogEntry, Operation, Snapshot, Summary
from pyiceberg.table.update import (
    AddSnapshotUpdate,
    AssertRefSnapshotId,
    RemoveSnapshotsUpdate,
    SetPropertiesUpdate,
    SetSnapshotRefUpdate,
    TableUpdate,
    update_table_metadata,
)

from datalake_assets.feed import Feed
from datalake_assets.lake.iceberg.iceberg_catalogs import load_table
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.tables import ids_of
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of
from datalake_assets_tests.lake.iceberg.iceberg_feeds import ids_seen, seen_by_others

MANY = 600


@pytest.fixture
def feed() -> Feed:
    return stream_feed(format="iceberg")


def write(store, feed: Feed, number: int) -> None:
    table = open_table(store, feed)
    table.write(stream_of(numbered([number])), partitions=table.plan().partitions, run_id="run")


def snapshots_added(metadata: TableMetadata, count: int) -> tuple[TableUpdate, ...]:
    """Snapshots that change nothing, one upon the other."""
    head = metadata.current_snapshot()
    assert head is not None
    said = head.summary.additional_properties if head.summary is not None else {}
    updates: list[TableUpdate] = []
    for number in range(1, count + 1):
        parent = head.snapshot_id if number == 1 else 10**6 + number - 1
        updates.append(
            AddSnapshotUpdate(
                snapshot=Snapshot(
                    snapshot_id=10**6 + number,
                    parent_snapshot_id=parent,
                    sequence_number=metadata.last_sequence_number + number,
                    manifest_list=head.manifest_list,
                    summary=Summary(Operation.APPEND, **said),
                    schema_id=metadata.current_schema_id,
                )
            )
        )
    newest = 10**6 + count
    refs = {"max_ref_age_ms": None, "max_snapshot_age_ms": None, "min_snapshots_to_keep": None}
    return *updates, SetSnapshotRefUpdate(ref_name="main", type="branch", snapshot_id=newest, **refs)


def calls_of(work: Callable[[], None]) -> Counter[str]:
    """How often functions are called, by name, which is the same on a machine that is busy."""
    found: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def test_an_append_looks_at_none_of_the_snapshots_before(local_store, feed):
    """Each is written, copied and read once; before, each append wrote and copied all, and looked for each in all."""
    for number in range(3):
        write(local_store, feed, number)
    table = load_table(local_store, feed)
    assert table is not None
    condition = AssertRefSnapshotId(ref="main", snapshot_id=table.metadata.current_snapshot_id)
    table.catalog.commit_table(table, (condition,), snapshots_added(table.metadata, MANY))
    write(local_store, feed, 3)
    calls = calls_of(lambda: write(local_store, feed, 4))
    looked_at = {
        name: calls[name] for name in ("ser_model", "__deepcopy__", "snapshot_by_id", "_commits_of", "_key_of")
    }
    assert max(looked_at.values()) < 20, looked_at
    assert ids_of(open_table(local_store, feed)) == ids_seen(local_store) == list(range(5))


def test_metadata_is_written_as_upstream_writes_it(local_store, feed):
    for number in range(4):
        write(local_store, feed, number)
    with seen_by_others(local_store) as seen:
        written = json.loads(Path(seen.metadata_location.removeprefix("file://")).read_bytes())
        assert written == json.loads(seen.metadata.model_dump_json(exclude_none=True))
    assert len(written["snapshots"]) == 4


def test_upstream_writes_metadata_in_one_place():
    """`RememberingCatalog` stands in there, and hands over what gives the text."""
    assert "self._write_metadata(" in getsource(SqlCatalog.commit_table)
    assert "ToOutputFile.table_metadata(metadata, io.new_output(metadata_path))" in getsource(
        MetastoreCatalog._write_metadata
    )
    used = [line.strip() for line in getsource(ToOutputFile.table_metadata).splitlines() if "metadata." in line]
    assert used == ["json_bytes = metadata.model_dump_json(exclude_none=exclude_none).encode(UTF8)"]


def test_upstream_makes_new_lists_of_snapshots_and_logs(local_store, feed):
    """Copies of metadata share the lists: none may be changed in place."""
    for number in range(3):
        write(local_store, feed, number)
    table = load_table(local_store, feed)
    assert table is not None
    base = table.metadata
    lists = {name: getattr(base, name) for name in ("snapshots", "snapshot_log", "metadata_log")}
    before = {name: list(each) for name, each in lists.items()}
    oldest = base.snapshots[0].snapshot_id
    changes = (
        *snapshots_added(base, 2),
        SetPropertiesUpdate(updates={"a": "b"}),
        RemoveSnapshotsUpdate(snapshot_ids=[oldest]),
    )
    after = update_table_metadata(base, changes, metadata_location="file:///x/00001-x.metadata.json")
    assert {name: list(getattr(base, name)) for name in lists} == before
    assert all(getattr(base, name) is each for name, each in lists.items())
    assert [each.snapshot_id for each in after.snapshots][-1] == 10**6 + 2
    assert oldest not in [each.snapshot_id for each in after.snapshots]
    assert after.metadata_log[-1].metadata_file == "file:///x/00001-x.metadata.json"
    assert all(copy.deepcopy(each) is each for each in lists.values())


def test_upstream_lines_of_metadata_logs_never_change():
    assert MetadataLogEntry.model_config["frozen"]
