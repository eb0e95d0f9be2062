"""Readers and writers as parameters of tests; those that need Spark go to one process, where it starts once."""

from __future__ import annotations

from typing import Any

import pytest

from datalake_assets_tests.interop.limits import UNREADABLE
from datalake_assets_tests.interop.readers import READERS
from datalake_assets_tests.interop.writers import SPARK_WRITERS, WRITERS

__all__ = ["ALL_READERS", "ALL_WRITERS", "PAIRS", "needs_spark"]

needs_spark = pytest.mark.xdist_group("spark")


def _marked(*names: str) -> Any:
    """A parameter, marked if Spark is among its names."""
    return pytest.param(*names, marks=needs_spark if any(name.startswith("spark") for name in names) else ())


_READERS, _WRITERS = [*READERS, "spark"], [*WRITERS, *SPARK_WRITERS]
ALL_READERS = [_marked(name) for name in _READERS]
ALL_WRITERS = [_marked(name) for name in _WRITERS]
#: Each writer with each reader that can read its files.
PAIRS = [_marked(writer, reader) for writer in _WRITERS for reader in _READERS if (writer, reader) not in UNREADABLE]
