"""Items without order, such as queue messages, are landed once, however often and by however many they are read."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from datalake_assets.core.batches import InMemoryBatches, RejectedRow, SourceBatch
from datalake_assets.errors import ConfigError, CorruptLake, DatalakeError
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake import item_exports
from datalake_assets.lake.iceberg.iceberg_views import LONGEST_SAID, POSITION
from datalake_assets.lake.inspection import STALE
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.systems import registered
from datalake_assets.testing.tables import FORCE
from datalake_assets_tests.lake.feeds import POST, rows
from datalake_assets_tests.lake.hive_tables import between_commits
from datalake_assets_tests.lake.iceberg.iceberg_feeds import seen_by_others

FAR = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["local parquet", pytest.param("s3 parquet", marks=pytest.mark.s3), "local iceberg"])
def place(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def store(place: str, request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(f"{place.partition(' ')[0]}_store")


@pytest.fixture
def feed(place: str) -> Iterator[Feed]:
    with registered(POST):
        document = {"name": "s", "kind": "stream", "source": {"type": "post"}, "start": "2025-01-01"}
        yield parse_feed(json.dumps(document | {"format": place.partition(" ")[2]}))


@pytest.fixture
def few_in_manifests(monkeypatch):
    monkeypatch.setattr(item_exports, "MAX_RECENT", 4)


def parcels(numbers: Sequence[int], *, forget_after: datetime = FAR, rejected=(), items=None) -> InMemoryBatches:
    """Row ``i`` is item ``i``, 24 of them a day."""
    named = pa.array([f"item {n}" for n in (items or numbers)], pa.string())
    batch = SourceBatch(rows(numbers), rejected=tuple(rejected), source_items=named, forget_after=forget_after)
    return InMemoryBatches((batch,), "rowtime")


def land(store: Store, feed: Feed, batches: InMemoryBatches):
    table = open_table(store, feed)
    return table.write(batches, partitions=table.plan().partitions, run_id="run")


def landed(store: Store, feed: Feed) -> list[int]:
    return sorted(open_table(store, feed).scan().read_all()["id"].to_pylist())


def lists(store: Store) -> list[str]:
    return sorted(info.key for info in store.list("control") if info.key.endswith(".bin"))


def test_items_that_come_again_are_known(store, feed):
    first = land(store, feed, parcels(range(30)))
    again = land(store, feed, parcels(range(20, 40)))
    assert (first.rows_added, first.rows_known) == (30, 0)
    assert (again.rows_added, again.rows_known) == (10, 10)
    assert landed(store, feed) == list(range(40))
    assert {each.position["items"] for each in again.partitions if each.rows_added} == {
        16 if feed.format.type == "parquet" else 40
    }


def test_rows_of_one_item_land_together_on_whatever_days(store, feed):
    file = ["a.csv"] * 30
    land(store, feed, parcels(range(30), items=file))
    assert land(store, feed, parcels(range(30), items=file)).rows_added == 0
    assert land(store, feed, parcels(range(30), items=["b.csv"] * 30)).rows_added == 30
    assert landed(store, feed) == sorted([*range(30)] * 2)


@pytest.mark.usefixtures("few_in_manifests")
def test_many_items_are_remembered_beside_the_manifest_in_few_objects(store, feed):
    for first in range(0, 60, 3):
        land(store, feed, parcels(range(first, first + 3)))
        assert land(store, feed, parcels(range(first + 3))).rows_added == 0
    assert landed(store, feed) == list(range(60))
    assert len(lists(store)) <= 9  # 20 were written
    assert list(open_table(store, feed).verify()) == []


@pytest.mark.parametrize("place", ["local iceberg"], indirect=True)
def test_a_long_position_is_not_repeated_by_each_snapshot_and_a_roll_back_is_seen(store, feed):
    for first in range(0, 600, 200):
        land(store, feed, parcels([0] * 200, items=range(first, first + 200)))
    with seen_by_others(store) as table:
        assert len(table.properties[POSITION]) > 10_000
        assert all(len(each.summary.additional_properties[POSITION]) <= LONGEST_SAID for each in table.snapshots())
        past = table.snapshots()[-2].snapshot_id
        table.manage_snapshots().set_current_snapshot(past).commit()
    with pytest.raises(ConfigError, match="was rolled back by another engine"):
        land(store, feed, parcels([1], items=[999]))


@pytest.mark.usefixtures("few_in_manifests")
def test_compaction_forgets_no_item(store, feed):
    land(store, feed, parcels(range(6)))
    land(store, feed, parcels(range(6, 12)))
    table = open_table(store, feed)
    (key,) = table.partitions()
    assert table.compact(key, FORCE).files_after == 1
    assert land(store, feed, parcels(range(12))).rows_added == 0


@pytest.mark.parametrize("place", ["local parquet"], indirect=True)
def test_an_export_that_begins_again_tells_what_it_had_committed(store, feed):
    with between_commits(lambda: land(store, feed, parcels(range(24, 30)))):
        report = land(store, feed, parcels(range(40)))
    assert [each.rows_added for each in report.partitions if each.rows] == [24, 10]
    assert (report.rows_read, report.rows_known, report.totals.rows) == (40, 6, 40)
    assert landed(store, feed) == list(range(40))


def test_of_two_writers_of_one_item_one_lands_it(store, feed):
    others = [parcels(range(5))]

    class Overtaken(InMemoryBatches):
        """Another worker lands some of the items while these are read."""

        def __iter__(self):
            yield from self.batches
            if others:
                land(store, feed, others.pop())

    report = land(store, feed, Overtaken(parcels(range(3, 9)).batches, "rowtime"))
    assert (report.rows_added, report.rows_known) == (4, 2)
    assert landed(store, feed) == list(range(9))
    assert list(store.list_staged("")) == []


@pytest.mark.usefixtures("few_in_manifests")
def test_a_list_that_another_writer_merges_just_then_is_looked_for_again(store, feed, monkeypatch):
    land(store, feed, parcels(range(6)))
    real, overtaken = type(store).get, []

    def get(self: Store, key: str):
        if key.endswith(".bin") and not overtaken:
            overtaken.append(key)
            land(store, feed, parcels(range(6, 20)))
        return real(self, key)

    monkeypatch.setattr(type(store), "get", get)
    assert land(store, feed, parcels(range(5, 22))).rows_added == 2
    assert landed(store, feed) == list(range(22))
    assert overtaken[0] not in lists(store)


@pytest.mark.usefixtures("few_in_manifests")
@pytest.mark.parametrize("harm", ["deleted", "damaged"])
def test_without_its_list_of_items_a_partition_takes_nothing_more(store, feed, harm):
    land(store, feed, parcels(range(6)))
    (name,) = lists(store)
    if harm == "deleted":
        store.delete([name])
        assert [(each.what, each.name) for each in open_table(store, feed).verify()] == [("missing", name)]
    else:
        store.put(name, b"x" * 96)
    with pytest.raises(CorruptLake, match="the list of landed items is"):
        land(store, feed, parcels(range(8)))
    assert landed(store, feed) == list(range(6))


def test_an_item_that_was_held_too_long_goes_to_quarantine_not_into_the_lake(store, feed):
    past = store.now() - timedelta(hours=2)
    report = land(store, feed, parcels(range(3), forget_after=past))
    assert (report.rows_added, report.rows_quarantined) == (0, 3)
    (reason,) = {row.reason for _, row in open_table(store, feed).quarantined()}
    assert reason.endswith("UTC: nobody knows whether it was landed")


def test_items_are_forgotten_when_they_cannot_come_again(store, feed, monkeypatch):
    land(store, feed, parcels(range(3), forget_after=store.now() + timedelta(hours=1)))
    real = type(store).now
    monkeypatch.setattr(type(store), "now", lambda self: real(self) + timedelta(hours=3))
    (report,) = [each for each in land(store, feed, parcels([3])).partitions if each.rows_added]
    assert report.position == {"kind": "ids", "items": 1}


def test_rows_that_cannot_be_placed_wait_once_however_often_they_come(store, feed):
    bad = RejectedRow(b"{", "not JSON", "item 9")
    early = parcels([0])
    before = early.batches[0].rows.set_column(
        2, "rowtime", pa.array([datetime(1999, 1, 1, tzinfo=UTC)], pa.timestamp("ms", "UTC"))
    )
    for _ in range(2):
        batch = SourceBatch(before, rejected=(bad,), source_items=pa.array(["item 0"]), forget_after=FAR)
        assert land(store, feed, InMemoryBatches((batch,), "rowtime")).rows_quarantined == 2
    assert len({row.identity for _, row in open_table(store, feed).quarantined()}) == 2


@pytest.mark.usefixtures("few_in_manifests")
def test_lists_that_no_manifest_names_are_swept_by_age_and_others_are_not(store, feed, monkeypatch):
    land(store, feed, parcels(range(6)))
    kept = lists(store)
    orphan = f"{kept[0].rpartition('/')[0]}/ids-0.bin"
    store.put(orphan, b"")
    open_table(store, feed).repair()
    assert lists(store) == sorted([*kept, orphan])
    real = type(store).now
    monkeypatch.setattr(type(store), "now", lambda self: real(self) + STALE + timedelta(hours=1))
    assert open_table(store, feed).repair().swept == 1
    assert lists(store) == kept


@pytest.mark.usefixtures("few_in_manifests")
@pytest.mark.parametrize("place", ["local iceberg"])
def test_the_list_of_a_table_that_another_engine_emptied_is_missed_and_not_swept(store, feed, monkeypatch):
    land(store, feed, parcels([*range(6), 30]))
    (name,), body = lists(store), store.get(lists(store)[0])[0]
    for emptied in (False, True):
        if emptied:
            with seen_by_others(store) as table:
                table.delete()
            open_table(store, feed).expire(all_past=True)
        assert len(open_table(store, feed).partitions()) == (0 if emptied else 2)
        store.delete([name])
        found = [(each.key, each.what, each.name) for each in open_table(store, feed).verify()]
        assert found == [("", "missing", name)], "once, whatever partitions there are"
        store.put(name, body)
    real, kept = type(store).now, lists(store)
    monkeypatch.setattr(type(store), "now", lambda self: real(self) + 30 * STALE)
    assert open_table(store, feed).repair().swept == 0
    assert lists(store) == kept
    assert list(open_table(store, feed).verify()) == []
    assert land(store, feed, parcels(range(8))).rows_added == 2


class Died(BaseException):
    """What a process does between two calls."""


@pytest.mark.every_case_on_s3
@pytest.mark.usefixtures("few_in_manifests")
@pytest.mark.parametrize("seed", [1, 5])
def test_each_item_lands_once_however_workers_die(store, feed, monkeypatch, seed):
    """Deliveries of a queue that gives each item several times, to workers that die at any change of the store."""
    chance = random.Random(seed)
    left = [0]

    def mortal(name):
        real = getattr(type(store), name)

        def call(self, *arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                if chance.random() < 0.5:
                    real(self, *arguments, **options)
                raise Died
            return real(self, *arguments, **options)

        monkeypatch.setattr(type(store), name, call)

    for name in ("put", "publish", "delete"):
        mortal(name)
    for _ in range(15):
        left[0] = chance.choice([0, *range(1, 12)])
        some = chance.sample(range(48), chance.randint(1, 12))
        try:
            land(store, feed, parcels(some))
        except (Died, DatalakeError):
            open_table(store, feed)
    left[0] = 0
    open_table(store, feed).repair()
    land(store, feed, parcels(range(48)))
    assert Counter(landed(store, feed)) == Counter(range(48))
    assert list(open_table(store, feed).verify()) == []
