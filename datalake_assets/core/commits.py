"""What a manifest says of commits: the one under way, what it left to delete, and the last ones; with their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from datalake_assets.core.files import DataFile
from datalake_assets.core.position import Position, position_from_json

__all__ = [
    "Commit",
    "Garbage",
    "Pending",
    "Publish",
    "commit_from_json",
    "commit_to_json",
    "file_from_json",
    "file_to_json",
    "garbage_from_json",
    "garbage_to_json",
    "pending_from_json",
    "pending_to_json",
]

#: What a partition amounted to after a commit, where that is known.
_AMOUNTS = ("files", "small_files", "size_bytes", "total_rows")


@dataclass(frozen=True, slots=True)
class Publish:
    """A staged file on its way to being visible: all that any process needs to publish it.

    Attributes:
        file: The file as it will be committed.
        token: S3: upload id; local: key of the staged file.
        parts: S3: ETags of the parts, in order.
    """

    file: DataFile
    token: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pending:
    """A prepared commit.

    Attributes:
        commit_id: Names the commit, through all attempts.
        kind: ``append``, ``replace``, ``snapshot``, ``compact`` or ``delete``; in the history also ``reconcile``.
        run_id: The run that made it; empty if none.
        publish: Files to make visible.
        remove: Names of files that it replaces.
        position: The position after it; None keeps the present one.
        schema: The schema after it (`datalake_assets.core.schema`); None keeps the present one.
        deleted: Whether the partition is gone after it.
    """

    commit_id: str
    kind: str
    run_id: str
    publish: tuple[Publish, ...]
    remove: tuple[str, ...] = ()
    position: Position | None = None
    schema: str | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """A line of a manifest's history; times are aware UTC.

    Attributes:
        commit_id: As in `Pending`.
        kind: Likewise.
        at: When it was committed.
        run_id: As in `Pending`.
        rows: Rows in the files that it added.
        files_added: How many these are.
        files_removed: Files that it replaced.
        files: Files of the partition after it; like what follows None if unknown, as in older manifests.
        small_files: Of these, files below the feed's ``small_file_bytes`` at the time.
        size_bytes: Their size.
        total_rows: Their rows.
    """

    commit_id: str
    kind: str
    at: datetime
    run_id: str
    rows: int
    files_added: int
    files_removed: int
    files: int | None = None
    small_files: int | None = None
    size_bytes: int | None = None
    total_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that no longer belongs to the partition and may still be there.

    Attributes:
        name: Its name.
        etag: In a folder that others write to: it is deleted only while it has this ETag; empty = whatever it is.
    """

    name: str
    etag: str = ""


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def file_to_json(file: DataFile) -> dict[str, Any]:
    """As a manifest keeps it."""
    rare = {"written_at": file.written_at.isoformat() if file.written_at else "", "left_out": file.left_out}
    return {
        "name": file.name,
        "rows": file.rows,
        "size_bytes": file.size_bytes,
        "min_time": file.min_time.isoformat() if file.min_time else None,
        "max_time": file.max_time.isoformat() if file.max_time else None,
        "checksum": file.checksum,
        "etag": file.etag,
        **{name: value for name, value in rare.items() if value},
    }


def file_from_json(document: Mapping[str, Any]) -> DataFile:
    """Reads it back."""
    times = {name: _time(document[name]) for name in ("min_time", "max_time")}
    written_at = _time(document.get("written_at"))
    return DataFile(**{**document, **times, "written_at": written_at})


def garbage_to_json(garbage: Garbage) -> str | dict[str, str]:
    """As a manifest keeps it."""
    return {"name": garbage.name, "etag": garbage.etag} if garbage.etag else garbage.name


def garbage_from_json(document: str | Mapping[str, str]) -> Garbage:
    """Reads it back."""
    return Garbage(document) if isinstance(document, str) else Garbage(document["name"], document["etag"])


def pending_to_json(pending: Pending) -> dict[str, Any]:
    """As a manifest keeps it."""
    return {
        "commit_id": pending.commit_id,
        "kind": pending.kind,
        "run_id": pending.run_id,
        "publish": [
            {"file": file_to_json(publish.file), "token": publish.token, "parts": list(publish.parts)}
            for publish in pending.publish
        ],
        "remove": list(pending.remove),
        "position": pending.position.to_json() if pending.position else None,
        "schema": pending.schema,
        "deleted": pending.deleted,
    }


def pending_from_json(document: Mapping[str, Any]) -> Pending:
    """Reads it back."""
    return Pending(
        commit_id=document["commit_id"],
        kind=document["kind"],
        run_id=document["run_id"],
        publish=tuple(
            Publish(file_from_json(item["file"]), item["token"], tuple(item["parts"])) for item in document["publish"]
        ),
        remove=tuple(document["remove"]),
        position=position_from_json(document["position"]),
        schema=document["schema"],
        deleted=document["deleted"],
    )


def commit_to_json(commit: Commit) -> dict[str, Any]:
    """As a manifest keeps it."""
    amounts = {name: getattr(commit, name) for name in _AMOUNTS}
    return {
        "commit_id": commit.commit_id,
        "kind": commit.kind,
        "at": commit.at.isoformat(),
        "run_id": commit.run_id,
        "rows": commit.rows,
        "files_added": commit.files_added,
        "files_removed": commit.files_removed,
        **{name: amount for name, amount in amounts.items() if amount is not None},
    }


def commit_from_json(document: Mapping[str, Any]) -> Commit:
    """Reads it back."""
    return Commit(**{**document, "at": datetime.fromisoformat(document["at"])})
