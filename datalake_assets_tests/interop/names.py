"""Readers and writers as parameters of tests; those that need Spark go to one process, where it starts once."""

from __future__ import annotations

import pytest

from datalake_assets_tests.interop.readers import READERS
from datalake_assets_tests.interop.writers import SPARK_WRITERS, WRITERS

__all__ = ["ALL_READERS", "ALL_WRITERS", "needs_spark"]

needs_spark = pytest.mark.xdist_group("spark")

ALL_READERS = [*READERS, pytest.param("spark", marks=needs_spark)]
ALL_WRITERS = [*WRITERS, *(pytest.param(name, marks=needs_spark) for name in SPARK_WRITERS)]
