"""Every request of the write API goes through here: measured, checked to the letter, done, and answered with a model.

Nothing but an answer leaves: what fails for a reason that the caller can act on says so by its code, and whatever else
happens is logged here with its trace, and answered with a reference to that line of the log alone.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from datetime import time as time_of_day
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import orjson
from pydantic import TypeAdapter, ValidationError

from datalake_assets.core.compaction.plan import MIN_FILES
from datalake_assets.core.schema import schema_to_json
from datalake_assets.errors import AmbiguousWrite, CommitConflict, ConfigError, DatalakeError
from datalake_assets.lake.iceberg.record_tables import (
    KeyReused,
    Reading,
    RecordColumn,
    RecordPartition,
    RecordTable,
    SmallFilesProfile,
    SnapshotNotFound,
    TableExists,
    TableNotFound,
    TenantTables,
    TooManyPartitions,
    UnreadableTable,
    WriteKey,
)
from datalake_assets.lake.sql_process import SqlFailed, SqlJob, SqlProcesses
from datalake_assets.operations.requests import (
    MAX_DEPTH,
    MAX_REQUEST_BYTES,
    Answer,
    Code,
    ColumnSpec,
    CreateTable,
    CreateTableAnswer,
    Describe,
    DescribeAnswer,
    Failure,
    FailureAnswer,
    Health,
    HealthAnswer,
    ListAnswer,
    ListTables,
    PartitionField,
    PartitionSpec,
    Query,
    QueryAnswer,
    QueryColumn,
    Request,
    SnapshotFacts,
    TableName,
    Write,
    WriteAnswer,
)
from datalake_assets.operations.validation import records_table
from datalake_assets.policies import MIB, problem_text
from datalake_assets.settings import Environment, Settings

__all__ = ["Operations", "RequestRefused"]

logger = logging.getLogger(__name__)

#: Files below this size are small.
SMALL_FILE_BYTES = 64 * MIB
#: At every so many writes of a table the answer says whether to compact it.
RECOMMEND_EVERY = {Environment.DEVELOPMENT: 5, Environment.STAGING: 75, Environment.PRODUCTION: 100}
#: Of the rows of an answer, as JSON; AWS Lambda sends no answer beyond 6 MB.
MAX_ANSWER_BYTES = 5 * 1024 * 1024
#: Snapshots that DESCRIBE names.
_SNAPSHOTS = 20
#: Problems of a request that are named.
_PROBLEMS = 20
_NAME_SHOWN = 64
_REQUESTS: TypeAdapter[Request] = TypeAdapter(Request)
_VALUES = (str, int, float, bool, bytes, type(None), date, time_of_day, Decimal, uuid.UUID)


class RequestRefused(DatalakeError):
    """A request that is not done, for a reason that its caller can act on.

    Args:
        code: What went wrong.
        message: For people.
        retryable: Whether the same request may succeed later.
        details: What the code is about.
    """

    def __init__(self, code: Code, message: str, *, retryable: bool = False, **details: Any) -> None:
        self.failure = Failure(code=code, message=message, retryable=retryable, details=details)
        super().__init__(message)


class Operations:
    """The write API over one lake. Safe to use from several threads and processes at once.

    Args:
        lake: The lake: a local folder, which exists.
        environment: Says when compaction is recommended.

    Raises:
        ConfigError: The write API cannot keep tables there.
    """

    def __init__(self, lake: str, *, environment: Environment = Environment.DEVELOPMENT) -> None:
        if "://" in lake:
            raise ConfigError(f"{lake}: the write API keeps its tables in a local folder; set DATALAKE_LAKE to one")
        self._lake = str(Path(lake).absolute())
        self._environment = environment
        self._profile = SmallFilesProfile(RECOMMEND_EVERY[environment], MIN_FILES[environment], SMALL_FILE_BYTES)
        self._processes = SqlProcesses()
        self._does: dict[type, Callable[[Any], Answer]] = {
            CreateTable: self._create_table,
            Write: self._write,
            Query: self._query,
            Describe: self._describe,
            ListTables: self._list,
            Health: self._health,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes that wait for queries; the next query starts another."""
        self._processes.close()

    @classmethod
    def of(cls, settings: Settings) -> Operations:
        """The write API as an installation is set.

        Raises:
            ConfigError: The write API cannot keep tables in its lake.
        """
        return cls(settings.lake, environment=settings.env)

    def answer(
        self, request: bytes | str | Mapping[str, Any], *, tenant_id: str | None = None
    ) -> Answer | FailureAnswer:
        """Does one request.

        Args:
            request: A JSON document, or what it says.
            tenant_id: Who asks, where that is known: a request for another tenant is refused.
        """
        began, what, outcome = time.monotonic(), "a request", "ok"
        try:
            checked = _checked(request)
            what = f"{checked.operation} of {checked.tenant_id or 'no tenant'}"
            _check_tenant(checked, tenant_id)
            return self._does[type(checked)](checked)
        except Exception as error:  # noqa: BLE001  whatever happens, an answer leaves, and no trace
            failure = _failure(error)
            outcome = failure.code
            return FailureAnswer(error=failure)
        finally:
            logger.info("%s: %s, %.0f ms", what, outcome, (time.monotonic() - began) * 1000)

    def _tenant(self, tenant_id: str, *, may_create: bool = False) -> TenantTables:
        if not Path(self._lake).is_dir():
            reason = "there is no lake at the place that is set; mount it, or make one with 'datalake init'"
            raise RequestRefused(Code.UNAVAILABLE, reason, retryable=True)
        return TenantTables(self._lake, tenant_id, may_create=may_create)

    def _create_table(self, request: CreateTable) -> CreateTableAnswer:
        columns = [RecordColumn(each.name, each.type, each.required, each.doc) for each in request.columns]
        partitions = [RecordPartition(each.column, _transform(each)) for each in request.partitioning]
        with self._tenant(request.tenant_id, may_create=True) as tenant:
            try:
                made = tenant.create(request.namespace, request.table, columns=columns, partitions=partitions)
            except TableExists:
                if not request.if_not_exists:
                    raise
                return _created(tenant.load(request.namespace, request.table), created=False)
            return _created(made, created=True)

    def _write(self, request: Write) -> WriteAnswer:
        with self._tenant(request.tenant_id) as tenant:
            table = tenant.load(request.namespace, request.table)
            rows, problems, count = records_table(request.records, table.arrow_schema)
            if rows is None:
                message = f"{count} problems with the records; nothing was written"
                named = [{"index": each.index, "field": each.field, "problem": each.problem} for each in problems]
                raise RequestRefused(Code.INVALID_RECORDS, message, problems=named, problems_count=count)
            key = request.idempotency_key
            done = table.append(
                rows, key=None if key is None else WriteKey(key, _digest(request)), profile=self._profile
            )
        return WriteAnswer(
            records_written=done.rows,
            snapshot_id=done.snapshot_id,
            compaction_recommended=done.recommended,
            small_files_count=done.small_files,
        )

    def _query(self, request: Query) -> QueryAnswer:
        for last in (False, False, True):
            with self._tenant(request.tenant_id) as tenant:
                table = tenant.load(request.namespace, request.table)
                reading = table.reading(snapshot_id=request.snapshot_id, as_of=request.as_of)
            try:
                return self._answered(request, reading)
            except SqlFailed as error:
                code, retryable = _SQL_CODES[error.kind]
                if error.kind != "expired" or last:  # what is gone now was compacted: the table names other files
                    raise RequestRefused(code, error.reason, retryable=retryable) from error
        raise AssertionError

    def _answered(self, request: Query, reading: Reading) -> QueryAnswer:
        job = SqlJob(
            query=request.sql,
            table=request.table,
            schema=schema_to_json(reading.schema),
            files=reading.files,
            max_rows=request.max_rows,
            max_bytes=MAX_ANSWER_BYTES,
            timeout_s=request.timeout_s,
        )
        found = self._processes.answer(job)
        columns = [QueryColumn(name=name, type=kind) for name, kind in zip(found.columns, found.types, strict=True)]
        return QueryAnswer(
            columns=columns,
            rows=found.rows,
            row_count=len(found.rows),
            truncated=found.truncated,
            snapshot_id=reading.snapshot_id,
        )

    def _describe(self, request: Describe) -> DescribeAnswer:
        with self._tenant(request.tenant_id) as tenant:
            table = tenant.load(request.namespace, request.table)
            totals = table.totals(SMALL_FILE_BYTES)
            snapshots = table.snapshots(_SNAPSHOTS)
        return DescribeAnswer(
            columns=_columns(table),
            partitioning=_partitioning(table),
            snapshot_id=table.snapshot_id,
            records=totals.rows,
            files=totals.files,
            size_bytes=totals.size_bytes,
            small_files_count=totals.small_files,
            snapshots=[
                SnapshotFacts(snapshot_id=each.snapshot_id, at=each.at, operation=each.operation, records=each.rows)
                for each in snapshots
            ],
        )

    def _list(self, request: ListTables) -> ListAnswer:
        with self._tenant(request.tenant_id) as tenant:
            names = tenant.names(request.namespace)
        if request.after is not None:
            namespace, _, table = request.after.partition(".")
            names = [name for name in names if name > (namespace, table)]
        listed, more = names[: request.limit], len(names) > request.limit
        tables = [TableName(namespace=namespace, table=table) for namespace, table in listed]
        return ListAnswer(tables=tables, next=".".join(listed[-1]) if more else None)

    def _health(self, request: Health) -> HealthAnswer:
        with self._tenant(request.tenant_id or "nobody") as tenant:
            if request.tenant_id is not None:
                tenant.names()
        return HealthAnswer(version=version("datalake-assets"), environment=self._environment)


def _check_tenant(request: Request, tenant_id: str | None) -> None:
    if tenant_id is not None and request.tenant_id not in {tenant_id, None}:
        raise RequestRefused(Code.FORBIDDEN, "the request names another tenant than its token does")


def _transform(field: PartitionSpec) -> str:
    return field.transform if field.parameter is None else f"{field.transform}[{field.parameter}]"


def _created(table: RecordTable, *, created: bool) -> CreateTableAnswer:
    return CreateTableAnswer(created=created, columns=_columns(table), partitioning=_partitioning(table))


def _columns(table: RecordTable) -> list[ColumnSpec]:
    return [
        ColumnSpec.model_construct(name=each.name, type=each.type, required=each.required, doc=each.doc)
        for each in table.columns
    ]


def _partitioning(table: RecordTable) -> list[PartitionField]:
    fields = []
    for each in table.partitions:
        transform, _, parameter = each.transform.removesuffix("]").partition("[")
        number = int(parameter) if parameter else None
        fields.append(PartitionField(column=each.column, transform=transform, parameter=number))
    return fields


def _digest(request: Write) -> str:
    """Of the records, whatever the order of their fields."""
    text = orjson.dumps(request.records, option=orjson.OPT_SORT_KEYS, default=str)
    return hashlib.sha256(text).hexdigest()[:32]


def _checked(request: bytes | str | Mapping[str, Any]) -> Request:
    """The request, if it is one.

    Raises:
        RequestRefused: It is too large, too deep, no JSON, or not what any operation takes.
    """
    document = _parsed(request) if isinstance(request, bytes | str) else request
    _measure(document)
    try:
        return _REQUESTS.validate_python(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    named = [{"field": _place(each["loc"]), "problem": _reason(each)} for each in problems[:_PROBLEMS]]
    first = named[0]
    message = f"{first['field'] or 'the request'}: {first['problem']}"
    raise RequestRefused(Code.INVALID_REQUEST, message, problems=named, problems_count=len(problems))


def _parsed(request: bytes | str) -> Any:
    if len(request) > MAX_REQUEST_BYTES:
        raise _too_large()
    try:
        return orjson.loads(request)
    except ValueError:
        reason = "the request is not one JSON document in UTF-8 (numbers are finite, and nothing is nested too deeply)"
        raise RequestRefused(Code.INVALID_REQUEST, reason) from None


def _too_large() -> RequestRefused:
    message = f"the request is larger than {MAX_REQUEST_BYTES} bytes; write fewer records at a time"
    return RequestRefused(Code.LIMIT_EXCEEDED, message, limit_bytes=MAX_REQUEST_BYTES)


def _measure(document: Any) -> None:
    """Walks through a request once, whatever its shape.

    Raises:
        RequestRefused: It is too large, too deep, or has something in it that JSON has not.
    """
    left = MAX_REQUEST_BYTES
    stack: list[tuple[Any, int]] = [(document, 1)]
    while stack:
        value, depth = stack.pop()
        left -= len(value) + 1 if isinstance(value, str | bytes | list | tuple | Mapping) else 1
        if left < 0:
            raise _too_large()
        if depth > MAX_DEPTH:
            message = f"lists and objects lie in each other more than {MAX_DEPTH} deep"
            raise RequestRefused(Code.LIMIT_EXCEEDED, message, limit_depth=MAX_DEPTH)
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise RequestRefused(Code.INVALID_REQUEST, "the keys of objects are texts")
            stack += ((key, depth) for key in value)
            stack += ((each, depth + 1) for each in value.values())
        elif isinstance(value, list | tuple):
            stack += ((each, depth + 1) for each in value)
        elif not isinstance(value, _VALUES):
            raise RequestRefused(Code.INVALID_REQUEST, f"a value of Python's type {type(value).__name__} is not taken")


def _place(path: Sequence[int | str]) -> str:
    """Where a problem is, without the name of the operation, which pydantic begins with."""
    text = ".".join(map(str, path[1:])).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= _NAME_SHOWN else f"{text[:_NAME_SHOWN]}…"


def _reason(problem: Mapping[str, Any]) -> str:
    if problem["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        return f"'operation' is one of {', '.join(OPERATIONS)}"
    return problem_text(problem)


#: The names of the operations.
OPERATIONS = ("CREATE_TABLE", "WRITE", "QUERY", "DESCRIBE", "LIST", "HEALTH")


def _failure(error: Exception) -> Failure:
    """What is said of an error."""
    if isinstance(error, RequestRefused):
        return error.failure
    for kind, code, retryable in _CODES:
        if isinstance(error, kind):
            return Failure(code=code, message=str(error), retryable=retryable)
    reference = uuid.uuid4().hex
    known = isinstance(error, DatalakeError)
    logger.error("request failed, reference %s", reference, exc_info=error)
    code = Code.UNAVAILABLE if known else Code.INTERNAL
    message = "the lake cannot be used just now" if known else "an unexpected error"
    message += "; the server's log has the reason under this reference"
    return Failure(code=code, message=message, retryable=known, details={"reference": reference})


_SQL_CODES = {
    "refused": (Code.QUERY_REFUSED, False),
    "late": (Code.QUERY_TIMED_OUT, False),
    "large": (Code.LIMIT_EXCEEDED, False),
    "busy": (Code.UNAVAILABLE, True),
    "expired": (Code.CONFLICT, True),
}
_CODES: tuple[tuple[type[DatalakeError], Code, bool], ...] = (
    (TableNotFound, Code.TABLE_NOT_FOUND, False),
    (TableExists, Code.TABLE_EXISTS, False),
    (SnapshotNotFound, Code.SNAPSHOT_NOT_FOUND, False),
    (UnreadableTable, Code.TABLE_UNREADABLE, False),
    (KeyReused, Code.KEY_REUSED, False),
    (TooManyPartitions, Code.LIMIT_EXCEEDED, False),
    (CommitConflict, Code.CONFLICT, True),
    (AmbiguousWrite, Code.OUTCOME_UNKNOWN, False),
)
