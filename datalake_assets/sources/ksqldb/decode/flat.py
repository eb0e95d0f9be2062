"""The fast path of the decoder: whole blocks of flat JSON rows to Arrow with no Python object per row.

The bracket that opens a row's values and the one that closes them are overwritten with commas, in place; the row then
reads as CSV with a first and a last column that nobody asked for, and Arrow's CSV reader parses it with the declared
types, decimals and integers straight from their text. JSON escapes that CSV does not have are rewritten first, only in
blocks that contain any.

CSV is laxer than JSON, so a block is believed only after its quotes are accounted for: there must be two for each
value that JSON writes in quotes, and one for each escaped quote. Whatever does not add up is refused as a whole, with
the block as it was, and left to the exact path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from datalake_assets.sources.ksqldb.decode.typed import utc_from_naive, whole_years
from datalake_assets.sources.ksqldb.sql_types import Column, KsqlDecimal, KsqlScalar

__all__ = ["FlatReader", "binary_from_base64", "is_flat", "line_ends"]

_COMMA, _QUOTE, _OPEN, _CLOSE, _NEWLINE, _BACKSLASH = b',"[]\n\\'
_QUOTED_KINDS: Final = frozenset({"STRING", "BYTES", "TIMESTAMP", "DATE", "TIME"})
# What a backslash and the character after it stand for in JSON (RFC 8259, section 7). CSV takes any character after its
# escape character as it is, so that escapes of one letter are mended in place and only those by number take more work.
_SHORT: Final = np.zeros(256, np.uint8)
_SHORT[np.frombuffer(b"bfnrt", np.uint8)] = np.frombuffer(b"\b\f\n\r\t", np.uint8)
_IS_ESCAPE: Final = np.zeros(256, np.bool_)
_IS_ESCAPE[np.frombuffer(b'"\\/bfnrtu', np.uint8)] = True
_BREAKS: Final = np.frombuffer(b"nr", np.uint8)
# As many in a row as there are, so that the two halves of a surrogate pair stay together.
_BY_NUMBER: Final = re.compile(rb"(?:\\u[0-9a-fA-F]{4})+")
_CSV_BLOCK_BYTES: Final = 1 << 20
_WINDOW_BYTES: Final = 1 << 17


def is_flat(columns: Sequence[Column]) -> bool:
    """Whether no column is an ARRAY, a MAP or a STRUCT."""
    return all(isinstance(column.type, KsqlScalar | KsqlDecimal) for column in columns)


class FlatReader:
    """Reads blocks of rows of one flat schema.

    Args:
        columns: The row's columns, in order; ``is_flat`` holds.
        schema: Their Arrow schema, in step.
        prefix: What stands before a row's first value, its last byte the opening bracket.
        threads: Whether Arrow may use its thread pool.
    """

    def __init__(self, columns: Sequence[Column], schema: pa.Schema, *, prefix: bytes, threads: bool) -> None:
        self._kinds = [column.type for column in columns]
        self._schema, self._prefix, self._threads = schema, prefix, threads
        self._names = [f"c{index}" for index in range(len(columns))]
        types = {name: _csv_type(field.type) for name, field in zip(self._names, schema, strict=True)}
        self._convert = pacsv.ConvertOptions(
            column_types=types,
            include_columns=self._names,
            null_values=["null"],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["true"],
            false_values=["false"],
        )

    def read(
        self,
        block: bytearray,
        ends: npt.NDArray[np.intp],
        *,
        suffix: bytes,
        check: Callable[[pa.Table], None],
    ) -> pa.Table:
        """Decodes a block of whole, framed rows.

        Args:
            block: Rows, each between the prefix and the suffix and ended by a newline. If the block is refused, it is
                as it was; otherwise its contents are undefined.
            ends: Where the newlines are.
            suffix: What stands after a row's last value, its first byte the closing bracket.
            check: Refuses a table by raising ``ValueError``.

        Raises:
            ValueError: Arrow's errors included: at least one row needs the exact path.
        """
        octets = np.frombuffer(block, np.uint8)
        opening = np.concatenate([[0], ends[:-1] + 1]) + (len(self._prefix) - 1)
        closing = ends - len(suffix)
        if (opening >= closing).any():
            raise ValueError("an empty row")
        escapes = _Escapes(block)
        octets[opening] = octets[closing] = _COMMA
        octets[escapes.short] = _SHORT[escapes.letters]
        try:
            table = self._parse(block, len(ends), suffix, escapes)
            check(table)
        except BaseException:
            octets[opening], octets[closing], octets[escapes.short] = _OPEN, _CLOSE, escapes.letters
            raise
        return table

    def _parse(self, block: bytearray, rows: int, suffix: bytes, escapes: _Escapes) -> pa.Table:
        text, escaped, newlines = escapes.without_numbers(block)
        table = self._read_csv(text, suffix, newlines=newlines)
        if table.num_rows != rows:
            raise ValueError("a line break inside a row")
        framing = rows * (self._prefix.count(b'"') + suffix.count(b'"'))
        self._account_for_quotes(table, _quotes(text) - framing, escaped)
        return pa.Table.from_arrays(
            [self._finish(column, index) for index, column in enumerate(table.columns)], schema=self._schema
        )

    def _read_csv(self, text: bytes | bytearray, suffix: bytes, *, newlines: bool) -> pa.Table:
        after = [f"z{index}" for index in range(1 + suffix.count(b","))]
        return pacsv.read_csv(
            pa.BufferReader(pa.py_buffer(text)),
            read_options=pacsv.ReadOptions(
                column_names=["a", *self._names, *after], use_threads=self._threads, block_size=_CSV_BLOCK_BYTES
            ),
            parse_options=pacsv.ParseOptions(
                escape_char="\\", double_quote=False, newlines_in_values=newlines, ignore_empty_lines=False
            ),
            convert_options=self._convert,
        )

    def _account_for_quotes(self, table: pa.Table, quotes: int, escaped: int) -> None:
        values = inside = 0
        for kind, column in zip(self._kinds, table.columns, strict=True):
            if isinstance(kind, KsqlScalar) and kind.name in _QUOTED_KINDS:
                values += len(column) - column.null_count
            elif kind == KsqlScalar("DOUBLE"):
                # "NaN" and "Infinity" come in quotes; a bare 1e400 reads as infinite too.
                values += len(column) - column.null_count - (pc.sum(pc.is_finite(column)).as_py() or 0)
            if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
                inside += sum(_quotes(chunk.buffers()[2]) for chunk in column.chunks)
        if quotes != 2 * values + escaped or inside != escaped:
            raise ValueError("a value is quoted that should not be, or the other way round")

    def _finish(self, column: pa.ChunkedArray, index: int) -> pa.ChunkedArray:
        wanted = self._schema.field(index).type
        if pa.types.is_decimal128(wanted):
            column.validate(full=True)  # the CSV reader lets 123.4 pass as a DECIMAL(4, 2)
        elif pa.types.is_decimal256(wanted):
            return column.cast(wanted)
        elif pa.types.is_timestamp(wanted):
            return _chunked(map(utc_from_naive, column.chunks), wanted)
        elif pa.types.is_date32(wanted):
            return _chunked(map(whole_years, column.chunks), wanted)
        elif pa.types.is_binary(wanted):
            return _chunked(map(binary_from_base64, column.chunks), wanted)
        return column


def _chunked(chunks: Iterable[pa.Array], arrow: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array(list(chunks), arrow)


def _csv_type(arrow: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(arrow):
        return pa.timestamp("ms")  # a type with a zone demands one in the text
    return pa.string() if pa.types.is_decimal256(arrow) else arrow  # not a type of Arrow's CSV reader


class _Escapes:
    """The escapes of a block.

    Args:
        block: Whole lines, as received.

    Attributes:
        short: Where the letters of one-letter escapes are that CSV does not have.
        letters: These letters.

    Raises:
        ValueError: An escape is not one of JSON's.
    """

    def __init__(self, block: bytearray) -> None:
        starts = _escapes(block)
        following = np.frombuffer(block, np.uint8)[starts + 1]
        if not _IS_ESCAPE[following].all():
            raise ValueError("an escape that JSON does not have")
        is_short = _SHORT[following] != 0
        self.short, self.letters = starts[is_short] + 1, following[is_short]
        self._by_number = starts[following == ord("u")]
        self._quotes = int(np.count_nonzero(following == _QUOTE))

    def without_numbers(self, block: bytearray) -> tuple[bytes | bytearray, int, bool]:
        """The block with the escapes that CSV has; how many of them are quotes; and whether any is a line break.

        Args:
            block: Its one-letter escapes are mended already.

        Raises:
            ValueError: An escape by number is none, or a lone surrogate.
        """
        quotes, newlines = self._quotes, bool(np.isin(self.letters, _BREAKS).any())
        view, done = memoryview(block), 0
        pieces: list[bytes | memoryview] = []
        for at in self._by_number.tolist():
            if at < done:
                continue
            escapes = _BY_NUMBER.match(block, at)
            if escapes is None:
                raise ValueError("an escape that JSON does not have")
            text, escaped_quotes, breaks = _from_numbers(escapes[0])
            quotes, newlines = quotes + escaped_quotes, newlines or breaks
            pieces += [view[done:at], text]
            done = escapes.end()
        return b"".join([*pieces, view[done:]]) if pieces else block, quotes, newlines


@lru_cache(maxsize=4096)
def _from_numbers(escapes: bytes) -> tuple[bytes, int, bool]:
    """What escapes by number stand for, as CSV has it; how many of them are quotes; and whether any is a line break."""
    text: str = orjson.loads(b'"%b"' % escapes)
    csv = text.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return csv, text.count('"'), "\n" in text or "\r" in text


def _escapes(block: bytearray) -> npt.NDArray[np.intp]:
    """Where escapes begin: of backslashes in a row, every second is the character that the one before it escapes."""
    found = _positions(block, _BACKSLASH)
    if not len(found):
        return found
    index = np.arange(len(found))
    begins_run = np.concatenate([[True], np.diff(found) != 1])
    run = np.maximum.accumulate(np.where(begins_run, index, 0))
    begins_escape: npt.NDArray[np.bool_] = (index - run) % 2 == 0
    return found[begins_escape]


def _quotes(buffer: Any) -> int:
    return _count(buffer, _QUOTE)


def _count(buffer: Any, octet: int) -> int:
    return sum(int(np.count_nonzero(window == octet)) for _, window in _windows(buffer))


def _windows(buffer: Any) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Pieces that stay in the cache: to compare the whole at once would touch as much fresh memory as it has."""
    octets = np.frombuffer(buffer or b"", np.uint8)
    return ((start, octets[start : start + _WINDOW_BYTES]) for start in range(0, len(octets), _WINDOW_BYTES))


def line_ends(block: bytearray) -> npt.NDArray[np.intp]:
    """Where the newlines are."""
    return _positions(block, _NEWLINE)


def _positions(block: bytearray, octet: int) -> npt.NDArray[np.intp]:
    found = [np.flatnonzero(window == octet) + start for start, window in _windows(block)]
    return np.concatenate(found) if found else np.empty(0, np.intp)


_PAD, _INVALID = 64, 255
_CODES: Final = np.full(256, _INVALID, np.uint8)
_CODES[np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=", np.uint8)] = np.arange(65)


def binary_from_base64(array: pa.BinaryArray) -> pa.BinaryArray:
    """Decodes standard, padded base64 (RFC 4648, section 4), all values at once; nulls stay.

    Raises:
        ValueError: A value is not such a text.
    """
    if len(array) == array.null_count:
        return array
    validity, offsets_buffer, data = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    codes = _CODES[np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]]
    lengths = np.diff(offsets)
    padding = _padding(codes, offsets[1:] - offsets[0], lengths)
    decoded = _quartets(codes)
    sizes = lengths // 4 * 3
    kept = np.ones(len(decoded), np.bool_)
    kept[np.cumsum(sizes)[padding >= 1] - 1] = False
    kept[np.cumsum(sizes)[padding == 2] - 2] = False  # noqa: PLR2004 - a quartet has at most two pads
    ends = np.concatenate([[0], np.cumsum(sizes - padding)]).astype(np.int32)
    mask = array.is_valid() if validity is not None else None
    buffers = [None if mask is None else mask.buffers()[1], pa.py_buffer(ends), pa.py_buffer(decoded[kept])]
    return pa.Array.from_buffers(pa.binary(), len(array), buffers)


def _padding(codes: npt.NDArray[np.uint8], ends: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """How many pads end each value; refuses lengths, letters and pads where base64 has none."""
    if (lengths % 4).any() or (codes == _INVALID).any():
        raise ValueError("not base64")
    padding = np.zeros(len(lengths), np.intp)
    filled = lengths > 0
    last, one_before = codes[ends[filled] - 1] == _PAD, codes[ends[filled] - 2] == _PAD
    padding[filled] = last.astype(np.intp) + (last & one_before)
    if np.count_nonzero(codes == _PAD) != padding.sum():
        raise ValueError("not base64")
    return padding


def _quartets(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    quartets = np.where(codes == _PAD, 0, codes).astype(np.uint32).reshape(-1, 4)
    bits = quartets[:, 0] << 18 | quartets[:, 1] << 12 | quartets[:, 2] << 6 | quartets[:, 3]
    return np.stack([bits >> 16, bits >> 8 & 0xFF, bits & 0xFF], axis=1).astype(np.uint8).ravel()
