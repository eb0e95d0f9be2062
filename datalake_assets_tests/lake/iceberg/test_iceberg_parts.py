"""Iceberg feeds whose files are kept apart by more than time: one partition a file, figures by day, merged by part."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.expressions import EqualTo, IsNull
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import StringType

from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.errors import ConfigError, CorruptLake, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.lake.iceberg import iceberg_commits
from datalake_assets.lake.iceberg.iceberg_folder import IcebergFolder
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.tables import FORCE, ids_of
from datalake_assets_tests.lake.feeds import rows, stream_feed, stream_of, table_feed
from datalake_assets_tests.lake.iceberg.iceberg_feeds import catalog_of, seen_by_others

TEXTS = ["eu", None, "a/b=c", "Zürich 東京", "", "__HIVE_DEFAULT_PARTITION__", "null", "eu"]


def parted(*parts: Mapping[str, Any], **more: Any) -> Feed:
    return stream_feed(format={"type": "iceberg", "parts": list(parts)}, **more)


def by(column: str, buckets: int | None = None) -> dict[str, Any]:
    return {"column": column} if buckets is None else {"column": column, "transform": "bucket", "buckets": buckets}


def batch(ids: Sequence[int], columns: Mapping[str, pa.Array]) -> SourceBatch:
    plain = rows(ids)
    named = dict(zip(plain.schema.names, plain.columns, strict=True)) | dict(columns)
    numbers = pa.array(list(ids), pa.int64())
    return SourceBatch(pa.RecordBatch.from_pydict(named), pa.array([0] * len(ids), pa.int32()), numbers)


def regions(ids: Sequence[int]) -> SourceBatch:
    return batch(ids, {"region": pa.array([TEXTS[each % len(TEXTS)] for each in ids], pa.string())})


def write(store, feed: Feed, *batches: SourceBatch):
    table = open_table(store, feed)
    return table.write(stream_of(*batches), partitions=table.plan().partitions, run_id="run")


def files_of(table, columns: Sequence[str]) -> list[tuple[tuple[Any, ...], set[tuple[Any, ...]]]]:
    """The partition of each file of an Iceberg table by its manifest, and the rows that it has by its own bytes."""
    found = []
    for task in table.scan().plan_files():
        file = task.file
        values = tuple(file.partition[place] for place in range(len(file.partition)))
        read = pq.read_table(file.file_path.removeprefix("file://"), columns=list(columns), partitioning=None)
        found.append((values, {tuple(row.values()) for row in read.to_pylist()}))
    return found


def test_each_file_has_the_rows_of_one_value_whatever_that_is(local_store):
    feed = parted(by("region"))
    report = write(local_store, feed, regions(range(30)))
    assert [(each.key, each.rows) for each in report.partitions if each.rows] == [("2025-01-01", 24), ("2025-01-02", 6)]
    with seen_by_others(local_store) as table:
        assert [(field.name, str(field.transform)) for field in table.spec().fields] == [
            ("rowtime_day", "day"),
            ("region", "identity"),
        ]
        found = files_of(table, ["region"])
        assert all({(value,)} == values for (_, value), values in found)
        assert Counter(value for (_, value), _ in found) == Counter([*dict.fromkeys(TEXTS), *dict.fromkeys(TEXTS[:6])])
        expected = [each for each in range(30) if TEXTS[each % 8] == "a/b=c"]
        scan = table.scan(EqualTo("region", "a/b=c"))
        assert sorted(scan.to_arrow()["id"].to_pylist()) == expected
        assert len(list(scan.plan_files())) == 2
        assert len(list(table.scan(IsNull("region")).plan_files())) == 2
    assert ids_of(open_table(local_store, feed)) == list(range(30))
    assert list(open_table(local_store, feed).verify(deep=True)) == []


def test_rows_are_hashed_as_iceberg_hashes_them(local_store):
    feed = parted(by("region", 4))
    write(local_store, feed, regions(range(30)))
    hashed = BucketTransform(4).transform(StringType())
    with seen_by_others(local_store) as table:
        assert [(field.name, str(field.transform)) for field in table.spec().fields][1] == (
            "region_bucket",
            "bucket[4]",
        )
        found = files_of(table, ["region"])
        assert len(found) > 2
        assert all({hashed(value) for (value,) in values} == {bucket} for (_, bucket), values in found)
        assert sorted(table.scan(EqualTo("region", "eu")).to_arrow()["id"].to_pylist()) == [0, 7, 8, 15, 16, 23, 24]


COLUMNS = {
    "flag": pa.array([True, False, None, True]),
    "small": pa.array([-5, 7, None, -5], pa.int8()),
    "big": pa.array([-(2**63), 2**63 - 1, None, 0], pa.int64()),
    "day_of": pa.array([date(1969, 12, 31), date(9999, 12, 31), None, date(2025, 1, 1)]),
    "at": pa.array([datetime(1960, 1, 1, 0, 0, 0, 1, tzinfo=UTC), None, datetime(2025, 1, 1, tzinfo=UTC), None]),
    "price": pa.array([Decimal("-1.50"), Decimal("99999999.99"), None, Decimal("0.00")], pa.decimal128(12, 2)),
    "raw": pa.array([b"", b"\x00\xff", None, "é".encode()]),
}


@pytest.mark.parametrize(
    ("names", "buckets"),
    [
        (("flag", "small", "big", "day_of"), None),
        (("at", "price", "raw"), None),
        (("small", "big", "day_of"), 3),  # booleans are not hashed
        (("at", "price", "raw"), 3),
    ],
)
def test_values_of_every_type_part_files_and_are_found_again(local_store, names, buckets):
    feed = parted(*(by(name, buckets) for name in names))
    columns = {name: COLUMNS[name] for name in names}
    write(local_store, feed, batch(range(4), columns), batch(range(4, 8), columns))
    write(local_store, feed, batch(range(8, 12), columns))
    with seen_by_others(local_store) as table:
        found = files_of(table, names)
        places = {values for values, _ in found}
        if buckets is None:
            assert all(len(rows) == 1 for _, rows in found)
            assert len(places) == len(set(zip(*(columns[name].to_pylist() for name in names), strict=True)))
        for name in names:
            values = columns[name].to_pylist()
            for value in {each for each in values if each is not None}:
                same = [number for number, each in enumerate(values * 3) if each == value]
                assert sorted(table.scan(EqualTo(name, value)).to_arrow()["id"].to_pylist()) == same
    ours = open_table(local_store, feed)
    report = ours.compact("2025-01-01", FORCE)
    assert (report.files_before, report.files_after) == (len(found), len(places))
    assert (report.failed, report.blocked, ids_of(ours)) == ((), (), list(range(12)))
    with seen_by_others(local_store) as table:
        assert {values for values, _ in files_of(table, names)} == places


def test_days_beyond_pythons_clock_part_files_as_others_do(local_store):
    """One such value must not stop a feed."""
    days = pa.array([3_000_000, -800_000, None], pa.int32()).view(pa.date32())
    feed = parted(by("day_of"))
    write(local_store, feed, batch(range(3), {"day_of": days}))
    table = open_table(local_store, feed)
    assert table.scan(columns=["id", "day_of"]).read_all().sort_by("id")["day_of"].combine_chunks().equals(days)
    table.delete_rows("2025-01-01", "id = 0")
    assert (ids_of(table), list(table.verify(deep=True))) == ([1, 2], [])


def test_a_column_may_have_the_name_that_partitions_by_time_would_have(local_store):
    feed = parted(by("rowtime_day"))
    write(local_store, feed, batch(range(3), {"rowtime_day": pa.array(["a", "b", "a"])}))
    with seen_by_others(local_store) as table:
        assert [field.name for field in table.spec().fields] == ["rowtime_day_", "rowtime_day"]
        assert sorted(table.scan(EqualTo("rowtime_day", "a")).to_arrow()["id"].to_pylist()) == [0, 2]
    write(local_store, feed, batch([3], {"rowtime_day": pa.array(["a"])}))
    assert ids_of(open_table(local_store, feed)) == list(range(4))


def test_files_are_merged_by_part_and_figures_are_by_day(local_store):
    feed = parted(by("region", 2), by("note"), small_file_bytes=1000)
    for number in range(5):
        texts = pa.array([f"n{each % 2}" for each in range(6)])
        numbers = range(number * 6, number * 6 + 6)
        write(local_store, feed, batch(numbers, {"region": pa.array(TEXTS[:6]), "note": texts}))
    table = open_table(local_store, feed)
    before = table.report("2025-01-01")
    with seen_by_others(local_store) as seen:
        of_first_day = [values for values, _ in files_of(seen, ["id"]) if values[0] == 20089]
        parts = len(set(of_first_day))
        assert before.files == len(of_first_day)
    plan = table.compaction_plan("2025-01-01", FORCE)
    assert all(len({file.part for file in group.files}) == 1 for group in plan.groups)
    report = table.compact("2025-01-01", FORCE)
    assert (report.files_after, report.partition.rows) == (parts, before.rows)
    assert ids_of(table) == list(range(30))
    with seen_by_others(local_store) as seen:
        found = [(values, rows) for values, rows in files_of(seen, ["note"]) if values[0] == 20089]
        assert len({values for values, _ in found}) == len(found) == parts
        assert all(rows == {(note,)} for (_, _, note), rows in found)
        assert [each.summary.operation.value for each in seen.snapshots()][-1] == "replace"
    assert not table.compaction_plan("2025-01-01", FORCE).groups


def test_a_pulled_partition_is_replaced_with_all_of_its_parts(local_store):
    feed = stream_feed("pull", format={"type": "iceberg", "parts": [by("region")]})
    table = open_table(local_store, feed)
    for ids in (range(10), range(8, 20)):
        pulled = InMemoryBatches((SourceBatch(regions(ids).rows),), "rowtime")
        table.write(pulled, partitions=["2025-01-01"], run_id="run", allow_shrink=True)
        assert ids_of(open_table(local_store, feed)) == list(ids)
    assert table.report("2025-01-01").rows == 12


def test_versions_of_a_table_have_parts_too_also_one_without_rows(local_store):
    feed = table_feed(format={"type": "iceberg", "parts": [by("region", 3)]})
    for count in (20, 0, 7):
        table = open_table(local_store, feed)
        given = InMemoryBatches((SourceBatch(regions(range(count)).rows),))
        table.write(given, partitions=table.plan().partitions, run_id="run", allow_shrink=True)
        assert ids_of(open_table(local_store, feed)) == list(range(count))
    assert open_table(local_store, feed).partitions() == ("v1", "v2", "v3")
    assert list(open_table(local_store, feed).verify(deep=True)) == []


def test_many_values_take_few_open_files_and_lose_no_row(local_store, monkeypatch):
    """More values than buffers and open files; each row is there once, each file of one value."""
    from datalake_assets.parquet import rolling  # noqa: PLC0415  its bounds are changed

    small = dataclasses.replace(rolling.Bounds(), buffers=20, open_files=4)
    most = []
    monkeypatch.setattr(rolling, "Bounds", lambda **_: small)
    opened = rolling.RollingWriter._file

    def watched(writer, place):
        file = opened(writer, place)
        most.append((len(writer._files), len(writer._buffers)))
        return file

    monkeypatch.setattr(rolling.RollingWriter, "_file", watched)
    feed = parted(by("many"))
    values = [each * 7919 % 30 for each in range(48)]
    report = write(local_store, feed, batch(range(48), {"many": pa.array(values)}))
    assert max(files for files, _ in most) <= 4
    assert max(buffers for _, buffers in most) <= 21
    assert report.rows_added == 48
    assert ids_of(open_table(local_store, feed)) == list(range(48))
    with seen_by_others(local_store) as table:
        assert all({(value,)} == rows for (_, value), rows in files_of(table, ["many"]))


@pytest.mark.parametrize(
    ("part", "line"),
    [
        (by("nothing"), "format.parts: the feed has no column 'nothing'; it has id, note, rowtime, share, list"),
        (by("share"), "column 'share' is double: format.parts takes by identity "),
        (by("share", 4), "column 'share' is double: format.parts takes by bucket "),
        (by("list"), "format.parts takes by identity"),
    ],
    ids=str,
)
def test_columns_that_cannot_part_files_are_refused_before_a_table_is_made(local_store, part, line):
    """Floats, since a value that is not a number equals nothing, not even itself."""
    columns = {"share": pa.array([0.5]), "list": pa.array([[1]])}
    with pytest.raises(ConfigError, match=line):
        write(local_store, parted(part), batch([0], columns))
    with catalog_of(local_store) as catalog:
        assert not catalog.table_exists("streams.s")


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ({"type": "parquet", "parts": [by("a")]}, "parts: only Iceberg tables have them"),
        ({"type": "iceberg", "parts": [by("a"), by("a")]}, "parts: one of them is there twice"),
        ({"type": "iceberg", "parts": [{"column": "a", "transform": "bucket"}]}, "give buckets with the transform"),
        ({"type": "iceberg", "parts": [{"column": "a", "buckets": 4}]}, "give buckets with the transform"),
        ({"type": "iceberg", "parts": [by(name) for name in "abcde"]}, "at most 4 items"),
    ],
    ids=["parquet", "twice", "no buckets", "buckets of identity", "too many"],
)
def test_parts_that_cannot_be_are_refused_with_the_feed(form, line):
    with pytest.raises(InvalidFeed, match=line):
        stream_feed(format=form)


def test_another_declaration_than_the_tables_stops_the_feed_and_says_both(local_store):
    write(local_store, parted(by("region")), regions(range(3)))
    with pytest.raises(
        ConfigError,
        match=r"partitioned by rowtime_day \(day\), region \(identity\), not by rowtime_day \(day\), region_bucket",
    ):
        write(local_store, parted(by("region", 2)), regions(range(3, 6)))
    assert ids_of(open_table(local_store, parted(by("region")))) == [0, 1, 2]


def test_the_document_of_a_feed_says_its_parts():
    feed = parted(by("region"), by("id", 16))
    assert json.loads(feed.model_dump_json())["format"]["parts"] == [
        {"column": "region", "transform": "identity", "buckets": None},
        {"column": "id", "transform": "bucket", "buckets": 16},
    ]


@pytest.mark.parametrize("parts", [[], [by("region")]], ids=["by time alone", "by region"])
def test_another_engines_change_of_the_partitions_never_misplaces_a_row(local_store, monkeypatch, parts):
    """It comes while files are published, which stay in the partitions that they were written for."""
    feed = parted(*parts)
    write(local_store, feed, regions(range(3)))
    publish = iceberg_commits._publish

    def meanwhile(store, staged) -> None:
        publish(store, staged)
        with seen_by_others(local_store) as table:
            with table.update_spec() as update:
                update.add_identity("note")
            table.append(table.scan(limit=1).to_arrow().set_column(0, "id", pa.array([100])))

    monkeypatch.setattr(iceberg_commits, "_publish", meanwhile)
    write(local_store, feed, regions(range(3, 6)))
    monkeypatch.undo()
    table = open_table(local_store, feed)
    assert ids_of(table) == [*range(6), 100]
    with seen_by_others(local_store) as seen:
        assert len(seen.specs()) == 2
        assert seen.scan(EqualTo("region", TEXTS[3])).to_arrow()["id"].to_pylist() == [3]
        assert seen.scan(EqualTo("note", "n3")).to_arrow()["id"].to_pylist() == [3]
    table.compact("2025-01-01", FORCE)
    assert ids_of(table) == [*range(6), 100]
    with seen_by_others(local_store) as seen:
        assert seen.scan(EqualTo("note", "n3")).to_arrow()["id"].to_pylist() == [3]
    with pytest.raises(ConfigError, match="another engine changed it"):
        write(local_store, feed, regions(range(6, 9)))


def test_changes_are_merged_into_the_parts_that_their_rows_are_of_by_then(local_store):
    feed = parted(by("region"), write="merge", key=["id"])
    first = batch(range(6), {"region": pa.array(["a", "b"] * 3)})
    write(local_store, feed, first)
    numbers = pa.array([6, 7], pa.int64())
    moved = batch([1, 2], {"region": pa.array(["a", "c"])})
    write(local_store, feed, dataclasses.replace(moved, source_offsets=numbers))
    table = open_table(local_store, feed)
    found = table.scan(columns=["id", "region"]).read_all().sort_by("id")
    assert found["region"].to_pylist() == ["a", "a", "c", "b", "a", "b"]
    with seen_by_others(local_store) as seen:
        assert all({(value,)} == rows for (_, value), rows in files_of(seen, ["region"]))
        assert sorted(seen.scan(EqualTo("region", "a")).to_arrow()["id"].to_pylist()) == [0, 1, 4]


def test_a_file_without_its_part_is_refused(local_store, monkeypatch):
    """Whoever writes files by another way than exports do must not put rows where no filter looks for them."""
    feed = parted(by("region"))
    write(local_store, feed, regions(range(3)))
    monkeypatch.setattr(IcebergFolder, "part_of", lambda _: None)
    with pytest.raises(CorruptLake, match="without the values that its table keeps files apart by"):
        write(local_store, feed, regions(range(3, 6)))
    assert ids_of(open_table(local_store, feed)) == [0, 1, 2]
