"""The comparer: proves that a merged row group has its inputs' values, by code that had no part in merging them.

Its C++ was written from the format's specification and shares no line with the kernel that merges pages. It decodes
both sides page by page and compares levels and values; what it says is equal, it has read. What it does not understand
it says so, and another reader has to compare: Arrow. `pagecompare.h` has the interface.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from datalake_assets.core.values import Value
from datalake_assets.native_library import library_of, loaded_or_why_not, setting

__all__ = ["Compared", "Comparer", "Joined", "Side", "Verdict", "comparer_status", "load_comparer", "open_comparer"]

#: `PC_VERSION` of the header; a library of another one is not used.
VERSION = 4
#: Files whose metadata are joined at a time, and bytes of these, at the most.
_JOINED_FILES, _JOINED_BYTES = 256, 1 << 20
#: Codecs that Arrow is asked about, by Parquet's numbers.
_CODECS = {2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
#: `pc_unpack` of the header.
_Unpack = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    *(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32),
)


def _by_arrow(  # noqa: PLR0917  a function of C
    codec: int, packed: int, packed_bytes: int, plain: int, plain_bytes: int, is_made: int
) -> int:
    """Decompresses by Arrow, or says whether it makes what is there; nothing may be raised here."""
    try:
        made = pa.decompress(pa.foreign_buffer(packed, packed_bytes), plain_bytes, codec=_CODECS[codec])
        if is_made:
            return int(not plain_bytes or made.equals(pa.foreign_buffer(plain, plain_bytes)))
        ctypes.memmove(plain, made.address, plain_bytes)
    except Exception:  # noqa: BLE001  whatever it is, Arrow does not take it
        return 0
    return 1


#: As C calls it; has to stay as long as the process.
_BY_ARROW = _Unpack(_by_arrow)


class _CFile(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size_bytes", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("proven", ctypes.c_int32),
    )


class _CResult(ctypes.Structure):
    _fields_ = (
        ("verdict", ctypes.c_int32),
        ("input", ctypes.c_int32),
        ("column", ctypes.c_int32),
        ("reason", ctypes.c_char * 244),
        ("rows", ctypes.c_int64),
        ("values", ctypes.c_int64),
        ("peak_bytes", ctypes.c_int64),
    )


class _CJoined(ctypes.Structure):
    _fields_ = (
        ("like", ctypes.c_int32),
        ("row_groups", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("size_bytes", ctypes.c_int64),
        ("schema_offset", ctypes.c_int64),
        ("schema_bytes", ctypes.c_int64),
    )


class Verdict(IntEnum):
    """What came of a comparison."""

    EQUAL = 0
    DIFFERS = 1
    #: A file is damaged, or has something that is not understood here: another reader has to say.
    UNCLEAR = 2


class Side(Value, frozen=True):
    """A file of one side.

    Attributes:
        data: All of its bytes.
        rows: That it is said to have.
        proven: Somebody vouches for its bytes: checksums of pages need not be compared, nor levels of lists and groups
            with each other; a file that is read alone has the latter looked at in any case.
    """

    data: pa.Buffer
    rows: int
    proven: bool = False


class Compared(Value, frozen=True):
    """What came of a comparison.

    Attributes:
        verdict: Whether both sides have the same values.
        reason: Why not, or why nobody knows; empty where they have.
        input: Number of the file that it is about; None: the output, or no one alone.
        column: Number of the leaf that it is about; None: none alone.
        rows: Of the output.
        values: Of all its leaves, nulls included, that were compared.
        peak_bytes: That were allocated at once.
    """

    verdict: Verdict
    reason: str = ""
    input: int | None = None
    column: int | None = None
    rows: int = 0
    values: int = 0
    peak_bytes: int = 0


class Joined(Value, frozen=True):
    """Files that state the same besides rows, row groups and key-values.

    Attributes:
        files: Their numbers.
        rows: Of each.
        row_groups: How many each has.
        arrow_schemas: Arrow's own schemas, encoded, by number of the file; without those of files that have the same as
            the file before.
        data: A file of no pages that has the row groups and key-values of all; None: it is one file alone.
    """

    files: list[int]
    rows: list[int]
    row_groups: list[int]
    arrow_schemas: dict[int, pa.Buffer]
    data: pa.Buffer | None


class Comparer:
    """The loaded library; thread-safe, since no state outlives a call."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def compare(
        self,
        inputs: Sequence[Side],
        output: Side,
        footer: bytes,
        *,
        memory_bytes: int = 0,
        asks_arrow: bool = False,
    ) -> Compared:
        """Whether a file of one row group has the rows of others, one file after the other; raises nothing.

        Types are compared as Parquet has them: all files have to state the same schema, byte for byte.

        Args:
            inputs: The others.
            output: The file.
            footer: The metadata that it is to have, whatever it has at its end.
            memory_bytes: That may be allocated; 0: no limit.
            asks_arrow: Compressed pages of inputs that are not proven are what Arrow makes of them, or unclear. Not for
                the main thread, where it would lose an interruption.
        """
        files = (_CFile * len(inputs))(*map(_file, inputs))
        told = _CResult()
        made, other = ctypes.byref(_file(output)), _BY_ARROW if asks_arrow else None
        self._library.pc_compare(len(inputs), files, made, footer, len(footer), memory_bytes, other, ctypes.byref(told))
        return _compared(told)

    def read(self, side: Side, *, memory_bytes: int = 0) -> Compared:
        """Whether a file can be read to its last value: EQUAL, or UNCLEAR; raises nothing.

        Args:
            side: The file.
            memory_bytes: That may be allocated; 0: no limit.
        """
        told = _CResult()
        self._library.pc_read(ctypes.byref(_file(side)), memory_bytes, ctypes.byref(told))
        return _compared(told)

    def join(self, files: Sequence[pa.Buffer]) -> Iterator[Joined]:
        """Joins the metadata of files that state the same; each is in one of these, if it has to be alone.

        All of a joined file's chunks lie among its pages, and its bounds are values of their columns.

        Args:
            files: The files' bytes.
        """
        begin = 0
        while begin < len(files):
            some = files[begin : begin + _JOINED_FILES]
            told, room = (_CJoined * len(some))(), pa.allocate_buffer(_JOINED_BYTES)
            parts = (_CFile * len(some))(*(_CFile(each.address, each.size) for each in some))
            looked_at = self._library.pc_join(len(some), parts, room.address, room.size, told)
            if not looked_at:
                yield Joined([begin], [], [], {}, None)
            likes: dict[int, list[int]] = {}
            for number, each in enumerate(told[:looked_at]):
                likes.setdefault(number if each.like < 0 else each.like, []).append(number)
            for numbers in likes.values():
                yield _joined(numbers, told, some, begin, room)
            begin += max(looked_at, 1)


def _joined(
    numbers: list[int], told: ctypes.Array[_CJoined], files: Sequence[pa.Buffer], begin: int, room: pa.Buffer
) -> Joined:
    all_told, first = [told[number] for number in numbers], told[numbers[0]]
    return Joined(
        [begin + number for number in numbers],
        [each.rows for each in all_told],
        [each.row_groups for each in all_told],
        {
            begin + number: files[number].slice(each.schema_offset, each.schema_bytes)
            for number, each in zip(numbers, all_told, strict=True)
            if each.schema_offset
        },
        room.slice(first.offset, first.size_bytes) if len(numbers) > 1 else None,
    )


def _compared(told: _CResult) -> Compared:
    return Compared(
        Verdict(told.verdict),
        told.reason.decode(errors="replace"),
        told.input if told.input >= 0 else None,
        told.column if told.column >= 0 else None,
        told.rows,
        told.values,
        told.peak_bytes,
    )


def _file(side: Side) -> _CFile:
    return _CFile(side.data.address, side.data.size, side.rows, side.proven)


def open_comparer(path: Path) -> Comparer:
    """Loads a library.

    Raises:
        OSError: It does not load, or has another interface.
        AttributeError: It is another library.
    """
    library = library_of(path, "pc_version", VERSION)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.pc_compare.argtypes = (number, pointer, pointer, ctypes.c_char_p, number, number, pointer, pointer)
    library.pc_read.argtypes = (pointer, number, pointer)
    library.pc_join.argtypes = (number, pointer, pointer, number, pointer)
    library.pc_join.restype = number
    return Comparer(library)


@lru_cache(maxsize=2)
def _loaded(said: str) -> tuple[Comparer | None, str]:
    return loaded_or_why_not(Path(__file__).with_name("pagecompare.so"), open_comparer, said)


def load_comparer() -> Comparer | None:
    """The comparer, or None where it is switched off, was not built, or does not load."""
    return _loaded(setting())[0]


def comparer_status() -> str:
    """Whether the comparer is there, for a person; if not, why not."""
    _, reason = _loaded(setting())
    return f"comparer: none ({reason}); Arrow compares, more slowly" if reason else "comparer: there"
