"""What ``docs/how-to/read-the-lake.md`` says about pandas, Polars and DuckDB, run with the versions that we pin."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def evolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stream's folder, relative to the current one, whose later day has a column that the earlier one lacks."""
    monkeypatch.chdir(tmp_path)
    folder = Path("streams/orders")
    days = {"14": pa.table({"id": [1, 2]}), "15": pa.table({"id": [3], "note": ["new"]})}
    for day, rows in days.items():
        partition = folder / "year=2025" / "month=01" / f"day={day}"
        partition.mkdir(parents=True)
        pq.write_table(rows, partition / f"data_202501{day}_120000_0123456789abcdef.parquet")
    return str(folder)


def test_pandas_reads_one_day(evolved: str):
    frame = pd.read_parquet(evolved, filters=[("year", "=", 2025), ("month", "=", 1), ("day", "=", 15)])

    assert frame["id"].tolist() == [3]


def test_pandas_leaves_added_columns_out_without_schema(evolved: str):
    assert "note" not in pd.read_parquet(evolved).columns


def test_pandas_reads_added_columns_with_schema(evolved: str):
    everything = ds.dataset(evolved, partitioning="hive").schema.append(pa.field("note", pa.string()))

    frame = pd.read_parquet(evolved, schema=everything)

    assert frame.sort_values("id")["note"].fillna("").tolist() == ["", "", "new"]


def test_polars_reads_one_day(evolved: str):
    rows = pl.scan_parquet(evolved).filter((pl.col("year") == 2025) & (pl.col("month") == 1) & (pl.col("day") == 14))

    assert rows.collect()["id"].to_list() == [1, 2]


def test_polars_raises_on_added_columns(evolved: str):
    with pytest.raises(pl.exceptions.SchemaError, match="extra_columns"):
        pl.scan_parquet(evolved).collect()


def test_polars_reads_added_columns_with_missing_columns_inserted(evolved: str):
    newest_first = sorted(Path(evolved).rglob("*.parquet"), reverse=True)

    rows = pl.scan_parquet(newest_first, missing_columns="insert", hive_partitioning=True).sort("id").collect()

    assert rows["note"].to_list() == [None, None, "new"]
    assert rows["day"].to_list() == [14, 14, 15]


@pytest.mark.usefixtures("evolved")
def test_duckdb_counts_rows_per_day():
    counts = duckdb.sql(
        "SELECT day, count(*) FROM 'streams/orders/**/*.parquet' WHERE year = 2025 GROUP BY day ORDER BY day"
    )

    assert counts.fetchall() == [(14, 2), (15, 1)]


@pytest.mark.usefixtures("evolved")
def test_duckdb_reads_months_as_text_unless_told():
    untold = duckdb.sql("SELECT DISTINCT month FROM 'streams/orders/**/*.parquet'")
    told = duckdb.sql(
        "SELECT DISTINCT month FROM read_parquet('streams/orders/**/*.parquet', "
        "hive_types = {'year': INTEGER, 'month': INTEGER, 'day': INTEGER})"
    )

    assert (untold.fetchall(), told.fetchall()) == ([("01",)], [(1,)])


@pytest.mark.usefixtures("evolved")
def test_duckdb_reads_added_columns_with_union_by_name():
    rows = duckdb.sql("SELECT note FROM read_parquet('streams/orders/**/*.parquet', union_by_name = true) ORDER BY id")

    assert rows.fetchall() == [(None,), (None,), ("new",)]
