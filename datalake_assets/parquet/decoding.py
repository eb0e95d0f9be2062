"""Rows of a Parquet file, decoded in pieces whose decoded size is bounded, whatever the file's own size.

A footer says how many bytes pages have before compression, not what becomes of them: a million rows of one long text
take a dictionary of one entry. So decoded sizes follow from types where these fix them, and from pages elsewhere: how
long the texts of their dictionaries are, and which rows have the long ones. Where pages cannot be made out, row groups
are begun with a few rows, and go on with as many as those let expect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from datalake_assets.core.values import Value
from datalake_assets.parquet.bit_streams import Numbers
from datalake_assets.parquet.chunk_checks import check_chunks
from datalake_assets.parquet.chunk_pages import (
    FIXED_OVERHEAD_BYTES,
    HIDING,
    OVERHEAD_BYTES,
    UNREADABLE,
    Chunk,
    Chunks,
)
from datalake_assets.parquet.pages import DICTIONARY_PAGE, HEADER_BYTES, page_of
from datalake_assets.parquet.stated import Stated, StatedChunk, StatedColumn, StatedGroup, schema_of, stated_of
from datalake_assets.parquet.stated_bounds import check_bounds
from datalake_assets.parquet.thrift import MalformedThrift

__all__ = [
    "AT_HAND",
    "failing_column",
    "far_time_column",
    "fits_piece",
    "is_dense",
    "open_parquet",
    "tables",
]

MIB = 1 << 20
#: Decoded bytes of a piece.
PIECE_BYTES = 32 * MIB
#: Rows that Arrow decodes at a time, at the most.
BATCH_ROWS = 1 << 16
#: The same where rows' size is only known afterwards: it cannot grow much before it is seen.
CAREFUL_ROWS = 1 << 12
#: Fewer rows at a time cost more than they are worth, unless they grow so many times.
GROWTH = 4
#: The same where sizes are looked up beforehand: each number divides the one before.
STEPS = tuple(1 << bits for bits in range(16, -1, -2))
#: A step must come so many times as far as the step before, since all rows up to there are decoded again.
GAIN = 2
#: Texts of a dictionary up to this length are all taken to be as long as the longest: they fit, whichever they are.
SHORT_BYTES = 2048
#: A dictionary's texts are taken to be so many times as long as they are on average.
SKEW = 4
#: Bytes above which the worst case counts, in which all values are the dictionary's longest.
WORST_BYTES = 8 * PIECE_BYTES
#: Texts that take no more even if all were as long as the chunk's bytes: no dictionary is looked at.
FEW_BYTES = PIECE_BYTES // 32
#: Files whose bytes are in memory, or mapped to it.
AT_HAND = (pa.BufferReader, pa.MemoryMappedFile, pa.OSFile)
#: Microseconds from 1970 that nanoseconds in 64 bits reach: from 1677 to 2262.
_NANOSECONDS_REACH_US = (1 << 63) // 1000


def open_parquet(
    source: pa.NativeFile, *, pre_buffer: bool = False, int96_unit: str | None = None, is_proven: bool = False
) -> pq.ParquetFile:
    """A file to read the rows of: Arrow compares the checksums of its pages, and gives extension types.

    Args:
        source: The file.
        pre_buffer: Whether Arrow fetches what it needs of a row group at once.
        int96_unit: What 96-bit timestamps are read as.
        is_proven: Its bytes are known to be those that we wrote, so that its metadata need no check.

    Raises:
        OSError: It is no Parquet file, or its metadata is damaged.
    """
    parquet = pq.ParquetFile(
        source,
        pre_buffer=pre_buffer,
        page_checksum_verification=True,
        arrow_extensions_enabled=True,
        coerce_int96_timestamp_unit=int96_unit,
    )
    if not is_proven:
        check_chunks(parquet.metadata, source.size())
        check_bounds(source)
    return parquet


def tables(
    parquet: pq.ParquetFile,
    *,
    piece_bytes: int = PIECE_BYTES,
    source: pa.NativeFile | None = None,
    stated: Stated | None = None,
    schema: pa.Schema | None = None,
) -> Iterator[pa.Table]:
    """All rows in their order; what Arrow raises is passed on.

    Arrow does not look whether there is a category for each number of one; a damaged dictionary would go unnoticed.

    Args:
        parquet: The file.
        piece_bytes: Decoded bytes of a piece, about; of a single row, as many as it has.
        source: The file's bytes: pages then say how large rows get, wherever the footer leaves doubt; otherwise sizes
            are measured while rows are decoded, and texts that are short at first may be long all at once.
        stated: What its footer states, if somebody has looked it up.
        schema: Arrow's of the file, if somebody has; to make it takes longer than to decode a small column.
    """
    categories = _categories(parquet.schema_arrow if schema is None else schema)
    for piece in _pieces(parquet, piece_bytes, source, stated or stated_of(parquet.metadata)):
        for name in categories:
            piece[name].validate(full=True)
        yield piece


def fits_piece(parquet: pq.ParquetFile, source: pa.NativeFile) -> bool:
    """Whether all rows are one piece of `tables`; for arguments see there."""
    return sum(size.bytes for size in _sizes(stated_of(parquet.metadata), source)) <= PIECE_BYTES


def failing_column(parquet: pq.ParquetFile) -> str:
    """The first column that does not decode by itself, since Arrow does not say which; empty if all do."""
    sizes = _sizes(stated_of(parquet.metadata))
    largest = max((max(size.longest, size.bytes // max(size.rows, 1)) for size in sizes), default=0)
    rows = max(1, min(CAREFUL_ROWS, PIECE_BYTES // max(largest, 1)))
    for field in parquet.schema_arrow:
        try:
            for batch in parquet.iter_batches(rows, columns=[field.name], use_threads=False):
                batch.validate(full=_has_dictionary(field.type))
        except (pa.ArrowException, OSError, ValueError):
            return str(field.name)
    return ""


def far_time_column(parquet: pq.ParquetFile) -> str:
    """The first column with a 96-bit timestamp before 1677 or after 2262; empty if there is none.

    Whoever reads these as nanoseconds in 64 bits, as Arrow does if not told and arrow-rs always, gets another time.

    Args:
        parquet: Opened with ``int96_unit="us"``.

    Raises:
        OSError, pyarrow.ArrowException: It cannot be read.
    """
    schema = schema_of(parquet.metadata)
    leaves = [schema.column(number) for number in range(parquet.metadata.num_columns)]
    for path in (leaf.path for leaf in leaves if leaf.physical_type == "INT96"):
        for batch in parquet.iter_batches(BATCH_ROWS, columns=[path], use_threads=False):
            if any(map(_is_far, batch.columns)):
                return str(path)
    return ""


def _is_far(array: pa.Array) -> bool:
    """Whether an array has such a time, at any depth."""
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    if pt.is_timestamp(array.type):
        bounds = pc.min_max(array.cast(pa.int64()))
        low, high = bounds["min"].as_py(), bounds["max"].as_py()
        return low is not None and max(-low, high) >= _NANOSECONDS_REACH_US
    if pt.is_struct(array.type):
        return any(map(_is_far, array.flatten()))
    if pt.is_map(array.type):
        return _is_far(array.keys) or _is_far(array.items)
    return pt.is_nested(array.type) and _is_far(array.flatten())


def is_dense(
    parquet: pq.ParquetFile, source: pa.NativeFile, *, limit_bytes: int, columns: Collection[str] | None = None
) -> bool:
    """Whether a row group takes more than so many bytes decoded; looks at the pages where the footer does not tell.

    Its first rows would not do: texts may be short at first, and long later.

    Args:
        parquet: The file.
        source: Its bytes.
        limit_bytes: How many.
        columns: Those that are to be decoded; None: all.
    """
    chunks = Chunks(parquet.metadata, source)
    for number, size in enumerate(_sizes(stated_of(parquet.metadata))):
        if size.bytes <= limit_bytes:
            continue
        wanted = [chunk for chunk in chunks.of(number) if columns is None or _is_of(chunk.path, columns)]
        try:
            if _decoded_bytes(wanted, limit_bytes) > limit_bytes:
                return True
        except UNREADABLE:
            return True
    return False


def _is_of(path: str, columns: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _decoded_bytes(chunks: list[Chunk], limit_bytes: int) -> int:
    """What a row group takes decoded; that of a column is looked up only if it might be a good part of the limit."""
    total = 0
    for chunk in chunks:
        if chunk.width is not None:
            total += chunk.values * (chunk.width + FIXED_OVERHEAD_BYTES)
            continue
        of_texts = limit_bytes if chunk.hides_by_prefixes else chunk.values * chunk.longest_entry()
        if of_texts * len(chunks) > limit_bytes:
            total += int(chunk.row_sizes(even_bytes=limit_bytes).sum())
        else:
            total += chunk.encoded_bytes + of_texts + chunk.values * OVERHEAD_BYTES
    return total


#: The schema that was asked about last, and its columns of categories; small files in a row have the same.
_last: tuple[pa.Schema, list[str]] | None = None


def _categories(schema: pa.Schema) -> list[str]:
    global _last  # noqa: PLW0603  replaced as a whole
    known = _last
    if known is not None and known[0].equals(schema):
        return known[1]
    found = [field.name for field in schema if _has_dictionary(field.type)]
    _last = schema, found
    return found


def _has_dictionary(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    inner = [kind.field(index).type for index in range(kind.num_fields)] if pt.is_nested(kind) else []
    return pt.is_dictionary(kind) or any(map(_has_dictionary, inner))


def _pieces(
    parquet: pq.ParquetFile, piece_bytes: int, source: pa.NativeFile | None, stated: Stated
) -> Iterator[pa.Table]:
    at_hand = source if isinstance(source, AT_HAND) else None  # elsewhere each look costs a request
    sizes = _sizes(stated, at_hand)
    if stated.rows and sum(size.bytes for size in sizes) <= piece_bytes:
        yield parquet.reader.read_all(use_threads=False)
        return
    chunks = None if source is None else Chunks(parquet.metadata, source)
    for number, size in enumerate(sizes):
        plan = _plan(chunks.of(number), size.rows, piece_bytes // 2) if chunks and size.bytes > piece_bytes else []
        if size.bytes <= piece_bytes:
            yield parquet.read_row_group(number, use_threads=False)
        elif plan:
            yield from _joined(_planned(parquet, number, plan), piece_bytes)
        elif size.longest:
            yield from _joined(_careful(parquet, number, size, piece_bytes), piece_bytes)
        else:
            rows = max(1, min(BATCH_ROWS, size.rows * piece_bytes // size.bytes))
            batches = parquet.iter_batches(rows, row_groups=[number], use_threads=False)
            yield from _joined(batches, piece_bytes)


def _plan(chunks: list[Chunk], rows: int, budget_bytes: int) -> list[tuple[int, int]]:
    """How many rows to decode at a time, and up to which row, so that they take two budgets beside the largest one.

    Numbers fall from step to step: each step begins again at the first row, and passes over rows that it takes more
    often than the step before, so that it never holds more of them. Empty if pages do not tell.
    """
    try:
        of_each, of_rows = _row_sizes(chunks, rows, budget_bytes)
    except UNREADABLE:
        return []
    plan, done = [], 0
    for batch_rows in STEPS:
        until = rows if batch_rows == 1 or batch_rows * of_each <= budget_bytes else 0
        if until and of_rows is not None and batch_rows > 1:
            starts = np.arange(0, rows, batch_rows)
            beside_largest = np.add.reduceat(of_rows, starts) - np.maximum.reduceat(of_rows, starts)
            over = np.flatnonzero(beside_largest + batch_rows * of_each > budget_bytes)
            until = int(starts[over[0]]) if len(over) else rows
        if until == rows or until >= GAIN * done > 0 or (until and not done):
            plan.append((batch_rows, until))
            done = until
        if done == rows:
            break
    return plan


def _row_sizes(chunks: list[Chunk], rows: int, spare_bytes: int) -> tuple[int, Numbers | None]:
    """Decoded bytes that every row takes at the most, and those that each one takes besides; None if none does.

    Chunks that are small all in all are left out, as long as they take no more than ``spare_bytes`` together.
    """
    of_each, of_rows, even_bytes = 0, None, spare_bytes // 8
    for chunk in sorted(chunks, key=lambda each: each.encoded_bytes):
        if chunk.width is not None and not chunk.is_repeated:
            of_each += chunk.width + FIXED_OVERHEAD_BYTES
            continue
        if chunk.width is None:
            longest = spare_bytes if chunk.hides_by_prefixes else chunk.longest_entry()
            most = chunk.encoded_bytes + (0 if not chunk.is_repeated else chunk.values * (longest + OVERHEAD_BYTES))
        else:
            longest, most = 0, chunk.values * (chunk.width + FIXED_OVERHEAD_BYTES)
        if most <= spare_bytes and longest <= SHORT_BYTES:
            spare_bytes -= most
            of_each += 0 if chunk.is_repeated else longest + OVERHEAD_BYTES
            continue
        sizes = chunk.row_sizes(even_bytes=even_bytes, short_bytes=SHORT_BYTES)
        if len(sizes) != rows:
            raise MalformedThrift("a column has another number of rows")
        of_rows = sizes if of_rows is None else of_rows + sizes
    return of_each, of_rows


def _planned(parquet: pq.ParquetFile, number: int, plan: list[tuple[int, int]]) -> Iterator[pa.RecordBatch]:
    """A row group by its plan."""
    done = 0
    for rows, until in plan:
        at = 0
        for batch in parquet.iter_batches(rows, row_groups=[number], use_threads=False):
            begin, at = at, at + batch.num_rows
            if at > done:
                yield batch.slice(max(0, done - begin))
                done = at
            if at >= until:
                break


class _Size(Value, frozen=True):
    """What a row group's metadata lets expect.

    Attributes:
        rows: Its rows.
        bytes: Decoded, at the most where encodings hide sizes.
        longest: Bytes that a row takes in its columns of hidden sizes, at the most; of nested ones if all rows have as
            many values. 0 if it has none.
    """

    rows: int
    bytes: int
    longest: int

    @classmethod
    def of(cls, group: StatedGroup, columns: Sequence[StatedColumn], source: pa.NativeFile | None = None) -> _Size:
        """What it states; ``source`` has the pages of dictionaries, if they may be looked at."""
        plain, longest, hidden = 0, 0, 0
        for chunk, column in zip(group.chunks, columns, strict=True):
            values, encoded = chunk.values, chunk.encoded_bytes
            plain += values * OVERHEAD_BYTES
            if column.width is not None:
                plain += values * column.width
            elif HIDING.isdisjoint(chunk.encodings):
                plain += encoded
            elif source is not None and values * encoded <= FEW_BYTES:
                plain += values * encoded
            elif (texts := _texts_bytes(chunk, source)) is not None:
                plain += encoded + texts
            else:
                longest += encoded * max(1, -(-values // max(group.rows, 1)))
                hidden += encoded * values
        return cls(group.rows, plain + hidden, longest)


def _sizes(stated: Stated, source: pa.NativeFile | None = None) -> list[_Size]:
    return [_Size.of(group, stated.columns, source) for group in stated.groups]


def _texts_bytes(chunk: StatedChunk, source: pa.NativeFile | None) -> int | None:
    """Bytes of the texts of a column chunk by its dictionary, generously; None if that does not say enough.

    Texts of a dictionary may differ in length and in how often they are used, so that much more than the mean is
    allowed for; and where even the longest possible would take too much, nothing is taken for granted.
    """
    begin, values = chunk.dictionary, chunk.values
    if source is None or "DELTA_BYTE_ARRAY" in chunk.encodings:
        return None
    if not 0 < begin < source.size():  # Arrow asks Python for a negative number of bytes otherwise: a SystemError
        return None
    try:
        page = page_of(source.read_at(min(HEADER_BYTES, source.size() - begin), begin))
    except (MalformedThrift, OSError, ValueError):
        return None
    if page.kind != DICTIONARY_PAGE or values * page.plain_bytes > WORST_BYTES:
        return None
    return SKEW * values * page.plain_bytes // max(page.values, 1)


def _careful(parquet: pq.ParquetFile, number: int, size: _Size, piece_bytes: int) -> Iterator[pa.RecordBatch]:
    """A row group whose rows' sizes show only when they are decoded.

    Begins with so few that even the longest fit. Arrow keeps the number of rows that it was opened with, so that going
    on with another number means to begin again, and to skip what is done.
    """
    rows, done = max(1, min(CAREFUL_ROWS, piece_bytes // size.longest)), 0
    while done < size.rows:
        at, wanted = 0, rows
        for batch in parquet.iter_batches(rows, row_groups=[number], use_threads=False):
            at += batch.num_rows
            if at <= done:
                continue
            fresh = batch.slice(max(0, batch.num_rows - (at - done)))
            wanted = _rows_wanted(batch, piece_bytes)
            done = at
            yield fresh
            if wanted >= GROWTH * rows or (wanted < rows and batch.nbytes > piece_bytes):
                break
        else:
            return
        rows = wanted


def _rows_wanted(batch: pa.RecordBatch, piece_bytes: int) -> int:
    """How many rows fit into half a piece if they are like these."""
    decoded = 2 * max(int(batch.nbytes), 1)
    return max(1, min(CAREFUL_ROWS, int(batch.num_rows) * piece_bytes // decoded))


def _joined(batches: Iterator[pa.RecordBatch], piece_bytes: int) -> Iterator[pa.Table]:
    """Small batches as one table."""
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    for batch in batches:
        if held and held_bytes + batch.nbytes > piece_bytes:
            yield pa.Table.from_batches(held)
            held, held_bytes = [], 0
        held.append(batch)
        held_bytes += batch.nbytes
    if held:
        yield pa.Table.from_batches(held)
