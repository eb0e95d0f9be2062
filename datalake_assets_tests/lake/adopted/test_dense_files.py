"""Files of others whose row groups decode to far more than their size are scanned in pieces, with the same answers."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from datalake_assets.lake import scan
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import parquet_bytes, rows

LONG = "".join(chr(97 + place * 7 % 26) for place in range(2000))
MIB = 1 << 20


def constant(count):
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int8()), pa.array([LONG])).cast(pa.string())


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"columns": ["id"]},
        {"columns": ["region", "note"]},
        {"where": ds.field("id") > 2},
        {"where": ds.field("region") == "5", "columns": ["id"]},
        {"where": ds.field("note").is_null()},
        {"partitions": ["region=5"]},
    ],
    ids=repr,
)
def test_scan_in_pieces_gives_what_a_scan_gives(store, folder, asked, monkeypatch):
    folder.write("0.parquet", [1, 2], region=["north", None], note=["a", "b"])
    folder.write("1.parquet", pa.array([3], pa.int32()))
    folder.write("region=5/0.parquet", [4, 5], note=pa.array(["c", None]).dictionary_encode())
    folder.write("region=5/1.parquet", [6], region=["overruled"])
    folder.write("region=__HIVE_DEFAULT_PARTITION__/0.parquet", [7])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    expected = rows(table, **asked)

    monkeypatch.setattr(scan, "DENSE_BYTES", 0)

    assert rows(table, **asked) == expected
    assert table.scan(**asked).schema == table.scan(**asked).read_all().schema


def test_batches_of_a_tiny_file_that_decodes_to_hundreds_of_megabytes_are_small(store, folder):
    folder.put("0.parquet", parquet_bytes({"id": range(100_000), "note": constant(100_000)}, row_group_size=100_000))
    folder.write("1.parquet", [100_000], note=["short"])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    before, most, count = pa.total_allocated_bytes(), 0, 0
    for batch in table.scan():
        count += batch.num_rows
        most = max(most, pa.total_allocated_bytes() - before)

    assert count == 100_001
    assert most < 100 * MIB
