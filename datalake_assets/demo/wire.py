"""How results look on the wire: StreamedRow JSON, delimited lines, one array of arrays."""

from __future__ import annotations

from typing import Protocol

from datalake_assets.demo.ksql_errors import KsqlError
from datalake_assets.demo.ksql_query import Batch, Query
from datalake_assets.demo.ksql_types import json_string

__all__ = [
    "DELIMITED",
    "JSON",
    "KSQL_V1_JSON",
    "ArrayWriter",
    "DelimitedWriter",
    "RowWriter",
    "StreamedRowWriter",
    "negotiate",
    "row_writer",
]

DELIMITED = "application/vnd.ksqlapi.delimited.v1"
JSON = "application/json"
KSQL_V1_JSON = "application/vnd.ksql.v1+json"


class RowWriter(Protocol):
    """Writes one result; each method returns the text to send."""

    content_type: str

    def header(self, query: Query) -> str:
        """What comes before the rows."""
        ...

    def rows(self, batch: Batch) -> list[str]:
        """The rows of a batch, each without what separates it from its neighbours."""
        ...

    def joined(self, rows: list[str]) -> str:
        """Rows, separators included."""
        ...

    def tombstone(self, query: Query) -> list[str]:
        """A deleted row, or nothing where the format has no way to say so."""
        ...

    def error(self, error: KsqlError) -> str:
        """An error after the rows began."""
        ...

    def end(self, message: str | None) -> str:
        """What comes last.

        Args:
            message: The final message, if this kind of query has one.
        """
        ...


class StreamedRowWriter:
    """``application/vnd.ksql.v1+json``: the only format that says that it is complete.

    Args:
        buffered: Table pulls hold back each separator until the next row, so that none precedes the end; the others
            send it at once, so that a live row is a whole line.
    """

    content_type = KSQL_V1_JSON

    def __init__(self, *, buffered: bool) -> None:
        self._buffered = buffered

    def header(self, query: Query) -> str:  # noqa: D102 - see RowWriter
        schema = ", ".join(f"`{c.name}` {c.kind}{' KEY' if c.key else ''}" for c in query.columns)
        text = f'{{"header":{{"queryId":{json_string(query.query_id)},"schema":{json_string(schema)}}}}}'
        return f"[{text}" if self._buffered else f"[{text},\n"

    def rows(self, batch: Batch) -> list[str]:  # noqa: D102 - see RowWriter
        return _rendered('{"row":{"columns":[', batch, "]}}")

    def joined(self, rows: list[str]) -> str:  # noqa: D102 - see RowWriter
        if not rows:
            return ""
        text = ",\n".join(rows)
        return f",\n{text}" if self._buffered else f"{text},\n"

    def tombstone(self, query: Query) -> list[str]:  # noqa: D102 - see RowWriter
        values = ",".join('"deleted"' if column.name.endswith("_ID") else "null" for column in query.columns)
        return [f'{{"row":{{"columns":[{values}],"tombstone":true}}}}']

    def error(self, error: KsqlError) -> str:  # noqa: D102 - see RowWriter
        return self.joined([f'{{"errorMessage":{error.body().decode()}}}'])

    def end(self, message: str | None) -> str:  # noqa: D102 - see RowWriter
        return "]" if message is None else f'{{"finalMessage":{json_string(message)}}}]'


class DelimitedWriter:
    """``application/vnd.ksqlapi.delimited.v1``: a line each, and no word about the end."""

    content_type = DELIMITED

    def header(self, query: Query) -> str:  # noqa: D102 - see RowWriter
        return f"{_metadata(query)}\n"

    def rows(self, batch: Batch) -> list[str]:  # noqa: D102 - see RowWriter
        return _rendered("[", batch, "]")

    def joined(self, rows: list[str]) -> str:  # noqa: D102 - see RowWriter
        return "\n".join(rows) + "\n" if rows else ""

    def tombstone(self, query: Query) -> list[str]:  # noqa: ARG002, D102 - see RowWriter
        return []

    def error(self, error: KsqlError) -> str:  # noqa: D102 - see RowWriter
        return f"{error.body().decode()}\n"

    def end(self, message: str | None) -> str:  # noqa: ARG002, D102 - see RowWriter
        return ""


class ArrayWriter:
    """``application/json``: one array, without newlines."""

    content_type = JSON

    def header(self, query: Query) -> str:  # noqa: D102 - see RowWriter
        return f"[{_metadata(query)}"

    def rows(self, batch: Batch) -> list[str]:  # noqa: D102 - see RowWriter
        return _rendered("[", batch, "]")

    def joined(self, rows: list[str]) -> str:  # noqa: D102 - see RowWriter
        return "".join(f",{row}" for row in rows)

    def tombstone(self, query: Query) -> list[str]:  # noqa: ARG002, D102 - see RowWriter
        return []

    def error(self, error: KsqlError) -> str:  # noqa: D102 - see RowWriter
        return f",{error.body().decode()}"

    def end(self, message: str | None) -> str:  # noqa: ARG002, D102 - see RowWriter
        return "]"


def row_writer(content_type: str, query: Query) -> RowWriter:
    """The writer of a format."""
    if content_type == DELIMITED:
        return DelimitedWriter()
    if content_type == JSON:
        return ArrayWriter()
    return StreamedRowWriter(buffered=query.is_table_pull)


def negotiate(accept: str | None, *, old_endpoint: bool) -> str | None:
    """The format of a query's answer, or None if none is acceptable.

    Args:
        accept: The request's Accept header.
        old_endpoint: Whether the request is to ``/query``, whose defaults are those of before 0.24.
    """
    if accept is None:
        return KSQL_V1_JSON if old_endpoint else DELIMITED
    formats = {
        "*/*": DELIMITED,
        "application/*": DELIMITED,
        DELIMITED: DELIMITED,
        KSQL_V1_JSON: KSQL_V1_JSON,
        JSON: KSQL_V1_JSON if old_endpoint else JSON,
    }
    return next((formats[wanted] for wanted in _preferred(accept) if wanted in formats), None)


def _preferred(accept: str) -> list[str]:
    """The media types of an Accept header, best first."""
    weighted = []
    for item in accept.split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        quality = next((p.partition("=")[2] for p in parameters if p.startswith("q=")), "1")
        weight = float(quality) if quality.replace(".", "", 1).isdigit() else 0.0
        weighted.append((-weight, media.lower()))
    return [media for weight, media in sorted(weighted, key=lambda pair: pair[0]) if weight < 0]


def _metadata(query: Query) -> str:
    names = ",".join(json_string(column.name) for column in query.columns)
    kinds = ",".join(json_string(str(column.kind)) for column in query.columns)
    return f'{{"queryId":{json_string(query.query_id)},"columnNames":[{names}],"columnTypes":[{kinds}]}}'


def _rendered(opening: str, batch: Batch, closing: str) -> list[str]:
    if not batch.rows:
        return []
    template = opening + ",".join(["%s"] * len(batch.columns)) + closing
    return list(map(template.__mod__, zip(*(column.fragments() for column in batch.columns), strict=True)))
