"""What a feed that is an Iceberg table promises beyond the contract: other engines, other writers, and refusals."""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime, time
from decimal import Decimal
from inspect import getsource, signature

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import GreaterThanOrEqual
from pyiceberg.serializers import FromInputFile
from pyiceberg.table.snapshots import Snapshot, SnapshotLogEntry

from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.core.partitions import PartitionBy, TimeWindow, keys_in, window_of
from datalake_assets.errors import CommitConflict, ConfigError, InvalidFeed, SchemaChanged
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import AssetSource, FeedKind
from datalake_assets.lake.iceberg import iceberg_commits, iceberg_folder
from datalake_assets.lake.iceberg.commit_records import CommitRecord
from datalake_assets.lake.iceberg.iceberg_schemas import key_of_value, value_of_key
from datalake_assets.lake.iceberg.iceberg_views import POSITION
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.s3_access import CatalogAccess
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.tables import FORCE, ids_of
from datalake_assets_tests.lake.feeds import SCHEMA, numbered, rows, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.iceberg.iceberg_feeds import ids_seen, seen_by_others
from datalake_assets_tests.lake.iceberg.iceberg_tables import check_synced_before_commit, recorded_syncs


@pytest.fixture
def feed() -> Feed:
    return stream_feed(format="iceberg")


def write(store, feed: Feed, *batches: SourceBatch, **options: object):
    table = open_table(store, feed)
    return table.write(stream_of(*batches), partitions=table.plan().partitions, run_id="run", **options)


def test_other_engines_read_whole_writes_by_day(local_store, feed):
    write(local_store, feed, numbered(range(30)))
    write(local_store, feed, numbered(range(30, 60)))
    with seen_by_others(local_store) as table:
        assert str(table.spec().fields[0].transform) == "day"
        assert [snapshot.summary.operation.value for snapshot in table.snapshots()] == ["append", "append"]
        files = [task.file for task in table.scan(GreaterThanOrEqual("id", 48)).plan_files()]
        assert sum(file.record_count for file in files) == 12  # by the statistics, only the last day's file
        first = table.snapshots()[0].snapshot_id
    assert ids_seen(local_store) == list(range(60))
    assert ids_seen(local_store, snapshot_id=first) == list(range(30))


@pytest.mark.parametrize("compacted", [False, True])
def test_each_file_that_a_commit_names_was_synced_with_its_folder_before(local_store, feed, compacted):
    with recorded_syncs() as synced:
        for first in range(0, 30, 10):
            write(local_store, feed, numbered(range(first, first + 10)))
        if compacted:
            table = open_table(local_store, feed)
            for key in sorted(table.partitions()):
                table.compact(key, FORCE)
    with seen_by_others(local_store) as table:
        check_synced_before_commit(table, synced)


def test_position_stands_in_the_snapshot_and_in_the_table(local_store, feed):
    write(local_store, feed, numbered(range(30)), numbered(range(5), partition=7))
    with seen_by_others(local_store) as table:
        said = json.loads(table.current_snapshot().summary.additional_properties[POSITION])
        assert said == json.loads(table.properties[POSITION])
    assert said == {"kind": "offsets", "next": {"0": [0, 30], "7": [0, 5]}}


def test_writers_of_the_same_rows_land_them_once(local_store, feed, monkeypatch):
    """Another writer commits while the files of this one are published: its commit is planned anew, and is in vain."""
    publish, other = iceberg_commits._publish, []

    def slow(store, staged) -> None:
        publish(store, staged)
        if not other:
            other.append(True)
            write(local_store, feed, numbered(range(20)))

    monkeypatch.setattr(iceberg_commits, "_publish", slow)
    report = write(local_store, feed, numbered(range(10, 30)))
    assert report.rows_added == 10
    assert ids_seen(local_store) == list(range(30))
    assert list(open_table(local_store, feed).verify(deep=True)) == []


def test_writers_of_other_rows_both_land_theirs(local_store, feed, monkeypatch):
    publish, other = iceberg_commits._publish, []

    def slow(store, staged) -> None:
        publish(store, staged)
        if not other:
            other.append(True)
            write(local_store, feed, numbered(range(20), partition=1))

    monkeypatch.setattr(iceberg_commits, "_publish", slow)
    write(local_store, feed, numbered(range(30, 40)))
    assert ids_seen(local_store) == sorted([*range(20), *range(30, 40)])


def test_an_append_of_another_engine_between_is_kept(local_store, feed, monkeypatch):
    write(local_store, feed, numbered(range(5)))
    publish, other = iceberg_commits._publish, []

    def slow(store, staged) -> None:
        publish(store, staged)
        if not other:
            other.append(True)
            with seen_by_others(local_store) as table:
                table.append(pa.Table.from_batches([rows([900])]).cast(_in_microseconds()))

    monkeypatch.setattr(iceberg_commits, "_publish", slow)
    write(local_store, feed, numbered(range(5, 10)))
    assert ids_of(open_table(local_store, feed)) == ids_seen(local_store) == [*range(10), 900]


def _in_microseconds() -> pa.Schema:
    return pa.schema([*list(SCHEMA)[:2], ("rowtime", pa.timestamp("us", "UTC"))])


def test_repair_beside_a_live_writer_loses_nothing_of_it(local_store, feed, monkeypatch):
    write(local_store, feed, numbered(range(5)))
    publish, repairs = iceberg_commits._publish, []

    def slow(store, staged) -> None:
        publish(store, staged)
        if not repairs:
            repairs.append(open_table(local_store, feed).repair())

    monkeypatch.setattr(iceberg_commits, "_publish", slow)
    report = write(local_store, feed, numbered(range(5, 10)))
    assert (repairs[0].undone, report.rows_added) == (1, 5)
    assert ids_seen(local_store) == list(range(10))
    assert list(open_table(local_store, feed).verify(deep=True)) == []


def test_repair_keeps_a_commit_whose_writer_died_after_it(local_store, feed, monkeypatch):
    monkeypatch.setattr(CommitRecord, "end", lambda *_, **__: None)
    write(local_store, feed, numbered(range(5)))
    monkeypatch.undo()
    table = open_table(local_store, feed)
    assert [each.what for each in table.verify()] == ["pending"]
    assert (table.repair().finished, table.repair().finished) == (1, 0)
    assert ids_seen(local_store) == list(range(5))


def test_a_commit_that_stays_refused_leaves_no_files(local_store, feed, monkeypatch):
    write(local_store, feed, numbered(range(5)))

    def refused(*_: object, **__: object) -> None:
        raise CommitConflict("table", "another writer came first")

    monkeypatch.setattr(iceberg_commits, "commit_change", refused)
    with pytest.raises(CommitConflict):
        write(local_store, feed, numbered(range(5, 10)))
    monkeypatch.undo()
    assert list(open_table(local_store, feed).verify(deep=True)) == []
    assert ids_seen(local_store) == list(range(5))


def test_versions_are_snapshots_that_tags_keep(local_store):
    feed = table_feed(retention={"versions": 2}, format="iceberg")
    for count in (3, 4, 5):
        table = open_table(local_store, feed)
        table.write(table_of(count), partitions=table.plan().partitions, run_id="run")
    with seen_by_others(local_store, "tables.t") as seen:
        assert sorted(seen.refs()) == ["main", "v2", "v3"]
        assert seen.scan(snapshot_id=seen.refs()["v2"].snapshot_id).to_arrow().num_rows == 4
        assert seen.scan().to_arrow().num_rows == 5
    assert len(list(local_store.list("tables/t/data"))) == 2


TYPES = {
    "int8": (pa.int8(), 1),
    "uint32": (pa.uint32(), 4_000_000_000),
    "uint64": (pa.uint64(), 18_000_000_000_000_000_000),
    "half": (pa.float16(), 0.5),
    "seconds": (pa.timestamp("s"), datetime(2025, 1, 1)),  # noqa: DTZ001
    "clock": (pa.time32("ms"), time(1, 2, 3)),
    "day": (pa.date64(), date(2025, 1, 1)),
    "large": (pa.large_string(), "é"),
    "word": (pa.dictionary(pa.int8(), pa.string()), "w"),
    "amount": (pa.decimal128(10, 2), Decimal("1.25")),
    "many": (pa.list_(pa.int16()), [1, None]),
    "nested": (pa.struct([("a", pa.uint8()), ("b", pa.list_(pa.timestamp("ms", "UTC")))]), {"a": 7, "b": []}),
    "pairs": (pa.map_(pa.string(), pa.int16()), [("k", 1)]),
}


def test_every_value_comes_back_by_a_wider_type(local_store):
    feed = table_feed(format="iceberg")
    schema = pa.schema([(name, kind) for name, (kind, _) in TYPES.items()])
    expected = [{name: value for name, (_, value) in TYPES.items()}, dict.fromkeys(TYPES)]
    given = pa.RecordBatch.from_pylist(expected, schema)
    table = open_table(local_store, feed)
    table.write(InMemoryBatches((SourceBatch(given),)), partitions=table.plan().partitions, run_id="run")
    assert table.scan(columns=list(TYPES)).read_all().to_pylist() == expected
    with seen_by_others(local_store, "tables.t") as seen:
        assert seen.scan().to_arrow().to_pylist() == expected


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.duration("s"), pa.null()])
def test_a_type_that_iceberg_lacks_is_refused_by_name(local_store, kind):
    table = open_table(local_store, table_feed(format="iceberg"))
    batches = InMemoryBatches((SourceBatch(pa.record_batch([pa.nulls(1, kind)], names=["odd"])),))
    with pytest.raises(SchemaChanged, match=r"column 'odd' is .*Iceberg has no type for it"):
        table.write(batches, partitions=table.plan().partitions, run_id="run")


def test_a_value_beyond_a_type_goes_to_quarantine_and_the_others_land(local_store, feed):
    far = pa.array([0, 2**62], pa.int64()).cast(pa.timestamp("ms"))
    batch = rows([1, 2]).append_column("far", far)
    report = write(local_store, feed, SourceBatch(batch, pa.array([0, 0], pa.int32()), pa.array([1, 2], pa.int64())))
    assert (report.rows_added, report.rows_quarantined, ids_seen(local_store)) == (1, 1, [1])


def test_a_new_column_is_added_where_the_feed_evolves(local_store):
    feed = stream_feed(format="iceberg", schema_policy="evolve")
    write(local_store, feed, numbered(range(3)))
    wider = rows([3]).append_column("extra", pa.array([{"x": 1}], pa.struct([("x", pa.int8())])))
    write(local_store, feed, SourceBatch(wider, pa.array([0], pa.int32()), pa.array([3], pa.int64())))
    write(local_store, feed, numbered([4]))
    expected = [(0, None), (1, None), (2, None), (3, {"x": 1}), (4, None)]
    ours = open_table(local_store, feed).scan(columns=["id", "extra"]).read_all().sort_by("id")
    assert [tuple(row.values()) for row in ours.to_pylist()] == expected
    with seen_by_others(local_store) as table:
        theirs = table.scan(selected_fields=("id", "extra")).to_arrow().sort_by("id")
    assert [tuple(row.values()) for row in theirs.to_pylist()] == expected


def test_a_new_column_stops_a_frozen_feed_and_changes_no_table(local_store, feed):
    write(local_store, feed, numbered(range(3)))
    wider = rows([3]).append_column("extra", pa.array([1]))
    with pytest.raises(SchemaChanged, match="added extra int64"):
        write(local_store, feed, SourceBatch(wider, pa.array([0], pa.int32()), pa.array([3], pa.int64())))
    with seen_by_others(local_store) as table:
        assert table.schema().column_names == ["id", "note", "rowtime"]


@pytest.mark.parametrize("by", list(PartitionBy))
def test_keys_and_icebergs_partitions_are_one_to_one(by):
    window = TimeWindow(datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 3, 5, tzinfo=UTC))
    keys = [*keys_in(window, by), key_of_value(value_of_key(window_of_2025(by), by), by)]
    assert [key_of_value(value_of_key(key, by), by) for key in keys] == keys
    assert [value_of_key(key, by) for key in keys[:-1]] == list(range(len(keys) - 1))


def window_of_2025(by: PartitionBy) -> str:
    key = datetime(2025, 12, 31, 23, tzinfo=UTC).strftime(by.key_format)
    assert window_of(key, by).start.year == 2025
    return key


@pytest.mark.parametrize("by", ["hour", "month"])
def test_streams_are_partitioned_as_they_say(local_store, by):
    feed = stream_feed(format="iceberg", partition_by=by)
    write(local_store, feed, numbered(range(0, 1500, 100)))
    table = open_table(local_store, feed)
    assert table.partitions() == tuple(sorted(table.partitions()))
    assert sorted(each for key in table.partitions() for each in ids_of(table, partitions=[key])) == ids_seen(
        local_store
    )
    with seen_by_others(local_store) as seen:
        assert str(seen.spec().fields[0].transform) == by


@pytest.mark.s3
def test_a_lake_in_s3_needs_a_catalog_that_is_a_server(s3_store, feed):
    table = open_table(s3_store, feed)
    with pytest.raises(ConfigError, match="DATALAKE_ICEBERG_CATALOG to a REST catalog's URL, or to 'glue'"):
        table.partitions()


def test_two_lakes_do_not_share_a_table(local_store, tmp_path, feed):
    write(local_store, feed, numbered(range(3)))
    other = tmp_path / "other"
    other.mkdir()
    access = CatalogAccess(uri=f"sqlite:///{local_store.uri}/control/iceberg_catalog.db")
    with pytest.raises(ConfigError, match=r"streams\.s is of the lake .*DATALAKE_ICEBERG_NAMESPACE"):
        open_table(open_store(str(other), catalog=access), feed).partitions()
    apart = open_store(str(other), catalog=CatalogAccess(uri=access.uri, namespace="mine"))
    write(apart, feed, numbered(range(4)))
    assert (ids_of(open_table(apart, feed)), ids_seen(local_store)) == (list(range(4)), list(range(3)))


def test_a_package_that_is_not_installed_is_one_line(local_store, feed, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("pyiceberg", "datalake_assets.lake.iceberg"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyiceberg", None)
    with pytest.raises(ConfigError, match=r"pip install 'datalake-assets\[iceberg\]'"):
        open_table(local_store, feed)


def test_only_exported_feeds_are_iceberg_tables():
    with pytest.raises(ValueError, match="only feeds that are exported can be kept as Iceberg tables"):
        Feed(name="o", kind=FeedKind.STREAM, source=AssetSource(asset="orders"), format="iceberg")


def test_what_a_feed_is_kept_as_is_for_life(local_store, feed):
    registry = FeedRegistry(local_store)
    added = registry.add(feed)
    with pytest.raises(InvalidFeed, match="feeds convert"):
        registry.update(stream_feed(), expected_revision=added.revision)
    parted = stream_feed(format={"type": "iceberg", "parts": [{"column": "id"}]})
    with pytest.raises(InvalidFeed, match="time_column and parts of an Iceberg table are for life"):
        registry.update(parted, expected_revision=added.revision)


def test_metadata_is_read_once_and_shared_by_its_copies(local_store, feed, monkeypatch):
    """What an append costs does not grow with the snapshots; `python -m benchmarks iceberg_append` prints it."""
    for number in range(3):
        write(local_store, feed, numbered([number]))
    read = []
    parse = FromInputFile.table_metadata
    monkeypatch.setattr(FromInputFile, "table_metadata", lambda file: read.append(file) or parse(file))
    write(local_store, feed, numbered([3]))
    assert read == []
    metadata = open_table(local_store, feed)._folder.view().table.metadata
    copied = metadata.model_copy(deep=True)
    assert [id(each) for each in copied.snapshots] == [id(each) for each in metadata.snapshots]
    assert len({each.snapshot_id for each in metadata.snapshots}) == 4


def test_a_commit_of_another_process_is_seen_all_the_same(local_store, feed):
    write(local_store, feed, numbered([1]))
    with seen_by_others(local_store) as table:
        table.append(pa.Table.from_batches([rows([900])]).cast(_in_microseconds()))
    assert ids_of(open_table(local_store, feed)) == [1, 900]


def test_upstream_a_sql_catalog_makes_its_tables_in_one_place():
    """`RememberingCatalog` stands in there; if it moves, metadata is read and copied at every append again."""
    assert list(signature(SqlCatalog._convert_orm_to_iceberg).parameters) == ["self", "orm_table"]
    assert "_convert_orm_to_iceberg(" in getsource(SqlCatalog.load_table)


def test_upstream_snapshots_never_change():
    """Copies of metadata share them."""
    assert Snapshot.model_config["frozen"]
    assert SnapshotLogEntry.model_config["frozen"]


def test_removals_of_two_versions_at_once_are_both_remembered(local_store):
    feed = table_feed(retention={"versions": 4}, format="iceberg")
    for count in (3, 4, 5, 6):
        table = open_table(local_store, feed)
        table.write(table_of(count), partitions=table.plan().partitions, run_id="run")
    less = open_table(local_store, table_feed(retention={"versions": 1}, format="iceberg"))
    less.write(table_of(7), partitions=less.plan().partitions, run_id="run")
    assert less.removed(["v1", "v2", "v3", "v4", "v5"]) == ("v1", "v2", "v3", "v4")


def test_files_of_a_removed_version_go_though_their_process_died(local_store, monkeypatch):
    feed = table_feed(retention={"versions": 1}, format="iceberg")

    def write_version(count: int) -> None:
        table = open_table(local_store, feed)
        table.write(table_of(count), partitions=table.plan().partitions, run_id="run")

    write_version(3)
    monkeypatch.setattr(iceberg_folder, "delete_quietly", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_version(4)
    monkeypatch.undo()
    table = open_table(local_store, feed)
    table.repair()
    assert (table.partitions(), ids_of(table), list(table.verify(deep=True))) == (("v2",), [0, 1, 2, 3], [])
