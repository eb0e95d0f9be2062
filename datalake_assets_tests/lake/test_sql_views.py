"""One column that DuckDB does not take fails the queries that touch it, and no others."""

from __future__ import annotations

from decimal import Decimal

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from datalake_assets.lake.scan import BoundedDataset
from datalake_assets.lake.sql_views import hide, is_taken, show

WIDE = pa.decimal256(60, 2)
DECIMALS = [Decimal("1.50"), None]


def dataset(folder, table):
    pq.write_table(table, folder / "0.parquet")
    return ds.dataset(folder, format="parquet")


@pytest.fixture
def connection():
    with duckdb.connect() as opened:
        yield opened


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (DECIMALS, WIDE),
        ([[Decimal(1)], None], pa.list_(WIDE)),
        ([{"x": Decimal(1)}, None], pa.struct([("x", WIDE)])),
        ([{"x": [{"y": Decimal(1)}]}, None], pa.struct([("x", pa.list_(pa.struct([("y", WIDE)])))])),
    ],
)
def test_only_queries_that_touch_the_column_fail_and_name_it(connection, tmp_path, values, kind):
    show(connection, "t", dataset(tmp_path, pa.table({"id": [1, 2], "w": pa.array(values, kind)})))
    assert connection.execute("select count(*) from t").fetchall() == [(2,)]
    assert connection.execute("select id from t where id > 1").fetchall() == [(2,)]
    assert connection.execute("select t1.id from t t1 join t t2 using (id) order by 1").fetchall() == [(1,), (2,)]
    for query in ("select w from t", "select * from t", "select count(w) from t", "select id from t order by w"):
        with pytest.raises(duckdb.Error, match=r"column 'w' of t is .*decimal256\(60, 2\).*, which DuckDB cannot read"):
            connection.execute(query).fetchall()


@pytest.mark.parametrize(
    ("values", "kind", "seen"),
    [
        ([1.5, None], pa.float16(), [(1.5,), (None,)]),
        ([[1.5, None], None], pa.list_(pa.float16()), [([1.5, None],), (None,)]),
        ([{"x": 1.5}, None], pa.struct([("x", pa.float16())]), [({"x": 1.5},), (None,)]),
        (DECIMALS, pa.decimal256(38, 2), [(Decimal("1.50"),), (None,)]),
        (["x", None], pa.string_view(), [("x",), (None,)]),
        ([b"x", None], pa.binary_view(), [(b"x",), (None,)]),
    ],
)
def test_values_are_read_as_a_type_that_holds_them(connection, tmp_path, values, kind, seen):
    show(connection, "t", dataset(tmp_path, pa.table({"a": pa.array(values, kind)})))
    assert connection.execute("select a from t").fetchall() == seen


def test_extension_types_are_read_as_what_they_are_stored_as(connection, tmp_path):
    frame = pd.DataFrame({"p": pd.period_range("2025-01", periods=2, freq="M")})
    show(connection, "t", dataset(tmp_path, pa.Table.from_pandas(frame)))
    assert connection.execute("select p from t").fetchall() == [(660,), (661,)]


def test_rows_are_counted_where_no_column_can_be_read(connection, tmp_path):
    show(connection, "t", dataset(tmp_path, pa.table({"w": pa.array(DECIMALS, WIDE)})))
    assert connection.execute("select count(*) from t").fetchall() == [(2,)]


def test_rows_are_counted_by_footers_alone(connection, tmp_path):
    found = dataset(tmp_path, pa.table({"a": range(10_000), "no column": [1] * 10_000, "No Column": [2] * 10_000}))
    file = tmp_path / "0.parquet"
    whole = file.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    file.write_bytes(whole[:4] + bytes(len(whole) - 4 - footer) + whole[-footer:])

    show(connection, "t", found)

    assert connection.execute("select count(*) from t").fetchall() == [(10_000,)]
    with pytest.raises(duckdb.Error):
        connection.execute("select sum(a) from t").fetchall()


def test_columns_of_any_name_stay_what_they_are(connection, tmp_path):
    columns = {"no column": [1, 2], "No Column": [3, 4], "no column ": [5, 6]}
    show(connection, "t", dataset(tmp_path, pa.table(columns)))
    assert connection.execute("select * from t order by 1").fetchall() == [(1, 3, 5), (2, 4, 6)]


def test_a_view_can_be_made_anew_and_taken_away(connection, tmp_path):
    for number in (1, 2):
        show(connection, "order", dataset(tmp_path, pa.table({"id": [number]})))
        assert connection.execute('select id from "order"').fetchall() == [(number,)]
    hide(connection, "order")
    hide(connection, "order")
    with pytest.raises(duckdb.CatalogException):
        connection.execute('select id from "order"')


def test_usual_types_are_taken_as_they_are():
    kinds = [pa.int8(), pa.uint64(), pa.string(), pa.date32(), pa.timestamp("ns", "UTC"), pa.bool_(), pa.float64()]
    kinds += [pa.decimal128(38, 9), pa.time64("us"), pa.list_(pa.int8()), pa.map_(pa.string(), pa.int8()), pa.null()]
    assert is_taken(pa.schema([(f"c{number}", kind) for number, kind in enumerate(kinds)]))
    assert not is_taken(pa.schema([("h", pa.float16())]))


@pytest.mark.parametrize("kind", [pa.int64(), pa.float16(), pa.decimal256(20, 1)], ids=str)
def test_which_rows_a_dataset_has_is_for_its_own_scanner_to_say(connection, tmp_path, kind):
    """One may leave out rows that were deleted, whatever lies in its files."""

    class WithoutTheFirst(BoundedDataset):
        def scanner(self, columns=None, filter=None, **options):  # noqa: A002
            kept = ds.field("id") > 0
            return super().scanner(columns=columns, filter=kept if filter is None else kept & filter, **options)

    values = pa.array([10, 11, 12, 13]).cast(kind if not pa.types.is_float16(kind) else pa.float32()).cast(kind)
    plain = dataset(tmp_path, pa.table({"id": [0, 1, 2, 3], "odd": values, "text": ["a", "b", "c", "d"]}))
    show(connection, "t", WithoutTheFirst(list(plain.get_fragments()), plain.schema, plain.format, plain.filesystem))
    for query, rows in {
        "select count(*) from t": [(3,)],
        "select id from t where text >= 'c' order by id": [(2,), (3,)],
        "select text from t where odd >= 12 order by id": [("c",), ("d",)],
        "select count(*) from t where odd < 12": [(1,)],
        "select odd::int, text from t where id < 2 and odd > 1": [(11, "b")],
        "select * exclude (odd) from t where odd = 13": [(3, "d")],
    }.items():
        assert connection.execute(query).fetchall() == rows, query
