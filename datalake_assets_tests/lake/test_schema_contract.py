"""Rows that do not fit a feed's contract: kept out of the lake whole or in part, never lost, and landed later.

Both table formats obey the same rules, so each test runs on both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from datalake_assets.core.batches import Batches, InMemoryBatches, ReadRequest, SourceBatch
from datalake_assets.errors import SchemaChanged, SourceShrank
from datalake_assets.feed import Feed
from datalake_assets.lake.export_commits import Export
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.sql_session import open_answer
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable, WriteReport
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.lake.feeds import START, numbered, rows, stream_feed, stream_of, table_feed
from datalake_assets_tests.lake.mortal_store import Killed, MortalStore

DISCARD = ("discard_row", "discard_value")


@pytest.fixture(params=["parquet", "iceberg"])
def kept_as(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def write(
    store: Store, feed: Feed, batches: Batches, partitions: list[str] | None = None, **options: Any
) -> WriteReport:
    table = open_table(store, feed)
    return table.write(batches, partitions=table.plan(partitions).partitions, run_id="run", **options)


def changed(ids: Sequence[int], columns: Mapping[str, pa.Array], *, without: Sequence[str] = ()) -> SourceBatch:
    """Rows whose offset is their id, with columns added, replaced or left out."""
    batch = rows(ids)
    named = dict(zip(batch.schema.names, batch.columns, strict=True)) | dict(columns)
    changed = pa.RecordBatch.from_pydict({name: each for name, each in named.items() if name not in without})
    return SourceBatch(changed, pa.array([0] * len(ids), pa.int32()), pa.array(list(ids), pa.int64()))


def landed(table: LakeTable, *columns: str) -> list[tuple[Any, ...]]:
    found = table.scan(columns=["id", *columns]).read_all().sort_by("id")
    return [tuple(row.values()) for row in found.to_pylist()]


def waiting(table: LakeTable) -> list[tuple[str, str]]:
    return sorted((row.position, row.reason) for _, row in table.quarantined())


def beside(table: LakeTable) -> dict[str, tuple[str, dict[str, Any]]]:
    return {row.position: (row.reason, json.loads(row.raw)) for _, row in table.discarded()}


def policy(kept_as: str, schema_policy: str, **more: object) -> Feed:
    return stream_feed(format=kept_as, schema_policy=schema_policy, **more)


NEW = "column 'extra' is not in the feed's schema"
TYPE = "column 'id': a value of type string does not fit int64"


@pytest.mark.parametrize("name", DISCARD)
def test_the_first_rows_make_the_contract_and_what_fits_it_lands(local_store, kept_as, name):
    feed = policy(kept_as, name)
    write(local_store, feed, stream_of(numbered([0, 1])))
    report = write(local_store, feed, stream_of(changed([2, 3], {"id": pa.array([2, 3], pa.int16())})))
    table = open_table(local_store, feed)
    assert [each for (each,) in landed(table)] == [0, 1, 2, 3]
    assert (report.rows_quarantined, dict(report.misfits), report.notes) == (0, {}, ())
    assert (waiting(table), beside(table)) == ([], {})


def test_a_row_with_a_value_of_an_unknown_column_waits_in_quarantine(local_store, kept_as):
    feed = policy(kept_as, "discard_row")
    write(local_store, feed, stream_of(numbered([0])))
    report = write(local_store, feed, stream_of(changed([1, 2, 3], {"extra": pa.array([None, "x", None])})))
    table = open_table(local_store, feed)
    assert [each for (each,) in landed(table)] == [0, 1, 3]
    assert waiting(table) == [("0:2", NEW)]
    assert (report.rows_added, report.rows_quarantined, dict(report.misfits)) == (2, 1, {NEW: 1})
    assert report.notes == (f"rows do not fit the feed's schema, and are in quarantine: {NEW} (1)",)
    assert "extra" not in table.scan().schema.names


def test_the_values_of_an_unknown_column_are_left_out_and_kept_beside(local_store, kept_as):
    feed = policy(kept_as, "discard_value")
    write(local_store, feed, stream_of(numbered([0])))
    report = write(local_store, feed, stream_of(changed([1, 2], {"extra": pa.array([None, b"\x00\xff"])})))
    table = open_table(local_store, feed)
    assert [each for (each,) in landed(table)] == [0, 1, 2]
    reason, row = beside(table)["0:2"]
    assert (list(beside(table)), reason, row["extra"], row["id"]) == (["0:2"], NEW, "00ff", 2)
    assert (report.rows_quarantined, dict(report.misfits), report.values_discarded) == (0, {NEW: 1}, 1)
    folder = f"{local_store.uri}/discarded/streams/s"
    assert report.notes == (
        f"values that do not fit the feed's schema were left out (1); the rows as they came are in {folder}: {NEW} (1)",
    )
    assert [path for path, _ in table.discarded()] == ["year=2025/month=01/day=01"]
    assert waiting(table) == []


@pytest.mark.parametrize(
    ("column", "fits"),
    [
        (pa.array(["5", "x", None]), [None, None, None]),  # text is no number, even if it looks like one
        (pa.array([5, 2**63, None], pa.uint64()), [5, None, None]),
        (pa.array([True, False, None]), [None, None, None]),
        (pa.array([1.0, 2.5, None]), [None, None, None]),
        (pa.array([datetime(2025, 1, 1, tzinfo=UTC)] * 2 + [None]), [None, None, None]),
    ],
    ids=["text", "larger integers", "booleans", "floats", "times"],
)
def test_values_fit_a_type_that_they_are_the_same_in(local_store, kept_as, column, fits):
    """The column is another than the key, so that rows without its value can be told apart."""
    first = changed([0], {"size": pa.array([7], pa.int64())})
    for name in DISCARD:
        feed = policy(kept_as, name, name=name)
        write(local_store, feed, stream_of(first))
        write(local_store, feed, stream_of(changed([1, 2, 3], {"size": column})))
        table = open_table(local_store, feed)
        bad = [
            number
            for number, value in enumerate(column.to_pylist(), 1)
            if value is not None and fits[number - 1] is None
        ]
        if name == "discard_row":
            assert [each for (each, _) in landed(table, "size")] == [each for each in range(4) if each not in bad]
            assert [position for position, _ in waiting(table)] == [f"0:{number}" for number in bad]
        else:
            assert landed(table, "size") == [(0, 7), *enumerate(fits, 1)]
            assert sorted(beside(table)) == [f"0:{number}" for number in bad]


@pytest.mark.parametrize("name", DISCARD)
def test_a_row_without_a_value_that_it_needs_waits_whatever_the_policy(local_store, kept_as, name):
    feed = policy(kept_as, name)
    batch = numbered([0])
    needed = pa.schema([batch.rows.schema.field(0).with_nullable(nullable=False), *list(batch.rows.schema)[1:]])
    write(local_store, feed, stream_of(dataclasses.replace(batch, rows=batch.rows.cast(needed))))

    write(local_store, feed, stream_of(changed([1, 2], {"id": pa.array([1, None], pa.int64())})))
    write(local_store, feed, stream_of(changed([3], {"id": pa.array(["3"])})))
    write(local_store, feed, stream_of(changed([4], {}, without=["id"])))
    times = pa.array(["2025-01-01"])
    write(local_store, feed, stream_of(changed([5], {"rowtime": times})))

    lacking = "column 'id' is never null in the feed's schema, and has no value"
    table = open_table(local_store, feed)
    assert [each for (each,) in landed(table)] == [0, 1]
    assert waiting(table) == [
        ("0:2", lacking),
        ("0:3", TYPE),
        ("0:4", lacking),
        ("0:5", f"column 'rowtime': a value of type string does not fit {table.scan().schema.field('rowtime').type}"),
    ]


@pytest.mark.parametrize("name", DISCARD)
def test_a_column_that_the_source_lost_is_null(local_store, kept_as, name):
    feed = policy(kept_as, name)
    write(local_store, feed, stream_of(numbered([0])))
    report = write(local_store, feed, stream_of(changed([1], {}, without=["note"])))
    assert landed(open_table(local_store, feed), "note") == [(0, "n0"), (1, None)]
    assert dict(report.misfits) == {}


def odd(ids: Sequence[int]) -> SourceBatch:
    """Rows of which every third has a new column's value, and every fifth a note that is no text."""
    extra = pa.array([each if each % 3 == 0 else None for each in ids], pa.int32())
    return changed(ids, {"extra": extra})


def test_rows_land_once_the_contract_has_their_column(local_store, kept_as):
    feed = policy(kept_as, "discard_row")
    write(local_store, feed, stream_of(numbered([0])))
    write(local_store, feed, stream_of(odd(range(1, 50))))
    table = open_table(local_store, feed)
    assert len(landed(table)) == 34
    source = stream_of(odd([50]))
    assert dict(table.replay(source, None).stayed) == {NEW: 16}

    evolving = open_table(local_store, policy(kept_as, "evolve"))
    report = evolving.replay(source, None)

    assert (report.rows_added, dict(report.stayed)) == (16, {})
    assert landed(evolving, "extra") == [(each, each if each % 3 == 0 and each else None) for each in range(50)]
    assert waiting(evolving) == []
    assert evolving.replay(source, None).rows_added == 0
    write(local_store, evolving.feed, stream_of(odd(range(60))))
    assert [each for (each,) in landed(evolving)] == list(range(60))


def test_rows_land_without_their_values_once_these_may_be_discarded(local_store, kept_as):
    write(local_store, policy(kept_as, "discard_row"), stream_of(numbered([0])))
    batch = changed([1, 2], {"note": pa.array([b"ab", b"\xff"], pa.binary())})
    write(local_store, policy(kept_as, "discard_row"), stream_of(batch))

    table = open_table(local_store, policy(kept_as, "discard_value"))
    report = table.replay(stream_of(batch), None)

    assert (report.rows_added, report.values_discarded, dict(report.stayed)) == (2, 2, {})
    assert landed(table, "note") == [(0, "n0"), (1, None), (2, None)]
    assert {position: row["note"] for position, (_, row) in beside(table).items()} == {"0:1": "6162", "0:2": "ff"}
    assert waiting(table) == []


def test_a_text_in_quarantine_never_becomes_what_it_looks_like(local_store, kept_as):
    """JSON has neither bytes nor times nor decimals: what a text was, its line says."""
    contract = {"at": pa.array([date(2025, 1, 1)]), "raw": pa.array([b"a"]), "share": pa.array([0.5])}
    texts = {"at": pa.array(["2025-01-02"]), "raw": pa.array(["00ff"]), "share": pa.array(["0.25"])}
    feed = policy(kept_as, "discard_row")
    write(local_store, feed, stream_of(changed([0], contract)))
    write(
        local_store, feed, stream_of(*(changed([number], {name: texts[name]}) for number, name in enumerate(texts, 1)))
    )
    table = open_table(local_store, feed)
    assert sum(table.replay(stream_of(numbered([9])), None).stayed.values()) == 3
    assert landed(table, *texts) == [(0, date(2025, 1, 1), b"a", 0.5)]


def test_rows_of_a_type_that_fits_by_value_land_from_quarantine(local_store, kept_as):
    """They were refused for another reason: too early. Their own type comes back with them."""
    late = policy(kept_as, "discard_row", start="2025-01-02")
    write(local_store, late, stream_of(numbered([30])))
    times = pa.array([START + timedelta(hours=hour) for hour in (31, 2)])
    given = {"id": pa.array([31, 32], pa.uint64()), "rowtime": times}
    write(local_store, late, stream_of(changed([31, 32], given)))
    table = open_table(local_store, policy(kept_as, "discard_row"))
    assert table.replay(stream_of(numbered([41])), None).rows_added == 1
    assert [each for (each,) in landed(table)] == [30, 31, 32]


@pytest.mark.parametrize("name", DISCARD)
def test_reading_again_lands_and_keeps_nothing_twice(local_store, kept_as, name):
    feed = policy(kept_as, name)
    write(local_store, feed, stream_of(numbered([0])))
    for _ in range(2):
        write(local_store, feed, stream_of(odd(range(1, 30))))
    table = open_table(local_store, feed)
    ids = [each for (each,) in landed(table)]
    assert ids == ([each for each in range(30) if each == 0 or each % 3] if name == "discard_row" else list(range(30)))
    kept = list(table.quarantined() if name == "discard_row" else table.discarded())
    assert len({row.identity for _, row in kept}) == len(kept) == 9


def test_a_pulled_partition_whose_rows_no_longer_fit_is_not_emptied(local_store, kept_as):
    feed = stream_feed("pull", format=kept_as, schema_policy="discard_row")
    request = ReadRequest()
    write(local_store, feed, InMemoryBatches((SourceBatch(rows(range(5))),), "rowtime", request), ["2025-01-01"])
    other = SourceBatch(changed(range(5), {"note": pa.array(list(range(5)))}).rows)
    with pytest.raises(SourceShrank, match=r"5 rows of it do not fit the feed's schema"):
        write(local_store, feed, InMemoryBatches((other,), "rowtime", request), ["2025-01-01"])
    assert [each for (each,) in landed(open_table(local_store, feed))] == list(range(5))


def test_a_tables_rows_are_kept_out_or_cut_by_version(local_store, kept_as):
    for name, ids, cut in (("discard_row", [1], []), ("discard_value", [0, 1], ["version=v2"])):
        feed = table_feed(format=kept_as, schema_policy=name, name=name)
        write(local_store, feed, InMemoryBatches((SourceBatch(rows(range(2))),)), allow_shrink=True)
        wider = changed([0, 1], {"extra": pa.array(["x", None])}).rows
        write(local_store, feed, InMemoryBatches((SourceBatch(wider),)), allow_shrink=True)
        table = open_table(local_store, feed)
        assert [each for (each,) in landed(table)] == ids
        assert [path for path, _ in table.discarded()] == cut


@pytest.mark.parametrize("name", ["freeze", "evolve"])
def test_other_policies_discard_nothing(local_store, kept_as, name):
    feed = policy(kept_as, name)
    write(local_store, feed, stream_of(numbered([0])))
    with pytest.raises(SchemaChanged):
        write(local_store, feed, stream_of(changed([1], {"id": pa.array(["1"])})))
    assert waiting(open_table(local_store, feed)) == []


def test_a_removed_feeds_discarded_rows_go_with_it(local_store, kept_as):
    feed = policy(kept_as, "discard_value")
    write(local_store, feed, stream_of(numbered([0])))
    write(local_store, feed, stream_of(odd([3])))
    table = open_table(local_store, feed)
    assert len(beside(table)) == 1
    table.purge()
    assert (beside(table), list(local_store.list("discarded"))) == ({}, [])


@pytest.mark.parametrize("name", DISCARD)
def test_what_iceberg_has_no_type_for_is_a_misfit_like_any_other(local_store, name):
    feed = policy("iceberg", name)
    write(local_store, feed, stream_of(changed([0], {"at": pa.array([START])})))
    exact, finer = 1_735_689_600_000_000_000, 1_735_689_600_000_000_001
    at = pa.array([exact, finer], pa.int64()).cast(pa.timestamp("ns", "UTC"))
    spans = pa.array([None, 5], pa.int64()).cast(pa.duration("s"))
    write(local_store, feed, stream_of(changed([1, 2], {"at": at, "span": spans})))
    far = pa.array([2**62], pa.int64()).cast(pa.timestamp("ms", "UTC"))
    write(local_store, feed, stream_of(changed([3], {"at": far})))
    table = open_table(local_store, feed)
    found = landed(table, "at")
    assert found[:2] == [(0, START), (1, START)]
    assert found[2:] == ([] if name == "discard_row" else [(2, None), (3, None)])
    kept = dict(waiting(table)) if name == "discard_row" else {at: why for at, (why, _) in beside(table).items()}
    assert sorted(kept) == ["0:2", "0:3"]
    assert "column 'span' is not in the feed's schema" in kept["0:2"]


@pytest.mark.parametrize("seed", range(6))
def test_no_row_and_no_value_is_lost_or_doubled_whatever_dies_while_the_contract_changes(
    local_store: Store, kept_as: str, seed: int
):
    """Every third row has a value that the first contract lacks; it is in the lake, in quarantine or kept beside."""
    rng = random.Random(seed)
    mortal, sent = MortalStore(local_store), 1
    contract = "discard_row"
    write(local_store, policy(kept_as, contract), stream_of(numbered([0])))

    def source() -> Batches:
        start = open_table(local_store, policy(kept_as, contract)).plan().request.start_offsets or {}
        return stream_of(odd(range(start.get(0, 0), sent)))

    def lived() -> None:
        mortal.left = -1
        for name in policies:
            open_table(local_store, policy(kept_as, name)).repair()
        table = open_table(local_store, policy(kept_as, "evolve"))
        found = table.scan().read_all().to_pylist()
        there = {row["id"]: row.get("extra") for row in found}
        assert len(there) == len(found)
        kept = {int(position[2:]): row["extra"] for position, (_, row) in beside(table).items()}
        assert all(each % 3 or extra == each or kept[each] == each for each, extra in there.items() if each)

    policies = ("discard_row", "discard_value", "evolve")
    for _ in range(14):
        mortal.left, mortal.after = rng.choice([-1, rng.randrange(1, 30)]), rng.random() < 0.5
        contract = rng.choice(["discard_row", "discard_row", contract, "discard_value"])
        with contextlib.suppress(Killed):
            if rng.random() < 0.3:
                open_table(mortal, policy(kept_as, contract)).replay(source(), None)  # type: ignore[arg-type]
            else:
                sent += rng.randrange(12)
                write(mortal, policy(kept_as, contract), source())  # type: ignore[arg-type]
        lived()

    contract = "evolve"
    write(local_store, policy(kept_as, contract), source())
    table = open_table(local_store, policy(kept_as, contract))
    table.replay(stream_of(odd([0])), None)
    lived()
    assert [each for (each,) in landed(table)] == list(range(sent))


@pytest.mark.parametrize("frozen_by", ["freeze", "discard_row"])
@pytest.mark.parametrize("hour", [33, 1])
def test_queries_read_files_of_before_a_feed_stopped_evolving(local_store, frozen_by, hour):
    """Older files lack the column, and come first in the list or, if a newer one is of an earlier day, later."""
    registry = FeedRegistry(local_store)
    feed = registry.add(policy("parquet", "evolve"))
    write(local_store, feed, stream_of(numbered([30])))
    times = pa.array([START + timedelta(hours=each) for each in (31, hour)], rows([]).schema.field("rowtime").type)
    write(local_store, feed, stream_of(changed([31, 33], {"extra": pa.array([7, 7]), "rowtime": times})))
    frozen = registry.update(feed.model_copy(update={"schema_policy": frozen_by}), expected_revision=feed.revision)
    with open_answer(local_store, [frozen], "select id, extra from s order by id") as answer:
        found = [row for batch in answer.batches for row in batch]
    assert found == [(30, None), (31, 7), (33, 7)]
    table = open_table(local_store, frozen)
    drifts = [each for key in table.partitions() for each in table.snapshot([key]).footers(key).drifts]
    assert drifts == [], "the schema check calls no file of before drifted"


class Slow(InMemoryBatches):
    """A read during which somebody else does something, once."""

    __slots__ = ("meanwhile",)
    meanwhile: list[Callable[[], object]]

    def __iter__(self) -> Iterator[SourceBatch]:
        yield from super().__iter__()
        while self.meanwhile:
            self.meanwhile.pop()()


def slow(batch: SourceBatch, then: Callable[[], object]) -> Slow:
    found = Slow((batch,), "rowtime")
    object.__setattr__(found, "meanwhile", [then])
    return found


def of_another_partition(batch: SourceBatch) -> SourceBatch:
    return dataclasses.replace(batch, source_partitions=pa.array([1] * batch.rows.num_rows, pa.int32()))


def test_a_slow_export_takes_no_column_back_that_another_one_brought(local_store, kept_as):
    feed = policy(kept_as, "evolve")
    write(local_store, feed, stream_of(numbered([0])))
    wider = changed([1], {"extra": pa.array(["x"])})
    own = changed([2], {"own": pa.array([2.5])})
    write(local_store, feed, slow(of_another_partition(own), lambda: write(local_store, feed, stream_of(wider))))
    found = landed(open_table(local_store, feed), "extra", "own")
    assert found == [(0, None, None), (1, "x", None), (2, None, 2.5)]


@pytest.mark.parametrize("name", ["freeze", "evolve", *DISCARD])
def test_of_two_first_exports_with_columns_of_other_types_one_is_refused(local_store, kept_as, name):
    feed = policy(kept_as, name)
    first = changed([1], {"extra": pa.array([7])})
    second = of_another_partition(changed([2], {"extra": pa.array(["z"])}))
    refused = []

    def tried(batches: Batches) -> None:
        try:
            write(local_store, feed, batches)
        except SchemaChanged as error:
            refused.append(str(error))

    tried(slow(second, lambda: tried(stream_of(first))))
    table = open_table(local_store, feed)
    assert (len(refused), "extra" in refused[0]) == (1, True)
    assert landed(table, "extra") == ([(1, 7)] if kept_as == "parquet" else [(2, "z")])  # who made the table decides
    assert list(table.verify(deep=True)) == []


def test_a_table_whose_column_is_of_another_type_takes_no_such_file(local_store, monkeypatch):
    """An export that died had added the column; the source has another type since."""
    feed = policy("iceberg", "evolve")
    write(local_store, feed, stream_of(numbered([0])))

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        patched.setattr(Export, "fix_schema", die)
        write(local_store, feed, stream_of(changed([1], {"extra": pa.array([7])})))
    with pytest.raises(SchemaChanged, match="its column 'extra' is long, and string does not fit it"):
        write(local_store, feed, stream_of(changed([1], {"extra": pa.array(["z"])})))
    write(local_store, feed, stream_of(changed([1], {"extra": pa.array([8])})))
    assert landed(open_table(local_store, feed), "extra") == [(0, None), (1, 8)]
