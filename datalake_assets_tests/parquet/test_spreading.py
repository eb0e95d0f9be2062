"""Dictionaries of which some values come again are PLAIN pages with copies in between, whatever values are like."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.native import MergeOptions, Part, Refusal, Refused
from datalake_assets_tests.parquet.parquet_files import parquet
from datalake_assets_tests.parquet.test_native import decoded, kernel, merged  # noqa: F401  kernel is a fixture

ROWS, FEW_ROWS, FILES = 4_000, 600, 8
#: Of pages whose values have all been compared by the kernel itself.
PROVING = MergeOptions(verify=True)


def _plain_texts(random_):
    return [f"user-{random_.getrandbits(40)}" for _ in range(ROWS)]


def _long_texts(random_):
    """Longer than a copy may be, alike in most bytes, and some that refer to themselves."""
    return [
        f"{'ab' * random_.randrange(50)}{random_.getrandbits(30)}{'=' * random_.randrange(90)}" for _ in range(FEW_ROWS)
    ]


def _far_texts(random_):
    """No byte repeats: what comes again is further back than Snappy itself looks."""
    return [random_.randbytes(60).hex() for _ in range(FEW_ROWS)]


def _numbers(random_):
    return [random_.getrandbits(20) << 40 | number for number in range(ROWS)]


def _fixed(random_):
    return [random_.randbytes(3) * 5 for _ in range(ROWS)]


KINDS = {
    _plain_texts: pa.string(),
    _long_texts: pa.string(),
    _far_texts: pa.string(),
    _numbers: pa.int64(),
    _fixed: pa.binary(15),
}


def _some(values, random_):
    """Some come again somewhere: next to each other, at the end, several in a row, from the start of all."""
    changed = list(values)
    for place in random_.sample(range(1, len(changed)), len(changed) // 130):
        changed[place] = changed[random_.randrange(place)]
    changed[1] = changed[0]
    changed[-3:] = [changed[0], changed[0], changed[-4]]
    return changed


def _holes(values, random_):
    return [None if random_.random() < 0.2 else value for value in _some(values, random_)]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("spoilt", [_some, _holes])
@pytest.mark.parametrize("kind", KINDS)
def test_values_that_come_again_are_copied(kernel, kind, spoilt, proven, verify):  # noqa: F811
    chosen = random.Random(3)
    tables = [pa.table({"a": pa.array(spoilt(kind(chosen), chosen), KINDS[kind])}) for _ in range(FILES)]
    how = {"dictionary_pagesize_limit": 1 << 22, "data_page_size": 2_000}
    bodies = [parquet(each, **how) for each in tables]

    found = kernel.merge([Part(body, proven=proven) for body in bodies], MergeOptions(verify=verify))

    assert decoded(found).equals(pa.concat_tables(tables))
    assert (found.encoded_pages, found.copied_bytes > 0.8 * len(found.view)) == (0, True)
    assert found.rows == sum(each.num_rows for each in tables)


def test_what_comes_again_may_be_all_that_a_page_has(kernel):  # noqa: F811
    """The dictionary is full before the last page, which repeats values of the first."""
    chosen = random.Random(5)
    values = [_plain_texts(chosen) for _ in range(FILES)]
    tables = [pa.table({"a": each + each[:500]}) for each in values]
    bodies = [parquet(each, data_page_size=500, write_batch_size=250) for each in tables]
    found = merged(kernel, bodies)
    assert decoded(found).equals(pa.concat_tables(tables))
    assert found.encoded_pages == 0


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_values_that_mostly_come_again_are_decoded(kernel, share):  # noqa: F811
    """Of files that begin without repetitions; a dictionary that the others keep is smaller."""
    chosen = random.Random(6)
    tables = [pa.table({"a": _plain_texts(chosen)}) for _ in range(4)]
    for _ in range(4):
        texts = _plain_texts(chosen)
        few = texts[: int(ROWS * (1 - share))]
        tables.append(pa.table({"a": few + [chosen.choice(few) for _ in range(ROWS - len(few))]}))
    found = merged(kernel, [parquet(each) for each in tables])
    assert decoded(found).equals(pa.concat_tables(tables))
    assert found.encoded_pages > 0


def test_a_dictionary_of_which_entries_are_left_out_is_decoded(kernel):  # noqa: F811
    """As where rows were deleted behind a writer's back: a `DictionaryArray` may have entries that nobody uses."""
    chosen = random.Random(7)
    tables = []
    for _ in range(FILES):
        texts = _plain_texts(chosen)
        indices = [index for index in range(ROWS) if index % 7]
        tables.append(pa.table({"a": pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(texts))}))
    found = merged(kernel, [parquet(each) for each in tables])
    assert decoded(found)["a"].cast(pa.string()).equals(pa.concat_tables(tables)["a"].cast(pa.string()))


@pytest.mark.parametrize("proven", [True, False])
def test_damaged_elements_are_refused_or_read_as_arrow_reads_them(kernel, proven):  # noqa: F811
    chosen, numbers = random.Random(8), np.random.default_rng(8)
    tables = [pa.table({"a": pa.array(_some(_plain_texts(chosen), chosen)).cast(pa.binary())}) for _ in range(5)]
    bodies = [parquet(each) for each in tables]
    begin = pq.read_metadata(pa.BufferReader(bodies[4])).row_group(0).column(0).dictionary_page_offset
    outcomes = set[object]()
    for place in numbers.integers(begin + 40, begin + 20_000, 150):
        damaged = bytearray(bodies[4])
        damaged[place] ^= 1 << numbers.integers(8)
        try:
            wanted = pq.read_table(pa.BufferReader(bytes(damaged)))
        except (OSError, ValueError):
            wanted = None
        try:
            found = kernel.merge([Part(each, proven=proven) for each in [*bodies[:4], bytes(damaged)]], PROVING)
        except Refused as error:
            outcomes.add((error.kind, error.index))
            continue
        assert wanted is not None
        assert decoded(found).equals(pa.concat_tables([*tables[:4], wanted]))
        outcomes.add("same")
    assert outcomes == {(Refusal.DAMAGED, 4), "same"}
