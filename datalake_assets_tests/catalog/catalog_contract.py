"""What every catalog has to do, whichever it is: brought in step with a lake by `sync_catalogs`, and then looked at."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod

import pyarrow as pa
import pytest

from datalake_assets.catalog.base import Catalog
from datalake_assets.catalog.sync import sync_catalogs
from datalake_assets.catalog.views import View, ViewRegistry
from datalake_assets.core.batches import SourceBatch
from datalake_assets.errors import TransientStoreError
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import Settings
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of


def land(store: Store, feed, *ids: int) -> None:
    """Lands rows of a stream, one an hour, or a version of a table."""
    table = open_table(store, feed)
    plan = table.plan()
    batches = table_of(ids[0]) if feed.kind == "table" else stream_of(numbered(ids))
    table.write(batches, partitions=plan.partitions, run_id="run")


class CatalogContract(ABC):
    """Each implementation gives its catalog, and what an engine that reads it sees."""

    @abstractmethod
    def opened(self, store: Store) -> Catalog:
        """The catalog."""

    @abstractmethod
    def columns(self, store: Store, name: str) -> list[str]:
        """A table's columns, those of paths last."""

    @abstractmethod
    def counts(self, store: Store, name: str) -> list[int]:
        """Rows of a table by day, or of all of it; where no engine reads it, partitions or the version."""

    @abstractmethod
    def foreign(self, store: Store, name: str) -> None:
        """Makes a table that is somebody else's."""

    def synced(self, store: Store, **options) -> dict[str, str]:
        """Brings it in step; what became of each feed and view."""
        feeds = FeedRegistry(store).list().feeds
        told = sync_catalogs(Settings(lake=store.uri), store, feeds, catalogs=[self.opened(store)], **options)
        return {each.name: each.state for each in told}

    @pytest.fixture
    def feed(self, store: Store):
        return FeedRegistry(store).add(stream_feed(schema_policy="evolve", description="it's \\ a feed"))

    def test_all_is_created_once_and_then_there_is_nothing_to_do(self, store, feed):
        table = FeedRegistry(store).add(table_feed())
        FeedRegistry(store).add(stream_feed(name="empty"))
        land(store, feed, 1, 2, 30)
        land(store, table, 3)

        assert self.synced(store) == {"s": "created", "t": "created", "empty": "left_out"}
        assert self.synced(store) == {"s": "current", "t": "current", "empty": "left_out"}
        assert self.columns(store, "s") == ["id", "note", "rowtime", "year", "month", "day"]
        assert self.counts(store, "s") == self.expected([2, 1])
        assert self.counts(store, "t") == self.expected([3])

    def expected(self, counts: list[int]) -> list[int]:
        """What `counts` is to give."""
        return counts

    def test_new_partition_is_added_and_what_is_there_stays(self, store, feed):
        land(store, feed, 1, 2)
        self.synced(store)
        land(store, feed, 30, 31, 60)

        told = sync_catalogs(Settings(lake=store.uri), store, [feed], catalogs=[self.opened(store)])

        assert self.counts(store, "s") == self.expected([2, 2, 1])
        assert [each.partitions_removed for each in told if each.name == "s"] == [0]
        assert self.synced(store)["s"] == "current"

    def test_new_column_is_added(self, store, feed):
        land(store, feed, 1, 2)
        self.synced(store)
        more = numbered([3, 30])
        rows = more.rows.append_column(pa.field("extra", pa.int32()), pa.array([7, 8], pa.int32()))
        table = open_table(store, feed)
        table.write(
            stream_of(SourceBatch(rows, more.source_partitions, more.source_offsets)),
            partitions=table.plan().partitions,
            run_id="run",
        )

        assert self.synced(store) == {"s": "updated"}
        assert "extra" in self.columns(store, "s")
        assert self.counts(store, "s") == self.expected([3, 1])
        assert self.synced(store) == {"s": "current"}

    def test_new_version_of_a_table_takes_the_place_of_the_former_one(self, store):
        table = FeedRegistry(store).add(table_feed())
        land(store, table, 3)
        self.synced(store)
        land(store, table, 5)

        assert self.synced(store) == {"t": "updated"}
        assert self.counts(store, "t") == self.expected([5])

    def test_table_of_others_is_left_alone_and_named(self, store, feed):
        land(store, feed, 1)
        self.foreign(store, "s")

        told = sync_catalogs(Settings(lake=store.uri), store, [feed], catalogs=[self.opened(store)])

        assert [(each.state, "not this lake's" in each.detail) for each in told] == [("failed", True)]
        assert self.columns(store, "s") == ["somebodys"]

    def test_archived_feed_is_named_and_dropped_when_that_is_asked_for(self, store, feed):
        table = FeedRegistry(store).add(table_feed())
        land(store, feed, 1)
        land(store, table, 3)
        self.synced(store)
        FeedRegistry(store).archive("t")

        assert self.synced(store) == {"s": "current", "t": "stale"}
        assert self.counts(store, "t") == self.expected([3])
        assert self.synced(store, prune=True) == {"s": "current", "t": "dropped"}
        assert self.synced(store) == {"s": "current"}
        with self.opened(store) as catalog:
            assert set(catalog.known()) == {"s"}

    def test_feed_of_a_name_with_other_partitions_takes_the_place_of_the_former_one(self, store, feed):
        land(store, feed, 1, 30)
        self.synced(store)
        registry = FeedRegistry(store)
        registry.archive("s")
        registry.remove("s")
        other = registry.add(stream_feed(partition_by="month"))
        land(store, other, 1, 2, 3)

        assert self.synced(store) in ({"s": "updated"}, {"s": "created"})
        assert self.columns(store, "s") == ["id", "note", "rowtime", "year", "month"]
        assert self.counts(store, "s") == self.expected([3])

    def test_folders_that_are_named_by_a_prefix_give_columns_of_these_names(self, store):
        trips = FeedRegistry(store).add(stream_feed(name="trips", partition_by="month", partition_prefix="pickup_"))
        land(store, trips, 1, 2, 24 * 40)

        assert self.synced(store) == {"trips": "created"}
        assert self.columns(store, "trips")[-2:] == ["pickup_year", "pickup_month"]
        assert self.counts(store, "trips") == self.expected([2, 1])

    def test_step_that_fails_for_a_moment_is_repeated_and_ends_as_without(self, store, feed, monkeypatch):
        land(store, feed, 1, 30)
        catalog = self.opened(store)
        for name in ("create_database", "known", "create", "needs"):
            monkeypatch.setattr(catalog, name, _failing_once(getattr(catalog, name)), raising=True)

        sync_catalogs(Settings(lake=store.uri), store, [feed], catalogs=[catalog])

        assert self.synced(store) == {"s": "current"}
        assert self.counts(store, "s") == self.expected([1, 1])


def _failing_once(step):
    """The step, whose answer is lost the first time: it was done all the same."""
    calls = []

    def call(*arguments):
        answer = step(*arguments)
        calls.append(answer)
        if len(calls) == 1:
            raise TransientStoreError("catalog", "the answer was lost")
        return answer

    return call


def add_view(store: Store, query: str = "SELECT note, count(*) AS n FROM s WHERE day = '02' GROUP BY note") -> View:
    """A view over stream ``s``."""
    return ViewRegistry(store).put(View(name="second_day", query=query), FeedRegistry(store).list().feeds)


def documents(store: Store) -> list[dict[str, object]]:
    """The documents of the views."""
    return [json.loads(store.get(each.key)[0]) for each in store.list("views")]
