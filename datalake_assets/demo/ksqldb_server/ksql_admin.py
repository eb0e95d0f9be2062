"""What the server says about itself and its objects: the answers of ``/ksql``, ``/info`` and their like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datalake_assets.demo.ksqldb_server.generator import Generator
from datalake_assets.demo.ksqldb_server.ksql_ast import Describe, ListSources, Select, ShowProperties, Statement
from datalake_assets.demo.ksqldb_server.ksql_catalog import Catalog, SourceColumn, SourceObject
from datalake_assets.demo.ksqldb_server.ksql_errors import KsqlError, bad_statement
from datalake_assets.demo.ksqldb_server.ksql_types import SqlType

__all__ = ["CLUSTER_ID", "HEALTH", "INFO", "SERVICE_ID", "VERSION", "entity", "field_schema"]

VERSION = "0.29.0"
CLUSTER_ID = "datalake-demo"
SERVICE_ID = "datalake_demo_"
INFO = {
    "KsqlServerInfo": {
        "version": VERSION,
        "kafkaClusterId": CLUSTER_ID,
        "ksqlServiceId": SERVICE_ID,
        "serverStatus": "RUNNING",
    }
}
HEALTH = {
    "isHealthy": True,
    "details": {"metastore": {"isHealthy": True}, "kafka": {"isHealthy": True}, "commandRunner": {"isHealthy": True}},
    "serverState": "READY",
}
_PROPERTIES = {
    "ksql.service.id": SERVICE_ID,
    "ksql.query.pull.table.scan.enabled": "true",
    "ksql.query.pull.stream.enabled": "true",
    "ksql.endpoint.migrate.query": "true",
    "ksql.max.push.queries": "100",
    "ksql.idle.connection.timeout.seconds": "86400",
    "ksql.streams.auto.offset.reset": "latest",
}
_NOT_EDITABLE = frozenset({"ksql.service.id", "ksql.max.push.queries", "ksql.idle.connection.timeout.seconds"})
_QUERY_ENDPOINT = (
    "The following statement types should be issued to the websocket endpoint '/query':\n\t* PRINT\n\t* SELECT"
)


def entity(statement: Statement, catalog: Catalog, generator: Generator) -> dict[str, Any]:
    """The answer to one statement sent to ``/ksql``.

    Raises:
        KsqlError: If the statement is refused.
    """
    if isinstance(statement, Select):
        raise KsqlError(400, 40002, _QUERY_ENDPOINT, statement=statement.text)
    if isinstance(statement, ShowProperties):
        return _properties(statement)
    if isinstance(statement, Describe):
        return _description(statement, catalog, generator)
    return _listing(statement, catalog, generator)


def _listing(statement: ListSources, catalog: Catalog, generator: Generator) -> dict[str, Any]:
    objects = catalog.all(tables=statement.tables)
    if statement.extended:
        described = [_described(found, generator, extended=True) for found in objects]
        kind: dict[str, Any] = {"@type": "source_descriptions", "statementText": statement.text}
        return kind | {"sourceDescriptions": described, "warnings": []}
    kind_name = "tables" if statement.tables else "streams"
    listed = [
        {
            "type": "TABLE" if found.is_table else "STREAM",
            "name": found.name,
            "topic": found.topic,
            "keyFormat": "KAFKA",
            "valueFormat": "JSON",
            "isWindowed": False,
        }
        for found in objects
    ]
    return {"@type": kind_name, "statementText": statement.text, kind_name: listed, "warnings": []}


def _description(statement: Describe, catalog: Catalog, generator: Generator) -> dict[str, Any]:
    found = catalog.find(statement.source)
    if found is None:
        raise bad_statement(f"Could not find STREAM/TABLE '{statement.source}' in the Metastore", statement.text)
    return {
        "@type": "sourceDescription",
        "statementText": statement.text,
        "sourceDescription": _described(found, generator, extended=statement.extended),
        "warnings": [],
    }


def _described(found: SourceObject, generator: Generator, *, extended: bool) -> dict[str, Any]:
    return {
        "name": found.name,
        "windowType": None,
        "readQueries": [],
        "writeQueries": _writers(found),
        "fields": [_field(column) for column in found.columns],
        "type": "TABLE" if found.is_table else "STREAM",
        "timestamp": "",
        "statistics": "",
        "errorStats": "",
        "extended": extended,
        "keyFormat": "KAFKA",
        "valueFormat": "JSON",
        "topic": found.topic,
        "partitions": generator.config.partitions,
        "replication": 1,
        "statement": found.statement,
        "queryOffsetSummaries": _offsets(found, generator) if extended else [],
        "sourceConstraints": [],
        "clusterStatistics": [],
        "clusterErrorStats": [],
    }


def _query_id(found: SourceObject) -> str:
    return f"C{'T' if found.is_table else 'S'}AS_{found.name}_1"


def _writers(found: SourceObject) -> list[dict[str, Any]]:
    if not found.derived_from:
        return []
    return [
        {
            "queryString": found.statement,
            "sinks": [found.name],
            "sinkKafkaTopics": [found.topic],
            "id": _query_id(found),
            "statusCount": {"RUNNING": 1},
            "queryType": "PERSISTENT",
            "state": "RUNNING",
        }
    ]


def _offsets(found: SourceObject, generator: Generator) -> list[dict[str, Any]]:
    """Where the query that writes the object got to in its input topic: it is never behind."""
    if not found.derived_from:
        return []
    topic = found.derived_from if found.derived_from == "TRANSACTION_FLATTENED" else found.derived_from.lower()
    offsets = [
        {"partition": partition, "logStartOffset": start, "logEndOffset": end, "consumerOffset": end}
        for partition, (start, end) in generator.offsets().items()
    ]
    summary = {"kafkaTopic": topic, "offsets": offsets}
    group = f"_confluent-ksql-{SERVICE_ID}query_{_query_id(found)}"
    return [{"groupId": group, "topicSummaries": [summary]}]


def _field(column: SourceColumn) -> dict[str, Any]:
    field: dict[str, Any] = {"name": column.name, "schema": field_schema(column.kind)}
    return field | ({"type": "KEY"} if column.key else {})


def field_schema(kind: SqlType) -> dict[str, Any]:
    """A type as DESCRIBE reports it; a MAP's key type is not reported."""
    fields = [{"name": name, "schema": field_schema(inner)} for name, inner in kind.fields] or None
    member = None if kind.element is None else field_schema(kind.element)
    schema: dict[str, Any] = {"type": kind.base, "fields": fields, "memberSchema": member}
    if kind.base == "DECIMAL":
        schema["parameters"] = {"precision": kind.precision, "scale": kind.scale}
    return schema


def _properties(statement: ShowProperties) -> dict[str, Any]:
    properties: list[Mapping[str, Any]] = [
        {"name": name, "scope": "KSQL", "value": value, "editable": name not in _NOT_EDITABLE, "level": "SERVER"}
        for name, value in _PROPERTIES.items()
    ]
    return {
        "@type": "properties",
        "statementText": statement.text,
        "properties": properties,
        "overwrittenProperties": [],
        "defaultProperties": [],
        "warnings": [],
    }
