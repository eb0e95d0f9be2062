"""Exact decoding of a query's rows into Arrow; what cannot be decoded is set aside, row by row, with the reason.

Two paths, the fast one first: ``flat_rows`` takes blocks of flat rows whole; ``typed_rows`` takes nested rows, and the
few lines that the fast path refuses. A block that was refused is cut in eighths until the trouble is cornered, then
judged line by line. The first rows of every block that the fast path read are decoded again by the other and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from types import GenericAlias
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.sources.ksqldb.decode.flat import FlatReader, is_flat, line_ends
from datalake_assets.sources.ksqldb.decode.typed import codec, gc_paused
from datalake_assets.sources.ksqldb.sql_types import Column

__all__ = ["DecodedRows", "RowDecoder", "UndecodedRow"]

_Ends: TypeAlias = npt.NDArray[np.intp]

_WRAPPED_PREFIX, _ARRAY_PREFIX = b'{"row":{"columns":[', b"["
_WRAPPED_SUFFIXES: Final[tuple[bytes, ...]] = (b"]}},", b"]}}")
_ARRAY_SUFFIXES: Final[tuple[bytes, ...]] = (b"]",)
_EXACT_LINES: Final = 4096  # what the exact path takes at once: its Python values stay below some megabytes
_FEW_LINES: Final = 64  # below, starting the CSV reader costs more than it saves
_VERIFIED_ROWS: Final = 8
_PIECES: Final = 8
# UnicodeDecodeError and Arrow's errors are ValueErrors; a value too big for its C type is an OverflowError.
_REFUSALS: Final = (msgspec.MsgspecError, ValueError, OverflowError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class UndecodedRow:
    """A row that was not decoded.

    Attributes:
        raw: Its text as received, without the separators around it.
        reason: One line. It may quote a value.
        line: Its ordinal among the rows of the response, good ones included, from 1.
    """

    raw: bytes
    reason: str
    line: int


@dataclass(frozen=True, slots=True)
class DecodedRows:
    """The rows of one block, in the order received.

    Attributes:
        table: The good ones.
        rejected: The others, in order; nothing is lost: together they are all of the block's rows.
    """

    table: pa.Table
    rejected: tuple[UndecodedRow, ...] = ()

    @property
    def lines(self) -> int:
        """How many rows the block had, good or not."""
        return int(self.table.num_rows) + len(self.rejected)


class RowDecoder:
    """Decodes blocks of rows of one schema.

    Strict: a value of another JSON type than its column's, a number that does not fit exactly, a year outside 1 to
    9999, a lone surrogate, a missing or an extra value reject the row. Four things are laxer, for speed, and change no
    value of a well-formed response. In a block read by the fast path, leading zeros and hexadecimal integers are
    numbers; a raw control character in a text is itself; the non-finite numbers may be spelled in any case; and if as
    many values are wrongly quoted as others are wrongly bare, all are read as what their columns say. A TIMESTAMP may
    be any ISO 8601 text without zone and no finer than milliseconds.

    Args:
        columns: The row's columns, in the order of its values.
        schema: Their Arrow schema, in step: what ``arrow_schema`` made of them.
        wrapped: ``{"row":{"columns":[…]}}`` with or without a comma after it, rather than ``[…]``.
        threads: Whether Arrow may use its thread pool: a fifth more CPU, and encoding goes on meanwhile anyway.
    """

    def __init__(self, columns: Sequence[Column], schema: pa.Schema, *, wrapped: bool, threads: bool = False) -> None:
        self.schema = schema
        self.prefix = _WRAPPED_PREFIX if wrapped else _ARRAY_PREFIX
        self._suffixes = _WRAPPED_SUFFIXES if wrapped else _ARRAY_SUFFIXES
        codecs = [codec(column.type, field.type) for column, field in zip(columns, schema, strict=True)]
        self._builders = [each.build for each in codecs]
        row: Any = GenericAlias(tuple, tuple(each.nullable for each in codecs) or ((),))
        self._values: Callable[[Any], tuple[Any, ...]] = attrgetter("row.columns") if wrapped else tuple
        row = _row_object(row) if wrapped else row
        self._one = msgspec.json.Decoder(row)
        self._many = msgspec.json.Decoder(GenericAlias(list, row)) if wrapped else self._one
        self._flat = (
            FlatReader(columns, schema, prefix=self.prefix, threads=threads) if is_flat(columns) and columns else None
        )

    def decode(
        self, block: bytearray, *, first_line: int = 1, plain: Callable[[bytearray], bytearray] | None = None
    ) -> DecodedRows:
        """Decodes a block.

        Args:
            block: Whole lines, one row each, every one ended by a newline. It is written to; its contents are undefined
                afterwards.
            first_line: The ordinal of its first row.
            plain: Called if the block is not rows in plain form only, one to a line; gives the block to decode instead.
        """
        ends, suffix = self._framing(block)
        if not suffix and plain is not None:
            block = plain(block)
            ends, suffix = self._framing(block)
        with gc_paused():
            return _joined(list(self._pieces(block, ends, suffix, first_line)), self.schema)

    def is_plain(self, line: bytes) -> bool:
        """Whether a line, without its newline, looks like a row in the form that the fast path takes."""
        suffix = self._suffixes[0]
        return len(line) >= len(self.prefix) + len(suffix) and line.startswith(self.prefix) and line.endswith(suffix)

    def odd_lines(self, block: bytearray) -> list[tuple[int, int]]:
        """Where the lines of a block begin and end of which `is_plain` does not hold, in order, without their newlines.

        Args:
            block: Whole lines, every one ended by a newline.
        """
        ends, suffix = line_ends(block), self._suffixes[0]
        starts = np.concatenate([[0], ends[:-1] + 1])
        is_plain = ends - starts >= len(self.prefix) + len(suffix)
        is_plain[is_plain] = _which_at(block, starts[is_plain], self.prefix)
        is_plain[is_plain] = _which_at(block, ends[is_plain] - len(suffix), suffix)
        return list(zip(starts[~is_plain].tolist(), ends[~is_plain].tolist(), strict=True))

    def _pieces(self, block: bytearray, ends: _Ends, suffix: bytes, first_line: int) -> Iterator[DecodedRows]:
        if self._flat is None or not suffix or len(ends) < _FEW_LINES:
            yield from self._exact(block, ends, suffix, first_line)
            return
        head = bytes(block[: ends[:_VERIFIED_ROWS][-1] + 1])
        try:
            table = self._flat.read(block, ends, suffix=suffix, check=partial(self._verify, head))
        except _REFUSALS:
            yield from self._refused(block, ends, first_line)
        else:
            yield DecodedRows(table)

    def _refused(self, block: bytearray, ends: _Ends, first_line: int) -> Iterator[DecodedRows]:
        """Eighths of a block, each on the fast path if it is still big."""
        if len(ends) <= _EXACT_LINES:
            yield from self._exact(block, ends, b"", first_line)
            return
        step = -(-len(ends) // _PIECES)
        for start in range(0, len(ends), step):
            stop = min(start + step, len(ends))
            piece = block[ends[start - 1] + 1 if start else 0 : ends[stop - 1] + 1]
            yield from self._pieces(piece, *self._framing(piece), first_line + start)

    def _exact(self, block: bytearray, ends: _Ends, suffix: bytes, first_line: int) -> Iterator[DecodedRows]:
        for start in range(0, len(ends), _EXACT_LINES):
            stop = min(start + _EXACT_LINES, len(ends))
            piece = bytes(block[ends[start - 1] + 1 if start else 0 : ends[stop - 1] + 1])
            try:
                yield DecodedRows(self._at_once(piece, suffix, stop - start))
            except _REFUSALS:
                yield self._one_by_one(piece, first_line + start)

    def _at_once(self, piece: bytes, suffix: bytes, rows: int) -> pa.Table:
        """A piece by one call of msgspec; only framed lines, so that no value can span two of them."""
        if suffix.endswith(b","):
            decoded = self._many.decode(b"[" + piece[:-2] + b"]")
        elif suffix:
            decoded = self._one.decode_lines(piece)
        else:
            raise ValueError("not framed")
        if len(decoded) != rows:
            raise ValueError("a line with more than one row")
        return self._table(list(map(self._values, decoded)))

    def _one_by_one(self, piece: bytes, first_line: int) -> DecodedRows:
        good: list[tuple[tuple[Any, ...], bytes, int]] = []
        rejected: list[UndecodedRow] = []
        for line, raw in enumerate(piece.split(b"\n")[:-1], first_line):
            text = raw.removesuffix(b",")
            try:
                good.append((self._values(self._one.decode(text)), text, line))
            except _REFUSALS as error:
                rejected.append(UndecodedRow(text, _reason(error), line))
        tables: list[pa.Table] = []
        self._corner(good, tables, rejected)
        rejected.sort(key=attrgetter("line"))
        return DecodedRows(pa.concat_tables(tables) if tables else self.schema.empty_table(), tuple(rejected))

    def _corner(
        self, good: list[tuple[tuple[Any, ...], bytes, int]], tables: list[pa.Table], rejected: list[UndecodedRow]
    ) -> None:
        """Rows that msgspec took and Arrow may refuse, a decimal too fine for instance: halves, until it is alone."""
        if not good:
            return
        try:
            tables.append(self._table([values for values, _, _ in good]))
        except _REFUSALS as error:
            if len(good) == 1:
                rejected.append(UndecodedRow(good[0][1], _reason(error), good[0][2]))
                return
            middle = len(good) // 2
            self._corner(good[:middle], tables, rejected)
            self._corner(good[middle:], tables, rejected)

    def _table(self, rows: list[tuple[Any, ...]]) -> pa.Table:
        columns = zip(*rows, strict=True) if rows else [()] * len(self._builders)
        arrays = [build(values) for build, values in zip(self._builders, columns, strict=True)]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _framing(self, block: bytearray) -> tuple[_Ends, bytes]:
        """Where the lines end; and the suffix that every line has, if all have it and the prefix too, else nothing."""
        ends = line_ends(block)
        suffix = next((each for each in self._suffixes if block.endswith(each + b"\n")), b"")
        starts = np.concatenate([[0], ends[:-1] + 1])
        if not suffix or (ends - starts < len(self.prefix) + len(suffix)).any():
            return ends, b""
        framed = _all_at(block, starts, self.prefix) and _all_at(block, ends - len(suffix), suffix)
        return ends, suffix if framed else b""

    def _verify(self, head: bytes, table: pa.Table) -> None:
        lines = head.split(b"\n")[:-1]
        exact = self._table([self._values(self._one.decode(line.removesuffix(b","))) for line in lines])
        for fast, slow in zip(table.slice(0, len(lines)).columns, exact.columns, strict=True):
            if not _equal(fast, slow):
                raise ValueError("the two paths disagree")


def _row_object(row: Any) -> type[msgspec.Struct]:
    inner = msgspec.defstruct("Row", [("columns", row)], forbid_unknown_fields=True, gc=False)
    return msgspec.defstruct("RowObject", [("row", inner)], forbid_unknown_fields=True, gc=False)


def _all_at(block: bytearray, positions: npt.NDArray[np.intp], expected: bytes) -> bool:
    """Whether ``expected`` stands at every one of the positions."""
    return _found_at(block, positions, len(expected)).tobytes() == expected * len(positions)


def _which_at(block: bytearray, positions: npt.NDArray[np.intp], expected: bytes) -> npt.NDArray[np.bool_]:
    """At which of the positions ``expected`` stands."""
    same: npt.NDArray[np.bool_] = _found_at(block, positions, len(expected)) == np.void(expected)
    return same


def _found_at(block: bytearray, positions: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.void]:
    """So many bytes from each of the positions on; overlapping windows on the block, gathered at once."""
    windows: npt.NDArray[np.void] = np.ndarray((max(len(block) - size + 1, 0),), f"V{size}", block, strides=(1,))
    return windows[positions]


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> bool:
    if not pa.types.is_floating(left.type):
        return bool(left.equals(right))
    nans = pc.is_nan(left)
    same = pc.if_else(nans, 0.0, left).equals(pc.if_else(pc.is_nan(right), 0.0, right))
    return bool(same and nans.equals(pc.is_nan(right)))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _joined(pieces: list[DecodedRows], schema: pa.Schema) -> DecodedRows:
    tables = [piece.table for piece in pieces if piece.table.num_rows]
    rejected = tuple(row for piece in pieces for row in piece.rejected)
    return DecodedRows(pa.concat_tables(tables) if tables else schema.empty_table(), rejected)
