"""Numbers as Parquet's encodings pack them, all of a stream at once: levels, dictionary indices, lengths of texts.

Arrow decodes them on the way to values; here they are wanted without the values, which may not fit into memory.

Source: apache/parquet-format, Encodings.md.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from datalake_assets.parquet.thrift import MalformedThrift

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "LENGTH_BYTES",
    "MAX_VALUES",
    "Numbers",
    "delta_numbers",
    "hybrid_numbers",
    "leading_number",
    "text_lengths",
]

Numbers: TypeAlias = "npt.NDArray[np.int64]"

#: Values of a page above which it is not looked at: Arrow's own limit of memory is not far.
MAX_VALUES = 1 << 24
#: Values of a bit-packed run come eight at a time.
GROUP_VALUES = 8
#: Values whose bits are taken apart at once, a byte for each bit and then eight: a page has millions of values.
UNPACKED_VALUES = 1 << 13
#: Of a text, before it.
LENGTH_BYTES = 4
_LENGTH = struct.Struct("<I")


def leading_number(data: memoryview, at: int) -> tuple[int, int]:
    """The number of variable length that begins there, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128 or shift > 63:  # noqa: PLR2004  seven bits in each byte, 64 in all
            return value, at


def hybrid_numbers(data: memoryview, width: int, count: int) -> Numbers:
    """So many numbers of a run-length and bit-packed stream (Encodings.md, RLE = 3)."""
    found, at, left = [], 0, count
    if width > 32:  # noqa: PLR2004  the format's limit of indices
        raise MalformedThrift("indices of more than 32 bits")
    bytes_each = -(-width // 8)
    while left > 0:
        run, at = leading_number(data, at)
        if run & 1:
            size = (run >> 1) * width
            numbers = _bits(data[at : at + size], width, min((run >> 1) * GROUP_VALUES, left))
            at += size
        else:
            value = int.from_bytes(data[at : at + bytes_each], "little")
            numbers = np.full(min(run >> 1, left), value, np.int64)
            at += bytes_each
        if not len(numbers):
            raise MalformedThrift("a run of nothing")
        found.append(numbers)
        left -= len(numbers)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _bits(data: memoryview, width: int, count: int) -> Numbers:
    """Numbers of so many bits each, the lowest first."""
    if not width:
        return np.zeros(count, np.int64)
    packed, weights = np.frombuffer(data, np.uint8), 1 << np.arange(width, dtype=np.int64)
    numbers = np.empty(min(count, 8 * len(packed) // width), np.int64)
    for start in range(0, len(numbers), UNPACKED_VALUES):  # begins with a byte of its own, as groups do
        some = numbers[start : start + UNPACKED_VALUES]
        bits = np.unpackbits(packed[start * width // 8 :], count=len(some) * width, bitorder="little")
        some[:] = bits.reshape(len(some), width).astype(np.int64) @ weights
    return numbers


def delta_numbers(data: memoryview) -> tuple[Numbers, int]:
    """Numbers of a DELTA_BINARY_PACKED stream, and where it ends (Encodings.md)."""
    at, header = 0, []
    for _ in range(4):
        value, at = leading_number(data, at)
        header.append(value)
    block, miniblocks, count, first = header
    if max(block, count) > MAX_VALUES:
        raise MalformedThrift("a page has too many values to look at them")
    per_miniblock = block // miniblocks
    deltas, left = [np.array([_signed(first)], np.int64)], count - 1
    while left > 0:
        least, at = leading_number(data, at)
        widths, at = data[at : at + miniblocks], at + miniblocks
        for width in widths:
            if left <= 0:
                break
            size = per_miniblock * width // 8
            numbers = _bits(data[at : at + size], width, min(per_miniblock, left)) + _signed(least)
            if not len(numbers):
                raise MalformedThrift("a block ends early")
            deltas.append(numbers)
            at, left = at + size, left - len(numbers)
    return np.cumsum(np.concatenate(deltas))[:count], at


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def text_lengths(data: memoryview, count: int) -> Numbers:
    """Lengths of texts that each follow theirs."""
    lengths, at, end = [], 0, len(data) - LENGTH_BYTES
    unpack = _LENGTH.unpack_from
    while count > 0 and at <= end:
        (length,) = unpack(data, at)
        lengths.append(length)
        at += LENGTH_BYTES + length
        count -= 1
    return np.array(lengths, np.int64)
