"""How results look on the wire: StreamedRow JSON, delimited lines, one array of arrays."""

from __future__ import annotations

from typing import Protocol

import orjson

from datalake_assets.demo.ksqldb_server.ksql_errors import KsqlError
from datalake_assets.demo.ksqldb_server.ksql_query import Batch, Query
from datalake_assets.demo.ksqldb_server.ksql_types import json_string

__all__ = [
    "DELIMITED",
    "JSON",
    "KSQL_V1_JSON",
    "ArrayWriter",
    "DelimitedWriter",
    "RowWriter",
    "StreamedRowWriter",
    "accepts",
    "negotiate",
    "row_values",
    "row_writer",
]

DELIMITED = "application/vnd.ksqlapi.delimited.v1"
JSON = "application/json"
KSQL_V1_JSON = "application/vnd.ksql.v1+json"


class RowWriter(Protocol):
    """Writes one result in pieces.

    Attributes:
        content_type: The answer's media type.
        opening: What comes before a row's values.
        closing: What comes after them.
        between: What separates a row from the next.
    """

    content_type: str
    opening: bytes
    closing: bytes
    between: bytes

    def header(self, query: Query) -> bytes:
        """What comes before the rows."""
        ...

    def joined(self, text: bytes) -> bytes:
        """Rows that have their separators, joined to what comes before and after them."""
        ...

    def tombstone(self, query: Query, values: bytes) -> list[bytes]:
        """A deleted row, or nothing where the format has no way to say so.

        Args:
            query: Whose row it is.
            values: The values that the row had; only its key is sent.
        """
        ...

    def error(self, error: KsqlError) -> bytes:
        """An error after the rows began."""
        ...

    def end(self, message: str | None) -> bytes:
        """What comes last.

        Args:
            message: The final message, if this kind of query has one.
        """
        ...


def row_values(batch: Batch) -> list[bytes]:
    """The values of each row, separated by commas."""
    if not batch.rows:
        return []
    fragments = [column.fragments() for column in batch.columns]
    for row in batch.broken:
        fragments[0][row] = _BROKEN
    return list(map(b",".join, zip(*fragments, strict=True)))


#: No value of any type that the streams' keys have.
_BROKEN = b'{"broken":true}'


class StreamedRowWriter:
    """``application/vnd.ksql.v1+json``: the only format that says that it is complete.

    Args:
        buffered: Table pulls hold back each separator until the next row, so that none precedes the end; the others
            send it at once, so that a live row is a whole line.
    """

    content_type = KSQL_V1_JSON
    opening, closing, between = b'{"row":{"columns":[', b"]}}", b",\n"

    def __init__(self, *, buffered: bool) -> None:
        self._buffered = buffered

    def header(self, query: Query) -> bytes:  # noqa: D102 - see RowWriter
        schema = ", ".join(
            f"`{c.name}` {c.kind}{' KEY' if c.key and query.is_table_pull else ''}" for c in query.columns
        )
        text = f'[{{"header":{{"queryId":{json_string(query.query_id)},"schema":{json_string(schema)}}}}}'
        return text.encode() + (b"" if self._buffered else self.between)

    def joined(self, text: bytes) -> bytes:  # noqa: D102 - see RowWriter
        return self.between + text if self._buffered else text + self.between

    def tombstone(self, query: Query, values: bytes) -> list[bytes]:  # noqa: D102 - see RowWriter
        row = zip(query.columns, orjson.loads(b"[" + values + b"]"), strict=True)
        kept = orjson.dumps([value if column.key else None for column, value in row])
        return [b'{"row":{"columns":' + kept + b',"tombstone":true}}']

    def error(self, error: KsqlError) -> bytes:  # noqa: D102 - see RowWriter
        return self.joined(b'{"errorMessage":' + error.body() + b"}")

    def end(self, message: str | None) -> bytes:  # noqa: D102 - see RowWriter
        return b"]" if message is None else f'{{"finalMessage":{json_string(message)}}}]'.encode()


class DelimitedWriter:
    """``application/vnd.ksqlapi.delimited.v1``: a line each, and no word about the end."""

    content_type = DELIMITED
    opening, closing, between = b"[", b"]", b"\n"

    def header(self, query: Query) -> bytes:  # noqa: D102 - see RowWriter
        return _metadata(query) + b"\n"

    def joined(self, text: bytes) -> bytes:  # noqa: D102 - see RowWriter
        return text + b"\n"

    def tombstone(self, query: Query, values: bytes) -> list[bytes]:  # noqa: ARG002, D102 - see RowWriter
        return []

    def error(self, error: KsqlError) -> bytes:  # noqa: D102 - see RowWriter
        return error.body() + b"\n"

    def end(self, message: str | None) -> bytes:  # noqa: ARG002, D102 - see RowWriter
        return b""


class ArrayWriter:
    """``application/json``: one array, without newlines."""

    content_type = JSON
    opening, closing, between = b"[", b"]", b","

    def header(self, query: Query) -> bytes:  # noqa: D102 - see RowWriter
        return b"[" + _metadata(query)

    def joined(self, text: bytes) -> bytes:  # noqa: D102 - see RowWriter
        return b"," + text

    def tombstone(self, query: Query, values: bytes) -> list[bytes]:  # noqa: ARG002, D102 - see RowWriter
        return []

    def error(self, error: KsqlError) -> bytes:  # noqa: D102 - see RowWriter
        return b"," + error.body()

    def end(self, message: str | None) -> bytes:  # noqa: ARG002, D102 - see RowWriter
        return b"]"


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


def accepts(accept: str | None, offered: tuple[str, ...]) -> bool:
    """Whether an Accept header allows one of these media types."""
    return accept is None or any(media in {"*/*", "application/*", *offered} for media in _preferred(accept))


def _preferred(accept: str) -> list[str]:
    """The media types of an Accept header, best first."""
    weighted = []
    for item in accept.split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        quality = next((p.partition("=")[2] for p in parameters if p.startswith("q=")), "1")
        weight = float(quality) if quality.replace(".", "", 1).isdigit() else 0.0
        weighted.append((-weight, media.lower()))
    return [media for weight, media in sorted(weighted, key=lambda pair: pair[0]) if weight < 0]


def _metadata(query: Query) -> bytes:
    names = ",".join(json_string(column.name) for column in query.columns)
    kinds = ",".join(json_string(str(column.kind)) for column in query.columns)
    text = f'{{"queryId":{json_string(query.query_id)},"columnNames":[{names}],"columnTypes":[{kinds}]}}'
    return text.encode()
