"""Spark, once for the session, and the files of every writer, written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from datalake_assets_tests.interop.limits import READER_LIMITS, WRITER_LIMITS, cannot
from datalake_assets_tests.interop.readers import READERS, Reader, spark_reader
from datalake_assets_tests.interop.spark import missing_java, running_spark
from datalake_assets_tests.interop.torture import TABLE, parts
from datalake_assets_tests.interop.writers import WRITERS, Writer, spark_writer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Inputs: TypeAlias = Callable[..., list[Path]]


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One Spark; where there is no Java, its tests are skipped."""
    if reason := missing_java():
        pytest.skip(reason)
    with running_spark(tmp_path_factory.mktemp("spark")) as session:
        yield session


@pytest.fixture(scope="session")
def read(request: pytest.FixtureRequest) -> Callable[[str], Reader]:
    """A reader by its name; starts Spark when it is asked for."""

    def named(name: str) -> Reader:
        return READERS[name] if name in READERS else spark_reader(request.getfixturevalue("spark"))

    return named


@pytest.fixture(scope="session")
def writers(request: pytest.FixtureRequest) -> Callable[[str], Writer]:
    """A writer by its name; starts Spark when it is asked for."""

    def named(name: str) -> Writer:
        return WRITERS[name] if name in WRITERS else spark_writer(request.getfixturevalue("spark"), name)

    return named


@pytest.fixture(scope="session")
def inputs(writers: Callable[[str], Writer], tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Three files by a writer, of all columns that it can write and Spark, if it is to read them, does not refuse."""

    @cache
    def written(writer: str, reader: str, without: frozenset[str] = frozenset()) -> list[Path]:
        left_out = cannot(WRITER_LIMITS[writer]) | without
        if reader == "spark":
            left_out |= cannot(READER_LIMITS[reader])
        table = TABLE.select([name for name in TABLE.column_names if name not in left_out])
        folder = tmp_path_factory.mktemp(f"{writer}-for-{reader or 'all'}")
        paths = [folder / f"part-{number}.parquet" for number in range(3)]
        for path, part in zip(paths, parts(table), strict=True):
            writers(writer)(part, path)
        return paths

    return written
