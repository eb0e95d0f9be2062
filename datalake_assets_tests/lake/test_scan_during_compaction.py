"""Every read is exact while others append and compact; a few hundred reads of the long run beside this module."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.lake import scan
from datalake_assets.lake.commit import Change, Planned
from datalake_assets.lake.scan import _file_is_gone
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.small_files import Partition, append
from datalake_assets_tests.lake.scan_during_compaction import Reading


@pytest.fixture
def forker() -> Iterator[Forker]:
    """Starts appender and compactor; with the S3 server's environment where the test asked for that first."""
    with Forker(dict(os.environ)) as started:
        yield started


@pytest.mark.slow
def test_scan_is_exact_during_compaction_on_disk(tmp_path: Path, forker: Forker) -> None:
    with contextlib.closing(Reading(str(tmp_path), forker, seed=1)) as reading:
        reading.read(100, life=50)
    assert reading.happened["reads"] == 100
    assert reading.happened["compactions"]


@pytest.mark.s3
@pytest.mark.slow
def test_scan_is_exact_during_compaction_on_s3(
    s3_server: S3Server, s3_environment: dict[str, str], s3_lake: str, forker: Forker
) -> None:
    with contextlib.closing(Reading(s3_lake, forker, endpoint=s3_server.endpoint, seed=2)) as reading:
        reading.read(40)
    assert reading.happened["compactions"]


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


def test_scan_reads_again_whatever_the_error_when_its_files_were_replaced(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = Partition(local_store, datetime.now(UTC))
    append(partition.table, partition, 1, "run")
    original = scan._scanner

    class Cut:
        """A scanner whose file is compacted while the server answers, which cuts the answer short."""

        def __init__(self, dataset: ds.Dataset, **options: object) -> None:
            self.projected_schema = original(dataset, **options).projected_schema

        def to_batches(self) -> Iterator[pa.RecordBatch]:
            monkeypatch.setattr(scan, "_scanner", original)
            log = partition.folder.log(partition.key)
            names = tuple(file.name for file in log.load().manifest.files)
            log.commit(Change("compact", "compact", (), lambda _base: Planned(remove=names)))
            yield from ()
            raise OSError("AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream")

    monkeypatch.setattr(scan, "_scanner", Cut)

    assert partition.table.scan(partitions=[partition.key]).read_all().num_rows == 0


def test_scan_raises_other_errors_as_they_are(local_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    partition = Partition(local_store, datetime.now(UTC))
    append(partition.table, partition, 1, "run")
    for info in local_store.list(partition.folder.data_root):
        Path(local_store.path(info.key)).write_bytes(b"no Parquet")

    with pytest.raises(pa.ArrowInvalid, match="Parquet"):
        partition.table.scan(partitions=[partition.key])
