"""What a ksqlDB server says of its streams and tables, and which of them can be landed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datalake_assets.errors import SourceRefused
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.ksqldb_client import KsqlClient
from datalake_assets.sources.ksqldb_sql import WINDOW_COLUMNS, describe, quoted

__all__ = ["Description", "described", "listed"]

#: The declaration of a table that can be pulled without being derived (ksqlDB reference, "CREATE TABLE").
_SOURCE_TABLE = re.compile(r"\s*CREATE\s+(?:OR\s+REPLACE\s+)?SOURCE\s+TABLE\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Description:
    """A stream or table, as DESCRIBE shows it.

    Attributes:
        name: Its name.
        kind: ``stream`` or ``table``.
        types: SQL type by column, in order; keys of maps are not told.
        header_columns: Columns that are filled from Kafka record headers.
        window: ``TUMBLING``, ``HOPPING``, ``SESSION``, or empty.
        derived: Whether a query of the server writes it.
        source_table: Whether it was declared with CREATE SOURCE TABLE.
    """

    name: str
    kind: str
    types: Mapping[str, str]
    header_columns: tuple[str, ...]
    window: str
    derived: bool
    source_table: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of its rows, the window's bounds among them."""
        bounds = [name for name in WINDOW_COLUMNS if self.window and name not in self.types]
        return (*self.types, *bounds)

    @property
    def note(self) -> str:
        """Why it cannot be landed; empty if it can."""
        if self.kind == "stream":
            return ""
        derive = f"derive a table: CREATE TABLE … AS SELECT * FROM {quoted(self.name)}"  # noqa: S608  advice, not run
        if self.window == "SESSION":
            return "tables with session windows cannot be read whole (ksqlDB #7952)"
        if not self.derived and not self.source_table:
            return f"not queryable; {derive}"
        if self.source_table and self.header_columns:
            return f"columns from record headers come in the wrong order from a source table; {derive}"
        return ""


def described(client: KsqlClient, name: str) -> Description:
    """Asks what an object is.

    Raises:
        SourceRefused: There is no such object.
        SourceError: The server failed.
    """
    source = client.source(name)
    entity = client.statement(describe(name), source=source)
    try:
        return _description(entity["sourceDescription"])
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceRefused(source, "the server's description cannot be read") from error


def _description(entity: Mapping[str, Any]) -> Description:
    fields = entity["fields"]
    return Description(
        name=entity["name"],
        kind=entity["type"].lower(),
        types={field["name"]: field["schema"]["type"] for field in fields},
        header_columns=tuple(field["name"] for field in fields if field.get("type") == "HEADER"),
        window=entity.get("windowType") or "",
        derived=bool(entity.get("writeQueries")),
        source_table=_SOURCE_TABLE.match(entity.get("statement") or "") is not None,
    )


def listed(client: KsqlClient) -> Iterator[SourceObject]:
    """Lists streams, then tables, each by name; asks once more for every table.

    Raises:
        SourceError: The server failed.
    """
    for name in _names(client, "STREAMS"):
        yield SourceObject(name, "stream")
    for name in _names(client, "TABLES"):
        yield SourceObject(name, "table", described(client, name).note)


def _names(client: KsqlClient, what: str) -> list[str]:
    entity = client.statement(f"LIST {what};", source=client.source())
    try:
        return sorted(str(item["name"]) for item in entity[what.lower()])
    except (KeyError, TypeError) as error:
        raise SourceRefused(client.source(), f"the server's list of {what.lower()} cannot be read") from error
