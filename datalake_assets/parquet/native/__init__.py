"""The page-merging kernel: many small Parquet files become one row group without being decoded to rows.

Why it exists: decoding and encoding thousands of tiny files costs several times what moving their pages does. The
kernel (C++, in this folder; `format.hpp` has the facts that it rests on, `pagemerge.h` its interface) is optional: it
is built on install where a compiler and headers are, and everything works without it, on Arrow, more slowly.
``DATALAKE_NATIVE=0`` switches it off; a path there loads another build of it.

`load_kernel` returns the kernel or None, `native_status` says which and why. `Kernel.check` says of files whether they
can take part, what they are, and why not; `Kernel.merge` merges them. Both release the interpreter's lock, take paths
or anything with bytes in it, and never raise anything but `Refused`, with the input's place and the reason. What
refuses one file says nothing of the others: leave it out and merge again.

What the kernel's own verification proves is said in `pagemerge.h`; it shares code with what merges, so that whoever
wants values proven compares them with another reader.
"""

from __future__ import annotations

import ctypes
import enum
import os
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from datalake_assets.core.values import Value
from datalake_assets.native_library import loaded_or_why_not, setting
from datalake_assets.parquet.native.interface import (
    STEPS,
    CChecked,
    CInput,
    COptions,
    CResult,
    CSpan,
    CText,
    open_library,
)

__all__ = [
    "Cancel",
    "Checked",
    "Depth",
    "Kernel",
    "MergeOptions",
    "Merged",
    "NativeStatus",
    "Part",
    "Refusal",
    "Refused",
    "load_kernel",
    "native_status",
]

#: Parquet's numbers of codecs (parquet.thrift, CompressionCodec).
_CODECS = {"none": 0, "snappy": 1, "gzip": 2, "brotli": 4, "zstd": 6, "lz4": 7}
_NAMES = {number: name for name, number in _CODECS.items()}

Span: TypeAlias = tuple[int, int]


class Refusal(enum.IntEnum):
    """Why something was refused; the numbers are those of `pagemerge.h`."""

    DAMAGED = 1
    UNSUPPORTED = 2
    NO_CODEC = 3
    DIFFERS = 4
    CHANGED = 5
    MEMORY = 6
    CANCELLED = 7
    UNREADABLE = 8
    UNSORTED = 9
    INTERNAL = 10


class Depth(enum.IntEnum):
    """How deep `Kernel.check` looks.

    Attributes:
        FOOTER: The footer alone, against the schema and the file's size.
        PAGES: Each page's header: kinds, lengths, numbers of values; checksums where there are any.
        DECOMPRESS: Each page decompresses to its length, its levels decode, nulls and rows are as many as stated.
        DECODE: Indices lie within their dictionary, and values decode to the last one.
    """

    FOOTER = 0
    PAGES = 1
    DECOMPRESS = 2
    DECODE = 3


class Refused(Exception):
    """What the kernel does not do.

    Attributes:
        kind: The kind of reason.
        index: Place of the input among those given; -1 if none alone is at fault.
        why: The reason, for a person; the subject is the input.
    """

    def __init__(self, kind: Refusal, index: int, why: str) -> None:
        super().__init__(f"input {index}: {why}" if index >= 0 else why)
        self.kind, self.index, self.why = kind, index, why


class Part(msgspec.Struct, frozen=True):  # one for each of many files
    """An input.

    Attributes:
        data: A path, the descriptor of an open file, or the file's bytes: anything with a buffer, which is not copied.
        size_bytes: Expected size of a file whose bytes are not given; None: not known.
        rows: Expected rows of the whole file; None: not known.
        digest: Expected XXH3-128 of the bytes, canonical, 16 bytes; None: not compared. Proves the file.
        proven: Somebody vouches for the bytes: values that are copied are not decoded to prove them.
        row_groups: Of the file, which take part: the first, and how many; None: all.
    """

    data: Any
    size_bytes: int | None = None
    rows: int | None = None
    digest: bytes | None = None
    proven: bool = False
    row_groups: tuple[int, int] | None = None


class Cancel:
    """Ends a merge from another thread: `set` makes it raise `Refused` (CANCELLED) at the next column chunk."""

    def __init__(self) -> None:
        self._flag = ctypes.c_int32(0)

    def set(self) -> None:
        """Cancels; there is no way back."""
        self._flag.value = 1

    @property
    def address(self) -> int:
        """Of the flag, for the library."""
        return ctypes.addressof(self._flag)


class MergeOptions(Value, frozen=True):
    """How files are merged.

    Attributes:
        codec: Of the output: ``none``, ``snappy`` or ``zstd``.
        level: Of Zstandard.
        page_bytes: Of a page before compression, at the most, but for a single row.
        page_rows: Of a page, at the most, but for a page of less than ``page_least_bytes``; eight times as many of one
            that is copied as it is.
        page_least_bytes: Of a page's values before compression, unless its column chunk has less.
        verify: Read encoded pages again from the output, and compare.
        compared: Others read each input by itself, and compare its values with the output's: then parts of pages that
            stay compressed are not gone through. ``verify`` does not count then.
        copy: Copy compressed pages where they can stay as they are.
        time_leaf: Place among the schema's leaves of a column of integers, one a row; None: none.
        order: What becomes of rows that are not in order of the time leaf: ``keep`` them so, ``sort`` them (nulls last,
            rows of equal time in their order), or ``refuse`` the merge before the other columns are looked at.
        bloom: ``build`` bloom filters anew for columns that have one in some input, ``drop`` them, or ``refuse``.
        memory_bytes: That the merge may allocate: inputs that are given as paths, the output, and about twice the
            largest column decoded; 0: no limit.
        key_values: Of the output's footer; None: those of the inputs, which have to be the same then.
        created_by: The writer's name in the footer.
    """

    codec: str = "snappy"
    level: int = 1
    page_bytes: int = 1 << 20
    page_rows: int = 20_480
    page_least_bytes: int = 64 << 10
    verify: bool = True
    compared: bool = False
    copy: bool = True
    time_leaf: int | None = None
    order: Literal["keep", "sort", "refuse"] = "keep"
    bloom: Literal["drop", "build", "refuse"] = "build"
    memory_bytes: int = 0
    key_values: Mapping[bytes, bytes | None] | None = msgspec.field(default_factory=dict)
    created_by: bytes = b"parquet-cpp-arrow version 26.0.1"


class Merged(Value, frozen=True):
    """A Parquet file of one row group (none, if there are no rows), in memory.

    Attributes:
        view: Its bytes; they live as long as there is a view of them.
        rows: Of all inputs.
        times: Least and greatest value of the time leaf; None if there is none.
        unsorted: Rows came out of order; with ``order="sort"`` they are sorted in the output.
        in_bytes: Of the inputs.
        copied_bytes: Of compressed values that stayed as they were.
        copied_pages: Pages that hold them.
        encoded_pages: The others.
        dropped_sorting: Inputs stated how rows are sorted, and the output doesn't, since its rows may not be.
        peak_bytes: The most that was allocated at a time.
        seconds: CPU of this thread by step: ``read``, ``footer``, ``decode``, ``encode``, ``verify``.
    """

    view: memoryview
    rows: int
    times: tuple[int, int] | None
    unsorted: bool
    in_bytes: int
    copied_bytes: int
    copied_pages: int
    encoded_pages: int
    dropped_sorting: bool
    peak_bytes: int
    seconds: Mapping[str, float]


class Checked(msgspec.Struct, frozen=True):
    """What is known of a file.

    Attributes:
        refused: Why it cannot take part; None if it can. Of a refused file nothing else is known.
        rows: Of the row groups that take part.
        row_groups: Their number.
        size_bytes: Of the file.
        plain_bytes: Of their column chunks before compression, by the footer.
        largest_chunk_plain_bytes: The same of the largest column chunk.
        largest_group_bytes: Of the largest row group, compressed.
        most_row_bytes: Of a row, decoded, at the most, as far as the footer tells.
        pages: That were walked.
        checksums: Of them, with a checksum; all were right.
        schema_digest: Equal where the schemas' elements are, byte for byte: such files merge.
        key_values_digest: Of the footer's key-values as they stand.
        schema: Where the schema's list lies in the file, with its head: offset and length.
        key_values: Where the list of key-values lies, with its head; length 0 if there is none.
        created_by: Where the writer's name lies.
        codecs: Of the column chunks.
        bloom_leaves: With a bloom filter, a bit for each of the first 63 leaves, the next one for all others.
        has_sorting: Some row group states how its rows are sorted.
        has_page_index: Some column chunk has one.
        has_chunk_key_values: Some column chunk has key-values of its own.
        has_repeated: Some leaf is repeated.
        unstated_dictionary: Some column chunk lists dictionary encodings and states no dictionary page (ADR 017).
        times: Bounds of the time leaf by exact statistics; None where they say nothing, or there are nulls.
    """

    refused: Refused | None
    rows: int = 0
    row_groups: int = 0
    size_bytes: int = 0
    plain_bytes: int = 0
    largest_chunk_plain_bytes: int = 0
    largest_group_bytes: int = 0
    most_row_bytes: int = 0
    pages: int = 0
    checksums: int = 0
    schema_digest: bytes = b""
    key_values_digest: bytes = b""
    schema: Span = (0, 0)
    key_values: Span = (0, 0)
    created_by: Span = (0, 0)
    codecs: frozenset[str] = frozenset()
    bloom_leaves: int = 0
    has_sorting: bool = False
    has_page_index: bool = False
    has_chunk_key_values: bool = False
    has_repeated: bool = False
    unstated_dictionary: bool = False
    times: tuple[int, int] | None = None


class NativeStatus(Value, frozen=True):
    """Whether the kernel is there.

    Attributes:
        reason: Why it is not, for a person; empty if it is.
        library: Its file.
        reads: Codecs of inputs whose values can be decoded.
        writes: Codecs of outputs.
    """

    reason: str
    library: Path | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.reason:
            return f"native kernel: none ({self.reason}); small files are merged on Arrow, more slowly"
        return f"native kernel: {self.library}; reads {', '.join(self.reads)}; writes {', '.join(self.writes)}"


def _inputs(parts: Sequence[Part]) -> tuple[ctypes.Array[CInput], list[object]]:
    """The parts as the library takes them, and what has to live meanwhile."""
    held: list[object] = []
    inputs = (CInput * len(parts))()
    for each, part in zip(inputs, parts, strict=True):
        each.descriptor, each.size_bytes = -1, -1 if part.size_bytes is None else part.size_bytes
        if isinstance(part.data, int):
            each.descriptor = part.data
        elif isinstance(part.data, (str, os.PathLike)):
            each.path = os.fsencode(part.data)
        else:
            each.data, each.size_bytes = _address(part.data, held)
        each.rows = -1 if part.rows is None else part.rows
        if part.digest is not None:
            each.digest = part.digest
        each.proven = part.proven
        each.first_group, each.groups = part.row_groups or (0, -1)
    return inputs, held


def _address(data: Any, held: list[object]) -> tuple[int, int]:
    if isinstance(data, bytes):
        held.append(text := ctypes.c_char_p(data))
        return ctypes.cast(text, ctypes.c_void_p).value or 0, len(data)
    import pyarrow as pa  # noqa: PLC0415  the only way to a read-only buffer's address

    held.append(buffer := data if isinstance(data, pa.Buffer) else pa.py_buffer(data))
    return buffer.address, buffer.size


def _texts(texts: Sequence[bytes | None]) -> ctypes.Array[CText]:
    return (CText * len(texts))(*(CText(text, -1 if text is None else len(text)) for text in texts))


class Kernel:
    """The loaded library; thread-safe, since no state outlives a call."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def check(
        self,
        parts: Sequence[Part],
        depth: Depth = Depth.FOOTER,
        *,
        time_leaf: int | None = None,
        memory_bytes: int = 0,
    ) -> list[Checked]:
        """Says of each file whether it can take part; whether it fits the others is for their digests to say.

        Args:
            parts: The files.
            depth: How deep to look.
            time_leaf: Leaf whose bounds are wanted.
            memory_bytes: That the check of one file may allocate; 0: no limit.
        """
        inputs, held = _inputs(parts)
        found = (CChecked * len(parts))()
        leaf = -1 if time_leaf is None else time_leaf
        self._library.pm_check(len(parts), inputs, depth, leaf, memory_bytes, found)
        del held
        return [_checked(each, index) for index, each in enumerate(found)]

    def walk(self, parts: Sequence[Part], *, memory_bytes: int = 0) -> list[Refused | None]:
        """Says of each file why its column chunks must not be copied as they are; None if they may be.

        Every page has to be what the metadata says, by its header, length, place and checksum, and by the offset index.
        Nothing is decompressed.

        Args:
            parts: The files.
            memory_bytes: That the walk of one file may allocate; 0: no limit.
        """
        inputs, held = _inputs(parts)
        found = (CChecked * len(parts))()
        self._library.pm_walk(len(parts), inputs, memory_bytes, found)
        del held
        return [_refused(each, index) for index, each in enumerate(found)]

    def merge(self, parts: Sequence[Part], options: MergeOptions, *, cancel: Cancel | None = None) -> Merged:
        """Merges files, in the order given, into one row group.

        Raises:
            Refused: A file, or all of them; nothing was written anywhere.
        """
        inputs, held = _inputs(parts)
        chosen = COptions(
            codec=_CODECS[options.codec],
            level=options.level,
            page_bytes=options.page_bytes,
            page_rows=options.page_rows,
            page_least_bytes=options.page_least_bytes,
            verify=2 if options.compared else int(options.verify),  # pm_verify
            copy=options.copy,
            time_leaf=-1 if options.time_leaf is None else options.time_leaf,
            order=("keep", "sort", "refuse").index(options.order),
            bloom=("drop", "build", "refuse").index(options.bloom),
            memory_bytes=options.memory_bytes,
            created_by=options.created_by,
            created_by_bytes=len(options.created_by),
            cancelled=cancel.address if cancel else None,
        )
        if options.key_values is not None:
            chosen.keys = _texts([*options.key_values]) if options.key_values else (CText * 1)()
            chosen.values = _texts([*options.key_values.values()])
            chosen.key_values = len(options.key_values)
        result = CResult()
        code = self._library.pm_merge(len(parts), inputs, ctypes.byref(chosen), ctypes.byref(result))
        del held
        if code:
            raise Refused(Refusal(code), result.bad_input, _reason(result.reason))
        return self._merged(result)

    def _merged(self, result: CResult) -> Merged:
        array = (ctypes.c_uint8 * result.size_bytes).from_address(result.data)
        weakref.finalize(array, self._library.pm_free, result.data)
        return Merged(
            memoryview(array).cast("B"),
            result.rows,
            (result.time_min, result.time_max) if result.has_times else None,
            bool(result.unsorted),
            result.in_bytes,
            result.copied_bytes,
            result.copied_pages,
            result.encoded_pages,
            bool(result.dropped_sorting),
            result.peak_bytes,
            {step: getattr(result, f"{step}_s") for step in STEPS},
        )


def _reason(text: bytes) -> str:
    return text.decode(errors="replace")


def _refused(found: CChecked, index: int) -> Refused | None:
    return Refused(Refusal(found.code), index, _reason(found.reason)) if found.code else None


def _checked(found: CChecked, index: int) -> Checked:
    if refused := _refused(found, index):
        return Checked(refused)
    return Checked(
        None,
        found.rows,
        found.row_groups,
        found.size_bytes,
        found.plain_bytes,
        found.largest_chunk_plain_bytes,
        found.largest_group_bytes,
        found.most_row_bytes,
        found.pages,
        found.checksums,
        bytes(found.schema_digest),
        bytes(found.key_values_digest),
        _span(found.schema),
        _span(found.key_values),
        _span(found.created_by),
        _names(found.codecs),
        found.bloom_leaves,
        bool(found.has_sorting),
        bool(found.has_page_index),
        bool(found.has_chunk_key_values),
        bool(found.has_repeated),
        bool(found.unstated_dictionary),
        (found.time_min, found.time_max) if found.has_times else None,
    )


def _span(span: CSpan) -> Span:
    return span.offset, span.size_bytes


@lru_cache(maxsize=64)
def _names(bits: int) -> frozenset[str]:
    return frozenset(_NAMES.get(number, f"codec {number}") for number in range(32) if bits >> number & 1)


@lru_cache(maxsize=4)
def _loaded(said: str) -> tuple[Kernel | None, NativeStatus]:
    path = Path(said) if said else Path(__file__).with_name("pagemerge.so")
    library, reason = loaded_or_why_not(path, open_library, said)
    if library is None:
        return None, NativeStatus(reason)
    reads, writes = (tuple(sorted(_names(bits))) for bits in (library.pm_reads(), library.pm_writes()))
    return Kernel(library), NativeStatus("", path, reads, writes)


def load_kernel() -> Kernel | None:
    """The kernel, or None where it is switched off, was not built, or does not load."""
    return _loaded(setting())[0]


def native_status() -> NativeStatus:
    """Whether the kernel is there, with which codecs, and if not, why not."""
    return _loaded(setting())[1]
