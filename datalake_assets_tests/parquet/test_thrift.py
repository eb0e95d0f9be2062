"""Values of the compact protocol are passed over to their last byte, and what is damaged is refused.

What is read here was encoded by a few lines of its own, after the protocol's specification.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.parquet.pages import Page, page_of
from datalake_assets.parquet.thrift import CompactReader, CompactWriter, MalformedThrift, leading_numbers, skipped

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def zigzag(value):
    return varint(value * 2 if value >= 0 else -value * 2 - 1)


def struct(fields):
    """Fields as (id, kind, encoded value), ids rising; an id far from the one before takes the long form."""
    out, before = b"", 0
    for field, kind, value in fields:
        near = field - before <= 15
        out += (bytes([(field - before) << 4 | kind]) if near else bytes([kind]) + zigzag(field)) + value
        before = field
    return out + b"\0"


def sequence(kind, values):
    count = len(values)
    return (bytes([count << 4 | kind]) if count < 15 else bytes([0xF0 | kind]) + varint(count)) + b"".join(values)


def mapping(pairs, kinds):
    return varint(len(pairs)) + (bytes([kinds[0] << 4 | kinds[1]]) if pairs else b"") + b"".join(map(b"".join, pairs))


def integers(bits):
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1).map(zigzag)


LEAVES = {
    BYTE: st.binary(min_size=1, max_size=1),
    I16: integers(16),
    I32: integers(32),
    I64: integers(64),
    DOUBLE: st.binary(min_size=8, max_size=8),
    BINARY: st.binary(max_size=200).map(lambda data: varint(len(data)) + data),
}
#: A kind, and the value of it.
LEAF = st.one_of([st.tuples(st.just(kind), values) for kind, values in LEAVES.items()])


def nested(inner):
    field = st.one_of(inner, st.sampled_from([(TRUE, b""), (FALSE, b"")]))
    structs = st.lists(st.tuples(st.integers(1, 40), field), max_size=6).map(
        lambda parts: (
            STRUCT,
            struct([(sum(gap for gap, _ in parts[: i + 1]), *parts[i][1]) for i in range(len(parts))]),
        )
    )
    lists = st.sampled_from(sorted(LEAVES)).flatmap(
        lambda kind: st.tuples(
            st.sampled_from([LIST, SET]), st.lists(LEAVES[kind], max_size=20).map(lambda of: sequence(kind, of))
        )
    )
    of_structs = st.lists(structs, max_size=4).map(lambda of: (LIST, sequence(STRUCT, [value for _, value in of])))
    flags = st.lists(st.sampled_from([b"\1", b"\2"]), max_size=20).map(lambda of: (LIST, sequence(TRUE, of)))
    maps = st.lists(st.tuples(LEAVES[BINARY], LEAVES[I32]), max_size=4).map(
        lambda of: (MAP, mapping(of, (BINARY, I32)))
    )
    return st.one_of(structs, lists, of_structs, flags, maps)


VALUE = st.recursive(LEAF, nested, max_leaves=12)


@given(value=VALUE, before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_value_is_skipped_to_its_last_byte(value, before, after):
    kind, data = value

    assert skipped(before + data + after, len(before), kind) == len(before + data)


@given(value=VALUE, data=st.data())
def test_value_that_is_cut_is_refused(value, data):
    kind, whole = value
    cut = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(MalformedThrift):
        skipped(whole[:cut], 0, kind)


@given(data=st.binary(max_size=80), kind=st.integers(0, 15))
def test_any_bytes_are_passed_over_within_them_or_refused(data, kind):
    with suppress(MalformedThrift):
        assert 0 <= skipped(data, 0, kind) <= len(data)


@pytest.mark.parametrize("kind", [I16, I32, I64])
def test_numbers_too_long_or_too_large_are_refused_within_lists_and_structs(kind):
    too_long, too_large = b"\x80" * 10 + b"\x00", b"\xff" * 9 + b"\x7f"
    for number in (too_long, too_large):
        for data, of in ((struct([(1, kind, number)]), STRUCT), (sequence(kind, [b"\2", number]), LIST)):
            with pytest.raises(MalformedThrift, match="a number is too"):
                skipped(data, 0, of)


@given(
    numbers=st.dictionaries(st.integers(1, 4), st.integers(-(1 << 31), (1 << 31) - 1)),
    others=st.lists(st.tuples(st.integers(5, 300), VALUE), max_size=3, unique_by=lambda each: each[0]),
)
def test_leading_numbers_are_those_that_a_reader_finds(numbers, others):
    fields = [(field, I32, zigzag(value)) for field, value in sorted(numbers.items())]
    others = [(field, *value) for field, value in sorted(others, key=lambda each: each[0])]
    data = struct(fields + others)

    found, field, kind, position = leading_numbers(data, 0, 4)

    assert found == numbers
    assert (field, kind) == (others[0][:2] if others else (0, 0))
    assert position == len(data) if not others else data.startswith(others[0][2], position)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "ends early", id="empty"),
        pytest.param(b"\x15", "ends early", id="no number"),
        pytest.param(b"\x15\x80", "ends early", id="half a number"),
        pytest.param(b"\x15\x02", "ends early", id="no end"),
        pytest.param(b"\x16\x02\x00", "a value of kind 6 instead of 5", id="another kind"),
        pytest.param(b"\x25\x02\x05\x02\x04\x00", "field 1 after field 2", id="an id that falls"),
        pytest.param(b"\x25\x02\x05\x04\x04\x00", "field 2 after field 2", id="an id twice"),
    ],
)
def test_damaged_leading_numbers_are_refused(data, reason):
    with pytest.raises(MalformedThrift, match=reason):
        leading_numbers(data, 0, 4)


def header(numbers, field, inner, *, others=()):
    fields = [(place, I32, zigzag(value)) for place, value in sorted(numbers.items())]
    held = struct(sorted([(place, I32, zigzag(value)) for place, value in inner.items()] + list(others)))
    return struct([*fields, (field, STRUCT, held)])


@given(
    kind=st.sampled_from([(0, 5), (2, 7), (3, 8)]),
    sizes=st.tuples(st.integers(0, 1 << 30), st.integers(0, 1 << 30)),
    crc=st.none() | st.integers(-(1 << 31), (1 << 31) - 1),
    inner=st.lists(st.integers(0, 1 << 30), min_size=4, max_size=4),
    others=st.lists(st.tuples(st.integers(5, 300), VALUE), max_size=2, unique_by=lambda each: each[0]),
)
def test_page_is_what_its_header_says(kind, sizes, crc, inner, others):
    number, field = kind
    numbers = {1: number, 2: sizes[0], 3: sizes[1]} | ({} if crc is None else {4: crc})
    data = header(numbers, field, dict(enumerate(inner, 1)), others=[(place, *value) for place, value in others])

    encoding, rows = (inner[3], inner[2]) if field == 8 else (inner[1], None)
    crc = None if crc is None else crc % (1 << 32)
    assert page_of(data + data) == Page(number, len(data), *sizes, crc, inner[0], rows, encoding)
    for cut in range(len(data)):
        with pytest.raises(MalformedThrift):
            page_of(data[:cut])


@pytest.mark.parametrize(
    ("kind", "field", "inner", "lacks"),
    [
        (0, 5, {2: 0}, "num_values of data_page_header"),
        (0, 5, {1: 3}, "encoding of data_page_header"),
        (2, 7, {1: 3}, "encoding of dictionary_page_header"),
        (3, 8, {2: 1, 3: 1, 4: 1}, "num_values of data_page_header_v2"),
        (3, 8, {1: 1, 2: 1, 4: 1}, "num_rows of data_page_header_v2"),
        (3, 8, {1: 1, 2: 1, 3: 1}, "encoding of data_page_header_v2"),
    ],
)
def test_page_whose_header_lacks_a_number_is_refused(kind, field, inner, lacks):
    with pytest.raises(MalformedThrift, match=f"^{lacks} of a page's header is missing$"):
        page_of(header({1: kind, 2: 9, 3: 9}, field, inner))


@given(data=st.binary(max_size=60))
def test_reader_and_skipping_agree_on_any_struct(data):
    """The reader is stricter at one point: ids of fields must rise."""
    reader = CompactReader(data)
    try:
        for _ in reader.fields():
            pass
    except MalformedThrift:
        return
    assert skipped(data, 0, STRUCT) == reader.position


def test_lists_are_read_as_they_were_written_and_refused_if_they_are_cut_or_of_another_kind():
    numbers, texts = [0, -1, 1 << 40, -(1 << 63)], [b"", b"a" * 300, b"\xff"]
    encoded = {
        "integers": (CompactWriter.list_header(I64, 4) + b"".join(map(zigzag, numbers)), numbers),
        "binaries": (CompactWriter.list_header(BINARY, 3) + b"".join(map(CompactWriter.binary, texts)), texts),
        "bools": (CompactWriter.list_header(TRUE, 20) + bytes([1, 2] * 10), bytes([1, 2] * 10)),
    }
    for name, (data, values) in encoded.items():
        reader = CompactReader(data)
        assert getattr(reader, name)(LIST) == values
        assert reader.position == len(data)
        for end in range(len(data)):
            with pytest.raises(MalformedThrift):
                getattr(CompactReader(data[:end]), name)(LIST)
        for other in encoded.keys() - {name}:
            with pytest.raises(MalformedThrift, match="a list of something else"):
                getattr(CompactReader(data), other)(LIST)


@pytest.mark.parametrize(
    "encoded",
    [
        bytes([I32]) + zigzag(1 << 16 | 5) + b"\x02\x00",  # field 65541, of which others read 5
        bytes([0x50 | I32]) + zigzag(1 << 32 | 1) + b"\x00",  # a number of which others read 1
    ],
)
def test_what_others_read_less_of_is_refused(encoded):
    """Thrift's own readers keep the lower bits of what does not fit, and take it for something else."""
    reader = CompactReader(encoded)
    with pytest.raises(MalformedThrift):
        _ = [reader.integer(kind, I32) for _, kind in reader.fields()]
