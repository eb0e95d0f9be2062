"""Every writer's files are merged and compared natively: where Arrow has to, a compaction takes twice as long."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet.native import MergeOptions, Part, load_kernel
from datalake_assets.parquet.proof import Side, Verdict, load_comparer
from datalake_assets_tests.interop.names import ALL_WRITERS
from datalake_assets_tests.interop.test_compaction import NEVER_ENCODED, _values

#: Of a library's pages, which it says are compressed and leaves as they are.
UNCLEAR = {"pyarrow-old"}


@pytest.mark.skipif(load_kernel() is None or load_comparer() is None, reason="they were not built")
@pytest.mark.parametrize("writer", [case for case in ALL_WRITERS if _values(case)[0] not in NEVER_ENCODED | UNCLEAR])
def test_what_is_merged_of_a_writers_files_is_compared_without_arrow(request, writer, inputs):
    files = [path.read_bytes() for path in inputs(writer, "")]
    sides = [Side(pa.py_buffer(each), pq.read_metadata(pa.BufferReader(each)).num_rows) for each in files]

    merged = load_kernel().merge([Part(each) for each in files], MergeOptions())

    made = bytes(merged.view)
    footer = made[-8 - int.from_bytes(made[-8:-4], "little") : -8]
    found = load_comparer().compare(sides, Side(pa.py_buffer(made), merged.rows), footer, asks_arrow=True)
    assert (found.verdict, found.reason) == (Verdict.EQUAL, "")
    if "fastparquet" not in request.node.callspec.id:  # more follows the last value, which nobody is to copy on
        assert [load_comparer().read(each).reason for each in sides] == [""] * len(sides)
