"""The files of a compacted table, named where the catalog gives the table: in a property of it, of one snapshot alone.

Whoever has never seen a table asks for its metadata, then for the list of its manifests, then for these, and only then
knows which files there are: three ways to a store and back, one after another, before the first byte of a row. A
compaction leaves few files, so that it can name them in the metadata, in the same commit. Whatever is committed
afterwards has another snapshot's number, and then the property says nothing: see
``docs/adr/051-compacted-tables-name-their-files.md``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

__all__ = ["FILES", "SnapshotFile", "files_property", "named_files"]

#: The property: the snapshot's number, and of each file its path, below the table's location if it is there, its bytes
#: and its rows.
FILES = "datalake.files"
#: Of the property; tables of more files have none. Every reader of the table's metadata reads it.
MAX_CHARS = 4096


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A data file of a snapshot: its URI, its bytes and its rows."""

    path: str
    size_bytes: int
    rows: int


def files_property(table: Table, snapshot_id: int, files: Iterable[DataFile]) -> dict[str, str]:
    """The property that names all files of a snapshot, which no delete file applies to; nothing if they are many.

    Args:
        table: The table.
        snapshot_id: The snapshot, which is committed together with the property.
        files: All that it has.
    """
    below = f"{table.location()}/"
    lines = [[each.file_path.removeprefix(below), each.file_size_in_bytes, each.record_count] for each in files]
    text = json.dumps([snapshot_id, lines], separators=(",", ":"))
    return {FILES: text} if len(text) <= MAX_CHARS else {}


def named_files(table: Table, snapshot: Snapshot) -> list[SnapshotFile] | None:
    """The files of a snapshot as the table's property names them; None if the manifests have to be asked."""
    try:
        number, lines = json.loads(table.properties.get(FILES, ""))
        below = f"{table.location()}/"
        files = [_file(below, *line) for line in lines]
    except (ValueError, TypeError):
        return None
    return files if number == snapshot.snapshot_id and _is_stated(snapshot, files) else None


def _file(below: str, path: str, size_bytes: int, rows: int) -> SnapshotFile:
    if not (isinstance(path, str) and isinstance(size_bytes, int) and isinstance(rows, int)):
        raise TypeError(path)
    return SnapshotFile(path if "://" in path or path.startswith("/") else f"{below}{path}", size_bytes, rows)


def _is_stated(snapshot: Snapshot, files: Collection[SnapshotFile]) -> bool:
    """Whether the snapshot itself says that it has as many files, rows and bytes, and no deletes."""
    said: Any = snapshot.summary.additional_properties if snapshot.summary is not None else {}
    wanted = {
        "total-data-files": len(files),
        "total-records": sum(each.rows for each in files),
        "total-files-size": sum(each.size_bytes for each in files),
        "total-delete-files": 0,
    }
    return all(said.get(name) == str(number) for name, number in wanted.items())
