"""A summary file that names the data files is kept, with the files that it names, or goes before they do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fastparquet
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import ConfigError
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder, ids, refused

# fastparquet leaves the files that it reads to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FORCE = CompactionRequest(force=True)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A dataset of fastparquet's, with its ``_metadata``, appended to twice."""
    at = tmp_path / "raw/clicks"
    at.parent.mkdir()
    for number in range(3):
        frame = pd.DataFrame({"id": [2 * number, 2 * number + 1], "day": ["a", "b"]})
        fastparquet.write(
            str(at), frame, file_scheme="hive", partition_on=["day"], append=number > 0, write_index=False
        )
    assert (at / "_metadata").exists()
    return at


def by_metadata(at: Path) -> Callable[[], list[int]]:
    return lambda: sorted(ds.parquet_dataset(at / "_metadata").to_table()["id"].to_pylist())


def readers(at: Path) -> dict[str, Callable[[], list[int]]]:
    return {
        "fastparquet": lambda: sorted(fastparquet.ParquetFile(str(at)).to_pandas()["id"]),
        "pandas by pyarrow": lambda: sorted(pd.read_parquet(at, engine="pyarrow")["id"]),
        "pyarrow": lambda: sorted(pq.read_table(at)["id"].to_pylist()),
    }


def allow(lake, name: str) -> None:
    registry = FeedRegistry(lake)
    feed = registry.get(name)
    policy = feed.compaction.model_copy(update={"summary_files": "remove"})
    registry.update(feed.model_copy(update={"compaction": policy}), expected_revision=feed.revision)


def files(at: Path) -> dict[str, bytes]:
    return {path.relative_to(at).as_posix(): path.read_bytes() for path in at.rglob("*") if path.is_file()}


def test_what_a_summary_file_names_is_not_compacted(local_store, theirs):
    table = open_table(local_store, adopt(local_store, str(theirs), "clicks").feed)
    before = files(theirs)

    line = refused(lambda: table.compact("day=a", FORCE))

    assert line == (
        f"clicks/day=a is not compacted: {theirs}/_metadata names its files, and readers that go by it would fail;"
        ' delete it, or let the feed\'s compaction have "summary_files": "remove"'
    )
    assert files(theirs) == before
    for name, read in {**readers(theirs), "pyarrow by _metadata": by_metadata(theirs)}.items():
        assert read() == list(range(6)), name
    plan = table.compaction_plan("day=a", FORCE)
    assert plan.groups == ()
    assert {each.reason.partition(" names ")[0] for each in plan.left_alone} == {f"{theirs}/_metadata"}
    assert not any(each.unusable for each in plan.left_alone)


def test_summary_file_goes_with_the_files_that_it_names_if_the_feed_says_so(local_store, theirs):
    adopt(local_store, str(theirs), "clicks")
    allow(local_store, "clicks")
    table = open_table(local_store, FeedRegistry(local_store).get("clicks"))

    for key in table.partitions():
        assert table.compact(key, FORCE).files_after == 1

    assert not (theirs / "_metadata").exists()
    for name, read in readers(theirs).items():
        assert read() == list(range(6)), name
    assert list(table.verify(deep=True)) == []


def test_readers_never_miss_a_file_while_a_summary_goes(local_store, theirs, monkeypatch):
    """Killed just after the summary went, before the merge was committed: readers list what is there."""
    adopt(local_store, str(theirs), "clicks")
    allow(local_store, "clicks")
    table = open_table(local_store, FeedRegistry(local_store).get("clicks"))

    class _DiedError(BaseException):
        """The process is gone."""

    def die(*_: object, **__: object) -> None:
        raise _DiedError

    with monkeypatch.context() as patch:
        patch.setattr("datalake_assets.lake.commit.PartitionLog.commit", die)
        with pytest.raises(_DiedError):
            table.compact("day=a", FORCE)
    assert not (theirs / "_metadata").exists()
    for name, read in readers(theirs).items():
        assert read() == list(range(6)), name


def summary(folder: AdoptedFolder, name: str, tmp_path: Path, *, row_groups: bool) -> None:
    collected: list[pq.FileMetaData] = []
    pq.write_to_dataset(pa.table({"id": [1]}), tmp_path / "made", metadata_collector=collected)
    pq.write_metadata(pa.schema([("id", pa.int64())]), tmp_path / "summary", collected if row_groups else None)
    folder.store.put(name, (tmp_path / "summary").read_bytes())


@pytest.mark.parametrize(
    ("case", "is_refused"),
    [
        (("clicks/_metadata", True), True),
        (("clicks/a/_metadata", True), True),
        (("clicks/a/day=1/_metadata", True), True),
        (("_metadata", True), True),
        (("clicks/_common_metadata", True), True),
        (("clicks/_common_metadata", False), False),
        (("clicks/_metadata", False), False),
        (("clicks/b/_metadata", True), False),
    ],
)
def test_summary_files_count_by_their_row_groups_and_place(store, folder, tmp_path, case, is_refused):
    name, row_groups = case
    for number in range(3):
        folder.write(f"a/day=1/{number}.parquet", [number])
    summary(folder, name, tmp_path, row_groups=row_groups)
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)
    before = folder.store.get(name)[0]

    if is_refused:
        with pytest.raises(ConfigError, match="names its files"):
            table.compact("a/day=1", FORCE)
    else:
        assert table.compact("a/day=1", FORCE).files_after == 1
    assert folder.store.get(name)[0] == before
    assert ids(table) == [0, 1, 2]


def test_summary_above_the_adopted_folder_is_never_removed(store, folder, tmp_path):
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    summary(folder, "_metadata", tmp_path, row_groups=True)
    adopt(store, folder.uri, "clicks")
    allow(store, "clicks")
    table = open_table(store, FeedRegistry(store).get("clicks"))

    assert "adopt the folder that it lies in" in refused(lambda: table.compact(".", FORCE))
    assert folder.store.head("_metadata")


def test_summary_that_cannot_be_read_counts(store, folder):
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    folder.put("_metadata", b"PAR1 nonsense")
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    with pytest.raises(ConfigError, match="names its files"):
        table.compact(".", FORCE)


def test_partition_without_anything_to_merge_is_no_failure(store, folder, tmp_path):
    folder.write("0.parquet", [1])
    summary(folder, "clicks/_metadata", tmp_path, row_groups=True)

    assert open_table(store, adopt(store, folder.uri, "clicks").feed).compact(".", FORCE).files_compacted == 0


def test_summary_that_appears_during_the_rewrite_stops_the_commit(store, folder, tmp_path):
    for number in range(3):
        folder.write(f"{number}.parquet", [number])
    table = open_table(store, adopt(store, folder.uri, "clicks").feed)

    def written(_: object) -> None:
        summary(folder, "clicks/_metadata", tmp_path, row_groups=True)

    with pytest.raises(ConfigError, match="names its files"):
        table.compact(".", FORCE, on_progress=written)
    assert sorted(folder.files()) == ["0.parquet", "1.parquet", "2.parquet", "_metadata"]
    assert not list(folder.store.list_staged(""))


def test_option_is_a_feeds(local_store, theirs):
    feed = adopt(local_store, str(theirs), "clicks").feed

    assert json.loads(feed.model_dump_json())["compaction"]["summary_files"] == "keep"
