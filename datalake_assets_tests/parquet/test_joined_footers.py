"""Arrow takes files that it is asked about together where it takes each, and no other ones."""

from __future__ import annotations

import io
import random
from itertools import chain, count

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet import joined_footers, proof
from datalake_assets.parquet.decoding import open_parquet
from datalake_assets.parquet.joined_footers import all_open
from datalake_assets.parquet.proof import load_comparer
from datalake_assets.parquet.thrift import CompactWriter
from datalake_assets_tests.parquet.parquet_files import edited, encryption_of, numbers, parquet, rows

pytestmark = pytest.mark.skipif(load_comparer() is None, reason="the comparer was not built")
#: SizeStatistics whose field 2 is a list of two numbers, and the columns have one level: Arrow could end over it.
HISTOGRAM = (12, b"\x29\x26\x02\x02\x00")
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12


def of_pandas(count):
    body = io.BytesIO()
    pd.DataFrame({"n": range(count), "text": [str(n) for n in range(count)]}).to_parquet(body)
    return body.getvalue()


WRITERS = {
    "Arrow": lambda place: parquet(numbers(place, place + 50), row_group_size=20),
    "Arrow, with all that it writes": lambda place: parquet(
        numbers(place, place + 30),
        compression="zstd",
        write_page_index=True,
        sorting_columns=[pq.SortingColumn(0)],
        bloom_filter_options={"n": {"ndv": 30, "fpp": 0.1}},
        version="1.0",
    ),
    "no schema of Arrow's": lambda place: parquet(numbers(place, place + 9), store_schema=False),
    "all types": lambda place: parquet(rows(place, place + 9), store_schema=False),
    "pandas": lambda place: of_pandas(place + 5),
}


def joined(files):
    return [*load_comparer().join([pa.py_buffer(each) for each in files])]


def groups(files):
    return [each.files for each in joined(files)]


def opens(*files):
    """What is said of files together; it is the same in any order."""
    said = {all_open([pa.py_buffer(each) for each in some], load_comparer()) for some in (files, files[::-1])}
    assert len(said) == 1
    return said.pop()


def opens_alone(file):
    try:
        open_parquet(pa.BufferReader(file))
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True


@pytest.fixture
def opened(monkeypatch):
    """The sizes of the files that were opened by themselves."""
    sizes, real = [], joined_footers.open_parquet

    def noted(source, **options):
        sizes.append(source.size())
        return real(source, **options)

    monkeypatch.setattr(joined_footers, "open_parquet", noted)
    return sizes


@pytest.mark.parametrize("writer", WRITERS)
def test_of_files_that_state_the_same_one_is_opened(writer, opened):
    files = [WRITERS[writer](place) for place in range(20)]
    assert all_open([pa.py_buffer(each) for each in files], load_comparer())
    assert opened == [len(files[0])]


@pytest.mark.parametrize("writer", WRITERS)
def test_joined_files_have_all_row_groups_as_they_stand(writer):
    files = [WRITERS[writer](place) for place in range(3)]
    (found,) = joined(files)
    metadata = pq.read_metadata(pa.BufferReader(found.data))
    wanted = [pq.read_metadata(io.BytesIO(each)) for each in files]
    assert (found.files, found.rows) == ([0, 1, 2], [each.num_rows for each in wanted])
    assert metadata.num_rows == sum(found.rows)
    together = [metadata.row_group(number).to_dict() for number in range(metadata.num_row_groups)]
    assert together == [each.row_group(number).to_dict() for each in wanted for number in range(each.num_row_groups)]


def test_files_of_several_writers_are_told_apart(opened):
    files = [WRITERS[writer](place) for place in range(3) for writer in WRITERS]
    sizes = [len(each) for each in files[: len(WRITERS)]]
    assert len(joined(files)) == len(WRITERS) - 1  # of Arrow's own and pandas's only Arrow's schema differs
    assert all_open([pa.py_buffer(each) for each in files], load_comparer())
    assert sorted(opened) == sorted(sizes)


def test_more_files_than_are_joined_at_a_time_are_all_looked_at(monkeypatch, opened):
    monkeypatch.setattr(proof, "_JOINED_FILES", 4)
    files = [WRITERS["Arrow"](place) for place in range(9)]
    assert groups(files) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert opens(*files)
    assert not opens(*files[:-1], edited(files[-1], column=lambda fields: fields | {16: HISTOGRAM}))


def test_metadata_that_have_no_room_are_looked_at_by_themselves(monkeypatch):
    files = [WRITERS["Arrow"](place) for place in range(5)]
    sizes = [int.from_bytes(each[-8:-4], "little") for each in files]
    monkeypatch.setattr(proof, "_JOINED_BYTES", sizes[0] + 100)
    assert len(groups(files)) > 1
    assert sorted(chain.from_iterable(groups(files))) == [0, 1, 2, 3, 4]
    monkeypatch.setattr(proof, "_JOINED_BYTES", sizes[0])
    assert groups(files) == [[0], [1], [2], [3], [4]]
    assert opens(*files)


@pytest.mark.parametrize("wrong", range(6))
def test_damage_is_found_in_any_chunk_of_any_file(wrong):
    number = count()

    def damaged(fields):
        return fields | {16: HISTOGRAM} if next(number) == wrong else fields

    files = [WRITERS["Arrow"](place) for place in range(3)]
    bad = edited(files[1], column=damaged)
    assert groups([files[0], bad, files[2]]) == [[0, 1, 2]]
    assert not opens(files[0], bad, files[2])


KEY_VALUES = {5: (LIST, b"\x1c\x18\x01a\x00")}
DAMAGE = {
    "a list of other elements": {"column": lambda fields: fields | {2: (LIST, b"\x18\x00")}},
    "another list of other elements": {"group": lambda fields: fields | {4: (LIST, b"\x15\x00")}},
    "a short bound": {"column": lambda fields: fields | {12: (STRUCT, b"\x18\x01x\x00")}},
    "a chunk beyond the end": {"column": lambda fields: fields | {7: (I64, b"\xfe\xff\xff\x0f")}},
    "no number of rows": {"group": lambda fields: {field: fields[field] for field in fields if field != 3}},
    "a list of key-values of another kind": {"file": lambda fields: fields | {5: (LIST, b"\x0e")}},
    "a list of row groups of another kind": {"file": lambda fields: fields | {4: (LIST, b"\x0e"), 3: (I64, b"\x00")}},
    "no rows": {"file": lambda fields: {field: fields[field] for field in fields if field != 3}},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_where_others_would_hide_it(damage):
    file = edited(parquet(pa.table({"n": range(9)}), store_schema=False), file=lambda fields: fields | KEY_VALUES)
    assert opens(file, file)
    assert not opens_alone(edited(file, **DAMAGE[damage]))
    assert not opens(file, edited(file, **DAMAGE[damage]))


def test_chunks_lie_in_their_own_files_and_not_in_a_larger_one():
    large, small = (parquet(pa.table({"n": range(rows)})) for rows in (9999, 9))
    bad = edited(small, column=lambda fields: fields | {7: (I64, b"\xa0\x1f")})  # 2,000 bytes
    assert len(small) < 2000 < len(large)
    assert not opens_alone(bad)
    assert not opens(large, bad)


BARE = edited(parquet(pa.table({"n": range(9)}), store_schema=False), file=lambda fields: dict([*fields.items()][:4]))
APART = {
    "another writer": {"file": lambda fields: fields | {6: (BINARY, b"\x02we")}},
    "key-values": {"file": lambda fields: fields | KEY_VALUES},
    "another number of rows than row groups have": {"file": lambda fields: fields | {3: (I64, b"\x14")}},
    "a codec that is not known": {"column": lambda fields: fields | {4: (I32, b"\x06")}},
}


@pytest.mark.parametrize("change", APART)
def test_files_that_state_anything_else_are_not_joined(change):
    assert groups([BARE, edited(BARE, **APART[change])]) == [[0], [1]]
    assert groups([BARE, BARE]) == [[0, 1]]


def test_footers_that_go_on_after_their_end_are_not_joined():
    size = int.from_bytes(BARE[-8:-4], "little")
    longer = BARE[:-8] + b"\0" + (size + 1).to_bytes(4, "little") + BARE[-4:]
    assert groups([longer, longer, BARE]) == [[0], [1], [2]]


def test_encrypted_files_are_opened_by_themselves():
    body = parquet(
        numbers(0, 9).rename_columns(["n", "c"]), encryption_properties=encryption_of("c", plaintext_footer=True)
    )
    assert groups([body, body]) == [[0], [1]]


def test_files_without_row_groups_are_opened_by_themselves():
    body = io.BytesIO()
    pq.ParquetWriter(body, pa.schema([("n", pa.int64())])).close()
    assert groups([body.getvalue()] * 2) == [[0], [1]]
    assert opens(body.getvalue(), body.getvalue())


def with_arrow_schema(body, schema):
    """The same file with another schema of Arrow's."""
    writer = CompactWriter()
    for field, text in ((1, b"ARROW:schema"), (2, schema)):
        writer.field(field, BINARY, len(text).to_bytes(1, "little") + text)
    return edited(body, file=lambda fields: fields | {5: (LIST, CompactWriter.list_header(STRUCT, 1) + writer.end())})


def test_key_values_may_differ_where_arrow_does_not_go_by_them(opened):
    files = [parquet(numbers(0, 9).replace_schema_metadata({"who": str(place)})) for place in range(5)]
    assert all_open([pa.py_buffer(each) for each in files], load_comparer())
    assert opened == [len(files[0])]


def test_schemas_of_arrows_that_say_other_than_the_first_are_opened(opened):
    some, other = (parquet(pa.table({"n": pa.array([1], kind)})) for kind in (pa.int64(), pa.duration("us")))
    files = [some, some, other, some, other]
    assert groups(files) == [[0, 1, 2, 3, 4]]
    assert all_open([pa.py_buffer(each) for each in files], load_comparer())
    assert opened == [len(some), len(other)]


def test_schemas_of_arrows_whose_fields_have_other_metadata_are_opened(opened):
    some, other = (
        parquet(pa.table([[1]], pa.schema([pa.field("n", pa.int64(), metadata={"of": of})]))) for of in ("one", "two")
    )
    assert all_open([pa.py_buffer(some), pa.py_buffer(other)], load_comparer())
    assert opened == [len(some), len(other)]


@pytest.mark.parametrize("schema", [b"", b"no base64", b"AAAA"])
def test_schemas_of_arrows_that_are_damaged_are_found_in_any_file(schema):
    file = parquet(pa.table({"n": [1]}))
    bad = with_arrow_schema(file, schema)
    assert groups([file, bad]) == [[0, 1]]
    assert not opens_alone(bad)
    assert not opens(file, bad)


@pytest.mark.parametrize("writer", WRITERS)
def test_no_damaged_footer_passes_among_others_that_is_refused_alone(writer):
    chosen, like = random.Random(writer), WRITERS[writer](0)
    size = int.from_bytes(like[-8:-4], "little")
    beside = 0
    for _ in range(800):
        footer = bytearray(like[-8 - size : -8])
        for _ in range(chosen.choice([1, 1, 2])):
            place = chosen.randrange(size)
            footer[place] = chosen.choice([footer[place] ^ 1 << chosen.randrange(8), chosen.randrange(256)])
        bad = like[: -8 - size] + bytes(footer) + like[-8:]
        if groups([like, bad]) == [[0, 1]]:
            beside += 1
            assert all_open([pa.py_buffer(like), pa.py_buffer(bad)], load_comparer()) == opens_alone(bad)
    assert beside > 100
