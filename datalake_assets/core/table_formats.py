"""Which folders belong to a table of another format, by the names in them and by what their files' footers say.

A folder of plain Parquet files may be compacted: its readers list it. The folders of a Delta, Iceberg or Hudi table,
and of others like them, have a log that says which files count: whoever replaces one corrupts the table. Such a log may
lie beside the files, far above them, or (Iceberg, DuckLake) nowhere near, so that paths, folders above and footers are
all asked. Each mark is one that the format itself writes, and that nobody else would.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from enum import Enum
from functools import lru_cache

__all__ = ["BEGINNINGS_ABOVE", "FILES_ABOVE", "FOLDERS_ABOVE", "TableFormat", "footer_format", "table_mark"]


class TableFormat(Enum):
    """A format whose tables have a log of their own; the value names such a table."""

    DELTA = "a Delta table"
    ICEBERG = "an Iceberg table"
    HUDI = "a Hudi table"
    PAIMON = "a Paimon table"
    LANCE = "a Lance dataset"
    DUCKLAKE = "a DuckLake table"
    HIVE_ACID = "a transactional table of Hive"
    SPARK_SINK = "a Spark streaming sink"
    DATABRICKS = "a folder of transactional writes of Databricks"
    IMPALA = "a table into which Impala inserts"
    BUCKETED = "a bucketed table"
    HDFS_SINK = "a folder of Kafka Connect's HDFS sink"
    INFLUXDB = "a table of InfluxDB"
    GREPTIMEDB = "a table of GreptimeDB"
    LAKE = "a lake of this package"

    @property
    def reason(self) -> str:
        """Why nobody else may compact it, and what to do instead."""
        return _REASONS.get(
            self, "its log says which files count, and compaction would corrupt it; use that format's own tools"
        )


#: Of formats where that takes other words: why nobody else may compact it, and what to do instead.
_REASONS = {
    TableFormat.LAKE: "its manifests say which files count; set DATALAKE_LAKE to it, and compact its feeds",
    TableFormat.DATABRICKS: (
        "its _started_ and _committed_ files say which files count; run VACUUM on it in Databricks and delete these"
        " files once nothing writes there any more, or copy the rows with Spark"
    ),
    TableFormat.IMPALA: (
        "an INSERT that is under way replaces files by their names; wait until it has ended, delete"
        " _impala_insert_staging if it was left behind, and REFRESH the table after each compaction"
    ),
    TableFormat.BUCKETED: (
        "its files' names say which bucket they are, and its readers refuse a merged one; use the engine that wrote it"
    ),
    TableFormat.HDFS_SINK: (
        "the connector reads on from the offsets in its files' names, and would write merged rows again; stop it, and"
        " copy the rows into a folder of their own"
    ),
}


#: Folders of a log, whatever is in them: Delta protocol, Hudi's, Spark's and Impala's own constants.
_LOGS = {
    "_delta_log": TableFormat.DELTA,
    "_change_data": TableFormat.DELTA,
    "_symlink_format_manifest": TableFormat.DELTA,
    ".hoodie": TableFormat.HUDI,
    "_spark_metadata": TableFormat.SPARK_SINK,
    "_impala_insert_staging": TableFormat.IMPALA,
}
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
#: Folders of a table by a pattern of their name: Hive's AcidUtils, Lance.
_FOLDERS = (
    (re.compile(r"base_\d{7,}(_v\d+)?|(delete_)?delta_\d{7,}_\d{7,}(_\d{4})?(_v\d+)?"), TableFormat.HIVE_ACID),
    (re.compile(r".+\.lance"), TableFormat.LANCE),
)
#: The end of a file's path, from the table's folder on; what precedes it is that folder.
_ENDS = (
    (r"metadata/[^/]+\.metadata\.json(\.gz)?", TableFormat.ICEBERG),
    (r"metadata/version-hint\.text", TableFormat.ICEBERG),
    (rf"metadata/(snap-\d+-\d+-{_UUID}|{_UUID}-m\d+)\.avro", TableFormat.ICEBERG),
    (r"[^/]+\.puffin", TableFormat.ICEBERG),  # statistics and deletion vectors
    (rf"deletion_vector_{_UUID}\.bin", TableFormat.DELTA),
    (r"\.hoodie_partition_metadata(\.(parquet|orc))?", TableFormat.HUDI),
    (r"schema/schema-\d+", TableFormat.PAIMON),
    (r"snapshot/(LATEST|EARLIEST|snapshot-\d+)", TableFormat.PAIMON),
    (rf"bucket-(\d+|postpone)/[a-z]+-{_UUID}-\d+\.\w+", TableFormat.PAIMON),
    (r"_versions/d?\d+\.manifest", TableFormat.LANCE),
    (r"_latest\.manifest", TableFormat.LANCE),
    (rf"_transactions/\d+-{_UUID}\.txn", TableFormat.LANCE),
    (rf"ducklake-{_UUID}(-delete)?\.parquet", TableFormat.DUCKLAKE),
    (r"_orc_acid_version|_metadata_acid", TableFormat.HIVE_ACID),
    (r"_(started|committed)_(vacuum)?\d+", TableFormat.DATABRICKS),
    # Spark's BucketingUtils; Hive buckets that Spark writes; Trino's computeNonTransactionalBucketedFilename
    (rf"part-(r-)?\d{{5}}-{_UUID}_\d{{5}}(\.[^/]*)?", TableFormat.BUCKETED),
    (rf"\d{{5,}}_0_(part-\d{{5}}-{_UUID}|\d{{8}}_\d{{6}}_\d{{5}}_[a-z0-9]{{5}})([.-][^/]*)?", TableFormat.BUCKETED),
    # Confluent's FileUtils.committedFileName: topic, partition, first and last offset
    (r"[^/+]+\+\d+\+\d{10,}\+\d{10,}(\.[^/]*)?", TableFormat.HDFS_SINK),
    (r"feeds/(active|archived)/[a-z][a-z0-9_]*\.json", TableFormat.LAKE),
    (r"control/(streams|tables|folders)/[a-z][a-z0-9_]*/(feed|(.+/)?manifest)\.json", TableFormat.LAKE),
)
_MARKS = tuple((re.compile(rf"(?:(?P<table>.*)/)?{end}"), table) for end, table in _ENDS)

#: Of names that end like Parquet, those that may be a mark.
_TELLING = re.compile(r"ducklake-.*|\.hoodie_.*|part-.*_\d{5}\..*|\d{5,}_0_.*|[^+]+\+\d+\+\d+\+.*")

#: Folders that hold a mark of the folder that they lie in; the first thousand of their files are read.
FOLDERS_ABOVE = (
    *_LOGS,
    *("metadata", "schema", "snapshot", "_versions", "_transactions", "feeds/active", "feeds/archived"),
)
#: Files that are such a mark themselves.
FILES_ABOVE = (
    *(".hoodie_partition_metadata", ".hoodie_partition_metadata.parquet"),
    *("_orc_acid_version", "_metadata_acid", "_latest.manifest"),
)
#: Beginnings of the names of files that are such a mark.
BEGINNINGS_ABOVE = ("_committed_", "_started_", "deletion_vector_")


def table_mark(path: str) -> tuple[TableFormat, str] | None:
    """Whose table a file belongs to, if its path tells, with the path of that table's folder ("" for the base's own).

    Args:
        path: Of a file, relative to whatever base.
    """
    above, _, name = path.rpartition("/")
    of_folder = _folder_mark(above) if above else None
    if of_folder is not None:
        return of_folder
    if name.endswith(".parquet") and not _TELLING.fullmatch(name) and "bucket-" not in above:
        return None
    for mark, table in _MARKS:
        found = mark.fullmatch(path)
        if found is not None:
            return table, found["table"] or ""
    return None


@lru_cache(maxsize=1024)  # asked for each file of a folder in turn
def _folder_mark(path: str) -> tuple[TableFormat, str] | None:
    parts = path.split("/")
    for depth, part in enumerate(parts):
        if part in _LOGS:
            return _LOGS[part], "/".join(parts[:depth])
        for pattern, table in _FOLDERS:
            if pattern.fullmatch(part):
                return table, "/".join(parts[: depth + (table is TableFormat.LANCE)])
    return None


#: Beginnings of footer keys that only writers of such a table write.
_KEYS = {
    b"iceberg.": TableFormat.ICEBERG,
    b"delete-type": TableFormat.ICEBERG,
    b"delta.": TableFormat.DELTA,
    b"org.apache.hudi.": TableFormat.HUDI,
    b"hoodie_": TableFormat.HUDI,
    b"paimon.": TableFormat.PAIMON,
    b"IOX:metadata": TableFormat.INFLUXDB,
    b"greptime:metadata": TableFormat.GREPTIMEDB,
}
_SPARK_SCHEMA, _DELTA_FIELD = b"org.apache.spark.sql.parquet.row.metadata", b'"delta.columnMapping.'
#: Columns that these formats add to the user's.
_COLUMNS = (
    (frozenset({"_hoodie_commit_time"}), TableFormat.HUDI),
    (frozenset({"_SEQUENCE_NUMBER", "_VALUE_KIND"}), TableFormat.PAIMON),
)


def footer_format(key_values: Mapping[bytes, bytes], columns: Collection[str]) -> TableFormat | None:
    """Whose table a file was written for, by its footer's key-values and columns; None if they have no mark."""
    for key in key_values:
        for beginning, table in _KEYS.items():
            if key.startswith(beginning):
                return table
    if _DELTA_FIELD in key_values.get(_SPARK_SCHEMA, b""):
        return TableFormat.DELTA
    names = set(columns)
    return next((table for added, table in _COLUMNS if added <= names), None)
