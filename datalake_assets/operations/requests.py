"""What the write API is asked and answers: one model per operation, told apart by ``operation``.

The models are the contract: HTTP's OpenAPI document, the reference and the dispatcher are made from them. Names are
held to one pattern here, so that no path, no name of the catalog and no SQL is ever built from anything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "MAX_DEPTH",
    "MAX_RECORDS",
    "MAX_REQUEST_BYTES",
    "MAX_ROWS",
    "NAME_PATTERN",
    "Answer",
    "Code",
    "ColumnSpec",
    "CreateTable",
    "CreateTableAnswer",
    "Describe",
    "DescribeAnswer",
    "Failure",
    "FailureAnswer",
    "Health",
    "HealthAnswer",
    "ListAnswer",
    "ListTables",
    "PartitionField",
    "PartitionSpec",
    "Query",
    "QueryAnswer",
    "QueryColumn",
    "Request",
    "SnapshotFacts",
    "TableName",
    "Write",
    "WriteAnswer",
]

#: Of a whole request; AWS Lambda takes no more (AWS Lambda quotas: 6 MB a synchronous request).
MAX_REQUEST_BYTES = 6 * 1024 * 1024
#: Of lists and objects in each other.
MAX_DEPTH = 32
#: Of one WRITE, and of the answer to one QUERY.
MAX_RECORDS = MAX_ROWS = 10_000

#: Names of tenants, namespaces, tables and columns.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,127}")
#: A tenant, a namespace, a table or a column: a lower-case letter, then at most 127 letters, digits or underscores.
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
#: Printable ASCII without blanks: what survives every header, log and terminal.
IdempotencyKey = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
_PRIMITIVES = frozenset(
    {
        *("boolean", "int", "long", "float", "double", "string", "binary", "uuid"),
        *("date", "time", "timestamp", "timestamptz"),
    }
)
_DECIMAL = re.compile(r"decimal\(([1-9][0-9]?),([0-9]{1,2})\)")
#: Most columns, and most fields of a partitioning.
_COLUMNS, _FIELDS = 500, 8
#: Digits of the widest decimal (Iceberg specification, "Primitive Types").
_DIGITS = 38
_TIME_TYPES = frozenset({"date", "timestamp", "timestamptz"})
_NOT_BUCKETED = frozenset({"boolean", "float", "double"})
_WITH_TIME_OF_DAY = frozenset({"timestamp", "timestamptz"})
_TRUNCATED = frozenset({"int", "long", "string"})


class _Model(BaseModel):
    """Checked to the letter: nothing is converted, and what is unknown is refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True, hide_input_in_errors=True
    )


def _known_type(text: str) -> str:
    """The type without blanks, as Iceberg spells it.

    Raises:
        ValueError: There is no such type.
    """
    kind = text.replace(" ", "")
    is_list = kind.startswith("list<") and kind.endswith(">")
    element = kind[len("list<") : -1] if is_list else kind
    decimal = _DECIMAL.fullmatch(element)
    if decimal is not None and int(decimal[2]) <= int(decimal[1]) <= _DIGITS:
        element = f"decimal({int(decimal[1])}, {int(decimal[2])})"
    elif element not in _PRIMITIVES or (is_list and element == "uuid"):  # Arrow makes no such lists
        element = ""
    if element:
        return f"list<{element}>" if is_list else element
    known = ", ".join(sorted(_PRIMITIVES))
    msg = f"there is no such type; use {known}, decimal(precision, scale), or list<…> of one but uuid"
    raise ValueError(msg)


#: A column's type, as Iceberg spells it.
ColumnType = Annotated[str, Field(max_length=64), AfterValidator(_known_type)]


class ColumnSpec(_Model):
    """A column of a table.

    Attributes:
        name: Its name.
        type: ``boolean``, ``int``, ``long``, ``float``, ``double``, ``decimal(precision, scale)``, ``string``,
            ``binary``, ``date``, ``time``, ``timestamp``, ``timestamptz``, ``uuid``, or
            ``list<…>`` of one of these but ``uuid``.
        required: Whether every record must have a value for it.
        doc: What it means, for people.
    """

    name: Name
    type: ColumnType
    required: bool = False
    doc: Annotated[str, Field(max_length=1000)] | None = None


class PartitionSpec(_Model):
    """A field that a table is partitioned by.

    Attributes:
        column: The column that it is made of.
        transform: How: ``identity``, ``year``, ``month``, ``day``, ``hour``, ``bucket`` or ``truncate``.
        parameter: The number of buckets, or the width of a truncated value.
    """

    column: Name
    transform: Literal["identity", "year", "month", "day", "hour", "bucket", "truncate"] = "identity"
    parameter: Annotated[int, Field(ge=1, le=10_000)] | None = None

    @model_validator(mode="after")
    def _parameter_fits(self) -> PartitionSpec:
        if (self.parameter is not None) != (self.transform in {"bucket", "truncate"}):
            msg = "bucket and truncate take a parameter, the others none"
            raise ValueError(msg)
        return self

    def problem(self, column: ColumnSpec) -> str | None:
        """Why this column cannot be partitioned so; None if it can."""
        kind = column.type.split("(")[0]
        fits = {
            "identity": not kind.startswith("list"),
            "bucket": not kind.startswith("list") and kind not in _NOT_BUCKETED,
            "truncate": kind in _TRUNCATED,
            "hour": kind in _WITH_TIME_OF_DAY,
        }.get(self.transform, kind in _TIME_TYPES)
        return None if fits else f"column {self.column!r} of type {column.type} has no transform {self.transform!r}"


class _OfTenant(_Model):
    """What every request of a tenant names.

    Attributes:
        tenant_id: Whose tables.
    """

    tenant_id: Name


class _OfTable(_OfTenant):
    """What every request about a table names.

    Attributes:
        namespace: The group of tables.
        table: The table.
    """

    namespace: Name
    table: Name


class CreateTable(_OfTable):
    """Creates a table, and its namespace if need be.

    Attributes:
        schema: The columns, in their order.
        partitioning: What it is partitioned by; empty for one partition.
        if_not_exists: A table that exists is an answer, not an error; it stays as it is.
    """

    operation: Literal["CREATE_TABLE"]
    columns: Annotated[list[ColumnSpec], Field(alias="schema", min_length=1, max_length=_COLUMNS)]
    partitioning: Annotated[list[PartitionSpec], Field(max_length=_FIELDS)] = []
    if_not_exists: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> CreateTable:
        columns = {column.name: column for column in self.columns}
        if len(columns) < len(self.columns):
            msg = "two columns have one name"
            raise ValueError(msg)
        for field in self.partitioning:
            if field.column not in columns:
                msg = f"there is no column {field.column!r} to partition by"
                raise ValueError(msg)
            problem = field.problem(columns[field.column])
            if problem is not None:
                raise ValueError(problem)
        if len({(field.column, field.transform) for field in self.partitioning}) < len(self.partitioning):
            msg = "two partition fields are the same"
            raise ValueError(msg)
        return self


class Write(_OfTable):
    """Appends records to a table: all of them, or none.

    Attributes:
        records: Objects of values by column. Decimals are texts or integers; dates, times and UUIDs texts as ISO 8601
            and RFC 9562 have them, times with a zone exactly for ``timestamptz``; binary values base64.
        idempotency_key: Chosen by the caller, once per write. The write is done once, however often it is sent with
            this key; each time the answer is that of the first.
    """

    operation: Literal["WRITE"]
    records: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_RECORDS)]
    idempotency_key: IdempotencyKey | None = None


def _text_only(value: Any) -> Any:
    if not isinstance(value, str | datetime):
        msg = "write it as a text, like 2026-01-31T12:00:00Z"
        raise ValueError(msg)  # noqa: TRY004  pydantic takes ValueErrors for problems of a request
    return value


#: A moment, with its zone; of texts as ISO 8601 has them, and of nothing that could be a number of seconds.
Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_text_only)]


class Query(_OfTable):
    """Answers a SELECT over the rows of one table as they were in one snapshot.

    Attributes:
        sql: One SELECT, as DuckDB has it; it sees the table by its name, and nothing else.
        snapshot_id: Of the snapshot to read; none for the current one.
        as_of: Read the snapshot that was current then.
        max_rows: Rows of the answer at the most.
        timeout_s: Seconds that it may take.
    """

    operation: Literal["QUERY"]
    sql: Annotated[str, Field(min_length=1, max_length=64 * 1024)]
    snapshot_id: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    as_of: Moment | None = None
    max_rows: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 1000
    timeout_s: Annotated[int, Field(ge=1, le=60)] = 30

    @model_validator(mode="after")
    def _one_snapshot(self) -> Query:
        if self.snapshot_id is not None and self.as_of is not None:
            msg = "give snapshot_id or as_of, not both"
            raise ValueError(msg)
        return self


class Describe(_OfTable):
    """Describes a table: columns, partitioning, amounts, and its newest snapshots."""

    operation: Literal["DESCRIBE"]


class ListTables(_OfTenant):
    """Lists tables by name.

    Attributes:
        namespace: Only those of this namespace.
        after: Only those behind this one, as ``namespace.table``: the ``next`` of the answer before.
        limit: This many at the most.
    """

    operation: Literal["LIST"]
    namespace: Name | None = None
    after: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,127}\.[a-z][a-z0-9_]{0,127}$")] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000


class Health(_Model):
    """Asks whether operations can be served.

    Attributes:
        tenant_id: Whose catalog to look at; none for none.
    """

    operation: Literal["HEALTH"]
    tenant_id: Name | None = None


Request = Annotated[CreateTable | Write | Query | Describe | ListTables | Health, Field(discriminator="operation")]


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
        column: The column that it is made of.
        transform: How.
        parameter: The number of buckets, or the width of a truncated value.
    """

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
