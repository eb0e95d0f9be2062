"""A footer is understood exactly, or the file is called unreadable: never another error, never a long wait."""

from __future__ import annotations

import base64
import io
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.concat import ConcatWriter
from datalake_assets.parquet.footer import FIRST_READ_BYTES, MAX_FOOTER_BYTES, parse_footer
from datalake_assets.parquet.pages import UnsoundPages
from datalake_assets.parquet.row_groups import EXTENSION, RowGroup
from datalake_assets.parquet.thrift import (
    BINARY,
    I32,
    I64,
    LIST,
    MAX_DEPTH,
    STRUCT,
    CompactReader,
    CompactWriter,
    MalformedThrift,
    varint,
    zigzag,
)
from datalake_assets_tests.parquet.sinks import MemorySink


def reader(body):
    return lambda offset, length: memoryview(body)[offset : offset + length]


def footer(body):
    return parse_footer(reader(body), len(body), where="lake/x.parquet")


def parquet(table, **options):
    body = io.BytesIO()
    pq.write_table(table, body, **options)
    return body.getvalue()


def small():
    table = pa.table({"n": [1, 2, 3], "texts": [["a"], [], ["b", "c"]]})
    options = {"n": {"ndv": 10}}
    return parquet(table, row_group_size=2, write_page_index=True, bloom_filter_options=options)


def split(body):
    """What comes before the footer, and the footer."""
    length = int.from_bytes(body[-8:-4], "little")
    return body[: -8 - length], body[-8 - length : -8]


def joined(data, encoded):
    return data + encoded + len(encoded).to_bytes(4, "little") + b"PAR1"


# ---- schemas that were parsed before


def test_schemas_are_each_files_own_however_files_follow_each_other():
    bodies = {name: parquet(pa.table({name: [1], "same": [2.5]})) for name in ("a", "b", "a_longer")}
    found = {name: footer(body) for name, body in bodies.items()}
    for name in ("a", "b", "b", "a_longer", "a"):
        again = footer(bodies[name])
        assert again == found[name]
        assert again.columns == (name, "same")
    assert len({each.schema_key for each in found.values()}) == len(bodies)


def test_schema_is_not_taken_for_the_one_before_when_it_ends_early():
    data, encoded = split(small())
    whole = joined(data, encoded)
    footer(whole)
    elements = footer(whole).fields[2][1]
    begin = encoded.index(elements)
    for end in range(begin, begin + len(elements)):
        with pytest.raises(UnreadableFile):
            footer(joined(data, encoded[:end]))
    damaged = bytearray(encoded)
    damaged[begin + len(elements) - 1] = 0xFF  # in the place of the last element's end
    with pytest.raises(UnreadableFile):
        footer(joined(data, bytes(damaged)))
    assert footer(whole).columns == ("n", "texts.list.element")


# ---- what is in it


def test_footer_says_what_the_file_holds():
    body = parquet(pa.table({"n": range(10)}, metadata=None), row_group_size=4)
    told = footer(body)
    meta = pq.ParquetFile(io.BytesIO(body)).metadata

    assert (told.rows, told.size_bytes) == (10, len(body))
    assert [group.rows for group in told.row_groups] == [4, 4, 2]
    assert told.key_value_metadata == meta.metadata


@pytest.mark.parametrize("dictionary", [True, False])
def test_row_groups_are_the_ranges_of_their_column_chunks(dictionary):
    body = parquet(pa.table({"n": range(10), "m": range(10)}), row_group_size=4, use_dictionary=dictionary)
    meta = pq.ParquetFile(io.BytesIO(body)).metadata

    for number, group in enumerate(footer(body).row_groups):
        columns = [meta.row_group(number).column(place) for place in range(2)]
        starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        sizes = [column.total_compressed_size for column in columns]
        assert group == RowGroup(rows=meta.row_group(number).num_rows, start=starts[0], end=starts[1] + sizes[1])
        assert group.size_bytes == sum(sizes)


@pytest.mark.parametrize(
    ("table", "rows", "groups"),
    [
        (pa.table({"n": pa.array([], pa.int64())}), 0, 0),
        (pa.table({}), 0, 0),
        (pa.table({"struct": [{"a": 1, "b": {"c": [{"d": 2}]}}]}), 1, 1),
    ],
)
def test_footer_of_an_unusual_table(table, rows, groups):
    told = footer(parquet(table))

    assert (told.rows, len([group for group in told.row_groups if group.rows])) == (rows, groups)


def test_footer_takes_one_read_and_a_large_one_two():
    reads = []

    def read_at(offset, length):
        reads.append(length)
        return memoryview(body)[offset : offset + length]

    for columns, expected in ((2, 1), (400, 2)):
        reads.clear()
        body = parquet(pa.table({f"column_{number}": [1] * 9 for number in range(columns)}), row_group_size=3)
        assert parse_footer(read_at, len(body), where="x").rows == 9
        assert len(reads) == expected
    assert reads[1] > FIRST_READ_BYTES


# ---- which files may become one


SCHEMA = pa.schema([pa.field("n", pa.int64(), metadata={"PARQUET:field_id": "1"}), ("text", pa.string())])
OTHERS = {
    "name": pa.schema([SCHEMA.field(0), ("other", pa.string())]),
    "type": pa.schema([SCHEMA.field(0), ("text", pa.binary())]),
    "logical type": pa.schema([pa.field("n", pa.uint64(), metadata=SCHEMA.field(0).metadata), SCHEMA.field(1)]),
    "nullability": pa.schema([SCHEMA.field(0).with_nullable(nullable=False), SCHEMA.field(1)]),
    "field id": pa.schema([pa.field("n", pa.int64(), metadata={"PARQUET:field_id": "2"}), SCHEMA.field(1)]),
    "order": pa.schema([SCHEMA.field(1), SCHEMA.field(0)]),
    "arrow type": pa.schema([SCHEMA.field(0), ("text", pa.large_string())]),
    "spark's calendar": SCHEMA.with_metadata({"org.apache.spark.legacyDateTime": ""}),
    "hive's time zone": SCHEMA.with_metadata({"writer.time.zone": "Europe/Berlin"}),
    "geometry": SCHEMA.with_metadata({"geo": "{}"}),
}


def key(schema, **options):
    return footer(parquet(schema.empty_table(), **options)).schema_key


@pytest.mark.parametrize("what", OTHERS)
def test_schema_key_differs_with(what):
    assert key(OTHERS[what]) != key(SCHEMA)


def test_schema_key_is_the_same_however_the_rows_are_stored():
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "data_page_version": "2.0"}

    assert key(SCHEMA, **options) == key(SCHEMA)


@pytest.mark.parametrize("noted", [{"pandas": '{"stop": 3}'}, {"datalake.position": "17"}, {"geology": "x"}])
def test_schema_key_ignores_notes(noted):
    assert key(SCHEMA.with_metadata(noted)) == key(SCHEMA)


def test_schema_key_differs_with_the_writer():
    """Readers distrust some old writers' statistics by `created_by`, of which a file has one."""
    data, encoded = split(parquet(SCHEMA.empty_table()))

    assert footer(joined(data, encoded.replace(b"parquet-cpp-arrow", b"parquet-xyz-arrow"))).schema_key != key(SCHEMA)


def test_releases_of_a_writer_that_nobody_distrusts_count_as_one():
    data, encoded = split(parquet(SCHEMA.empty_table()))
    version = re.search(rb"parquet-cpp-arrow version (\d\d)", encoded).group(1)

    assert footer(joined(data, encoded.replace(b"version " + version, b"version 14"))).schema_key == key(SCHEMA)


def test_schema_key_ignores_the_name_of_the_root():
    data, encoded = split(parquet(SCHEMA.empty_table()))

    assert footer(joined(data, encoded.replace(b"\x06schema", b"\x06SCHEMA"))).schema_key == key(SCHEMA)


def test_schema_key_survives_an_arrow_schema_that_is_damaged():
    data, encoded = split(parquet(SCHEMA.empty_table()))
    arrow = pq.read_metadata(io.BytesIO(joined(data, encoded))).metadata[b"ARROW:schema"]
    keys = {
        footer(joined(data, encoded.replace(arrow, damaged))).schema_key
        for damaged in (b"!" * len(arrow), base64.b64encode(b"\xff" * len(base64.b64decode(arrow))))
    }

    assert len(keys | {key(SCHEMA)}) == 3


# ---- what is not Parquet, or no longer


def unreadable(body):
    with pytest.raises(UnreadableFile) as caught:
        footer(body)
    assert caught.value.where == "lake/x.parquet"
    return caught.value.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "0 bytes are too few"),
        (b"PAR1PAR1", "8 bytes are too few"),
        (b"PAR1" + bytes(4) + b"PAR1", "its footer is damaged"),
        (b"id,name\n1,a\n2,b\n", "not a Parquet file"),
        (bytes(10_000), "not a Parquet file"),
        (b"ORC" + bytes(100) + b"PAR1", "not a Parquet file"),
        (b"PAR1" + bytes(100) + b"PARE", "encrypted"),
        (b"PAR1" + b"\xff\xff\xff\xff" + b"PAR1", "does not fit"),
    ],
)
def test_what_is_not_parquet_is_unreadable(body, reason):
    assert reason in unreadable(body)


def test_huge_footer_is_refused_before_it_is_read():
    """A damaged length must not become an allocation."""
    size = MAX_FOOTER_BYTES * 4
    tail = (MAX_FOOTER_BYTES + 1).to_bytes(4, "little") + b"PAR1"

    def read_at(offset, length):
        assert length <= FIRST_READ_BYTES
        return tail.rjust(length, b"\0")

    with pytest.raises(UnreadableFile, match=r"takes \d+ bytes"):
        parse_footer(read_at, size, where="x")


def test_file_truncated_anywhere_is_unreadable():
    body = small()

    for length in range(len(body)):
        unreadable(body[:length])


def test_file_without_its_beginning_is_unreadable():
    body = small()

    for length in range(1, len(body)):
        unreadable(body[length:])


def test_footer_truncated_anywhere_is_unreadable():
    data, encoded = split(small())

    for length in range(len(encoded)):
        assert "damaged" in unreadable(joined(data, encoded[:length]))


def test_short_read_is_unreadable():
    body = small()

    with pytest.raises(UnreadableFile, match="ends before"):
        parse_footer(lambda offset, length: body[offset : offset + length - 1], len(body), where="x")


def test_what_read_at_raises_is_passed_on():
    def read_at(offset, length):
        raise KeyError("the store's own")

    with pytest.raises(KeyError, match="the store's own"):
        parse_footer(read_at, 1000, where="x")


def test_encrypted_columns_are_told():
    data, encoded = split(small())
    writer = CompactWriter()
    fields = {}
    parsed = CompactReader(encoded)
    for field, kind in parsed.fields():
        begin = parsed.position
        parsed.skip(kind)
        fields[field] = (kind, encoded[begin : parsed.position])
    for field, (kind, value) in sorted((fields | {8: (STRUCT, b"\0")}).items()):
        writer.field(field, kind, value)

    assert "encrypted" in unreadable(joined(data, writer.end()))


BODY = small()
DATA, ENCODED = split(BODY)
FLIPS = st.lists(st.tuples(st.integers(0, len(ENCODED) - 1), st.integers(1, 255)), min_size=1, max_size=4)


def try_all(body):
    """Everything that is read of a file; True if it was readable."""
    try:
        told = footer(body)
        writer = ConcatWriter(MemorySink(), told)
        writer.append(told, reader(body))
        writer.close()
    except (UnreadableFile, UnsoundPages):
        return False
    return True


def test_the_file_that_is_damaged_below_is_readable():
    assert try_all(BODY)


@settings(max_examples=600)
@given(flips=FLIPS)
def test_flipped_bytes_are_unreadable_or_harmless(flips):
    encoded = bytearray(ENCODED)
    for place, change in flips:
        encoded[place] ^= change

    try_all(joined(DATA, bytes(encoded)))


def test_a_flipped_bit_anywhere_is_unreadable_or_harmless():
    for place in range(len(BODY)):
        body = bytearray(BODY)
        body[place] ^= 1 << place % 8
        try_all(bytes(body))


@settings(max_examples=500)
@given(encoded=st.binary(max_size=400))
@example(encoded=b"\x19\xfc\xff\xff\xff\xff\x0f")
@example(encoded=bytes([0x1C]) * 400)
def test_any_bytes_are_unreadable_as_a_footer(encoded):
    unreadable(joined(b"PAR1", encoded))


def test_random_splices_are_unreadable_or_harmless():
    """Parts of a footer in place of others: well formed here and there, and wrong."""
    rng = random.Random(7)
    for _ in range(1500):
        start, end = sorted(rng.choices(range(len(ENCODED)), k=2))
        place = rng.randrange(len(ENCODED))
        try_all(joined(DATA, ENCODED[:place] + ENCODED[start:end] + ENCODED[place + rng.randrange(4) :]))


# ---- Thrift


def test_numbers_round_trip():
    for number in (0, 1, -1, 63, 64, -64, -65, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63)):
        assert CompactReader(zigzag(number)).integer(I64, I64) == number


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x16" + b"\x80" * 20 + b"\x01\0",
        b"\x16" + b"\xff" * 9 + b"\x7f\0",
        b"\x16",
        b"\x1f\0",
        b"\x18\x05ab\0",
        b"\x19\xf8\xff\xff\xff\xff\x0f\0",
        b"\x19\x46\x01\0",
        b"\x1b\xff\xff\xff\x7f\x88\0",
        b"\x1b\x01",
        b"\x17\0\0\0",
        b"\x16\x02\x06\x02\x02\0",
        b"\x06\x01\x02\0",
    ],
)
def test_malformed_thrift_is_told(encoded):
    with pytest.raises(MalformedThrift):
        for _ in CompactReader(encoded).fields():
            pass


@pytest.mark.parametrize("nest", [b"\x1c", b"\x19\x1c", b"\x1b\x01\x5c\x02"])
def test_nesting_is_bounded(nest):
    with pytest.raises(MalformedThrift, match="nested too deeply"):
        for _ in CompactReader(nest * (MAX_DEPTH + 2)).fields():
            pass


def test_every_kind_is_skipped():
    values = {1: b"", 2: b"", 3: b"\x01", 4: b"\x02", 5: b"\x02", 6: b"\x02", 7: bytes(8), 8: b"\x01a", 13: bytes(16)}
    values |= {9: b"\x21\x01\x02", 10: b"\x28\x01a\x01b", 11: b"\x01\x81\x01a\x01", 12: b"\x15\x02\0"}
    for kind, value in values.items():
        parsed = CompactReader(bytes((0x10 | kind,)) + value + b"\0")
        assert list(parsed.fields()) == [(1, kind)]
        assert parsed.position == len(parsed.data)


def test_writer_writes_what_the_reader_reads():
    writer = CompactWriter()
    long_list = CompactWriter.list_header(BINARY, 20) + CompactWriter.binary(b"x" * 200) * 20
    for field, kind, value in (
        (1, I32, zigzag(7)),
        (16, BINARY, varint(0)),
        (40, LIST, long_list),
        (EXTENSION, STRUCT, b"\0"),
    ):
        writer.field(field, kind, value)
    parsed = CompactReader(writer.end())

    assert list(parsed.fields()) == [(1, I32), (16, BINARY), (40, LIST), (EXTENSION, STRUCT)]
    assert parsed.position == len(parsed.data)
