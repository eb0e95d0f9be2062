"""What the files of a folder are that others write: data, or none of our business; and which folders are tables.

A folder of plain Parquet files may be compacted: its readers list it. The folders of Delta, Iceberg and Hudi tables,
and those of Spark's streaming sinks, have a log that says which files count: whoever replaces one corrupts the table.
"""

from __future__ import annotations

import re
from enum import Enum

__all__ = ["FileKind", "file_kind", "table_format"]

_EXTENSIONS = (".parquet", ".parq", ".pq")
#: Hadoop's S3 connectors marked folders by empty objects of such names.
_FOLDER_MARK = "_$folder$"
_LOGS = {"_delta_log": "a Delta", ".hoodie": "a Hudi", "_spark_metadata": "a Spark streaming sink's"}
_ICEBERG = re.compile(r"(?:^|/)metadata/[^/]+\.metadata\.json(?:\.gz)?$|(?:^|/)metadata/version-hint\.text$")


class FileKind(Enum):
    """What a file is, by its path."""

    DATA = "its name says that it is Parquet"
    PERHAPS = "its name says nothing: Hive and Athena write Parquet files like 000000_0"
    OTHER = "hidden, temporary, a marker, or of another format"


def file_kind(path: str, size_bytes: int) -> FileKind:
    """What the file at a path, relative to the adopted folder, is.

    Files and folders that begin with ``_`` or ``.`` are hidden, as for Spark and Arrow, unless they are a partition
    (``_day=1/``). Temporary names end in something else than a Parquet extension.
    """
    *folders, name = path.split("/")
    if any(_is_hidden(folder) and "=" not in folder for folder in folders) or _is_hidden(name):
        return FileKind.OTHER
    if name.lower().endswith(_EXTENSIONS):
        return FileKind.DATA
    if "." in name or name.endswith(_FOLDER_MARK) or not size_bytes:
        return FileKind.OTHER
    return FileKind.PERHAPS


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def table_format(path: str) -> str | None:
    """Whose table a folder is in which there is a file of this relative path; None if the path tells of none."""
    for part in path.split("/")[:-1]:
        if part in _LOGS:
            return _LOGS[part]
    return "an Iceberg" if _ICEBERG.search(path) else None
