"""AWS Glue's data catalog, in which Athena, EMR and Redshift Spectrum find feeds; views are made by Athena.

Every change is a request that Glue takes or refuses as a whole: a table changes its columns and its address at once.
Partitions are entered and taken out in requests of many, of which some can fail; these are looked at one by one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self, TypeVar

from datalake_assets.catalog.base import OWNER, Known, Outcome, State
from datalake_assets.catalog.entries import Entry
from datalake_assets.catalog.views import View, translated
from datalake_assets.errors import ConfigError, LakeUnavailable, TransientStoreError
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.table import Logged
from datalake_assets.network import aws_client

__all__ = ["GlueCatalog", "GlueSettings"]

#: Glue limits: partitions of one BatchCreatePartition and BatchUpdatePartition, of one BatchDeletePartition.
_CREATED_AT_ONCE, _DELETED_AT_ONCE = 100, 25
#: Athena limit: seconds that a statement may wait and run by default is 30 minutes; a view takes one or two.
_STATEMENT_S = 300.0
_POLL_S = (0.2, 2.0)
#: Codes of requests that are worth repeating, beyond those that boto3 repeats by itself.
_BUSY = frozenset(
    {
        *("ConcurrentModificationException", "OperationTimeoutException", "InternalServiceException"),
        *("ThrottlingException", "TooManyRequestsException", "InternalServerException"),
    }
)
_SERVER_ERROR = 500
_FORMAT = {
    "InputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat",
    "OutputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat",
    "SerdeInfo": {
        "SerializationLibrary": "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe",
        "Parameters": {"serialization.format": "1"},
    },
}
_FEED, _DIGEST, _VIEW = "datalake.feed", "datalake.digest", "datalake.view"
#: What partition projection is told by; parameters of ours, so that old ones are taken out.
_PROJECTION = "projection."
_TEMPLATE = "storage.location.template"
#: Parameters of ours beside those that begin with our names.
_OURS = frozenset({_TEMPLATE, "table_type", "metadata_location", "spark.sql.sources.provider"})
#: Of a path's column: its values, and how many digits they have (Athena documentation, "Partition projection").
_RANGES = {"month": ("1,12", 2), "day": ("1,31", 2), "hour": ("0,23", 2)}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GlueSettings:
    """Where feeds are entered.

    Attributes:
        database: The database.
        workgroup: Athena's, for views.
        output: Where Athena writes what statements answer; empty: where the workgroup says.
        is_projected: Whether Athena makes the partitions of streams from their names by itself, and none is entered.
    """

    database: str
    workgroup: str = "primary"
    output: str = ""
    is_projected: bool = False


class GlueCatalog:
    """One database of Glue's; implements `Catalog`.

    Args:
        settings: Which.
        lake: The lake's address.

    Raises:
        ConfigError: The lake is not in S3, where engines that ask Glue look for files.
    """

    kind = "glue"

    def __init__(self, settings: GlueSettings, *, lake: str) -> None:
        if not lake.startswith("s3://"):
            raise ConfigError("AWS Glue is the catalog of lakes in S3: Athena reads no local folder")
        self._settings, self._lake = settings, lake
        self._database = settings.database
        self._glue = aws_client("glue")
        self._athena: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._glue.close()
        if self._athena is not None:
            self._athena.close()

    def has_database(self) -> bool:
        """Implements `Catalog`."""
        return self._found(lambda: self._glue.get_database(Name=self._database)) is not None

    def create_database(self) -> None:
        """Implements `Catalog`."""
        told = {"Name": self._database, "Parameters": {OWNER: self._lake}}
        with self._translated(), _unless("AlreadyExistsException"):
            self._glue.create_database(DatabaseInput=told)

    def known(self) -> dict[str, Known]:
        """Implements `Catalog`."""
        with self._translated():
            pages = self._glue.get_paginator("get_tables").paginate(DatabaseName=self._database)
            tables = [each for page in pages for each in page["TableList"]]
        return {each["Name"].lower(): _known(each) for each in tables}

    def why_not(self, entry: Entry) -> str:
        """Implements `Catalog`."""
        if entry.logged is not None and entry.logged.catalog == self.kind:
            return "Glue is the catalog of its Iceberg table, which is there already, and no copy of it is needed"
        if entry.logged is not None and not entry.logged.location.startswith(("s3://", "s3a://", "s3n://")):
            return "its table lies outside of S3, where engines that ask Glue look"
        return ""

    def needs(self, entry: Entry) -> bool:
        """Implements `Catalog`."""
        table = self._table(entry.name)
        return table is None or _is_other(table, self._told(entry)) or any(self._differences(entry))

    def create(self, entry: Entry) -> Outcome:
        """Implements `Catalog`."""
        try:
            with self._translated():
                self._glue.create_table(DatabaseName=self._database, TableInput=self._told(entry))
        except ConfigError as error:
            if _code(error.__cause__) != "AlreadyExistsException":
                raise
            return self.update(entry)
        return self._with_partitions(entry, "created")

    def update(self, entry: Entry) -> Outcome:
        """Implements `Catalog`."""
        table, told = self._table(entry.name), self._told(entry)
        if table is None:
            return self.create(entry)
        if _known(table).owner != self._lake:
            raise ConfigError(f"table {entry.name!r} of {self._database} is not this lake's; it is left alone")
        if [each["Name"] for each in table.get("PartitionKeys", ())] != list(entry.partition_columns):
            self._delete(entry.name)  # Glue changes no partition keys; data stay where they are
            return self.create(entry)
        if not _is_other(table, told):
            return self._with_partitions(entry, "current")
        kept = {name: value for name, value in table.get("Parameters", {}).items() if not _is_ours(name)}
        told["Parameters"] = {**kept, **told["Parameters"]}
        with self._translated():
            self._glue.update_table(
                DatabaseName=self._database, TableInput=told, **_version(table)
            )  # conditional: one of two syncs is refused
        return self._with_partitions(entry, "updated")

    def _with_partitions(self, entry: Entry, state: State) -> Outcome:
        added, gone, moved = self._differences(entry)
        inputs = {values: self._partition(entry, values) for values in (*added, *moved)}
        for some in _pieces(added, _CREATED_AT_ONCE):
            listed = [inputs[values] for values in some]
            self._done(self._glue.batch_create_partition, entry, "AlreadyExistsException", PartitionInputList=listed)
        for some in _pieces(moved, _CREATED_AT_ONCE):
            entries = [{"PartitionValueList": list(moved[each]), "PartitionInput": inputs[each]} for each in some]
            self._done(self._glue.batch_update_partition, entry, "EntityNotFoundException", Entries=entries)
        for some in _pieces(gone, _DELETED_AT_ONCE):
            listed = [{"Values": list(values)} for values in some]
            self._done(self._glue.batch_delete_partition, entry, "EntityNotFoundException", PartitionsToDelete=listed)
        changed: State = state if state != "current" or not (added or gone or moved) else "updated"
        left = entry.unreadable
        detail = f"left out: {', '.join(left)}, of types or names that Hive has not" if left else ""
        return Outcome(self.kind, entry.name, changed, len(added), len(gone), len(moved), detail)

    def _done(self, request: Callable[..., Any], entry: Entry, is_fine: str, **told: Any) -> None:
        """Sends a request of many, and raises what became of the first of those that failed; a repetition mends all."""
        with self._translated():
            answer = request(DatabaseName=self._database, TableName=entry.name, **told)
        for each in answer.get("Errors", ()):
            error = each.get("ErrorDetail", {})
            if error.get("ErrorCode") != is_fine:
                reason = f"{error.get('ErrorCode')}: {error.get('ErrorMessage')}"
                raise TransientStoreError(f"Glue table {self._database}.{entry.name}", f"partitions: {reason}")

    def _differences(
        self, entry: Entry
    ) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]], dict[tuple[str, ...], tuple[str, ...]]]:
        """Partitions to enter, to take out, and to give another address, with their values as Glue has them.

        Values that are the same number are the same partition, however others have written it.
        """
        wanted = {} if self._projects(entry) else entry.partitions
        there = dict(self._partitions(entry)) if entry.partition_columns else {}
        by_number = {_numbers(values): values for values in there}
        added, moved = [], {}
        for values, address in wanted.items():
            known = by_number.pop(_numbers(values), None)
            if known is None:
                added.append(values)
            elif there[known].rstrip("/") != address.rstrip("/"):
                moved[values] = known
        return added, list(by_number.values()), moved

    def _partitions(self, entry: Entry) -> Iterator[tuple[tuple[str, ...], str]]:
        pages = self._glue.get_paginator("get_partitions").paginate(
            DatabaseName=self._database, TableName=entry.name, ExcludeColumnSchema=True
        )
        with self._translated():
            for page in pages:
                for each in page["Partitions"]:
                    yield tuple(each["Values"]), each["StorageDescriptor"]["Location"]

    def _partition(self, entry: Entry, values: tuple[str, ...]) -> dict[str, Any]:
        return {"Values": list(values), "StorageDescriptor": _storage(entry, entry.partitions[values])}

    def _projects(self, entry: Entry) -> bool:
        is_stream = entry.feed.kind is FeedKind.STREAM and bool(entry.partitions)
        return self._settings.is_projected and is_stream

    def _told(self, entry: Entry) -> dict[str, Any]:
        parameters = {
            "EXTERNAL": "TRUE",
            "classification": "parquet",
            OWNER: self._lake,
            _FEED: entry.feed.path,
            **(_projection(entry) if self._projects(entry) else {}),
        }
        if entry.version:
            parameters["datalake.version"] = entry.version
        if entry.logged is not None:
            parameters.update(_parameters_of(entry.logged))
        told = {
            "Name": entry.name,
            "Description": entry.feed.description[:2048],  # Glue limit
            "TableType": "EXTERNAL_TABLE",
            "Parameters": parameters,
            "PartitionKeys": [{"Name": name, "Type": "string"} for name in entry.partition_columns],
            "StorageDescriptor": _storage(entry, entry.location),
        }
        if entry.logged is not None:
            told["StorageDescriptor"] = _logged_storage(entry, entry.logged)
        parameters[_DIGEST] = hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()
        return told

    def put_view(self, view: View) -> Outcome:
        """Implements `Catalog`: by Athena, unless the view that is there is marked as this one."""
        feeds = [name for name, each in self.known().items() if each.owner == self._lake and not each.is_view]
        text = translated(view, dialect="athena", database=self._database, feeds=feeds)
        mark = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        there = self._table(view.name)
        if there is not None and there.get("Parameters", {}).get(_VIEW) == mark:
            return Outcome(self.kind, view.name, "current")
        self._run(f'CREATE OR REPLACE VIEW "{view.name}" AS {text}')
        made = self._table(view.name)
        if made is not None:
            self._mark(made, {OWNER: self._lake, _VIEW: mark})
        return Outcome(self.kind, view.name, "updated" if there is not None else "created")

    def _mark(self, table: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
        """Adds parameters to a table that Athena has made; all else stays."""
        names = (
            *("Name", "Description", "Owner", "Retention", "StorageDescriptor", "PartitionKeys", "ViewOriginalText"),
            *("ViewExpandedText", "TableType"),
        )
        told = {name: table[name] for name in names if name in table}
        told["Parameters"] = {**table.get("Parameters", {}), **parameters}
        with self._translated():
            self._glue.update_table(DatabaseName=self._database, TableInput=told, **_version(table))

    def _run(self, statement: str) -> None:
        """Has Athena run a statement, and waits for its end.

        Raises:
            ConfigError: Athena refuses it.
            TransientStoreError: It takes too long.
        """
        if self._athena is None:
            self._athena = aws_client("athena")
        told: dict[str, Any] = {
            "QueryString": statement,
            "QueryExecutionContext": {"Database": self._database},
            "WorkGroup": self._settings.workgroup,
        }
        if self._settings.output:
            told["ResultConfiguration"] = {"OutputLocation": self._settings.output}
        with self._translated("Athena"):
            query = self._athena.start_query_execution(**told)["QueryExecutionId"]
        until, wait = time.monotonic() + _STATEMENT_S, _POLL_S[0]
        while time.monotonic() < until:
            with self._translated("Athena"):
                status = self._athena.get_query_execution(QueryExecutionId=query)["QueryExecution"]["Status"]
            if status["State"] == "SUCCEEDED":
                return
            if status["State"] in {"FAILED", "CANCELLED"}:
                raise ConfigError(f"Athena refused {statement!r}: {status.get('StateChangeReason', status['State'])}")
            time.sleep(wait)
            wait = min(2 * wait, _POLL_S[1])
        raise TransientStoreError("Athena", f"statement {query} was not done after {_STATEMENT_S:.0f} s")

    def drop(self, known: Known) -> None:
        """Implements `Catalog`."""
        self._delete(known.name)

    def _delete(self, name: str) -> None:
        with self._translated(), _unless("EntityNotFoundException"):
            self._glue.delete_table(DatabaseName=self._database, Name=name)

    def _table(self, name: str) -> dict[str, Any] | None:
        found = self._found(lambda: self._glue.get_table(DatabaseName=self._database, Name=name))
        return found["Table"] if found is not None else None

    def _found(self, request: Callable[[], T]) -> T | None:
        try:
            with self._translated():
                return request()
        except ConfigError as error:
            if _code(error.__cause__) == "EntityNotFoundException":
                return None
            raise

    @contextmanager
    def _translated(self, service: str = "Glue") -> Iterator[None]:
        """Gives failures of AWS our names."""
        from botocore import exceptions  # noqa: PLC0415  loaded with the client

        where = f"{service} database {self._database!r}"
        try:
            yield
        except exceptions.ClientError as error:
            code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            message = " ".join(error.response.get("Error", {}).get("Message", "").split())
            if code in _BUSY or status >= _SERVER_ERROR:
                raise TransientStoreError(where, f"{code}: {message}") from error
            if "AccessDenied" in code or code in {"UnrecognizedClientException", "ExpiredTokenException"}:
                cure = "give its credentials access to the catalog, then run it again"
                raise LakeUnavailable(where, f"{code}: {message}", cure=cure) from error
            raise ConfigError(f"{where}: {code}: {message}") from error
        except exceptions.NoCredentialsError as error:
            cure = "set AWS_ACCESS_KEY_ID or AWS_PROFILE"
            raise LakeUnavailable(where, "no AWS credentials were found", cure=cure) from error
        except exceptions.BotoCoreError as error:
            raise TransientStoreError(where, f"{type(error).__name__}: {error}") from error


@contextmanager
def _unless(code: str) -> Iterator[None]:
    """Passes over one refusal, which says that another process has done the same."""
    from botocore import exceptions  # noqa: PLC0415  loaded with the client

    try:
        yield
    except exceptions.ClientError as error:
        if _code(error) != code:
            raise


def _code(error: BaseException | None) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _known(table: Mapping[str, Any]) -> Known:
    owner = table.get("Parameters", {}).get(OWNER, "")
    return Known(table["Name"], owner, is_view=table.get("TableType") == "VIRTUAL_VIEW")


def _is_ours(parameter: str) -> bool:
    return parameter.startswith((_PROJECTION, "datalake.")) or parameter in _OURS


def _is_other(table: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether a table is not as it is to be; by what is there, not by what we remember to have written."""
    storage, wanted = table["StorageDescriptor"], told["StorageDescriptor"]
    columns = [{name: each.get(name, "") for name in ("Name", "Type", "Comment")} for each in storage["Columns"]]
    ours = {name: value for name, value in table.get("Parameters", {}).items() if _is_ours(name)}
    return (
        columns != wanted["Columns"]
        or storage["Location"] != wanted["Location"]
        or ours != {name: value for name, value in told["Parameters"].items() if _is_ours(name)}
    )


def _version(table: Mapping[str, Any]) -> dict[str, str]:
    return {"VersionId": table["VersionId"]} if table.get("VersionId") else {}


def _storage(entry: Entry, address: str) -> dict[str, Any]:
    # Glue keeps names in lower case
    columns = [
        {"Name": each.name.lower(), "Type": each.hive_type, "Comment": each.comment[:255]}  # Glue limit
        for each in entry.hive_columns
    ]
    return {"Columns": columns, "Location": f"{address}/", "Compressed": True, **_FORMAT}


def _parameters_of(logged: Logged) -> dict[str, str]:
    """What says of which format a table is: to Athena and Redshift ``table_type``, to Spark its provider.

    Iceberg's Glue catalog, and Athena, find the table by ``metadata_location``; a Delta table by its address.
    """
    if logged.format == "iceberg":
        return {"table_type": "ICEBERG", "metadata_location": logged.metadata, "classification": "iceberg"}
    return {"table_type": "DELTA", "spark.sql.sources.provider": "delta", "classification": "delta"}


def _logged_storage(entry: Entry, logged: Logged) -> dict[str, Any]:
    """Where a table with a log lies; engines take its columns from the log, and people from here."""
    storage: dict[str, Any] = {"Columns": _storage(entry, logged.location)["Columns"]}
    if logged.format == "iceberg":
        return {**storage, "Location": logged.location}
    serde = {
        "SerializationLibrary": "org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe",
        "Parameters": {"serialization.format": "1", "path": f"{logged.location}/"},
    }
    return {
        **storage,
        "Location": f"{logged.location}/",
        "InputFormat": "org.apache.hadoop.mapred.SequenceFileInputFormat",
        "OutputFormat": "org.apache.hadoop.hive.ql.io.HiveSequenceFileOutputFormat",
        "SerdeInfo": serde,
    }


def _projection(entry: Entry) -> dict[str, str]:
    """How Athena makes the partitions itself: of each year that there is one of, and of the next."""
    years = [int(values[0]) for values in entry.partitions]
    year = entry.partition_columns[0]
    told = {"projection.enabled": "true", f"projection.{year}.type": "integer"}
    told[f"projection.{year}.range"] = f"{min(years)},{max(years) + 1}"
    for name in entry.partition_columns[1:]:
        span, digits = _RANGES[name.removeprefix(entry.feed.partition_prefix)]
        told[f"projection.{name}.type"] = "integer"
        told[f"projection.{name}.range"], told[f"projection.{name}.digits"] = span, str(digits)
    parts = "/".join(f"{name}=${{{name}}}" for name in entry.partition_columns)
    return {**told, _TEMPLATE: f"{entry.location}/{parts}/"}


def _numbers(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(int(value)) if value.isascii() and value.isdigit() else value for value in values)


def _pieces(listed: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(listed)
    return iter(lambda: list(islice(left, size)), [])
