"""Pages of version 1 that are taken apart where their levels end, and joined: values stay, whatever they are like."""

from __future__ import annotations

import struct

import fastparquet
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.native import MergeOptions, Part, Refusal, Refused
from datalake_assets_tests.parquet.page_files import Page, made
from datalake_assets_tests.parquet.parquet_files import parquet
from datalake_assets_tests.parquet.test_native import decoded, kernel, merged  # noqa: F401  kernel is a fixture

ROWS, FILES = 2_000, 12
OF_PLAIN = {"use_dictionary": False, "data_page_version": "1.0"}


def _numbers(random):
    return pa.array(random.integers(0, 1 << 62, ROWS))


def _texts(random):
    return pa.array([f"{each}-{'x' * (each % 5)}" for each in random.integers(0, 1 << 20, ROWS)])


def _holes(random):
    return pa.array(random.normal(size=ROWS), mask=random.random(ROWS) < 0.3)


def _fixed(random):
    return pa.array([random.bytes(16) for _ in range(ROWS)], pa.binary(16))


def _nothing(_):
    return pa.array([None] * ROWS, pa.int64())


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("column", [_numbers, _texts, _holes, _fixed, _nothing])
def test_values_are_copied_without_the_levels_before_them(kernel, column, proven):  # noqa: F811
    tables = [pa.table({"a": column(np.random.default_rng(file))}) for file in range(FILES)]
    bodies = [parquet(each, **OF_PLAIN) for each in tables]
    found = kernel.merge([Part(body, proven=proven) for body in bodies], MergeOptions())
    assert decoded(found).equals(pa.concat_tables(tables))
    assert pq.read_table(pa.BufferReader(found.view), page_checksum_verification=True).num_rows == FILES * ROWS
    if column is not _nothing:
        assert found.copied_bytes > 0.9 * len(found.view)


def _begins_like_its_levels():
    """The first values repeat what lies before them: the length of the levels, and a run of 2,000."""
    before = struct.pack("<IBBB", 3, 0xA0, 0x1F, 1)
    values = np.arange(ROWS) << 40
    values[[0, 7, 9]] = int.from_bytes(before + b"\0", "little")
    return pa.array(values)


def _goes_on_like_its_levels():
    """Levels of every other value are bytes of 0x55, as the values after them are."""
    values = np.full(ROWS, 0x5555555555555555)
    return pa.array(values, mask=np.arange(ROWS) % 2 == 1)


def _is_full_of_its_levels():
    """Half of the values are null, and the first that are not are what eight bytes of their levels are, from anywhere.

    Levels repeat every now and then: Snappy would soon pass over what does not.
    """
    random = np.random.default_rng(1)
    levels = random.integers(0, 256, (10, 25)).astype(np.uint8)
    levels[:, 15:] = 0x55
    levels = levels.reshape(-1)
    values, is_there = random.integers(0, 1 << 62, ROWS), np.unpackbits(levels, bitorder="little")[:ROWS] == 1
    places = [start + offset for start in range(0, 250, 25) for offset in range(0, 15, 4)]
    slices = [levels[k : k + 8].view(np.uint64)[0] for k in random.permutation(places)]
    values[np.flatnonzero(is_there)[: len(slices)]] = np.array(slices).view(np.int64)
    return pa.array(values, mask=~is_there)


@pytest.mark.parametrize("odd", [_begins_like_its_levels, _goes_on_like_its_levels])
def test_values_that_are_given_as_what_levels_are_are_copied_as_literals(kernel, odd):  # noqa: F811
    common = [pa.table({"a": _numbers(np.random.default_rng(file))}) for file in range(FILES)]
    tables = [*common[:6], pa.table({"a": odd()}), *common[6:]]
    bodies = [parquet(each, **OF_PLAIN) for each in tables]
    found, without = merged(kernel, bodies), merged(kernel, [*bodies[:6], *bodies[7:]])
    assert decoded(found).equals(pa.concat_tables(tables))
    assert found.copied_bytes > without.copied_bytes
    assert found.encoded_pages == 0


@pytest.mark.parametrize("odd", [_is_full_of_its_levels])
def test_values_that_are_given_as_what_levels_are_too_often_are_decoded(kernel, odd):  # noqa: F811
    common = [pa.table({"a": _numbers(np.random.default_rng(file))}) for file in range(FILES)]
    tables = [*common[:6], pa.table({"a": odd()}), *common[6:]]
    bodies = [parquet(each, **OF_PLAIN) for each in tables]
    found, without = merged(kernel, bodies), merged(kernel, [*bodies[:6], *bodies[7:]])
    assert decoded(found).equals(pa.concat_tables(tables))
    assert found.copied_bytes <= without.copied_bytes  # nothing of the odd one
    assert found.encoded_pages > without.encoded_pages


@pytest.mark.parametrize("proven", [True, False])
def test_a_page_whose_values_refer_to_before_them_is_no_part_of_another(kernel, proven):  # noqa: F811
    """Bytes of the compressed values are changed one by one: what comes out is what Arrow reads, or nothing."""
    tables = [pa.table({"a": _texts(np.random.default_rng(file)).cast(pa.binary())}) for file in range(6)]
    bodies = [parquet(each, **OF_PLAIN) for each in tables]
    chunk = pq.read_metadata(pa.BufferReader(bodies[4])).row_group(0).column(0)
    begin, random, outcomes = chunk.data_page_offset + 60, np.random.default_rng(7), set[object]()
    for place in random.integers(begin, begin + 3_000, 150):
        damaged = bytearray(bodies[4])
        damaged[place] ^= 1 << random.integers(8)
        try:
            wanted = pq.read_table(pa.BufferReader(bytes(damaged)))
        except (OSError, ValueError):
            wanted = None
        try:
            found = kernel.merge([Part(each, proven=proven) for each in [*bodies[:4], bytes(damaged)]], MergeOptions())
        except Refused as error:
            outcomes.add((error.kind, error.index))
            continue
        if wanted is None:
            assert proven  # somebody vouches for what nobody can read
            continue
        assert decoded(found).equals(pa.concat_tables([*tables[:4], wanted]))
        outcomes.add("same")
    assert outcomes == {(Refusal.DAMAGED, 4), "same"}


@pytest.mark.parametrize("codec", ["UNCOMPRESSED", "SNAPPY"])
@pytest.mark.parametrize("rows", [3, 5_000])
def test_pages_that_are_filled_up_are_merged(kernel, tmp_path, codec, rows):  # noqa: F811
    """fastparquet puts eight zeros behind the values of each page."""
    frame = pd.DataFrame(
        {
            "number": np.arange(rows) * 7,
            "text": [f"item {number % 1000}" for number in range(rows)],
            "hole": pd.array([None if number % 3 == 0 else number for number in range(rows)], dtype="Int64"),
            "kind": pd.Categorical(["a", "b", "a"] * (rows // 3) + ["b"] * (rows % 3)),
            "flag": np.arange(rows) % 2 == 0,
        }
    )
    file = tmp_path / "a.parquet"
    fastparquet.write(str(file), frame, compression=codec)
    found = merged(kernel, [file.read_bytes()] * 3, codec="none" if codec == "UNCOMPRESSED" else "snappy")
    assert decoded(found).equals(pa.concat_tables([pq.read_table(file)] * 3))


LISTS = {
    "numbers": (pa.list_(pa.int64()), lambda r: [int(r.integers(0, 1 << 62)) for _ in range(r.integers(0, 5))]),
    "texts": (pa.list_(pa.string()), lambda r: [f"user-{r.integers(0, 1 << 40)}" for _ in range(r.integers(0, 4))]),
    "holes": (
        pa.list_(pa.float64()),
        lambda r: (
            [None if r.random() < 0.3 else r.random() for _ in range(r.integers(0, 5))] if r.random() > 0.2 else None
        ),
    ),
    "lists": (
        pa.list_(pa.list_(pa.int64())),
        lambda r: [[int(r.integers(0, 1 << 62))] * int(r.integers(0, 3)) for _ in range(r.integers(0, 3))],
    ),
    "groups": (
        pa.list_(pa.struct({"a": pa.int64(), "b": pa.string()})),
        lambda r: [
            {"a": int(r.integers(0, 1 << 62)), "b": f"x{r.integers(0, 1 << 50)}"} for _ in range(r.integers(0, 4))
        ],
    ),
}


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_copied(kernel, kind, dictionary, version, proven):  # noqa: F811
    type_, value = LISTS[kind]
    random = [np.random.default_rng(file) for file in range(FILES)]
    tables = [pa.table({"a": pa.array([value(each) for _ in range(ROWS)], type_)}) for each in random]
    how = {"use_dictionary": dictionary, "data_page_version": version}
    small = {"data_page_size": 3_000, "write_batch_size": 50}
    bodies = [parquet(each, **how, **(small if number % 2 else {})) for number, each in enumerate(tables)]

    found = kernel.merge([Part(body, proven=proven) for body in bodies], MergeOptions())

    assert decoded(found).equals(pa.concat_tables(tables))
    assert found.copied_bytes > 0.8 * len(found.view) or kind == "lists"  # whose values repeat
    metadata = pq.ParquetFile(pa.BufferReader(found.view)).metadata
    assert metadata.row_group(0).column(0).has_offset_index


def test_pages_that_begin_within_a_row_are_decoded(kernel):  # noqa: F811
    """A page of the output may not, by which rows would be skipped; pages of version 1 of others may."""
    leaf = pa.schema([pa.field("a", pa.list_(pa.int64()))])
    numbers = np.random.default_rng(1).integers(0, 1 << 62, 400).tolist()
    whole = Page(numbers[:200], definition=[3] * 200, repetition=[0, 1] * 100)
    rest = Page(numbers[200:], definition=[3] * 200, repetition=[1, 0] * 100)
    body = made(leaf, [[whole, rest]])
    found = merged(kernel, [body] * 40, codec="none")
    wanted = pq.read_table(pa.BufferReader(body))
    assert decoded(found).equals(pa.concat_tables([wanted] * 40))
    assert found.copied_pages == 0
