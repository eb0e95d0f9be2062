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
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.table import LakeTable, WriteReport
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import START

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


def sent(changes: Iterable[Change], *, first: int = 0, partition: int = 0) -> SourceBatch:
    """Changes as a source sends them, numbered from ``first`` on."""
    rows = [
        {
            "id": key,
            "kind": f"k{key % 2}",
            "note": note,
            "version": version,
            "op": "u" if note else "d",
            "rowtime": at(day),
        }
        for key, note, day, version in changes
    ]
    count = len(rows)
    return SourceBatch(
        pa.RecordBatch.from_pylist(rows, schema=SCHEMA),
        pa.array([partition] * count, pa.int32()),
        pa.array(range(first, first + count), pa.int64()),
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


def test_merge_keeps_the_newest_change_of_each_key(tmp_path: Path, form: str) -> None:
    feed = merged_feed(form)
    first = [(1, "a", 0, 0), (2, "b", 0, 0), (3, "c", 1, 0), (1, "d", 0, 0)]
    second = [(2, "e", 1, 0), (3, None, 1, 0), (4, "f", 2, 0), (5, None, 0, 0), (4, "g", 0, 0)]
    report = write(opened(tmp_path, feed), sent(first))
    assert (report.rows_read, report.rows_added) == (4, 3)
    assert held(opened(tmp_path, feed)) == {1: ("d", 0), 2: ("b", 0), 3: ("c", 1)}
    report = write(opened(tmp_path, feed), sent(second, first=4))
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


@pytest.mark.parametrize("order_by", [None, "version"])
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


@pytest.mark.parametrize("order_by", [None, "version"])
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
