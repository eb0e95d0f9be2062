"""Scans records of CSV in C++: where they end, and whether the values of each column are what the column was so far.

Why it exists: types are inferred over the whole of a file, and to see of each value that it fits takes Arrow a second
parse of all of it. The library (`csvscan.h` says what it decides) is optional as the kernel that merges pages is: it is
built on install where a compiler is, and everything works without it, more slowly. ``DATALAKE_NATIVE=0`` switches both
off.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from datalake_assets.native_library import library_of, loaded_or_why_not, setting

__all__ = ["CsvForm", "Expected", "Scanned", "Scanner", "load_scanner", "open_scanner", "scanner_status"]

#: `CS_VERSION` of the header; a library of another one is not used.
VERSION = 1


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


class _CColumn(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("most", ctypes.c_int32),
        ("digits", ctypes.c_int32),
        ("scale", ctypes.c_int32),
        ("has_point", ctypes.c_int32),
        ("in_doubt", ctypes.c_int32),
        ("is_far", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("values", ctypes.c_int64),
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
    """

    values: int
    digits: int
    scale: int
    has_point: bool
    in_doubt: bool
    is_far: bool


class Scanner:
    """The library; safe to use from threads, which it lets go on.

    Args:
        library: As it was loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        form = ctypes.POINTER(CsvForm)
        self._scan, self._cut = library.cs_scan, library.cs_cut
        self._scan.argtypes = (ctypes.c_char_p, ctypes.c_int64, form, ctypes.POINTER(_CColumn), ctypes.c_int64)
        self._scan.restype = ctypes.c_int64
        self._cut.argtypes = (ctypes.c_char_p, ctypes.c_int64, form, ctypes.c_int32, ctypes.POINTER(_CCut))
        self._cut.restype = None

    def scan(self, data: bytes, columns: Sequence[tuple[Expected, int]], form: CsvForm) -> list[Scanned] | None:
        """What the columns have; None if some value may be another, or a record has not these fields.

        Args:
            data: Whole records.
            columns: Of each column in the file's order what is expected, and of times the most digits of a second.
            form: How they are written.
        """
        array = (_CColumn * len(columns))(*(_CColumn(*each) for each in columns))
        if self._scan(data, len(data), ctypes.byref(form), array, len(columns)) < 0:
            return None
        return [
            Scanned(each.values, each.digits, each.scale, bool(each.has_point), bool(each.in_doubt), bool(each.is_far))
            for each in array
        ]

    def cut(self, data: bytes, form: CsvForm, *, is_end: bool) -> tuple[int, int] | None:
        """Bytes of whole records, and lines that end within these; None if a quote stands where it may not.

        Args:
            data: Begins with a record.
            form: How they are written.
            is_end: No more data follow.
        """
        cut = _CCut()
        self._cut(data, len(data), ctypes.byref(form), is_end, ctypes.byref(cut))
        return (cut.cut, cut.lines) if cut.is_plain else None


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
