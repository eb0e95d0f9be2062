"""What manifests say of files, held against the rows; and what of pyiceberg's inside the rewriting rests on."""

from __future__ import annotations

import inspect
import struct
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg import manifest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.conversions import from_bytes
from pyiceberg.io import pyarrow as upstream
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntry
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.update import validate
from pyiceberg.transforms import BucketTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    ListType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

from datalake_assets.lake.iceberg.data_files import data_file_of
from datalake_assets.lake.iceberg.manifests import entries_of
from datalake_assets_tests.lake.iceberg.iceberg_tables import (
    ARROW,
    FIRST,
    SCHEMA,
    create,
    data_paths,
    delete_rows,
    rows,
)


def described(groups: list[pa.Table], schema: Schema, **properties: str) -> DataFile:
    """A file of these row groups, as a manifest has it."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
    footer = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    return data_file_of("x", footer, 1, schema=schema, properties=properties, spec_id=0, partition=Record())


def one(kind, *groups: list[object], **properties: str) -> tuple[object, object]:
    """The bounds of a single column in those row groups."""
    schema = Schema(NestedField(1, "c", kind, required=False))
    arrow = schema_to_pyarrow(schema)
    file = described([pa.table({"c": group}, schema=arrow) for group in groups], schema, **properties)
    return tuple(from_bytes(kind, each[1]) if 1 in each else None for each in (file.lower_bounds, file.upper_bounds))


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (LongType(), -5, 7),
        (DoubleType(), -1.5, 2.5),
        (BooleanType(), False, True),
        (StringType(), "ä", "ö"),
        (BinaryType(), b"\x00", b"\xfe"),
        (FixedType(2), b"\x00\x01", b"\xff\x00"),
        (DecimalType(9, 2), Decimal("-1.50"), Decimal("200.00")),
        (DecimalType(38, 2), Decimal("-1.50"), Decimal("200.00")),
    ],
    ids=str,
)
def test_bounds_are_the_lowest_and_the_highest_of_all_row_groups(kind, low, high):
    assert one(kind, [high, None], [low]) == (low, high)


def test_bounds_of_times_are_kept(tmp_path):
    schema = Schema(
        NestedField(1, "d", DateType(), required=False), NestedField(2, "t", TimestamptzType(), required=False)
    )
    given = pa.table({"d": [FIRST.date()], "t": [FIRST]}, schema=schema_to_pyarrow(schema))
    file = described([given], schema)
    assert struct.unpack("<i", file.lower_bounds[1]) == ((FIRST.date().toordinal() - 719163),)
    assert struct.unpack("<q", file.upper_bounds[2]) == (round(FIRST.timestamp() * 1_000_000),)


def test_a_column_has_no_bounds_if_one_row_group_states_none():
    """Long texts have no statistics: a reader would skip them by the bounds of the others."""
    assert one(StringType(), ["b"], ["z" * 10_000]) == (None, None)


def test_a_column_of_which_one_row_group_is_no_number_has_no_bounds():
    assert one(DoubleType(), [1.0], [float("nan")]) == (None, None)


def test_a_row_group_of_nulls_does_not_count():
    assert one(LongType(), [None], [3]) == (3, 3)


def test_long_texts_are_cut_so_that_they_still_enclose():
    low, high = one(StringType(), ["a" * 40, "b" * 40])
    assert (low, high) == ("a" * 16, "b" * 15 + "c")
    assert one(StringType(), ["a" * 40], **{"write.metadata.metrics.default": "full"}) == ("a" * 40, "a" * 40)
    assert one(StringType(), ["a"], **{"write.metadata.metrics.default": "counts"}) == (None, None)


def test_counts_add_up_and_lists_have_no_bounds():
    kind = ListType(2, LongType(), element_required=False)
    schema = Schema(NestedField(1, "l", kind, required=False))
    file = described([pa.table({"l": [[1, 2], None]}, schema=schema_to_pyarrow(schema))] * 2, schema)
    assert (file.record_count, file.value_counts[2], file.lower_bounds) == (4, 6, {})
    assert len(file.split_offsets) == 2
    assert sum(file.column_sizes.values()) > 0


# upstream


def test_upstream_bounds_leave_out_row_groups_that_state_none():
    """Why `data_file_of` is not pyiceberg's own; if this fails, it could be."""
    sink = pa.BufferOutputStream()
    schema = Schema(NestedField(1, "c", StringType(), required=False))
    with pq.ParquetWriter(sink, schema_to_pyarrow(schema)) as writer:
        for value in ("b", "z" * 10_000):
            writer.write_table(pa.table({"c": [value]}, schema=schema_to_pyarrow(schema)))
    statistics = upstream.data_file_statistics_from_parquet_metadata(
        pq.read_metadata(pa.BufferReader(sink.getvalue())), upstream.compute_statistics_plan(schema, {}), {"c": 1}
    )
    assert statistics.to_serialized_dict()["upper_bounds"] == {1: b"b"}


def test_upstream_s_check_for_new_deletes_misses_one_that_an_append_followed(catalog: SqlCatalog):
    """Why `_Compaction._holds` is not pyiceberg's own check; if this fails, it could be."""
    table = create(catalog, spec=PartitionSpec())
    table.append(rows(0, 4))
    base, file = table.current_snapshot(), next(iter(table.scan().plan_files())).file
    delete_rows(table, positions=[(data_paths(table)[0], 1)])
    with pytest.raises(validate.ValidationException):
        validate._validate_no_new_deletes_for_data_files(table, table.current_snapshot(), None, {file}, base)
    table.append(rows(4, 4))
    validate._validate_no_new_deletes_for_data_files(table, table.current_snapshot(), None, {file}, base)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (
            upstream._to_requested_schema,
            ["requested_schema", "file_schema", "batch", "downcast_ns_timestamp_to_us", "include_field_ids",
             "projected_missing_fields", "allow_timestamp_tz_mismatch", "format_model"],
        ),
        (
            upstream._get_column_projection_values,
            ["file", "projected_schema", "table_schema", "partition_spec", "file_project_field_ids"],
        ),
        (upstream._determine_partitions, ["spec", "schema", "arrow_table"]),
        (manifest._inherit_from_manifest, ["entry", "manifest"]),
    ],
    ids=["columns by field id", "columns that the partition states", "rows by partition", "what manifests leave out"],
)  # fmt: skip
def test_upstream_s_private_functions_take_what_they_took(function, parameters):
    """`present_rows`, `iceberg_rewriting` and `manifests` call them."""
    assert list(inspect.signature(function).parameters) == parameters


@pytest.mark.parametrize("discard_deleted", [True, False])
def test_manifests_are_read_as_upstream_reads_them(catalog, discard_deleted):
    """Of several specs and schemas, with entries of their own, of before, and of deletes; the second time, too."""
    table = create(catalog)
    table.append(rows(0, 4))
    with table.update_spec() as spec:
        spec.add_field("name", BucketTransform(4), "b")
    with table.update_schema() as schema:
        schema.add_column("more", DecimalType(20, 3))
    table.append(rows(4, 4))
    table.delete("id < 3")
    delete_rows(table, positions=[(data_paths(table)[0], 0)], partition=next(iter(table.scan().plan_files())).file)
    found = table.current_snapshot().manifests(table.io)
    assert {each.content for each in found} == {ManifestContent.DATA, ManifestContent.DELETES}
    for each in [*found, *found]:
        ours = entries_of(each, table.io, discard_deleted=discard_deleted)
        theirs = each.fetch_manifest_entry(table.io, discard_deleted=discard_deleted)
        assert list(map(_told, ours)) == list(map(_told, theirs))


def _told(entry: ManifestEntry) -> tuple[object, ...]:
    return type(entry.data_file), entry.data_file.spec_id, entry._data[:4], entry.data_file._data


def test_upstream_spreads_rows_by_transform_and_brings_columns_by_field_id():
    spec = PartitionSpec(PartitionField(1, 1000, BucketTransform(4), "b"))
    found = list(upstream._determine_partitions(spec=spec, schema=SCHEMA, arrow_table=rows(0, 20)))
    assert sum(each.arrow_table_partition.num_rows for each in found) == 20
    assert all(0 <= each.partition_key.partition[0] < 4 for each in found)
    renamed = Schema(NestedField(3, "other", StringType(), required=False), NestedField(9, "new", LongType()))
    brought = upstream._to_requested_schema(renamed, SCHEMA, rows(0, 1).to_batches()[0])
    assert brought.to_pylist() == [{"other": "name 0", "new": None}]
    assert ARROW.names == ["id", "ts", "name"]
