"""Every read is exact while others append and compact; a few hundred reads of the long run beside this module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from datalake_assets.demo.s3 import S3Server
from datalake_assets.lake.scan import _file_is_gone
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.lake.scan_during_compaction import Reading


@pytest.fixture
def forker() -> Iterator[Forker]:
    """Starts appender and compactor; with the S3 server's environment where the test asked for that first."""
    with Forker(dict(os.environ)) as started:
        yield started


@pytest.mark.slow
def test_scan_is_exact_during_compaction_on_disk(tmp_path: Path, forker: Forker) -> None:
    reading = Reading(str(tmp_path), forker, seed=1)
    reading.read(150, life=75)
    assert reading.happened["compactions"] > 1
    assert reading.happened["reads"] == 150
    reading.close()


@pytest.mark.s3
@pytest.mark.slow
def test_scan_is_exact_during_compaction_on_s3(
    s3_server: S3Server, s3_environment: dict[str, str], s3_lake: str, forker: Forker
) -> None:
    reading = Reading(s3_lake, forker, endpoint=s3_server.endpoint, seed=2)
    reading.read(40)
    assert reading.happened["compactions"]
    reading.close()


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("Path does not exist 'lake/s/file'"),
        OSError("Could not open 'lake/s/file': AWS Error NO_SUCH_KEY during GetObject operation: gone"),
        OSError("Could not open 'lake/s/file': AWS Error RESOURCE_NOT_FOUND during GetObject operation: "),
    ],
)
def test_scan_knows_what_arrow_says_of_a_file_that_is_gone(error: OSError) -> None:
    assert _file_is_gone(error)


def test_scan_takes_no_other_error_for_a_file_that_is_gone() -> None:
    assert not _file_is_gone(OSError("AWS Error SLOW_DOWN during GetObject operation: reduce your request rate"))
