"""The fast path of the decoder: whole blocks of flat JSON rows to Arrow with no Python object per row.

The bracket that opens a row's values and the one that closes them are overwritten with commas, in place; the row then
reads as CSV with a first and a last column that nobody asked for, and Arrow's CSV reader parses it with the declared
types, decimals and integers straight from their text. JSON escapes that CSV does not have are rewritten first, only in
blocks that contain any.

Where the scanner of CSV is built (`datalake_assets.sources.files.csv_scan`), it reads the rows, in half the time: a
quote inside of a text is written twice there, and other escapes are what they stand for. What it says nothing of, such
as infinite numbers, Arrow's reader reads.

CSV is laxer than JSON, so a block is believed only after its quotes are accounted for: there must be two for each
value that JSON writes in quotes, and one for each escaped quote. Whatever does not add up is refused as a whole, with
the block as it was, and left to the exact path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from datalake_assets.core.arrow_arrays import constant
from datalake_assets.sources.files.csv_scan import CsvForm, Expected, Look, Scanner, load_scanner
from datalake_assets.sources.ksqldb.decode.typed import utc_from_naive, whole_years
from datalake_assets.sources.ksqldb.sql_types import Column, KsqlDecimal, KsqlScalar

__all__ = ["FlatReader", "binary_from_base64", "is_flat", "line_ends"]

_COMMA, _QUOTE, _OPEN, _CLOSE, _NEWLINE, _BACKSLASH, _SPACE = b',"[]\n\\ '
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
        self._scanned = _ScannedRows.of(schema, prefix)
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
        try:
            table = self._scan(block, opening, suffix, escapes)
            if table is None:
                octets[escapes.short] = _SHORT[escapes.letters]
                table = self._parse(block, len(ends), suffix, escapes)
            check(table)
        except BaseException:
            octets[opening], octets[closing], octets[escapes.short] = _OPEN, _CLOSE, escapes.letters
            raise
        return table

    def _scan(
        self, block: bytearray, opening: npt.NDArray[np.intp], suffix: bytes, escapes: _Escapes
    ) -> pa.Table | None:
        """The rows, by the scanner; None if there is none, or it says nothing of these."""
        if self._scanned is None or not self._scanned.is_worth_it:
            return None
        text, escaped = escapes.doubled(block, self._scanned.quotes(opening))
        arrays = self._scanned.arrays(text, rows=len(opening), after=1 + suffix.count(b","))
        return None if arrays is None else self._told(arrays, _quotes(text) - escaped, escaped)

    def _parse(self, block: bytearray, rows: int, suffix: bytes, escapes: _Escapes) -> pa.Table:
        text, escaped, newlines = escapes.without_numbers(block)
        table = self._read_csv(text, suffix, newlines=newlines)
        if table.num_rows != rows:
            raise ValueError("a line break inside a row")
        framing = rows * (self._prefix.count(b'"') + suffix.count(b'"'))
        return self._told(table.columns, _quotes(text) - framing, escaped)

    def _told(self, columns: Sequence[pa.ChunkedArray], quotes: int, escaped: int) -> pa.Table:
        self._account_for_quotes(columns, quotes, escaped)
        return pa.Table.from_arrays(
            [self._finish(column, index) for index, column in enumerate(columns)], schema=self._schema
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

    def _account_for_quotes(self, columns: Sequence[pa.ChunkedArray], quotes: int, escaped: int) -> None:
        values = inside = 0
        for kind, column in zip(self._kinds, columns, strict=True):
            if isinstance(kind, KsqlScalar) and kind.name in _QUOTED_KINDS:
                values += len(column) - column.null_count
            elif kind == KsqlScalar("DOUBLE"):
                # "NaN" and "Infinity" come in quotes; a bare 1e400 reads as infinite too.
                values += len(column) - column.null_count - (pc.sum(pc.is_finite(column)).as_py() or 0)
            if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
                inside += sum(map(_quotes, map(_bytes_of, column.chunks)))
        if quotes != 2 * values + escaped or inside != escaped:
            raise ValueError("a value is quoted that should not be, or the other way round")

    def _finish(self, column: pa.ChunkedArray, index: int) -> pa.ChunkedArray:
        wanted = self._schema.field(index).type
        if pa.types.is_boolean(wanted) and not pa.types.is_boolean(column.type):
            return _chunked(map(_booleans, column.chunks), wanted)
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


def _booleans(texts: pa.Array) -> pa.Array:
    is_true = pc.equal(texts, constant("true"))
    if not pc.all(pc.or_(is_true, pc.equal(texts, constant("false")))).as_py():
        raise ValueError("a boolean that is neither true nor false")
    return is_true


def _chunked(chunks: Iterable[pa.Array], arrow: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array(list(chunks), arrow)


def _csv_type(arrow: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(arrow):
        return pa.timestamp("ms")  # a type with a zone demands one in the text
    return pa.string() if pa.types.is_decimal256(arrow) else arrow  # not a type of Arrow's CSV reader


_LOOKS: Final[Mapping[pa.DataType, Look]] = {
    # true and false alone, which the scanner does not insist on
    pa.bool_(): Look(type=pa.string()),
    pa.string(): Look(type=pa.string()),
    pa.binary(): Look(type=pa.string()),
    pa.int32(): Look(Expected.NUMBER, type=pa.int32(), is_exact=False),
    pa.int64(): Look(Expected.NUMBER, type=pa.int64(), is_exact=False),
    pa.float64(): Look(Expected.DOUBLE, type=pa.float64(), is_settled=True),
    pa.date32(): Look(Expected.DATE, type=pa.date32()),
    pa.timestamp("ms", "UTC"): Look(Expected.TIME, 3, type=pa.timestamp("us")),
}
_MISSES: Final = 8


class _ScannedRows:
    """Reads rows by the scanner.

    Args:
        scanner: The library.
        looks: What to look for in the columns, in order.
        prefix: What stands before a row's first value, its last byte the opening bracket.
    """

    def __init__(self, scanner: Scanner, looks: Sequence[Look], prefix: bytes) -> None:
        self._scanner, self._looks, self._form = scanner, looks, CsvForm(",", '"', ["null"])
        self._before = [len(prefix) - 1 - at for at, octet in enumerate(prefix) if octet == _QUOTE]
        self._misses, self._scratch = 0, np.empty(0, np.uint64)

    @classmethod
    def of(cls, schema: pa.Schema, prefix: bytes) -> _ScannedRows | None:
        """What reads rows of a schema; None if there is no library, or it does not know all types."""
        looks = [_look(field.type) for field in schema]
        known = [look for look in looks if look is not None]
        scanner = load_scanner() if len(known) == len(looks) else None
        return None if scanner is None else cls(scanner, known, prefix)

    @property
    def is_worth_it(self) -> bool:
        """Whether it did not say nothing of most blocks."""
        return self._misses < _MISSES

    def quotes(self, opening: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Where the quotes before each row's opening bracket are."""
        return np.concatenate([opening - before for before in self._before]) if self._before else opening[:0]

    def arrays(self, text: bytes, *, rows: int, after: int) -> list[pa.ChunkedArray] | None:
        """The columns; None if nothing is said of them, or a row is not one record.

        Args:
            text: CSV, its rows' values between a field and others that nobody wants.
            rows: How many there are.
            after: How many fields follow the values.

        Raises:
            ValueError: The text is not UTF-8.
        """
        looks = [Look(), *self._looks, *[Look()] * after]
        if len(self._scratch) < (rows + 1) * len(looks):
            self._scratch = np.empty((rows + 1) * len(looks) * 9 // 8, np.uint64)  # the next block may have a few more
        found = self._scanner.scan(text, looks, self._form, lines=rows, blanks=False, scratch=self._scratch)
        made = [] if found is None else [each.array for each in found[1 : -after or None]]
        if not made or any(each is None or len(each) != rows for each in made):
            self._misses += 1
            return None
        self._misses = max(self._misses - 1, 0)
        _check_utf8(text)
        return [pa.chunked_array([each]) for each in made]


def _check_utf8(text: bytes) -> None:
    """Refuses what is not UTF-8, which the scanner does not look at; values end at bytes that are part of no others."""
    ends = pa.py_buffer(np.array([0, len(text)], np.int32))
    pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(text)]).validate(full=True)


def _look(kind: pa.DataType) -> Look | None:
    return Look(Expected.NUMBER, type=kind, is_exact=False) if pa.types.is_decimal128(kind) else _LOOKS.get(kind)


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
        self._of_quotes, self._others = starts[following == _QUOTE], starts[following != _QUOTE]
        self._quotes = len(self._of_quotes)

    def doubled(self, block: bytearray, blank: npt.NDArray[np.intp]) -> tuple[bytes, int]:
        """The block with quotes that are escaped by quotes, and without other escapes; how many of them are quotes.

        Args:
            block: As received, and as it will be.
            blank: Where blanks are to stand for quotes.

        Raises:
            ValueError: An escape by number is none, or a lone surrogate.
        """
        octets = np.frombuffer(block, np.uint8)
        quotes, view, done = self._quotes, memoryview(block), 0
        pieces: list[bytes | memoryview] = []
        octets[self._of_quotes], octets[blank] = _QUOTE, _SPACE
        try:
            for at in self._others.tolist():
                if at < done:
                    continue
                text, end = _text_at(block, at)
                quotes += text.count('"')
                pieces += [view[done:at], text.replace('"', '""').encode()]
                done = end
            return b"".join([*pieces, view[done:]]), quotes
        finally:
            octets[self._of_quotes], octets[blank] = _BACKSLASH, _QUOTE

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
            text, end = _text_at(block, at)
            quotes, newlines = quotes + text.count('"'), newlines or "\n" in text or "\r" in text
            pieces += [view[done:at], text.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"')]
            done = end
        return b"".join([*pieces, view[done:]]) if pieces else block, quotes, newlines


def _text_at(block: bytearray, at: int) -> tuple[str, int]:
    """What the escape there stands for, and where it ends; of escapes by number all that follow one another.

    Raises:
        ValueError: It is none, or a lone surrogate.
    """
    if block[at + 1] != ord("u"):
        return _text(bytes(block[at : at + 2])), at + 2
    escapes = _BY_NUMBER.match(block, at)
    if escapes is None:
        raise ValueError("an escape that JSON does not have")
    return _text(escapes[0]), escapes.end()


@lru_cache(maxsize=4096)
def _text(escapes: bytes) -> str:
    text: str = orjson.loads(b'"%b"' % escapes)
    return text


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


def _bytes_of(texts: pa.Array) -> pa.Buffer | None:
    """The bytes of texts; behind them may be others."""
    _, offsets, data = texts.buffers()
    return data.slice(0, int(np.frombuffer(offsets, np.int32)[len(texts)])) if len(texts) and data else None


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
