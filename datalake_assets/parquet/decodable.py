"""What must not be decoded, found beforehand: rows that are too large to hold, and values that nothing proves.

Whoever decodes a row holds all of it, however few rows are asked for at a time, and Arrow ends the process, or the
system does, where memory doesn't suffice. How large a row gets is not in the footer: a list of a million texts takes a
few hundred bytes where they are one entry of a dictionary. So footers tell which row groups are above suspicion, then
the headers of pages, and of the few that are left, the sizes of their rows are added up (`chunk_pages.py`).

Nothing here says that a file is sound: what cannot be made out is left to Arrow, which says what is wrong with it.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.wording import count_text, size_text
from datalake_assets.parquet.bit_streams import MAX_VALUES, leading_number
from datalake_assets.parquet.chunk_pages import (
    BY_DICTIONARY,
    DICTIONARY_ENCODINGS,
    OVERHEAD_BYTES,
    UNREADABLE,
    Chunk,
    Chunks,
)
from datalake_assets.parquet.pages import DICTIONARY_PAGE
from datalake_assets.parquet.stated import Stated, stated_of

__all__ = ["ROW_BYTES", "ROW_GROUPS_HELD", "too_large", "undecodable"]

#: Bytes of the widest value of a type whose values have one length, but for those whose length the schema states.
WIDEST = 8
#: Decoded row groups that whoever rewrites may hold: what goes in, what is sorted, what is read back.
ROW_GROUPS_HELD = 3
#: Decoded bytes of a row, at the most, where nobody says how much memory there is: a compaction's default for all.
ROW_BYTES = (384 << 20) // ROW_GROUPS_HELD


def too_large(parquet: pq.ParquetFile, source: pa.NativeFile, *, row_bytes: int) -> str:
    """Why a file's rows are too large to decode, for a person; empty if they are not.

    Reads nothing where the footer leaves no doubt.

    Args:
        parquet: The file, opened.
        source: Its bytes.
        row_bytes: Decoded bytes of a row at the most; a page may take `ROW_GROUPS_HELD` times as many.
    """
    for chunks in Chunks(parquet.metadata, source):
        with contextlib.suppress(*UNREADABLE):
            if reason := _too_large(chunks, row_bytes):
                return reason
    return ""


def undecodable(parquet: pq.ParquetFile, source: pa.NativeFile, *, row_bytes: int, stated: Stated | None = None) -> str:
    """What `too_large` says, or else why nothing proves which values a file has; empty if neither is so.

    One look at each column chunk finds out both: of small files looks take a tenth of the time. Pages are read only of
    chunks whose rows may be too large, or whose dictionary the footer does not state.

    Args:
        parquet: As for `too_large`; so are the next two.
        source: Its bytes.
        row_bytes: Decoded bytes of a row at the most.
        stated: What its footer states, if somebody has looked it up.
    """
    if _is_above_suspicion(stated or stated_of(parquet.metadata), row_bytes):
        return ""
    doubt = ""
    for chunks in Chunks(parquet.metadata, source):
        with contextlib.suppress(*UNREADABLE):
            if reason := _too_large(chunks, row_bytes):
                return reason
        doubt = doubt or _unproven_of(chunks)
    return doubt


def _is_above_suspicion(stated: Stated, row_bytes: int) -> bool:
    """Whether a file's footer leaves no doubt, as that of nearly all small files: a fifth of the time of a look.

    It does where rows have one value a column, a whole row group has no more bytes than a row may have, and all
    dictionaries are stated.
    """
    if any(column.is_repeated for column in stated.columns):
        return False
    fixed = sum(max(column.width or 0, WIDEST) for column in stated.columns if column.is_fixed)
    fixed += (WIDEST + OVERHEAD_BYTES) * len(stated.columns)
    for group in stated.groups:
        if any(not chunk.dictionary and not BY_DICTIONARY.isdisjoint(chunk.encodings) for chunk in group.chunks):
            return False
        if sum(chunk.encoded_bytes for chunk in group.chunks) + fixed > row_bytes:
            return False
    return True


def _unproven_of(chunks: list[Chunk]) -> str:
    for chunk in chunks:
        with contextlib.suppress(*UNREADABLE):
            if reason := _unproven(chunk):
                return reason
    return ""


def _too_large(chunks: list[Chunk], row_bytes: int) -> str:
    """Why a row group's rows cannot be held; empty if they can."""
    held = row_bytes * ROW_GROUPS_HELD
    for chunk in chunks:
        if chunk.encoded_bytes > held:
            largest = max((found.page.plain_bytes for found in chunk.pages()), default=0)
            if largest > held:
                return (
                    f"a page of column {chunk.path!r} takes {size_text(largest)} decoded; {size_text(held)} may be"
                    " held, by compaction_memory_mb"
                )
    if sum(chunk.most_by_footer() for chunk in chunks) <= row_bytes:
        return ""
    suspects = [chunk for chunk in chunks if chunk.most_by_footer() * len(chunks) > row_bytes]
    suspects = [chunk for chunk in suspects if chunk.most_by_headers() * len(chunks) > row_bytes]
    if not suspects:
        return ""
    for chunk in suspects:
        if any(found.page.values > MAX_VALUES for found in chunk.pages()):
            return (
                f"a page of column {chunk.path!r} has more than {MAX_VALUES:,} values, too many to say whether its rows"
                " can be held"
            )
    sizes = {chunk.path: chunk.row_sizes() for chunk in suspects}
    of_rows = np.zeros(max(map(len, sizes.values())), np.int64)
    for of_chunk in sizes.values():
        of_rows[: len(of_chunk)] += of_chunk
    place = int(of_rows.argmax())
    if of_rows[place] <= row_bytes:
        return ""
    largest_path = max(sizes, key=lambda path: int(sizes[path][place : place + 1].sum()))
    return (
        f"a row takes {size_text(int(of_rows[place]))} decoded, most of it in column {largest_path!r};"
        f" {size_text(row_bytes)} may be held, a third of compaction_memory_mb"
    )


def _unproven(chunk: Chunk) -> str:
    """Why nothing proves which values a column chunk has; empty if something does.

    A dictionary that the metadata does not state is taken to be whatever page comes first, which goes well as long as
    the indices tell: they would point beyond the end of another one. Indices of no bits tell nothing. Where they are
    bit-packed besides, not even their number shows in a byte: Arrow takes them for the first entry, and a reader that
    counts bytes falls (apache/arrow issue 43605). parquet-mr, which named no dictionaries before 1.12, writes no more
    than eight values so, and repeats one in a run from there on.
    """
    if chunk.names_dictionary or not chunk.may_use_dictionary:
        return ""
    entries, tells, is_packed = 0, False, False
    for found in chunk.pages():
        if found.page.kind == DICTIONARY_PAGE:
            entries = found.page.values
        elif found.page.encoding in DICTIONARY_ENCODINGS:
            *_, values = chunk.parts(found)
            tells = tells or any(values[:1])
            is_packed = is_packed or (bytes(values[:1]) == b"\0" and _packs_many(values[1:]))
    unstated = (
        f"nothing proves the values of column {chunk.path!r}: the footer states no dictionary, and they are given as"
    )
    if is_packed:
        return f"{unstated} bit-packed indices of no bits"
    if entries > 1 and not tells:
        return f"{unstated} indices of no bits into {count_text(entries)} entries"
    return ""


def _packs_many(data: memoryview) -> bool:
    """Whether runs of no bits are bit-packed, more than one group of eight values at a time."""
    at = 0
    while at < len(data):
        run, at = leading_number(data, at)
        if run & 1 and run >> 1 > 1:
            return True
    return False
