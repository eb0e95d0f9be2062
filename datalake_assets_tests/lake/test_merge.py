"""Feeds that say ``write: merge``: one row a key, the newest change's, whatever happens on the way."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import StringType

from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.position import SourcePartition, number_arrays
from datalake_assets.errors import ConfigError, CorruptLake, ObjectNotFound
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake import merge_changes
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.table import LakeTable, WriteReport
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import START
from datalake_assets_tests.lake.iceberg.iceberg_feeds import seen_by_others
from datalake_assets_tests.lake.iceberg.iceberg_tables import delete_rows

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("kind", pa.string()),
        ("note", pa.string()),
        ("version", pa.int64()),
        ("op", pa.string()),
        ("rowtime", pa.timestamp("us", "UTC")),
    ]
)
#: A change: key, note (None: delete), day, version.
Change = tuple[int, str | None, int, int]


def merged_feed(form: str = "parquet", **merge: Any) -> Feed:
    """A stream that is merged by two columns."""
    document = {
        "name": "s",
        "kind": "stream",
        "source": {"type": "ksqldb", "object": "S"},
        "start": "2025-01-01",
        "format": {"type": form},
        "write": "merge",
        "key": ["id", "kind"],
        "merge": {"delete_column": "op", **merge},
    }
    return parse_feed(json.dumps(document))


def at(day: int) -> datetime:
    """Noon of a day."""
    return START + timedelta(days=day, hours=12)


def sent(changes: Iterable[Change], *, first: int = 0, partition: SourcePartition = 0) -> SourceBatch:
    """Changes as a source sends them, numbered from ``first`` on."""
    rows = [
        dict(zip(SCHEMA.names, (key, f"k{key % 2}", note, version, "u" if note else "d", at(day)), strict=True))
        for key, note, day, version in changes
    ]
    count = len(rows)
    return SourceBatch(
        pa.RecordBatch.from_pylist(rows, schema=SCHEMA),
        *number_arrays([(partition, offset) for offset in range(first, first + count)]),
    )


def write(table: LakeTable, *batches: SourceBatch) -> WriteReport:
    """One export."""
    plan = table.plan()
    return table.write(InMemoryBatches(batches, "rowtime", plan.request), partitions=plan.partitions, run_id="run")


def held(table: LakeTable) -> dict[int, tuple[str, int]]:
    """Note and day by key; no key may be there twice."""
    rows = table.scan().read_all().to_pylist()
    found = {row["id"]: (row["note"], (row["rowtime"] - START).days) for row in rows}
    assert len(found) == len(rows), "a key has two rows"
    return found


def expected(changes: Sequence[Change], *, ordered: bool) -> dict[int, tuple[str, int]]:
    """What stands after changes, by a dictionary of our own."""
    newest: dict[int, Change] = {}
    for change in changes:
        known = newest.get(change[0])
        if known is None or not ordered or change[3] >= known[3]:
            newest[change[0]] = change
    return {key: (note, day) for key, note, day, _ in newest.values() if note}


@pytest.fixture(params=["parquet", "iceberg"])
def form(request: pytest.FixtureRequest) -> str:
    """What the feed is kept as."""
    return str(request.param)


def opened(folder: Path, feed: Feed) -> LakeTable:
    """The feed's table, as another process opens it."""
    folder.mkdir(exist_ok=True)
    return open_table(open_store(str(folder)), feed)


@pytest.mark.parametrize(("partition", "base"), [(0, 0), ("shard-0", 2**186)])
def test_merge_keeps_the_newest_change_of_each_key(
    tmp_path: Path, form: str, partition: SourcePartition, base: int
) -> None:
    feed = merged_feed(form)
    first = [(1, "a", 0, 0), (2, "b", 0, 0), (3, "c", 1, 0), (1, "d", 0, 0)]
    second = [(2, "e", 1, 0), (3, None, 1, 0), (4, "f", 2, 0), (5, None, 0, 0), (4, "g", 0, 0)]
    report = write(opened(tmp_path, feed), sent(first, first=base, partition=partition))
    assert (report.rows_read, report.rows_added) == (4, 3)
    assert held(opened(tmp_path, feed)) == {1: ("d", 0), 2: ("b", 0), 3: ("c", 1)}
    report = write(opened(tmp_path, feed), sent(second, first=base + 4, partition=partition))
    assert held(opened(tmp_path, feed)) == {1: ("d", 0), 2: ("e", 1), 4: ("g", 0)}
    assert report.rows_added == 0


def test_merge_changes_nothing_when_changes_come_again(tmp_path: Path, form: str) -> None:
    feed = merged_feed(form)
    changes = [(1, "a", 0, 0), (1, "b", 1, 0), (2, "c", 0, 0)]
    write(opened(tmp_path, feed), sent(changes))
    table = opened(tmp_path, feed)
    again = table.write(InMemoryBatches((sent(changes),), "rowtime"), partitions=table.plan().partitions, run_id="r")
    assert held(table) == {1: ("b", 1), 2: ("c", 0)}
    assert (again.rows_added, sum(each.files_added for each in again.partitions)) == (0, 0)


def test_merge_lets_no_older_change_win_by_its_order_column(tmp_path: Path, form: str) -> None:
    feed = merged_feed(form, order_by="version")
    batches = [
        [(1, "a", 0, 5), (2, "b", 0, 5), (3, "c", 0, 5)],
        [(1, "old", 1, 4), (2, None, 0, 6), (3, "same", 1, 5)],
        [(2, "old", 0, 5), (4, None, 0, 9)],
        [(2, "back", 2, 7), (4, "old", 0, 8), (1, None, 0, 3)],
    ]
    first, all_changes = 0, []
    for batch in batches:
        write(opened(tmp_path, feed), sent(batch, first=first))
        first += len(batch)
        all_changes += batch
        assert held(opened(tmp_path, feed)) == expected(all_changes, ordered=True)


def test_merge_goes_on_after_a_compaction(tmp_path: Path, form: str) -> None:
    feed = merged_feed(form)
    for number in range(4):
        write(opened(tmp_path, feed), sent([(number, "a", 0, 0), (100 + number, "x", 1, 0)], first=2 * number))
    table = opened(tmp_path, feed)
    for key in table.partitions():
        table.compact(key, CompactionRequest(force=True))
    write(opened(tmp_path, feed), sent([(2, "b", 3, 0), (101, None, 0, 0)], first=8))
    assert held(opened(tmp_path, feed)) == {0: ("a", 0), 1: ("a", 0), 2: ("b", 3), 3: ("a", 0)} | {
        100 + number: ("x", 1) for number in (0, 2, 3)
    }


def test_merge_puts_changes_without_a_key_aside(tmp_path: Path) -> None:
    feed = merged_feed(order_by="version")
    batch = sent([(1, "a", 0, 1), (2, "b", 0, 1), (3, "c", 0, 1)])
    rows = batch.rows.to_pylist()
    rows[1]["kind"] = None
    rows[2]["version"] = None
    broken = SourceBatch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA), batch.source_partitions, batch.source_offsets)
    report = write(opened(tmp_path, feed), broken)
    table = opened(tmp_path, feed)
    assert (held(table), report.rows_quarantined) == ({1: ("a", 0)}, 2)
    assert {row.reason for _, row in table.quarantined()} == {"key column kind is null", "order column version is null"}
    with pytest.raises(ConfigError, match="merges changes by key"):
        table.check_replay()


#: What decides differs on plain files; on Iceberg one commit has all.
PAIRS = [("parquet", None), ("parquet", "version"), ("iceberg", "version")]


class Died(BaseException):
    """The process is gone."""


#: What changes the lake or the catalog: between any two of these a process may die, or another one come.
OPERATIONS: tuple[tuple[Any, str], ...] = (
    *((LocalStore, name) for name in ("create", "swap", "put", "publish", "delete", "stage")),
    (SqlCatalog, "commit_table"),
)


@contextmanager
def interrupted(number: int, what: Callable[[], object], *, after: bool = False) -> Iterator[list[int]]:
    """Has something happen once, before or after the n-th operation; gives how many there were."""
    count, is_at_it = [0], [False]

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if is_at_it[0]:
                return real(*args, **options)
            count[0] += 1
            is_now = count[0] == number
            if is_now and not after:
                happen()
            result = real(*args, **options)
            if is_now and after:
                happen()
            return result

        return call

    def happen() -> None:
        is_at_it[0] = True
        try:
            what()
        finally:
            is_at_it[0] = False

    with pytest.MonkeyPatch.context() as patch:
        for place, name in OPERATIONS:
            patch.setattr(place, name, around(getattr(place, name)))
        yield count


def die() -> None:
    """Ends the process, as far as the one that writes can tell."""
    raise Died


def changes_of(rng: random.Random, count: int, *, first: int) -> list[Change]:
    """Changes of few keys over four days; versions come late, deletions are many."""
    return [
        (
            rng.randrange(8),
            None if rng.random() < 0.3 else f"n{first + number}",
            rng.randrange(4),
            first + number - rng.randrange(6),
        )
        for number in range(count)
    ]


def read_again(table: LakeTable, changes: Sequence[Change]) -> WriteReport:
    """An export of a source that has these changes in all, from where the lake says that it goes on."""
    plan = table.plan()
    first = (plan.request.start_offsets or {}).get(0, 0)
    batches = InMemoryBatches((sent(changes[first:], first=first),), "rowtime", plan.request)
    return table.write(batches, partitions=plan.partitions, run_id="run")


def operations_of(work: Callable[[], object]) -> range:
    """The numbers of what an undisturbed write does to the lake."""
    with interrupted(0, die) as count:
        work()
    assert count[0] > 5
    return range(1, count[0] + 1)


@pytest.mark.parametrize(("form", "order_by"), PAIRS, indirect=["form"])
def test_merge_ends_the_same_wherever_it_is_killed(tmp_path: Path, form: str, order_by: str | None) -> None:
    rng, feed = random.Random(7), merged_feed(form, order_by=order_by)
    changes = changes_of(rng, 28, first=0)
    for number in operations_of(lambda: read_again(opened(tmp_path / "0", feed), changes[:22]))[::7]:
        lake = tmp_path / str(number)
        read_again(opened(lake, feed), changes[:12])
        with suppress(Died), interrupted(number, die, after=rng.random() < 0.5):
            read_again(opened(lake, feed), changes[:22])
        read_again(opened(lake, feed), changes)
        assert held(opened(lake, feed)) == expected(changes, ordered=order_by is not None), f"operation {number}"


@pytest.mark.parametrize(("form", "order_by"), PAIRS, indirect=["form"])
def test_merge_ends_the_same_whenever_another_writer_comes(tmp_path: Path, form: str, order_by: str | None) -> None:
    rng, feed = random.Random(8), merged_feed(form, order_by=order_by)
    changes = changes_of(rng, 28, first=0)
    for number in operations_of(lambda: read_again(opened(tmp_path / "0", feed), changes[:22]))[1::8]:
        lake = tmp_path / str(number)
        read_again(opened(lake, feed), changes[:12])
        with interrupted(number, lambda lake=lake: read_again(opened(lake, feed), changes)):  # type: ignore[misc]
            read_again(opened(lake, feed), changes[:22])  # it overslept, and knows less than the other
        assert held(opened(lake, feed)) == expected(changes, ordered=order_by is not None), f"operation {number}"


def test_merge_begins_anew_when_a_compaction_comes(tmp_path: Path, form: str) -> None:
    feed = merged_feed(form)
    later = sent([(0, "b", 1, 0), (1, None, 0, 0), (7, "c", 0, 0)], first=3)
    for number in operations_of(lambda: write(opened(tmp_path / "0", feed), later))[1::6]:
        lake = tmp_path / str(number)
        for some in range(3):
            write(opened(lake, feed), sent([(some, "a", 0, 0)], first=some))
        compact = partial(opened(lake, feed).compact, "2025-01-01", CompactionRequest(force=True))
        with interrupted(number, compact):
            write(opened(lake, feed), later)
        assert held(opened(lake, feed)) == {0: ("b", 1), 2: ("a", 0), 7: ("c", 0)}, f"operation {number}"


@pytest.mark.parametrize(("form", "order_by"), PAIRS, indirect=["form"])
def test_merge_in_many_rounds_is_that_of_one(
    tmp_path: Path, form: str, order_by: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_changes, "ROUND_ROWS", 6)
    feed, changes = merged_feed(form, order_by=order_by), changes_of(random.Random(9), 24, first=0)
    parts = [sent(changes[first : first + 3], first=first) for first in range(0, 24, 3)]
    report = write(opened(tmp_path, feed), *parts)
    assert held(opened(tmp_path, feed)) == expected(changes, ordered=order_by is not None)
    assert report.rows_added == len(expected(changes, ordered=order_by is not None))
    assert {each.generation for each in report.partitions} != {1}


def test_merge_takes_changes_of_several_source_partitions(tmp_path: Path, form: str) -> None:
    feed = merged_feed(form, order_by="version")
    write(
        opened(tmp_path, feed),
        sent([(1, "a", 0, 1), (2, "b", 0, 5)]),
        sent([(1, "c", 1, 2), (3, "d", 0, 1)], partition=1),
    )
    write(opened(tmp_path, feed), sent([(2, None, 0, 4)], first=2), sent([(3, None, 0, 2)], first=2, partition=1))
    assert held(opened(tmp_path, feed)) == {1: ("c", 1), 2: ("b", 0)}


def test_merge_goes_on_in_a_new_epoch(tmp_path: Path, form: str) -> None:
    feed = merged_feed(form)
    write(opened(tmp_path, feed), sent([(1, "a", 0, 0), (2, "b", 0, 0), (3, "c", 1, 0)]))
    table = opened(tmp_path, feed)
    anew = InMemoryBatches((sent([(1, "d", 1, 0), (2, None, 0, 0)]),), "rowtime", recreated=True)
    table.write(anew, partitions=table.plan().partitions, run_id="run")
    assert held(opened(tmp_path, feed)) == {1: ("d", 1), 3: ("c", 1)}


def test_merge_puts_rows_aside_that_do_not_fit_the_contract(tmp_path: Path) -> None:
    document = merged_feed().model_dump(mode="json") | {"schema_policy": "discard_row"}
    feed = parse_feed(json.dumps(document))
    write(opened(tmp_path, feed), sent([(1, "a", 0, 0), (2, "b", 0, 0)]))
    later = sent([(1, "c", 0, 0), (2, None, 0, 0)], first=2)
    rows = later.rows.append_column("extra", pa.array(["x", None]))
    report = write(opened(tmp_path, feed), SourceBatch(rows, later.source_partitions, later.source_offsets))
    assert (report.rows_quarantined, held(opened(tmp_path, feed))) == (1, {1: ("a", 0)})


def test_merge_adds_columns_of_an_evolving_source(tmp_path: Path, form: str) -> None:
    """Also where it comes while another one, which knows nothing of the new column, still reads its changes."""
    feed = parse_feed(json.dumps(merged_feed(form).model_dump(mode="json") | {"schema_policy": "evolve"}))
    later = sent([(1, "c", 0, 0), (3, "d", 1, 0)], first=2)
    rows = later.rows.append_column("extra", pa.array(["x", "y"]))
    evolved = SourceBatch(rows, later.source_partitions, later.source_offsets)
    write(opened(tmp_path, feed), sent([(1, "a", 0, 0), (2, "b", 0, 0)]))

    class Slow(InMemoryBatches):
        def __iter__(self) -> Iterator[SourceBatch]:
            write(opened(tmp_path, feed), evolved)
            return super().__iter__()

    table = opened(tmp_path, feed)
    plain = sent([(1, "c", 0, 0), (3, "d", 1, 0), (1, "e", 0, 0)], first=2)
    table.write(Slow((plain,), "rowtime", table.plan().request), partitions=table.plan().partitions, run_id="run")
    found = table.scan(columns=["id", "note", "extra"]).read_all().to_pylist()
    found = sorted((row["id"], row["note"], row["extra"]) for row in found)
    assert found == [(1, "e", None), (2, "b", None), (3, "d", "y")]


def test_merge_takes_rows_out_of_envelopes(tmp_path: Path, form: str) -> None:
    document = merged_feed(form).model_dump(mode="json") | {
        "key": ["id"],
        "merge": {"envelope": "debezium"},
        "checks": {},
    }
    feed, row = parse_feed(json.dumps(document)), pa.struct([("ID", pa.int64()), ("NAME", pa.string())])
    schema = pa.schema([("before", row), ("after", row), ("op", pa.string()), ("rowtime", pa.timestamp("ms", "UTC"))])
    changes = [
        {"after": {"ID": 1, "NAME": "a"}, "op": "c", "rowtime": at(0)},
        {"after": {"ID": 2, "NAME": "b"}, "op": "r", "rowtime": at(0)},
        {"before": {"ID": 1, "NAME": "a"}, "after": {"ID": 1, "NAME": "c"}, "op": "u", "rowtime": at(1)},
        {"before": {"ID": 2, "NAME": None}, "op": "d", "rowtime": at(1)},
        {"op": "t", "rowtime": at(1)},
    ]
    for offset in range(0, 5, 3):
        part = pa.RecordBatch.from_pylist(changes[offset : offset + 3], schema)
        numbers = pa.array(range(offset, offset + len(part)), pa.int64())
        report = write(opened(tmp_path, feed), SourceBatch(part, pa.array([0] * len(part), pa.int32()), numbers))
    table = opened(tmp_path, feed)
    assert table.scan(columns=["id", "name", "op"]).read_all().to_pylist() == [{"id": 1, "name": "c", "op": "u"}]
    assert (report.rows_quarantined, [row.reason for _, row in table.quarantined()]) == (1, ["key column id is null"])


def test_merge_keeps_files_apart_by_values(tmp_path: Path) -> None:
    document = merged_feed("iceberg").model_dump(mode="json")
    document["format"] |= {"parts": [{"column": "kind"}, {"column": "id", "transform": "bucket", "buckets": 2}]}
    feed, changes = parse_feed(json.dumps(document)), changes_of(random.Random(5), 30, first=0)
    for end in (10, 20, 30):
        read_again(opened(tmp_path, feed), changes[:end])
    assert held(opened(tmp_path, feed)) == expected(changes, ordered=False)
    with seen_by_others(open_store(str(tmp_path))) as table:
        odd = table.scan(row_filter="kind = 'k1'").to_arrow()["id"].to_pylist()
    assert sorted(odd) == sorted(key for key in expected(changes, ordered=False) if key % 2)


def test_merge_orders_by_times_of_any_unit(tmp_path: Path) -> None:
    feed = merged_feed(order_by="changed")
    for first, (note, second) in enumerate([("a", 5), (None, 7), ("old", 6), ("b", 8)]):
        batch = sent([(1, note, 0, 0)], first=first)
        rows = batch.rows.append_column("changed", pa.array([second], pa.timestamp("s", "UTC")))
        write(opened(tmp_path, feed), SourceBatch(rows, batch.source_partitions, batch.source_offsets))
        assert held(opened(tmp_path, feed)) == ({} if note in (None, "old") else {1: (note, 0)})


def test_merge_reads_keys_only_where_a_changed_one_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, read = merged_feed(), []
    for number in range(6):
        write(opened(tmp_path, feed), sent([(number * 10, "a", 0, 0), (number * 10 + 5, "b", 0, 0)], first=2 * number))
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *given, **named: (read.append(1), real(*given, **named))[1]
    )
    write(opened(tmp_path, feed), sent([(25, "c", 0, 0), (99, "d", 0, 0)], first=12))
    assert len(opened(tmp_path, feed).snapshot().dataset().files) == 6
    assert len(read) <= 2  # the keys of one file, and its rows


def test_merge_forgets_deleted_keys_after_the_time_that_the_feed_says(tmp_path: Path) -> None:
    feed = merged_feed(order_by="version", deletes_kept="PT0S")
    write(opened(tmp_path, feed), sent([(1, None, 0, 9)]))
    write(opened(tmp_path, feed), sent([(2, None, 0, 9)], first=1))
    write(opened(tmp_path, feed), sent([(1, "back", 0, 8), (2, "old", 0, 8)], first=2))
    assert held(opened(tmp_path, feed)) == {1: ("back", 0)}


@pytest.mark.parametrize("name", ["partition", "deletes", "source offset", "a.b"])
def test_merge_takes_keys_of_any_name(tmp_path: Path, name: str) -> None:
    document = merged_feed().model_dump(mode="json") | {"key": [name], "checks": {}}
    feed = parse_feed(json.dumps(document))
    for first, note in enumerate(["a", "b"]):
        batch = sent([(1, note, first, 0)], first=first)
        rows = batch.rows.append_column(name, pa.array(["x"]))
        rows = rows.append_column("a", pa.array([{"b": "y"}]))
        write(opened(tmp_path, feed), SourceBatch(rows, batch.source_partitions, batch.source_offsets))
    assert held(opened(tmp_path, feed)) == {1: ("b", 1)}


def test_merge_stops_when_the_list_of_deleted_keys_is_gone(tmp_path: Path, form: str) -> None:
    feed = merged_feed(form, order_by="version")
    write(opened(tmp_path, feed), sent([(1, "a", 0, 8), (2, None, 0, 9)]))
    (deleted,) = tmp_path.glob("control/streams/s/deleted/*.parquet")
    whole = deleted.read_bytes()
    deleted.write_bytes(whole[:-9])
    with pytest.raises(CorruptLake, match="the list of deleted keys cannot be read"):
        write(opened(tmp_path, feed), sent([(2, "old", 0, 7)], first=2))
    deleted.unlink()
    with pytest.raises(ObjectNotFound, match="the list of deleted keys is gone; restore it"):
        write(opened(tmp_path, feed), sent([(2, "old", 0, 7)], first=2))
    found = [(each.what, each.name) for each in opened(tmp_path, feed).verify()]
    assert found == [("missing", deleted.relative_to(tmp_path).as_posix())]
    deleted.write_bytes(whole)
    write(opened(tmp_path, feed), sent([(2, "old", 0, 7)], first=2))
    assert held(opened(tmp_path, feed)) == {1: ("a", 0)}


def test_merge_refuses_to_drop_what_another_engine_added(tmp_path: Path) -> None:
    feed = merged_feed("iceberg")
    write(opened(tmp_path, feed), sent([(1, "a", 0, 0)]))
    with seen_by_others(open_store(str(tmp_path))) as table:
        with table.update_schema() as update:
            update.add_column("extra", StringType())
        table.append(table.scan().to_arrow().set_column(6, "extra", pa.array(["kept"], pa.large_string())))
    with pytest.raises(ConfigError, match="has column 'extra', which feed 's' does not"):
        write(opened(tmp_path, feed), sent([(1, "b", 0, 0)], first=1))


def test_merge_applies_rows_that_another_engine_deleted(tmp_path: Path) -> None:
    feed = merged_feed("iceberg")
    write(opened(tmp_path, feed), sent([(1, "a", 0, 0), (2, "b", 0, 0), (3, "c", 0, 0)]))
    with seen_by_others(open_store(str(tmp_path))) as table:
        rows, file = table.scan().to_arrow()["id"].to_pylist(), next(iter(table.scan().plan_files())).file
        file.spec_id = 0
        delete_rows(table, positions=[(file.file_path, rows.index(2))], partition=file)
    write(opened(tmp_path, feed), sent([(1, "d", 0, 0)], first=3))
    assert held(opened(tmp_path, feed)) == {1: ("d", 0), 3: ("c", 0)}


@pytest.mark.s3
def test_merge_works_on_s3(s3_store: Store) -> None:
    feed, changes = merged_feed(order_by="version"), changes_of(random.Random(3), 30, first=0)
    for end in (15, 30):
        read_again(open_table(s3_store, feed), changes[:end])
    table = open_table(s3_store, feed)
    assert held(table) == expected(changes, ordered=True)
    assert list(table.verify()) == []
