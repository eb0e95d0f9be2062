"""Pages that the kernel compresses by what values have in common with the value before; pyarrow decompresses them."""

from __future__ import annotations

import ctypes
from ctypes.util import find_library

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.native import MergeOptions, Part, load_kernel
from datalake_assets.parquet.proof import Side, Verdict, load_comparer
from datalake_assets_tests.parquet.parquet_files import footer, parquet

pytestmark = pytest.mark.skipif(load_kernel() is None, reason="the native kernel was not built")
ROWS = 30_000
#: As `PM_ENCODES_REPEATS`: releases before do not take what repeats, and the level compresses all.
LEAST_RELEASE = 10504


def texts(form):
    """A text for each row; `form` is given its number and digits that are like no others."""
    digits = np.random.default_rng(1).bytes(8 * ROWS).hex()
    return [form(row, digits[16 * row : 16 * row + 16]) for row in range(ROWS)]


def urls(row, digits):
    return f"https://shop.example.com/{('AT', 'DE', 'CH')[row % 3]}/item/{int(digits[:5], 16)}?visit={digits[8:]}"


def within_nulls(values):
    return pa.array(values, mask=np.random.default_rng(2).random(ROWS) < 0.1)


COLUMNS = {
    "narrow numbers": pa.array(np.arange(ROWS, dtype=np.int32) * 7),
    "times with nulls": within_nulls(10**15 + np.arange(ROWS) * 81_527),
    "fixed width": pa.array(texts(lambda row, digits: f"{row:08}{digits}".encode()), pa.binary(24)),
    "texts of one length": pa.array(texts(lambda _, digits: digits)),
}
#: Where little lies where it lay in the value before, or any way finds it.
OTHERS = {
    "wide numbers": pa.array(np.arange(ROWS) + 10**12),
    "texts": within_nulls(texts(urls)),
    "texts in lists": pa.array([[each, None] for each in texts(urls)]),
    "texts alike elsewhere": pa.array(
        texts(lambda row, digits: digits[: row % 13] + "of the same kind as others " * 2)
    ),
    "no two alike": pa.array(np.random.default_rng(3).normal(size=ROWS)),
    "long texts": pa.array([each * (20_000 if row == ROWS // 2 else 1) for row, each in enumerate(texts(urls))]),
    "empty": pa.array([""] * (ROWS - 1) + ["x"]),
    "nulls": pa.nulls(ROWS, pa.string()),
}


def merged(column, level=1):
    """The column in one row group, of three files, and whether the comparer finds in it what these have."""
    table = pa.table({"it": column})
    bodies = [parquet(table.slice(at, ROWS // 3), use_dictionary=False) for at in range(0, ROWS, ROWS // 3)]
    parts = [Part(body, proven=True) for body in bodies]
    made = load_kernel().merge(parts, MergeOptions(codec="zstd", level=level, copy=False))
    whole = pa.py_buffer(made.view)
    sides = [Side(pa.py_buffer(body), ROWS // 3, proven=True) for body in bodies]
    verdict = (
        load_comparer().compare(sides, Side(whole, ROWS), footer(whole.to_pybytes()).data, memory_bytes=1 << 28).verdict
    )
    assert verdict is Verdict.EQUAL
    assert pq.read_table(whole).equals(table)
    return pq.read_metadata(whole).row_group(0).column(0).total_compressed_size


def by_arrow(column, level=1):
    body = parquet(pa.table({"it": column}), compression="zstd", compression_level=level, use_dictionary=False)
    return pq.read_metadata(pa.BufferReader(body)).row_group(0).column(0).total_compressed_size


def _release():
    name = find_library("zstd")
    return ctypes.CDLL(name).ZSTD_versionNumber() if name else 0


@pytest.mark.skipif(_release() < LEAST_RELEASE, reason="this Zstandard is not told what repeats")
@pytest.mark.parametrize("name", COLUMNS)
def test_what_is_as_it_was_in_the_value_before_is_said_in_fewer_bytes(name):
    assert merged(COLUMNS[name]) < by_arrow(COLUMNS[name]) * 0.95


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_takes_more_bytes_for_it(name):
    assert merged(OTHERS[name]) < by_arrow(OTHERS[name]) * 1.02 + 200


@pytest.mark.parametrize("level", [-5, 3, 9])
def test_every_level_can_be_had(level):
    assert merged(COLUMNS["times with nulls"], level) < by_arrow(COLUMNS["times with nulls"], level) * 1.02
