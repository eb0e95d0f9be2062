"""What the write API is asked: one model per operation, told apart by ``operation``.

The models are the contract: HTTP's OpenAPI document, the reference and the dispatcher are made from them. Names are
held to one pattern here, so that no path, no name of the catalog and no SQL is ever built from anything else.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from datalake_assets.feed import NAME_PATTERN

__all__ = [
    "MAX_DEPTH",
    "MAX_RECORDS",
    "MAX_REQUEST_BYTES",
    "MAX_ROWS",
    "ColumnSpec",
    "Compact",
    "CreateTable",
    "Describe",
    "Health",
    "ListTables",
    "PartitionSpec",
    "Query",
    "Request",
    "Write",
    "operation_of",
    "request_models",
]

#: Of a whole request; AWS Lambda takes no more (AWS Lambda quotas: 6 MB a synchronous request).
MAX_REQUEST_BYTES = 6 * 1024 * 1024
#: Of lists and objects in each other.
MAX_DEPTH = 32
#: Of one WRITE, and of the answer to one QUERY.
MAX_RECORDS = MAX_ROWS = 10_000

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
_NOT_BUCKETED = frozenset({"boolean", "float", "double", "time"})
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

    @property
    def field_name(self) -> str:
        """The name of the field, and of its folders."""
        return self.column if self.transform == "identity" else f"{self.column}_{self.transform}"

    def problem(self, column: ColumnSpec) -> str | None:
        """Why this column cannot be partitioned so; None if it can."""
        kind = column.type.split("(")[0]
        fits = {
            "identity": not kind.startswith("list") and kind != "uuid",
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
            if field.field_name != field.column and field.field_name in columns:
                msg = f"partition field {field.field_name!r} would have the name of a column"
                raise ValueError(msg)
        if len({(field.column, field.transform) for field in self.partitioning}) < len(self.partitioning):
            msg = "two partition fields are the same"
            raise ValueError(msg)
        return self


class Write(_OfTable):
    """Appends records to a table: all of them, or none.

    Attributes:
        records: Objects of values by column. Decimals are texts or integers; dates, times and UUIDs texts as ISO 8601
            and RFC 9562 have them, times with a zone exactly for ``timestamptz``; binary values base64. A column that a
            record does not name gets the default that another engine gave it, or else null.
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


class Compact(_OfTable):
    """Merges the small files of a table into few large ones with the same rows, while writes and queries go on.

    Attributes:
        force: Merge whatever can be merged; otherwise only if so many small files can be merged that a write would
            recommend it.
        target_file_size_mb: Size of a file that is aimed at, in MiB.
        max_files: Files to merge at the most.
        partition_filter: Only partitions whose fields have these values, as they stand in the paths of files, such as
            ``at_day`` of ``2026-01-31``. DESCRIBE names the fields.
        expire_snapshots: Afterwards delete old snapshots, and the files that only they have; they cannot be queried any
            more. The current snapshot stays, and what a tag names.
        snapshot_retention_hours: Age up to which snapshots stay.
    """

    operation: Literal["COMPACT"]
    force: bool = False
    target_file_size_mb: Annotated[int, Field(ge=1, le=1024)] = 128
    max_files: Annotated[int, Field(ge=2, le=100_000)] = 10_000
    partition_filter: Annotated[dict[Name, Annotated[str, Field(max_length=1000)]], Field(max_length=_FIELDS)] = {}
    expire_snapshots: bool = False
    snapshot_retention_hours: Annotated[int, Field(ge=1, le=876_000)] = 168


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
    after: Annotated[str, Field(pattern=rf"^{NAME_PATTERN.pattern}\.{NAME_PATTERN.pattern}$")] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000


class Health(_Model):
    """Asks whether operations can be served.

    Attributes:
        tenant_id: Whose catalog to look at; none for none.
    """

    operation: Literal["HEALTH"]
    tenant_id: Name | None = None


Request = Annotated[
    CreateTable | Write | Query | Compact | Describe | ListTables | Health, Field(discriminator="operation")
]


def request_models() -> tuple[type[BaseModel], ...]:
    """The requests, one model per operation."""
    union, _ = get_args(Request)
    return get_args(union)


def operation_of(model: type[BaseModel]) -> str:
    """The name of the operation that a model is about: of a request, or of its answer."""
    (name,) = get_args(model.model_fields["operation"].annotation)
    return str(name)
