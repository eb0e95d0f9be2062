"""Files of Iceberg tables that are not as the table is now: older schemas and specs, other writers, any type."""

from __future__ import annotations

import math
from collections import Counter
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestEntry
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.transforms import BucketTransform, IdentityTransform, MonthTransform, VoidTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BinaryType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    FloatType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestampType,
    TimeType,
    UUIDType,
)

from datalake_assets.lake.iceberg import snapshot_files
from datalake_assets.lake.iceberg.data_files import data_file_of
from datalake_assets.lake.iceberg.snapshot_files import DeleteFile
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change
from datalake_assets_tests.lake.iceberg.iceberg_tables import (
    ARROW,
    UNPARTITIONED,
    compact,
    content,
    create,
    data_paths,
    delete_rows,
    ids,
    rows,
)


def test_columns_are_brought_to_the_present_schema(catalog):
    schema = Schema(
        NestedField(1, "id", IntegerType(), required=False),
        NestedField(2, "old", StringType(), required=False),
        NestedField(3, "gone", LongType(), required=False),
    )
    table = catalog.create_table("n.t", schema)
    table.append(pa.table({"id": pa.array([1, 2], pa.int32()), "old": ["a", "b"], "gone": [7, 8]}))
    with table.update_schema() as update:
        update.update_column("id", LongType())
        update.rename_column("old", "new")
        update.delete_column("gone")
        update.add_column("gone", StringType())  # another column under the name of before
    with table.update_schema() as update:
        update.move_first("new")
    table.append(pa.table({"new": ["c"], "id": [1 << 40], "gone": ["x"]}))
    before = content(table)
    compact(table)
    again = catalog.load_table("n.t")
    assert content(again) == before == Counter({("a", 1, None): 1, ("b", 2, None): 1, ("c", 1 << 40, "x"): 1})
    assert len(data_paths(again)) == 1


def foreign(table: Table, given: pa.Table, **said: str) -> None:
    """Appends a file as another writer leaves it: without Arrow's schema, with key-values of its own."""
    path = f"{table.location()}/data/{said['by']}-{len(data_paths(table))}.parquet"
    place = Path(path.removeprefix("file://"))
    place.parent.mkdir(parents=True, exist_ok=True)
    key_values = {f"iceberg.{key}": value for key, value in said.items()}
    rows_of = given.cast(schema_to_pyarrow(table.schema())).replace_schema_metadata(key_values)
    pq.write_table(rows_of, place, store_schema=False)
    file = data_file_of(
        path,
        pq.read_metadata(place),
        place.stat().st_size,
        schema=table.schema(),
        properties={},
        spec_id=table.spec().spec_id,
        partition=Record(),
    )
    commit_change(table, TableChange(Operation.APPEND, [file]))


EVERY_TYPE = Schema(
    NestedField(1, "i", IntegerType(), required=False),
    NestedField(2, "price", DecimalType(12, 3), required=False),
    NestedField(3, "key", UUIDType(), required=False),
    NestedField(4, "code", FixedType(3), required=False),
    NestedField(5, "at", TimeType(), required=False),
    NestedField(6, "day", DateType(), required=False),
    NestedField(7, "moment", TimestampType(), required=False),
    NestedField(8, "part", StructType(NestedField(9, "a", LongType(), required=False)), required=False),
    NestedField(10, "texts", ListType(11, StringType(), element_required=False), required=False),
    NestedField(12, "parts", MapType(13, StringType(), 14, DoubleType(), value_required=False), required=False),
    NestedField(15, "raw", BinaryType(), required=False),
    NestedField(16, "ratio", FloatType(), required=False),
)


def of_every_type(table: Table, number: int) -> pa.Table:
    """Two rows, the second one of nulls."""
    one = {
        "i": number,
        "price": Decimal(number) / 8,
        "key": UUID(int=number).bytes,
        "code": b"abc",
        "at": time(1, 2, number),
        "day": date(2026, 1, number + 1),
        "moment": datetime(2026, 1, 1, number),  # noqa: DTZ001  the column has no zone
        "part": {"a": number},
        "texts": ["a", None],
        "parts": {"k": 1.5},
        "raw": b"\x00",
        "ratio": float("inf"),
    }
    return pa.Table.from_pylist([one, dict.fromkeys(one)], schema=schema_to_pyarrow(table.schema()))


def test_files_of_several_writers_become_one(catalog):
    table = catalog.create_table("n.t", EVERY_TYPE)
    for number in range(3):
        table.append(of_every_type(table, number))
        foreign(table, of_every_type(table, number + 3), by="spark", schema=str(number))
    before = sorted(map(repr, table.scan().to_arrow().to_pylist()))
    report = compact(table)
    again = catalog.load_table("n.t")
    assert report.failed == {}
    assert len(data_paths(again)) == 1
    assert sorted(map(repr, again.scan().to_arrow().to_pylist())) == before


def test_files_of_another_writer_alone_become_one(catalog):
    table = create(catalog, spec=UNPARTITIONED)
    for number in range(3):
        foreign(table, rows(number * 4, 4), by="spark")
    compact(table)
    assert (ids(catalog.load_table("n.t")), len(data_paths(table))) == (list(range(12)), 1)


def test_files_without_field_ids_are_found_by_their_names(catalog, tmp_path):
    table = create(catalog, spec=UNPARTITIONED)
    for number in range(2):
        pq.write_table(rows(number * 4, 4), tmp_path / f"{number}.parquet")
        table.add_files([f"file://{tmp_path}/{number}.parquet"])
    table.append(rows(8, 4))
    compact(table)
    assert (ids(catalog.load_table("n.t")), len(data_paths(table))) == (list(range(12)), 1)
    schema = pq.read_schema(data_paths(table)[0].removeprefix("file://"))
    assert [field.metadata[b"PARQUET:field_id"] for field in schema] == [b"1", b"2", b"3"]


def test_files_of_an_old_partition_spec_are_moved_to_the_current_one(catalog):
    table = create(catalog, spec=PartitionSpec(PartitionField(2, 1000, MonthTransform(), "ts_month")))
    for number in range(3):
        table.append(rows(number * 10, 10, days=3))
    with table.update_spec() as update:
        update.remove_field("ts_month")
        update.add_field("id", BucketTransform(2), "id_bucket")
    table.append(rows(100, 10, days=3))
    before = content(table)
    compact(table)
    again = catalog.load_table("n.t")
    assert content(again) == before
    files = [task.file for task in again.scan().plan_files()]
    assert {file.spec_id for file in files} == {again.spec().spec_id}
    assert len(files) == 2
    for number in (0, 13, 105):  # each row is in the partition that readers look for it in
        assert again.scan(row_filter=f"id = {number}").to_arrow().num_rows == 1


def test_a_table_by_identity_keeps_its_partitions_with_nulls(catalog):
    table = create(catalog, spec=PartitionSpec(PartitionField(3, 1000, IdentityTransform(), "name")))
    given = rows(0, 4)
    names = pa.array(["a/b", None, "a/b", "ü=1"], pa.large_string())
    for _ in range(3):
        table.append(given.set_column(2, ARROW.field("name"), names))
    before = content(table)
    compact(table)
    assert content(catalog.load_table("n.t")) == before
    assert len(data_paths(table)) == 3


def test_rows_that_are_not_numbers_and_were_deleted_or_evolved_are_merged(catalog):
    """To Arrow no such value equals itself, so that each of these files was left alone as damaged."""
    schema = Schema(
        NestedField(1, "id", LongType(), required=False),
        NestedField(2, "share", DoubleType(), required=False),
        NestedField(3, "shares", ListType(4, FloatType(), element_required=False), required=False),
    )
    table = catalog.create_table("n.t", schema)
    for first in (0, 4):
        table.append(
            pa.table(
                {
                    "id": range(first, first + 4),
                    "share": [math.nan, math.nan, None, None],
                    "shares": pa.array([[math.nan, 1.0], [], None, [None]], pa.list_(pa.float32())),
                }
            )
        )
    task = next(task for task in table.scan().plan_files())
    delete_rows(table, positions=[(task.file.file_path, 0)], partition=task.file)
    with table.update_schema() as update:
        update.add_column("more", StringType())
    before = Counter(map(repr, table.scan().to_arrow().to_pylist()))
    compact(table)
    again = catalog.load_table("n.t")
    assert Counter(map(repr, again.scan().to_arrow().to_pylist())) == before
    assert (len(data_paths(again)), before.total()) == (1, 7)


def test_rows_that_are_deleted_by_values_of_any_type_are_gone(catalog):
    """Of times, UUIDs and short decimals there was no value to put in place of a null, and nothing could be read."""
    kinds = {
        "time": (TimeType(), time(1, 2, 3, 4)),
        "at": (TimestampType(), datetime(1969, 1, 1, 0, 0, 0, 5)),  # noqa: DTZ001  the type has no zone
        "paid": (DecimalType(9, 2), Decimal("1.10")),
        "uuid": (UUIDType(), UUID(int=5).bytes),
    }
    fields = [NestedField(number, name, kind) for number, (name, (kind, _)) in enumerate(kinds.items(), 2)]
    table = catalog.create_table("n.t", Schema(NestedField(1, "id", LongType()), *fields))
    given = [{"id": number, name: value} for number, (name, (_, value)) in enumerate(kinds.items())]
    named = schema_to_pyarrow(table.schema(), include_field_ids=True)
    plain = schema_to_pyarrow(table.schema(), include_field_ids=False)
    for _ in range(2):
        table.append(pa.Table.from_pylist([*given, {"id": 9}], plain))
    for row in given:
        name = list(row)[1]
        delete_rows(table, equal=pa.Table.from_pylist([row], pa.schema([named.field(name)])))
    compact(table)
    assert ids(catalog.load_table("n.t")) == [9, 9]


def test_deletes_of_a_spec_whose_fields_were_dropped_are_of_all_partitions(catalog):
    """In the format's first version a dropped field stays as a void one; Iceberg's own library says unpartitioned."""
    table = create(catalog, spec=PartitionSpec(PartitionField(2, 1000, VoidTransform(), "ts_day")))
    file = DataFile.from_args(content=DataFileContent.EQUALITY_DELETES, file_path="d", partition=Record(None))
    file.spec_id = 0
    entry = ManifestEntry.from_args(status=1, sequence_number=2, data_file=file)
    assert snapshot_files._delete_file(entry, table.metadata).applies_to("a.parquet", 1, (1, (7,)))


def test_deletes_of_a_partition_that_is_not_a_number_are_its_own():
    file = DataFile.from_args(content=DataFileContent.EQUALITY_DELETES, partition=Record(math.nan), record_count=1)
    file.spec_id = 0
    delete = DeleteFile(file, "d.parquet", 2, is_global=False, target=None)
    assert delete.applies_to("a.parquet", 1, (0, (float("nan"),)))
    assert not delete.applies_to("a.parquet", 1, (0, (1.0,)))


def test_a_file_of_a_type_that_the_column_cannot_be_promoted_to_is_named(catalog, tmp_path):
    """Spark's ``add_files`` compares no types."""
    table = catalog.create_table("n.t", Schema(NestedField(1, "paid", DecimalType(9, 2), required=False)))
    for paid in ("1.50", "2.50"):
        table.append(pa.table({"paid": pa.array([Decimal(paid)], pa.decimal128(9, 2))}))
    field = pa.field("paid", pa.decimal128(16, 6), metadata={b"PARQUET:field_id": b"1"})
    wide = tmp_path / "wide.parquet"
    pq.write_table(pa.table({"paid": pa.array([Decimal("1.505000")], field.type)}, pa.schema([field])), wide)
    strange = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=f"file://{wide}",
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=wide.stat().st_size,
    )
    strange.spec_id = 0
    commit_change(table, TableChange(Operation.APPEND, added=[strange]))
    report = compact(table)
    assert report.files_compacted == 2
    (left,) = [each for each in report.skipped if each.reason.startswith("cannot be read")]
    assert left.reason == "cannot be read: Cannot reduce precision from decimal(16, 6) to decimal(9, 2)"


def test_lists_and_maps_of_structs_that_are_null_stay_null(catalog, tmp_path):
    """pyiceberg makes them empty, reading and writing, so that pyarrow writes and reads here."""
    struct = pa.struct([("p", pa.int32()), ("q", pa.list_(pa.string()))])
    kinds = {"a": pa.list_(struct), "b": pa.map_(pa.string(), struct), "c": pa.list_(pa.list_(struct))}
    one = {"p": 1, "q": [None, "x"]}
    columns = {
        "id": pa.array(range(5), pa.int64()),
        "a": pa.array([[one], None, [], [None, one], None], kinds["a"]),
        "b": pa.array([[("k", one)], None, [], [("k", None)], None], kinds["b"]),
        "c": pa.array([[[one], None], None, [], [[], None], [None]], kinds["c"]),
    }
    given = pa.table(columns)
    table = catalog.create_table("n.t", given.schema)
    for number in range(2):
        pq.write_table(given, tmp_path / f"{number}.parquet")
        table.add_files([f"file://{tmp_path}/{number}.parquet"])
    files = [task.file for task in table.scan().plan_files()]
    delete_rows(table, positions=[(files[0].file_path, 0)], partition=files[0])
    with table.update_schema() as update:
        update.add_column("more", StringType())
    compact(table)
    (path,) = data_paths(table)
    found = pq.read_table(path.removeprefix("file://"))
    expected = [*given.to_pylist()[1:], *given.to_pylist()]
    assert sorted(map(repr, found.drop_columns("more").to_pylist())) == sorted(map(repr, expected))
    before = table.scan(snapshot_id=table.snapshots()[0].snapshot_id).to_arrow()
    assert before["a"].null_count == 0, "pyiceberg keeps them by now: `_Projection` can go"
