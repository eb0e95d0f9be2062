"""Bounds of pages are taken as Arrow's values, and an index that cannot be true is refused, not believed."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from datalake_assets.parquet.page_bounds import BoundForm, page_bounds
from datalake_assets.parquet.thrift import MalformedThrift

LONG = BoundForm("SIGNED", 8, pa.int64())
ROWS = [100, 100, 50]


def varint(number):
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def texts(values):
    return bytes([len(values) << 4 | 8]) + b"".join(varint(len(each)) + each for each in values)


def index(bounds, *, direction=0, nulls=None):
    """A column index as Thrift's compact protocol has it, of up to 14 pages; a page without bounds has only nulls."""
    flags = bytes([len(bounds) << 4 | 1, *(1 if each is None else 2 for each in bounds)])
    lows, highs = ([b"" if each is None else each[side] for each in bounds] for side in (0, 1))
    counted = b"" if nulls is None else b"\x19" + bytes([len(nulls) << 4 | 6]) + b"".join(varint(2 * n) for n in nulls)
    return (
        b"\x19"
        + flags
        + b"\x19"
        + texts(lows)
        + b"\x19"
        + texts(highs)
        + b"\x15"
        + varint(2 * direction)
        + counted
        + b"\0"
    )


def longs(*pairs):
    return [pair and tuple(each.to_bytes(8, "little", signed=True) for each in pair) for pair in pairs]


def read(encoded, form=LONG, extremes=None):
    found = page_bounds(encoded, form, ROWS, extremes)
    return found and [
        (each.least and each.least.as_py(), each.greatest and each.greatest.as_py(), each.may_be_null) for each in found
    ]


def test_bounds_are_values_of_their_column():
    pairs = longs((-5, 7), None, (2**62, 2**63 - 1))

    found = read(index(pairs, nulls=[0, 100, 3]))

    assert found == [(-5, 7, False), (None, None, True), (2**62, 2**63 - 1, True)]
    assert all(may_be_null for *_, may_be_null in read(index(pairs)))  # nobody counted them


@pytest.mark.parametrize(
    ("form", "low", "high", "wanted"),
    [
        (BoundForm("UNSIGNED", 8, pa.uint64()), b"\0" * 8, b"\xff" * 8, (0, 2**64 - 1)),
        (BoundForm("UNSIGNED", 4, pa.uint8()), b"\x01\0\0\0", b"\xff\0\0\0", (1, 255)),
        (BoundForm("SIGNED", 4, pa.int16()), b"\x00\x80\xff\xff", b"\xff\x7f\0\0", (-(2**15), 2**15 - 1)),
        (BoundForm("DATE", 4, pa.date32()), b"\xff\xff\xff\xff", b"\1\0\0\0", (date(1969, 12, 31), date(1970, 1, 2))),
        (
            BoundForm("TIMESTAMP", 8, pa.timestamp("ms", "UTC")),
            (-1000).to_bytes(8, "little", signed=True),
            (1500).to_bytes(8, "little"),
            (datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)),
        ),
        (BoundForm("STRING", 0, pa.large_string()), b"", "é\U0001f600".encode(), ("", "é\U0001f600")),
    ],
)
def test_bounds_are_read_as_their_type_writes_them(form, low, high, wanted):
    (bounds,) = page_bounds(index([(low, high)]), form, [10], None)

    assert (bounds.least.type, bounds.greatest.type) == (form.kind, form.kind)
    assert (bounds.least.as_py(), bounds.greatest.as_py()) == wanted


def test_texts_that_are_cut_within_a_letter_bound_nothing():
    assert page_bounds(index([(b"a", "é".encode()[:1])]), BoundForm("STRING", 0, pa.string()), [10], None) is None


@pytest.mark.parametrize(
    ("encoded", "extremes"),
    [
        (index(longs((0, 1), (2, 3))), None),  # of fewer pages
        (index(longs((0, 1), (3, 2), (4, 5))), None),  # the least is the greatest
        (index(longs((0, 1), (4, 5), (2, 3)), direction=1), None),  # they should rise
        (index(longs((0, 9), (1, 5), (2, 12)), direction=1), None),
        (index(longs((4, 5), (0, 1), (2, 3)), direction=2), None),
        (index(longs((0, 1), (2, 3), (4, 5)), nulls=[0, 0, 50]), None),  # only nulls, and bounds
        (index(longs((0, 1), None, (4, 5)), nulls=[0, 99, 0]), None),  # a value, and no bounds
        (index(longs((0, 1), (2, 3), (4, 5)), nulls=[0, 101, 0]), None),
        (index(longs((0, 1), (2, 3), (4, 5)), nulls=[0, 0]), None),
        (index([(b"", b""), *longs((2, 3), (4, 5))]), None),  # numbers of no bytes
        (index([(b"\0" * 9, b"\0" * 9), *longs((2, 3), (4, 5))]), None),
        (index(longs((0, 1), (2, 3), (4, 5))), longs((1, 5))[0]),  # below all of its chunk
        (index(longs((0, 1), (2, 3), (4, 5))), longs((0, 4))[0]),
        (index(longs((0, 1), (2, 3), (4, 5)))[:-3], None),
    ],
)
def test_an_index_that_cannot_be_true_is_refused(encoded, extremes):
    with pytest.raises(MalformedThrift):
        page_bounds(encoded, LONG, ROWS, extremes)


def test_an_index_whose_bounds_are_in_their_order_is_taken():
    assert read(index(longs((4, 5), None, (2, 5)), direction=2), extremes=longs((2, 5))[0])
    assert read(index(longs((0, 5), (0, 5), (1, 9)), direction=1), extremes=longs((-1, 9))[0])


def test_a_bound_beyond_its_type_is_refused():
    with pytest.raises(MalformedThrift):
        page_bounds(index([(b"\0\0\0\0", b"\0\1\0\0")]), BoundForm("UNSIGNED", 4, pa.uint8()), [10], None)
