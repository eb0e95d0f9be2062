"""What every source keeps to, as tests to inherit: of its declaration, of what it lists, and of each way to read it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from datalake_assets.core.batches import Batches, ReadRequest
from datalake_assets.core.partitions import TimeWindow
from datalake_assets.core.position import SourcePartition
from datalake_assets.errors import SourceError
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.feed_sources import FeedKind, PositionKind
from datalake_assets.sources.base import SourceSystem, System
from datalake_assets.sources.systems import system as system_named

__all__ = ["SourceContract"]


class SourceContract:
    """Inherit it once for each way in which a source can be read, and override the fixtures.

    The system must be registered, and hold still while a test runs: what is read twice is compared.
    """

    @pytest.fixture
    def source(self) -> Iterator[SourceSystem]:
        """The system, connected to; has at least two rows of ``feed``."""
        raise NotImplementedError

    @pytest.fixture
    def feed(self) -> Feed:
        """A feed that can be read from it."""
        raise NotImplementedError

    @pytest.fixture
    def missing(self) -> Feed | None:
        """A feed of something that the system does not have; None where there is no such thing."""
        return None

    @pytest.fixture
    def system(self, feed: Feed) -> System:
        """The system's declaration, as it is registered."""
        return system_named(feed.source.type)

    # what it declares

    def test_the_model_is_that_of_its_type(self, system: System, feed: Feed) -> None:
        assert system.type == feed.source.type
        assert isinstance(feed.source, system.model)
        assert feed.kind in system.model.serves
        assert feed.source.where

    def test_a_feed_survives_its_document(self, feed: Feed) -> None:
        assert parse_feed(feed.model_dump_json()) == feed

    def test_options_fill_fields_of_the_model(self, system: System) -> None:
        assert {option.field for option in system.options} <= set(system.model.model_fields)
        assert not system.discovery or system.object_field in system.model.model_fields

    def test_settings_carry_the_type_in_their_names(self, system: System) -> None:
        base = set().union(
            *(part.model_fields for part in system.settings.__mro__[1:] if hasattr(part, "model_fields"))
        )
        assert all(name.startswith(f"{system.type}_") for name in set(system.settings.model_fields) - base)

    # what it lists and tells

    def test_what_is_listed_can_become_a_feed_or_says_why_not(self, source: SourceSystem, system: System) -> None:
        listed = list(source.discover())
        assert bool(listed) == bool(system.discovery)
        for each in listed:
            document = {"type": system.type, system.object_field: each.name}
            assert each.note or Feed(name="s", kind=FeedKind(each.kind), source=document)

    def test_a_feed_that_can_be_read_passes_the_check(self, source: SourceSystem, feed: Feed) -> None:
        source.check(feed)

    def test_a_feed_of_nothing_fails_the_check(self, source: SourceSystem, missing: Feed | None) -> None:
        if missing is None:
            pytest.skip("there is nothing that it could lack")
        with pytest.raises(SourceError):
            source.check(missing)

    def test_rows_are_counted_if_it_says_so(self, source: SourceSystem, feed: Feed) -> None:
        expected = len(_rows(source.read(feed, ReadRequest()))) if feed.exported_from.counts_rows else None
        assert source.count(feed) == expected

    def test_closing_twice_is_closing_once(self, source: SourceSystem) -> None:
        source.close()
        source.close()

    # what it reads

    def test_the_schema_is_that_of_the_rows(self, source: SourceSystem, feed: Feed) -> None:
        batches = source.read(feed, ReadRequest())
        read = list(batches)
        assert all(batch.rows.schema.equals(batches.schema) for batch in read)
        assert sum(batch.rows.num_rows for batch in read) >= 2

    def test_the_time_column_partitions_streams_alone(self, source: SourceSystem, feed: Feed) -> None:
        batches = source.read(feed, ReadRequest())
        assert batches.time_column == (None if feed.kind is FeedKind.TABLE else feed.row_time)
        if batches.time_column is not None:
            assert pa.types.is_timestamp(batches.schema.field(batches.time_column).type)

    def test_reading_again_gives_the_same_rows(self, source: SourceSystem, feed: Feed) -> None:
        batches = source.read(feed, ReadRequest())
        first = _rows(batches)
        assert _rows(batches) == first
        assert _rows(source.read(feed, ReadRequest())) == first

    def test_reads_are_acknowledged_and_nothing_was_recreated(self, source: SourceSystem, feed: Feed) -> None:
        batches = source.read(feed, ReadRequest())
        _rows(batches)
        batches.acknowledge()
        assert not batches.recreated

    def test_only_offsets_number_the_rows(self, source: SourceSystem, feed: Feed) -> None:
        numbered = feed.position_kind is PositionKind.OFFSETS
        for batch in source.read(feed, ReadRequest()):
            found = (batch.source_partitions, batch.source_offsets)
            assert [each is not None for each in found] == [numbered, numbered]
            numbers = [each for each in found if each is not None]
            types = [each.type for each in numbers]
            assert types in ([], [pa.int32(), pa.int64()], [pa.string(), pa.string()])
            assert all((len(each), each.null_count) == (batch.rows.num_rows, 0) for each in numbers)
            if types == [pa.string(), pa.string()]:
                assert not any(each.isdecimal() for each in numbers[0].to_pylist())
                assert all(each.isdecimal() for each in numbers[1].to_pylist())

    def test_only_items_are_named(self, source: SourceSystem, feed: Feed) -> None:
        named = feed.position_kind is PositionKind.IDS
        for batch in source.read(feed, ReadRequest()):
            assert ((batch.source_items is not None), (batch.forget_after is not None)) == (named, named)
            if batch.source_items is not None:
                assert (batch.source_items.type, batch.source_items.null_count) == (pa.string(), 0)
                assert len(batch.source_items) == batch.rows.num_rows

    def test_a_window_leaves_out_the_rows_around_it(self, source: SourceSystem, feed: Feed) -> None:
        if feed.kind is FeedKind.TABLE:
            pytest.skip("tables have no windows")
        if feed.position_kind is not PositionKind.WINDOW:
            pytest.skip("an export of offsets lands all rows, whatever their day")
        times = _times(source, feed, ReadRequest())
        window = TimeWindow(times[0], times[-1])
        assert _times(source, feed, ReadRequest(window=window)) == [
            time for time in times if times[0] <= time < times[-1]
        ]
        after = TimeWindow(times[-1] + timedelta(microseconds=1), times[-1] + timedelta(days=1))
        assert _rows(source.read(feed, ReadRequest(window=after))) == []

    def test_offsets_ascend_and_are_read_on_from_anywhere(self, source: SourceSystem, feed: Feed) -> None:
        if feed.position_kind is not PositionKind.OFFSETS:
            pytest.skip("its rows are not numbered")
        whole = _offsets(source.read(feed, ReadRequest()))
        assert all(offsets == sorted(set(offsets)) for offsets in whole.values())
        starts = {partition: offsets[len(offsets) // 2] for partition, offsets in whole.items()}
        rest = _offsets(source.read(feed, ReadRequest(start_offsets=starts)))
        assert rest == {p: [offset for offset in offsets if offset >= starts[p]] for p, offsets in whole.items()}

    def test_who_has_everything_reads_nothing_more(self, source: SourceSystem, feed: Feed) -> None:
        if feed.position_kind is not PositionKind.OFFSETS:
            pytest.skip("its rows are not numbered")
        ends = {partition: offsets[-1] + 1 for partition, offsets in _offsets(source.read(feed, ReadRequest())).items()}
        assert _offsets(source.read(feed, ReadRequest(start_offsets=ends))) == {}


def _rows(batches: Batches) -> list[dict[str, Any]]:
    """All rows, in an order that does not depend on how they came."""
    rows = [row for batch in batches for row in batch.rows.to_pylist()]
    return sorted(rows, key=repr)


def _times(source: SourceSystem, feed: Feed, request: ReadRequest) -> list[datetime]:
    """When the rows were, in order."""
    batches = source.read(feed, request)
    column = batches.time_column
    assert column is not None
    return sorted(row[column] for row in _rows(batches))


def _offsets(batches: Batches) -> dict[SourcePartition, list[int]]:
    """The offsets by source partition, in the order in which they came."""
    found: dict[SourcePartition, list[int]] = {}
    for batch in batches:
        partitions, offsets = batch.numbers
        for partition, offset in zip(partitions.tolist(), offsets.tolist(), strict=True):
            found.setdefault(partition, []).append(offset)
    return found
