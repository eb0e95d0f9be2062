"""Scans records of CSV in C++: where they end, whether the values of each column are what it was so far, and these.

Why it exists: types are inferred over the whole of a file, and to see of each value that it fits takes Arrow a second
parse of all of it. Who has looked at a value has almost parsed it, too. Rows of ksqlDB, which a few bytes make CSV
(`datalake_assets.sources.ksqldb.decode.flat`), it reads in half of Arrow's time. The library (`csvscan.h` says what it
decides) is optional as the kernel that merges pages is: it is built on install where a compiler is, and everything
works without it, more slowly. ``DATALAKE_NATIVE=0`` switches both off.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datalake_assets.native_library import library_of, loaded_or_why_not, setting

__all__ = [
    "CsvForm",
    "Expected",
    "Look",
    "Scanned",
    "Scanner",
    "can_make",
    "load_scanner",
    "open_scanner",
    "scanner_status",
]

#: `CS_VERSION` of the header; a library of another one is not used.
VERSION = 2


class Expected(enum.IntEnum):
    """What the values of a column are expected to be; the numbers are those of `csvscan.h`.

    Attributes:
        ANY: Nobody asks.
        NOTHING: All are null.
        NUMBER: Numbers without an exponent, whose form and digits a decimal keeps.
        DOUBLE: Numbers whose digits a double keeps.
        EMPTY: All are null or empty.
    """

    ANY = 0
    NOTHING = 1
    BOOL = 2
    NUMBER = 3
    DOUBLE = 4
    DATE = 5
    TIME = 6
    ZONED = 7
    EMPTY = 8


class _Target(enum.IntEnum):
    """What values become; the numbers are those of `csvscan.h`."""

    NO_VALUES = 0
    TEXTS = 1
    BITS = 2
    INT32 = 3
    INT64 = 4
    DECIMAL = 5
    REAL = 6
    DAYS = 7
    MICROS = 8
    NANOS = 9


#: Targets by types, with the bits of a value.
_TARGETS: Mapping[pa.DataType, tuple[_Target, int]] = {
    pa.string(): (_Target.TEXTS, 0),
    pa.bool_(): (_Target.BITS, 1),
    pa.int32(): (_Target.INT32, 32),
    pa.int64(): (_Target.INT64, 64),
    pa.float64(): (_Target.REAL, 64),
    pa.date32(): (_Target.DAYS, 32),
    pa.timestamp("us"): (_Target.MICROS, 64),
    pa.timestamp("us", "UTC"): (_Target.MICROS, 64),
    pa.timestamp("ns"): (_Target.NANOS, 64),
    pa.timestamp("ns", "UTC"): (_Target.NANOS, 64),
}
_DECIMAL_BITS, _OFFSET_BYTES = 128, 4
_FILLED = 1 << 32
#: `CS_SLACK` of the header.
_SLACK = 16


@dataclass(frozen=True, slots=True)
class Look:
    """What to look for in a column.

    Attributes:
        expected: What its values are to be.
        most_digits: Of times, the most digits of a second.
        type: What they are wanted in; None: they are not.
        is_settled: The type was chosen or seen to be right: no matter that zeros lead a number, that a double does not
            keep its digits, or that a time is a day.
        is_exact: Whether it matters if doubles keep the digits of numbers; else long ones are said to be in doubt.
    """

    expected: Expected = Expected.ANY
    most_digits: int = 0
    type: pa.DataType | None = None
    is_settled: bool = False
    is_exact: bool = True


def can_make(kind: pa.DataType) -> bool:
    """Whether values can be had in a type."""
    return kind in _TARGETS or pa.types.is_decimal128(kind)


class _CColumn(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("most", ctypes.c_int32),
        ("target", ctypes.c_int32),
        ("precision", ctypes.c_int32),
        ("places", ctypes.c_int32),
        ("is_settled", ctypes.c_int32),
        ("is_exact", ctypes.c_int32),
        ("digits", ctypes.c_int32),
        ("scale", ctypes.c_int32),
        ("has_point", ctypes.c_int32),
        ("in_doubt", ctypes.c_int32),
        ("is_far", ctypes.c_int32),
        ("values", ctypes.c_int64),
        ("nulls", ctypes.c_int64),
        ("text_bytes", ctypes.c_int64),
        ("validity", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
    )


class CsvForm(ctypes.Structure):
    """How records are written.

    Args:
        delimiter: Between fields; one byte.
        quote: Around fields; one byte, or empty: quotes are like other bytes.
        nulls: Texts without quotes that are null, besides the empty one.
    """

    _fields_ = (
        ("delimiter", ctypes.c_uint8),
        ("quote", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 6),
        ("nulls", ctypes.c_char_p),
        ("null_sizes", ctypes.POINTER(ctypes.c_int64)),
        ("null_count", ctypes.c_int64),
    )

    def __init__(self, delimiter: str, quote: str, nulls: Iterable[str]) -> None:
        texts = [each.encode() for each in nulls]
        sizes = (ctypes.c_int64 * len(texts))(*map(len, texts))
        super().__init__(
            delimiter=ord(delimiter),
            quote=ord(quote or "\0"),
            nulls=b"".join(texts),
            null_sizes=ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
            null_count=len(texts),
        )


class _CCut(ctypes.Structure):
    _fields_ = (
        ("cut", ctypes.c_int64),
        ("lines", ctypes.c_int64),
        ("is_plain", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class Scanned:
    """The values of a column.

    Attributes:
        values: How many are neither null nor empty.
        digits: Of `Expected.NUMBER`: most digits before the point; a lone 0 is none.
        scale: And behind it.
        has_point: Whether any has one.
        in_doubt: Whether a double may not keep all digits of some.
        is_far: Of times: whether 64 bits do not hold some in nanoseconds.
        array: The values, if they were wanted, and those of all columns could be made.
    """

    values: int
    digits: int
    scale: int
    has_point: bool
    in_doubt: bool
    is_far: bool
    array: pa.Array | None = None


def _column(look: Look) -> _CColumn:
    kind = look.type
    target, precision, places = _Target.NO_VALUES, 0, 0
    if kind is not None:
        is_decimal = pa.types.is_decimal128(kind)
        target = _Target.DECIMAL if is_decimal else _TARGETS[kind][0]
        precision, places = (kind.precision, kind.scale) if is_decimal else (0, 0)
    return _CColumn(look.expected, look.most_digits, target, precision, places, look.is_settled, look.is_exact)


class _Made:
    """Room for a column's values.

    Args:
        column: Whose fields were found; is told where the room is.
        look: What is wanted of it.
        records: How many there are.
    """

    def __init__(self, column: _CColumn, look: Look, records: int) -> None:
        self._type, self._records = look.type, records
        self._buffers: list[pa.Buffer] = []
        if self._type is None:
            return
        is_text = column.target == _Target.TEXTS
        bits = _DECIMAL_BITS if column.target == _Target.DECIMAL else _TARGETS[self._type][1]
        values = pa.allocate_buffer(column.text_bytes + _SLACK if is_text else (records * bits + 7) // 8)
        validity = pa.allocate_buffer((records + 7) // 8)
        column.validity, column.data = validity.address, values.address
        self._buffers = [validity, values]
        if is_text:
            offsets = pa.allocate_buffer((records + 1) * _OFFSET_BYTES)
            column.offsets = offsets.address
            self._buffers = [validity, offsets, values]

    def array(self, column: _CColumn) -> pa.Array | None:
        """The values; None if nobody wants them."""
        if self._type is None:
            return None
        validity, *others = self._buffers
        return pa.Array.from_buffers(
            self._type, self._records, [validity if column.nulls else None, *others], column.nulls
        )


class Scanner:
    """The library; safe to use from threads, which it lets go on.

    Args:
        library: As it was loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        form, columns = ctypes.POINTER(CsvForm), ctypes.POINTER(_CColumn)
        data, fields, count = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64
        self._cut, self._index, self._columns = library.cs_cut, library.cs_index, library.cs_columns
        self._cut.argtypes = (fields, count, form, ctypes.c_int32, ctypes.POINTER(_CCut))
        self._cut.restype = None
        self._index.argtypes = (data, count, form, fields, columns, count, count)
        self._index.restype = count
        self._columns.argtypes = (data, count, form, fields, columns, count, count, count)
        self._columns.restype = ctypes.c_int32

    def scan(
        self,
        data: bytes,
        looks: Sequence[Look],
        form: CsvForm,
        *,
        lines: int,
        blanks: bool = True,
        scratch: npt.NDArray[np.uint64] | None = None,
    ) -> list[Scanned] | None:
        """What the columns have; None if some value may be another, or a record has not these fields.

        Args:
            data: Whole records.
            looks: Of each column in the file's order, what is to be looked for.
            form: How they are written.
            lines: Ends of lines in the data.
            blanks: Whether a field without a byte is null; if not, nothing is said of data with one that is wanted.
            scratch: Memory to use, if it is large enough: an element for each field, and for a record more.
        """
        # a record takes a line, and each of its fields a byte that ends it, but for the last of all
        room = min(lines, (len(data) + 1) // max(len(looks), 1)) + 1
        fields = scratch
        if fields is None or len(fields) < room * len(looks):
            fields = np.empty(room * len(looks), np.uint64)
        columns = (_CColumn * len(looks))(*(_column(each) for each in looks))
        at, form_at, count = fields.ctypes.data, ctypes.byref(form), len(looks)
        records = self._index(data, len(data), form_at, at, columns, count, room)
        if records < 0 or not (blanks or _are_filled(fields, looks, room, records)):
            return None
        made = [_Made(column, look, records) for column, look in zip(columns, looks, strict=True)]
        found = self._columns(data, len(data), form_at, at, columns, count, room, records)
        if found < 0:
            return None
        return [
            Scanned(
                each.values,
                each.digits,
                each.scale,
                bool(each.has_point),
                bool(each.in_doubt),
                bool(each.is_far),
                one.array(each) if found else None,
            )
            for each, one in zip(columns, made, strict=True)
        ]

    def cut(self, room: bytearray, size: int, form: CsvForm, *, is_end: bool) -> tuple[int, int] | None:
        """Bytes of whole records, and lines that end within these; None if a quote stands where it may not.

        Args:
            room: Begins with a record.
            size: Bytes of it that count.
            form: How they are written.
            is_end: No more data follow.

        Raises:
            ValueError: The room is not so large, or none.
        """
        if not 0 < size <= len(room):
            raise ValueError(f"{size} of {len(room)} bytes")
        cut, first = _CCut(), ctypes.c_char.from_buffer(room)
        self._cut(ctypes.byref(first), size, ctypes.byref(form), is_end, ctypes.byref(cut))
        return (cut.cut, cut.lines) if cut.is_plain else None


def _are_filled(fields: npt.NDArray[np.uint64], looks: Sequence[Look], room: int, records: int) -> bool:
    """Whether each field of the columns that are wanted has a byte, if only a quote."""
    wanted = (at * room for at, look in enumerate(looks) if look.type is not None)
    # the size and the flags are the upper half
    return all(int(fields[start : start + records].min(initial=_FILLED)) >= _FILLED for start in wanted)


def open_scanner(path: Path) -> Scanner:
    """Loads a library.

    Raises:
        OSError: It does not load, or has another interface.
        AttributeError: It is another library.
    """
    library = library_of(path, "cs_version", VERSION)
    return Scanner(library)


@lru_cache(maxsize=2)
def _loaded(said: str) -> tuple[Scanner | None, str]:
    return loaded_or_why_not(Path(__file__).with_name("csvscan.so"), open_scanner, said)


def load_scanner() -> Scanner | None:
    """The library, or None where it is switched off, was not built, or does not load."""
    return _loaded(setting())[0]


def scanner_status() -> str:
    """Whether the library is there, for a person; if not, why not."""
    _, reason = _loaded(setting())
    return f"CSV scanner: none ({reason}); Arrow looks, more slowly" if reason else "CSV scanner: there"
