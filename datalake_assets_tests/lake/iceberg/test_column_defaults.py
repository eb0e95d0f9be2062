"""Columns that another engine added with a default: no value of theirs changes, whoever writes, merges or reads."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table
from pyiceberg.types import LongType, StringType

from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.lake.store import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.tables import FORCE
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of
from datalake_assets_tests.lake.iceberg.iceberg_feeds import ids_seen, seen_by_others
from datalake_assets_tests.lake.iceberg.iceberg_tables import compact, data_paths


@pytest.fixture
def feed() -> Feed:
    return stream_feed(format="iceberg", schema_policy="evolve")


def write(store: Store, feed: Feed, first: int, end: int) -> None:
    table = open_table(store, feed)
    table.write(stream_of(numbered(range(first, end))), partitions=table.plan().partitions, run_id="run")


def extras(store: Store) -> Counter[tuple[int, str | None]]:
    with seen_by_others(store) as table:
        found = table.scan().to_arrow()
    return Counter(zip(found["id"].to_pylist(), found["extra"].to_pylist(), strict=True))


def add_extra(store: Store, *, default: str | None, then: str | None) -> None:
    with seen_by_others(store) as table:
        with table.update_schema() as change:
            change.add_column("extra", StringType(), default_value=default)
        if then != default:
            with table.update_schema() as change:
                change.set_default_value("extra", then)


@pytest.mark.parametrize(("default", "then"), [("old", "new"), (None, "new"), ("old", None)])
def test_export_is_refused_where_new_rows_are_to_have_another_default_than_readers_give_them(
    local_store, feed, default, then
):
    write(local_store, feed, 0, 3)
    add_extra(local_store, default=default, then=then)
    with pytest.raises(ConfigError, match=f"column 'extra', which the feed does not have, .* {then!r}: make it"):
        write(local_store, feed, 3, 5)
    assert ids_seen(local_store) == [0, 1, 2]
    with seen_by_others(local_store) as table, table.update_schema() as change:
        change.set_default_value("extra", default)
    write(local_store, feed, 3, 5)
    assert extras(local_store) == {(number, default): 1 for number in range(5)}


def test_export_is_refused_where_another_engine_wants_a_value(local_store, feed):
    """No reader of Iceberg's would read the table any more."""
    write(local_store, feed, 0, 3)
    with (
        seen_by_others(local_store) as table,
        table.update_schema(allow_incompatible_changes=True) as change,
    ):
        change.add_column("extra", StringType(), required=True)
    with pytest.raises(ConfigError, match=r"'extra', which the feed does not have, and in which .* wants a value"):
        write(local_store, feed, 3, 5)


def test_export_is_refused_where_a_feed_begins_to_have_a_column_with_a_default(local_store, feed):
    write(local_store, feed, 0, 3)
    add_extra(local_store, default="old", then="old")
    batch = numbered(range(3, 5))
    more = batch.rows.append_column("extra", pa.array(["x", None]))
    table = open_table(local_store, feed)
    changed = type(batch)(more, batch.source_partitions, batch.source_offsets)
    with pytest.raises(ConfigError, match="column 'extra' with a default for rows before it"):
        table.write(stream_of(changed), partitions=table.plan().partitions, run_id="run")


def test_compaction_leaves_files_that_lack_a_column_with_a_default(local_store, feed):
    """They were merged with files that have it, and their rows' default became null."""
    write(local_store, feed, 0, 3)
    add_extra(local_store, default="old", then="old")
    write(local_store, feed, 3, 5)
    with seen_by_others(local_store) as table:
        theirs = table.scan().to_arrow().slice(0, 1)
        place = theirs.schema.get_field_index("extra")
        theirs = theirs.set_column(place, "extra", pa.array(["theirs"], pa.large_string()))
        table.append(theirs.set_column(theirs.schema.get_field_index("id"), "id", pa.array([100])))
    before = extras(local_store)
    assert before == {**{(number, "old"): 1 for number in range(5)}, (100, "theirs"): 1}
    ours = open_table(local_store, feed)
    done = [ours.compact(key, FORCE) for key in ours.partitions()]
    assert [each.files_compacted for each in done] == [0]
    assert all("column 'extra', to which another engine gave a default" in each.reason for each in done[0].skipped)
    assert extras(local_store) == before
    for key in ours.partitions():
        ours.delete_rows(key, "id = 1")
    assert extras(local_store) == before - Counter({(1, "old"): 1})


def test_fields_in_a_struct_have_defaults_too(local_store, feed):
    batch = numbered(range(3))
    table = open_table(local_store, feed)
    nested = batch.rows.append_column("place", pa.array([{"x": 1}] * 3))
    sent = type(batch)(nested, batch.source_partitions, batch.source_offsets)
    table.write(stream_of(sent), partitions=table.plan().partitions, run_id="run")
    with seen_by_others(local_store) as theirs:
        with theirs.update_schema() as change:
            change.add_column(("place", "y"), LongType(), default_value=1)
        with theirs.update_schema() as change:
            change.set_default_value(("place", "y"), 2)
    table = open_table(local_store, feed)
    with pytest.raises(ConfigError, match=r"column 'y', which the feed does not have, .* 2: make it 1"):
        table.write(stream_of(sent), partitions=table.plan().partitions, run_id="run")
    (report,) = (table.compact(key, FORCE) for key in table.partitions())
    assert {each.reason for each in report.skipped} == {
        "may have files without column 'place.y', to which another engine gave a default for their rows"
    }


def added(table: Table) -> None:
    with table.update_schema() as change:
        change.add_column("extra", StringType(), default_value="old", required=True)
        change.add_column(("place", "y"), LongType(), default_value=7)


def test_table_of_others_keeps_its_defaults_when_it_is_compacted(catalog: Catalog):
    kind = pa.schema([("id", pa.int64()), ("place", pa.struct([("x", pa.int64())]))])
    table = catalog.create_table("n.t", kind)
    table.append(pa.table({"id": [1, 2], "place": [{"x": 1}, None]}, kind))
    added(table)
    more = [{"id": 3, "place": {"x": 1, "y": 2}, "extra": "new"}, {"id": 4, "place": {"x": 1}, "extra": "new"}]
    table.append(pa.Table.from_pylist(more, table.schema().as_arrow()))
    before = rows_of(table)
    compact(table)
    again = catalog.load_table("n.t")
    assert (rows_of(again), len(data_paths(again))) == (before, 1)
    assert before[:2] == [
        {"id": 1, "place": {"x": 1, "y": 7}, "extra": "old"},
        {"id": 2, "place": None, "extra": "old"},
    ]


def rows_of(table: Table) -> list[dict[str, object]]:
    return sorted(table.scan().to_arrow().to_pylist(), key=itemgetter("id"))
