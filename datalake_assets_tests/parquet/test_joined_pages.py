"""Pages that were joined without being decompressed: equal to their inputs, and to nothing else."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.native import MergeOptions, Part, load_kernel
from datalake_assets.parquet.proof import Verdict, load_comparer
from datalake_assets_tests.parquet.test_comparer import compared, encoded

pytestmark = pytest.mark.skipif(load_comparer() is None, reason="the comparer was not built")


#: The first of them are tried with a dictionary; from some file on their pages are joined as they are compressed.
FILES = 12
JOINED = [[f"{file:02} {row} {'x' * (row % 9)}" if row % 7 else None for row in range(900)] for file in range(FILES)]
#: Of the values of a file near the end, which are among those that were joined.
LATE = -2
#: Files whose dictionaries their indices go through once, in one page or in several.
PAGES = {"one page": {}, "several pages": {"data_page_size": 100, "write_batch_size": 100}}


def _joined(codec, pages="one page"):
    """Files whose pages are joined, what the kernel makes of them, and where it has the values of a late one."""
    if (kernel := load_kernel()) is None:
        pytest.skip("the kernel was not built")
    how = {"compression": codec, "data_page_version": "2.0", **PAGES[pages]}
    inputs = [encoded(pa.table({"a": values}), **how) for values in JOINED]
    made = kernel.merge([Part(each, proven=True) for each in inputs], MergeOptions(codec=codec, key_values={}))
    assert made.copied_pages == 1
    chunk = pq.read_metadata(io.BytesIO(inputs[LATE])).row_group(0).column(0)
    begin, end = chunk.dictionary_page_offset, chunk.data_page_offset
    values, output = inputs[LATE][begin + 20 : end], bytes(made.view)  # behind the page's head
    assert output.count(values) == 1
    return inputs, output, range(output.index(values), output.index(values) + len(values))


@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("codec", ["snappy", "zstd"])
def test_joined_pages_are_equal_to_their_inputs_and_to_none_in_another_order(codec, pages):
    inputs, output, _ = _joined(codec, pages)
    others = [encoded(pa.table({"a": values}), compression="gzip") for values in JOINED]
    for sides in (inputs, others, [*others[:-1], inputs[-1]], [*inputs[:-1], others[-1]]):
        found = compared(sides, output, proven=True)
        assert (found.verdict, found.reason) == (Verdict.EQUAL, "")
    assert compared([*inputs[:-2], inputs[-1], inputs[-2]], output).verdict is Verdict.DIFFERS
    assert compared([*inputs[:-2], inputs[-2], inputs[-2]], output).verdict is Verdict.DIFFERS
    how = {"compression": codec, "data_page_version": "2.0", **PAGES[pages]}
    changed = encoded(pa.table({"a": [*JOINED[-1][:-1], "another"]}), **how)
    assert compared([*inputs[:-1], changed], output).verdict is Verdict.DIFFERS


@pytest.mark.parametrize("codec", ["snappy", "zstd"])
def test_joined_pages_are_not_decompressed_though_dictionaries_have_several_pages(codec):
    inputs, output, _ = _joined(codec, "several pages")
    metadata = pq.read_metadata(io.BytesIO(output)).row_group(0).column(0)
    found = compared(inputs, output, proven=True)
    assert found.verdict is Verdict.EQUAL
    assert found.peak_bytes < 0.6 * metadata.total_uncompressed_size  # most of which is one page


@pytest.mark.parametrize("codec", ["snappy", "zstd"])
@pytest.mark.parametrize("left", [0, 100, 101, 450])
def test_a_dictionary_whose_later_indices_go_another_way_is_another_column(codec, left):
    """What its first pages say is what the output has, and its entries are all there."""
    inputs, output, _ = _joined(codec, "several pages")
    entries = pa.array([value for value in JOINED[0] if value is not None])
    order = [*range(len(entries) - left), *reversed(range(len(entries) - left, len(entries)))]
    numbers = iter(order)
    given = [None if value is None else next(numbers) for value in JOINED[0]]
    column = pa.DictionaryArray.from_arrays(pa.array(given, pa.int32()), entries)
    how = {"compression": codec, "data_page_version": "2.0", "store_schema": False, **PAGES["several pages"]}
    changed = encoded(pa.table({"a": column}), **how)
    told = compared([changed, *inputs[1:]], output)
    assert told.verdict is (Verdict.DIFFERS if left > 1 else Verdict.EQUAL), told.reason


@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("codec", ["snappy", "zstd"])
def test_no_changed_byte_of_a_joined_page_passes(codec, pages):
    inputs, output, places = _joined(codec, pages)
    for place in places[::29]:
        changed = bytearray(output)
        changed[place] ^= 1 << place % 8
        assert compared(inputs, bytes(changed), proven=True).verdict is not Verdict.EQUAL, place


@pytest.mark.parametrize("pages", PAGES)
@pytest.mark.parametrize("codec", ["snappy", "zstd"])
def test_bounds_of_joined_pages_have_to_be_true(codec, pages):
    """The greatest value of all files is in the last: the bound is that of the chunk, and that of the joined page."""
    inputs, output, values = _joined(codec, pages)
    most = max(value for each in JOINED for value in each if value is not None).encode()
    places = [at for at in range(values.stop, len(output)) if output.startswith(most, at)]
    found = set()
    for place in places:
        changed = bytearray(output)
        changed[place + len(most) - 1] -= 1
        found.add((told := compared(inputs, bytes(changed), proven=True)).reason)
        assert told.verdict is Verdict.DIFFERS, place
    assert "a value lies outside of the bounds that are stated" in found
    assert len(places) >= 2
