"""Every request of the write API goes through here: measured, checked to the letter, done, and answered with a model.

Nothing but an answer leaves: what fails for a reason that the caller can act on says so by its code, and whatever else
happens is logged here with its trace, and answered with a reference to that line of the log alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from datalake_assets.core.compaction.plan import MIN_FILES
from datalake_assets.core.schema import schema_to_json
from datalake_assets.errors import AmbiguousWrite, CommitConflict, DatalakeError
from datalake_assets.lake.iceberg.iceberg_compaction import IcebergCompaction
from datalake_assets.lake.iceberg.iceberg_expiry import Expiry
from datalake_assets.lake.iceberg.record_appends import (
    KeyReused,
    PartitionTooLong,
    SmallFilesProfile,
    TooManyPartitions,
    WriteKey,
)
from datalake_assets.lake.iceberg.record_tables import (
    NoSuchPartitionField,
    Reading,
    RecordColumn,
    RecordPartition,
    RecordTable,
    SnapshotNotFound,
    UnreadableTable,
)
from datalake_assets.lake.iceberg.tenant_tables import NameTooLong, TableExists, TableNotFound, Tenants, TenantTables
from datalake_assets.lake.sql_jobs import SqlFailed, SqlJob
from datalake_assets.lake.sql_process import SqlProcesses
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access
from datalake_assets.operations.admission import RequestRefused, checked_request
from datalake_assets.operations.answers import (
    Answer,
    Code,
    CompactAnswer,
    CompactStats,
    CreateTableAnswer,
    DescribeAnswer,
    Failure,
    FailureAnswer,
    HealthAnswer,
    ListAnswer,
    PartitionField,
    QueryAnswer,
    QueryColumn,
    SnapshotFacts,
    TableName,
    WriteAnswer,
)
from datalake_assets.operations.requests import (
    ColumnSpec,
    Compact,
    CreateTable,
    Describe,
    Health,
    ListTables,
    PartitionSpec,
    Query,
    Request,
    Write,
)
from datalake_assets.operations.validation import records_table
from datalake_assets.policies import MIB
from datalake_assets.settings import Environment, Settings

__all__ = ["Operations"]

logger = logging.getLogger(__name__)

#: Files below this size are small.
SMALL_FILE_BYTES = 64 * MIB
#: At every so many writes of a table the answer says whether to compact it.
RECOMMEND_EVERY = {Environment.DEVELOPMENT: 5, Environment.STAGING: 75, Environment.PRODUCTION: 100}
#: Of the rows of an answer, as JSON; AWS Lambda sends no answer beyond 6 MB.
MAX_ANSWER_BYTES = 5 * 1024 * 1024
#: Age of files that no commit names, and no commit under way can name any more.
ORPHAN_AGE = timedelta(days=3)
#: Compactions at the same time.
COMPACTIONS = 2
#: Snapshots that DESCRIBE names.
_SNAPSHOTS = 20


class Operations:
    """The write API over one lake. Safe to use from several threads and processes at once.

    Args:
        lake: The lake: a local folder, which exists; or in S3, with the catalog that has its Iceberg tables.
        environment: Says when compaction is recommended.

    Raises:
        ConfigError: The write API cannot keep tables there.
    """

    def __init__(self, lake: str | Store, *, environment: Environment = Environment.DEVELOPMENT) -> None:
        given = open_store(lake) if isinstance(lake, str) else lake
        self._tenants = Tenants(given if "://" in given.uri else open_store(str(Path(given.uri).absolute())))
        self._environment = environment
        self._profile = SmallFilesProfile(RECOMMEND_EVERY[environment], MIN_FILES[environment], SMALL_FILE_BYTES)
        self._processes = SqlProcesses()
        self._compacting = threading.BoundedSemaphore(COMPACTIONS)
        self._does: dict[type, Callable[[Any], Answer]] = {
            CreateTable: self._create_table,
            Write: self._write,
            Query: self._query,
            Compact: self._compact,
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
        s3, catalog = S3Access(endpoint=settings.s3_endpoint), CatalogAccess.of(settings)
        return cls(open_store(settings.lake, s3=s3, catalog=catalog), environment=settings.env)

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
            checked = checked_request(request)
            what = f"{checked.operation} of {checked.tenant_id or 'no tenant'}"
            _check_tenant(checked, tenant_id)
            return self._does[type(checked)](checked)
        except Exception as error:  # noqa: BLE001  whatever happens, an answer leaves, and no trace
            failure = _failure(error)
            outcome = failure.code
            return FailureAnswer(error=failure)
        finally:
            logger.info("%s: %s, %.0f ms", what, outcome, (time.monotonic() - began) * 1000)

    def _tenant(self, tenant_id: str, *, may_create: bool = False) -> AbstractContextManager[TenantTables]:
        if self._tenants.is_missing:
            reason = "there is no lake at the place that is set; mount it, or make one with 'datalake init'"
            raise RequestRefused(Code.UNAVAILABLE, reason, retryable=True)
        return self._tenants.tables_of(tenant_id, may_create=may_create)

    def _create_table(self, request: CreateTable) -> CreateTableAnswer:
        columns = [RecordColumn(each.name, each.type, each.required, each.doc) for each in request.columns]
        partitions = [RecordPartition(each.column, _transform(each), each.field_name) for each in request.partitioning]
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
            rows, problems, count = records_table(request.records, table.arrow_schema, table.write_defaults)
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
            sizes=reading.sizes,
            rows=reading.rows,
        )
        found = self._processes.answer(job, reading.open_file)
        columns = [QueryColumn(name=name, type=kind) for name, kind in zip(found.columns, found.types, strict=True)]
        return QueryAnswer(
            columns=columns,
            rows=found.rows,
            row_count=len(found.rows),
            truncated=found.truncated,
            snapshot_id=reading.snapshot_id,
        )

    def _compact(self, request: Compact) -> CompactAnswer:
        began, now = time.monotonic(), datetime.now(UTC)
        with self._turn(), self._tenant(request.tenant_id) as tenant:
            table = tenant.load(request.namespace, request.table)
            enough = request.force or table.totals(SMALL_FILE_BYTES).mergeable_files >= self._profile.at_least
            done = table.compact(
                now=now,
                target_bytes=request.target_file_size_mb * MIB,
                small_below_bytes=SMALL_FILE_BYTES,
                max_files=request.max_files if enough else 0,
                only=request.partition_filter,
            )
            expiry = Expiry()
            if request.expire_snapshots:
                expiry = table.expire(older_than=now - timedelta(hours=request.snapshot_retention_hours), now=now)
        reason = None
        if not done.files_compacted:
            few = f"fewer than {self._profile.at_least} small files can be merged; 'force' merges them"
            reason = "there is nothing to merge" if enough else few
        return CompactAnswer(
            compacted=bool(done.files_compacted),
            reason=reason,
            snapshot_id=table.snapshot_id,
            failed=len(done.failed),
            stats=_stats(done, expiry, time.monotonic() - began),
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One of the few compactions that may run at a time: each takes memory, and cores."""
        if not self._compacting.acquire(blocking=False):
            raise RequestRefused(Code.UNAVAILABLE, "enough compactions run just now; ask again later", retryable=True)
        try:
            yield
        finally:
            self._compacting.release()

    def compact_all(self, *, may_go_on: Callable[[], bool] = lambda: True) -> dict[str, Any]:
        """Compacts the tables of all tenants that need it, and expires snapshots of more than a week.

        Files that no commit names are deleted after some days. For a schedule; not for tenants to ask.

        Args:
            may_go_on: Asked before each table.

        Returns:
            How many tables there were and were compacted, how many files were orphans, which tables, or tenants, failed
            with which code, and how many were left for the next time.
        """
        compacted, orphans, left = 0, 0, 0
        names, failed = self._names_of_all()
        for tenant_id, namespace, table in names:
            if not may_go_on():
                left += 1
                continue
            named = {"tenant_id": tenant_id, "namespace": namespace, "table": table}
            answer = self.answer({"operation": "COMPACT", "expire_snapshots": True, **named})
            compacted += isinstance(answer, CompactAnswer) and answer.compacted
            code = answer.error.code if isinstance(answer, FailureAnswer) else None
            if isinstance(answer, CompactAnswer) and answer.failed:  # the others of its files were merged
                code = Code.TABLE_UNREADABLE
            try:
                orphans += 0 if isinstance(answer, FailureAnswer) else self._remove_orphans(tenant_id, namespace, table)
            except Exception as error:  # noqa: BLE001  the tables of others are compacted all the same
                code = _failure(error).code
            if code is not None:
                failed.append({**named, "code": str(code)})
        return {"tables": len(names), "compacted": compacted, "orphans": orphans, "failed": failed, "left": left}

    def _remove_orphans(self, tenant_id: str, namespace: str, table: str) -> int:
        now = datetime.now(UTC)
        with self._tenant(tenant_id) as tenant:
            return tenant.load(namespace, table).remove_orphans(older_than=now - ORPHAN_AGE, now=now)

    def _names_of_all(self) -> tuple[list[tuple[str, str, str]], list[dict[str, str]]]:
        """Tenant, namespace and name of each table; and the tenants whose catalogs cannot be read, with the codes."""
        names, failed = [], []
        for tenant_id in self._tenants.names():
            try:
                with self._tenant(tenant_id) as tenant:
                    names += [(tenant_id, *name) for name in tenant.names()]
            except Exception as error:  # noqa: BLE001  likewise
                failed.append({"tenant_id": tenant_id, "code": str(_failure(error).code)})
        return names, failed

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
            else:
                self._tenants.ping()
        return HealthAnswer(version=version("datalake-assets"), environment=self._environment)


def _check_tenant(request: Request, tenant_id: str | None) -> None:
    if tenant_id is not None and request.tenant_id not in {tenant_id, None}:
        raise RequestRefused(Code.FORBIDDEN, "the request names another tenant than its token does")


def _stats(done: IcebergCompaction, expiry: Expiry, seconds: float) -> CompactStats:
    return CompactStats(
        files_before=done.files_before,
        files_after=done.files_after,
        files_compacted=done.files_compacted,
        files_written=done.files_written,
        files_removed=len(expiry.files),
        bytes_before=done.bytes_before,
        bytes_after=done.bytes_after,
        bytes_saved=done.bytes_read - done.bytes_written,
        snapshots_expired=len(expiry.snapshots),
        compaction_time_ms=round(seconds * 1000),
        small_files_remaining=done.small_files_remaining,
    )


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
        fields.append(PartitionField(name=each.name, column=each.column, transform=transform, parameter=number))
    return fields


def _digest(request: Write) -> str:
    """Of the records, whatever the order of their fields."""
    text = json.dumps(request.records, sort_keys=True, default=str)  # orjson has no integers beyond 64 bits
    return hashlib.sha256(text.encode()).hexdigest()[:32]


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
    "unreachable": (Code.UNAVAILABLE, True),
}
_CODES: tuple[tuple[type[DatalakeError], Code, bool], ...] = (
    (TableNotFound, Code.TABLE_NOT_FOUND, False),
    (TableExists, Code.TABLE_EXISTS, False),
    (SnapshotNotFound, Code.SNAPSHOT_NOT_FOUND, False),
    (UnreadableTable, Code.TABLE_UNREADABLE, False),
    (KeyReused, Code.KEY_REUSED, False),
    (NoSuchPartitionField, Code.INVALID_REQUEST, False),
    (TooManyPartitions, Code.LIMIT_EXCEEDED, False),
    (PartitionTooLong, Code.LIMIT_EXCEEDED, False),
    (NameTooLong, Code.LIMIT_EXCEEDED, False),
    (CommitConflict, Code.CONFLICT, True),
    (AmbiguousWrite, Code.OUTCOME_UNKNOWN, False),
)
