"""Where records are in a CSV file, and how it is written: blocks of whole records, found by their quotes.

The grammar is RFC 4180's, as Arrow and Python's `csv` read it: a field that begins with a quote ends with one, a quote
in it is written twice, and a quote in a field that does not begin with one is itself. Blank lines are no records.

A block whose quotes all stand where they may is cut by counting them: a line ends a record if the quotes before it are
even in number. Where one stands elsewhere, fields are told apart one by one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from datalake_assets.core.arrow_arrays import of_texts
from datalake_assets.sources.files.csv_scan import CsvForm, load_scanner
from datalake_assets.sources.files.text_values import classified

if TYPE_CHECKING:
    from io import BufferedIOBase

__all__ = [
    "MAX_RECORD_BYTES",
    "SAMPLE_BYTES",
    "Block",
    "CsvDialect",
    "Records",
    "blocks",
    "fields_of",
    "find_dialect",
    "first_records",
    "form_of",
    "header_of",
    "line_ends",
    "records_of",
]

#: Bytes of a block, and of the longest record.
BLOCK_BYTES, MAX_RECORD_BYTES = 2 << 20, 16 << 20
#: Delimiters that are looked for, the likeliest first.
DELIMITERS = (",", ";", "\t", "|")
#: Records that a dialect is told from.
SAMPLE_RECORDS, SAMPLE_BYTES = 200, 256 << 10
_LF, _CR = 10, 13

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """How a file is written.

    Attributes:
        delimiter: Between fields; one byte.
        quote: Around fields; one byte, or empty: quotes are like other bytes.
        header: Whether the first record has the columns' names.
        skip_lines: Lines before the first record.
        nulls: Texts without quotes that are null.
        is_utf8: Whether all bytes are known to be UTF-8, so that no record need be looked at for it.
    """

    delimiter: str = ","
    quote: str = '"'
    header: bool = True
    skip_lines: int = 0
    nulls: tuple[str, ...] = ("",)
    is_utf8: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Whole records.

    Attributes:
        data: Their bytes, the last line's end with them unless the file ends without one.
        line: Number of their first line, from 1.
        is_plain: Whether each quote stands where it may.
        unended: The data are one record that is too long, or whose quote never ends.
        lines: Ends of lines in them; None: nobody has counted.
    """

    data: bytes
    line: int
    is_plain: bool = True
    unended: bool = False
    lines: int | None = None


def blocks(stream: BinaryIO, dialect: CsvDialect, *, line: int = 1, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """Cuts a UTF-8 file into blocks of whole records, from where it stands; each is read once.

    Args:
        stream: The file, buffered: it gives as many bytes as it is asked for, but at its end.
        dialect: How it is written.
        line: Number of the line that it stands at.
        size: Bytes of a block.
    """
    # one room for all that is read: a block is copied out of it once, when its end is known
    room, filled, wanted = bytearray(), 0, size
    while True:
        room.extend(bytes(max(0, filled + wanted - len(room))))
        with memoryview(room) as view:
            came = cast("BufferedIOBase", stream).readinto(view[filled : filled + wanted])
            is_end, filled = came < wanted, filled + came
            if not filled:
                return
            cut, lines, is_plain = _cut_of(room, filled, dialect, is_end=is_end)
            if not cut and not is_end and filled <= MAX_RECORD_BYTES:
                wanted = max(size, filled)
                continue
            if cut:
                whole = bytes(view[:cut])
                yield Block(whole, line, is_plain, lines=lines)
                line += _lines(whole) if lines is None else lines
            left, wanted = filled - cut, size
            view[:left] = view[cut:filled]
            filled = left
            if not cut or is_end:
                if left:
                    yield Block(bytes(view[:left]), line, is_plain=False, unended=True)
                return


def _lines(data: bytes) -> int:
    count = int(np.count_nonzero(np.frombuffer(data, np.uint8) == _LF))  # a quarter of the time of bytes.count
    if b"\r" in data:
        count += data.count(b"\r") - data.count(b"\r\n")
    return count


def first_records(block: Block, size: int, dialect: CsvDialect) -> Block | None:
    """The records at the beginning of a block that end within so many bytes; None if none does."""
    room = bytearray(block.data[:size])
    cut, lines, is_plain = _cut_of(room, len(room), dialect, is_end=False)
    return Block(bytes(room[:cut]), block.line, is_plain, lines=lines) if cut else None


@lru_cache(maxsize=64)
def form_of(dialect: CsvDialect) -> CsvForm:
    """The same for a scanner."""
    return CsvForm(dialect.delimiter, dialect.quote, (each for each in dialect.nulls if each))


def _cut_of(room: bytearray, filled: int, dialect: CsvDialect, *, is_end: bool) -> tuple[int, int | None, bool]:
    """As `_cut`, of the first bytes of a room."""
    scanner = load_scanner()
    found = None if scanner is None else scanner.cut(room, filled, form_of(dialect), is_end=is_end)
    if found is not None:
        return *found, True
    with memoryview(room) as view:
        data = bytes(view[:filled])
    return _cut(data, dialect, is_end=is_end)


def _cut(data: bytes, dialect: CsvDialect, *, is_end: bool) -> tuple[int, int | None, bool]:
    """The end of the last whole record, lines up to there if they were counted, and whether quotes are well placed."""
    quote = dialect.quote.encode()
    if not quote or quote not in data:
        return (len(data) if is_end else _last_line_end(data)), None, True
    seen = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(seen == quote[0])
    if not _well_placed(seen, quotes, dialect):
        return _last_record_end(data, dialect, is_end=is_end), None, False
    if is_end and len(quotes) % 2 == 0:
        return len(data), None, True
    return _last_end_outside(data, seen, quotes, is_end=is_end), None, True


def _last_record_end(data: bytes, dialect: CsvDialect, *, is_end: bool) -> int:
    return _records_one_by_one(data, dialect, is_end=is_end)[2]


def _last_end_outside(data: bytes, seen: npt.NDArray[np.uint8], quotes: Ints, *, is_end: bool) -> int:
    """Where the last line ends that is not within quotes; 0 if none does."""
    if b"\r" in data:
        ends = line_ends(seen, is_end=is_end)
        outside = ends[np.searchsorted(quotes, ends) % 2 == 0]
        return int(outside[-1]) + 1 if len(outside) else 0
    at = len(data)
    while (at := data.rfind(b"\n", 0, at)) >= 0 and np.searchsorted(quotes, at) % 2:
        at = int(quotes[np.searchsorted(quotes, at) - 1])  # every line up to this quote ends within it
    return at + 1


def _last_line_end(data: bytes) -> int:
    cut = data.rfind(b"\n") + 1
    if b"\r" in data[cut:-1]:
        cut = data.rfind(b"\r", cut, len(data) - 1) + 1
    return cut


def line_ends(seen: npt.NDArray[np.uint8], *, is_end: bool) -> Ints:
    """The last byte of each line's end; a carriage return at the end of the data may be half of one."""
    feeds = seen == _LF
    if not (returns := seen == _CR).any():
        return np.flatnonzero(feeds)
    alone = returns.copy()
    alone[:-1] &= ~feeds[1:]
    alone[-1] &= is_end
    return np.flatnonzero(feeds | alone)


def _well_placed(seen: npt.NDArray[np.uint8], quotes: Ints, dialect: CsvDialect) -> bool:
    """Whether quotes open at the beginning of a field and close at its end, two of them in a field apart."""
    delimiter = ord(dialect.delimiter)
    opening, closing = quotes[0::2], quotes[1::2]
    before = seen[np.maximum(opening - 1, 0)]
    opens = (opening == 0) | (before == delimiter) | (before == _LF) | (before == _CR)
    doubled = np.zeros(len(opening), np.bool_)
    doubled[1:] = opening[1:] == closing[: len(opening) - 1] + 1
    if not (opens | doubled).all():
        return False
    after = seen[np.minimum(closing + 1, len(seen) - 1)]
    closes = (closing == len(seen) - 1) | (after == delimiter) | (after == _LF) | (after == _CR)
    closes[: len(opening) - 1] |= doubled[1:]
    return bool(closes.all())


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a block: where they begin and end, how many fields each has, and whether its quotes are odd."""

    starts: Ints
    ends: Ints
    fields: Ints
    odd: Mask


def records_of(block: Block, dialect: CsvDialect) -> Records:
    """The records of a block, blank lines left out."""
    if not block.is_plain:
        return _records_one_by_one(block.data, dialect, is_end=True)[0]
    seen = np.frombuffer(block.data, np.uint8)
    if not len(seen):
        nothing = np.empty(0, np.int64)
        return Records(nothing, nothing, nothing, np.empty(0, np.bool_))
    ends = line_ends(seen, is_end=True)
    separators = np.flatnonzero(seen == ord(dialect.delimiter))
    quotes = np.flatnonzero(seen == ord(dialect.quote)) if dialect.quote else np.empty(0, np.int64)
    if len(quotes):
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
    if not len(ends) or ends[-1] < len(seen) - 1:
        ends = np.append(ends, len(seen))
    starts = np.concatenate([[0], ends[:-1] + 1])
    # a line's end of two bytes begins one earlier
    inner = np.minimum(ends, len(seen) - 1)
    two = (ends < len(seen)) & (seen[inner] == _LF) & (ends > starts) & (seen[np.maximum(inner - 1, 0)] == _CR)
    ends = ends - two
    fields = np.searchsorted(separators, ends) - np.searchsorted(separators, starts) + 1
    there = ends > starts
    return Records(starts[there], ends[there], fields[there], np.zeros(int(there.sum()), np.bool_))


def _records_one_by_one(
    data: bytes, dialect: CsvDialect, *, is_end: bool, most: int | None = None
) -> tuple[Records, bool, int]:
    """The same where quotes stand anywhere; and the end of the last whole record. One regular expression a field.

    Args:
        data: Bytes that begin with a record.
        dialect: How the file is written.
        is_end: Whether the file ends with them.
        most: Records that are wanted, the first; None: all.
    """
    quote, delimiter = re.escape(dialect.quote.encode()), re.escape(dialect.delimiter.encode())
    one = re.compile(
        rb"(?:(?P<quoted>" + quote + rb"(?:[^" + quote + rb"]|" + quote + quote + rb")*+" + quote + rb")"
        rb"(?P<junk>[^" + delimiter + rb"\r\n]*)|(?P<plain>[^" + delimiter + rb"\r\n]*))"
        rb"(?P<end>" + delimiter + rb"|\r\n|\n|\r|\Z)"
    )
    starts: list[int] = []
    ends: list[int] = []
    fields: list[int] = []
    odd: list[bool] = []
    at, start, count, is_odd, whole = 0, 0, 1, False, 0
    while at <= len(data) and (most is None or len(starts) < most):
        found = one.match(data, at)
        if found is None:
            raise AssertionError
        unended = found["quoted"] is None and found["plain"].startswith(dialect.quote.encode())
        ended = found["end"]
        if unended or (ended in {b"", b"\r"} and found.end() == len(data) and not is_end):
            if not is_end:
                break
            found_end, ended, is_odd = len(data), b"", True
        else:
            found_end = found.end()
        is_odd = is_odd or bool(found["junk"])
        at = found_end
        if ended == dialect.delimiter.encode():
            count += 1
            continue
        end = found_end - len(ended)
        if end > start:
            starts.append(start)
            ends.append(end)
            fields.append(count)
            odd.append(is_odd)
        whole = start = at
        count, is_odd = 1, False
        if at >= len(data):
            break
    numbers = [np.array(each, np.int64) for each in (starts, ends, fields)]
    return Records(numbers[0], numbers[1], numbers[2], np.array(odd, np.bool_)), True, whole


def find_dialect(
    sample: bytes, *, delimiter: str | None, quote: str, header: bool | None, skip_lines: int, nulls: tuple[str, ...]
) -> CsvDialect:
    """How a file is written, from its beginning; what is given is not looked for.

    The delimiter is the one by which most records have as many fields as each other, and more than one. There is a
    header if no field of the first record is a number or a date; where one is empty or there twice, only if others say
    so, which name columns of numbers, dates or truths.
    """
    lines = _after_lines(sample, skip_lines)
    found = CsvDialect(delimiter or ",", quote, header if header is not None else True, skip_lines, nulls)
    sampled: list[list[str]] | None = None
    if delimiter is None:
        # a record has one field if the delimiter is nowhere
        there = [each for each in DELIMITERS if each.encode() in lines[:SAMPLE_BYTES]]
        samples = {each: _sampled(lines, CsvDialect(each, quote)) for each in there}
        best = max(there, key=lambda each: _agreement(samples[each]), default=",")
        if samples and _agreement(samples[best]) > 0:
            found, sampled = replace(found, delimiter=best), samples[best]
    if header is None:
        records = _sampled(lines, found) if sampled is None else sampled
        found = replace(found, header=_has_header(records, found))
    return found


def _after_lines(data: bytes, count: int) -> bytes:
    at = 0
    for _ in range(count):
        end = re.compile(rb"\r\n|\n|\r").search(data, at)
        if end is None:
            return b""
        at = end.end()
    return data[at:]


def _sampled(data: bytes, dialect: CsvDialect) -> list[list[str]]:
    """The fields of the first records; the last one may be cut off and is left out if there are others."""
    records, _, _ = (
        _records_one_by_one(data[:SAMPLE_BYTES], dialect, is_end=True, most=SAMPLE_RECORDS)
        if dialect.quote
        else (_plain_records(data), True, 0)
    )
    found = []
    for start, end in list(zip(records.starts.tolist(), records.ends.tolist(), strict=True))[:SAMPLE_RECORDS]:
        found.append(fields_of(data[start:end], dialect))
    return found[:-1] if len(found) > 1 and len(data) > SAMPLE_BYTES else found


def _plain_records(data: bytes) -> Records:
    return records_of(Block(data[:SAMPLE_BYTES], 1), CsvDialect(quote=""))


def fields_of(record: bytes, dialect: CsvDialect) -> list[str]:
    """The fields of one record as texts; bytes that are no UTF-8 are replaced."""
    quote, text = dialect.quote, record.decode(errors="replace")
    found, at = [], 0
    while True:
        if quote and text.startswith(quote, at):
            end = at + 1
            while (end := text.find(quote, end)) >= 0 and text.startswith(quote, end + 1):
                end += 2
            end = len(text) if end < 0 else end
            rest = text.find(dialect.delimiter, end)
            rest = len(text) if rest < 0 else rest
            found.append(text[at + 1 : end].replace(quote * 2, quote) + text[end + 1 : rest])
        else:
            rest = text.find(dialect.delimiter, at)
            rest = len(text) if rest < 0 else rest
            found.append(text[at:rest])
        if rest >= len(text):
            return found
        at = rest + 1


def _agreement(records: list[list[str]]) -> float:
    """The share of records that have the most frequent number of fields, if that is more than one; more fields win."""
    counts = Counter(len(each) for each in records)
    if not counts:
        return 0.0
    fields, often = counts.most_common(1)[0]
    return 0.0 if fields < 2 else often / counts.total() + min(fields, 1000) / 1e6  # noqa: PLR2004


def _has_header(records: list[list[str]], dialect: CsvDialect) -> bool:
    if not records:
        return True
    first = [each.strip() for each in records[0]]
    named = [bool(each) and each not in dialect.nulls for each in first]
    kinds = [classified(of_texts([each])).name for each, is_name in zip(first, named, strict=True) if is_name]
    if not kinds or any(kind != "text" for kind in kinds):
        return False
    are_names = all(named) and len(set(first)) == len(first)
    rest = [each for each in records[1:] if len(each) == len(first)]
    if not rest:
        return are_names
    later = [classified(of_texts([each[number] for each in rest])).name for number in range(len(first))]
    if any(kind not in {"text", "null", "empty"} and is_name for kind, is_name in zip(later, named, strict=True)):
        return True
    return are_names and (
        "null" in later or all(text not in {each[number] for each in rest} for number, text in enumerate(first))
    )


def header_of(sample: bytes, dialect: CsvDialect) -> tuple[bytes | None, int, int]:
    """The first record of a file, or None; and where those that are rows begin: the byte, and the line.

    Args:
        sample: The file's beginning.
        dialect: How it is written.
    """
    skipped = len(sample) - len(_after_lines(sample, dialect.skip_lines))
    rest = sample[skipped:]
    records = _records_one_by_one(rest, dialect, is_end=True, most=1)[0] if dialect.quote else _plain_records(rest)
    if not len(records.starts):
        return None, skipped, 1
    start, end = int(records.starts[0]), int(records.ends[0])
    if not dialect.header:
        return rest[start:end], skipped, 1 + dialect.skip_lines
    after = end + (2 if rest[end : end + 2] == b"\r\n" else 1)
    return rest[start:end], min(skipped + after, len(sample)), 1 + _lines(sample[: skipped + after])
