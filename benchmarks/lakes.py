"""What a benchmark left on disk, counted without any of our code: from the footers of the files that are there."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

__all__ = ["rows_and_size_mb"]


def rows_and_size_mb(folder: Path) -> tuple[int, float]:
    """Rows and MiB of all Parquet files below a folder."""
    files = list(folder.rglob("*.parquet"))
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    return rows, sum(file.stat().st_size for file in files) / (1024 * 1024)
