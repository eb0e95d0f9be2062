"""A request that fails while a file is read says nothing of the file: none is damaged, gone or without rows by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from deltalake import write_deltalake

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import LakeUnavailable, TransientStoreError
from datalake_assets.lake.adopted.adoption import adopt_at
from datalake_assets.lake.adopted.delta_look import DeltaLook
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets.parquet.failed_requests import answered, failed_request
from datalake_assets.testing.tables import rows_of
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of
from datalake_assets_tests.lake.hive_tables import export, ids, listed


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Has Arrow read the lake's files where no server is, from when it is called on."""
    filesystem = pafs.S3FileSystem(
        access_key="a",
        secret_key="b",
        region="us-east-1",
        scheme="http",
        endpoint_override="127.0.0.1:9",
        connect_timeout=1,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )

    def read_elsewhere() -> None:
        monkeypatch.setattr(LocalStore, "filesystem", lambda _: filesystem)
        monkeypatch.setattr(LocalStore, "path", lambda _, key: f"bucket/{key}")

    yield read_elsewhere
    monkeypatch.undo()


READS: dict[str, Callable[[HiveTable], Any]] = {
    "scan": ids,
    "verify": lambda table: list(table.verify(deep=True)),
    "delete": lambda table: table.deletion_plan("2025-01-01", "id = 3"),
    "footers": lambda table: table.snapshot(["2025-01-01"]).footers("2025-01-01"),
}


@pytest.mark.parametrize("name", READS)
def test_read_that_gets_no_answer_is_to_be_made_again(
    local_store: Store, unreachable: Callable[[], None], name: str
) -> None:
    table = HiveTable(local_store, stream_feed())
    export(table, stream_of(numbered(range(30))))
    before = listed(local_store, "streams")
    unreachable()

    with pytest.raises(TransientStoreError, match=r"the store does not answer as it should \(NETWORK_CONNECTION\)"):
        READS[name](table)

    assert listed(local_store, "streams") == before


def test_no_rows_are_counted_and_no_time_is_near_enough_where_nobody_answered(
    local_store: Store, tmp_path: Path, unreachable: Callable[[], None]
) -> None:
    """Rows of a file were none, and deltalake was let at times that it changes."""
    place = tmp_path / "others" / "t"
    for start in (0, 6):
        rows = pa.Table.from_batches([rows_of(range(start, start + 6))])
        rows = rows.set_column(1, "rowtime", rows["rowtime"].cast(pa.timestamp("us", "UTC")))
        write_deltalake(str(place), rows, mode="append")
    table = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    unreachable()

    with pytest.raises(TransientStoreError):
        table.compact(".", CompactionRequest(force=True))
    look = DeltaLook.__new__(DeltaLook)
    look._store, look._key_of = local_store, lambda path: path  # type: ignore[method-assign]
    with pytest.raises(TransientStoreError):
        look._counted("a.parquet")


REQUEST = "When reading information for key 'k' in bucket 'b': AWS Error {} during HeadObject operation: no body"


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("SLOW_DOWN", TransientStoreError),
        ("UNKNOWN (HTTP status 502)", TransientStoreError),
        ("ACCESS_DENIED", LakeUnavailable),
        ("UNKNOWN (HTTP status 403)", LakeUnavailable),
        ("NO_SUCH_KEY", None),
        ("RESOURCE_NOT_FOUND", None),
    ],
)
def test_refusal_is_told_from_silence_and_both_from_a_file_that_is_gone(text: str, failure: type | None) -> None:
    found = failed_request(OSError(REQUEST.format(text)), "file")

    assert type(found) is (failure or type(None))


def test_damage_stays_what_it_is() -> None:
    with pytest.raises(OSError, match="Corrupt snappy") as caught, answered("file"):
        raise OSError("Corrupt snappy compressed data.")

    assert type(caught.value) is OSError
