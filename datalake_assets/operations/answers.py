"""What the write API answers: one model per operation, and one for what failed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from datalake_assets.operations.requests import MAX_REQUEST_BYTES, ColumnSpec

__all__ = [
    "REQUEST_TOO_LARGE",
    "Answer",
    "Code",
    "CompactAnswer",
    "CompactStats",
    "CreateTableAnswer",
    "DescribeAnswer",
    "Failure",
    "FailureAnswer",
    "HealthAnswer",
    "ListAnswer",
    "PartitionField",
    "QueryAnswer",
    "QueryColumn",
    "SnapshotFacts",
    "TableName",
    "WriteAnswer",
    "shown_name",
]

#: Characters of a name of the caller's own that an answer repeats.
_NAME_SHOWN = 64


class Answer(BaseModel):
    """What every answer says.

    Attributes:
        ok: Whether it was done.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)

    ok: Literal[True] = True

    def to_json(self) -> dict[str, Any]:
        """As a JSON document says it; what there is nothing to say of is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class TableName(BaseModel):
    """A table.

    Attributes:
        namespace: Its namespace.
        table: Its name.
    """

    namespace: str
    table: str


class PartitionField(BaseModel):
    """A field that a table is partitioned by.

    Attributes:
        name: Its name, in the paths of files and in a ``partition_filter``.
        column: The column that it is made of.
        transform: How.
        parameter: The number of buckets, or the width of a truncated value.
    """

    name: str
    column: str
    transform: str
    parameter: int | None = None


class CreateTableAnswer(Answer):
    """The table that there is now.

    Attributes:
        created: False if it was there before.
        schema: Its columns.
        partitioning: What it is partitioned by.
    """

    operation: Literal["CREATE_TABLE"] = "CREATE_TABLE"
    created: bool
    columns: list[ColumnSpec] = Field(alias="schema")
    partitioning: list[PartitionField]


class WriteAnswer(Answer):
    """What a write did.

    Attributes:
        records_written: Records that it appended.
        snapshot_id: The snapshot that it made.
        compaction_recommended: Only of every so many writes of a table: whether its small files should be compacted.
        small_files_count: With it: files below the small-file size.
    """

    operation: Literal["WRITE"] = "WRITE"
    records_written: int
    snapshot_id: int
    compaction_recommended: bool | None = None
    small_files_count: int | None = None


class QueryColumn(BaseModel):
    """A column of an answer.

    Attributes:
        name: Its name.
        type: Its type, as DuckDB names it.
    """

    name: str
    type: str


class QueryAnswer(Answer):
    """The answer to a query.

    Attributes:
        columns: Its columns.
        rows: Its rows, each a list of values in the order of the columns. Exact numbers, dates and times are texts, as
            records have them; binary values base64.
        row_count: How many rows there are here.
        truncated: Whether there are more: than ``max_rows``, or than an answer may be large.
        snapshot_id: The snapshot that was read; none of a table that nothing was written to.
    """

    operation: Literal["QUERY"] = "QUERY"
    columns: list[QueryColumn]
    rows: list[list[Any]]
    row_count: int
    truncated: bool
    snapshot_id: int | None

    def to_json(self) -> dict[str, Any]:
        """As a JSON document says it; nulls in rows stay."""
        return super().to_json() | {"rows": self.rows}


class CompactStats(BaseModel):
    """What a compaction did. Files that writers added meanwhile count among those after it.

    Attributes:
        files_before: Data files of the partitions that were looked at.
        files_after: Likewise, afterwards.
        files_compacted: Files that were merged.
        files_written: Files that they became.
        files_removed: Files that were deleted with the snapshots that had them: data files, manifests and their lists.
        bytes_before: Bytes of the files before.
        bytes_after: Likewise, afterwards.
        bytes_saved: Bytes of what was merged, less those of what it became.
        snapshots_expired: Snapshots that were deleted.
        compaction_time_ms: How long it took.
        small_files_remaining: Files below the small-file size now.
    """

    files_before: int
    files_after: int
    files_compacted: int
    files_written: int
    files_removed: int
    bytes_before: int
    bytes_after: int
    bytes_saved: int
    snapshots_expired: int
    compaction_time_ms: int
    small_files_remaining: int


class CompactAnswer(Answer):
    """What became of a table's files. Older snapshots still have the old ones, and can be read.

    Attributes:
        compacted: Whether any were merged.
        reason: Why none were.
        snapshot_id: The current snapshot.
        stats: Figures.
        failed: Files that could not be merged, because they are damaged, say: how many.
    """

    operation: Literal["COMPACT"] = "COMPACT"
    compacted: bool
    reason: str | None = None
    snapshot_id: int | None
    stats: CompactStats
    failed: int = 0


class SnapshotFacts(BaseModel):
    """A state that a table was in.

    Attributes:
        snapshot_id: Its number.
        at: When it was made.
        operation: ``append``, ``replace`` (the same rows in other files), or what else was done.
        records: Rows that the table had then.
    """

    snapshot_id: int
    at: datetime
    operation: str
    records: int


class DescribeAnswer(Answer):
    """A table.

    Attributes:
        schema: Its columns.
        partitioning: What it is partitioned by.
        snapshot_id: Its current snapshot; none if nothing was written yet.
        records: Rows.
        files: Data files.
        size_bytes: Their size.
        small_files_count: Those below the small-file size.
        snapshots: The newest snapshots, newest first.
    """

    operation: Literal["DESCRIBE"] = "DESCRIBE"
    columns: list[ColumnSpec] = Field(alias="schema")
    partitioning: list[PartitionField]
    snapshot_id: int | None
    records: int
    files: int
    size_bytes: int
    small_files_count: int
    snapshots: list[SnapshotFacts]


class ListAnswer(Answer):
    """Tables, in the order of their names.

    Attributes:
        tables: The tables.
        next: What to give as ``after`` for those that follow; none at the end.
    """

    operation: Literal["LIST"] = "LIST"
    tables: list[TableName]
    next: str | None = None


class HealthAnswer(Answer):
    """Operations can be served.

    Attributes:
        status: Always ``healthy``: what cannot be served is a failure.
        version: Of this package.
        environment: Which profile decides when compaction is recommended.
    """

    operation: Literal["HEALTH"] = "HEALTH"
    status: Literal["healthy"] = "healthy"
    version: str
    environment: str


class Code(StrEnum):
    """What went wrong, for programs."""

    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_RECORDS = "INVALID_RECORDS"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    UNSUPPORTED_FORM = "UNSUPPORTED_FORM"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    TABLE_NOT_FOUND = "TABLE_NOT_FOUND"
    TABLE_EXISTS = "TABLE_EXISTS"
    SNAPSHOT_NOT_FOUND = "SNAPSHOT_NOT_FOUND"
    TABLE_UNREADABLE = "TABLE_UNREADABLE"
    QUERY_REFUSED = "QUERY_REFUSED"
    QUERY_TIMED_OUT = "QUERY_TIMED_OUT"
    KEY_REUSED = "KEY_REUSED"
    CONFLICT = "CONFLICT"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class Failure(BaseModel):
    """Why something was not done.

    Attributes:
        code: For programs.
        message: For people, on one line.
        retryable: Whether the same request may succeed later.
        details: What the code is about: ``problems`` of a request or of records, a limit, a reference for the log.
    """

    code: Code
    message: str
    retryable: bool = False
    details: Mapping[str, Any] = {}


class FailureAnswer(BaseModel):
    """What every failed request is answered with.

    Attributes:
        ok: False.
        error: Why.
    """

    model_config = ConfigDict(frozen=True)

    ok: Literal[False] = False
    error: Failure

    def to_json(self) -> dict[str, Any]:
        """As a JSON document says it."""
        return self.model_dump(mode="json")


#: Why a request of too many bytes was not done.
REQUEST_TOO_LARGE = Failure(
    code=Code.LIMIT_EXCEEDED,
    message=f"the request is larger than {MAX_REQUEST_BYTES} bytes; write fewer records at a time",
    details={"limit_bytes": MAX_REQUEST_BYTES},
)


def shown_name(name: str) -> str:
    """A name of the caller's own as answers repeat it: ASCII, and its beginning if it is long."""
    plain = name.encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= _NAME_SHOWN else f"{plain[:_NAME_SHOWN]}…"
