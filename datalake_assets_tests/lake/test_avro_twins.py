"""Feeds that are written as Avro, too: the same rows in both, read by fastavro and Arrow, whatever dies and changes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import fastavro
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import parse_feed
from datalake_assets.lake import avro_twins
from datalake_assets.lake.conversion import convert
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import rows, stream_feed, table_feed, table_of
from datalake_assets_tests.lake.mortal_store import Killed, MortalStore
from datalake_assets_tests.sources.files.dropping import DROPPED, Dropping, files_feed

LATER = DROPPED + timedelta(days=1)
TWO: Any = {"type": "parquet", "also": ["avro"]}


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def dropping(request: pytest.FixtureRequest, tmp_path: Path) -> Dropping:
    folder = tmp_path / "drop"
    folder.mkdir()
    store = request.getfixturevalue(f"{request.param}_store")
    return Dropping(store, folder, files_feed(str(folder), kept_as=TWO, time_column="at"))


only_local = pytest.mark.parametrize("dropping", ["local"], indirect=True)


def dated(*days: int, value: int = 0) -> str:
    return "id,at\n" + "".join(f"{value},2025-03-{day:02} 06:00:00\n" for day in days)


def files_of(store: Store, root: str, suffix: str) -> dict[str, Counter[str]]:
    """The rows of each file below a folder, by its path without suffix; Avro by fastavro, Parquet by Arrow."""
    found = {}
    for info in store.list(root):
        with store.filesystem().open_input_file(store.path(info.key)) as source:
            rows = list(fastavro.reader(source)) if suffix == ".avro" else pq.read_table(source).to_pylist()
        assert info.key.endswith(suffix)
        # Avro's times without a zone are of the machine's clock for fastavro; all here are whole seconds
        found[info.key.removeprefix(f"{root}/").removesuffix(suffix)] = Counter(
            json.dumps({name: str(value)[:19] for name, value in row.items()}) for row in rows
        )
    return found


def is_both(dropping: Dropping) -> int:
    """Asserts that both forms have the same rows, file by file; how many files."""
    avro = files_of(dropping.store, "avro/streams/s", ".avro")
    assert avro == files_of(dropping.store, "streams/s", ".parquet")
    assert list(open_table(dropping.store, dropping.feed).verify()) == []
    return len(avro)


def test_both_have_the_same_rows_through_changes_of_files_and_compactions(dropping, monkeypatch):
    made = []
    real = avro_twins._made
    monkeypatch.setattr(avro_twins, "_made", lambda *given: made.append(given) or real(*given))
    dropping.drop("a.csv", dated(1, 2, 3))
    dropping.export()
    dropping.drop("b.csv", dated(1, 2, value=7))
    dropping.export()
    assert is_both(dropping) == 5
    assert made == [], "one parse wrote both"

    dropping.drop("a.csv", dated(2, 3, value=1), at=LATER)
    dropping.export()
    assert is_both(dropping) == 4
    assert made == []
    dropping.drop("c.csv", dated(1, value=8))
    dropping.export()
    table = open_table(dropping.store, dropping.feed)
    assert table.compact("2025-03-01", CompactionRequest(force=True)).files_compacted == 2
    assert is_both(dropping) == 4
    assert len(made) == 1
    table.delete_rows("2025-03-01", "id = 8")
    assert is_both(dropping) == 4
    assert table.purge() > 0
    assert list(dropping.store.list("avro")) == []


@only_local
def test_whatever_dies_a_repair_brings_both_in_step(dropping):
    dead = 0
    for step in itertools.count(1):
        mortal = MortalStore(dropping.store)
        dropping.drop("a.csv", dated(1, 2, value=step), at=DROPPED + timedelta(hours=step))
        dropping.drop(f"{step}.csv", dated(2, value=100 + step))
        mortal.left, mortal.after = step, step % 2 == 0
        try:
            Dropping(mortal, dropping.folder, dropping.feed).export()  # type: ignore[arg-type]
        except Killed:
            dead += 1
        else:
            break
        if step % 3:
            dropping.export()
        open_table(dropping.store, dropping.feed).repair()
        is_both(dropping)
    assert dead > 10


@only_local
def test_what_is_missing_or_unknown_is_named_and_mended(dropping):
    dropping.drop("a.csv", dated(1, 2))
    dropping.export()
    first, second = sorted(info.key for info in dropping.store.list("avro"))
    dropping.store.delete([first])
    dropping.store.put(f"{second.rpartition('/')[0]}/data-x.avro", b"x")
    dropping.store.put("avro/streams/s/year=2020/month=01/day=01/data-y.avro", b"x")
    table = open_table(dropping.store, dropping.feed)
    assert [each.what for each in table.verify()] == ["missing", "unknown file"]
    assert table.repair().swept == 2
    is_both(dropping)


@only_local
def test_no_avro_file_keeps_rows_that_are_deleted_once_avro_is_given_up(dropping):
    dropping.drop("a.csv", dated(1, 2) + dated(1, value=1).partition("\n")[2])
    dropping.export()
    dropping.feed = files_feed(str(dropping.folder), time_column="at")
    table = open_table(dropping.store, dropping.feed)
    assert {each.what for each in table.verify()} == {"unknown file"}
    with pytest.raises(ConfigError, match="take 'also' out of its format, and repair it, first"):
        convert(dropping.store, dropping.feed, "iceberg", source_schema=Any, switch=Any)  # type: ignore[arg-type]
    table.delete_rows("2025-03-01", "id = 1")
    assert [info.key.split("/")[-2] for info in dropping.store.list("avro")] == ["day=02"]
    assert table.repair().swept == 1
    assert list(table.verify()) == list(dropping.store.list("avro")) == []


def test_no_avro_file_shows_what_was_pulled_and_not_committed(local_store, monkeypatch):
    monkeypatch.setattr(avro_twins, "follow_manifests", lambda *_: 0)
    pulled = open_table(local_store, stream_feed("pull", format=TWO))
    for _ in range(2):  # the same rows
        day = InMemoryBatches((SourceBatch(rows(range(3))),), "rowtime")
        pulled.write(day, partitions=["2025-01-01"], run_id="run")
    table = open_table(local_store, table_feed(format=TWO))
    for count in (10, 5):  # so few are pulled again
        table.write(table_of(count), partitions=table.plan().partitions, run_id="run")
    assert [len(list(local_store.list(f"avro/{place}"))) for place in ("streams/s", "tables/t")] == [1, 2]


def test_columns_that_avro_has_not_are_refused_before_a_row_is_landed(local_store):
    feed = stream_feed(format=TWO)
    table = open_table(local_store, feed)
    batches = _nested()
    with pytest.raises(InvalidFeed, match=r"format\.also: column 'tags' is list"):
        table.write(batches, partitions=table.plan().partitions, run_id="run")
    assert table.partitions() == ()
    document = {"name": "s", "kind": "stream", "source": {"type": "ksqldb", "object": "S"}}
    with pytest.raises(InvalidFeed, match="also: only feeds that are kept as plain Parquet"):
        parse_feed(json.dumps({**document, "format": {"type": "iceberg", "also": ["avro"]}}))


def _nested():
    import pyarrow as pa  # noqa: PLC0415  only here

    from datalake_assets_tests.lake.feeds import numbered, stream_of  # noqa: PLC0415

    batch = numbered([1])
    rows = batch.rows.append_column(pa.field("tags", pa.list_(pa.string())), pa.array([["x"]]))
    return stream_of(SourceBatch(rows, batch.source_partitions, batch.source_offsets))
