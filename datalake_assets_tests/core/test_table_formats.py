"""Which paths and footers tell of a table that nobody may compact."""

from __future__ import annotations

import pytest

from datalake_assets.core.table_formats import TableFormat, footer_format, table_mark

UUID = "0a1b2c3d-0a1b-4c3d-8e5f-0a1b2c3d4e5f"


@pytest.mark.parametrize(
    ("path", "table", "where"),
    [
        ("_delta_log/00000000000000000000.json", TableFormat.DELTA, ""),
        ("below/it/_delta_log/0.json", TableFormat.DELTA, "below/it"),
        ("t/_change_data/cdc-0.parquet", TableFormat.DELTA, "t"),
        (".hoodie/hoodie.properties", TableFormat.HUDI, ""),
        ("day=1/.hoodie_partition_metadata", TableFormat.HUDI, "day=1"),
        ("day=1/.hoodie_partition_metadata.parquet", TableFormat.HUDI, "day=1"),
        ("_spark_metadata/0", TableFormat.SPARK_SINK, ""),
        ("metadata/00001-ab.metadata.json", TableFormat.ICEBERG, ""),
        ("db/table/metadata/v3.gz.metadata.json", TableFormat.ICEBERG, "db/table"),
        ("metadata/v3.metadata.json.gz", TableFormat.ICEBERG, ""),
        ("metadata/version-hint.text", TableFormat.ICEBERG, ""),
        (f"t/metadata/snap-123-1-{UUID}.avro", TableFormat.ICEBERG, "t"),
        (f"t/metadata/{UUID}-m0.avro", TableFormat.ICEBERG, "t"),
        ("t/schema/schema-0", TableFormat.PAIMON, "t"),
        ("t/snapshot/snapshot-12", TableFormat.PAIMON, "t"),
        ("t/snapshot/LATEST", TableFormat.PAIMON, "t"),
        (f"dt=1/bucket-0/data-{UUID}-0.parquet", TableFormat.PAIMON, "dt=1"),
        (f"bucket-postpone/changelog-{UUID}-3.orc", TableFormat.PAIMON, ""),
        ("x.lance/data/0.parquet", TableFormat.LANCE, "x.lance"),
        ("x/_versions/17.manifest", TableFormat.LANCE, "x"),
        (f"main/t/ducklake-{UUID}.parquet", TableFormat.DUCKLAKE, "main/t"),
        (f"ducklake-{UUID}-delete.parquet", TableFormat.DUCKLAKE, ""),
        ("t/delta_0000001_0000001/000000_0", TableFormat.HIVE_ACID, "t"),
        ("t/day=1/delta_0000001_0000001_0003/bucket_00000.parquet", TableFormat.HIVE_ACID, "t/day=1"),
        ("delete_delta_0000002_0000002_0000/bucket_00000", TableFormat.HIVE_ACID, ""),
        ("base_0000012/000000_0", TableFormat.HIVE_ACID, ""),
        ("base_0000012_v0000345/000000_0", TableFormat.HIVE_ACID, ""),
        ("t/_orc_acid_version", TableFormat.HIVE_ACID, "t"),
        ("lake/feeds/active/clicks.json", TableFormat.LAKE, "lake"),
        ("control/streams/s/year=2025/manifest.json", TableFormat.LAKE, ""),
        ("l/control/tables/s/feed.json", TableFormat.LAKE, "l"),
    ],
)
def test_path_tells_of_a_table(path, table, where):
    assert table_mark(path) == (table, where)


@pytest.mark.parametrize(
    "path",
    [
        "metadata/x.parquet",
        "metadata/x.json",
        "_delta_log",
        "year=2025/x.parquet",
        "schema/x.parquet",
        "snapshot/day=1/x.parquet",
        "bucket-0/part-0.parquet",
        "bucket-0/x.parquet",
        "delta_1_1/x.parquet",
        "delta_2024/x.parquet",
        "base_2024/x.parquet",
        "lance/x.parquet",
        "ducklake/x.parquet",
        "feeds/active/x.parquet",
        "control/x.json",
    ],
)
def test_path_of_a_plain_folder_tells_of_none(path):
    assert table_mark(path) is None


@pytest.mark.parametrize(
    ("key_values", "columns", "table"),
    [
        ({b"iceberg.schema": b"{}"}, ["id"], TableFormat.ICEBERG),
        ({b"delete-type": b"position"}, ["file_path", "pos"], TableFormat.ICEBERG),
        ({b"delta.x": b""}, ["id"], TableFormat.DELTA),
        (
            {b"org.apache.spark.sql.parquet.row.metadata": b'{"metadata":{"delta.columnMapping.id":1}}'},
            ["col-1"],
            TableFormat.DELTA,
        ),
        ({b"org.apache.hudi.bloomfilter": b"x"}, ["id"], TableFormat.HUDI),
        ({b"hoodie_min_record_key": b"x"}, ["id"], TableFormat.HUDI),
        ({}, ["_hoodie_commit_time", "_hoodie_record_key", "id"], TableFormat.HUDI),
        ({}, ["_KEY_id", "_SEQUENCE_NUMBER", "_VALUE_KIND", "id"], TableFormat.PAIMON),
        ({}, ["id", "_SEQUENCE_NUMBER"], None),
        ({b"org.apache.spark.version": b"4.0.0", b"pandas": b"{}", b"geo": b"{}"}, ["id"], None),
        ({b"datalake.feed": b"clicks"}, ["id"], None),
    ],
)
def test_footer_format(key_values, columns, table):
    assert footer_format(key_values, columns) is table
