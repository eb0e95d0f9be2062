"""What several tests of Parquet files read, made once."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest

from datalake_assets_tests.parquet.parquet_files import CODECS, EXTRAS, concatenated, parquet, rows

OPTIONS = [
    {"compression": codec, "data_page_version": version, "use_dictionary": dictionary}
    for codec, version, dictionary in zip(
        CODECS, itertools.cycle(["1.0", "2.0"]), itertools.cycle([True, True, False]), strict=False
    )
]


@pytest.fixture(scope="session")
def mixed():
    """Files of every codec and kind of page, their rows, and the file that they become."""
    tables = [rows(start, start + 100) for start in range(0, 600, 100)]
    bodies = [parquet(table, **EXTRAS, **options) for table, options in zip(tables, OPTIONS, strict=True)]
    return bodies, pa.concat_tables(tables), concatenated(*bodies)[1]
