"""The answer to a ksqlDB query, from raw bytes to blocks of rows and a verdict on how it ended.

ksqlDB's StreamedRow JSON is an array with one element to a line, and its delimited format is a header line and then an
array to a line. Both are cut at newline bytes only: U+2028 and U+0085 come raw, chunk boundaries mean nothing, and some
servers never send a valid document. Which lines are rows and which are messages is decided here; what the ending is
worth is for the caller to say, since it differs by query and by server version.

Sources: ksqlDB ``StreamedRow``, ``ApiJsonMapper`` and ``QueryStreamHandler``; issues #8554 (endings of 0.22 to 0.24)
and #10712 (tombstones, which the delimited format drops).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec
import pyarrow as pa

from datalake_assets.sources.ksqldb.decode.rows import DecodedRows, RowDecoder
from datalake_assets.sources.ksqldb.sql_types import Column, parse_columns, parse_delimited_columns

__all__ = ["ResponseEnd", "ResponseError", "ResponseHeader", "StreamedRowParser"]

SchemaOf: TypeAlias = Callable[[tuple[Column, ...]], pa.Schema]

BLOCK_BYTES: Final = 4 << 20  # measured: decoding gains nothing above, and its buffers are a few times this
MAX_LINE_BYTES: Final = 64 << 20  # an answer without newlines (application/json) must not fill the memory


@dataclass(frozen=True, slots=True)
class ResponseHeader:
    """What the server says ahead of the rows."""

    query_id: str | None
    columns: tuple[Column, ...]
    delimited: bool


@dataclass(frozen=True, slots=True)
class ResponseError:
    """An error that the server sent in the stream, or a response that cannot be read as one.

    Attributes:
        code: ksqlDB's error code; None if the error was found here.
        message: One line.
    """

    code: int | None
    message: str


@dataclass(frozen=True, slots=True)
class ResponseEnd:
    """How the response ended.

    Attributes:
        header: None if the response never had one.
        final_message: ``Query Completed``, ``Limit Reached``; None if there was none, as with table pulls.
        closed: Whether the last thing seen was the closing ``]``; the delimited format has none.
        partial: Whether bytes followed the last whole line: the response was cut. They are not a row.
        error: The first error.
        rows: Rows decoded.
        rejected: Rows not decoded.
        tombstones: Rows that say that a key was deleted; where they are kept, the other two count them, too.
    """

    header: ResponseHeader | None
    final_message: str | None
    closed: bool
    partial: bool
    error: ResponseError | None
    rows: int
    rejected: int
    tombstones: int


class _Header(msgspec.Struct, rename="camel"):
    query_id: str | None
    schema: str


class _DelimitedHeader(msgspec.Struct, rename="camel"):
    query_id: str | None
    column_names: list[str]
    column_types: list[str]


class _Error(msgspec.Struct):
    message: str | None = None
    error_code: int | None = None


class _Row(msgspec.Struct):
    columns: msgspec.Raw
    tombstone: bool = False


class _Message(msgspec.Struct, rename="camel"):
    """An element of a StreamedRow array, or an object of the delimited format: whichever of these it has."""

    header: _Header | None = None
    row: _Row | None = None
    final_message: str | None = None
    error_message: _Error | None = None
    type: str | None = msgspec.field(name="@type", default=None)
    message: str | None = None
    code: int | None = msgspec.field(name="error_code", default=None)
    consistency_token: Any = None
    continuation_token: Any = None
    source_host: str | None = None

    @property
    def error(self) -> ResponseError | None:
        if self.error_message is not None:
            return ResponseError(self.error_message.error_code, _line(self.error_message.message))
        return None if self.type is None else ResponseError(self.code, _line(self.message))

    @property
    def known(self) -> bool:
        tokens = (self.header, self.final_message, self.consistency_token, self.continuation_token, self.source_host)
        return any(token is not None for token in tokens)


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_DELIMITED: Final = msgspec.json.Decoder(_DelimitedHeader)


class _Received:
    """Bytes that came and are not decoded yet: the front of one piece of memory, which blocks leave and come back to.

    Fresh memory for each block would take the system as long to clear as the parser takes to fill it.
    """

    def __init__(self) -> None:
        self._memory = bytearray()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, which: slice) -> bytes:
        return bytes(self._memory[: self._size][which])

    def add(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        self._memory[self._size : self._size + len(chunk)] = chunk
        self._size += len(chunk)

    def line_end(self) -> int:
        """Where the first line ends, its newline included; 0 if none does."""
        return self._memory.find(b"\n", 0, self._size) + 1

    def last_line_end(self, before: int) -> int:
        """Where the last line ends that ends there or before, its newline included; 0 if none does."""
        return self._memory.rfind(b"\n", 0, min(before, self._size)) + 1

    def cut(self, size: int) -> bytearray:
        """Takes so many bytes off the front; `take_back` what they are in."""
        block, self._memory = self._memory, self._memory[size : self._size]
        self._size -= size
        del block[size:]
        return block

    def take_back(self, block: bytearray) -> None:
        """Uses the memory of a block that nobody needs any more for what came and comes after it."""
        try:
            block[: self._size] = self._memory[: self._size]
        except BufferError:  # somebody still looks at it, and what came fits only into more
            return
        self._memory = block


class StreamedRowParser:
    """Takes a response chunk by chunk, gives back its rows block by block.

    The header shows the format, StreamedRow or delimited. Memory is bounded by a few blocks, whatever the length of the
    response. Nothing is raised for what the server sends: it is in ``ResponseEnd`` and ``DecodedRows.rejected``.

    Args:
        schema_of: From the columns that the server announces to their Arrow schema, in step; called once. What it
            raises leaves ``feed`` or ``finish``.
        block_bytes: Rows are decoded when this much has arrived.
        max_line_bytes: A longer line is an error.
        keeps_tombstones: Whether rows that say that a key was deleted are rows: their other columns are null.
    """

    def __init__(
        self,
        schema_of: SchemaOf,
        *,
        block_bytes: int = BLOCK_BYTES,
        max_line_bytes: int = MAX_LINE_BYTES,
        keeps_tombstones: bool = False,
    ) -> None:
        self._keeps_tombstones = keeps_tombstones
        self.header: ResponseHeader | None = None
        self._schema_of, self._block_bytes, self._max_line_bytes = schema_of, block_bytes, max_line_bytes
        self._decoder: RowDecoder | None = None
        self._received = _Received()
        self._whole = 0  # bytes received that are whole lines
        self._final_message: str | None = None
        self._error: ResponseError | None = None
        self._closed = self._dead = False
        self._rows = self._rejected = self._tombstones = 0

    @property
    def error(self) -> ResponseError | None:
        """The first error so far."""
        return self._error

    def feed(self, chunk: bytes) -> list[DecodedRows]:
        """Takes the next bytes; gives the blocks that they filled, usually none."""
        blocks: list[DecodedRows] = []
        for start in range(0, len(chunk), self._block_bytes):
            if self._dead:
                break
            self._take_in(chunk[start : start + self._block_bytes])
            while self._whole >= self._block_bytes:
                cut = self._received.last_line_end(self._block_bytes)
                blocks.append(self._decode(cut or self._received.line_end()))
        return blocks

    def _take_in(self, chunk: bytes) -> None:
        newline = chunk.rfind(b"\n")
        if newline >= 0:
            self._whole = len(self._received) + newline + 1
        self._received.add(chunk)
        if self._whole and self._decoder is None:
            self._read_header()
        if len(self._received) - self._whole > self._max_line_bytes:
            self._die(f"a line is longer than {self._max_line_bytes} bytes")

    def take(self) -> DecodedRows:
        """Decodes whatever whole rows have arrived, at once: push queries trickle."""
        return self._decode(self._whole)

    def finish(self) -> tuple[DecodedRows, ResponseEnd]:
        """The response is over: its last rows, and how it ended. Nothing may be fed after."""
        cut = self._complete_last_line()
        if self._decoder is None and self._whole:
            self._read_header()
        rows = self.take()
        end = ResponseEnd(
            header=self.header,
            final_message=self._final_message,
            closed=self._closed and not cut,
            partial=cut,
            error=self._error,
            rows=self._rows,
            rejected=self._rejected,
            tombstones=self._tombstones,
        )
        return rows, end

    def _complete_last_line(self) -> bool:
        """Ends the last line if it is a whole element; says whether something else is left."""
        tail = self._received[self._whole :].strip()
        body, _ = self._unwrapped(tail)
        if tail and body and not _is_json(body):
            return True
        if tail:
            self._received.add(b"\n")
            self._whole = len(self._received)
        return False

    def _decode(self, size: int) -> DecodedRows:
        if self._decoder is None or not size:
            return DecodedRows(pa.table({}) if self._decoder is None else self._decoder.schema.empty_table())
        block = self._received.cut(size)
        self._whole -= size
        self._closed = False
        first_line = self._rows + self._rejected + 1
        rows = self._decoder.decode(block, first_line=first_line, plain=partial(self._only_rows, self._decoder))
        if size <= 2 * self._block_bytes:  # a line may be many times as long, and need not be held on to
            self._received.take_back(block)
        self._rows += rows.table.num_rows
        self._rejected += len(rows.rejected)
        return rows

    def _only_rows(self, decoder: RowDecoder, block: bytearray) -> bytearray:
        """The block without blank lines and messages, its rows in plain form."""
        kept: list[bytes | bytearray] = []
        at = 0
        for start, end in [*decoder.odd_lines(block), (len(block), len(block))]:
            if start > at:
                self._closed = False
                kept.append(block[at:start])
            at = end + 1
            if text := bytes(block[start:end]).strip():
                row = self._row_of(decoder, text)
                kept.extend([] if row is None else [row, b"\n"])
        return bytearray().join(kept)

    def _row_of(self, decoder: RowDecoder, text: bytes) -> bytes | None:
        """The row in a line that is not in plain form; None if it has none."""
        body, self._closed = self._unwrapped(text)
        if decoder.is_plain(body + b","):
            return body + b","
        try:
            message = _MESSAGE.decode(body) if body else _Message(source_host="")
        except (msgspec.MsgspecError, ValueError):
            return body  # not a message: the decoder takes it or says why not
        if message.row is not None and not self._is_delimited:
            self._tombstones += message.row.tombstone
            is_dropped = message.row.tombstone and not self._keeps_tombstones
            return None if is_dropped else decoder.prefix[:-1] + bytes(message.row.columns) + b"}},"
        self._final_message = message.final_message or self._final_message
        self._error = self._error or message.error
        return None if message.known or message.error else body

    @property
    def _is_delimited(self) -> bool:
        return self.header is not None and self.header.delimited

    def _unwrapped(self, text: bytes) -> tuple[bytes, bool]:
        """An element without what an array puts around it, and whether the array ends after it."""
        if self._is_delimited:
            return text, False
        inner = text if self.header else text.removeprefix(b"[")
        body = inner.removesuffix(b"]").rstrip()
        if inner.endswith(b"]") and (not body or _is_json(body)):
            return body, True
        return inner.removesuffix(b","), False

    def _read_header(self) -> None:
        """Consumes lines up to the header; what stands there instead is the server's error, or no answer at all."""
        while self._whole and self._decoder is None:
            text = bytes(self._received.cut(end := self._received.line_end())).strip()
            self._whole -= end
            if text:
                self._take_header(text)

    def _take_header(self, text: bytes) -> None:
        body, self._closed = self._unwrapped(text)
        try:
            header = _header(body)
        except (msgspec.MsgspecError, ValueError) as error:
            self._die(f"the response does not begin with a header: {error}")
            return
        if isinstance(header, ResponseError):
            self._error = self._error or header
            return
        self.header = header
        self._decoder = RowDecoder(header.columns, self._schema_of(header.columns), wrapped=not header.delimited)

    def _die(self, message: str) -> None:
        self._error = self._error or ResponseError(None, message)
        self._dead = True
        self._received = _Received()
        self._whole = 0


def _header(body: bytes) -> ResponseHeader | ResponseError:
    message = _MESSAGE.decode(body)
    if message.header is not None:
        return ResponseHeader(message.header.query_id, parse_columns(message.header.schema), delimited=False)
    if message.error is not None:
        return message.error
    header = _DELIMITED.decode(body)
    columns = parse_delimited_columns(header.column_names, header.column_types)
    return ResponseHeader(header.query_id, columns, delimited=True)


def _line(message: str | None) -> str:
    return " ".join((message or "no message").split())


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.MsgspecError, ValueError):
        return False
    return True
